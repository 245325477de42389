"""The files that `accelerate launch` is given are read by accelerate itself."""

import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser as torchrun_parser

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "configs/accelerate"


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ddp", "MULTI_GPU"), ("deepspeed-zero2", "DEEPSPEED"), ("fsdp2", "FSDP")],
)
def test_accelerate_reads_the_file_and_knows_every_key(name, kind):
    path = FOLDER / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == kind
    # nested keys are options of `accelerate launch`: a name that it does not know would be ignored
    options = {action.dest for action in launch_command_parser()._actions}
    for key in (config.deepspeed_config or {}) | (config.fsdp_config or {}):
        assert key in options or key.removeprefix("deepspeed_") in options, key


def test_torchrun_and_accelerate_understand_the_commands_of_the_page():
    lines = (ROOT / "docs/scaling.md").read_text(encoding="utf-8").splitlines()
    parsers = {
        "torchrun ": torchrun_parser(), "accelerate launch ": launch_command_parser()
    }  # fmt: skip
    understood = 0
    for line in lines:
        for program, parser in parsers.items():
            if line.startswith(program):
                # an option of ours that theirs could be short for would be an error
                parsed = parser.parse_args(shlex.split(line.removeprefix(program)))
                assert parsed.training_script == "reasonrec"
                assert parsed.training_script_args[0] == "train"
                assert "--data" in parsed.training_script_args
                understood += 1
    assert understood == 6


def test_every_file_says_the_command_that_uses_it():
    files = sorted(FOLDER.glob("*.yaml"))
    assert [path.stem for path in files] == ["ddp", "deepspeed-zero2", "fsdp2"]
    for path in files:
        first = path.read_text(encoding="utf-8").splitlines()[0]
        command = f"# accelerate launch --config_file configs/accelerate/{path.name} -m reasonrec"
        assert first.startswith(command)

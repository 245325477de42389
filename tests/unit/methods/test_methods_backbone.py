"""The command with a backbone from elsewhere: our preset for such, all three stages, an answer."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file
from tests.toy_models import ring_rows, save_backbone

from reasonrec.cli import main
from reasonrec.manifest import read_manifest
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.training.loop import read_metrics

PRESET = Path(__file__).parents[3] / "configs/r2ec/backbone.toml"
N = 8
FEW_STEPS = """
    --no-think.max-windows 8 --no-think.optimiser.batch-size 4 --sft.max-windows 8
    --sft.optimiser.batch-size 4 --sft.num-branches 2 --thought.num-lookups 1
    --thought.num-people 0 --recpo.num-prompts 8 --recpo.optimiser.batch-size 4
    --recpo.recpo.max-tokens 24 --recpo.recpo.group-size 2 --num-valid-queries 4
    --recpo.optimiser.refresh-items-every 1 --head.live-rows 6 --no-calibrate
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    rows = ring_rows(8, N, 6)
    log = [(f"u{u}", f"i{i}", 100 * u + t) for u, row in enumerate(rows) for t, i in enumerate(row)]
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        folder / "interactions.csv"
    )
    items = {"item_id": [f"i{n}" for n in range(N)], "title": [f"Tale {n}" for n in range(N)]}
    pl.DataFrame(items).write_csv(folder / "items.csv")
    main(["prepare", str(folder), "--out", str(folder / "data")])
    backbone = save_backbone(folder / "qwen", "qwen2")
    main(
        ["train", "r2ec", "--config", str(PRESET), "--backbone", str(backbone),
         "--data", str(folder / "data"), "--out", str(folder / "run"), *FEW_STEPS.split()]
    )  # fmt: skip
    return folder / "run"


def test_the_preset_for_backbones_from_elsewhere_asks_for_what_they_need():
    config, usual = R2ecConfig.load(PRESET), R2ecConfig()
    assert config.stages == usual.stages == ("no-think", "sft", "recpo")
    assert (config.weights.lora, config.weights.dtype, config.prompt.chat) == (
        True,
        "bfloat16",
        True,
    )
    assert (config.head.item_rows, config.head.dropout) == ("text", 0.0)
    stages = (config.no_think, config.sft, config.recpo)
    assert max(stage.optimiser.learning_rate for stage in stages) <= 1e-4
    assert {stage.optimiser.weight_decay for stage in stages} == {0.0}
    # rows of the batch's targets are all of today's weights
    assert config.recpo.recpo.item_softmax == "batch"
    assert config.recpo.optimiser.batch_size <= config.head.live_rows
    # our extras stay on
    assert config.head.gated and config.head.pointer and config.calibrate
    assert config.thought.num_lookups and config.thought.together == usual.thought.together


def test_all_three_stages_train_adapters_on_the_backbone_of_the_folder(run):
    methods = ("no-think", "think-sft", "think-recpo")
    adapters = []
    for method in methods:
        config = read_manifest(run / method)["config"]
        assert config["backbone"] == str(run.parent / "qwen")
        folder = run / method / "model/backbone"
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert told["base_model_name_or_path"] == str(run.parent / "qwen")
        adapters.append(load_file(folder / "adapter_model.safetensors"))
    for before, after in pairwise(adapters):
        assert before.keys() == after.keys()
        assert any((before[name] != after[name]).any() for name in before)
    rows = [[row for row in read_metrics(run / method / "metrics.jsonl") if "train/loss" in row]
            for method in methods]  # fmt: skip
    # 8 windows, 8 windows, 8 prompts, four a step
    assert [len(of_stage) for of_stage in rows] == [2, 2, 2]
    assert all("rl/reward_mean" in row for row in rows[2])


def test_the_trained_run_recommends_with_its_thought(run, capsys):
    capsys.readouterr()
    main(["recommend", str(run), "--user", "u1", "--k", "2", "--explain", "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["method"] == "think-recpo"
    # u1 took 1 to 6; what is left of 8 items is offered
    assert {item["item_id"] for item in answer["items"]} == {"i0", "i7"}
    assert isinstance(answer["thought"], str)


def test_settings_of_the_tiny_backbone_are_named_where_another_one_keeps_them(run, capsys):
    shop = run.parent
    asked = ["train", "no-think", "--data", str(shop / "data"), "--backbone", str(shop / "qwen")]
    few = ["--no-think.max-windows", "4", "--no-think.optimiser.batch-size", "4"]
    main([*asked, "--out", str(shop / "bare"), *few])
    told = " ".join(capsys.readouterr().err.split())
    assert "no_think.optimiser.learning_rate 0.002" in told and "head.item_rows id" in told
    assert "configs/r2ec/backbone.toml" in told
    assert not R2ecConfig().left_as_for_tiny()
    assert not R2ecConfig.load(PRESET).left_as_for_tiny()


def into_hub_cache(folder: Path, cache: Path, name: str) -> Path:
    """Lay the files of a folder out as huggingface_hub does after a download; return their repo."""
    repo, revision = cache / f"models--{name.replace('/', '--')}", "0123456789" * 4
    snapshot = repo / "snapshots" / revision
    for made in (repo / "refs", repo / "blobs", snapshot):
        made.mkdir(parents=True)
    (repo / "refs/main").write_text(revision)
    for file in folder.iterdir():
        blob = repo / "blobs" / sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return repo


def test_a_backbone_that_was_downloaded_is_trained_saved_and_asked_by_its_name(run, tmp_path):
    shop, name = run.parent, "toys/qwen-of-the-hub"
    repo = into_hub_cache(shop / "qwen", tmp_path / "home/hub", name)
    few = ["--no-think.max-windows", "4", "--no-think.optimiser.batch-size", "4"]
    train = ["train", "no-think", "--config", PRESET, "--data", shop / "data", *few, "--backbone"]
    ask = ["recommend", "named", "--data", shop / "data", "--user", "u1", "--k", "2", "--json"]
    commands = [[*train, name, "--out", "named"], ask, [*train, "toys/none", "--out", "none"]]
    # the environment is read when huggingface_hub is imported: a process of its own
    kept = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_CACHE", "TRANSFORMERS_CACHE")}
    code = (
        "import json, sys\nfrom reasonrec.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n    main(command)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([[str(one) for one in c] for c in commands])],
        env={**kept, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    (answer,) = json.loads(done.stdout[done.stdout.index("[") :])
    assert {item["item_id"] for item in answer["items"]} == {"i0", "i7"}
    assert read_manifest(tmp_path / "named")["config"]["backbone"] == name
    told = json.loads((tmp_path / "named/model/backbone/adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == name
    # a name that was never downloaded ends in words
    assert done.returncode == 1 and "hub name of a causal LM; the name 'toys/none'" in done.stderr
    assert repo.is_dir() and not (repo.parent / "models--toys--none").exists()

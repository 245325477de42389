"""The command line as a whole: help, exit codes, configuration files, and how failures read.

``toy`` is a small real verb; the verbs themselves are tested beside their stages.
"""

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

import pytest
from cyclopts import Parameter
from pydantic import PositiveInt

from reasonrec import __version__, cli
from reasonrec.config import Config
from reasonrec.errors import ConfigError, DataError


class Optimiser(Config):
    learning_rate: float = 0.1
    """Step size."""


class ToyConfig(Config):
    num_steps: PositiveInt = 3
    """Updates."""
    optimiser: Optimiser = Optimiser()


def toy(
    source: str = "shop",
    *,
    out: Path = Path("runs"),
    fail: str = "",
    config: Annotated[ToyConfig | None, Parameter(name="*")] = None,
) -> None:
    """Print what came in.

    Examples:
        reasonrec toy shop --num-steps 5

    Args:
        source: What to read.
        out: Where to write.
        fail: How to fail.
    """
    if fail == "data":
        raise DataError("the file must be whole; it was cut")
    if fail == "config":
        raise ConfigError("the value must be above 0")
    if fail == "interrupt":
        raise KeyboardInterrupt
    if fail == "disk":
        raise OSError(28, "No space left on device", "runs/table")
    if fail == "locked":
        raise RuntimeError("Permission denied (os error 13) at path runs/table")
    if fail == "pipe":
        raise BrokenPipeError
    if fail == "package":
        raise ModuleNotFoundError("No module named 'surely_absent'", name="surely_absent")
    if fail == "slip":
        raise ModuleNotFoundError("No module named 'reasonrec.absent'", name="reasonrec.absent")
    print(source, out, config or ToyConfig())


@pytest.fixture(autouse=True)
def toy_verb(monkeypatch):
    module = ModuleType("reasonrec.cli.toy")
    module.toy = toy  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "reasonrec.cli.toy", module)
    monkeypatch.setitem(cli.VERBS, "toy", "Print what came in.")


def failure(capsys, *arguments: str) -> tuple[int | str | None, str]:
    """Return exit code and standard error of a call that fails, and nothing on standard output."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("reasonrec: ")
    return ended.value.code, captured.err.removeprefix("reasonrec: ").strip()


def printed(capsys, *arguments: str) -> str:
    cli.main(list(arguments))
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_help_has_a_line_for_every_verb(capsys):
    text = printed(capsys, "--help")
    for verb, line in cli.VERBS.items():
        assert verb in text
        assert line.split()[0] in text


def test_verbs_are_listed_in_the_order_of_the_road(capsys):
    text = printed(capsys, "--help").partition("Commands")[2]
    places = [text.index(f" {verb} ") for verb in cli.VERBS]
    assert places == sorted(places)


def test_no_arguments_show_the_help(capsys):
    assert printed(capsys) == printed(capsys, "--help")


def test_the_help_of_a_verb_shows_its_docstring_its_fields_and_its_examples(capsys):
    text = printed(capsys, "toy", "--help")
    assert "What to read." in text
    assert "--num-steps" in text
    assert "Updates." in text
    assert "--optimiser.learning-rate" in text
    assert "reasonrec toy shop --num-steps 5" in text
    assert "--config" in text


def test_the_version_is_printed(capsys):
    assert printed(capsys, "--version").strip() == __version__


@pytest.mark.parametrize(
    ("verb", "more"),
    [("", {"polars", "numpy"}), *((verb, set()) for verb in cli.VERBS if verb != "toy")],
)
def test_a_help_imports_nothing_heavy(verb, more):
    heavy = {"torch", "transformers", "tokenizers", "numba", "scipy"} | more
    program = (
        "import sys\n"
        "from reasonrec.cli import main\n"
        f"main({[verb, '--help'] if verb else ['--help']})\n"
        f"loaded = {heavy} & sys.modules.keys()\n"
        "sys.exit(str(sorted(loaded)) if loaded else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_options_reach_the_verb(capsys):
    text = printed(capsys, "toy", "log", "--num-steps", "5", "--optimiser.learning-rate", "0.5")
    assert text.strip() == "log runs num_steps=5 optimiser=Optimiser(learning_rate=0.5)"


def test_a_file_sets_keys_and_an_option_wins(tmp_path, capsys):
    path = write(tmp_path, "num_steps = 7\nout = 'there'\n[optimiser]\nlearning_rate = 0.5")
    text = printed(capsys, "toy", "--config", path, "--num-steps", "5")
    assert text.strip() == "shop there num_steps=5 optimiser=Optimiser(learning_rate=0.5)"
    assert printed(capsys, "--config", path, "toy", "--num-steps", "5") == text


def test_an_unknown_key_of_a_file_names_file_nearest_and_known_keys(tmp_path, capsys):
    path = write(tmp_path, "[optimiser]\nlearning_rat = 0.5")
    code, message = failure(capsys, "toy", "--config", path)
    assert code == 2
    assert path in message
    assert "no key optimiser.learning_rat; did you mean optimiser.learning_rate?" in message
    assert "Known: optimiser.learning_rate" in message  # those of the table, not all there are
    assert "num_steps" not in message


def test_a_table_named_like_a_verb_is_not_taken_for_the_verb(tmp_path, capsys):
    code, message = failure(capsys, "toy", "--config", write(tmp_path, "[train]\nsteps = 1"))
    assert code == 2
    assert "no key train.steps" in message


@pytest.mark.parametrize("text", ["num_steps = ", "[optimiser"])
def test_a_broken_file_is_bad_usage(tmp_path, capsys, text):
    code, message = failure(capsys, "toy", "--config", write(tmp_path, text))
    assert code == 2
    assert "must be TOML" in message


def test_a_missing_file_is_bad_usage(tmp_path, capsys):
    code, message = failure(capsys, "toy", "--config", str(tmp_path / "absent.toml"))
    assert code == 2
    assert "must exist" in message


@pytest.mark.parametrize("by_file", [True, False])
def test_a_value_out_of_range_is_one_readable_line_for_each_problem(tmp_path, capsys, by_file):
    path = write(tmp_path, "num_steps = 0\n[optimiser]\nlearning_rate = 'fast'")
    options = ["--num-steps", "0", "--optimiser.learning-rate", "fast"]
    code, message = failure(capsys, "toy", *(["--config", path] if by_file else options))
    assert code == 2
    first, second, third = message.splitlines()
    assert "ToyConfig" in first
    assert "num_steps: Input should be greater than 0" in second
    assert "optimiser.learning_rate: Input should be a valid number" in third
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy", "--num-stepps", "5"], "Did you mean --num-steps?"),
        (["toi"], "got toi. Did you mean toy?"),
        (["fly-to-the-moon"], "There are: demo, prepare,"),
        (["toy", "--out"], "requires an argument"),
        (["toy", "a", "b"], "b"),
        (["--num-steps", "5"], "A command comes first; got --num-steps"),
    ],
)
def test_bad_usage_exits_with_2_and_a_hint(capsys, arguments, message):
    code, said = failure(capsys, *arguments)
    assert code == 2
    assert message in said


@pytest.mark.parametrize(
    ("kind", "code", "message"),
    [
        ("data", 1, "the file must be whole; it was cut"),
        ("config", 2, "the value must be above 0"),
        ("interrupt", 130, "the same command continues"),
        ("disk", 1, "runs/table cannot be used: No space left on device. Free space and run the"),
        ("locked", 1, "a file cannot be used: Permission denied (os error 13) at path runs/table"),
        ("package", 1, "needs the package surely_absent, which is not installed"),
    ],
)
def test_a_stated_failure_is_one_line_and_its_exit_code(capsys, kind, code, message):
    found, said = failure(capsys, "toy", "--fail", kind)
    assert found == code
    assert message in said
    assert len(said.splitlines()) == 1


def test_our_own_slip_is_shown_with_its_place():
    with pytest.raises(ModuleNotFoundError, match=r"reasonrec\.absent"):
        cli.main(["toy", "--fail", "slip"])


def test_a_reader_that_goes_away_causes_no_traceback():
    program = "from reasonrec.cli import main; main(['doctor', '--no-measure', '--json'])"
    ended = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -c "{program}" | true; echo ${{PIPESTATUS[0]}}'],
        capture_output=True, text=True,
    )  # fmt: skip
    assert ended.stderr == ""
    # the report may fit into the pipe before its reader is gone
    assert ended.stdout.strip() in {"141", "0"}

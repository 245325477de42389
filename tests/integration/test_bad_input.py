"""The command line under bad input: a clear answer, a counted quarantine, or a sensible result.

Every case goes through ``reasonrec.cli.main``, so an exception that is no stated failure fails the
test as a traceback would reach the user.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from reasonrec.cli import main
from reasonrec.training import loop

START = 1_600_000_000
NUM_USERS, NUM_ITEMS = 9, 8
SMOKE = """
num_valid_queries = 20
[tiny]
width = 16
num_heads = 2
feed_forward_width = 32
vocab_size = 300
[head]
max_history = 10
[no_think]
num_epochs = 1
optimiser = { batch_size = 16, num_validations = 1, learning_rate = 5e-3 }
[sft]
num_epochs = 1
num_branches = 2
optimiser = { batch_size = 16, num_validations = 1, learning_rate = 5e-3 }
[recpo]
num_prompts = 8
recpo = { group_size = 2, max_tokens = 12 }
optimiser = { batch_size = 8, num_validations = 1, learning_rate = 1e-3 }
"""
Row = tuple[Any, ...]


def log_rows(num_users: int = NUM_USERS, per_user: int = 6) -> list[Row]:
    """Return events in which user u takes items u, u + 1, ... of a ring of ``NUM_ITEMS``."""
    return [
        (f"u{user}", f"i{(user + step) % NUM_ITEMS}", 1 + step % 5, START + 100 * user + step)
        for user in range(num_users)
        for step in range(per_user)
    ]


def item_rows(titles: Iterable[str] | None = None) -> list[Row]:
    return [
        (f"i{n}", title)
        for n, title in enumerate(titles or (f"Book {n}" for n in range(NUM_ITEMS)))
    ]


def write_shop(
    folder: Path,
    rows: list[Row] | None = None,
    items: list[Row] | None = None,
    *,
    columns: tuple[str, ...] = ("user_id", "item_id", "rating", "timestamp"),
    item_columns: tuple[str, ...] = ("item_id", "title"),
) -> Path:
    """Write ``interactions.csv`` and ``items.csv``; a sound shop unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, head, content in (
        ("interactions.csv", columns, log_rows() if rows is None else rows),
        ("items.csv", item_columns, item_rows() if items is None else items),
    ):
        table = pl.DataFrame(
            [[str(value) for value in row] for row in content], schema=list(head), orient="row"
        )
        table.write_csv(folder / name)
    return folder


class Shell:
    """Runs commands as a user would, and keeps what they printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def ok(self, *words: object) -> str:
        """Return the standard output of a command that must succeed."""
        main([str(word) for word in words])
        return self.capsys.readouterr().out

    def fails(self, *words: object, code: int = 1) -> str:
        """Return the message of a command that must end in a stated failure."""
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        said = self.capsys.readouterr().err
        assert stop.value.code == code, said
        message = said[said.index("reasonrec: ") :]
        assert "Traceback" not in said
        assert message.strip() != "reasonrec:"
        return message


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preset") / "smoke.toml"
    path.write_text(SMOKE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shop(tmp_path_factory.mktemp("raw") / "shop")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, shop: Path, preset: Path) -> Path:
    """A finished demo run, to be copied before anything is broken in it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    main(["demo", str(shop), "--out", str(out), "--preset", str(preset)])
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- raw logs ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("interactions.csv", b"", "must hold a table; it is empty"),
        ("items.csv", b"", "must hold a table; it is empty"),
        ("interactions.csv", b"user_id,item_id\n", "must hold interactions; it has none"),
        ("interactions.csv", b"user,item\n1,2\n", "must have the columns user_id, item_id"),
        ("items.csv", b"item_id,name\ni1,x\n", "title missing, found: item_id, name"),
        ("items.csv", b'item_id,title\ni1,""\n', "at least one item with an id and a title"),
        ("interactions.parquet", b"PAR1" + bytes(40), "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_words(
    tmp_path: Path, shell: Shell, file: str, content: bytes, message: str
):
    folder = write_shop(tmp_path / "shop")
    if file.endswith(".parquet"):
        (folder / "interactions.csv").unlink()
    (folder / file).write_bytes(content)
    assert message in shell.fails("prepare", folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_column_that_the_items_lack_cannot_be_required(tmp_path: Path, shell: Shell, shop: Path):
    shell.ok("prepare", shop, "--out", tmp_path / "out", "--require-columns", "title")
    asked = ("prepare", shop, "--out", tmp_path / "priced", "--require-columns", "price")
    said = " ".join(shell.fails(*asked).split())
    assert "columns that the items have: item_id, title, description, categories; got" in said


def test_a_truncated_parquet_log_is_refused_in_words(tmp_path: Path, shell: Shell):
    folder = write_shop(tmp_path / "shop")
    whole = folder / "interactions.parquet"
    pl.read_csv(folder / "interactions.csv").write_parquet(whole)
    (folder / "interactions.csv").unlink()
    whole.write_bytes(whole.read_bytes()[:-30])
    said = shell.fails("prepare", folder, "--out", tmp_path / "out")
    assert "interactions.parquet cannot be read" in said


def changed(position: int, value: Callable[[Any], Any]) -> list[Row]:
    return [(*row[:position], value(row[position]), *row[position + 1 :]) for row in log_rows()]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(3, lambda _: "yesterday"), "timestamp is no time 54"),
        (changed(3, lambda time: time + 10**10), "timestamp in the future 54"),
        (changed(2, lambda _: "good"), "rating is no number 54"),
        (changed(1, lambda item: item + "x"), "unknown item 54"),
        ([("u1", "i1", 1, START)], "needs a user with at least 3 events"),
        (log_rows(per_user=2), "needs a user with at least 3 events"),
        (log_rows(per_user=4), "a user with 5 events"),
    ],
    ids=["types", "future", "rating", "items", "one event", "two events", "four events"],
)
def test_a_log_that_holds_nothing_to_learn_from_is_refused_before_any_training(
    tmp_path: Path, shell: Shell, preset: Path, rows: list[Row], message: str
):
    source = write_shop(tmp_path / "shop", rows)
    said = shell.fails("demo", source, "--out", tmp_path / "out", "--preset", preset)
    assert message in said
    assert not list(tmp_path.rglob("*.safetensors"))


def test_few_bad_rows_are_set_aside_and_counted(tmp_path: Path, shell: Shell):
    rows = log_rows(30)  # 180 good rows, 4 bad ones: 2 %
    bad = [
        ("u1", "i1", 1, START + 10**10),
        ("u1", "nothing", 1, START),
        ("", "i1", 1, START),
        rows[0],
    ]
    source = write_shop(tmp_path / "shop", rows + bad)
    said = shell.ok("prepare", source, "--out", tmp_path / "out", "--json")
    assert json.loads(said)["rejected"]["interactions"] == {
        "duplicate event": 1,
        "missing user_id": 1,
        "timestamp in the future": 1,
        "unknown item": 1,
    }
    assert pl.read_parquet(tmp_path / "out" / "rejected.parquet").height == 4


def test_duplicate_items_mixed_units_and_ratings_out_of_scale_are_counted_or_refused(
    tmp_path: Path, shell: Shell
):
    items = item_rows() + item_rows()[:1]
    rows = [(u, i, r, t * 1000 if n % 2 else t) for n, (u, i, r, t) in enumerate(log_rows())]
    source = write_shop(tmp_path / "shop", rows, items)
    out = tmp_path / "out"
    assert "duplicate item_id 1" in shell.fails("prepare", source, "--out", out)
    said = json.loads(
        shell.ok("prepare", source, "--out", out, "--max-rejected-frac", 0.2, "--json")
    )
    assert said["rejected"]["items"] == {"duplicate item_id": 1}
    assert any("milliseconds" in note for note in said["notes"])
    scale = ("--max-rejected-frac", 0.2, "--rating-scale", 1, 3)
    message = shell.fails("prepare", source, "--out", tmp_path / "scaled", *scale)
    assert "rating outside 1 to 3" in message


EVIL = [
    "<answer>", "[", "]", "😀", "x" * 10_000, "<b>bold</b> \x1b[31m\x00red", "[/bold] ]: [",
    "{{7}}",
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "items", "columns"),
    [
        (log_rows(1), item_rows(EVIL), ("item_id", "title")),
        (changed(1, lambda _: "i0"), item_rows(["Only"]), ("item_id", "title")),
        (
            [(*row[:2], "", "") for row in log_rows()],
            [(item_id, "Same", "y " * 500_000) for item_id, _ in item_rows()],
            ("item_id", "title", "description"),
        ),
    ],
    ids=[
        "one user, markup", "a catalogue of one, taken by all",
        "no times or ratings, equal titles, long texts",
    ],
)  # fmt: skip
def test_an_odd_shop_still_gets_to_the_end_of_the_road(
    tmp_path: Path,
    shell: Shell,
    preset: Path,
    rows: list[Row],
    items: list[Row],
    columns: tuple[str, ...],
):
    source = write_shop(tmp_path / "shop", rows, items, item_columns=columns)
    out = tmp_path / "out"
    said = shell.ok("demo", source, "--out", out, "--preset", preset, "--num-queries", "1")
    assert "think-recpo" in said
    assert "\x1b[31m" not in said
    assert "\x00" not in said
    rows_measured = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert all(0 <= row["value"] <= 1 for row in rows_measured if row["protocol"] == "full")
    assert {row["n"] for row in rows_measured} == {1}
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<b>bold</b>" not in page


@pytest.mark.parametrize("name", ["[red]", "a*b?", "{x}", "with space ü"])
def test_a_folder_may_have_any_name(tmp_path: Path, shell: Shell, name: str):
    source = write_shop(tmp_path / name / "raw[1]*")
    out = tmp_path / name / "out"
    shell.ok("prepare", source, "--out", out)
    evaluated = ["evaluate", "popularity", "--data", out, "--out", tmp_path / name / "e"]
    assert "popularity" in shell.ok(*evaluated)


# --- usage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nosuch = 1", "no key nosuch"),
        ("[tiny]\nwidht = 16", "no key tiny.widht; did you mean tiny.width?"),
        ("[no_think.optimiser]\nlr = 1", "no key no_think.optimiser.lr"),
        ("tiny = 3", "tiny: Input should be"),
        ("= =", "must be TOML"),
        ("[no_think]\nnum_epochs = 'x'", "no_think.num_epochs: Input should be a valid integer"),
        ("[tiny]\nwidth = 15\nnum_heads = 2", "width must be a multiple of 2 x num_heads"),
        ("[tiny]\nvocab_size = 1", "tiny.vocab_size"),
        ("[head]\nmax_history = 0", "head.max_history"),
        ("[head]\ndropout = 1.5", "head.dropout"),
        ("[no_think.optimiser]\nlearning_rate = inf", "finite number"),
        ("[no_think.optimiser]\nschedule = 'zigzag'", "schedule: Input should be 'cosine'"),
        ("[recpo]\nnum_prompts = 1", "num_prompts must fill one batch"),
        ("[recpo.recpo]\ngroup_size = 1", "greater than or equal to 2"),
        ("[inference]\nnum_samples = 2", "needs a temperature above 0"),
        ("[thought]\nnum_links = 0", "thought.num_links"),
    ],
)
def test_a_setting_that_cannot_work_is_bad_usage_said_in_few_words(
    tmp_path: Path, shell: Shell, finished: Path, text: str, message: str
):
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    words = ["train", "no-think", "--data", finished / "data", "--out", tmp_path / "out"]
    said = shell.fails(*words, "--config", path, code=2)
    assert message in said
    assert len(said) < 900
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["demo", "--seed", "-1"], "Must be >= 0"),
        (["demo", "--seed", str(2**70)], "Must be < 4294967296"),
        (["demo", "--tune", "-1"], "Must be >= 0"),
        (["demo", "--num-queries", "0"], "Must be >= 1"),
        (["prepare", "planted", "--seed", "-1"], "Must be >= 0"),
        (["prepare", "planted", "--planted.num-users", "0"], "num_users"),
        (["chains", "--data", "DATA", "--seed", "-1"], "Must be >= 0"),
        (["traces", "--data", "DATA", "--show", "-1"], "Must be >= 0"),
        (["train", "no-think", "--data", "DATA", "--seed", "-1"], "Must be >= 0"),
        (["train", "no-think", "--data", "DATA", "--tiny.widht", "3"], "Did you mean --tiny.width"),
        (["train", "r2ec", "--data", "DATA", "--start", "DATA"], "takes no --start"),
        (["train", "sft", "--data", "DATA", "--again", "DATA"], "--again is for r2ec"),
        (["train", "r2rec", "--data", "DATA", "--again", "DATA"], "--again is for r2ec"),
        (["train", "tiger", "--data", "DATA", "--again", "DATA"], "--again is for r2ec"),
        (["train", "r2ec", "--data", "DATA", "--again", "DATA", "--seed", "1"], "alone. Got r2ec"),
        (["train", "no-think", "--data", "DATA", "--lookups", "DATA"], "is for what looks up"),
        (["evaluate", "popularity", "--data", "DATA", "--protocols", "candidates-1"], "C of 2"),
        (["evaluate", "popularity", "--data", "DATA", "--part", "train"], "'valid' or 'test'"),
    ],
)
def test_an_option_outside_its_range_is_bad_usage(
    tmp_path: Path, shell: Shell, finished: Path, words: list[str], message: str
):
    typed = [str(finished / "data") if word == "DATA" else word for word in words]
    assert message in shell.fails(*typed, "--out", tmp_path / "out", code=2)


def test_an_output_or_source_that_cannot_be_is_a_stated_failure(
    tmp_path: Path, shell: Shell, shop: Path, finished: Path
):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        for words in (
            ["prepare", shop],
            ["demo", shop],
            ["chains", "--data", finished / "data"],
            ["traces", "--data", finished / "data"],
            ["evaluate", "popularity", "--data", finished / "data"],
            ["compare", finished, "--reference", "no-think"],
        ):
            assert "must be writable" in shell.fails(*words, "--out", out)
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"
    new = ("--out", tmp_path / "new")
    assert "must hold one of the known" in shell.fails("prepare", tmp_path / "empty", *new)
    assert "the source must be a folder" in shell.fails("demo", tmp_path / "none", *new)
    assert "prepare` it first" in shell.fails("chains", "--data", shop, *new)
    assert "must exist" in shell.fails("chains", "--data", tmp_path / "none", *new)
    again = ("train", "r2ec", "--data", finished / "data", "--again", finished / "data")
    assert "must be a folder of `reasonrec train r2ec`" in shell.fails(*again, *new)
    other = shell.fails("chains", "--data", finished / "no-think", *new)
    assert "written by stage 'train'" in other


def test_training_starts_from_the_stage_before_and_from_nothing_else(
    tmp_path: Path, shell: Shell, preset: Path, finished: Path
):
    common = ["--data", finished / "data", "--out", tmp_path / "out", "--config", preset]
    for stage, start, message in (
        ("sft", None, "sft need --start"),
        ("no-think", "no-think", "no-think starts from nothing"),
        ("sft", "think-recpo", "starts from a no-think folder"),
        ("recpo", "no-think", "starts from a think-sft folder"),
        ("sft", "data", "must be a folder written by `reasonrec train`"),
        ("sft", "nowhere", "must exist"),
    ):
        option = [] if start is None else ["--start", finished / start]
        assert message in shell.fails("train", stage, *common, *option)


def test_training_that_diverges_says_so(tmp_path: Path, shell: Shell, finished: Path, preset: Path):
    rate = ["--config", preset, "--no-think.optimiser.learning-rate", "1e30"]
    rate += ["--no-think.num-epochs", 4]
    words = ["train", "no-think", "--data", finished / "data", "--out", tmp_path / "out", *rate]
    assert "training diverged" in shell.fails(*words)


# --- run folders --------------------------------------------------------------------------------


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), encoding="utf-8")


@pytest.mark.parametrize(
    "file",
    [
        "data/items.parquet", "data/train.parquet", "data/statistics.json",
        "think-recpo/model/rec_head.safetensors", "think-recpo/model/backbone/model.safetensors",
        "think-recpo/model/backbone/tokenizer.json", "think-recpo/model/catalogue.json",
        "think-recpo/model/reasonrec.json",
    ],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_file_that_is_not_as_it_was_written_is_named(
    run: Path, shell: Shell, shop: Path, preset: Path, file: str, damage: str
):
    path = run / file
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(content[:30] if damage == "cut" else b"[]")
    for words in (["recommend", run, "--user", "u1"], demo_words(shop, run, preset)):
        said = shell.fails(*words)
        assert path.name in said
        assert "was changed since" in said


def demo_words(source: Path, out: Path, preset: Path) -> list[object]:
    return ["demo", source, "--out", out, "--preset", preset]


def test_data_edited_by_hand_is_not_used(run: Path, tmp_path: Path, shell: Shell):
    path = run / "data" / "train.parquet"
    pl.read_parquet(path).head(10).write_parquet(path)
    for verb in (["evaluate", "popularity"], ["chains"], ["traces"], ["train", "no-think"]):
        said = shell.fails(*verb, "--data", run / "data", "--out", tmp_path / verb[0])
        assert "train.parquet" in said


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": 99}, "written in format 99, this version reads format 1"),
        ({"stage": None}, "damaged (stage)"),
        ({"outputs": []}, "damaged (outputs)"),
        ({"config": {"thought": {"old_key": 1}}}, "settings that this version does not know"),
    ],
)
def test_a_run_of_another_version_is_refused(
    run: Path, shell: Shell, values: dict[str, object], message: str
):
    edit_json(run / "think-recpo" / "manifest.json", **values)
    assert message in shell.fails("recommend", run, "--user", "u1")


def test_what_a_demo_can_write_again_it_writes_again(
    run: Path, shell: Shell, shop: Path, preset: Path
):
    before = (run / "metrics.json").read_bytes()
    for name in ("report.html", "metrics.json", "config.json"):
        (run / name).unlink()
    for name in ("no-think", "think-sft", "think-recpo"):
        (run / name / "metrics.jsonl").unlink()
    shell.ok(*demo_words(shop, run, preset))
    assert (run / "metrics.json").read_bytes() == before
    assert (run / "report.html").stat().st_size > 10_000


def test_a_source_that_changed_after_a_run_is_not_mixed_into_it(
    run: Path, tmp_path: Path, shell: Shell, preset: Path
):
    other = write_shop(tmp_path / "shop", log_rows(NUM_USERS + 1))
    message = shell.fails(*demo_words(other, run, preset))
    assert "interactions.csv changed since" in message
    shell.ok("prepare", other, "--out", tmp_path / "other")
    said = shell.fails("recommend", run, "--data", tmp_path / "other", "--user", "u1")
    assert "other data" in said


def test_an_interrupted_demo_continues_only_what_was_asked(
    tmp_path: Path, shell: Shell, shop: Path, preset: Path, finished: Path, monkeypatch
):
    out = tmp_path / "run"
    save = loop._Trainer._save_checkpoint

    def interrupt(*arguments: Any) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # Ctrl-C right after the first checkpoint
        patched.setattr(loop._Trainer, "_save_checkpoint", interrupt)
        assert "interrupted" in shell.fails(*demo_words(shop, out, preset), code=130)
    assert list(out.glob("no-think/checkpoints/checkpoint-*"))
    wider = tmp_path / "wider.toml"
    wider.write_text(SMOKE.replace("width = 16", "width = 32", 1), encoding="utf-8")
    other = write_shop(tmp_path / "other", log_rows(NUM_USERS + 1))
    asked_otherwise = (
        (demo_words(shop, out, wider), "another config: tiny.width was 16, now 32"),
        ([*demo_words(shop, out, preset), "--seed", 1], "another seed: was 0, now 1"),
        ([*demo_words(shop, out, preset), "--prepare.k-core", 2], "k_core was None, now 2"),
        (demo_words(other, out, preset), "interactions.csv changed since"),
    )
    for words, message in asked_otherwise:
        assert message in shell.fails(*words)
    shutil.copytree(out, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "data")
    said = shell.fails(*demo_words(other, tmp_path / "half", preset))
    assert "an interrupted run with another inputs" in said
    shell.ok(*demo_words(shop, out, preset))
    assert accuracy(out) == accuracy(finished)


def accuracy(folder: Path) -> dict[tuple[str, ...], float]:
    rows = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {
        (row["method"], row["protocol"], row["metric"]): row["value"]
        for row in rows
        if row["protocol"] != "cost"
    }


# --- questions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "somebody must be named"),
        (["--user", "u1", "--k", "0"], "k must be 1 or more"),
        (["--user", "nobody"], "user 'nobody' must be one of the 9 users"),
        (["--user", "\x1b[31m[/bold]"], "must be one of the 9 users"),
        (["--user", "u1", "--method", "../.."], "no finished model"),
    ],
)
def test_a_question_that_cannot_be_answered_is_a_stated_failure(
    finished: Path, shell: Shell, words: list[str], message: str
):
    said = shell.fails("recommend", finished, *words)
    assert message in said
    assert "\x1b" not in said


def test_unknown_items_and_long_lists_are_answered_with_a_note(finished: Path, shell: Shell):
    for history in ("zz,yy", "", ",,,"):
        said = shell.ok("recommend", finished, "--history", history)
        assert "nothing is known of this person" in said
    assert "the catalogue has 2" in shell.ok("recommend", finished, "--user", "u1", "--k", 10**12)


def test_comparing_what_cannot_be_compared_is_a_stated_failure(
    tmp_path: Path, shell: Shell, finished: Path, shop: Path
):
    out = ("--out", tmp_path / "out")
    assert "reference must be" in shell.fails("compare", finished, "--reference", "x", *out)
    assert "per_query.parquet" in shell.fails("compare", shop, "--reference", "x", *out)
    assert "at least one run" in shell.fails("compare", "--reference", "x", *out, code=2)
    name = shell.fails("evaluate", "nosuch", "--data", finished / "data", *out)
    assert "a method must be one of" in name


def test_the_doctor_names_a_data_folder_that_is_missing(tmp_path: Path, shell: Shell, monkeypatch):
    monkeypatch.setenv("REASONREC_DATA", str(tmp_path / "none"))
    assert str(tmp_path / "none") in shell.ok("doctor", "--no-measure").replace("\n", "")

"""Whatever bytes a file holds, preparing it ends in a data set or in a stated failure."""

import json
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from reasonrec.data.prepare import prepare
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import ReasonrecError

ANYTHING = PrepareConfig(max_rejected_frac=1.0)
GIVEN = PrepareConfig(max_rejected_frac=1.0, split="given")
QUIET = settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LOG = b"user_id,item_id,rating,timestamp\n" + b"".join(
    b"u%d,i%d,%d,%d\n" % (n % 3, n % 5, n % 5 + 1, 1_600_000_000 + n) for n in range(20)
)
ITEMS = b"item_id,title,description\n" + b"".join(b"i%d,Item %d,Text\n" % (n, n) for n in range(5))


def outcome(files: dict[str, bytes], config: PrepareConfig = ANYTHING) -> str:
    """Return what preparing a folder of these files ended in; another exception fails the test."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "raw"
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        try:
            prepare(folder, Path(name) / "out", config)
        except ReasonrecError as error:
            return str(error)
        return "prepared"


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """Return a strategy of copies of ``content`` with a few bytes replaced, inserted or cut off."""
    edits = st.lists(
        st.tuples(st.integers(0, len(content)), st.integers(0, 3), st.binary(max_size=4)),
        min_size=1, max_size=4,
    )  # fmt: skip

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        result = content
        for place, removed, inserted in edits:
            result = result[:place] + inserted + result[place + removed :]
        return result

    return edits.map(apply)


@QUIET
@given(st.binary(max_size=200), st.sampled_from(["csv", "tsv", "jsonl", "parquet", "csv.gz"]))
@example(b"\n", "csv")
@example(b"\n\n\n", "csv")
@example(b"\xef\xbb\xbfuser_id,item_id\n", "csv")
@example(b'"user_id","item_id"\n"a', "csv")
@example(b"PAR1PAR1", "parquet")
@example(b"{}\n", "jsonl")
@example(b"\x1f\x8b", "csv.gz")
@example(b"\x00", "tsv")
def test_any_bytes_as_a_log_are_refused_in_words(content: bytes, ending: str):
    assert outcome({f"interactions.{ending}": content, "items.csv": ITEMS}) != ""


@QUIET
@given(st.binary(max_size=200), st.sampled_from(["csv", "jsonl", "jsonl.gz", "parquet"]))
@example(b'{"item_id": 1e400, "title": NaN}\n', "jsonl")
@example(b'{"item_id": "\\ud800", "title": {"a": [1]}}\n', "jsonl")
@example(b"[" * 100, "jsonl")
def test_any_bytes_as_items_are_refused_in_words(content: bytes, ending: str):
    assert outcome({"interactions.csv": LOG, f"items.{ending}": content}) != "prepared"


@QUIET
@given(mutated(LOG))
def test_a_mutated_log_is_prepared_or_refused_in_words(content: bytes):
    assert outcome({"interactions.csv": content, "items.csv": ITEMS}) != ""


@QUIET
@given(mutated(ITEMS))
def test_a_mutated_item_table_is_prepared_or_refused_in_words(content: bytes):
    assert outcome({"interactions.csv": LOG, "items.csv": content}) != ""


@pytest.fixture(scope="module")
def parquet_log(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the log as Parquet."""
    path = tmp_path_factory.mktemp("fuzz") / "log.parquet"
    pl.read_csv(LOG).write_parquet(path)
    return path.read_bytes()


@QUIET
@given(cut=st.floats(0, 1), place=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_truncated_or_flipped_parquet_log_is_prepared_or_refused_in_words(
    parquet_log: bytes, cut: float, place: float, byte: int
):
    shorter = parquet_log[: int(cut * len(parquet_log))]
    assert outcome({"interactions.parquet": shorter, "items.csv": ITEMS}) != ""
    at = int(place * (len(parquet_log) - 1))
    flipped = parquet_log[:at] + bytes([byte]) + parquet_log[at + 1 :]
    assert outcome({"interactions.parquet": flipped, "items.csv": ITEMS}) != ""


def test_a_parquet_page_that_ends_its_reader_is_refused_in_words(parquet_log: bytes):
    # the first byte of a page's definition levels: polars takes it for a length, and asks for as
    # much memory ("memory allocation of 2305843009213693944 bytes failed", and no process is left)
    parts = [outcome({"interactions.parquet": parquet_log[:at] + b"\x7f" + parquet_log[at + 1 :],
                      "items.csv": ITEMS}) for at in range(45, 60)]  # fmt: skip
    assert any("interactions.parquet cannot be read: memory allocation" in said for said in parts)


@QUIET
@given(st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=5), max_size=6))
def test_any_text_in_the_layouts_with_fixed_files_is_prepared_or_refused(rows: list[list[str]]):
    lines = ["::".join(row) for row in rows]
    text = "\n".join(lines).encode("utf-8", "replace")
    assert outcome({"ratings.dat": text, "movies.dat": text}) != ""
    tabbed = "\n".join("\t".join(row) for row in rows).encode("utf-8", "replace")
    assert outcome({"u.data": tabbed, "u.item": text, "u.genre": b"a|0\nb|x\n"}) != ""
    assert outcome({"u.data": tabbed, "u.item": text, "u.genre": b"a|0\nb|1\n"}) != ""
    assert outcome({"x.inter": tabbed, "x.item": tabbed}) != ""
    headed = b"user_id:token\titem_id_list:token_seq\titem_id:token\n" + tabbed
    items = b"item_id:token\ttitle:token_seq\n" + tabbed
    sequences = {f"x.{part}.inter": headed for part in ("train", "valid", "test")}
    assert outcome({**sequences, "x.item": items}, GIVEN) != ""
    listed = b"user_id,history_item_id,item_id,item_title,history_item_title\n"
    listed += "\n".join(",".join(row) for row in rows).encode("utf-8", "replace")
    assert outcome({f"a.{part}.csv": listed for part in ("train", "valid", "test")}, GIVEN) != ""
    meta = "\n".join(json.dumps({"parent_asin": row[0], "title": row[1]}) for row in rows).encode()
    ratings = b"user_id,parent_asin,rating,timestamp\n" + listed.partition(b"\n")[2]
    assert outcome({"Pens.csv": ratings, "meta_Pens.jsonl": meta}) != ""

"""Each published layout, written exactly as its publisher writes it, ends in the same tables."""

import gzip
import json
import zipfile
from pathlib import Path

import polars as pl
import pytest

from reasonrec.data.dataset import Dataset
from reasonrec.data.prepare import prepare
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import DataError

T = 881_250_949


def rows_of(dataset: Dataset) -> list[tuple[str, str]]:
    """Return (user, item) of every event of a leave-one-out data set, user after user."""
    users, items = dataset.user_ids, dataset.catalogue.item_ids
    found = [
        (users[u], items[i]) for u, i in zip(dataset.train.user_index, dataset.train.item_index)
    ]
    for queries in (dataset.valid, dataset.test):
        found += [(users[u], items[t]) for u, t in zip(queries.user_index, queries.target)]
    return sorted(found)


EVENTS = sorted([("1", "10"), ("1", "20"), ("1", "30"), ("2", "30")])


def write_ml_100k(folder: Path) -> None:
    folder.mkdir()
    (folder / "u.data").write_text(
        f"1\t10\t5\t{T}\n1\t20\t3\t{T + 1}\n2\t30\t1\t{T}\n1\t30\t4\t{T + 2}\n"
    )
    (folder / "u.genre").write_text("unknown|0\nAction|1\nComedy|2\n\n")
    (folder / "u.item").write_bytes(
        "10|Misérables, Les (1995)|01-Jan-1995||http://x|0|1|1\n"
        "20|Pen (1996)|||http://y|0|0|0\n"
        "30|Ink|01-Jan-1997||http://z|0|0|1\n".encode("latin-1")
    )


def test_movielens_100k_is_read_with_its_genres_and_its_latin_1(tmp_path: Path):
    write_ml_100k(tmp_path / "ml-100k")
    dataset = prepare(tmp_path / "ml-100k", tmp_path / "out")
    assert rows_of(dataset) == EVENTS
    assert dataset.catalogue.titles == ["Misérables, Les (1995)", "Pen (1996)", "Ink"]
    assert dataset.catalogue.table["categories"].to_list() == [
        ["Action", "Comedy"],
        None,
        ["Comedy"],
    ]
    assert dataset.catalogue.table["release_date"].to_list() == ["01-Jan-1995", None, "01-Jan-1997"]
    assert dataset.statistics["notes"][0] == "u.item is not UTF-8; it was read as Latin-1"


def test_an_archive_is_read_like_the_folder_inside_it(tmp_path: Path):
    write_ml_100k(tmp_path / "ml-100k")
    (tmp_path / "sets").mkdir()
    with zipfile.ZipFile(tmp_path / "sets" / "ml-100k.zip", "w") as archive:
        for path in (tmp_path / "ml-100k").iterdir():
            archive.write(path, f"ml-100k/{path.name}")
    plain = prepare(tmp_path / "ml-100k", tmp_path / "a")
    for source in (tmp_path / "sets", tmp_path / "sets" / "ml-100k.zip"):
        zipped = prepare(source, tmp_path / f"out-{source.name}")
        assert rows_of(zipped) == rows_of(plain)
        assert zipped.catalogue.table.equals(plain.catalogue.table)


def test_tables_beside_an_archive_are_preferred(tmp_path: Path):
    write_ml_100k(tmp_path / "ml-100k")
    sets = tmp_path / "sets"
    sets.mkdir()
    with zipfile.ZipFile(sets / "ml-100k.zip", "w") as archive:
        archive.write(tmp_path / "ml-100k" / "u.data", "ml-100k/u.data")
    (sets / "interactions.csv").write_text("user_id,item_id\nu,a\nu,b\nu,a\n")
    (sets / "items.csv").write_text("item_id,title\na,A\nb,B\n")
    assert prepare(sets, tmp_path / "out").user_ids == ["u"]


def test_a_damaged_archive_is_refused_in_words(tmp_path: Path):
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"set\.zip cannot be unpacked"):
        prepare(tmp_path / "set.zip", tmp_path / "out")


def test_movielens_1m_is_read_between_double_colons(tmp_path: Path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    (folder / "ratings.dat").write_text(
        f"1::10::5::{T}\n1::20::3::{T + 1}\n2::30::1::{T}\n1::30::4::{T + 2}\n1::2\n"
    )
    (folder / "movies.dat").write_bytes(
        "10::Misérables, Les (1995)::Drama|Musical\n"
        "20::Pen::Drama\n30::Ink: Part 2::Comedy\n".encode("latin-1")
    )
    dataset = prepare(folder, tmp_path / "out", PrepareConfig(max_rejected_frac=0.2))
    assert rows_of(dataset) == EVENTS
    assert dataset.catalogue.titles == ["Misérables, Les (1995)", "Pen", "Ink: Part 2"]
    assert dataset.catalogue.table["categories"][0].to_list() == ["Drama", "Musical"]
    assert dataset.statistics["rejected"]["interactions"] == {"not 4 fields between ::": 1}


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_a_table_of_a_spreadsheet_that_writes_numbers_with_a_comma_is_read(
    tmp_path: Path, separator: str
):
    log = ["user_id item_id rating timestamp", "1 10 4,5 14.11.2023"]
    log += ["1 20 3 15.11.2023", "2 30 0,5 14.11.2023", "1 30 4,0 16.11.2023"]
    items = ["item_id title", "10 Käse, klein", "20 Nib", "30 Ink"]
    for name, lines in (("interactions", log), ("items", items)):
        text = "\r\n".join(lines).replace(" ", separator).replace(f",{separator}", ", ")
        (tmp_path / f"{name}.csv").write_bytes(text.encode("latin-1"))
    dataset = prepare(tmp_path, tmp_path / "out", PrepareConfig(min_rating=3))
    assert rows_of(dataset) == [("1", "10"), ("1", "20"), ("1", "30")]
    assert dataset.catalogue.titles[0] == "Käse, klein"


def test_movielens_latest_is_read_with_quoted_titles(tmp_path: Path):
    folder = tmp_path / "ml-latest-small"
    folder.mkdir()
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n"
        f"1,10,4.5,{T}\n1,20,3.0,{T + 1}\n2,30,0.5,{T}\n1,30,4.0,{T + 2}\n"
    )
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n10,"Pen, The (1995)",Drama|War\n'
        "20,Nib,(no genres listed)\n30,Ink,War\n"
    )
    dataset = prepare(folder, tmp_path / "out")
    assert rows_of(dataset) == EVENTS
    assert dataset.catalogue.titles[0] == "Pen, The (1995)"
    assert dataset.catalogue.table["categories"].to_list() == [["Drama", "War"], None, ["War"]]


@pytest.mark.parametrize("is_zipped", [False, True])
def test_amazon_reviews_2023_are_read_from_ratings_and_metadata(tmp_path: Path, is_zipped: bool):
    folder = tmp_path / "pens"
    folder.mkdir()
    (folder / "Pens.csv").write_text(
        "user_id,parent_asin,rating,timestamp\n"
        f"1,10,5.0,{T}000\n1,20,3.0,{T}500\n2,30,1.0,{T}000\n1,30,4.0,{T}900\n"
    )
    meta = [
        {"parent_asin": "10", "title": "Pen &amp; ink", "description": ["One.", "Two."],
         "price": 9.5, "categories": ["Office", "Pens"], "images": [{"large": "x"}],
         "store": "Nib & Co"},
        {"parent_asin": "20", "title": "Nib", "description": [], "price": "from 3",
         "categories": []},
        {"parent_asin": "30", "title": "Ink", "description": ["Blue."], "price": None},
        {"parent_asin": "40", "title": None},
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in meta) + "{broken\n"
    if is_zipped:
        (folder / "meta_Pens.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "meta_Pens.jsonl").write_text(text)
    dataset = prepare(folder, tmp_path / "out", PrepareConfig(max_rejected_frac=0.5))
    assert rows_of(dataset) == EVENTS
    table = dataset.catalogue.table
    assert table["title"].to_list() == ["Pen & ink", "Nib", "Ink"]
    assert table["description"].to_list() == ["One. Two.", None, "Blue."]
    assert table["categories"].to_list() == [["Office", "Pens"], None, None]
    assert table["price"].to_list() == [9.5, None, None]
    assert dataset.statistics["rejected"]["items"] == {"empty title": 1, "not a JSON object": 1}
    # the three events of user 1 differ by milliseconds only: their order survives
    assert dataset.test.target.tolist() == [2]
    assert dataset.valid.target.tolist() == [1]


def test_recbole_atomic_files_are_read_by_their_typed_headers(tmp_path: Path):
    folder = tmp_path / "pens"
    folder.mkdir()
    (folder / "pens.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        f"1\t10\t5\t{T}\n1\t20\t3\t{T + 1}\n2\t30\t1\t{T}\n1\t30\t4\t{T + 2}\n"
    )
    (folder / "pens.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "10\tThe Pen\t1995\tDrama War\n20\tNib\t1996\t'Big Pens', 'Red'\n30\tInk\t\t\n"
    )
    dataset = prepare(folder, tmp_path / "out")
    assert rows_of(dataset) == EVENTS
    table = dataset.catalogue.table
    assert table["title"].to_list() == ["The Pen", "Nib", "Ink"]
    assert table["categories"].to_list() == [["Drama", "War"], ["Big Pens", "Red"], None]
    assert table["release_year"].to_list() == ["1995", "1996", None]


def test_recbole_sequences_become_a_log_and_a_given_split(tmp_path: Path):
    folder = tmp_path / "pens"
    folder.mkdir()
    header = "user_id:token\titem_id_list:token_seq\titem_id:token\n"
    (folder / "pens.train.inter").write_text(header + "1\t10\t20\n1\t10 20\t30\n2\t30\t10\n")
    (folder / "pens.valid.inter").write_text(header + "1\t10 20 30\t10\n2\t30 10\t20\n")
    (folder / "pens.test.inter").write_text(header + "1\t10 20 30 10\t20\n2\t30 10 20\t30\n")
    (folder / "pens.item").write_text("item_id:token\ttitle:token_seq\n10\tPen\n20\tNib\n30\tInk\n")
    dataset = prepare(folder, tmp_path / "out", PrepareConfig(split="given"))
    assert dataset.train.user_index.tolist() == [0, 0, 0, 1, 1]
    assert dataset.train.item_index.tolist() == [0, 1, 2, 2, 0]
    assert dataset.valid.target.tolist() == [0, 1]
    assert dataset.test.target.tolist() == [1, 2]
    assert dataset.test.histories().row(0).tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("in_folders", [False, True])
def test_minionerec_csvs_become_a_log_and_a_given_split(tmp_path: Path, in_folders: bool):
    folder = tmp_path / "office"
    folder.mkdir()
    columns = ["user_id", "history_item_title", "item_title", "history_item_id", "item_id"]
    columns += ["history_item_sid", "item_sid"]
    titles = {10: 'Pen, the "big" one', 20: "Nib's", 30: "Ink", 40: "Only in histories"}
    parts = {
        "train": [("A1", [40], 10), ("A1", [40, 10], 20), ("B2", [30], 10)],
        "valid": [("A1", [10, 20], 30)],
        "test": [("A1", [20, 30], 10), ("B2", [30, 10], 20)],
    }
    for part, rows in parts.items():
        table = pl.DataFrame(
            [
                (u, str([titles[i] for i in h]), titles[t], str(h), t, str(["<a_1>"]), "<a_1>")
                for u, h, t in rows
            ],
            schema=columns,
            orient="row",
        )
        path = folder / (f"{part}/Office_5.csv" if in_folders else f"Office_5.{part}.csv")
        path.parent.mkdir(exist_ok=True)
        table.write_csv(path)
    (folder / "Office.item.json").write_text(json.dumps({"10": {"description": "Writes."}}))
    dataset = prepare(folder, tmp_path / "out", PrepareConfig(split="given"))
    assert dataset.catalogue.item_ids == ["10", "20", "30", "40"]
    assert dataset.catalogue.titles == list(titles.values())
    assert dataset.catalogue.table["description"].to_list() == ["Writes.", None, None, None]
    assert dataset.user_ids == ["A1", "B2"]
    assert dataset.train.item_index.tolist() == [3, 0, 1, 2, 0]  # A1: 40 10 20; B2: 30 10
    assert dataset.test.histories().row(0).tolist() == [1, 2]
    assert dataset.test.target.tolist() == [0, 1]


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv", "jsonl", "jsonl.gz", "parquet"])
def test_the_two_tables_may_be_of_any_kind(tmp_path: Path, ending: str):
    log = pl.DataFrame(
        {"user_id": [1, 1, 2, 1], "item_id": [10, 20, 30, 30], "timestamp": [T, T + 1, T, T + 2]}
    )
    items = pl.DataFrame({"item_id": [10, 20, 30], "title": ["Pen", "Nib", "Ink"]})
    folder = tmp_path / "set"
    folder.mkdir()
    for name, table in (("interactions", log), ("items", items)):
        kind = ending.removesuffix(".gz")
        path = folder / f"{name}.{kind}"
        if kind == "parquet":
            table.write_parquet(path)
        elif kind == "jsonl":
            table.write_ndjson(path)
        else:
            table.write_csv(path, separator="\t" if kind == "tsv" else ",")
        if ending.endswith(".gz"):
            (folder / f"{name}.{ending}").write_bytes(gzip.compress(path.read_bytes()))
            path.unlink()
    dataset = prepare(folder, tmp_path / "out")
    assert rows_of(dataset) == EVENTS
    assert dataset.catalogue.titles == ["Pen", "Nib", "Ink"]


@pytest.mark.parametrize("last", ["\r", "\r\n", ""])
@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_lines_may_end_as_on_old_macs(tmp_path: Path, ending: str, last: str):
    log = [("user_id", "item_id", "timestamp")]
    log += [("1", "10", T), ("1", "20", T + 1), ("2", "30", T), ("1", "30", T + 2)]
    items = [("item_id", "title"), ("10", "Pen, big"), ("20", "Nib"), ("30", "Ink")]
    for name, (head, *rows) in (("interactions", log), ("items", items)):
        lines = [",".join(f'"{value}"' for value in row) for row in (head, *rows)]
        if ending.startswith("jsonl"):
            lines = [json.dumps(dict(zip(head, row))) for row in rows]
            lines += ["{oops"] if name == "interactions" else []
        content = ("\r".join(lines) + last).encode()
        content = gzip.compress(content) if ending.endswith(".gz") else content
        (tmp_path / f"{name}.{ending}").write_bytes(content)
    dataset = prepare(tmp_path, tmp_path / "out", PrepareConfig(max_rejected_frac=0.2))
    assert rows_of(dataset) == EVENTS
    assert dataset.catalogue.titles == ["Pen, big", "Nib", "Ink"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_may_be_named_in_capitals_and_what_is_not_read_is_named(
    tmp_path: Path, ending: str
):
    log = pl.DataFrame(
        {"User_ID": [1, 1, 2, 1], "item_id": [10, 30, 30, 20], " Rating ": [5, 4, 1, 3],
         "Timestamp": [T, T + 2, T, T + 1], "shop": ["a"] * 4, "PART": ["x"] * 4,
         "Part": ["y"] * 4}
    )  # fmt: skip
    items = pl.DataFrame(
        {"Item_Id": [10, 20, 30], "title": ["Pen", "Nib", "Ink"], "Title": ["P", "N", "I"]}
    )
    for name, table in (("interactions", log), ("items", items)):
        writer = {"csv": table.write_csv, "jsonl": table.write_ndjson}
        writer.get(ending, table.write_parquet)(tmp_path / f"{name}.{ending}")
    dataset = prepare(tmp_path, tmp_path / "out")
    assert rows_of(dataset) == EVENTS
    assert dataset.test.target.tolist() == [2]
    assert dataset.train.rating is not None
    assert dataset.train.rating.tolist() == [5, 1]
    assert dataset.catalogue.titles == ["Pen", "Nib", "Ink"]
    assert dataset.catalogue.table["Title"].to_list() == ["P", "N", "I"]
    rating = "Rating" if ending == "csv" else "' Rating '"  # a header of text is trimmed
    assert dataset.statistics["notes"][:3] == [
        f"interactions.{ending}: User_ID was read as user_id, {rating} as rating, "
        "Timestamp as timestamp",
        f"interactions.{ending}: not read: shop, PART, Part; understood are user_id, item_id, "
        "rating, timestamp, position, part",
        f"items.{ending}: Item_Id was read as item_id",
    ]


def test_one_broken_line_of_json_is_set_aside_alone(tmp_path: Path):
    (tmp_path / "items.csv").write_text("item_id,title\n10,Pen\n20,Nib\n")
    lines = ['{"user_id": 1, "item_id": 10}', "{oops", "", '{"user_id": 1, "item_id": 20}', "[1]"]
    lines += ['{"item_id": 10, "user_id": "1", "more": {"x": []}}']
    (tmp_path / "interactions.jsonl").write_text("\n".join(lines) + "\n")
    dataset = prepare(tmp_path, tmp_path / "out", PrepareConfig(max_rejected_frac=0.5))
    assert rows_of(dataset) == [("1", "10"), ("1", "10"), ("1", "20")]
    rejected = pl.read_parquet(tmp_path / "out" / "rejected.parquet")
    assert rejected["row"].to_list() == [2, 4]
    assert rejected["raw"][0] == '{"line":"{oops"}'


@pytest.mark.parametrize("other", ["", '{"user_id": "x", "item_id": 20}', "{oops"])
def test_ids_are_the_same_whatever_other_lines_hold(tmp_path: Path, other: str):
    written = ("1", "1.0", '"1"', " 1e0 ", "2.5", "12345678901234567", '"007"')
    items = [f'{{"item_id": {n}, "title": "T{n}"}}' for n in (10.0, 20, 12345678901234567)]
    items += ['{"item_id": "x", "title": "X"}'] if other else []
    (tmp_path / "items.jsonl").write_text("\n".join(items))
    log = [f'{{"user_id": {n}, "item_id": {i}}}' for n in written for i in ("10", "20.0")]
    (tmp_path / "interactions.jsonl").write_text("\n".join([*log, other]))
    dataset = prepare(tmp_path, tmp_path / "out", PrepareConfig(max_rejected_frac=0.5))
    assert set(dataset.user_ids) - {"x"} == {"1", "2.5", "12345678901234567", "007"}
    assert dataset.catalogue.item_ids[:3] == ["10", "20", "12345678901234567"]
    assert len(dataset.train) + 2 == len(log) + (other[:2] == '{"')


def test_ids_of_a_parquet_table_are_the_same_whatever_other_rows_hold(tmp_path: Path):
    users, items = [7.0, 7.0, 7.0, 8.5], [1.0, 2.0, 1.0, 2.5]
    log = pl.DataFrame({"user_id": users, "item_id": items})
    log.write_parquet(tmp_path / "interactions.parquet")
    config = PrepareConfig(titles_from_ids=True)
    dataset = prepare(tmp_path, tmp_path / "out", config)
    assert dataset.user_ids == ["7", "8.5"]
    assert dataset.catalogue.item_ids == ["1", "2", "2.5"]


def test_ids_in_a_wrong_encoding_are_set_aside(tmp_path: Path):
    (tmp_path / "items.csv").write_text("item_id,title\n10,Pen\n20,Nib\n")
    (tmp_path / "interactions.csv").write_bytes(
        b"user_id,item_id\nJos\xe9,10\nann,10\nann,20\nann,10\n"
    )
    dataset = prepare(tmp_path, tmp_path / "out", PrepareConfig(max_rejected_frac=0.5))
    assert dataset.statistics["rejected"]["interactions"] == {"user_id is not UTF-8": 1}


def test_an_unknown_folder_lists_the_layouts_that_are_known(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(DataError, match=r"found notes\.txt\. Known:(.|\n)*MovieLens(.|\n)*RecBole"):
        prepare(tmp_path, tmp_path / "out")

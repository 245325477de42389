"""From raw files to a prepared folder: contents, quarantine, filters, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest

from reasonrec.data.dataset import FILES, UNASKED, Dataset
from reasonrec.data.filters import items_with
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare, prepare_planted
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import CheckpointError, ConfigError, DataError, ReasonrecError
from reasonrec.manifest import read_manifest, write_manifest
from reasonrec.models.backbone import catalogue_titles, item_texts
from reasonrec.serving.recommender import known_histories

WriteShop = Callable[..., Path]
T = 1_600_000_000
ROWS = [
    ("ann", "i0", 5, T), ("ann", "i1", 4, T + 10), ("ann", "i2", 3, T + 20),
    ("ann", "i3", 5, T + 30),
    ("bob", "i1", 5, T), ("bob", "i2", 2, T + 5), ("bob", "i0", 4, T + 15),
    ("cyd", "i3", 1, T + 7),
]  # fmt: skip
ALL = PrepareConfig(max_rejected_frac=1.0)


def test_a_small_shop_is_prepared_as_worked_out_by_hand(write_shop: WriteShop, tmp_path: Path):
    dataset = prepare(write_shop(ROWS), tmp_path / "out")
    assert dataset.name == "shop"
    assert dataset.user_ids == ["ann", "bob", "cyd"]
    assert dataset.num_items == 9  # five of them without events
    assert dataset.train.user_index.tolist() == [0, 0, 1, 2]
    assert dataset.train.item_index.tolist() == [0, 1, 1, 3]
    assert dataset.train.timestamp is not None
    assert dataset.train.timestamp.tolist() == [T, T + 10, T, T + 7]
    assert dataset.valid.target.tolist() == [2, 2]
    assert dataset.test.target.tolist() == [3, 0]
    histories = dataset.test.histories()
    assert [histories.row(b).tolist() for b in range(2)] == [[0, 1, 2], [1, 2]]
    assert histories.asked_at is not None
    assert histories.asked_at.tolist() == [T + 30, T + 15]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*FILES, "manifest.json"}
    for name, dtype in {
        "user_index": pl.Int32,
        "item_index": pl.Int32,
        "rating": pl.Float32,
    }.items():
        assert pl.read_parquet(tmp_path / "out" / "train.parquet").schema[name] == dtype


def test_the_order_of_the_rows_changes_nothing_where_times_differ(
    write_shop: WriteShop, tmp_path: Path
):
    first = prepare(write_shop(ROWS), tmp_path / "a")
    second = prepare(write_shop(ROWS[::-1]), tmp_path / "b")
    assert first.user_ids == second.user_ids
    for name in ("train", "valid", "test", "users"):
        one, other = (pl.read_parquet(tmp_path / x / f"{name}.parquet") for x in "ab")
        assert one.equals(other)


def test_every_kind_of_bad_row_is_set_aside_with_its_reason(write_shop: WriteShop, tmp_path: Path):
    future = int(time.time()) + 10 * 86_400
    bad = [
        ("", "i0", 5, T), ("ann", "", 5, T), ("ann", "nowhere", 5, T), ("ann", "i0", "five", T),
        ("ann", "i0", 9, T), ("ann", "i0", 5, ""), ("ann", "i0", 5, "soon"), ("ann", "i0", 5, -4),
        ("ann", "i0", 5, future), ("ann", "i0", 5, T), ("ann", "i4", 5, T, "more"),
    ]  # fmt: skip
    config = ALL.model_copy(update={"rating_scale": (1.0, 5.0)})
    dataset = prepare(write_shop(ROWS + bad), tmp_path / "out", config)
    rejected = pl.read_parquet(tmp_path / "out" / "rejected.parquet").sort("row")
    assert rejected["row"].to_list() == list(range(9, 20))
    assert rejected["reason"].to_list() == [
        "missing user_id", "missing item_id", "unknown item", "rating is no number",
        "rating outside 1 to 5", "missing timestamp", "timestamp is no time",
        "timestamp before 1970", "timestamp in the future", "duplicate event",
        "more fields than the header names",
    ]  # fmt: skip
    assert set(rejected["file"]) == {"interactions.csv"}
    assert json.loads(rejected["raw"][2])["item_id"] == "nowhere"
    assert dataset.statistics["rejected"]["interactions"]["unknown item"] == 1
    assert dataset.statistics["log"]["events"] == len(ROWS)


def test_a_row_that_is_both_ways_bad_is_counted_once(write_shop: WriteShop, tmp_path: Path):
    dataset = prepare(write_shop([*ROWS, ("", "nowhere", "x", "y")]), tmp_path / "out", ALL)
    assert dataset.statistics["rejected"]["interactions"] == {"missing user_id": 1}


def test_too_many_bad_rows_stop_with_the_reasons_and_the_first_row(
    write_shop: WriteShop, tmp_path: Path
):
    folder = write_shop([*ROWS, ("ann", "nowhere", 5, T)])
    with pytest.raises(
        DataError,
        match=r"at most 5\.0% .* 1 of 9 are: unknown item 1\. First: interactions\.csv row 9",
    ):
        prepare(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_duplicates_are_kept_where_asked_and_where_positions_tell_them_apart(
    write_shop: WriteShop, tmp_path: Path
):
    twice = [*ROWS, ROWS[0]]
    kept = prepare(
        write_shop(twice), tmp_path / "a", ALL.model_copy(update={"keep_duplicates": True})
    )
    assert kept.statistics["log"]["events"] == 9
    placed = [(*row, n) for n, row in enumerate(twice)]
    columns = ("user_id", "item_id", "rating", "timestamp", "position")
    apart = prepare(write_shop(placed, columns=columns), tmp_path / "b")
    assert apart.statistics["log"]["events"] == 9


def test_mixed_units_of_time_are_converted_and_said_aloud(write_shop: WriteShop, tmp_path: Path):
    rows = [
        ("ann", f"i{n}", 5, t) for n, t in enumerate((T, (T + 1) * 1000, "2020-09-13 12:26:42"))
    ]
    dataset = prepare(write_shop(rows), tmp_path / "out")  # 2020-09-13 12:26:40 is T
    asked_at = dataset.test.histories().asked_at
    assert asked_at is not None
    assert asked_at.tolist() == [T + 2]
    assert dataset.statistics["notes"][0] == (
        "mixed units of time in one file were converted to UTC seconds: "
        "1 dates, 1 milliseconds, 1 seconds"
    )


def test_ties_and_repeats_are_reported(write_shop: WriteShop, tmp_path: Path):
    rows = [
        ("ann", "i0", 5, T),
        ("ann", "i1", 5, T),
        ("ann", "i0", 5, T + 9),
        ("ann", "i2", 5, T + 9),
    ]
    statistics = prepare(write_shop(rows), tmp_path / "out").statistics
    # two of four events share the time before them; one of four repeats i0
    assert statistics["log"]["frac_tied_in_time"] == 0.5
    assert statistics["log"]["frac_repeats"] == 0.25
    assert "ties keep the order of the file" in statistics["notes"][0]
    assert statistics["valid"]["target_in_history"] == 1


def test_a_log_without_times_keeps_the_order_of_the_file(write_shop: WriteShop, tmp_path: Path):
    rows = [("ann", "i3"), ("bob", "i1"), ("ann", "i1"), ("ann", "i2")]
    folder = write_shop(rows, columns=("user_id", "item_id"))
    dataset = prepare(folder, tmp_path / "out")
    assert dataset.train.timestamp is None
    assert dataset.train.rating is None
    assert dataset.train.item_index.tolist() == [3, 1]
    assert dataset.test.target.tolist() == [2]
    assert "no times" in dataset.statistics["notes"][0]
    with pytest.raises(DataError, match="global-time needs timestamps"):
        prepare(folder, tmp_path / "other", PrepareConfig(split="global-time"))
    with pytest.raises(DataError, match="min_rating needs ratings; this log has none"):
        prepare(folder, tmp_path / "other", PrepareConfig(min_rating=4))


def test_items_are_cleaned_and_bad_ones_set_aside_with_their_events(
    write_shop: WriteShop, tmp_path: Path
):
    titles = {"i0": "<b>Pen</b> &amp; ink", "i1": "Bell\x07", "i2": "<p></p>", "i3": "Fine"}
    dataset = prepare(write_shop(ROWS, titles), tmp_path / "out", ALL)
    assert dataset.catalogue.titles == ["Pen & ink", "Bell", "Fine"]
    assert dataset.statistics["catalogue"]["cleaned"] == {"title_markup": 2, "title_control": 1}
    assert dataset.statistics["rejected"]["items"] == {"empty title": 1}
    assert dataset.statistics["rejected"]["interactions"] == {"unknown item": 2}


def test_a_duplicate_item_keeps_its_first_row_and_further_columns_are_kept(tmp_path: Path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "items.csv").write_text(
        'item_id,title,brand,categories\na,First,X,"[""Red"", ""Big""]"\na,Second,Y,\n'
        "b,Other,Z,p|q\n"
    )
    (folder / "interactions.csv").write_text("user_id,item_id\nu,a\nu,b\nu,a\n")
    dataset = prepare(folder, tmp_path / "out", ALL)
    table = dataset.catalogue.table
    assert table["title"].to_list() == ["First", "Other"]
    assert table["brand"].to_list() == ["X", "Z"]
    assert table["categories"].to_list() == [["Red", "Big"], ["p", "q"]]
    assert table["description"].to_list() == [None, None]
    assert dataset.statistics["rejected"]["items"] == {"duplicate item_id": 1}


def test_each_filter_is_counted_before_and_after(write_shop: WriteShop, tmp_path: Path):
    rows = [(f"u{u}", f"i{i}", 1 + (u + i) % 5, T + 86_400 * i) for u in range(4) for i in range(5)]
    rows += [("rare", "i8", 5, T + 86_400)]
    config = PrepareConfig(since="2020-09-14", min_rating=2, k_core=2)  # T is on 2020-09-13
    dataset = prepare(write_shop(rows), tmp_path / "out", config)
    names = [step["name"] for step in dataset.statistics["filters"]]
    assert names == ["since 2020-09-14", "rating at least 2", "2-core"]
    since, rated, core = dataset.statistics["filters"]
    assert (since["rows_before"], since["rows_after"]) == (21, 17)  # four on the first day
    # u+i = 5 or 0 mod 5 has rating 1: (1,4) (2,3) (3,2) are left of those after i0
    assert rated["rows_after"] == 14
    assert (core["rows_after"], core["users_after"], core["items_after"]) == (13, 4, 4)
    assert dataset.catalogue.item_ids == ["i1", "i2", "i3", "i4"]  # a core is its own catalogue
    assert dataset.train.item_index.max() < 4


def test_the_window_starts_earlier_by_whole_months_until_enough_items_are_kept(
    write_shop: WriteShop, tmp_path: Path
):
    # T is on 2020-09-13; item n is first taken n times 31 days before
    rows = [(f"u{u}", f"i{n}", 5, T - 31 * 86_400 * n + u) for n in range(6) for u in range(3)]
    rows += [(f"u{u}", "i0", 5, T + 100 * k + u) for u in range(3) for k in range(1, 4)]
    shop = write_shop(rows)
    # i0 on 09-13, i1 on 08-13, i2 on 07-13, i3 on 06-12, i4 on 05-12, i5 on 04-11
    for least, since in (
        (1, "2020-08-31"),
        (2, "2020-07-31"),
        (4, "2020-05-31"),
        (5, "2020-04-30"),
    ):
        config = PrepareConfig(since="2020-08-31", least_items=least)
        dataset = prepare(shop, tmp_path / str(least), config)
        (step,) = dataset.statistics["filters"]
        assert step["name"] == f"since {since}"
        assert step["items_after"] >= least
    # no event at all from October on
    dataset = prepare(shop, tmp_path / "later", PrepareConfig(since="2020-10-14", least_items=1))
    assert dataset.statistics["filters"][0]["name"] == "since 2020-08-14"
    with pytest.raises(DataError, match=r"needs 7 items .* from 2020-04-11 on, has 6"):
        prepare(shop, tmp_path / "none", PrepareConfig(since="2020-08-31", least_items=7))


def test_texts_are_the_same_whatever_python_hashes_with(write_shop: WriteShop, tmp_path: Path):
    # the public code cuts descriptions out of an unordered set of sentences
    shop = write_shop(ROWS)
    items = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(4)],
            "title": [f"Item {n}" for n in range(4)],
            "description": [" ".join(f"word{n}{m}." for m in range(200)) for n in range(4)],
            "categories": [f"c{n}|b{n}|a{n}" for n in range(4)],
        }
    )
    items.write_csv(shop / "items.csv")
    code = (
        "import sys; from pathlib import Path; from reasonrec.data.prepare import prepare;"
        "from reasonrec.models.backbone import item_texts;"
        "catalogue = prepare(sys.argv[1], Path(sys.argv[2])).catalogue;"
        "print(item_texts(catalogue, catalogue.table['title'].to_list()))"
    )
    said = []
    for seed in ("0", "1"):
        asked = [sys.executable, "-c", code, str(shop), str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        said.append(
            subprocess.run(
                asked, capture_output=True, text=True, check=True, env=environment
            ).stdout
        )
    assert said[0] == said[1] and "word30" in said[0] and "c3" in said[0]
    for name in FILES:
        one, other = ((tmp_path / seed / name).read_bytes() for seed in "01")
        if name != "statistics.json":
            assert one == other, name


def test_prices_ratings_and_counts_of_items_change_no_text_and_leave_no_item_out(
    write_shop: WriteShop, tmp_path: Path
):
    # the public code drops items without a price, and tells mean rating and number of buyers
    told = [([9.5, None, None, 3.0], [4.6, 1.2, 3.0, None], [17, 0, 99, 5]),
            ([1.0, 2.0, 3.0, 4.0], [2.5, 2.5, 2.5, 2.5], [1, 1, 1, 1])]  # fmt: skip
    texts = []
    for number, (price, rating, count) in enumerate(told):
        shop = write_shop(ROWS)
        items = {
            "item_id": [f"i{n}" for n in range(4)], "title": [f"Item {n}" for n in range(4)],
            "description": ["Blue."] * 4, "categories": ["pens"] * 4, "price": price,
            "average_rating": rating, "rating_number": count, "count": count, "rating": rating,
        }  # fmt: skip
        pl.DataFrame(items).write_csv(shop / "items.csv")
        catalogue = prepare(shop, tmp_path / f"{number}").catalogue
        assert catalogue.item_ids == items["item_id"]
        # they are kept, so that it is the texts that leave them out
        assert catalogue.table["rating_number"].cast(pl.Int64).to_list() == count
        texts.append(item_texts(catalogue, catalogue_titles(catalogue)))
    assert texts[0] == texts[1] == [f"Item {n}. pens. Blue." for n in range(4)]


def with_prices(shop: Path, prices: list[str | None]) -> Path:
    """Give the first items of a shop a column ``price``."""
    items = pl.read_csv(shop / "items.csv").head(len(prices))
    items.with_columns(price=pl.Series(prices)).write_csv(shop / "items.csv")
    return shop


def test_items_without_a_required_value_are_left_out_with_their_events_and_counted(
    write_shop: WriteShop, tmp_path: Path
):
    # nobody took i4 and i5; ann took i0 i1 i2 i3, bob i1 i2 i0, cyd i3
    shop = with_prices(write_shop(ROWS), ["9.5", "free", " ", "3", None, "0"])
    config = PrepareConfig(require_columns=("price", "title"))
    dataset = prepare(shop, tmp_path / "out", config)
    assert dataset.statistics["filters"] == [{
        "name": "items with price and title",
        "rows_before": 8, "users_before": 3, "items_before": 4,
        "rows_after": 6, "users_after": 3, "items_after": 3,
    }]  # fmt: skip
    assert dataset.catalogue.item_ids == ["i0", "i1", "i3", "i5"]
    assert dataset.statistics["catalogue"]["never_seen"] == 1
    # ann is left with i0 i1 i3, of which the last two are asked for, bob with i1 i0
    assert dataset.train.item_index.tolist() == [0, 1, 0, 2]
    assert (dataset.valid.target.tolist(), dataset.test.target.tolist()) == ([1], [2])
    seen = config.model_copy(update={"keep_unseen_items": False})
    dataset = prepare(shop, tmp_path / "seen", seen)
    assert dataset.catalogue.item_ids == ["i0", "i1", "i3"]
    assert dataset.train.item_index.tolist() == [0, 1, 0, 2]
    every = prepare(shop, tmp_path / "every")
    assert (every.num_items, every.statistics["filters"]) == (6, [])


@pytest.mark.parametrize(
    ("values", "is_wanted"),
    [
        (["x", "", " \t", None], [True, False, False, False]),
        ([0.0, 1.5, float("nan"), None], [True, True, False, False]),
        ([0, 1, None, 2], [True, True, False, True]),
        ([["x"], [], None, ["y", "z"]], [True, False, False, True]),
    ],
)
def test_a_blank_text_an_empty_list_and_no_number_are_no_value(values: list, is_wanted: list[bool]):
    items = pl.DataFrame({"item_id": list("abcd"), "price": values})
    assert items_with(items, ["item_id", "price"]).is_wanted.tolist() == is_wanted


def test_a_window_and_a_core_count_what_has_the_required_values(
    write_shop: WriteShop, tmp_path: Path
):
    # T is on 2020-09-13; item n is first taken n times 31 days before, and i1 has no price
    rows = [(f"u{u}", f"i{n}", 5, T - 31 * 86_400 * n + u) for n in range(4) for u in range(3)]
    rows += [(f"u{u}", "i0", 5, T + 100 * k + u) for u in range(3) for k in range(1, 4)]
    shop = with_prices(write_shop(rows), ["1", None, "1", "1"])
    window = {"since": "2020-08-31", "least_items": 2}
    for required, name in ((None, "since 2020-07-31"), (("price",), "since 2020-06-30")):
        config = PrepareConfig.model_validate(window | {"require_columns": required})
        dataset = prepare(shop, tmp_path / name, config)
        assert dataset.statistics["filters"][-1]["name"] == name
    # with i1 each person has seven events, and without it six
    config = PrepareConfig(require_columns=("price",), k_core=7)
    with pytest.raises(DataError, match="none of 18 passed 7-core"):
        prepare(shop, tmp_path / "core", config)


def test_a_required_column_that_the_items_lack_is_refused_with_those_they_have(
    write_shop: WriteShop, tmp_path: Path
):
    shop = with_prices(write_shop(ROWS), ["1"] * 9)
    message = r"items have: item_id, title, description, categories, price; got 'prize'"
    with pytest.raises(DataError, match=message):
        prepare(shop, tmp_path / "out", PrepareConfig(require_columns=("price", "prize")))


def test_a_folder_of_before_columns_could_be_required_is_still_the_same_run(
    write_shop: WriteShop, tmp_path: Path
):
    folder, out = write_shop(ROWS), tmp_path / "out"
    first = prepare(folder, out)
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    del manifest["config"]["require_columns"]
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert prepare(folder, out).fingerprint == first.fingerprint


def test_a_core_is_the_same_as_dropping_rows_until_nothing_changes(
    write_shop: WriteShop, tmp_path: Path
):
    rows = [(f"u{(n * 7) % 5}", f"i{(n * n) % 8}", 5, T + n) for n in range(40)]
    slow = rows
    while True:
        users, items = [r[0] for r in slow], [r[1] for r in slow]
        kept = [r for r in slow if users.count(r[0]) >= 6 and items.count(r[1]) >= 6]
        if len(kept) == len(slow):
            break
        slow = kept
    dataset = prepare(write_shop(rows), tmp_path / "out", PrepareConfig(k_core=6))
    assert dataset.statistics["log"]["events"] == len(slow)
    assert dataset.user_ids == sorted({row[0] for row in slow})


def test_sampled_users_depend_on_the_seed_alone(write_shop: WriteShop, tmp_path: Path):
    rows = [(f"u{u}", f"i{i}", 5, T + i) for u in range(9) for i in range(4)]
    folder, config = write_shop(rows), PrepareConfig(sample_users=3)
    samples = {
        out: prepare(folder, tmp_path / out, config, seed).user_ids
        for out, seed in (("a", 1), ("b", 1), ("c", 2), ("d", 3))
    }
    assert samples["a"] == samples["b"]
    assert len(samples["a"]) == 3
    assert len({tuple(users) for users in samples.values()}) > 1


def test_queries_with_a_short_history_are_left_out_and_counted(
    write_shop: WriteShop, tmp_path: Path
):
    dataset = prepare(write_shop(ROWS), tmp_path / "out", PrepareConfig(min_history=2))
    assert (len(dataset.valid), len(dataset.test)) == (1, 2)  # bob's validation looks back on one
    assert dataset.statistics["valid"]["left_out_short_history"] == 1


@pytest.mark.parametrize(
    ("split", "min_history"),
    [("leave-one-out", 2), ("leave-one-out", 3), ("leave-one-out", 9),
     ("global-time", 1), ("global-time", 2), ("global-time", 9)],
)  # fmt: skip
def test_whom_min_history_does_not_ask_serving_knows_as_before(
    write_shop: WriteShop, tmp_path: Path, split: Literal["leave-one-out", "global-time"],
    min_history: int,
):  # fmt: skip
    rows = [*ROWS, ("dee", "i2", 5, T + 26), ("dee", "i1", 5, T + 28)]
    folder, config = write_shop(rows), PrepareConfig(split=split, valid_frac=0.2, test_frac=0.3)
    whole = prepare(folder, tmp_path / "whole", config)
    few = prepare(folder, tmp_path / "few", config.model_copy(update={"min_history": min_history}))
    assert whole.unasked == {}
    assert len(few.valid) + len(few.test) < len(whole.valid) + len(whole.test)
    users = range(whole.num_users)
    known, as_before = known_histories(few, users), known_histories(whole, users)
    for name in ("item_index", "offsets", "rating", "timestamp", "asked_at"):
        np.testing.assert_array_equal(getattr(known, name), getattr(as_before, name))
    # what may be learned from, and looked back on, does not change by a byte
    names = [name for name in FILES if name not in ("valid.parquet", "test.parquet")]
    outputs = [read_manifest(dataset.folder)["outputs"] for dataset in (whole, few)]
    names.remove("statistics.json")
    assert [outputs[0][name] for name in names] == [outputs[1][name] for name in names]
    assert set(outputs[0]) == {*FILES}
    assert set(outputs[1]) == {*FILES, UNASKED}


def test_a_folder_of_before_unasked_queries_were_kept_still_loads(
    write_shop: WriteShop, tmp_path: Path
):
    dataset = prepare(write_shop(ROWS), tmp_path / "out", PrepareConfig(min_history=3))
    assert {part: len(queries) for part, queries in dataset.unasked.items()} == {
        "valid": 2, "test": 1,
    }  # fmt: skip
    out = dataset.folder
    manifest = read_manifest(out)
    write_manifest(out, stage="prepare", inputs=manifest["inputs"], config=manifest["config"],
                   outputs=[*FILES], seconds=1.0)  # fmt: skip
    (out / UNASKED).unlink()
    assert Dataset.load(out).unasked == {}


def test_a_finished_folder_is_only_loaded_and_never_overwritten(
    write_shop: WriteShop, tmp_path: Path
):
    folder, out = write_shop(ROWS), tmp_path / "out"
    first = prepare(folder, out)
    written = (out / "manifest.json").read_text()
    assert prepare(folder, out).fingerprint == first.fingerprint
    assert (out / "manifest.json").read_text() == written
    with pytest.raises(CheckpointError, match="another config: k_core was None, now 2"):
        prepare(folder, out, PrepareConfig(k_core=2))
    write_shop(ROWS[:-1])
    with pytest.raises(DataError, match=r"interactions\.csv changed since .* was prepared from it"):
        prepare(folder, out)


def test_the_same_files_are_the_same_data_however_their_place_is_spelled(
    write_shop: WriteShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_shop(ROWS)
    monkeypatch.chdir(tmp_path)
    spellings = (str(folder), "shop", "shop/", f"{tmp_path}/../{tmp_path.name}/shop")
    sets = [prepare(source, tmp_path / f"out-{n}") for n, source in enumerate(spellings)]
    assert len({dataset.fingerprint for dataset in sets}) == 1
    assert [read_manifest(dataset.folder)["source"] for dataset in sets] == [*spellings]


def test_an_interrupted_folder_is_continued_and_ends_the_same(
    write_shop: WriteShop, tmp_path: Path
):
    folder, out = write_shop(ROWS), tmp_path / "out"
    fingerprint = prepare(folder, out).fingerprint
    (out / "manifest.json").unlink()
    (out / "test.parquet").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="did not finish"):
        Dataset.load(out)
    assert prepare(folder, out).fingerprint == fingerprint


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", "is empty"),
        ("user_id,item_id\n", "must hold interactions; it has none"),
        ("user,item\nu,i0\n", "user_id, item_id missing, found: user, item"),
        ("user_id,thing\nu,i0\n", "item_id missing, found: user_id"),
        ("user_id,item_id,item_id\nu,i0,i0\n", "must have different names"),
        ("user_id,item_id\nu,i0\n", "at least 3 events; there is none"),
        ('user_id,item_id\nu,"i0\nu,i1\n', "cannot be read"),
    ],
)
def test_a_broken_log_is_refused_in_words(
    write_shop: WriteShop, tmp_path: Path, log: str, message: str
):
    folder = write_shop(ROWS)
    (folder / "interactions.csv").write_text(log)
    with pytest.raises(DataError, match=message):
        prepare(folder, tmp_path / "out")


def test_a_single_user_and_items_never_taken_are_enough(write_shop: WriteShop, tmp_path: Path):
    dataset = prepare(write_shop(ROWS[:4]), tmp_path / "out")
    assert dataset.num_users == 1
    assert dataset.statistics["catalogue"]["never_seen"] == 5


def test_a_truncated_parquet_log_is_refused_in_words(write_shop: WriteShop, tmp_path: Path):
    folder = write_shop(ROWS)
    pl.read_csv(folder / "interactions.csv").write_parquet(folder / "interactions.parquet")
    (folder / "interactions.csv").unlink()
    whole = (folder / "interactions.parquet").read_bytes()
    (folder / "interactions.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"interactions\.parquet cannot be read.*complete"):
        prepare(folder, tmp_path / "out")


def test_parquet_columns_of_a_wrong_type_are_refused_in_words(
    write_shop: WriteShop, tmp_path: Path
):
    folder = write_shop(ROWS)
    wrong = pl.DataFrame({"user_id": [["u"]], "item_id": ["i0"]})
    wrong.write_parquet(folder / "interactions.parquet")
    (folder / "interactions.csv").unlink()
    with pytest.raises(DataError, match="user_id must be text or whole numbers"):
        prepare(folder, tmp_path / "out")


def test_ids_that_became_floats_are_whole_numbers_again(write_shop: WriteShop, tmp_path: Path):
    folder = write_shop(ROWS, {"1": "One", "2": "Two", "3": "Three"})
    log = pl.DataFrame({"user_id": [7.0, 7.0, 7.0], "item_id": [1, 2, 3]})
    log.write_parquet(folder / "interactions.parquet")
    (folder / "interactions.csv").unlink()
    assert prepare(folder, tmp_path / "out").user_ids == ["7"]


def test_an_output_folder_that_is_or_holds_the_source_is_refused(
    write_shop: WriteShop, tmp_path: Path
):
    folder = write_shop(ROWS)
    cases = [
        (folder, folder),
        (folder, tmp_path),
        (folder / "interactions.csv", folder / ".." / "shop"),
        (tmp_path, folder),  # read as what lies in its only folder
    ]
    for source, out in cases:
        with pytest.raises(DataError, match=r"nothing but the prepared data; .* is or holds"):
            prepare(source, out)
    items = tmp_path / "wares" / "items.csv"
    items.parent.mkdir()
    (folder / "items.csv").rename(items)
    with pytest.raises(DataError, match=r"holds its source .*items\.csv"):
        prepare(folder / "interactions.csv", items.parent, PrepareConfig(items=items))
    assert [path.name for path in (*folder.iterdir(), *items.parent.iterdir())] == [
        "interactions.csv",
        "items.csv",
    ]


@pytest.mark.parametrize("stem", ["interactions", "items"])
def test_two_files_for_one_table_are_refused(write_shop: WriteShop, tmp_path: Path, stem: str):
    folder = write_shop(ROWS)
    pl.read_csv(folder / f"{stem}.csv").write_parquet(folder / f"{stem}.parquet")
    both = rf"one file for the table {stem}; found {stem}\.parquet, {stem}\.csv"
    with pytest.raises(DataError, match=both):
        prepare(folder, tmp_path / "out")
    if stem == "items":
        with pytest.raises(DataError, match=both):
            prepare(folder / "interactions.csv", tmp_path / "out")
    named = PrepareConfig(items=folder / "items.csv")  # two files that are named are clear
    assert prepare(folder / "interactions.csv", tmp_path / "out", named).num_items == 9


def test_an_unwritable_folder_is_refused_in_words(write_shop: WriteShop, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ReasonrecError, match="output folder must be writable"):
        prepare(write_shop(ROWS), tmp_path / "file" / "out")


def test_a_log_without_item_table_says_what_to_do_and_can_go_by_ids(tmp_path: Path):
    (tmp_path / "log.csv").write_text("user_id,item_id\nu,b\nu,a\nu,b\n")
    with pytest.raises(
        DataError, match="--items, or call items by their ids with --titles-from-ids"
    ):
        prepare(tmp_path / "log.csv", tmp_path / "out")
    dataset = prepare(tmp_path / "log.csv", tmp_path / "out", PrepareConfig(titles_from_ids=True))
    assert dataset.catalogue.titles == ["b", "a"]


def test_two_files_of_one_name_are_both_known_to_the_manifest(
    write_shop: WriteShop, tmp_path: Path
):
    source = write_shop(ROWS)
    for stem in ("interactions", "items"):
        (tmp_path / stem).mkdir()
        shutil.copy(next(source.glob(f"{stem}.*")), tmp_path / stem / "export.csv")
    log, items = (tmp_path / stem / "export.csv" for stem in ("interactions", "items"))
    out = tmp_path / "out"
    config = PrepareConfig(items=items)
    prepare(log, out, config)
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    log.write_text("".join(lines[:-1]), encoding="utf-8")
    with pytest.raises(DataError, match=r"export\.csv changed since"):
        prepare(log, out, config)


def test_two_paths_are_as_good_as_a_folder(write_shop: WriteShop, tmp_path: Path):
    folder = write_shop(ROWS)
    (folder / "items.csv").rename(tmp_path / "wares.csv")
    config = PrepareConfig(items=tmp_path / "wares.csv")
    assert prepare(folder / "interactions.csv", tmp_path / "out", config).name == "interactions"
    with pytest.raises(DataError, match="goes with an interactions file"):
        prepare(folder, tmp_path / "other", config)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"valid_frac": 0.5, "test_frac": 0.5}, "leave events to train on"),
        ({"since": "2020-02-01", "until": "2020-01-01"}, "since must not be after until"),
        ({"split": "given", "k_core": 5}, "k_core would change it"),
        ({"split": "given", "require_columns": ["price"]}, "require_columns would change it"),
        ({"least_items": 7}, "least_items moves since back"),
        ({"rating_scale": (5, 1)}, "rating_scale must be low, high"),
        ({"kcore": 5}, "there is no such key; known here: .*k_core"),
    ],
)
def test_a_senseless_configuration_is_refused_in_words(tmp_path: Path, keys: dict, message: str):
    path = tmp_path / "prepare.toml"
    path.write_text("\n".join(f"{k} = {json.dumps(v)}" for k, v in keys.items()))
    with pytest.raises(ConfigError, match=message):
        PrepareConfig.load(path)


def test_the_planted_world_is_written_once_and_prepared_from_its_folder(tmp_path: Path):
    world = PlantedConfig(size="tiny")
    dataset = prepare_planted(tmp_path / "out", world)
    assert (dataset.name, dataset.split, dataset.num_users) == ("planted", "leave-one-out", 120)
    assert (tmp_path / "out" / "world" / "interactions.parquet").is_file()
    assert dataset.statistics["rejected"]["interactions"] == {}
    again = prepare_planted(tmp_path / "out", world)
    assert again.fingerprint == dataset.fingerprint
    with pytest.raises(CheckpointError, match="another config: planted"):
        prepare_planted(tmp_path / "out", PlantedConfig(size="tiny", num_users=121))

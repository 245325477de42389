"""The written tables: determinism, the recorded reasons against the mechanism, configuration."""

import shutil
import time
from collections import Counter

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from reasonrec.data.planted import readers as readers_module
from reasonrec.data.planted.catalogue import build_catalogue
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.kernels import CAUSES, CIRCLE_MEMORY
from reasonrec.data.planted.world import generate_block, log_table, write_world

FILES = ("interactions.parquet", "items.parquet", "truth/items.parquet", "truth/readers.parquet",
         "truth/world.json")  # fmt: skip


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(tiny_world, tmp_path):
    config = PlantedConfig(size="tiny")
    write_world(tmp_path / "again", config, 11)
    write_world(tmp_path / "other", config, 12)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tiny_world / name).read_bytes(), name
    other = (tmp_path / "other" / "interactions.parquet").read_bytes()
    assert other != (tiny_world / "interactions.parquet").read_bytes()
    found = {str(f.relative_to(tiny_world)) for f in tiny_world.rglob("*") if f.is_file()}
    assert found == set(FILES)  # no parts are left behind


def test_what_a_cut_off_run_left_behind_changes_nothing(tiny_world, tmp_path):
    write_world(tmp_path / "longer", PlantedConfig(size="tiny", num_users=200), 3)
    (tmp_path / "parts").mkdir()
    shutil.copy(tmp_path / "longer" / "interactions.parquet", tmp_path / "parts/log-000004.parquet")
    write_world(tmp_path, PlantedConfig(size="tiny"), 11)
    name = "interactions.parquet"
    assert (tmp_path / name).read_bytes() == (tiny_world / name).read_bytes()


def test_blocks_do_not_depend_on_the_order_in_which_they_are_made(tiny_world):
    config = PlantedConfig(size="tiny")
    catalogue = build_catalogue(config, 11)
    blocks = {number: generate_block(config, catalogue, 11, number) for number in (2, 0, 1)}
    joined = pl.concat([log_table(blocks[number], 40 * number) for number in (0, 1, 2)])
    assert joined.equals(pl.read_parquet(tiny_world / "interactions.parquet"))


def test_a_tiny_world_takes_less_than_a_second(tiny_world, tmp_path):
    # tiny_world has compiled the kernels; about 0.05 s of the processor, so there is ample room
    start = time.process_time()
    write_world(tmp_path, PlantedConfig(size="tiny"), 5)
    assert time.process_time() - start < 1


def test_every_reader_takes_books_in_time_order_and_none_twice(tiny_world):
    log = pl.read_parquet(tiny_world / "interactions.parquet")
    assert log["user_id"].is_sorted()
    assert log.select("user_id", "item_id").is_duplicated().sum() == 0
    assert log.group_by("user_id").agg(pl.col("timestamp").diff().min() >= 0)["timestamp"].all()
    counts = log["user_id"].value_counts()["count"].to_numpy()
    assert (len(counts), counts.min() >= 8, counts.max() <= 14) == (120, True, True)


def check_reasons(log: pl.DataFrame, items: pl.DataFrame) -> Counter[str]:
    """Assert that every recorded reason could have caused its event; return how often each came."""
    title = dict(items.select("item_id", pl.struct("series", "volume")).iter_rows())
    # ties in time go by reader, then by the reader's own order: exactly a stable sort by both
    events = log.with_row_index("place").sort("timestamp", "user_id", "place").to_dicts()
    taken: dict[str, list[str]] = {}
    seen: Counter[str] = Counter()
    for event in events:
        own = taken.setdefault(event["user_id"], [])
        source, item = event["reason_source"], event["item_id"]
        assert item not in own
        if event["reason"] == "series":
            assert source in own
            assert title[source]["series"] == title[item]["series"]
            assert title[source]["volume"] + 1 == title[item]["volume"]
        elif event["reason"] == "circle":
            assert source != event["user_id"]
            assert item in taken[source][-CIRCLE_MEMORY:]
        else:
            assert source is None
        own.append(item)
        seen[event["reason"]] += 1
    return seen


def test_recorded_reasons_agree_with_the_mechanism(tiny_world):
    log = pl.read_parquet(tiny_world / "interactions.parquet")
    seen = check_reasons(log, pl.read_parquet(tiny_world / "items.parquet"))
    assert set(seen) == set(CAUSES)


def test_reasons_hold_when_nearly_all_events_tie_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(readers_module, "PERIOD_S", 6)
    write_world(tmp_path, PlantedConfig(size="tiny"), 4)
    log = pl.read_parquet(tmp_path / "interactions.parquet")
    assert log["timestamp"].n_unique() <= 6
    seen = check_reasons(log, pl.read_parquet(tmp_path / "items.parquet"))
    assert set(seen) == set(CAUSES)


def test_a_friend_belongs_to_the_same_circle_of_at_most_four(tiny_world):
    readers = pl.read_parquet(tiny_world / "truth" / "readers.parquet")
    assert readers["circle"].value_counts()["count"].to_list() == [4] * 30
    circle, closest = readers["circle"].to_numpy(), readers["closest"].to_numpy()
    np.testing.assert_array_equal(circle[closest], circle)
    assert np.all(closest != np.arange(120))
    log = pl.read_parquet(tiny_world / "interactions.parquet").filter(pl.col("reason") == "circle")
    user = log["user_id"].str.strip_prefix("reader-").cast(pl.Int64).to_numpy()
    friend = log["reason_source"].str.strip_prefix("reader-").cast(pl.Int64).to_numpy()
    np.testing.assert_array_equal(circle[user], circle[friend])
    # the closest friend weighs 4, each of two others 1: about 4 / 6 of what friends pass on
    assert 0.5 < np.mean(closest[user] == friend) < 0.85


def test_a_lone_reader_and_a_circle_that_is_not_full_are_fine(tmp_path):
    config = PlantedConfig(size="tiny", num_users=1)
    write_world(tmp_path / "one", config, 2)
    reasons = pl.read_parquet(tmp_path / "one" / "interactions.parquet")["reason"]
    assert "circle" not in reasons.to_list()
    write_world(tmp_path / "six", PlantedConfig(size="tiny", num_users=6), 2)
    sizes = pl.read_parquet(tmp_path / "six" / "truth" / "readers.parquet")["circle"]
    assert sorted(sizes.value_counts()["count"].to_list()) == [2, 4]


def test_reasons_come_as_often_as_their_weights_say(tmp_path):
    weights = {"taste": 3, "circle": 0, "series": 0, "popularity": 1, "noise": 1}
    write_world(tmp_path, PlantedConfig.model_validate({"size": "small", "weights": weights}), 6)
    reasons = pl.read_parquet(tmp_path / "interactions.parquet")["reason"]
    share = (reasons == "taste").mean()
    # 3 / 5 by the weights; about 18,000 events, so one deviation is sqrt(.24 / 18000) = .0037
    assert share == pytest.approx(0.6, abs=4 * 0.0037)
    assert set(reasons.unique()) == {"taste", "popularity", "noise"}


def test_a_size_fills_in_only_what_was_not_given():
    config = PlantedConfig(size="tiny", num_users=7)
    assert (config.num_users, config.num_items, config.users_per_block) == (7, 60, 40)
    assert PlantedConfig().num_users == PlantedConfig(size="demo").num_users == 3_000
    again = PlantedConfig.model_validate(config.model_dump(mode="json"))
    assert again == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_items": 39}, "num_items must be from 40"),
        ({"size": "tiny", "max_events": 31}, "min_events <= max_events <= num_items / 2"),
        ({"min_events": 31}, "min_events <= max_events"),
        ({"num_users": 10_000_000}, "num_users must be below"),
        ({"weights": {"noise": 0}}, "greater than 0"),
        ({"size": "huge"}, "'tiny', 'small', 'demo' or 'large'"),
        ({"users": 3}, "Extra inputs are not permitted"),
    ],
)
def test_a_world_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        PlantedConfig.model_validate(values)

"""Published splits: what may be trained on, and what the queries look back on."""

from pathlib import Path

import polars as pl
import pytest

from reasonrec.data.prepare import prepare
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import DataError

GIVEN = PrepareConfig(split="given")


def write(folder: Path, log: dict, **splits: dict) -> Path:
    folder.mkdir()
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    items = pl.DataFrame({"item_id": list("abcdez"), "title": list("ABCDEZ")})
    items.write_parquet(folder / "items.parquet")
    for name, table in splits.items():
        pl.DataFrame(table).write_parquet(folder / f"{name}.parquet")
    return folder


OFFICE = {
    "user_id": ["u", "u", "v", "u", "v", "u"],
    "item_id": ["a", "b", "c", "d", "e", "c"],
    "rating": [5.0, 4.0, 3.0, 5.0, 5.0, 1.0],
    "timestamp": [10, 20, 100, 100, 200, 300],
    "position": [0, 1, 0, 2, 1, 3],
    "part": ["train", "train", "train", "valid", "test", "test"],
}
VALID = {
    "user_id": ["u"], "history": [["a", "b"]], "history_rating": [[5.0, 4.0]],
    "history_timestamp": [[10, 20]], "target": ["d"], "timestamp": [100],
}  # fmt: skip
TEST = {
    "user_id": ["v", "u"], "history": [["c"], ["b", "d"]], "history_rating": [[3.0], [4.0, 5.0]],
    "history_timestamp": [[100], [20, 100]], "target": ["e", "c"], "timestamp": [200, 300],
}  # fmt: skip


def test_training_holds_rows_marked_train_and_older_than_the_first_query(tmp_path: Path):
    dataset = prepare(write(tmp_path / "o", OFFICE, split_valid=VALID, split_test=TEST),
                      tmp_path / "out", GIVEN)  # fmt: skip
    # v's c is marked train but has the time of the first validation query: left out
    assert dataset.train.item_index.tolist() == [0, 1]
    assert dataset.statistics["train"] == {"events": 2, "users": 1, "items": 2}
    assert "2 events; 1 that are not older were left out" in dataset.statistics["notes"][0]
    assert dataset.num_items == 6  # z never occurs, and stays in the catalogue
    assert dataset.valid.target.tolist() == [3]
    assert dataset.test.user_index.tolist() == [1, 0]
    assert dataset.test.target.tolist() == [4, 2]
    histories = dataset.test.histories()
    assert [histories.row(b).tolist() for b in range(2)] == [[2], [1, 3]]
    assert histories.rating is not None
    assert histories.timestamp is not None
    assert histories.asked_at is not None
    assert histories.rating.tolist() == [3, 4, 5]
    assert histories.timestamp.tolist() == [100, 20, 100]
    assert histories.asked_at.tolist() == [200, 300]


def test_without_parts_training_is_what_is_older_than_the_first_query(tmp_path: Path):
    log = {key: OFFICE[key] for key in ("user_id", "item_id", "timestamp")}
    folder = write(tmp_path / "o", log, split_x_valid=VALID, split_x_test=TEST)
    assert prepare(folder, tmp_path / "out", GIVEN).train.item_index.tolist() == [0, 1]


def test_a_lone_test_file_is_its_own_log_and_the_order_of_the_log_is_not_used(tmp_path: Path):
    log = {"user_id": list("uuuu"), "item_id": list("dcba"), "position": [0, 1, 2, 3]}
    test = {"user_id": ["u", "v"], "history": [["a", "b", "c"], ["e"]], "target": ["d", "a"]}
    dataset = prepare(write(tmp_path / "g", log, split_llm_test=test), tmp_path / "out", GIVEN)
    # u trains on a and b, for c is the validation target; v's only event stays in training
    assert dataset.train.user_index.tolist() == [0, 0, 1]
    assert dataset.train.item_index.tolist() == [0, 1, 4]
    assert dataset.valid.target.tolist() == [2]
    assert dataset.valid.histories().row(0).tolist() == [0, 1]
    assert dataset.test.target.tolist() == [3, 0]
    assert dataset.test.histories().row(0).tolist() == [0, 1, 2]


def test_of_several_rows_of_a_user_in_a_lone_test_file_the_longest_stays(tmp_path: Path):
    log = {"user_id": ["u"], "item_id": ["a"]}
    test = {"user_id": ["u", "u"], "history": [["a"], ["a", "b"]], "target": ["b", "c"]}
    dataset = prepare(write(tmp_path / "g", log, split_test=test), tmp_path / "out", GIVEN)
    assert dataset.test.target.tolist() == [2]
    assert dataset.statistics["notes"][-1] == "1 rows of users with another row were left out"


def test_queries_on_unknown_items_are_set_aside(tmp_path: Path):
    test = {"user_id": ["u", "v"], "history": [["a", "gone", "b"], ["a"]], "target": ["c", "gone"]}
    folder = write(tmp_path / "g", {"user_id": ["u"], "item_id": ["a"]}, split_test=test)
    config = GIVEN.model_copy(update={"max_rejected_frac": 0.5})
    dataset = prepare(folder, tmp_path / "out", config)
    assert dataset.statistics["rejected"]["queries"] == {"unknown target": 1}
    assert dataset.test.histories().row(0).tolist() == [0, 1]
    with pytest.raises(DataError, match=r"queries of the test split may be unusable; 1 of 2"):
        prepare(folder, tmp_path / "other", GIVEN)


def test_ids_of_a_split_are_those_of_the_log_however_they_are_written(tmp_path: Path):
    folder = tmp_path / "g"
    folder.mkdir()
    log = pl.DataFrame({"user_id": [7, 8], "item_id": [1, 2]})
    log.write_parquet(folder / "interactions.parquet")
    pl.DataFrame({"item_id": [1, 2, 3], "title": list("ABC")}).write_parquet(
        folder / "items.parquet"
    )
    splits = {
        "floats": {"user_id": [7.0, 9.5], "history": [[1.0, 2.0], [2.0]], "target": [3.0, 1.0]},
        "spaced": {"user_id": [" 7", "9.5 "], "history": [["1 ", "2"], [" 2"]],
                   "target": ["3 ", " 1"]},
    }  # fmt: skip
    for name, table in splits.items():
        pl.DataFrame(table).write_parquet(folder / f"split_{name}_test.parquet")
        config = GIVEN.model_copy(update={"given_split": name})
        dataset = prepare(folder, tmp_path / name, config)
        assert dataset.user_ids == ["7", "8", "9.5"]
        assert dataset.test.user_index.tolist() == [0, 2]
        assert dataset.test.target.tolist() == [2, 0]
        assert [dataset.test.histories().row(b).tolist() for b in range(2)] == [[0, 1], [1]]


def test_a_split_without_histories_or_without_a_name_is_refused_in_words(tmp_path: Path):
    log = {"user_id": ["u"], "item_id": ["a"]}
    candidates = {"user_id": ["u"], "target": ["a"], "negatives": [["b"]]}
    folder = write(tmp_path / "g", log, split_ncf_test=candidates)
    with pytest.raises(DataError, match="must have user_id, target and history"):
        prepare(folder, tmp_path / "out", GIVEN)
    pl.DataFrame(TEST).write_parquet(folder / "split_other_test.parquet")
    with pytest.raises(DataError, match=r"Choose one with --given-split NAME"):
        prepare(folder, tmp_path / "out", GIVEN)
    named = GIVEN.model_copy(update={"given_split": "other"})
    assert len(prepare(folder, tmp_path / "out", named).test) == 2
    with pytest.raises(DataError, match="found none"):
        prepare(write(tmp_path / "h", log), tmp_path / "other", GIVEN)


def test_a_split_over_a_log_that_says_nothing_of_age_is_refused(tmp_path: Path):
    log = {"user_id": ["u"], "item_id": ["a"]}
    folder = write(tmp_path / "g", log, split_valid=VALID, split_test=TEST)
    with pytest.raises(DataError, match="needs times, or a column `part`"):
        prepare(folder, tmp_path / "out", GIVEN)

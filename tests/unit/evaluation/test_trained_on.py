"""What methods learn from: training alone, or validation's targets too; never those of test."""

from dataclasses import replace

import numpy as np
import pytest

from reasonrec.baselines.floor import BASELINES, fit_floor
from reasonrec.cli import main
from reasonrec.cli.evaluate import find_contestant
from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.errors import ConfigError
from reasonrec.evaluation.commands import evaluate_command
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.measure import floor_contestant
from reasonrec.evaluation.protocol import evaluate, read_rows
from reasonrec.evaluation.table import results_markdown, results_table
from reasonrec.manifest import write_manifest
from toys import toy_dataset

BOTH = EvaluateConfig(train_on="train+valid", num_timed_users=0)
TITLES = [f"title {i}" for i in range(8)]
ROWS = [[0, 1, 2, 3], [1, 2, 0, 3, 4], [4, 5, 2, 1], [5, 6]]


def open_both(name, dataset, folder):
    return floor_contestant(name, dataset, seed=0, asked=BOTH).open(folder)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "data"
    prepare_planted(folder, PlantedConfig(size="tiny"), None, 0)
    return folder


@pytest.mark.parametrize("timestamps", [True, False])
def test_validation_targets_come_after_what_their_users_did(timestamps):
    # of rows of three or more the last event is the test target, the one before it validation's
    train = toy_dataset(ROWS, TITLES, timestamps=timestamps).with_validation().train
    assert train.user_index.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert train.item_index.tolist() == [0, 1, 2, 1, 2, 0, 3, 4, 5, 2, 5, 6]
    if timestamps:
        assert train.timestamp.tolist() == [
            100, 200, 300, 100, 200, 300, 400, 100, 200, 300, 100, 200,
        ]  # fmt: skip


def test_targets_of_users_without_a_log_are_left_out_and_ratings_are_not_made_up():
    dataset = toy_dataset(ROWS, TITLES)
    known = replace(dataset.train, rating=np.full(len(dataset.train), 4, np.float32))
    strangers = replace(dataset.valid, user_index=np.array([0, -1, 2], np.int32))
    train = replace(dataset, train=known, valid=strangers).with_validation().train
    assert train.item_index.tolist() == [0, 1, 2, 1, 2, 0, 4, 5, 2, 5, 6]
    assert np.isnan(train.rating).nonzero()[0].tolist() == [2, 8]


@pytest.mark.parametrize("name", BASELINES)
def test_validation_is_learned_and_the_planted_test_target_is_not(name, tmp_path):
    dataset = toy_dataset(ROWS, TITLES)
    target = dataset.test.target.copy()
    target[:] = 7  # an item that nobody else ever took
    planted = replace(dataset, test=replace(dataset.test, target=target))
    other = replace(dataset, valid=replace(dataset.valid, target=dataset.valid.target[::-1] + 4))
    asked = dataset.test.take(np.array([0, 1, 2])).histories()
    scores = open_both(name, dataset, tmp_path).score(asked).scores
    np.testing.assert_array_equal(open_both(name, planted, tmp_path).score(asked).scores, scores)
    assert (open_both(name, other, tmp_path).score(asked).scores != scores).any()
    without = floor_contestant(name, dataset, seed=0).open(tmp_path).score(asked).scores
    np.testing.assert_array_equal(without, fit_floor(name, dataset).score(asked).scores)


def test_popularity_of_both_counts_validation_by_hand(tmp_path):
    counts = open_both("popularity", toy_dataset(ROWS, TITLES), tmp_path).counts
    # training 0 1, 1 2 0, 4 5, 5 6; validation 2, 3, 2; test 3, 4, 1
    assert counts.tolist() == [2, 2, 3, 1, 1, 2, 1, 0]


def test_settings_are_searched_on_training_alone(shop, tmp_path):
    dataset = Dataset.load(shop)
    for on in ("train", "train+valid"):
        (tmp_path / on).mkdir()
        asked = EvaluateConfig(train_on=on)
        floor_contestant("item-knn", dataset, seed=0, tune=3, asked=asked).open(tmp_path / on)
    trials = [
        [line.partition('"fit_seconds"')[0] for line in path.read_text().splitlines()]
        for path in sorted(tmp_path.glob("*/trials.jsonl"))
    ]
    assert len(trials[0]) == 3
    assert trials[0] == trials[1]


def test_every_row_and_table_says_what_was_learned_from(shop, tmp_path):
    main(["evaluate", "popularity", "--data", str(shop), "--out", str(tmp_path / "eval"),
          "--train-on", "train+valid"])  # fmt: skip
    rows = read_rows(tmp_path / "eval" / "metrics.json")
    assert {row.trained_on for row in rows} == {"train+valid"}
    assert "| popularity | train+valid |" in results_markdown(rows)
    assert "train+valid" in str(next(iter(results_table(rows).columns[0].cells)))
    dataset = Dataset.load(shop)
    expected = evaluate(fit_floor("popularity", dataset.with_validation()), dataset)
    found = {(row.protocol, row.metric): row.value for row in rows}
    for row in expected.rows:
        if row.protocol != "cost":
            assert found[row.protocol, row.metric] == row.value


def test_a_trained_model_is_refused_unless_it_learned_from_the_same_rows(shop, tmp_path):
    dataset = Dataset.load(shop)
    for on in ("train", "train+valid"):
        (tmp_path / on).mkdir()
        (tmp_path / on / "weights").touch()
        write_manifest(tmp_path / on, stage="sft", inputs={}, config={}, outputs=["weights"],
                       seconds=0.0, extra={"trained_on": on})  # fmt: skip
    with pytest.raises(ConfigError, match=r"must have learned from these rows.*from train\."):
        find_contestant(str(tmp_path / "train"), dataset, seed=0, asked=BOTH)
    taken = find_contestant(str(tmp_path / "train+valid"), dataset, seed=0, asked=BOTH)
    assert taken.trained_on == "train+valid"


def test_what_was_learned_is_not_asked():
    with pytest.raises(ValueError, match="train_on must be train where part is valid"):
        EvaluateConfig(part="valid", train_on="train+valid")


def test_manifests_say_only_what_is_not_as_it_always_was():
    assert "train_on" not in EvaluateConfig().model_dump(mode="json")
    written = BOTH.model_dump(mode="json")
    assert written["train_on"] == "train+valid"
    assert EvaluateConfig.model_validate(written) == BOTH
    (line,) = evaluate_command(
        written | {"methods": {"popularity": {}}}, 0, data="d", out="o", candidates=None
    )
    assert "--train-on train+valid" in line

"""The oracle over a prepared data set whose users and items are numbered otherwise."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Catalogue, Dataset, InteractionLog, Queries
from reasonrec.data.planted.oracle import OracleRecommender
from reasonrec.data.planted.truth import WorldTruth
from reasonrec.errors import DataError
from reasonrec.metrics import metric_values
from reasonrec.models.ranking import rank_targets
from reasonrec.records import Histories


def prepared(world: Path, folder: Path) -> Dataset:
    """Return the leave-one-out test queries of a world, users and items in shuffled order."""
    (folder / "world").symlink_to(world, target_is_directory=True)
    items = pl.read_parquet(world / "items.parquet").sample(fraction=1, shuffle=True, seed=1)
    log = pl.read_parquet(world / "interactions.parquet")
    users = log["user_id"].unique().sort().sample(fraction=1, shuffle=True, seed=2).to_list()
    rank = {user_id: index for index, user_id in enumerate(users)}
    place = {item_id: index for index, item_id in enumerate(items["item_id"])}
    log = log.with_columns(
        pl.col("user_id").replace_strict(rank, return_dtype=pl.Int32).alias("u"),
        pl.col("item_id").replace_strict(place, return_dtype=pl.Int32).alias("i"),
    ).sort("u", "timestamp", maintain_order=True)
    events = log["i"].to_numpy()
    offsets = np.searchsorted(log["u"].to_numpy(), np.arange(len(users) + 1))
    queries = Queries(
        user_index=np.arange(len(users), dtype=np.int32),
        target=events[offsets[1:] - 1],
        history_start=offsets[:-1],
        history_stop=offsets[1:] - 1,
        log_item_index=events,
    )
    return Dataset(
        name="planted",
        split="leave-one-out",
        folder=folder,
        fingerprint="",
        catalogue=Catalogue(items),
        user_ids=users,
        train=InteractionLog(log["u"].to_numpy(), events, len(users)),
        valid=queries,
        test=queries,
        statistics={},
    )


@pytest.fixture(scope="module")
def dataset(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return prepared(tiny_world, tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def oracle(dataset: Dataset) -> OracleRecommender:
    return OracleRecommender(dataset)


def world_numbers(ids: list[str]) -> np.ndarray:
    return np.array([int(text.split("-")[1]) for text in ids])


def test_the_oracle_meets_the_contract_of_a_recommender(oracle, dataset):
    assert isinstance(oracle, Recommender)
    scored = oracle.score(dataset.test.histories())
    assert oracle.name == "oracle"
    assert scored.scores.dtype == np.float32
    assert scored.scores.shape == (120, 60)


def test_scores_are_the_worlds_probabilities_in_the_catalogues_order(oracle, dataset, tiny_truth):
    users = world_numbers(dataset.user_ids)
    p = tiny_truth.next_item_probabilities(users, tiny_truth.num_events[users] - 1)
    expected = p[:, world_numbers(dataset.catalogue.item_ids)]
    scores = oracle.score(dataset.test.histories()).scores
    np.testing.assert_array_equal(scores, expected.astype(np.float32))


def test_measured_metrics_agree_with_the_expected_ones(oracle, dataset):
    histories = dataset.test.histories()
    expected = oracle.expected_metrics(histories)
    rank = rank_targets(oracle.score(histories).scores, dataset.test.target)
    for metric in ("hit@10", "ndcg@10"):
        # 120 readers: one standard error is about .03
        measured = metric_values(metric, rank).mean()
        error = expected.standard_error(metric)
        assert measured == pytest.approx(expected.mean(metric), abs=4 * error)


def test_an_answer_does_not_depend_on_the_other_rows_or_their_order(oracle, dataset):
    histories = dataset.test.histories()
    rows = np.array([7, 100, 3])
    scores = oracle.score(histories).scores
    np.testing.assert_array_equal(oracle.score(histories.take(rows)).scores, scores[rows])


def test_a_history_cut_to_its_last_events_gives_the_same_answer(oracle, dataset):
    whole, cut = dataset.test.histories(), dataset.test.histories(last=3)
    np.testing.assert_array_equal(oracle.score(whole).scores, oracle.score(cut).scores)


def test_an_empty_history_of_a_known_reader_is_the_first_step(oracle, dataset, tiny_truth):
    scores = oracle.score(Histories.from_lists([[]], user_index=[4])).scores[0]
    user = world_numbers(dataset.user_ids)[[4]]
    p = tiny_truth.next_item_probabilities(user, np.array([0]))[0]
    expected = p[world_numbers(dataset.catalogue.item_ids)]
    np.testing.assert_array_equal(scores, expected.astype(np.float32))


def test_an_unknown_reader_gets_the_mean_of_beginners_without_what_was_taken(oracle, tiny_truth):
    scores = oracle.score(Histories.from_lists([[], [8, 2]])).scores
    first = tiny_truth.next_item_probabilities(np.arange(120), np.zeros(120, np.int64))
    expected = first.mean(axis=0)[world_numbers(oracle_ids(oracle))]
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    assert scores[0].sum() == pytest.approx(1, abs=1e-6)
    assert (scores[1, 8], scores[1, 2]) == (0, 0)
    others = np.setdiff1d(np.arange(60), [8, 2])
    np.testing.assert_array_equal(scores[1, others], scores[0, others])


def oracle_ids(oracle: OracleRecommender) -> list[str]:
    return [oracle.truth.item_ids[i] for i in oracle._world_item]


def test_a_made_up_history_of_a_known_reader_is_a_stated_failure(oracle, dataset):
    own = set(dataset.test.histories().row(4)) | {dataset.test.target[4]}
    never = next(item for item in range(60) if item not in own)
    with pytest.raises(DataError, match="latest item"):
        oracle.score(Histories.from_lists([[int(never)]], user_index=[4]))


def test_a_set_that_is_no_planted_world_is_a_stated_failure(dataset, tmp_path):
    foreign = Dataset(**{**vars(dataset), "folder": tmp_path})
    with pytest.raises(DataError, match="needs a planted world"):
        OracleRecommender(foreign)
    renamed = Dataset(**{**vars(dataset), "user_ids": ["reader-0000000", "someone"] * 60})
    with pytest.raises(DataError, match="'someone'"):
        OracleRecommender(renamed)


def test_the_truth_is_read_from_the_written_description(tiny_world):
    described = json.loads((tiny_world / "truth" / "world.json").read_text())
    truth = WorldTruth.load(tiny_world)
    assert (truth.seed, described["seed"]) == (11, 11)
    assert truth.config.num_items == 60


def test_the_oracle_of_training_lacks_what_friends_took_in_held_out_events(
    oracle, dataset, tiny_truth
):
    histories = dataset.test.histories()
    everything = OracleRecommender(dataset, knows_held_out=False)
    assert everything.name == "oracle-of-training"
    np.testing.assert_allclose(
        everything.score(histories).scores, oracle.score(histories).scores, rtol=1e-6
    )
    kept = np.flatnonzero(np.arange(len(dataset.train)) % 3 > 0)
    log = dataset.train
    some = InteractionLog(log.user_index[kept], log.item_index[kept], len(dataset.user_ids))
    found = OracleRecommender(replace(dataset, train=some), knows_held_out=False)
    scores = found.score(histories).scores
    users, items = map(world_numbers, (dataset.user_ids, dataset.catalogue.item_ids))
    causes = tiny_truth.cause_probabilities(users, tiny_truth.num_events[users] - 1)
    told = set(zip(users[some.user_index].tolist(), items[some.item_index].tolist()))
    crowd, at, hidden = tiny_truth.crowd, tiny_truth.timestamp, 0.0
    for row in range(0, 120, 7):
        user = users[row]
        expected, asked_at = causes[row].sum(0), (at[crowd.offsets[user + 1] - 1], user)
        weights = np.zeros((2, 60))
        for friend in np.flatnonzero(crowd.circle == crowd.circle[user]):
            events = range(crowd.offsets[friend], crowd.offsets[friend + 1])
            before = [crowd.items[e] for e in events if (at[e], friend) < asked_at]
            for age, item in enumerate(before[::-1][:5] if friend != user else []):
                weight = (4 if crowd.closest[user] == friend else 1) * 0.7**age
                weights[int((friend, item) in told), item] += weight
        lost = np.divide(weights[0], weights.sum(0), where=weights.sum(0) > 0, out=np.zeros(60))
        hidden += (causes[row, 1] * lost).sum()
        expected -= causes[row, 1] * lost
        np.testing.assert_allclose(scores[row], expected[items], rtol=1e-4, atol=1e-7)
    assert hidden > 0.1

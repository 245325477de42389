"""The floor against slow obvious versions of itself, and against the contract of all methods."""

from collections import defaultdict

import numpy as np
import pytest

from reasonrec.baselines.contract import Recommender
from reasonrec.baselines.floor import BASELINES, fit_floor
from reasonrec.baselines.follow_counter import count_follows
from reasonrec.records import Histories
from toys import toy_dataset

DAY = 86_400


def random_dataset(seed, *, num_users=30, num_items=12, timestamps=True):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(num_items, size=rng.integers(1, 15)).tolist() for _ in range(num_users)]
    return toy_dataset(rows, [f"item {i}" for i in range(num_items)], timestamps=timestamps)


def training_rows(dataset):
    rows = defaultdict(list)
    for user, item in zip(dataset.train.user_index.tolist(), dataset.train.item_index.tolist()):
        rows[user].append(item)
    return rows


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("timestamps", [True, False])
class TestEveryBaseline:
    def test_meets_the_contract(self, name, timestamps):
        dataset = random_dataset(0, timestamps=timestamps)
        method = fit_floor(name, dataset)
        assert isinstance(method, Recommender)
        assert method.name == name
        scores = method.score(dataset.test.histories()).scores
        assert scores.shape == (len(dataset.test), dataset.num_items)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()

    def test_a_rows_answer_does_not_depend_on_the_other_rows(self, name, timestamps):
        dataset = random_dataset(1, timestamps=timestamps)
        method, histories = fit_floor(name, dataset), dataset.test.histories()
        together = method.score(histories).scores
        order = np.random.default_rng(0).permutation(len(histories))
        np.testing.assert_array_equal(method.score(histories.take(order)).scores, together[order])
        alone = method.score(histories.take(order[:1])).scores
        np.testing.assert_array_equal(alone, together[order[:1]])

    def test_a_new_user_without_history_gets_the_popular_items(self, name, timestamps):
        # item 2 is taken by everybody, item 0 by one: both early and late
        dataset = toy_dataset([[2, 2, 2, 2, 1], [2, 2, 1, 1], [0, 2, 2, 2, 1]], list("abcd"))
        nobody = Histories.from_lists([[]])
        assert fit_floor(name, dataset).score(nobody).scores.argmax(axis=1) == [2]

    def test_nothing_is_learned_from_the_held_out_events(self, name, timestamps):
        rows = [[0, 1, 2, 3, 4], [1, 0, 2, 4, 3], [2, 1, 0, 3, 3]]
        planted = [[*row[:-2], 5, 5] for row in rows]  # an item that only the future knows
        titles = [f"item {i}" for i in range(6)]
        asked = Histories.from_lists([[0, 1], [], [5]])
        answers = [
            fit_floor(name, toy_dataset(log, titles, timestamps=timestamps)).score(asked).scores
            for log in (rows, planted)
        ]
        np.testing.assert_array_equal(*answers)

    def test_an_empty_training_log_ties_everything(self, name, timestamps):
        dataset = toy_dataset([], list("abc"), timestamps=timestamps)
        scores = fit_floor(name, dataset).score(Histories.from_lists([[0], []])).scores
        np.testing.assert_array_equal(scores, np.zeros((2, 3), np.float32))


def test_popularity_counts_training_events():
    dataset = toy_dataset([[0, 1, 1, 2, 2], [1, 2]], list("abc"))  # train: 0 1 1, and 1 2
    scores = fit_floor("popularity", dataset).score(Histories.from_lists([[], [2]])).scores
    np.testing.assert_array_equal(scores, [[1, 3, 1], [1, 3, 1]])


def test_recent_popularity_halves_an_event_every_half_life_and_never_sees_the_future():
    dataset = toy_dataset([[0, 1, 0]], ["a", "b"])
    log = dataset.train  # replaced below: events at days 0, 1, 3 of items 0, 1, 0
    log = type(log)(
        user_index=np.zeros(3, np.int32),
        item_index=np.array([0, 1, 0], np.int32),
        num_users=1,
        timestamp=np.array([0, DAY, 3 * DAY], np.int64),
    )
    dataset = type(dataset)(**{**vars(dataset), "train": log})
    method = fit_floor("recent-popularity", dataset, half_life_days=1.0)
    asked = Histories(
        user_index=np.zeros(4, np.int32),
        item_index=np.zeros(0, np.int32),
        offsets=np.zeros(5, np.int64),
        asked_at=np.array([0, DAY, DAY + 1, 9 * DAY], np.int64),
    )
    expected = [
        [0, 0],  # nothing is strictly older than second 0
        [1, 0],  # the event of day 1 is the question's own second
        [0.5, 1],  # day 1: item 0 is one half-life old
        [0.5**3 + 1, 0.25],  # day 3: 1/8 + 1, and 1/4; later questions keep this order
    ]
    np.testing.assert_allclose(method.score(asked).scores, expected)
    without_time = Histories.from_lists([[]])
    np.testing.assert_allclose(method.score(without_time).scores, expected[-1:])


def test_recent_popularity_says_aloud_that_times_are_missing(caplog):
    dataset = toy_dataset([[0, 1, 1], [1, 0]], ["a", "b"], timestamps=False)
    dataset = type(dataset)(**{**vars(dataset), "name": "a set without times"})
    method = fit_floor("recent-popularity", dataset, half_life_events=1.0)
    assert "a set without times has no times" in caplog.text
    # train: user 0 took 0; user 1 took 1 (one event later followed: 1/2) and 0 (its last: 1)
    np.testing.assert_allclose(method.score(Histories.from_lists([[]])).scores, [[2.0, 0.5]])


def slow_follow_scores(dataset, history, *, num_steps, reverse, power, recency, window, prior):
    num_items = dataset.num_items
    counts, popularity = np.zeros((num_items, num_items)), np.zeros(num_items)
    for row in training_rows(dataset).values():
        for here, item in enumerate(row):
            popularity[item] += 1
            for steps in range(1, num_steps + 1):
                if here + steps < len(row):
                    counts[item, row[here + steps]] += 1 / steps
    both = counts + reverse * counts.T
    scores = prior * popularity / max(popularity.max(), 1)
    for steps_back, item in enumerate(reversed(history), start=1):
        total = both[item].sum()
        if steps_back <= window and total > 0:
            scores = scores + both[item] / total**power / steps_back**recency
    return scores


def timed_dataset():
    """Three users: 0 then 1 at once, 0 then 2 minutes later, 3 then 0 then 1 days later."""
    dataset = toy_dataset([[0, 1], [0, 2], [3, 0, 1]], list("abcd"))
    times = np.array([5, 5, 5, 5 + 120, 0, 2 * DAY, 4 * DAY], np.int64)
    log = type(dataset.train)(
        user_index=np.array([0, 0, 1, 1, 2, 2, 2], np.int32),
        item_index=np.array([0, 1, 0, 2, 3, 0, 1], np.int32),
        num_users=3,
        timestamp=times,
    )
    return type(dataset)(**{**vars(dataset), "train": log})


def test_the_pace_counter_counts_steps_more_that_took_as_long_as_it_has_been():
    settings = {"num_steps": 1, "reverse_share": 0.0, "total_power": 0.0, "prior_weight": 1e-9}
    method = fit_floor("pace-counter", timed_dataset(), same_pace=2.0, **settings)
    plain = fit_floor("follow-counter", timed_dataset(), **settings)
    asked = Histories(
        user_index=np.full(4, -1, np.int32),
        item_index=np.array([0, 0, 0, 0, 0], np.int32),
        offsets=np.array([0, 1, 2, 3, 5], np.int64),
        timestamp=np.array([10, 10, 10, 10, 10 + 30 * DAY], np.int64),
        asked_at=np.array([10, 10 + 600, 10 + 40 * DAY, 10 + 30 * DAY], np.int64),
    )
    assert plain.score(asked).scores.round(6)[0].tolist() == [0, 2, 1, 0]
    expected = [
        [0, 2 + 2 * 1, 1, 0],  # at once: one of the two steps to 1 counts three times
        [0, 2, 1 + 2 * 1, 0],  # minutes: the step to 2 does
        [0, 2, 1, 0],  # months: nobody's step took so long
        [0, 2 + 2 + 1, 1 + 0.5, 0],  # at once since the last 0; half, from the 0 of 30 days before
    ]
    np.testing.assert_allclose(method.score(asked).scores, expected, atol=1e-6)


def test_without_times_the_pace_counter_is_a_follow_counter():
    for timestamps in (True, False):
        dataset = random_dataset(4, timestamps=timestamps)
        asked = dataset.test.histories()
        if timestamps:
            asked = Histories(asked.user_index, asked.item_index, asked.offsets)
        named = [fit_floor(name, dataset) for name in ("pace-counter", "follow-counter")]
        np.testing.assert_array_equal(*(method.score(asked).scores for method in named))


@pytest.mark.parametrize("seed", range(5))
def test_the_follow_counter_agrees_with_counting_by_hand(seed):
    dataset = random_dataset(seed)
    method = fit_floor(
        "follow-counter",
        dataset,
        num_steps=3,
        reverse_share=0.3,
        total_power=0.5,
        recency_power=1.0,
        max_events=4,
        prior_weight=0.01,
    )
    histories = dataset.test.histories()
    slow = [
        slow_follow_scores(
            dataset,
            histories.row(b).tolist(),
            num_steps=3,
            reverse=0.3,
            power=0.5,
            recency=1.0,
            window=4,
            prior=0.01,
        )
        for b in range(len(histories))
    ]
    np.testing.assert_allclose(method.score(histories).scores, slow, rtol=1e-5)  # float32 sums


def test_an_item_two_steps_later_counts_half_and_users_do_not_run_into_each_other():
    dataset = toy_dataset([[0, 1, 2, 3, 3], [2, 0]], list("abcd"))  # train: 0 1 2, and 2 0
    counts = count_follows(dataset.train, 4, num_steps=2).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1] = expected[1, 2] = expected[2, 0] = 1.0
    expected[0, 2] = 0.5
    np.testing.assert_array_equal(counts, expected)


def slow_knn_scores(dataset, history, *, k, shrinkage, recency, window, prior):
    num_items = dataset.num_items
    takers = [
        {user for user, row in training_rows(dataset).items() if item in row}
        for item in range(num_items)
    ]
    popularity = np.bincount(dataset.train.item_index, minlength=num_items)
    scores = prior * popularity / max(popularity.max(), 1)
    for steps_back, item in enumerate(reversed(history), start=1):
        if steps_back > window:
            break
        cosine = np.zeros(num_items)
        for other in range(num_items):
            shared = len(takers[item] & takers[other])
            if other != item and shared:
                root = np.sqrt(len(takers[item]) * len(takers[other]))
                cosine[other] = shared / (root + shrinkage)
        kept = np.argsort(-cosine, kind="stable")[:k]
        scores[kept] += cosine[kept] / steps_back**recency
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_item_knn_agrees_with_comparing_every_pair_of_items(seed):
    dataset = random_dataset(seed)
    method = fit_floor(
        "item-knn",
        dataset,
        num_neighbours=4,
        shrinkage=2.0,
        recency_power=0.5,
        max_events=6,
        prior_weight=0.01,
    )
    histories = dataset.test.histories()
    slow = [
        slow_knn_scores(
            dataset,
            histories.row(b).tolist(),
            k=4,
            shrinkage=2.0,
            recency=0.5,
            window=6,
            prior=0.01,
        )
        for b in range(len(histories))
    ]
    np.testing.assert_allclose(method.score(histories).scores, slow, rtol=1e-5)  # float32 sums


def test_an_unknown_floor_method_is_refused_with_the_known_ones_named():
    with pytest.raises(ValueError, match="one of popularity, recent-popularity, item-knn"):
        fit_floor("magic", toy_dataset([[0]], ["a"]))

import numpy as np
import polars as pl
import pytest

from reasonrec.evaluation.joined import Values
from reasonrec.evaluation.significance import resampling_users
from reasonrec.evaluation.slices import slicings, thirds
from toys import toy_dataset

TITLES = [f"item {i}" for i in range(8)]


def values_of_queries(rows: list[tuple[int, int, int, float]]) -> Values:
    """Return one method's values of (user, target, history length, value)."""
    users = np.array([row[0] for row in rows])
    return Values(
        methods=("a",),
        table=np.array([[row[3]] for row in rows]),
        users=resampling_users(users),
        queries=pl.DataFrame(
            {
                "query": range(len(rows)),
                "user_index": users,
                "target": [row[1] for row in rows],
                "history_length": [row[2] for row in rows],
            }
        ),
    )


def test_cold_items_and_cold_users_are_slices_of_their_own():
    # training keeps all but the last two of a row: item 1 twice, items 2 and 3 once
    dataset = toy_dataset([[1, 2, 6, 7], [1, 3, 6, 7]], TITLES)
    rows = [
        (0, 7, 2, 0.1),  # item 7 is never in training
        (0, 1, 3, 0.5),
        (1, 2, 4, 0.3),
        (-1, 7, 0, 0.9),  # nobody that training knows
    ]
    history, popularity, users = slicings(values_of_queries(rows), dataset)
    cold, *warm = popularity.slices
    assert (cold.label, cold.num_queries) == ("cold: never in training", 2)
    assert cold.means[0].mean == pytest.approx((0.1 + 0.9) / 2)
    assert [(one.label, one.means[0].mean) for one in warm] == [
        ("1 event", 0.3),
        ("2 events", 0.5),
    ]
    assert [(one.label, one.num_queries) for one in users.slices] == [
        ("cold: never in training", 1),
        ("known from training", 3),
    ]
    assert users.slices[1].means[0].mean == pytest.approx((0.1 + 0.5 + 0.3) / 3)
    assert history.slices[0].label == "no history"


def test_every_query_is_in_one_slice_of_each_cut():
    rng = np.random.default_rng(0)
    dataset = toy_dataset([[int(i) for i in rng.integers(0, 8, 6)] for _ in range(12)], TITLES)
    rows = [
        (int(u), int(t), int(n), float(v))
        for u, t, n, v in zip(
            rng.integers(-1, 12, 50),
            rng.integers(0, 8, 50),
            rng.integers(0, 30, 50),
            rng.random(50),
        )
    ]
    values = values_of_queries(rows)
    for slicing in slicings(values, dataset, num_resamples=20):
        assert sum(one.num_queries for one in slicing.slices) == 50
        weighted = sum(one.num_queries * one.means[0].mean for one in slicing.slices) / 50
        assert weighted == pytest.approx(values.table.mean())


def test_without_the_data_only_the_length_of_history_is_known():
    rows = [(0, 1, n, 0.5) for n in range(1, 10)]
    (only,) = slicings(values_of_queries(rows), None, num_resamples=20)
    assert only.title == "History length"
    assert [one.num_queries for one in only.slices] == [3, 3, 3]


def test_a_cut_that_leaves_one_slice_is_left_out():
    assert slicings(values_of_queries([(0, 1, 5, 0.5), (1, 2, 5, 0.1)]), None) == ()


def test_thirds_hold_every_query_once():
    # 1 1 1 | 2 3 | 4 9: the lower third ends at 1, the upper starts after 3
    assert thirds(np.array([1, 1, 1, 2, 3, 4, 9])) == [(1, 1), (2, 3), (4, 9)]
    assert thirds(np.array([5, 5, 5])) == [(5, 5)]
    assert thirds(np.array([0, 7])) == [(0, 0), (7, 7)]

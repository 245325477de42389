"""Splits on logs small enough to split by hand, and against slow obvious loops."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec.data.splits import Events, global_time, leave_one_out, sort_events
from reasonrec.data.statistics import count_repeated_targets, share_of_repeats, share_of_ties
from reasonrec.errors import DataError

S = 1_000_000


def make_events(rows: list[tuple[int, int, int]]) -> Events:
    """Return sorted events of (user, item, second) in file order."""
    users = sorted({f"{user:03}" for user, _, _ in rows})
    table = pl.DataFrame(
        {
            "user_id": [f"{user:03}" for user, _, _ in rows],
            "item": pl.Series([item for _, item, _ in rows], dtype=pl.Int32),
            "micros": pl.Series([time * S for _, _, time in rows], dtype=pl.Int64),
        }
    )
    return sort_events(table, pl.Series("user_id", users))


def test_events_are_sorted_by_user_then_time_and_ties_keep_file_order():
    events = make_events([(2, 7, 5), (1, 4, 9), (1, 3, 9), (2, 8, 1), (1, 2, 1)])
    assert events.user.tolist() == [0, 0, 0, 1, 1]
    assert events.item.tolist() == [2, 4, 3, 8, 7]  # items 4 and 3 share second 9: file order


def test_position_breaks_ties_before_the_order_of_the_file():
    table = pl.DataFrame(
        {
            "user_id": ["a", "a", "a"],
            "item": pl.Series([0, 1, 2], dtype=pl.Int32),
            "micros": pl.Series([5, 5, 1], dtype=pl.Int64),
            "position": pl.Series([2, 1, 0], dtype=pl.Int64),
        }
    )
    assert sort_events(table, pl.Series(["a"])).item.tolist() == [2, 1, 0]


def test_leave_one_out_tests_the_last_event_and_validates_the_one_before():
    # user 0 has 4 events, user 1 has 2, user 2 has 3
    events = make_events(
        [(0, 10, 1), (0, 11, 2), (0, 12, 3), (0, 13, 4), (1, 20, 1), (1, 21, 2)]
        + [(2, 30, 1), (2, 31, 2), (2, 32, 3)]
    )
    split = leave_one_out(events)
    assert split.train.item.tolist() == [10, 11, 20, 21, 30]
    assert split.valid.target.tolist() == [12, 31]
    assert split.test.target.tolist() == [13, 32]
    assert [
        split.histories.item[a:b].tolist() for a, b in zip(split.test.start, split.test.stop)
    ] == [[10, 11, 12], [30, 31]]
    assert [
        split.histories.item[a:b].tolist() for a, b in zip(split.valid.start, split.valid.stop)
    ] == [[10, 11], [30]]
    assert split.notes == ("1 users with fewer than 3 events are in training only",)


def test_leave_one_out_without_any_user_of_three_events_says_so():
    with pytest.raises(DataError, match="at least 3 events; there is none"):
        leave_one_out(make_events([(0, 1, 1), (0, 2, 2), (1, 1, 1)]))


def test_global_time_cuts_at_two_moments_and_ties_at_a_cut_go_to_the_later_part():
    # ten events at seconds 0..9 but the ninth shares second 7 with the eighth: sorted times are
    # 0 1 2 3 4 5 6 7 7 9; index 8 (80 %) holds 7, index 9 (90 %) holds 9
    times = [0, 1, 2, 3, 4, 5, 6, 7, 7, 9]
    split = global_time(
        make_events([(n % 2, n, time) for n, time in enumerate(times)]),
        valid_frac=0.1,
        test_frac=0.1,
    )
    assert sorted(split.train.item.tolist()) == [0, 1, 2, 3, 4, 5, 6]
    assert sorted(split.valid.target.tolist()) == [7, 8]
    assert split.test.target.tolist() == [9]
    # item 9 is user 1's: all that user 1 did before it, though item 7 was in validation
    assert split.histories.item[split.test.start[0] : split.test.stop[0]].tolist() == [1, 3, 5, 7]
    assert split.notes == ("cut at 1970-01-01T00:00:07Z and 1970-01-01T00:00:09Z",)


def test_global_time_needs_times_and_more_than_one_of_them():
    with pytest.raises(DataError, match="share one time"):
        global_time(make_events([(0, n, 5) for n in range(20)]), valid_frac=0.1, test_frac=0.1)
    untimed = Events(np.zeros(3, np.int32), np.arange(3, dtype=np.int32), 1)
    with pytest.raises(DataError, match="needs timestamps"):
        global_time(untimed, valid_frac=0.1, test_frac=0.1)


logs = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 12)), min_size=1, max_size=40
)


@settings(deadline=None)
@given(logs)
def test_leave_one_out_equals_a_slow_loop(rows: list[tuple[int, int, int]]):
    by_user: dict[int, list[int]] = {}
    for user, item, _ in sorted(rows, key=lambda row: (row[0], row[2])):  # sorted() is stable
        by_user.setdefault(user, []).append(item)
    long = [items for items in by_user.values() if len(items) >= 3]
    if not long:
        return
    split = leave_one_out(make_events(rows))
    assert split.test.target.tolist() == [items[-1] for items in long]
    assert split.valid.target.tolist() == [items[-2] for items in long]
    expected = [i for items in by_user.values() for i in (items[:-2] if len(items) >= 3 else items)]
    assert split.train.item.tolist() == expected
    for n, items in enumerate(long):
        history = split.histories.item[split.test.start[n] : split.test.stop[n]]
        assert history.tolist() == items[:-1]


@settings(deadline=None)
@given(logs)
def test_nothing_in_training_is_as_new_as_a_global_time_query(rows: list[tuple[int, int, int]]):
    events = make_events(rows)
    try:
        split = global_time(events, valid_frac=0.2, test_frac=0.2)
    except DataError:
        return
    assert split.train.micros is not None
    assert split.valid.micros is not None
    assert split.test.micros is not None
    assert split.train.micros.max() < split.valid.micros.min()
    assert split.valid.micros.max() < split.test.micros.min()
    assert len(split.train) + len(split.valid) + len(split.test) == len(rows)
    assert split.histories.micros is not None
    for asked in (split.valid, split.test):
        for n in range(len(asked)):
            owners = split.histories.user[asked.start[n] : asked.stop[n]]
            times = split.histories.micros[asked.start[n] : asked.stop[n]]
            assert (owners == asked.user[n]).all()
            assert (times <= asked.micros[n]).all()


@settings(deadline=None)
@given(logs)
def test_shares_of_ties_and_repeats_equal_a_slow_count(rows: list[tuple[int, int, int]]):
    ordered = sorted(rows, key=lambda row: (row[0], row[2]))
    tied = sum(a[0] == b[0] and a[2] == b[2] for a, b in pairwise(ordered))
    distinct = len({(user, item) for user, item, _ in rows})
    events = make_events(rows)
    assert share_of_ties(events) == pytest.approx(tied / len(rows))
    assert share_of_repeats(events) == pytest.approx(1 - distinct / len(rows))


def test_a_target_that_is_in_its_history_is_counted_once():
    # user 0 ends on item 5 after having taken it twice; user 1 ends on something new
    events = make_events(
        [(0, 5, 1), (0, 5, 2), (0, 6, 3), (0, 5, 4), (1, 5, 1), (1, 6, 2), (1, 7, 3)]
    )
    split = leave_one_out(events)
    assert count_repeated_targets(split.test, split.histories) == 1
    assert count_repeated_targets(split.valid, split.histories) == 0

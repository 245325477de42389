"""The training log as a graph of users and items, walkable both ways and aware of time."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from reasonrec.data.dataset import InteractionLog
from reasonrec.graph import kernels, orders

_MOST = 2**31 - 1


class GraphArrays(NamedTuple):
    """The arrays that every compiled loop takes first: both directions of E edges, 32 bits each."""

    user_offsets: np.ndarray
    """(U + 1,), int64. The events of user u are ``[user_offsets[u], user_offsets[u + 1])``."""
    event_item: np.ndarray
    """(E,), int32."""
    event_time: np.ndarray
    """(E,), int32. Seconds since the first event; all 0 if the log has no times."""
    event_user: np.ndarray
    """(E,), int32."""
    item_offsets: np.ndarray
    """(N + 1,), int64. Item i has ``occurrence_event[item_offsets[i]:item_offsets[i + 1]]``."""
    occurrence_event: np.ndarray
    """(E,), int32. Events grouped by item; inside an item by time, ties by event."""
    occurrence_time: np.ndarray
    """(E,), int32. ``event_time`` in that order, so that a search by time stays in one place."""
    occurrence_user: np.ndarray
    """(E,), int32. ``event_user`` in that order."""
    taker_event: np.ndarray
    """(E,), int32. Events grouped by item; inside an item ascending, and so by user."""
    event_rank: np.ndarray
    """(E,), int32. The place of an event among its item's occurrences, counted from 0."""
    time_bound: np.ndarray
    """(B,), int32, ascending from 0: starts of B periods with about as many events each."""
    num_before: np.ndarray
    """(B, N), int32. Occurrences of each item before each bound: where a search by time begins."""
    pair_filter: np.ndarray
    """(bytes,), uint8. A bit set for each user and item: most pairs without an event are told from
    it alone, at any time, and all others are searched for."""


@dataclass(frozen=True)
class InteractionGraph:
    """E training events, reachable by user (in time order) and by item (by time and by user).

    An event is named by its row in the training log. At most 30 bytes an event beside the
    log itself.
    """

    num_users: int
    num_items: int
    arrays: GraphArrays
    first_time: int
    """UTC seconds of the oldest event; 0 if the log has no times."""
    has_times: bool
    has_repeats: bool
    """Whether any user took any item twice."""
    event_rating: np.ndarray | None
    """(E,), float32, NaN where unknown; None if the log has no ratings."""

    @classmethod
    def build(cls, train: InteractionLog, num_items: int) -> "InteractionGraph":
        """Return the graph of a training log, and of nothing else.

        Raises:
            ValueError: An item lies outside the catalogue, the log is not sorted by user, then
                time, or it is too long in events or in years for 32 bits.
        """
        users = frozen_array(train.user_index, np.int32)
        items = frozen_array(train.item_index, np.int32)
        _check_log(train, users, items, num_items)
        has_times = train.timestamp is not None
        first_time, times = 0, np.zeros(len(items), np.int32)
        if train.timestamp is not None and len(items):
            first_time = int(train.timestamp.min())
            np.subtract(train.timestamp, first_time, out=times, casting="unsafe")
        num_events = np.bincount(items, minlength=num_items)
        item_offsets = np.concatenate([[0], np.cumsum(num_events)]).astype(np.int64)
        taker_event = orders.events_by_item(items, item_offsets)
        in_time = orders.events_by_time(taker_event, times, item_offsets)
        in_time_order = times[in_time]
        bounds = _time_bounds(times, num_items)
        return cls(
            num_users=train.num_users,
            num_items=num_items,
            arrays=GraphArrays(
                user_offsets=frozen_array(train.user_offsets, np.int64),
                event_item=items,
                event_time=frozen_array(times, np.int32),
                event_user=users,
                item_offsets=frozen_array(item_offsets, np.int64),
                occurrence_event=frozen_array(in_time, np.int32),
                occurrence_time=frozen_array(in_time_order, np.int32),
                occurrence_user=frozen_array(users[in_time], np.int32),
                taker_event=frozen_array(taker_event, np.int32),
                event_rank=frozen_array(orders.ranks_of(in_time, item_offsets), np.int32),
                time_bound=frozen_array(bounds, np.int32),
                num_before=frozen_array(
                    orders.counts_before(in_time_order, item_offsets, bounds), np.int32
                ),
                pair_filter=frozen_array(kernels.filter_of_pairs(users, items), np.uint8),
            ),
            first_time=first_time,
            has_times=has_times,
            has_repeats=bool(orders.has_repeats(taker_event, users, item_offsets)),
            event_rating=(None if train.rating is None else frozen_array(train.rating, np.float32)),
        )

    def __len__(self) -> int:
        return len(self.arrays.event_item)

    def asked_at(self, asked_at: np.ndarray | None, num_rows: int) -> np.ndarray:
        """Return the time before which evidence must lie, "never ends" where times are unknown."""
        if asked_at is None or not self.has_times:
            return frozen_array(np.full(num_rows, np.iinfo(np.int64).max), np.int64)
        return checked(asked_at, np.int64, "asked_at", num_rows)

    def limits(self, asked_at: np.ndarray | None, num_rows: int) -> np.ndarray:
        """Return the same as ``event_time`` counts it. (R,), int32."""
        return self._counted(asked_at, num_rows, earliest=0)

    def moments(self, taken_at: np.ndarray | None, num_rows: int) -> np.ndarray:
        """Return when things were taken as ``event_time`` counts it, -1 before all events. (R,)."""
        return self._counted(taken_at, num_rows, earliest=-1)

    def _counted(self, seconds: np.ndarray | None, num_rows: int, *, earliest: int) -> np.ndarray:
        known = self.asked_at(seconds, num_rows)
        # clipped first: a difference of far-off times would not fit
        known = np.clip(known, self.first_time + earliest, self.first_time + _MOST)
        return frozen_array(known - self.first_time, np.int32)


def _time_bounds(times: np.ndarray, num_items: int) -> np.ndarray:
    """Return the starts of as many periods as an item has events on average, 1024 at most."""
    num_periods = min(max(len(times) // max(num_items, 1), 1), 1024)
    some = np.sort(times[:: max(len(times) // 100_000, 1)])
    starts = some[np.arange(num_periods) * len(some) // num_periods] if len(some) else []
    return np.unique(np.concatenate([[0], starts])).astype(np.int32)


def frozen_array(values: Any, dtype: DTypeLike) -> np.ndarray:
    """Return ``values`` as a read-only row of one type, so that each loop is compiled once."""
    array = np.ascontiguousarray(values, dtype).view()
    array.flags.writeable = False
    return array


def checked(
    values: Any, dtype: DTypeLike, name: str, num_rows: int, stop: int | None = None
) -> np.ndarray:
    """Return a frozen (R,) column; a compiled loop checks no bounds, so its caller must.

    Raises:
        ValueError: It has another length, or a value outside -1 .. ``stop`` - 1.
    """
    array = frozen_array(values, dtype)
    if array.shape != (num_rows,):
        raise ValueError(f"{name} must have one value a row, {num_rows} in all; got {array.shape}")
    if stop is not None and num_rows and (array.min() < -1 or array.max() >= stop):
        raise ValueError(
            f"{name} must lie in -1 .. {stop - 1}; got {array.min()} .. {array.max()}. "
            "Was the graph built from another data set?"
        )
    return array


def _check_log(train: InteractionLog, users: np.ndarray, items: np.ndarray, num_items: int) -> None:
    if len(items) == 0:
        return
    if items.min() < 0 or items.max() >= num_items:
        raise ValueError(
            f"item_index must lie in 0 .. {num_items - 1}; got {items.min()} .. {items.max()}"
        )
    if len(items) > _MOST:
        raise ValueError(f"a graph must have fewer than {_MOST:,} events; got {len(items):,}")
    steps = np.diff(users)
    if users[0] < 0 or users[-1] >= train.num_users or (steps < 0).any():
        raise ValueError(
            f"the log must be sorted by user, with users in 0 .. {train.num_users - 1}; "
            f"got {users.min()} .. {users.max()}"
        )
    if train.timestamp is None:
        return
    if ((np.diff(train.timestamp) < 0) & (steps == 0)).any():
        raise ValueError("the log must be sorted by time inside each user; sort it and try again")
    first, last = int(train.timestamp.min()), int(train.timestamp.max())
    if last - first >= _MOST:
        raise ValueError(
            f"events must lie within {_MOST:,} seconds (68 years); got {first} .. {last}. "
            "Are some of the times in milliseconds?"
        )

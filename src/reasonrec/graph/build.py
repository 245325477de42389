"""The training log as a graph of users and items, walkable both ways and aware of time."""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from reasonrec.data.dataset import InteractionLog
from reasonrec.graph import kernels

Arrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class InteractionGraph:
    """E training events, reachable by user (in time order) and by item (in time order).

    An event is named by its row in the training log. 8 bytes an event beside the log itself.
    """

    num_users: int
    num_items: int
    user_offsets: np.ndarray
    """(U + 1,), int64. The events of user u are ``[user_offsets[u], user_offsets[u + 1])``."""
    event_item: np.ndarray
    """(E,), int32."""
    event_time: np.ndarray
    """(E,), int64, UTC seconds; all 0 if the log has no times."""
    event_user: np.ndarray
    """(E,), int32."""
    item_offsets: np.ndarray
    """(N + 1,), int64. Item i has ``occurrence_event[item_offsets[i]:item_offsets[i + 1]]``."""
    occurrence_event: np.ndarray
    """(E,), int64. Events grouped by item; inside an item by time, ties by event."""
    has_times: bool

    @classmethod
    def build(cls, train: InteractionLog, num_items: int) -> "InteractionGraph":
        """Return the graph of a training log, and of nothing else.

        Raises:
            ValueError: An item lies outside the catalogue, or the log is not sorted by user, then
                time.
        """
        users = frozen_array(train.user_index, np.int32)
        items = frozen_array(train.item_index, np.int32)
        _check_log(train, users, items, num_items)
        has_times = train.timestamp is not None
        times = (
            np.zeros(len(items), np.int64)
            if train.timestamp is None
            else frozen_array(train.timestamp, np.int64)
        )
        order = np.argsort(times, kind="stable") if has_times else np.arange(len(items))
        num_events = np.bincount(items, minlength=num_items)
        item_offsets = np.concatenate([[0], np.cumsum(num_events)]).astype(np.int64)
        return cls(
            num_users=train.num_users,
            num_items=num_items,
            user_offsets=frozen_array(train.user_offsets, np.int64),
            event_item=items,
            event_time=frozen_array(times, np.int64),
            event_user=users,
            item_offsets=frozen_array(item_offsets, np.int64),
            occurrence_event=frozen_array(
                kernels.events_by_item(
                    items, frozen_array(order, np.int64), frozen_array(item_offsets, np.int64)
                ),
                np.int64,
            ),
            has_times=has_times,
        )

    def __len__(self) -> int:
        return len(self.event_item)

    @property
    def arrays(self) -> Arrays:
        """The arrays that every compiled loop takes first, in their order."""
        return (
            self.user_offsets, self.event_item, self.event_time, self.event_user,
            self.item_offsets, self.occurrence_event,
        )  # fmt: skip

    def asked_at(self, asked_at: np.ndarray | None, num_rows: int) -> np.ndarray:
        """Return the time before which evidence must lie, "never ends" where times are unknown."""
        if asked_at is None or not self.has_times:
            return frozen_array(np.full(num_rows, np.iinfo(np.int64).max), np.int64)
        return checked(asked_at, np.int64, "asked_at", num_rows)


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
    steps = np.diff(users)
    if users[0] < 0 or users[-1] >= train.num_users or (steps < 0).any():
        raise ValueError(
            f"the log must be sorted by user, with users in 0 .. {train.num_users - 1}; "
            f"got {users.min()} .. {users.max()}"
        )
    if train.timestamp is not None and (np.diff(train.timestamp)[steps == 0] < 0).any():
        raise ValueError("the log must be sorted by time inside each user; sort it and try again")

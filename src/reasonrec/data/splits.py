"""Sound events -> what may be learned from, and the questions of validation and test.

Order inside a user: time, then ``position`` where the log has one, then the row of the file.
"""

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from reasonrec.errors import DataError


@dataclass(frozen=True)
class Events:
    """E events sorted by user, then time, then position, then file row."""

    user: np.ndarray
    """(E,), int32, 0..U-1."""
    item: np.ndarray
    """(E,), int32, row of the catalogue."""
    num_users: int
    rating: np.ndarray | None = None
    """(E,), float32, NaN where unknown."""
    micros: np.ndarray | None = None
    """(E,), int64, microseconds since 1970."""
    is_marked: np.ndarray | None = None
    """(E,), bool, ``part = train``; None if the log has no parts."""

    def __len__(self) -> int:
        return len(self.item)

    @property
    def offsets(self) -> np.ndarray:
        """(U + 1,), int64. The events of user u are ``[offsets[u], offsets[u + 1])``."""
        return np.searchsorted(self.user, np.arange(self.num_users + 1)).astype(np.int64)

    def take(self, rows: np.ndarray) -> "Events":
        """Return the named events (a mask or sorted indices)."""
        return replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            rating=None if self.rating is None else self.rating[rows],
            micros=None if self.micros is None else self.micros[rows],
            is_marked=None if self.is_marked is None else self.is_marked[rows],
        )


@dataclass(frozen=True)
class Questions:
    """Q queries over a shared list of history events."""

    user: np.ndarray
    target: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    micros: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: np.ndarray) -> "Questions":
        """Return the named queries."""
        return Questions(
            self.user[rows], self.target[rows], self.start[rows], self.stop[rows],
            None if self.micros is None else self.micros[rows],
        )  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Training events, queries, and the events that their histories point into."""

    train: Events
    histories: Events
    valid: Questions
    test: Questions
    notes: tuple[str, ...] = ()


def sort_events(events: pl.DataFrame, user_ids: pl.Series) -> Events:
    """Return the events of a clean log in the order that every split relies on.

    Args:
        events: In file order: ``user_id``, ``item``, and where known ``rating``, ``micros``,
            ``position``, ``part``.
        user_ids: All users; their place is the ``user_index``.
    """
    codes = events.select("user_id").join(
        pl.DataFrame({"user_id": user_ids}).with_columns(
            user=pl.int_range(pl.len(), dtype=pl.Int32)
        ),
        on="user_id", how="left", maintain_order="left",
    )["user"].to_numpy()  # fmt: skip
    keys = [events[name].to_numpy() for name in ("position", "micros") if name in events.columns]
    order = np.lexsort((*keys, codes))  # stable, so the row of the file decides last
    return Events(
        user=codes[order].astype(np.int32),
        item=events["item"].to_numpy()[order],
        num_users=len(user_ids),
        rating=_ratings(events, order),
        micros=events["micros"].to_numpy()[order] if "micros" in events.columns else None,
        is_marked=_is_marked(events, order),
    )


def leave_one_out(events: Events) -> Split:
    """Return the split in which each user's last event is the test and the one before validation.

    Users with fewer than three events stay in training only.
    """
    offsets = events.offsets
    first, stop = offsets[:-1], offsets[1:]
    users = np.flatnonzero(stop - first >= 3)
    first, stop = first[users], stop[users]
    is_train = np.ones(len(events), bool)
    is_train[stop - 1] = is_train[stop - 2] = False
    few = int(((offsets[1:] - offsets[:-1]) > 0).sum()) - len(users)
    notes = (f"{few:,} users with fewer than 3 events are in training only",) if few else ()
    if not len(users):
        raise DataError(
            "leave-one-out needs a user with at least 3 events; there is none. "
            "Use --split global-time (in a demo --prepare.split), or another log"
        )
    return Split(
        train=events.take(is_train),
        histories=events,
        valid=_ask(events, stop - 2, first),
        test=_ask(events, stop - 1, first),
        notes=notes,
    )


def global_time(events: Events, *, valid_frac: float, test_frac: float) -> Split:
    """Return the split at two moments, the same for all users; each later event is one query.

    Training is strictly older than validation, validation strictly older than test: events that
    share the moment of a cut go to the later part. A history is all that the user did before the
    event, in the order of the log, whichever part that fell into.
    """
    if events.micros is None:
        raise DataError(
            "global-time needs timestamps; this log has none. Use --split leave-one-out"
        )
    times = np.sort(events.micros)
    cut_test = times[min(round(len(times) * (1 - test_frac)), len(times) - 1)]
    cut_valid = times[min(round(len(times) * (1 - test_frac - valid_frac)), len(times) - 1)]
    if not times[0] < cut_valid < cut_test:
        raise DataError(
            "global-time needs different times on both sides of its two cuts; too many of the "
            f"{len(times):,} events share one time. Use --split leave-one-out"
        )
    asked_valid = np.flatnonzero((events.micros >= cut_valid) & (events.micros < cut_test))
    asked_test = np.flatnonzero(events.micros >= cut_test)
    first = events.offsets[:-1]
    return Split(
        train=events.take(events.micros < cut_valid),
        histories=events,
        valid=_ask(events, asked_valid, first[events.user[asked_valid]]),
        test=_ask(events, asked_test, first[events.user[asked_test]]),
        notes=(f"cut at {_moment(cut_valid)} and {_moment(cut_test)}",),
    )


def part_by_history(questions: Questions, min_history: int) -> tuple[Questions, Questions]:
    """Return the queries whose history has at least ``min_history`` events, and the others."""
    is_long = questions.stop - questions.start >= min_history
    return questions.take(np.flatnonzero(is_long)), questions.take(np.flatnonzero(~is_long))


def _ask(events: Events, rows: np.ndarray, first: np.ndarray) -> Questions:
    return Questions(
        user=events.user[rows],
        target=events.item[rows],
        start=first.astype(np.int64),
        stop=rows.astype(np.int64),
        micros=None if events.micros is None else events.micros[rows],
    )


def _ratings(events: pl.DataFrame, order: np.ndarray) -> np.ndarray | None:
    if "rating" not in events.columns:
        return None
    return events["rating"].cast(pl.Float32).fill_null(float("nan")).to_numpy()[order]


def _is_marked(events: pl.DataFrame, order: np.ndarray) -> np.ndarray | None:
    if "part" not in events.columns:
        return None
    return (events["part"] == "train").fill_null(False).to_numpy()[order]


def _moment(micros: int) -> str:
    return str(np.datetime64(int(micros), "us").astype("datetime64[s]")) + "Z"

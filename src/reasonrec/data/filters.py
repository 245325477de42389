"""Rows that are sound but not wanted: each filter is asked for by name, and counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import cast

import numpy as np
import polars as pl

from reasonrec.data.timestamps import SECOND_US
from reasonrec.errors import DataError
from reasonrec.rng import stream


class EmptyLogError(DataError):
    """No event passed a filter."""


@dataclass(frozen=True)
class Step:
    """What one filter did: rows, users and items of the log before and after it."""

    name: str
    rows_before: int
    users_before: int
    items_before: int
    rows_after: int
    users_after: int
    items_after: int


@dataclass(frozen=True)
class WantedItems:
    """The items that have what is asked of them."""

    name: str
    """What that is, for people: ``items with price and brand``."""
    is_wanted: np.ndarray
    """(N,), bool."""


def items_with(items: pl.DataFrame, columns: Sequence[str]) -> WantedItems:
    """Return which items have a value in each of the columns: no blank text and no empty list.

    Raises:
        DataError: The items have no such column.

    Source: the public code of R²ec, which drops items without a price.
    """
    for name in columns:
        if name not in items.columns:
            raise DataError(
                f"require_columns must name columns that the items have: {', '.join(items.columns)}"
                f"; got {name!r}"
            )
    is_wanted = np.ones(items.height, bool)
    for name in columns:
        is_wanted &= _has_value(items[name]).to_numpy()
    return WantedItems(f"items with {' and '.join(columns)}", is_wanted)


def _has_value(values: pl.Series) -> pl.Series:
    is_there = values.is_not_null()
    if values.dtype == pl.String:
        is_there &= values.str.strip_chars() != ""
    elif values.dtype.is_float():
        is_there &= values.is_not_nan()
    elif isinstance(values.dtype, pl.List):
        is_there &= values.list.len() > 0
    return is_there.fill_null(False)


def apply_filters(
    events: pl.DataFrame,
    *,
    wanted: WantedItems | None,
    since: date | None,
    until: date | None,
    min_rating: float | None,
    sample_users: int | None,
    k_core: int | None,
    seed: int,
) -> tuple[pl.DataFrame, tuple[Step, ...]]:
    """Return the events that pass, and a record of each filter that was asked for, in this order.

    Args:
        events: ``user_id``, ``item``, and for the filters that need them ``rating``, ``micros``.
        wanted: The items whose events are kept; None keeps those of all.
        since: First day kept, UTC.
        until: Last day kept, UTC.
        k_core: Least number of events of each user and each item, both at once.

    Raises:
        DataError: A filter needs a column that the log lacks, or nothing is left.
    """
    steps: list[Step] = []
    if wanted is not None:
        kept = events.filter(pl.Series(wanted.is_wanted[events["item"].to_numpy()]))
        events = _step(steps, wanted.name, events, kept)
    for day, name in ((since, "since"), (until, "until")):
        if day is not None:
            _need(events, "micros", name)
            start = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
            edge = int(start) * SECOND_US
            is_kept = (
                pl.col("micros") >= edge
                if name == "since"
                else pl.col("micros") < edge + 86_400 * SECOND_US
            )
            events = _step(steps, f"{name} {day}", events, events.filter(is_kept))
    if min_rating is not None:
        _need(events, "rating", "min_rating")
        kept = events.filter(pl.col("rating") >= min_rating)
        events = _step(steps, f"rating at least {min_rating:g}", events, kept)
    if sample_users is not None:
        users = events["user_id"].unique().sort()
        if sample_users < len(users):
            chosen = stream(seed, "prepare-users").permutation(len(users))[:sample_users]
            kept = events.filter(pl.col("user_id").is_in(users.gather(np.sort(chosen)).implode()))
        else:
            kept = events
        events = _step(steps, f"sample of {sample_users:,} users", events, kept)
    if k_core is not None:
        kept = events.filter(pl.Series(_core_mask(events, k_core)))
        events = _step(steps, f"{k_core}-core", events, kept)
    return events, tuple(steps)


def start_of_window(
    events: pl.DataFrame,
    since: date,
    *,
    least_items: int,
    wanted: WantedItems | None,
    until: date | None,
    min_rating: float | None,
    sample_users: int | None,
    k_core: int | None,
    seed: int,
) -> date:
    """Return ``since``, moved back by the fewest whole months that leave ``least_items`` items.

    Items are counted after all filters.

    Raises:
        DataError: The log has no times, or too few items from its beginning on.

    Source: R²ec, appendix B, which asks for 10,000.
    """
    _need(events, "micros", "least_items")
    first = cast(datetime, pl.Series([events["micros"].min()]).cast(pl.Datetime("us"))[0]).date()
    months = 0
    while True:
        day = cast(date, pl.Series([since]).dt.offset_by(f"-{months}mo")[0])
        try:
            kept, _ = apply_filters(
                events, wanted=wanted, since=day, until=until, min_rating=min_rating,
                sample_users=sample_users, k_core=k_core, seed=seed,
            )  # fmt: skip
            num_items = kept["item"].n_unique()
        except EmptyLogError:
            num_items = 0
        if num_items >= least_items:
            return day
        if day <= first:
            raise DataError(
                f"least_items needs {least_items:,} items with events that pass every filter; the "
                f"whole log, from {first} on, has {num_items:,}. Ask for fewer"
            )
        months += 1


def _core_mask(events: pl.DataFrame, k: int) -> np.ndarray:
    user = events["user_id"].rank("dense").to_numpy() - 1
    item = events["item"].to_numpy()
    alive = np.ones(events.height, bool)
    while True:
        user_counts = np.bincount(user[alive], minlength=int(user.max(initial=0)) + 1)
        item_counts = np.bincount(item[alive], minlength=int(item.max(initial=0)) + 1)
        kept = alive & (user_counts[user] >= k) & (item_counts[item] >= k)
        if kept.sum() == alive.sum():
            return kept
        alive = kept


def _step(steps: list[Step], name: str, before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    steps.append(Step(name, *_counts(before), *_counts(after)))
    if after.is_empty():
        raise EmptyLogError(
            f"some events must pass every filter; none of {before.height:,} passed {name}"
        )
    return after


def _counts(events: pl.DataFrame) -> tuple[int, int, int]:
    return events.height, events["user_id"].n_unique(), events["item"].n_unique()


def _need(events: pl.DataFrame, column: str, option: str) -> None:
    if column not in events.columns:
        what = {"micros": "timestamps", "rating": "ratings"}[column]
        raise DataError(f"{option} needs {what}; this log has none. Leave {option} out")

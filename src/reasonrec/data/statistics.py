"""Counts for people: what came in, what was done to it, what a table about it has to say."""

from typing import Any

import numpy as np
import polars as pl

from reasonrec.data.splits import Events, Questions, Split
from reasonrec.data.timestamps import SECOND_US
from reasonrec.data.validation import CleanItems, CleanLog


def describe_log(events: Events, num_rows: int) -> dict[str, Any]:
    """Return the counts of the log after validation and filters."""
    lengths = np.diff(events.offsets)
    ties = share_of_ties(events)
    return {
        "rows": num_rows,
        "events": len(events),
        "users": int((lengths > 0).sum()),
        "items": _count_distinct(events.item),
        "events_per_user_median": float(np.median(lengths[lengths > 0])),
        "events_per_user_max": int(lengths.max()),
        "has_rating": events.rating is not None,
        "has_timestamp": events.micros is not None,
        "first_time": None if events.micros is None else moment(events.micros.min()),
        "last_time": None if events.micros is None else moment(events.micros.max()),
        "rating_min": None if events.rating is None else _rounded(np.nanmin(events.rating)),
        "rating_max": None if events.rating is None else _rounded(np.nanmax(events.rating)),
        "frac_tied_in_time": None if ties is None else round(ties, 4),
        "frac_repeats": round(share_of_repeats(events), 4),
    }


def describe_items(items: CleanItems, num_items: int, num_unseen: int) -> dict[str, Any]:
    """Return the counts of the catalogue and of what was cleaned in its texts."""
    described = items.table["description"].is_not_null().mean()
    return {
        "rows": items.num_rows,
        "items": num_items,
        "never_seen": num_unseen,
        "frac_described": _rounded(described),
        "cleaned": items.cleaned,
    }


def describe_train(train: Events) -> dict[str, Any]:
    """Return the counts of the training events."""
    return {
        "events": len(train),
        "users": _count_distinct(train.user),
        "items": _count_distinct(train.item),
    }


def describe_queries(asked: Questions, kept: Questions, split: Split) -> dict[str, Any]:
    """Return the counts of one part's queries, and what makes some of them hard or impossible.

    Args:
        asked: The queries of the split.
        kept: Those of them with a long enough history.
    """
    lengths = kept.stop - kept.start
    trained_users = np.zeros(split.train.num_users, bool)
    trained_users[split.train.user] = True
    return {
        "queries": len(kept),
        "left_out_short_history": len(asked) - len(kept),
        "users": _count_distinct(kept.user),
        "history_median": float(np.median(lengths)) if len(kept) else None,
        "empty_history": int((lengths == 0).sum()),
        "target_never_trained": int((~np.isin(kept.target, split.train.item)).sum()),
        "user_never_trained": int((~trained_users[kept.user]).sum()),
        "target_in_history": count_repeated_targets(kept, split.histories),
    }


def notes(sound: CleanLog, log: dict[str, Any]) -> list[str]:
    """Return what a reader should be told about a log that was described, in sentences."""
    said = []
    units = {unit: count for unit, count in sound.units.items() if unit != "seconds"}
    if units:
        counts = ", ".join(f"{count:,} {unit}" for unit, count in sound.units.items())
        mixed = "mixed units of time in one file" if len(sound.units) > 1 else "times"
        said.append(f"{mixed} were converted to UTC seconds: {counts}")
    ties, repeats = log["frac_tied_in_time"], log["frac_repeats"]
    if ties is None:
        column = "position" if "position" in sound.events.columns else "the order of the file"
        said.append(f"the log has no times: the order inside a user is that of {column}")
    elif ties > 0:
        rule = "position" if "position" in sound.events.columns else "the order of the file"
        said.append(f"{ties:.1%} of the events share the time of the one before; ties keep {rule}")
    if repeats > 0:
        said.append(f"{repeats:.1%} of the events repeat an item that the user had already taken")
    return said


def share_of_ties(events: Events) -> float | None:
    """Return the share of events with the time of the same user's previous event; None untimed."""
    if events.micros is None or not len(events):
        return None
    same = (events.user[1:] == events.user[:-1]) & (events.micros[1:] == events.micros[:-1])
    return float(same.sum()) / len(events)


def share_of_repeats(events: Events) -> float:
    """Return the share of events whose item the same user had already taken."""
    pairs = events.user.astype(np.int64) * (int(events.item.max(initial=0)) + 1) + events.item
    return 1 - _count_distinct(pairs) / max(len(events), 1)


def count_repeated_targets(questions: Questions, histories: Events) -> int:
    """Return the number of queries whose target is in their history already."""
    lengths = questions.stop - questions.start
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    rows = np.repeat(questions.start - starts[:-1], lengths) + np.arange(starts[-1])
    hit = histories.item[rows] == np.repeat(questions.target, lengths)
    owner = np.repeat(np.arange(len(questions)), lengths)
    return _count_distinct(owner[hit])


def moment(micros: int) -> str:
    """Return a time as people write it, in UTC."""
    return str(np.datetime64(int(micros) // SECOND_US, "s")) + "Z"


def _count_distinct(values: np.ndarray) -> int:
    return pl.Series(values).n_unique()  # several times quicker than numpy's


def _rounded(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 4)

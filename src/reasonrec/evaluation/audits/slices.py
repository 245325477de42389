"""Results of an evaluation on the queries that memory cannot answer: cold, rare and new.

And on those that the default mask gives away, whose target repeats an item of the history.
"""

from datetime import UTC, date, datetime

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.audits.log import taken_later
from reasonrec.evaluation.audits.records import Audit, SliceRow, judged, share
from reasonrec.evaluation.protocol import full_ranks
from reasonrec.evaluation.significance import bootstrap_intervals, resampling_users
from reasonrec.metrics import metric_values
from reasonrec.rng import stream

METRICS = ("hit@10", "ndcg@10")
RARE = 5
"""Items with fewer training events than this are rare."""


def first_seen(dataset: Dataset) -> np.ndarray | None:
    """Return the time of each item's first event in any part; the largest int64 if never. (N,)."""
    train, test, valid = dataset.train, dataset.test, dataset.valid
    first = np.full(dataset.num_items, np.iinfo(np.int64).max)
    if train.timestamp is None:
        return None
    np.minimum.at(first, train.item_index, train.timestamp)
    for queries in (valid, test):
        if queries.timestamp is not None and queries.log_timestamp is not None:
            np.minimum.at(first, queries.target, queries.timestamp)
            np.minimum.at(first, queries.log_item_index, queries.log_timestamp)
    return first


def cutoff(dataset: Dataset, asked: date | None) -> tuple[int, str] | None:
    """Return the UTC second from which an item counts as new, and the day in words; None untimed.

    Without a date it is the time at which nine tenths of the training events have happened.
    """
    if dataset.train.timestamp is None or not len(dataset.train):
        return None
    if asked is not None:
        moment = datetime(asked.year, asked.month, asked.day, tzinfo=UTC)
        return int(moment.timestamp()), asked.isoformat()
    second = int(np.quantile(dataset.train.timestamp, 0.9, method="lower"))
    return second, datetime.fromtimestamp(second, UTC).date().isoformat()


def slices_of(dataset: Dataset, *, first_seen_after: date | None) -> dict[str, np.ndarray]:
    """Return which test queries belong to each slice, by name. (Q,), bool."""
    test, train = dataset.test, dataset.train
    seen = np.bincount(train.item_index, minlength=dataset.num_items)[test.target]
    events = np.bincount(train.user_index, minlength=dataset.num_users)
    is_cold_user = (test.user_index < 0) | (events[test.user_index] == 0)
    found = {
        "all": np.ones(len(test), bool),
        "cold items": seen == 0,
        f"rare items (1 to {RARE - 1} events)": (seen > 0) & (seen < RARE),
        f"known items ({RARE} events or more)": seen >= RARE,
        "cold users": is_cold_user,
        "known users": ~is_cold_user,
    }
    repeats = test.is_repeat
    if repeats.any():
        found["taken before"] = repeats
        found["not taken before"] = ~repeats
    later = taken_later(test)
    if later is not None:
        found["taken at the time of the last event"] = ~later
        found["taken later"] = later
    first, moment = first_seen(dataset), cutoff(dataset, first_seen_after)
    if first is not None and moment is not None:
        is_new = first[test.target] >= moment[0]
        found[f"items first seen from {moment[1]}"] = is_new
        found[f"items first seen before {moment[1]}"] = ~is_new
    return found


def slice_audits(slices: dict[str, np.ndarray]) -> list[Audit]:
    """Return the share of the test queries in the slices that training says little about."""
    meanings = {
        "cold items": "Share of the test targets that training never saw: no count can find them.",
        "rare items": "Share of the test targets with so few training events.",
        "cold users": "Share of the test queries of users without a training event.",
        "items first seen from": "Share of the test targets that are new: a language model that "
        "was trained before cannot know them.",
    }
    rows = []
    for name, members in slices.items():
        for start, meaning in meanings.items():
            if name.startswith(start):
                word = name.partition(" (")[0].replace(" ", "-")
                rows.append(judged(word, share(members), meaning, n=len(members), warn_above=0.2))
    return rows


def slice_rows(per_query: pl.DataFrame, slices: dict[str, np.ndarray]) -> list[SliceRow]:
    """Return every method's metrics on every slice that has queries, over the catalogue.

    Args:
        per_query: Of an evaluation on the test part.
    """
    rows = []
    full = full_ranks(per_query)
    for (method, seed), ranks in full.group_by("method", "seed", maintain_order=True):
        query = ranks["query"].to_numpy()
        rank, users = ranks["rank"].to_numpy(), resampling_users(ranks["user_index"].to_numpy())
        values = np.stack([metric_values(metric, rank) for metric in METRICS], axis=1)
        for name, members in slices.items():
            inside = members[query]
            if not inside.any():
                continue
            intervals = bootstrap_intervals(
                values[inside], rng=stream(0, "audit-slices"), users=users[inside]
            )
            rows += [
                SliceRow(
                    str(method), int(str(seed)), name, metric, one.mean,
                    float(one.low or 0.0), float(one.high or 0.0), int(inside.sum()),
                )
                for metric, one in zip(METRICS, intervals)
            ]  # fmt: skip
    return rows

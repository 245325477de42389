"""The same numbers for parts of the queries: long and short histories, rare and popular items."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.joined import Values
from reasonrec.evaluation.significance import Interval, bootstrap_intervals
from reasonrec.rng import stream


@dataclass(frozen=True)
class Slice:
    """The queries of one part, and what every method earned on them."""

    label: str
    num_queries: int
    means: tuple[Interval, ...]
    """One for each method, with a 95 % bootstrap interval over users."""


@dataclass(frozen=True)
class Slicing:
    """All queries, cut one way; every query is in one slice."""

    title: str
    note: str
    slices: tuple[Slice, ...]


def slicings(
    values: Values, dataset: Dataset | None, *, num_resamples: int = 1000
) -> tuple[Slicing, ...]:
    """Return the queries cut by history length, and by what training saw of item and user.

    Cold items and cold users, of which training saw no event, are slices of their own; the rest is
    cut into thirds. Counts are those of the training events alone. Without the data set only
    history length is known. A cut that leaves everything in one slice is left out.
    """
    lengths = values.queries["history_length"].to_numpy()
    found = [
        _slicing(
            "History length", "Events known when the question is asked.",
            "no history", lengths, values, num_resamples,
        )
    ]  # fmt: skip
    if dataset is not None:
        train, users = dataset.train, values.queries["user_index"].to_numpy()
        seen = np.bincount(train.item_index, minlength=dataset.num_items)
        found.append(
            _slicing(
                "Popularity of the target", "Training events of the item that was taken next.",
                "cold: never in training", seen[values.queries["target"].to_numpy()],
                values, num_resamples,
            )
        )  # fmt: skip
        known = np.bincount(train.user_index, minlength=dataset.num_users)
        events = np.where(users < 0, 0, known[users])
        found.append(
            _slicing(
                "Users", "Training events of the user.", "cold: never in training",
                np.minimum(events, 1), values, num_resamples, labels=("", "known from training"),
            )
        )  # fmt: skip
    return tuple(one for one in found if len(one.slices) > 1)


def thirds(measure: np.ndarray) -> list[tuple[int, int]]:
    """Return the (lowest, highest) of up to three parts of about as many queries."""
    cuts = np.unique(np.quantile(measure, [1 / 3, 2 / 3], method="lower"))
    bounds = np.concatenate([[measure.min() - 1], cuts, [measure.max()]])
    found = []
    for below, top in pairwise(bounds):
        inside = measure[(measure > below) & (measure <= top)]
        if len(inside):
            found.append((int(inside.min()), int(inside.max())))
    return found


def _slicing(
    title: str,
    note: str,
    zero: str,
    measure: np.ndarray,
    values: Values,
    num_resamples: int,
    *,
    labels: Sequence[str] = (),
) -> Slicing:
    """Return the slices of one measure: zero alone, then thirds of the rest."""
    positive = measure[measure > 0]
    bounds = [(0, 0)] if len(positive) < len(measure) else []
    bounds += thirds(positive) if len(positive) else []
    slices = []
    for low, high in bounds:
        inside = (measure >= low) & (measure <= high)
        label = f"{low:,} to {high:,} events" if low < high else f"{low:,} events"
        means = bootstrap_intervals(
            values.table[inside],
            rng=stream(0, "slices"),
            users=values.users[inside],
            num_resamples=num_resamples,
        )
        if low == high == 1:
            label = "1 event"
        if low == 0:
            label = zero
        elif labels:
            label = labels[low]
        slices.append(Slice(label, int(inside.sum()), tuple(means)))
    return Slicing(title, note, tuple(slices))

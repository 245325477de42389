"""What goes with a whole history: a simple baseline that thoughts, or a blend, may ask."""

from dataclasses import replace

import numpy as np

from reasonrec.baselines.contract import Recommender
from reasonrec.baselines.floor import fit_floor
from reasonrec.data.dataset import Dataset
from reasonrec.traces.config import ThoughtConfig, Together

MAX_EASE_ITEMS = 10_000
"""Above it, ``auto`` leaves EASE, whose time is that of the cube of the catalogue and whose memory
that of its square: it is fitted anew wherever a model that thinks is loaded."""


def fit_together(
    dataset: Dataset, thought: ThoughtConfig, *, unknown: np.ndarray | None = None
) -> Recommender | None:
    """Return the fitted model that ``thought.together`` names, None if thoughts do not ask it.

    Args:
        unknown: Positions of the training log that it must not learn from: those that thoughts are
            ranked for while they are learned, whose own pairs it would otherwise remember.
    """
    if thought.together is None:
        return None
    if unknown is not None and len(unknown):
        dataset = replace(dataset, train=dataset.train.without(unknown))
    return fit_named(thought.together, dataset, recency_power=thought.together_power)


def fit_named(name: Together, dataset: Dataset, *, recency_power: float) -> Recommender:
    """Return the baseline of that name, at its defaults, for which older events count less.

    Args:
        recency_power: The s-th last event of a history counts ``s ** -recency_power``.
    """
    name = named_for(name, dataset.num_items)
    return fit_floor(name, dataset, seed=0, recency_power=recency_power)


def named_for(name: Together, num_items: int) -> Together:
    """Return the baseline that a catalogue of this size is asked for: ``auto`` leaves it open."""
    if name != "auto":
        return name
    return "ease" if num_items <= MAX_EASE_ITEMS else "item-knn-bm25"

"""What the baselines share: who took what, a history as one sparse row of weights, a prior."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scipy.sparse import csr_array

from reasonrec.data.dataset import InteractionLog
from reasonrec.records import Histories, Scored


def taken_items(train: InteractionLog, num_items: int) -> csr_array:
    """Return 1 where a user took an item, however often. (U, N), float32, sorted by item."""
    pairs = np.unique(train.user_index.astype(np.int64) * num_items + train.item_index)
    offsets = np.searchsorted(pairs, np.arange(train.num_users + 1) * num_items)
    return csr_array(
        (np.ones(len(pairs), np.float32), (pairs % num_items).astype(np.int32), offsets),
        shape=(train.num_users, num_items),
    )


def weigh_history(
    histories: Histories,
    num_items: int,
    *,
    recency_power: float,
    max_events: int,
    add_repeats: bool = True,
) -> csr_array:
    """Return the weight of every history item, (B, N), float32, sparse.

    An event that lies ``s`` events back (the last one: 1) weighs ``s ** -recency_power``; events
    further back than ``max_events`` weigh nothing. Rows do not touch each other.

    Args:
        add_repeats: An item taken several times weighs the sum of its events. If not, it weighs
            what its latest event does, as in models of who took what.
    """
    lengths = histories.lengths
    rows = np.repeat(np.arange(len(histories)), lengths)
    steps_back = histories.offsets[1:][rows] - np.arange(len(histories.item_index))
    recent = steps_back <= max_events
    if not add_repeats:
        keys = rows * num_items + histories.item_index
        latest = np.zeros(len(keys), bool)
        latest[len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]] = True
        recent &= latest
    weights = steps_back[recent].astype(np.float32) ** np.float32(-recency_power)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[recent], minlength=len(histories)))])
    return csr_array(
        (weights, histories.item_index[recent], offsets), shape=(len(histories), num_items)
    )


def count_items(train: InteractionLog, num_items: int) -> np.ndarray:
    """Return how often each item occurs in the training log. (N,), float32."""
    return np.bincount(train.item_index, minlength=num_items).astype(np.float32)


def popularity_prior(train: InteractionLog, num_items: int) -> np.ndarray:
    """Return the counts scaled so that the most popular item has 1. (N,), float32."""
    counts = count_items(train, num_items)
    return counts / np.float32(max(counts.max(initial=0.0), 1.0))


@contextmanager
def finite_factors(settings: str) -> Iterator[None]:
    """Turn a factorisation of ``implicit`` that left the finite numbers into a ``ValueError``."""
    from implicit.recommender_base import ModelFitError

    try:
        yield
    except ModelFitError as error:
        raise ValueError(
            f"the factors must stay finite; with {settings} they did not ({error}). Try a smaller "
            "step or a larger regularisation"
        ) from None


def answer_by_popularity(scores: np.ndarray, factors_B_D: np.ndarray, prior: np.ndarray) -> Scored:
    """Return the scores, with the prior in the rows whose factor is 0: nothing is known of them.

    Args:
        scores: (B, N), float32; written to.
        prior: (N,), float32.
    """
    scores[np.count_nonzero(factors_B_D, axis=1) == 0] = prior
    return Scored(scores)

"""What every neighbourhood method shares: a history as one sparse row of weights, and a prior."""

import numpy as np
from scipy.sparse import csr_array

from reasonrec.data.dataset import InteractionLog
from reasonrec.records import Histories


def weigh_history(
    histories: Histories, num_items: int, *, recency_power: float, max_events: int
) -> csr_array:
    """Return the weight of every history item, (B, N), float32, sparse.

    An event that lies ``s`` events back (the last one: 1) weighs ``s ** -recency_power``; events
    further back than ``max_events`` weigh nothing. Repeats add up. Rows do not touch each other.
    """
    lengths = histories.lengths
    rows = np.repeat(np.arange(len(histories)), lengths)
    steps_back = histories.offsets[1:][rows] - np.arange(len(histories.item_index))
    recent = steps_back <= max_events
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

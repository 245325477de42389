"""How far to trust looked-up evidence, read off validation once training is over.

Training fits the share of evidence by log-likelihood, which pays for rare finds far down the list;
what is asked of a ranking is its order. One factor on the share is chosen by NDCG, like any other
setting that is chosen on validation.
"""

from typing import Any, Protocol

import numpy as np
import torch

from reasonrec.metrics import ndcg
from reasonrec.models.ranking import rank_targets
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.records import Histories

FACTORS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


class RanksWithEvidence(Protocol):
    """A recommender that gathers evidence, in a thought or without one, and then ranks with it."""

    @property
    def model(self) -> ReasoningRecommender: ...

    @property
    def batch_size(self) -> int: ...

    def write(self, histories: Histories, /) -> Any: ...

    def rank_with(self, written: Any, /) -> np.ndarray: ...


@torch.no_grad()
def calibrate_share(
    recommender: RanksWithEvidence, histories: Histories, target: np.ndarray
) -> float:
    """Scale the share of the model's evidence pointer, in place, and return the factor chosen.

    Each of `FACTORS` is tried on the same greedy thoughts; the best NDCG without cut-off wins, the
    smaller factor where two are equal.

    Args:
        histories: Validation queries, B of them.
        target: (B,), what was taken next.
    """
    pointer = recommender.model.pointer
    if pointer is None or not len(target):
        return 1.0
    learned = pointer.amount.clamp(0, 0.95).clone()
    values = []
    rows = range(0, len(target), recommender.batch_size)
    parts = [np.arange(i, min(i + recommender.batch_size, len(target))) for i in rows]
    thoughts = [recommender.write(histories.take(part)) for part in parts]
    for factor in FACTORS:
        pointer.amount.copy_((factor * learned).clamp(max=0.95))
        ranks = [
            rank_targets(
                recommender.rank_with(thought), target[part],
                histories=histories.take(part), mask="history-except-target",
            )
            for part, thought in zip(parts, thoughts, strict=True)
        ]  # fmt: skip
        values.append(float(ndcg(np.concatenate(ranks), recommender.model.num_items).mean()))
    chosen = FACTORS[int(np.argmax(values))]
    pointer.amount.copy_((chosen * learned).clamp(max=0.95))
    return chosen

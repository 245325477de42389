"""How far to trust looked-up evidence, read off validation once training is over.

Training fits the shares of evidence by log-likelihood, on a few hundred to two thousand held-out
events; that pays for rare finds far down the list, and a share that was driven to nothing stays
there. What is asked of a ranking is its order. So a handful of numbers, how large the share of each
kind of evidence is and how it is split, are chosen by NDCG, like any other setting that is chosen
on validation.
"""

import itertools
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from reasonrec.metrics import ndcg
from reasonrec.models.ranking import rank_targets
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.records import LOOKUP_KINDS, Histories

AMOUNTS = (0.0, 0.03, 0.06, 0.12, 0.25, 0.5, 0.9)
"""Most of the probability that one kind of evidence may have."""
FROM_STATE = (0.0, 0.5, 1.0)
"""How far the ranking without evidence says which evidence counts."""


class RanksWithEvidence(Protocol):
    """A recommender that gathers evidence, in a thought or without one, and then ranks with it."""

    @property
    def model(self) -> ReasoningRecommender: ...

    @property
    def batch_size(self) -> int: ...

    def write(self, histories: Histories, /) -> Any: ...

    def rank_with(self, written: Any, /) -> np.ndarray: ...


@torch.no_grad()
def calibrate_shares(
    recommender: RanksWithEvidence, histories: Histories, target: np.ndarray
) -> dict[str, list[float]]:
    """Choose amount and split of every kind of evidence, in place, and return what was chosen.

    One kind after the other, twice where several are asked about. All of `AMOUNTS`, `FROM_STATE`
    and what training learned are tried on the same greedy thoughts; the best NDCG without cut-off
    wins, what was learned where nothing is better. A kind that found nothing stays as it is.

    Args:
        histories: Validation queries, B of them.
        target: (B,), what was taken next.
    """
    pointer = recommender.model.pointer
    if pointer is None or not len(target):
        return {}
    rows = range(0, len(target), recommender.batch_size)
    parts = [np.arange(i, min(i + recommender.batch_size, len(target))) for i in rows]
    thoughts = [recommender.write(histories.take(part)) for part in parts]

    def worth() -> float:
        ranks = [
            rank_targets(
                recommender.rank_with(thought), target[part],
                histories=histories.take(part), mask="history-except-target",
            )
            for part, thought in zip(parts, thoughts, strict=True)
        ]  # fmt: skip
        return float(ndcg(np.concatenate(ranks), recommender.model.num_items).mean())

    asked = [
        kind
        for kind in range(len(LOOKUP_KINDS))
        if any(((one.named_kind == kind) & (one.named_item >= 0)).any() for one in thoughts)
    ]
    pointer.amount.copy_(pointer.bounded_amount())
    best = worth()
    for kind in asked * (2 if len(asked) > 1 else 1):
        kept = _setting(pointer.amount, pointer.from_state, kind)
        for tried in itertools.product((kept[0], *AMOUNTS), (kept[1], *FROM_STATE)):
            pointer.amount[kind], pointer.from_state[kind] = tried
            value = worth()
            if value > best:
                best, kept = value, tried
        pointer.amount[kind], pointer.from_state[kind] = kept
    pointer.amount.copy_(pointer.bounded_amount())
    return {"amount": pointer.amount.tolist(), "from_state": pointer.from_state.tolist()}


def _setting(amount: Tensor, from_state: Tensor, kind: int) -> tuple[float, float]:
    return float(amount[kind]), float(from_state[kind])

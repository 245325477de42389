"""How far to trust looked-up evidence, read off validation once training is over.

Training fits the share of evidence by log-likelihood, which pays for rare finds far down the list;
what is asked of a ranking is its order. One factor on the share is chosen by NDCG, like any other
setting that is chosen on validation.
"""

import numpy as np
import torch

from reasonrec.metrics import ndcg
from reasonrec.models.ranking import rank_targets
from reasonrec.models.recommenders import ThinkingRecommender
from reasonrec.records import LOOKUP_KINDS, Histories

FACTORS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)


@torch.no_grad()
def calibrate_share(
    recommender: ThinkingRecommender, histories: Histories, target: np.ndarray
) -> tuple[float, ...]:
    """Scale the shares of the model's evidence pointer, in place, and return the factors chosen.

    One factor for each kind of question that is asked, one kind after the other, twice. Each of
    `FACTORS` is tried on the same greedy thoughts; the best NDCG without cut-off wins, the smaller
    factor where two are equal.

    Args:
        histories: Validation queries, B of them.
        target: (B,), what was taken next.
    """
    pointer = recommender.model.pointer
    factors = [1.0] * len(LOOKUP_KINDS)
    if pointer is None or not len(target):
        return tuple(factors)
    learned = pointer.bounded_amount().clone()
    rows = range(0, len(target), recommender.batch_size)
    parts = [np.arange(i, min(i + recommender.batch_size, len(target))) for i in rows]
    thoughts = [recommender.write(histories.take(part)) for part in parts]

    def worth(tried: list[float]) -> float:
        pointer.amount.copy_(learned * torch.tensor(tried, device=learned.device))
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
    for kind in asked * (2 if len(asked) > 1 else 1):
        tried = [[*factors[:kind], factor, *factors[kind + 1 :]] for factor in FACTORS]
        factors = tried[int(np.argmax([worth(one) for one in tried]))]
    pointer.amount.copy_(learned * torch.tensor(factors, device=learned.device))
    pointer.amount.copy_(pointer.bounded_amount())
    return tuple(factors)

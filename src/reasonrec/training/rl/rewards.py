"""Rewards from recommendation labels alone (R²ec). P prompts, G rollouts each, N items."""

from collections.abc import Iterator

import torch
from torch import Tensor

from reasonrec.models.rec_head import MOST_SCORES


def in_parts(scores_P_G_N: Tensor, *by_prompt: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the scores, and tensors with a row a prompt, of a few prompts after the other.

    So that no masked copy of all scores exists where there are more than ``MOST_SCORES``.
    """
    P, G, N = scores_P_G_N.shape
    most = min(P, max(1, MOST_SCORES // (G * N)))
    # `split`, not slices: the gradient of a slice is as large as the whole
    return zip(*(tensor.split(most) for tensor in (scores_P_G_N, *by_prompt)), strict=True)


def ranks_of_targets(scores_P_G_N: Tensor, target_P: Tensor, masked_P_N: Tensor) -> Tensor:
    """Return the rank of each prompt's target after each rollout, (P, G), float32.

    Rank = 1 + strictly greater + half of ties among the items that are not masked: the rule of
    ``models/ranking.py``, which evaluation and serving use. Infinity for a target that is masked.

    Args:
        masked_P_N: True for items that may not be recommended.
    """
    ranks = []
    for scores, target, masked in in_parts(scores_P_G_N, target_P, masked_P_N):
        target_scores = _of_targets(scores, target)[..., None]
        allowed = ~masked[:, None, :]
        greater = ((scores > target_scores) & allowed).sum(-1)
        ties = ((scores == target_scores) & allowed).sum(-1) - 1
        ranks.append(1.0 + greater.float() + 0.5 * ties.float())
    is_masked_P = masked_P_N.gather(1, target_P[:, None])
    return torch.cat(ranks).masked_fill(is_masked_P, torch.inf)


def _of_targets(values_P_G_N: Tensor, target_P: Tensor) -> Tensor:
    index = target_P[:, None, None].expand(*values_P_G_N.shape[:2], 1)
    return values_P_G_N.gather(-1, index)[..., 0]


def ndcg_reward(rank: Tensor, k: int) -> Tensor:
    """Return R_d, NDCG@k of one relevant item: 1 / log2(1 + rank) up to rank k, else 0."""
    return torch.where(rank <= k, 1.0 / torch.log2(1.0 + rank), 0.0)


def softmax_reward(scores_P_G_N: Tensor, target_P: Tensor, masked_P_N: Tensor) -> Tensor:
    """Return R_c, the target's probability over all items that may be recommended, (P, G).

    It separates rollouts that reach the same rank. 0 for a target that is masked.
    """
    return torch.cat(
        [
            _of_targets(scores.masked_fill(masked[:, None, :], -torch.inf).softmax(-1), target)
            for scores, target, masked in in_parts(scores_P_G_N, target_P, masked_P_N)
        ]
    )


def fused_reward(discrete: Tensor, continuous: Tensor, *, beta: float) -> Tensor:
    """Return R = beta * R_c + (1 - beta) * R_d. Source: R²ec, fused reward; beta = 0.05 there."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1]; got {beta}")
    return beta * continuous + (1 - beta) * discrete

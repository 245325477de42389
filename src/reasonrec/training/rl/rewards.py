"""Rewards from recommendation labels alone (R²ec). P prompts, G rollouts each, N items."""

import torch
from torch import Tensor


def ranks_of_targets(scores_P_G_N: Tensor, target_P: Tensor, masked_P_N: Tensor) -> Tensor:
    """Return the rank of each prompt's target after each rollout, (P, G), float32.

    Rank = 1 + strictly greater + half of ties among the items that are not masked: the rule of
    ``models/ranking.py``, which evaluation and serving use.

    Args:
        masked_P_N: True for items that may not be recommended; never true for the target.
    """
    target_scores = scores_P_G_N.gather(
        -1, target_P[:, None, None].expand(*scores_P_G_N.shape[:2], 1)
    )
    allowed = ~masked_P_N[:, None, :]
    greater = ((scores_P_G_N > target_scores) & allowed).sum(-1)
    ties = ((scores_P_G_N == target_scores) & allowed).sum(-1) - 1
    return 1.0 + greater.float() + 0.5 * ties.float()


def ndcg_reward(rank: Tensor, k: int) -> Tensor:
    """Return R_d, NDCG@k of one relevant item: 1 / log2(1 + rank) up to rank k, else 0."""
    return torch.where(rank <= k, 1.0 / torch.log2(1.0 + rank), 0.0)


def softmax_reward(scores_P_G_N: Tensor, target_P: Tensor, masked_P_N: Tensor) -> Tensor:
    """Return R_c, the target's probability over all items that may be recommended, (P, G).

    It separates rollouts that reach the same rank.
    """
    allowed = scores_P_G_N.masked_fill(masked_P_N[:, None, :], -torch.inf)
    index = target_P[:, None, None].expand(*scores_P_G_N.shape[:2], 1)
    return allowed.softmax(-1).gather(-1, index)[..., 0]


def fused_reward(discrete: Tensor, continuous: Tensor, *, beta: float) -> Tensor:
    """Return R = beta * R_c + (1 - beta) * R_d. Source: R²ec, fused reward; beta = 0.05 there."""
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1]; got {beta}")
    return beta * continuous + (1 - beta) * discrete

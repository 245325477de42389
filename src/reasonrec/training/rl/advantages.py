"""Advantages of G rollouts of one prompt over each other."""

import torch
from torch import Tensor

from reasonrec.training.config import Estimator

FLAT = 1e-6
"""Spread of rewards below which a group has nothing to tell."""


def advantages_within_groups(rewards_P_G: Tensor, estimator: Estimator) -> Tensor:
    """Return (P, G) advantages; a group with equal rewards has none.

    - ``grpo``: (R - mean) / std, with the unbiased std.
    - ``centred``: R - mean.
    - ``leave-one-out``: R minus the mean of the other rewards; it sums to zero in a group too.

    Raises:
        ValueError: Groups of one, which have nothing to compare with.
    """
    G = rewards_P_G.shape[1]
    if G < 2:
        raise ValueError(f"advantages within groups need at least 2 rollouts per prompt; got {G}")
    centred = rewards_P_G - rewards_P_G.mean(1, keepdim=True)
    flat = is_flat(rewards_P_G)[:, None]
    if estimator == "grpo":
        centred = centred / rewards_P_G.std(1, keepdim=True).clamp(min=FLAT)
    elif estimator == "leave-one-out":
        centred = centred * (G / (G - 1))  # R - (sum - R) / (G - 1) = (R - mean) * G / (G - 1)
    return torch.where(flat, torch.zeros_like(centred), centred)


def is_flat(rewards_P_G: Tensor) -> Tensor:
    """Return which groups have no spread in reward, (P,), bool."""
    return rewards_P_G.max(1).values - rewards_P_G.min(1).values < FLAT

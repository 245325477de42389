"""The RecPO objective: clipped ratios of thought tokens and of the recommendation (R²ec, 2.3).

Departs from the official code, which multiplies advantages and token ratios into an outer product
and so gives thoughts no gradient: here each token meets the advantage of its own rollout alone.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from reasonrec.training.config import ItemTerm, TokenMean
from reasonrec.training.rl.rewards import in_parts


def clipped_objective(
    logp: Tensor, old_logp: Tensor, advantage: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """Return min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) with r = exp(logp - old_logp).

    All arguments have one shape; a broadcast here would be the official code's bug.

    Raises:
        ValueError: Shapes differ.
    """
    if not logp.shape == old_logp.shape == advantage.shape:
        raise ValueError(
            "logp, old_logp and advantage must have the same shape; got "
            f"{tuple(logp.shape)}, {tuple(old_logp.shape)} and {tuple(advantage.shape)}"
        )
    ratio = (logp - old_logp).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)


def token_objective(
    logp_P_G_S: Tensor,
    old_logp_P_G_S: Tensor,
    advantages: Tensor,
    is_written_P_G_S: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    mean_over: TokenMean,
) -> Tensor:
    """Return the objective of the written tokens, a scalar to be maximised.

    Args:
        advantages: Of each thought, (P, G), or of each token, (P, G, S).
        mean_over: ``tokens``: mean over all written tokens; ``rollouts``: mean within each rollout,
            then over rollouts; ``sum``: sum within each rollout, then mean over rollouts.
    """
    if advantages.dim() == 2:
        advantages = advantages[:, :, None].expand_as(logp_P_G_S)
    each = clipped_objective(
        logp_P_G_S, old_logp_P_G_S, advantages, clip_low=clip_low, clip_high=clip_high
    )
    each = each.masked_fill(~is_written_P_G_S, 0.0)
    if mean_over == "tokens":
        return each.sum() / is_written_P_G_S.sum().clamp(min=1)
    per_rollout = each.sum(-1)
    if mean_over == "rollouts":
        per_rollout = per_rollout / is_written_P_G_S.sum(-1).clamp(min=1)
    return per_rollout.mean()


def kl_to_start(logp_P_G_S: Tensor, start_logp_P_G_S: Tensor, is_written_P_G_S: Tensor) -> Tensor:
    """Return an estimate of KL(policy, start), a mean over written tokens, at least 0.

    ``exp(d) - d - 1`` with d = start - policy, for tokens that the policy sampled: the estimator
    that GRPO uses. Both are log-probabilities of what is trained (``likelihood_at``); with
    ``top_k`` it sees nothing of tokens that the policy draws no longer.
    """
    far = (start_logp_P_G_S - logp_P_G_S).masked_fill(~is_written_P_G_S, 0.0)
    return (far.exp() - far - 1).sum() / is_written_P_G_S.sum().clamp(min=1)


def item_weights(advantages_P_G: Tensor, item_term: ItemTerm) -> Tensor:
    """Return the weight of each rollout's recommendation term, (P, G).

    - ``best``: the advantage of the best rollout, 0 for the others (delta of the paper; ties go to
      the first).
    - ``positive``: every positive advantage.
    - ``all``: every advantage; negative ones push the true item down, which is why the paper
      keeps the best one alone.
    - ``infonce``: 1, whatever was rewarded: the cross-entropy of the target after every rollout.
    """
    if item_term == "infonce":
        return torch.ones_like(advantages_P_G)
    if item_term == "all":
        return advantages_P_G
    if item_term == "positive":
        return advantages_P_G.clamp(min=0)
    best = advantages_P_G.argmax(1, keepdim=True)
    kept = torch.zeros_like(advantages_P_G)
    return kept.scatter(1, best, advantages_P_G.gather(1, best))


def item_objective(
    logp_P_G: Tensor,
    old_logp_P_G: Tensor,
    weights_P_G: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Return the objective of the recommendation: sum over a group / G, mean over prompts."""
    return clipped_objective(
        logp_P_G, old_logp_P_G, weights_P_G, clip_low=clip_low, clip_high=clip_high
    ).mean()


def log_prob_of_targets(
    scores_P_G_N: Tensor,
    target_P: Tensor,
    masked_P_N: Tensor,
    *,
    over: Literal["batch", "catalogue"],
    targets: Tensor | None = None,
) -> Tensor:
    """Return log pi(v+ | x, o), (P, G), float32, over the batch's targets or the whole catalogue.

    A masked item is never a negative; a target that several prompts share is one item, so it is
    never its own negative. A prompt's own target counts even where it is masked.

    Args:
        targets: Those of the whole batch, where these prompts are a part of it.
    """
    if over == "batch":
        in_batch = torch.zeros(scores_P_G_N.shape[-1], dtype=torch.bool, device=target_P.device)
        in_batch[target_P if targets is None else targets] = True
        masked_P_N = masked_P_N | ~in_batch
    masked_P_N = masked_P_N.scatter(1, target_P[:, None], False)
    parts = list(in_parts(scores_P_G_N, target_P, masked_P_N))
    if len(parts) == 1 or not torch.is_grad_enabled():
        return torch.cat([_log_prob(*part) for part in parts])
    # computed again in the backward pass: kept, the parts would be the copy that they avoid
    return torch.cat([checkpoint(_log_prob, *part, use_reentrant=False) for part in parts])


def _log_prob(scores: Tensor, target: Tensor, masked: Tensor) -> Tensor:
    logp = scores.masked_fill(masked[:, None, :], -torch.inf).log_softmax(-1)
    return logp.gather(-1, target[:, None, None].expand(*scores.shape[:2], 1))[..., 0]

"""Supervised losses. Each mean says over what it is taken."""

from typing import Any

import torch
from torch import Tensor, nn

from reasonrec import ranks
from reasonrec.models.branches import Batch
from reasonrec.training.config import SftLossConfig


def sft_loss(
    model: nn.Module, inputs: dict[str, Tensor], config: SftLossConfig
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum of next-item, after-thought and token cross-entropies.

    Next-item is a mean over dense positions, after-thought a mean over branches with a target,
    tokens a mean over written tokens, of all processes together. The prompt and looked-up evidence
    carry no token loss; evidence without a thought is ranked with, and writes nothing. Where rows
    are encoded from text, items compete, and are asked for, whose rows are live.
    """
    batch = Batch(**inputs)
    assert batch.next_item is not None
    counts = [int((batch.next_item >= 0).sum()), 0, 0]
    if batch.target is not None:
        written = batch.is_written
        counts[1] = 0 if written is None else int(written[..., 1:].sum())
        counts[2] = int((batch.target >= 0).sum())
    num_next, num_written, num_wanted = ranks.mean_counts(*counts)
    # DDP waits for the gradient of all that was computed; one process keeps to its random numbers
    with_scores = num_wanted > 0 or ranks.num_ranks() == 1
    outputs: Any = model(batch, with_scores=with_scores, with_post=config.post > 0)
    wanted = None if batch.target is None else _wanted(batch.target, outputs.is_live)
    if outputs.is_live is not None:
        of_wanted = 0 if wanted is None else int(wanted.sum())
        num_next, num_wanted = ranks.mean_counts(outputs.next_item_logp.numel(), of_wanted)
    next_item = -outputs.next_item_logp.sum() / (num_next or 1)
    loss = config.next_item * next_item
    parts = {"train/next_item": next_item.item()}
    if batch.target is None or wanted is None:
        return loss, parts
    if batch.is_written is not None:
        tokens = -outputs.token_logp.sum() / (num_written or 1)
        loss = loss + config.tokens * tokens
        parts["train/tokens"] = tokens.item()
    if not num_wanted:
        return loss, parts
    target = batch.target[wanted]
    think = _after_thought(outputs.think_logits[wanted], target, outputs.is_live) / num_wanted
    loss = loss + config.think * think
    parts["train/think"] = think.item()
    if outputs.post_logits is not None:
        post = _after_thought(outputs.post_logits[wanted], target, outputs.is_live) / num_wanted
        loss = loss + config.post * post
        parts["train/post"] = post.item()
    return loss, parts


def _wanted(target: Tensor, is_live: Tensor | None) -> Tensor:
    """Return which branches have a target to be asked for. (B, G), bool."""
    wanted = target >= 0
    return wanted if is_live is None else wanted & is_live[target.clamp(min=0)]


def _after_thought(logits: Tensor, target: Tensor, is_live: Tensor | None) -> Tensor:
    """Return the sum of the cross-entropies of targets (W,) among the live items of (W, N)."""
    if is_live is not None:
        logits = logits.masked_fill(~is_live, -torch.inf)
    return nn.functional.cross_entropy(logits, target, reduction="sum")

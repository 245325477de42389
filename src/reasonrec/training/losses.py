"""Supervised losses. Each mean says over what it is taken."""

from typing import Any

from torch import Tensor, nn

from reasonrec.models.reasoning_recommender import Batch
from reasonrec.training.config import SftLossConfig


def sft_loss(
    model: nn.Module, inputs: dict[str, Tensor], config: SftLossConfig
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted sum of next-item, after-thought and token cross-entropies.

    Next-item is a mean over dense positions, after-thought a mean over branches with a target,
    tokens a mean over written tokens. The prompt and looked-up evidence carry no token loss.
    Evidence without a thought is ranked with, and writes nothing.
    """
    batch = Batch(**inputs)
    outputs: Any = model(batch, with_post=config.post > 0)
    loss = -config.next_item * outputs.next_item_logp.mean()
    parts = {"train/next_item": -outputs.next_item_logp.mean().item()}
    if outputs.think_logits is None:
        return loss, parts
    assert batch.target is not None
    if batch.is_written is not None:
        tokens = -outputs.token_logp.sum() / batch.is_written[..., 1:].sum().clamp(min=1)
        loss = loss + config.tokens * tokens
        parts["train/tokens"] = tokens.item()
    wanted = batch.target >= 0
    if not wanted.any():
        return loss, parts
    target = batch.target[wanted]
    think = nn.functional.cross_entropy(outputs.think_logits[wanted], target)
    loss = loss + config.think * think
    parts["train/think"] = think.item()
    if outputs.post_logits is not None:
        post = nn.functional.cross_entropy(outputs.post_logits[wanted], target)
        loss = loss + config.post * post
        parts["train/post"] = post.item()
    return loss, parts

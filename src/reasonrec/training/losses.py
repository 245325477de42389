"""Supervised losses. Each mean says over what it is taken."""

from typing import Any

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
    carry no token loss; evidence without a thought is ranked with, and writes nothing.
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
    next_item = -outputs.next_item_logp.sum() / num_next
    loss = config.next_item * next_item
    parts = {"train/next_item": next_item.item()}
    if batch.target is None:
        return loss, parts
    if batch.is_written is not None:
        tokens = -outputs.token_logp.sum() / (num_written or 1)
        loss = loss + config.tokens * tokens
        parts["train/tokens"] = tokens.item()
    if not num_wanted:
        return loss, parts
    wanted = batch.target >= 0
    ask: Any = {"target": batch.target[wanted], "reduction": "sum"}
    think = nn.functional.cross_entropy(outputs.think_logits[wanted], **ask) / num_wanted
    loss = loss + config.think * think
    parts["train/think"] = think.item()
    if outputs.post_logits is not None:
        post = nn.functional.cross_entropy(outputs.post_logits[wanted], **ask) / num_wanted
        loss = loss + config.post * post
        parts["train/post"] = post.item()
    return loss, parts

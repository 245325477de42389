"""A trunk and its branches: what a pass takes and yields, who sees whom, where a state is read."""

from dataclasses import dataclass

import torch
from torch import Tensor

from reasonrec.models.config import Pooling


@dataclass
class Batch:
    """A trunk and its branches, as tensors. Every field after the trunk may be absent."""

    trunk_ids: Tensor
    """(B, T), right-padded prompts."""
    trunk_lengths: Tensor
    """(B,)."""
    item_ends: Tensor | None = None
    """(B, H + 1), positions whose state predicts the next item; -1 where there is none."""
    next_item: Tensor | None = None
    """(B, H + 1), the item to predict there; -100 where there is none."""
    branch_ids: Tensor | None = None
    """(B, G, S), thoughts from their opening to the end of the answer marker, right-padded. Without
    them, ``branch_at`` and ``named_item`` are evidence that stands there without a thought."""
    branch_lengths: Tensor | None = None
    """(B, G). 0 for a branch that does not exist."""
    branch_at: Tensor | None = None
    """(B, G), trunk position of the last token that the branch may see."""
    pre_at: Tensor | None = None
    """(B, G), trunk position of the state before the thought, where it is not ``branch_at``."""
    is_written: Tensor | None = None
    """(B, G, S), True for tokens that the language head is to be trained on."""
    named_at: Tensor | None = None
    """(B, G, E), where in a thought each looked-up item stands: needed to cut thoughts, and to know
    which candidates a thought may ask about."""
    named_item: Tensor | None = None
    """(B, G, E), items that each thought looked up; -1 for none."""
    named_weight: Tensor | None = None
    """(B, G, E), float32, how strongly the graph holds with each; 0 for none."""
    named_kind: Tensor | None = None
    """(B, G, E), the place in ``LOOKUP_KINDS`` of the question that found each."""
    target: Tensor | None = None
    """(B, G), item that each branch should lead to; -100 for none."""

    def to(self, device: torch.device | str) -> "Batch":
        moved = {k: v.to(device) for k, v in vars(self).items() if v is not None}
        return Batch(**moved)

    def first(self, count: int) -> "Batch":
        """Return the first rows."""
        return Batch(**{k: v[:count] for k, v in vars(self).items() if v is not None})


@dataclass
class Outputs:
    """What one pass yields. Log-probabilities are float32."""

    next_item_logp: Tensor | None = None
    """(M,), log p(next item) at the M dense positions, over the whole catalogue; where rows are
    encoded from text, at those whose item is live, over the live items."""
    is_live: Tensor | None = None
    """(N,), items whose rows were encoded from text in this pass; None where rows are learned, or
    nothing is trained. The rows of the others are of older weights: no loss should set the two
    against each other."""
    token_logp: Tensor | None = None
    """(B, G, S), log p of each written token; 0 elsewhere."""
    token_entropy: Tensor | None = None
    """(B, G, S), entropy of the same policy there, in nats; 0 elsewhere. Gradient if asked."""
    pre_states: Tensor | None = None
    """(B, G, D), before the thought."""
    post_states: Tensor | None = None
    """(B, G, D), after the thought."""
    think_logits: Tensor | None = None
    """(B, G, N), scores from the gated state."""
    post_logits: Tensor | None = None
    """(B, G, N), scores from the state after the thought alone."""


def read_states(hidden: Tensor, last_token: Tensor) -> Tensor:
    """Return the state at ``last_token``: of the prompt, or of the answer marker.

    This is the one place that says where a state is read, in training and reward as in
    evaluation and serving.

    Args:
        hidden: (B, T, D).
        last_token: (B, K), positions in [0, T).

    Returns:
        (B, K, D), float32 whatever the backbone computes in.
    """
    return hidden.gather(1, last_token[..., None].expand(-1, -1, hidden.shape[-1])).float()


def read_thoughts(
    batch: Batch, hidden_trunk: Tensor, hidden_branch: Tensor, pooling: Pooling
) -> Tensor:
    """Return the states after thoughts, (B, G, D), float32, read as ``HeadConfig.pooling`` says.

    A thought is its branch, behind what of the trunk lies between ``pre_at`` and ``branch_at``. Of
    one that does not exist the first token counts.

    Args:
        hidden_trunk: (B, T, D).
        hidden_branch: (B, G, S, D).
    """
    assert batch.branch_lengths is not None and batch.branch_at is not None
    B, G, S, D = hidden_branch.shape
    lengths = batch.branch_lengths.clamp(min=1)
    flat = hidden_branch.reshape(B * G, S, D)
    if pooling == "last":
        return read_states(flat, lengths.reshape(-1, 1) - 1).reshape(B, G, D)
    is_own = torch.arange(S, device=flat.device) < lengths.reshape(-1, 1)
    read = pooled(flat, is_own, pooling).reshape(B, G, D)
    if batch.pre_at is not None:
        place = torch.arange(hidden_trunk.shape[1], device=flat.device)
        is_own = (place > batch.pre_at[..., None]) & (place <= batch.branch_at[..., None])
        begun = torch.stack([pooled(hidden_trunk, is_own[:, g], pooling) for g in range(G)], 1)
        read = read + begun if pooling == "mean" else torch.maximum(read, begun)
        lengths = lengths + is_own.sum(-1)
    return read / lengths[..., None] if pooling == "mean" else read


def pooled(hidden: Tensor, is_own: Tensor, pooling: Pooling) -> Tensor:
    """Return the sum (``mean``) or the largest (``max``) of own states, (R, D), float32.

    Args:
        hidden: (R, S, D).
        is_own: (R, S), bool. The sum of none is 0, the largest of none -inf.
    """
    if pooling == "mean":
        return hidden.float().masked_fill(~is_own[..., None], 0.0).sum(1)
    return hidden.float().masked_fill(~is_own[..., None], -torch.inf).amax(1)


def branch_attention(
    trunk_lengths: Tensor, num_trunk: int, branch_lengths: Tensor, branch_at: Tensor, num_step: int
) -> Tensor:
    """Return who may attend to whom in rows of one trunk and G branches.

    A trunk token sees the trunk up to itself. A branch token sees the trunk up to ``branch_at``
    and its own branch up to itself. Padding sees itself only, so that no softmax is empty.

    Args:
        trunk_lengths: (B,).
        branch_lengths, branch_at: (B, G).

    Returns:
        (B, T + G * S, T + G * S), bool.
    """
    B, G = branch_at.shape
    T, S = num_trunk, num_step
    device = branch_at.device
    position = torch.arange(T, device=device)
    step = torch.arange(S, device=device)
    total = T + G * S
    allowed = torch.zeros(B, total, total, dtype=torch.bool, device=device)
    causal = position[:, None] >= position
    allowed[:, :T, :T] = causal & (position < trunk_lengths[:, None])[:, None, :]
    sees_trunk = position <= branch_at[..., None]  # (B, G, T)
    allowed[:, T:, :T] = sees_trunk[:, :, None, :].expand(B, G, S, T).reshape(B, G * S, T)
    within = (step[:, None] >= step) & (step < branch_lengths[..., None])[:, :, None, :]  # B G S S
    same = torch.eye(G, dtype=torch.bool, device=device)
    blocks = within[:, :, :, None, :] & same[:, None, :, None]  # (B, G, S, G, S)
    allowed[:, T:, T:] = blocks.reshape(B, G * S, G * S)
    allowed |= torch.eye(total, dtype=torch.bool, device=device)
    return allowed

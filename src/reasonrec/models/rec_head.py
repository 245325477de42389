"""The recommendation head: from the state that a thought reached to a score for every item.

Departs from the paper: plain inner products by default for rows that are learned per item; the
official code's L2-normalised product is ``similarity = "cosine"`` with ``temperature = 0.02``. A
gate mixes in the state before the thought, and items that the thought looked up can take a share of
the probability; the paper has neither.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasonrec.models.config import Similarity


def score_catalogue(
    state: Tensor, item_rows: Tensor, *, similarity: Similarity = "dot", temperature: float = 1.0
) -> Tensor:
    """Return a logit for every catalogue item, given the state reached after reasoning.

    Args:
        state: Hidden state at the last token of the prompt or of the answer marker. (..., D), any
            float dtype.
        item_rows: One embedding per item, in ``item_index`` order. (N, D).
        similarity: ``dot``, or ``cosine`` after L2 normalisation of both sides.
        temperature: Divides the logits. No unit, above 0; below 1 sharpens the softmax.

    Returns:
        (..., N), float32. Half precision would merge close scores into ties, and ties move NDCG.

    Raises:
        ValueError: The widths differ, or ``temperature`` is not above 0.

    Source: R²ec, recommendation head (``docs/paper_index.md``, entry *rec head*).
    """
    if state.shape[-1] != item_rows.shape[-1]:
        raise ValueError(
            f"state and item_rows must have the same width; got {state.shape[-1]} and "
            f"{item_rows.shape[-1]}. Was the item table built with another backbone?"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    with torch.autocast(state.device.type, enabled=False):
        state, item_rows = state.float(), item_rows.float()
        if similarity == "cosine":
            state, item_rows = F.normalize(state, dim=-1), F.normalize(item_rows, dim=-1)
        scores = state @ item_rows.T  # (..., D) @ (D, N) -> (..., N)
        return scores if temperature == 1 else scores.div_(temperature)  # no second (..., N)


class GatedReadout(nn.Module):
    """Mixes the states before and after the thought: ``pre + gate * (post - pre)``.

    The gate starts at 0 in every dimension, so that thinking starts exactly at the ranking of not
    thinking, and is learned from there. ``gated = False`` reads the state after the thought alone,
    as in the paper.
    """

    def __init__(self, width: int, *, gated: bool = True) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width)) if gated else None

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Return the state to score with. (..., D) from two (..., D)."""
        return post if self.gate is None else pre + self.gate * (post - pre)


@dataclass
class Evidence:
    """What thoughts looked up: E found titles each."""

    item_index: Tensor
    """(..., E), which item that is; -1 for none."""
    weight: Tensor
    """(..., E), how strongly the graph holds with it, as in ``Link.weight``; 0 for none."""


class EvidencePointer(nn.Module):
    """Gives a share of the probability to the items that a thought looked up.

    ``p = (1 - share) p_state + share p_found`` with ``p_found`` proportional to
    ``p_state ** a * weight ** b`` over the found titles, and
    ``share = amount * sigmoid(w . h_answer + c log(sum of weights) + d)``. The amount starts at 0,
    so that thinking starts exactly at the ranking of not thinking. Because it is a sum, each piece
    of evidence has an exact share in the probability of its item.

    The mixture is that of pointer-generator networks (See, Liu and Manning, 2017). It has a handful
    of weights on purpose: with a learned match between the states of titles and answer beside them,
    it fitted its few thousand examples and ranked worse (``docs/experiments.md``).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.zeros(()))
        self.trust = nn.Linear(width, 1)
        self.trust_in_weight = nn.Parameter(torch.zeros(()))
        self.from_state = nn.Parameter(torch.ones(()))
        self.from_weight = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.trust.weight)
        nn.init.zeros_(self.trust.bias)

    def forward(self, scores: Tensor, post: Tensor, found: Evidence) -> Tensor:
        """Return log-probabilities (..., N), float32, from scores (..., N) of the state alone.

        Args:
            post: State after the thought. (..., D).
        """
        is_found = found.item_index >= 0
        item = found.item_index.clamp(min=0)
        logp = scores.log_softmax(-1)
        logp_found = logp.gather(-1, item)
        share, pointed = self.shares(logp_found, post, found)
        rest = torch.log1p(-share)
        same = found.item_index[..., :, None] == found.item_index[..., None, :]
        slot = same.to(torch.uint8).argmax(-1)  # an item that is found twice counts at its first
        is_first = is_found & (slot == torch.arange(slot.shape[-1], device=slot.device))
        added = torch.zeros_like(pointed).scatter_add(-1, slot, share * pointed * is_found)
        gained = torch.log1p(added / (logp_found + rest).clamp(min=-60).exp()) * is_first
        # all but the few found items change by one constant: two (..., N) in all
        return (logp + rest).scatter_add_(-1, item, gained)

    def shares(self, logp: Tensor, post: Tensor, found: Evidence) -> tuple[Tensor, Tensor]:
        """Return the share of all evidence (..., 1), and how it is split over titles (..., E).

        Args:
            logp: Log-probability of each found item from the state alone. (..., E).
        """
        is_found = found.item_index >= 0
        liking = self.from_state * logp + self.from_weight * found.weight.clamp(min=1e-6).log()
        pointed = liking.float().masked_fill(~is_found, -torch.inf)
        any_found = is_found.any(-1, keepdim=True)
        pointed = pointed.where(any_found, 0.0).softmax(-1)
        total = (found.weight * is_found).sum(-1, keepdim=True).clamp(min=1e-6).log()
        trust = torch.sigmoid(self.trust(post) + self.trust_in_weight * total)
        # within [0, 0.95], and learned straight through its ends, so that it can leave them again
        amount = self.amount + (self.amount.clamp(0, 0.95) - self.amount).detach()
        return (amount * trust * any_found).float(), pointed

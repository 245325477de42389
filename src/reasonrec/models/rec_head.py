"""The recommendation head: from the state that a thought reached to a score for every item.

Departs from the paper: plain inner products by default for rows that are learned per item; the
official code's L2-normalised product is ``similarity = "cosine"`` with ``temperature = 0.02``. A
gate mixes in the state before the thought, and items that the thought looked up can add to their
own scores; the paper has neither.
"""

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
        return state @ item_rows.T / temperature  # (..., D) @ (D, N) -> (..., N)


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


class EvidencePointer(nn.Module):
    """What each item that a thought looked up adds to its own score.

    The addition is read from the state at the end of the item's title and from the state after the
    thought: ``u . h_title + (Q h_answer) . (K h_title) / sqrt(D)``, with u and Q zero at the start.
    Because it is a sum, each piece of evidence has an exact share in the ranking.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(width))
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.query.weight)

    def forward(self, post: Tensor, named_states: Tensor, named_item: Tensor) -> Tensor:
        """Return the addition of each named item, (..., E), float32; 0 where the item is -1.

        Args:
            post: State after the thought. (..., D).
            named_states: State at the end of each named title. (..., E, D).
            named_item: (..., E), item indices, -1 for none.
        """
        match = (self.key(named_states) * self.query(post)[..., None, :]).sum(-1)
        added = named_states @ self.prior + match * post.shape[-1] ** -0.5
        return added.float().masked_fill(named_item < 0, 0.0)

"""Copies titles from what was read: a pointer beside the language head (ours).

A thought names items of its question, and a small model trained on next items cannot: titles of a
history never come next, so it learned to write others. ``p = (1 - g) p_language + g p_copied``,
where ``p_copied`` is attention over the titles that stand before, and the gate ``g`` is learned.
"""

import torch
from torch import Tensor, nn

LOOKBACK = 6
"""Tokens before a title, and up to the end of what is written, that say which title is meant."""
_START = -3.0
"""The gate's first bias: copying begins at a twentieth."""


class TitleCopier(nn.Module):
    """Query of the place where a token is written, key of every place where a title stands."""

    def __init__(self, width: int, *, dim: int = 64) -> None:
        super().__init__()
        self.query = nn.Linear(width * (LOOKBACK + 1), dim)
        self.key = nn.Linear(width * (LOOKBACK + 1), dim)
        self.gate = nn.Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, _START)

    def keys(self, states: Tensor, before: Tensor) -> Tensor:
        """Return keys of places.

        Args:
            states: (..., D).
            before: (..., LOOKBACK, D), embeddings of the tokens before each place, nearest first.
        """
        return self.key(torch.cat([states, before.flatten(-2)], dim=-1))

    def queries(self, states: Tensor, recent: Tensor) -> Tensor:
        """Return queries of places; ``recent`` holds the last tokens there, newest first."""
        query = self.query(torch.cat([states, recent.flatten(-2)], dim=-1))
        return query * query.shape[-1] ** -0.5

    def mix(
        self,
        logits: Tensor,
        states: Tensor,
        match: Tensor,
        token_ids: Tensor,
        is_source: Tensor,
    ) -> Tensor:
        """Return log-probabilities of the next token, copied ones mixed in. (M, V), float32.

        Args:
            logits: (M, V), of the language head.
            states: (M, D), of the places that write.
            match: (M, T), products of their queries with the keys of all places.
            token_ids: (M, T), what stands there.
            is_source: (M, T), which of them may be copied: titles that stand before. A row without
                any copies nothing.
        """
        match = match.masked_fill(~is_source, torch.finfo(match.dtype).min)
        attention = match.softmax(-1) * is_source
        gate = self.gate(states).sigmoid() * is_source.any(-1, keepdim=True)
        language = logits.softmax(-1) * (1.0 - gate)
        mixed = language.scatter_add(-1, token_ids, attention * gate)
        return mixed.clamp_min(1e-30).log()


def tokens_before(token_ids: Tensor, position_ids: Tensor, pad_id: int) -> Tensor:
    """Return the tokens before each place of rows of texts, nearest first. (R, T, LOOKBACK).

    Args:
        position_ids: (R, T), from 0 within each text: what is of another text is padding.
    """
    found = []
    for back in range(1, LOOKBACK + 1):
        shifted = torch.full_like(token_ids, pad_id)
        shifted[:, back:] = token_ids[:, :-back]
        found.append(shifted.masked_fill(position_ids < back, pad_id))
    return torch.stack(found, dim=-1)


def following(before: Tensor, token_ids: Tensor) -> Tensor:
    """Return the last tokens up to and with each place, newest first. Shapes of `tokens_before`."""
    return torch.cat([token_ids[..., None], before[..., :-1]], dim=-1)

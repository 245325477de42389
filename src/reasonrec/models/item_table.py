"""The item table: one row per catalogue item, in the backbone's hidden space.

Rows come from the item's text through the same model (``text``, as in the paper), are learned per
item (``id``; where every title has a token of its own, that token's embedding is the row), or are
text plus a learned residual that starts at 0 (``text+id``).
"""

import torch
from torch import Tensor, nn

from reasonrec.models.config import Dtype, ItemRows


class ItemTable(nn.Module):
    """Holds the rows that are learned and the rows that were encoded from text.

    Args:
        kind: Where rows come from.
        num_items: N.
        width: D.
        dtype: In which rows from text are stored; those just encoded with gradient stay float32.
        title_token_ids: (N,), the token of every title; with ``kind = "id"`` the rows are then the
            input embeddings of those tokens, and nothing of their own is stored.
    """

    encoded: Tensor
    steps_since_refresh: Tensor
    title_token_ids: Tensor

    def __init__(
        self,
        kind: ItemRows,
        num_items: int,
        width: int,
        *,
        dtype: Dtype = "float32",
        title_token_ids: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind: ItemRows = kind
        self.num_items = num_items
        self.is_tied = kind == "id" and title_token_ids is not None
        tokens = title_token_ids if self.is_tied else None
        self.register_buffer("title_token_ids", tokens, persistent=False)
        self.learned: nn.Parameter | None = None
        if kind == "id" and not self.is_tied:
            self.learned = nn.Parameter(torch.randn(num_items, width) * 0.02)
        elif kind == "text+id":
            self.learned = nn.Parameter(torch.zeros(num_items, width))
        num_encoded = num_items if "text" in kind else 0
        encoded = torch.zeros(num_encoded, width, dtype=getattr(torch, dtype))
        self.register_buffer("encoded", encoded)
        # a buffer, so that an interrupted run refreshes at the steps of an uninterrupted one
        self.register_buffer("steps_since_refresh", torch.zeros((), dtype=torch.long))

    @property
    def is_encoded(self) -> bool:
        """Whether rows come from text and so grow stale while the model is trained."""
        return "text" in self.kind

    def forward(
        self, token_embeddings: Tensor, live: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Return all rows, (N, D), with gradient to what is learned.

        Args:
            token_embeddings: Input embeddings of the backbone, (V, D).
            live: Item indices (K,) and their rows just encoded with gradient (K, D); they take the
                place of the stored ones.
        """
        if self.is_tied:
            return token_embeddings[self.title_token_ids]
        if self.kind == "id":
            assert self.learned is not None
            return self.learned
        rows = self.encoded
        if live is not None:
            rows = rows.float().index_copy(0, live[0], live[1].float())
        return rows if self.learned is None else rows + self.learned

    @torch.no_grad()
    def store(self, item_index: Tensor, rows: Tensor) -> None:
        """Replace stored text rows: (K,) indices and (K, D) rows."""
        self.encoded[item_index] = rows.to(self.encoded.dtype)

"""A backbone that reads prompts and the thoughts that branch off them, together or row by row."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from reasonrec.models.branches import Batch, branch_attention
from reasonrec.models.config import HeadConfig, WeightsConfig


class BranchingBackbone(nn.Module):
    """Hidden states of trunks and branches (`branches.Batch`) from any causal LM."""

    def __init__(
        self,
        backbone: nn.Module,
        head: HeadConfig,
        weights: WeightsConfig,
        *,
        can_branch: bool | None,
    ) -> None:
        """Args:
        head: What is dropped in training.
        can_branch: Whether the backbone takes positions and a mask of ours; None: it is tried.
        """
        super().__init__()
        self.backbone: Any = backbone
        self.head = head
        self.weights = weights
        self._can_branch = can_branch

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def run_backbone(self, embeddings: Tensor, **inputs: Any) -> Any:
        """Run the backbone without its language head; ``last_hidden_state`` is (B, T, D)."""
        with self._recomputing():
            return self.backbone.base_model(inputs_embeds=embeddings, **inputs)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Let the layers of a pass with gradient be computed again in the backward pass."""
        if not (self.weights.gradient_checkpointing and torch.is_grad_enabled()):
            yield
            return
        # a layer does so in training mode only, and RecPO's pass is one in evaluation mode, without
        # dropout: the mode of the layer alone is changed, not that of the modules in it
        layers = [m for m in self.backbone.modules() if isinstance(m, GradientCheckpointingLayer)]
        modes = [layer.training for layer in layers]
        for layer in layers:
            layer.training = layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # pyright: ignore[reportArgumentType]
        try:
            yield
        finally:
            for layer, mode in zip(layers, modes):
                layer.training, layer.gradient_checkpointing = mode, False

    def embed(self, token_ids: Tensor) -> Tensor:
        embeddings = self.backbone.get_input_embeddings()(token_ids)
        if self.training and self.head.token_dropout:
            kept = torch.rand(token_ids.shape, device=embeddings.device) >= self.head.token_dropout
            embeddings = embeddings * kept[..., None]
        return F.dropout(embeddings, self.head.dropout, self.training)

    def hidden_states(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return hidden states of the trunk (B, T, D) and of the branches (B, G, S, D)."""
        if batch.branch_ids is None:
            return self.states_of_rows(batch.trunk_ids, batch.trunk_lengths), None
        longest = batch.trunk_ids.shape[1] + batch.branch_ids.shape[-1]
        if self.takes_own_masks(longest):
            return self._hidden_shared(batch)
        return self._hidden_apart(batch)

    def takes_own_masks(self, longest: int) -> bool:
        """Return whether positions and an attention mask of ours mean what they say.

        Then one pass may hold a trunk and branches of ``longest`` tokens together. Tried once, on
        a few tokens. Layers that look back over a window would not see its end in a mask of ours,
        so a longer sequence gets a row of its own.
        """
        if self._can_branch is None:
            self._can_branch = self._try_branches()
        config = self.backbone.config.get_text_config()
        windows = [
            getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")
        ]
        return self._can_branch and all(w is None or longest <= w for w in windows)

    @torch.no_grad()
    def _try_branches(self) -> bool:
        was_training = self.training
        self.eval()
        vocabulary = self.backbone.get_output_embeddings().weight.shape[0]
        ids = torch.arange(12, device=self.device)[None] * 7 % vocabulary
        row = torch.tensor([[6]], device=self.device)
        batch = Batch(
            ids[:, :6], row[0], branch_ids=ids[:, 6:].reshape(1, 2, 3),
            branch_lengths=torch.full_like(row, 3).expand(1, 2),
            branch_at=torch.cat([row - 1, row - 3], 1),
        )  # fmt: skip
        try:
            shared, apart = self._hidden_shared(batch), self._hidden_apart(batch)
        except (ValueError, TypeError, RuntimeError, NotImplementedError):
            return False
        finally:
            self.train(was_training)
        error = max(float((a - b).float().norm() / b.float().norm()) for a, b in zip(shared, apart))
        return error < (1e-3 if shared[0].dtype == torch.float32 else 0.05)

    def _hidden_apart(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the same as `_hidden_shared` from a pass over the trunks and one over B G rows."""
        assert batch.branch_ids is not None and batch.branch_lengths is not None
        assert batch.branch_at is not None
        (B, T), (_, G, S) = batch.trunk_ids.shape, batch.branch_ids.shape
        place = torch.arange(T + S, device=batch.trunk_ids.device)
        trunk = self.states_of_rows(batch.trunk_ids, batch.trunk_lengths)
        begin = batch.branch_at.reshape(-1, 1) + 1  # (BG, 1)
        ids = torch.cat(
            [batch.trunk_ids.repeat_interleave(G, 0), batch.branch_ids.reshape(-1, S)], 1
        )
        source = torch.where(place < begin, place, T + place - begin).clamp(max=T + S - 1)
        hidden = self.states_of_rows(
            ids.gather(1, source), begin[:, 0] + batch.branch_lengths.reshape(-1)
        )
        step = (begin + place[:S])[..., None].expand(-1, -1, hidden.shape[-1])
        return trunk, hidden.gather(1, step).reshape(B, G, S, -1)

    def states_of_rows(self, ids: Tensor, lengths: Tensor, *, dropout: bool = True) -> Tensor:
        """Return hidden states (R, T, D) of rows (R, T) that are padded on the right."""
        position = torch.arange(ids.shape[1], device=ids.device)
        embeddings = self.embed(ids) if dropout else self.backbone.get_input_embeddings()(ids)
        return self.run_backbone(
            embeddings, attention_mask=(position < lengths[:, None]).long(), use_cache=False
        ).last_hidden_state

    def _hidden_shared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return hidden states (B, T, D) and (B, G, S, D) from one pass over B rows."""
        assert batch.branch_ids is not None and batch.branch_lengths is not None
        assert batch.branch_at is not None
        B, T = batch.trunk_ids.shape
        position = torch.arange(T, device=batch.trunk_ids.device)
        _, G, S = batch.branch_ids.shape
        step = torch.arange(S, device=position.device)
        may_attend = branch_attention(
            batch.trunk_lengths, T, batch.branch_lengths, batch.branch_at, S
        )
        positions = torch.cat(
            [position.expand(B, T), (batch.branch_at[..., None] + 1 + step).reshape(B, G * S)], 1
        )
        ids = torch.cat([batch.trunk_ids, batch.branch_ids.reshape(B, G * S)], 1)
        embeddings = self.embed(ids)
        bias = torch.zeros(may_attend.shape, dtype=embeddings.dtype, device=embeddings.device)
        bias.masked_fill_(~may_attend, torch.finfo(bias.dtype).min)
        hidden = self.run_backbone(
            embeddings, attention_mask=bias[:, None], position_ids=positions, use_cache=False
        ).last_hidden_state
        return hidden[:, :T], hidden[:, T:].reshape(B, G, S, -1)

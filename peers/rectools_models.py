"""SASRec, eSASRec, HSTU and BERT4Rec of RecTools, trained by the library, stopped by ``Watch``.

- SASRec: the authors' blocks, next item at every position, softmax over the whole catalogue.
- eSASRec: the recipe that RecTools' readme recommends: SASRec's objective with LiGR blocks (pre-
  norm, gated residuals, SwiGLU) and sampled softmax over uniform negatives.
- HSTU: relative position and, where the data have times, relative time attention; cosine scores
  divided by a temperature, sampled softmax.
- BERT4Rec: masked items, softmax over the whole catalogue, mask put after the history.

Departs from the library: it trains on the last events of a user only; here longer histories are
cut into windows, so that nothing of training is left out. It scores items at padded and unmasked
places as well, which its loss then leaves out; here those scores are never made. HSTU's default
loss is a softmax over bare cosines, which cannot become sharp; the temperature that the library
offers (``logits_t``) is set.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from contract import Histories, Prepared, Scorer, Watch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel, HSTUModel, SASRecModel
from rectools.models.nn.transformers.constants import MASKING_VALUE
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools.models.rank import Distance
from torch import nn

TEMPERATURE = 0.05
"""Of HSTU's cosines; the value of its authors."""


def train_sasrec(prepared: Prepared, settings: Mapping[str, Any], seed: int) -> Scorer:
    return _train(SASRecModel, {"loss": "softmax"}, prepared, settings, seed)


def train_esasrec(prepared: Prepared, settings: Mapping[str, Any], seed: int) -> Scorer:
    chosen = {
        "loss": "sampled_softmax",
        "n_negatives": settings["num_negatives"],
        "transformer_layers_type": LiGRLayers,
        "transformer_layers_kwargs": {"ff_factors_multiplier": 4, "ff_activation": "swiglu"},
    }
    return _train(SASRecModel, chosen, prepared, settings, seed)


def train_hstu(prepared: Prepared, settings: Mapping[str, Any], seed: int) -> Scorer:
    chosen = {
        "loss": "sampled_softmax",
        "n_negatives": settings["num_negatives"],
        "lightning_module_kwargs": {"logits_t": TEMPERATURE},
        "relative_time_attention": prepared.timestamp is not None,
        "relative_pos_attention": True,
    }
    return _train(HSTUModel, chosen, prepared, settings, seed)


def train_bert4rec(prepared: Prepared, settings: Mapping[str, Any], seed: int) -> Scorer:
    chosen = {"loss": "softmax", "mask_prob": settings["mask_share"]}
    return _train(BERT4RecModel, chosen, prepared, settings, seed)


def _train(
    model_class: type,
    chosen: Mapping[str, Any],
    prepared: Prepared,
    settings: Mapping[str, Any],
    seed: int,
) -> Scorer:
    seed_everything(seed, verbose=False)
    max_epochs = settings["max_epochs"]
    # the library pads every window to the whole length: no more of it than somebody's history has
    longest = max(len(session) for session in prepared.sessions())
    max_events = min(settings["max_events"], longest)
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    stop = _Stop(Watch(prepared, settings["check_every"], settings["patience"]))
    model = model_class(
        n_blocks=settings["num_blocks"],
        n_heads=settings["num_heads"],
        n_factors=settings["num_factors"],
        dropout_rate=settings["dropout"],
        session_max_len=max_events,
        lr=settings["learning_rate"],
        batch_size=settings["batch_size"],
        lightning_module_type=AskedPlaces,
        # a trainer is copied before it is used; the callback must be the one that is read later
        get_trainer_func=lambda: Trainer(
            max_epochs=max_epochs, min_epochs=max_epochs, accelerator=accelerator, devices=1,
            deterministic="warn" if accelerator == "gpu" else True,
            logger=False, enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, callbacks=[stop],
        ),
        **chosen,
    )  # fmt: skip
    scorer = stop.scorer = _Transformer(model, prepared.num_items)
    model.fit(_log(prepared, max_events))
    scorer.epochs = stop.watch.restore(model.torch_model)
    return scorer


class AskedPlaces(TransformerLightningModule):
    """The library's training, with scores at the places that have a target, and at no others.

    The loss is the same, of ``softmax`` and of ``sampled_softmax``, of dot products and cosines.
    Where most of a batch is padding, or most of it is not masked, nearly all of the work of a step
    was to score a catalogue where nothing was asked; and of what was left, to carry (P, M) scores
    through memory ten times.
    """

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        network, is_asked = self.torch_model, batch["y"] != 0  # (B, L)
        item_rows = network.item_model.get_all_embeddings()
        states = network.encode_sessions(batch, item_rows)[is_asked]  # (P, D)
        target, offered = batch["y"][is_asked], None
        if self.loss == "sampled_softmax":
            offered = torch.cat([target[:, None], batch["negatives"][is_asked]], dim=1)  # (P, C)
        if network.similarity_module.distance == Distance.COSINE:
            states, item_rows = (
                nn.functional.normalize(one, dim=-1, eps=1e-8) for one in (states, item_rows)
            )
        loss = CatalogueLoss.apply(
            states, item_rows, target, batch["yw"][is_asked], self.logits_t, offered
        )
        self.log(self.train_loss_name, loss, on_step=False, on_epoch=True)
        return loss


class CatalogueLoss(torch.autograd.Function):
    """Mean of the weighted cross-entropies of P places over M items, with its gradient.

    A few places at a time, so that their scores stay in the processor's cache: the gradient of a
    cross-entropy needs nothing but the scores, so they are made once, used and forgotten. Where a
    few items are ``offered`` (P, C), target first, the softmax is over those; up to some 13,000
    items it is faster to score all and leave the others out than to gather C rows for every place
    and to scatter their gradients. Three times as fast as automatic gradients on 3,883 items.
    """

    PLACES = 128
    """Places at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        states_P_D: torch.Tensor,
        rows_M_D: torch.Tensor,
        target_P: torch.Tensor,
        weight_P: torch.Tensor,
        temperature: float,
        offered_P_C: torch.Tensor | None,
    ) -> torch.Tensor:
        to_states, to_rows = torch.empty_like(states_P_D), torch.zeros_like(rows_M_D)
        loss = states_P_D.new_zeros(())
        for start in range(0, len(states_P_D), CatalogueLoss.PLACES):
            places = slice(start, start + CatalogueLoss.PLACES)
            states, weight = states_P_D[places], weight_P[places, None] / len(states_P_D)
            scores = catalogue = states @ rows_M_D.T
            target = target_P[places, None]
            if offered_P_C is not None:
                scores, target = catalogue.gather(1, offered_P_C[places]), torch.zeros_like(target)
            scores /= temperature
            asked = scores.gather(1, target)
            top = scores.amax(1, keepdim=True)
            change = scores.sub_(top).exp_()
            total = change.sum(1, keepdim=True)
            loss += ((total.log() + top - asked) * weight).sum()
            change /= total
            change.scatter_add_(1, target, -torch.ones_like(total))
            change *= weight / temperature
            if offered_P_C is not None:  # one item may be offered twice
                change = catalogue.zero_().scatter_add_(1, offered_P_C[places], change)
            torch.mm(change, rows_M_D, out=to_states[places])
            to_rows.addmm_(change.T, states)
        ctx.save_for_backward(to_states, to_rows)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        to_states, to_rows = ctx.saved_tensors
        return gradient * to_states, gradient * to_rows, None, None, None, None


class _Stop(Callback):
    """Asks the watch after every epoch."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.scorer: _Transformer | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Stop":
        return self

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.scorer is not None
        if self.watch.is_over(
            trainer.current_epoch + 1, self.scorer.model.torch_model, self.scorer
        ):
            trainer.should_stop = True
            trainer.fit_loop.min_epochs = 0


class _Transformer:
    """Scores histories by a model of RecTools, without its filters and its lists."""

    def __init__(self, model: Any, num_items: int) -> None:
        self.model, self.num_items = model, num_items
        self.epochs = 0

    @property
    def is_known(self) -> np.ndarray:
        is_known = np.zeros(self.num_items, bool)
        is_known[self.model.data_preparator.get_known_item_ids().astype(np.int64)] = True
        return is_known

    @torch.inference_mode()
    def score(self, histories: Histories) -> np.ndarray:
        preparator, network = self.model.data_preparator, self.model.torch_model
        # the library's own numbers of the items that it knows, padding before them
        item_of = preparator.get_known_item_ids().astype(np.int64)  # (M,)
        first = preparator.n_item_extra_tokens
        token_of = np.zeros(self.num_items, np.int64)
        token_of[item_of] = np.arange(first, first + len(item_of))
        length = self.model.session_max_len
        is_masked = MASKING_VALUE in preparator.extra_token_ids
        sessions = np.zeros((len(histories), length), np.int64)
        for row, items in enumerate(histories.items):
            tokens = token_of[items]
            if is_masked:
                tokens = np.append(tokens, preparator.extra_token_ids[MASKING_VALUE])
            tokens = tokens[-length:]
            sessions[row, length - len(tokens) :] = tokens
        device = next(network.parameters()).device
        batch = {"x": torch.from_numpy(sessions).to(device)}
        if getattr(self.model, "relative_time_attention", False):
            batch["unix_ts"] = torch.from_numpy(_times(histories, length)).to(device)
        item_rows = network.item_model.get_all_embeddings()
        states = network.encode_sessions(batch, item_rows)[:, -1, :]  # (B, D)
        scores_B_M = network.similarity_module(states, item_rows)[:, first:]
        scores = np.full((len(histories), self.num_items), -np.inf, np.float32)
        scores[:, item_of] = scores_B_M.float().cpu().numpy()
        return scores


def _times(histories: Histories, length: int) -> np.ndarray:
    """Return the seconds of the last events and of the question, (B, length + 1); what comes
    before the first event has its time, as in the library's own batches."""
    assert histories.times is not None and histories.asked_at is not None
    times = np.empty((len(histories), length + 1), np.int64)
    for row, (past, now) in enumerate(zip(histories.times, histories.asked_at, strict=True)):
        known = np.append(past, now)[-(length + 1) :]
        times[row] = known[0]
        times[row, length + 1 - len(known) :] = known
    return times


def _log(prepared: Prepared, max_events: int) -> Dataset:
    """Return the training events as RecTools takes them.

    The library sorts by time and keeps the order of rows that share one, so the order of the
    prepared log survives. Without times the place in the log stands for the time.
    """
    num_events = len(prepared.item_index)
    seconds = prepared.timestamp if prepared.timestamp is not None else np.arange(num_events)
    events = _windows(prepared.user_index, max_events)
    return Dataset.construct(
        pd.DataFrame(
            {
                Columns.User: np.repeat(np.arange(len(events)), [len(one) for one in events]),
                Columns.Item: prepared.item_index[np.concatenate(events)],
                Columns.Weight: 1.0,
                Columns.Datetime: pd.to_datetime(seconds[np.concatenate(events)], unit="s"),
            }
        )
    )


def _windows(user_index: np.ndarray, max_events: int) -> list[np.ndarray]:
    """Return the places in the log of each window: ``max_events`` inputs and the event after them.

    Windows lie end to end from a user's last event back, each sharing one event with the next, so
    that every event but a user's first is a target once.
    """
    ends = np.append(np.flatnonzero(np.diff(user_index)) + 1, len(user_index))
    starts = np.append(0, ends[:-1])
    return [
        np.arange(max(start, end - max_events - 1), end)
        for start, last in zip(starts, ends, strict=True)
        for end in range(last, min(start + 1, last - 1), -max_events)
        if end - start > 1
    ]

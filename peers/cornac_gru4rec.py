"""GRU4Rec of cornac: its network, sampled losses, optimiser and session-parallel batches.

The library's own interface trains for a fixed number of epochs and scores one history at a time,
so the loop is here: its batches, forward, loss and step, with a look at validation in between, and
many histories scored together. A user's training events are one session. Cross-entropy over the
targets of a batch and negatives drawn by popularity to the power of ``sample_power``.

Departs from the library: its weights always start from one fixed draw; here the seed decides.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from contract import Histories, Prepared, Scorer, UnfitError, Watch
from cornac.models.gru4rec.gru4rec import GRU4RecModel, IndexedAdagradM, io_iter


def train_gru4rec(prepared: Prepared, settings: Mapping[str, Any], seed: int) -> Scorer:
    torch.manual_seed(seed)
    rng = np.random.RandomState(seed)  # what the library draws with
    width = settings["num_factors"]
    model = GRU4RecModel(
        n_items=prepared.num_items,
        layers=[width],
        dropout_p_embed=settings["dropout"],
        dropout_p_hidden=settings["dropout"],
        sample_alpha=settings["sample_power"],
        loss="cross-entropy",
    )
    optimiser = IndexedAdagradM(model.parameters(), settings["learning_rate"], settings["momentum"])
    scorer = _Recurrent(model, width, settings["max_events"], prepared.item_counts > 0)
    watch = Watch(prepared, settings["check_every"], settings["patience"])
    sessions = _sessions(prepared, settings["max_events"])
    size = min(settings["batch_size"], len(sessions))
    if size == 0:
        raise UnfitError("training must hold a user with two events; there is none")
    events = (None, prepared.item_index, None)
    for epoch in range(1, settings["max_epochs"] + 1):
        model.train()
        hidden = [torch.zeros(size, width)]
        batches = io_iter(
            s_iter=_shuffled(sessions, rng),
            uir_tuple=events,
            n_sample=settings["num_negatives"],
            sample_alpha=settings["sample_power"],
            rng=rng,
            batch_size=size,
            shuffle=True,
        )
        for last, following, is_start, is_alive in batches:
            if len(last) == 0:
                continue
            hidden[0][np.flatnonzero(is_start)] = 0.0
            hidden[0] = hidden[0].detach()[is_alive]
            optimiser.zero_grad()
            scores = model(
                torch.from_numpy(last), hidden, torch.from_numpy(following), training=True
            )
            loss = model.loss_function(scores, torch.from_numpy(following), len(last)) / len(last)
            if not torch.isfinite(loss):
                raise UnfitError("the loss must stay finite; with these settings it did not")
            loss.backward()
            optimiser.step()
        if watch.is_over(epoch, model, scorer):
            break
    scorer.epochs = watch.restore(model)
    return scorer


def _sessions(prepared: Prepared, max_events: int) -> list[list[int]]:
    """Return the places in the log of each user's last events, for users of two or more."""
    ends = np.append(np.flatnonzero(np.diff(prepared.user_index)) + 1, len(prepared.user_index))
    starts = np.append(0, ends[:-1])
    return [
        list(range(max(start, end - max_events - 1), end))
        for start, end in zip(starts, ends, strict=True)
        if end - start > 1
    ]


def _shuffled(
    sessions: list[list[int]], rng: np.random.RandomState
) -> Callable[[int, bool], Iterator[tuple[None, list[list[int]]]]]:
    """Return what the library asks for: sessions in batches, in another order each time."""

    def in_batches(size: int, shuffle: bool) -> Iterator[tuple[None, list[list[int]]]]:
        order = rng.permutation(len(sessions)) if shuffle else np.arange(len(sessions))
        for start in range(0, len(order), size):
            yield None, [sessions[place] for place in order[start : start + size]]

    return in_batches


class _Recurrent:
    """Reads histories in step, the shorter ones later, and scores by the state at the end."""

    def __init__(
        self, model: GRU4RecModel, width: int, max_events: int, is_known: np.ndarray
    ) -> None:
        self.model, self.width, self.max_events = model, width, max_events
        self.is_known = is_known
        self.epochs = 0

    @torch.inference_mode()
    def score(self, histories: Histories) -> np.ndarray:
        rows = [torch.from_numpy(items[-self.max_events :]) for items in histories.items]
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        state = torch.zeros(len(rows), self.width)
        for step in range(longest):
            reading = torch.nonzero(lengths >= longest - step).squeeze(1)
            items = torch.stack([rows[b][step - longest + len(rows[b])] for b in reading.tolist()])
            embedded, _, _ = self.model.embed(items, None)
            state[reading] = self.model.hidden_step(embedded, [state[reading]], training=False)
        scores = self.model.score_items(state, self.model.Wy.weight, self.model.By.weight)
        return scores.numpy()

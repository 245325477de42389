"""Training examples: windows of the training log, with or without thoughts, as tensors.

Every event of every user is a target once an epoch. A window shows up to ``max_history`` events;
the state after each of them predicts the next one, and branches attach a thought to some of them.
The order of all epochs is drawn up beforehand from the seed, so that resuming is skipping.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from reasonrec.data.dataset import InteractionLog
from reasonrec.models.branches import Batch
from reasonrec.records import Histories, Lookup
from reasonrec.rng import stream
from reasonrec.traces.found import evidence_columns, found_columns, pad_rows
from reasonrec.traces.prompts import Prompts, PromptWriter
from reasonrec.traces.verbaliser import Verbaliser

NONE = -100
"""Label of a position without a target, as in torch's losses."""

UNTOLD = 0.05
"""Share of the windows whose prompts do not tell times and ratings where ``prompt.elapsed`` and
``prompt.ratings`` would, so that a history without them can be asked about."""

Propose = Callable[[Batch, Histories], list[Lookup]]
"""(prompts and the places (B, G) behind which thoughts stand, the whole histories there, B * G) ->
the candidates that each thought names."""


@dataclass(frozen=True)
class Windows:
    """W slices of a training log; the last event of each is a target only."""

    start: np.ndarray
    """(W,), int64, first event."""
    last: np.ndarray
    """(W,), int64, last event, included."""

    def __len__(self) -> int:
        return len(self.start)

    def at_most(self, number: int, *, above_all: np.ndarray | None = None) -> "Windows":
        """Return so many windows in the same order, the first ones.

        Args:
            above_all: (K,), events of the log; windows that end in one of them come before others.
        """
        if len(self) <= number:
            return self
        is_other = np.zeros(len(self), bool)
        if above_all is not None:
            is_other = ~np.isin(self.last, above_all)
        kept = np.sort(np.argsort(is_other, kind="stable")[:number])
        return Windows(self.start[kept], self.last[kept])


def hold_out_last(log: InteractionLog, *, max_events: int, max_frac: float) -> np.ndarray:
    """Return the last events of some users, which later stages ask about and earlier ones skip.

    A model that was trained on an event half remembers it, and reinforcement learning about it
    would teach that thoughts are of no use.

    Args:
        max_events: Most events in all; users with at least three are drawn, the same for all seeds.
        max_frac: Most events as a share of the log.

    Returns:
        (K,), int64, ascending positions in the log.
    """
    last = log.user_offsets[1:][np.diff(log.user_offsets) >= 3] - 1
    count = min(max_events, int(max_frac * len(log)), len(last))
    return np.sort(stream(0, "held-out").permutation(last)[:count])


def events_with_history(log: InteractionLog, *, least: int = 2) -> np.ndarray:
    """Return the positions (K,) of events with at least that many of their user before them."""
    position = np.arange(len(log)) - log.user_offsets[log.user_index]
    return np.flatnonzero(position >= least)


def schedule_windows(
    log: InteractionLog, *, max_history: int, num_epochs: int, batch_size: int, seed: int
) -> Windows:
    """Return the windows of all epochs in training order.

    In each epoch a user's events are cut every ``max_history`` events from a random offset on;
    neighbouring windows share one event, which is a target in the first and history in the second.
    Windows of similar length share a batch; batches come in random order.
    """
    epochs = [
        _windows_of_epoch(log, max_history, stream(seed, "windows", e)) for e in range(num_epochs)
    ]
    ordered = [
        _shuffle(start, last, batch_size, stream(seed, "window-order", e))
        for e, (start, last) in enumerate(epochs)
    ]
    return Windows(*(np.concatenate(column) for column in zip(*ordered, strict=True)))


def _windows_of_epoch(
    log: InteractionLog, max_history: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    begin, num_events = log.user_offsets[:-1], np.diff(log.user_offsets)
    begin, num_events = begin[num_events > 0], num_events[num_events > 0]
    L = max_history
    offset = np.where(num_events > L + 1, rng.integers(0, L, len(begin)), 0)
    num_windows = np.maximum(1, -(-(num_events - 1 + offset) // L))
    user = np.repeat(np.arange(len(begin)), num_windows)
    k = np.arange(len(user)) - np.repeat(num_windows.cumsum() - num_windows, num_windows)
    start = np.maximum(0, k * L - offset[user])
    last = np.minimum(num_events[user] - 1, (k + 1) * L - offset[user])
    return begin[user] + start, begin[user] + last


def _shuffle(
    start: np.ndarray, last: np.ndarray, batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(len(start))
    pool = 16 * batch_size  # sort by length inside pools, so that padding stays small
    length = (last - start)[order]
    order = order[np.lexsort((length, np.arange(len(order)) // pool))]
    num_whole = len(order) // batch_size
    batches = order[: num_whole * batch_size].reshape(num_whole, batch_size)
    order = np.concatenate(
        [batches[rng.permutation(num_whole)].ravel(), order[num_whole * batch_size :]]
    )
    return start[order], last[order]


class WindowDataset(TorchDataset):
    """Builds the tensors of `Batch` for windows; with a verbaliser, also thoughts as branches.

    Args:
        num_branches: Thoughts per window. With ``held_out``, all but the last ask about the
            held-out event of the window, if it has one; the others are after random positions.
        held_out: (K,), positions in the log that no state was trained to predict. They are no
            next-item targets here either, and the only ones that a thought is ranked for: a
            trunk that remembers the answer would learn that thoughts are of no use. None ranks
            for every thought.
        writes: Whether the branches are thoughts; False puts what a fixed rule looks up there, the
            newest items, without a word.
        in_prompt: Whether the branches then hold what was looked up as text, the end of a prompt,
            none of it to be written.
        propose: Names the candidates of the thoughts; None for thoughts without any.
    """

    def __init__(
        self,
        log: InteractionLog,
        windows: Windows,
        writer: PromptWriter,
        *,
        verbaliser: Verbaliser | None = None,
        num_branches: int = 0,
        held_out: np.ndarray | None = None,
        writes: bool = True,
        in_prompt: bool = False,
        propose: Propose | None = None,
        seed: int = 0,
    ) -> None:
        self.log = log
        self.windows = windows
        self.writer = writer
        self.verbaliser = verbaliser
        self.num_branches = num_branches
        self.writes = writes
        self.in_prompt = in_prompt
        self.propose = propose
        self.is_held_out: np.ndarray | None = None
        if held_out is not None:
            self.is_held_out = np.zeros(len(log), bool)
            self.is_held_out[held_out] = True
        self.seed = seed

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return one batch for the named windows; torch calls this with a batch's indices."""
        index = np.asarray(rows)
        start, last = self.windows.start[index], self.windows.last[index]
        is_told = None
        if self.writer.prompt.elapsed or self.writer.prompt.ratings:
            draws = [stream(self.seed, "told", int(i)).random() for i in index]
            is_told = np.array(draws) >= UNTOLD
        histories = self.log.histories(start, last, asked=last)
        prompts = self.writer.prompts(histories, is_told=is_told)
        H = prompts.item_ends.shape[1]
        column = np.arange(H)
        is_target = column <= (last - start)[:, None]
        begins_user = self.log.user_offsets[self.log.user_index[start]] == start
        is_target[:, 0] = begins_user  # in the middle of a user the empty prompt predicts nothing
        event = np.minimum(start[:, None] + column, last[:, None])
        if self.is_held_out is not None:
            is_target &= ~self.is_held_out[event]
        next_item = np.where(is_target, self.log.item_index[event], NONE)
        batch = {
            "trunk_ids": torch.from_numpy(prompts.token_ids),
            "trunk_lengths": torch.from_numpy(prompts.lengths),
            "item_ends": torch.from_numpy(prompts.item_ends),
            "next_item": torch.from_numpy(next_item).long(),
        }
        if self.verbaliser is not None:
            batch |= self._branches(index, start, last, begins_user, prompts)
        return batch

    def _branches(
        self,
        index: np.ndarray,
        start: np.ndarray,
        last: np.ndarray,
        begins_user: np.ndarray,
        prompts: Prompts,
    ) -> dict[str, Tensor]:
        assert self.verbaliser is not None
        G, length = self.num_branches, last - start
        lowest = np.minimum(np.where(begins_user, 1, 10), length)  # not after a cut-off history
        draws = np.stack([stream(self.seed, "branches", int(i)).random(G) for i in index])
        column = lowest[:, None] + (draws * (length - lowest + 1)[:, None]).astype(np.int64)
        if self.is_held_out is not None:  # always the last event of a user, so of a window
            column[self.is_held_out[last], : max(1, G - 1)] = length[self.is_held_out[last], None]
        event = (start[:, None] + column).ravel()
        exists = np.repeat(length > 0, G)  # a lone first event leaves nothing to think about
        histories = self.log.histories_before(event)
        is_ranked = exists if self.is_held_out is None else exists & self.is_held_out[event]
        target = np.where(is_ranked, self.log.item_index[event], NONE)
        labels = {
            "branch_at": torch.from_numpy(np.take_along_axis(prompts.item_ends, column, 1)),
            "target": torch.from_numpy(target).long().reshape(len(index), G),
        }
        if not self.writes:
            gathered = self.verbaliser.gather(histories, num_visible=column.ravel())
            names = ("named_item", "named_weight", "named_kind")
            found = (torch.from_numpy(part) for part in evidence_columns(gathered))
            labels |= {name: part.reshape(len(index), G, -1) for name, part in zip(names, found)}
            if self.in_prompt:
                rows = self.verbaliser.as_prompt(gathered)
                lengths = np.array([len(row) for row in rows]) * exists
                labels |= self._branch_tokens(
                    pad_rows([np.array(row) for row in rows], self.writer.pad_id),
                    lengths,
                    len(index),
                )
            return labels
        keys = (index[:, None] * G + np.arange(G)).ravel()
        candidates = None
        if self.propose is not None:
            trunk = Batch(
                torch.from_numpy(prompts.token_ids),
                torch.from_numpy(prompts.lengths),
                branch_at=labels["branch_at"],
            )
            candidates = self.propose(trunk, histories)
        thoughts = self.verbaliser.write(
            histories, seed=self.seed, keys=keys, num_visible=column.ravel(), candidates=candidates
        )
        ids, lengths, written = pad_branches(
            thoughts.tokens, thoughts.is_written, self.writer.pad_id
        )
        B = len(index)
        names = ("named_at", "named_item", "named_weight", "named_kind")
        columns = zip(names, found_columns(thoughts.named), strict=True)
        labels |= self._branch_tokens(ids, np.where(exists, lengths, 0), B)
        return labels | {
            "is_written": torch.from_numpy(written & exists[:, None]).reshape(B, G, -1),
            **{name: torch.from_numpy(part).reshape(B, G, -1) for name, part in columns},
        }

    def _branch_tokens(self, ids: np.ndarray, lengths: np.ndarray, B: int) -> dict[str, Tensor]:
        return {
            "branch_ids": torch.from_numpy(ids).reshape(B, self.num_branches, -1),
            "branch_lengths": torch.from_numpy(lengths).reshape(B, self.num_branches),
        }


def pad_branches(
    tokens: list[list[int]], is_written: list[list[bool]], pad_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return token ids (R, S), lengths (R,) and written marks (R, S), padded on the right."""
    lengths = np.array([len(row) for row in tokens], np.int64)
    inside = np.arange(lengths.max(initial=1)) < lengths[:, None]
    ids = np.full(inside.shape, pad_id, np.int64)
    ids[inside] = [token for row in tokens for token in row]
    written = np.zeros(inside.shape, bool)
    written[inside] = [mark for row in is_written for mark in row]
    return ids, lengths, written


def keep_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collate nothing: `WindowDataset` builds whole batches."""
    return batch

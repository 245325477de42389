"""Training texts of the language-model baselines: histories whose items are spelled in tokens.

The windows are those of no-think (`schedule_windows`), so that each event of each user is a target
once an epoch and is predicted from the same history as there.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from reasonrec.data.dataset import InteractionLog
from reasonrec.models.answers import AnsweringModel
from reasonrec.models.branches import Batch
from reasonrec.models.grounding import TitleWritingModel
from reasonrec.models.text_batch import TextBatch
from reasonrec.rng import stream
from reasonrec.training.examples import Windows, pad_branches


class ContinuedHistories(TorchDataset):
    """Rows of `TextBatch`: a window's items behind each other, each the answer to those before.

    The tokens of the prompt, and of a first item that is not the first of its user, have no weight.
    """

    def __init__(self, log: InteractionLog, windows: Windows, model: AnsweringModel) -> None:
        self.log, self.windows, self.writer = log, windows, model.writer

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return one batch for the named windows; torch calls this with a batch's indices."""
        index = np.asarray(rows)
        start, last = self.windows.start[index], self.windows.last[index]
        prompts = self.writer.prompts(self.log.histories(start, last, asked=last))
        answers = [self.writer.item_tokens(item) for item in self.log.item_index[last]]
        most = max(len(answer) for answer in answers)
        ids = np.pad(prompts.token_ids, ((0, 0), (0, most)), constant_values=self.writer.pad_id)
        for row, (length, answer) in enumerate(zip(prompts.lengths, answers)):
            ids[row, length : length + len(answer)] = answer
        ends = prompts.lengths + [len(answer) for answer in answers]
        begins_user = self.log.user_offsets[self.log.user_index[start]] == start
        # in the middle of a user the empty history predicts nothing
        second = prompts.item_ends[:, min(1, prompts.item_ends.shape[1] - 1)]
        first = np.where(begins_user, prompts.item_ends[:, 0], second)
        place = np.arange(ids.shape[1])
        weight = (place > first[:, None]) & (place < ends[:, None])
        return {
            "token_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(place).repeat(len(ids), 1),
            "weight": torch.from_numpy(weight).float(),
        }


def continuation_loss(
    model: AnsweringModel, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean of ``-log p`` over the tokens of all items that are answers."""
    batch = TextBatch.of_words(inputs["token_ids"], inputs["position_ids"], inputs["weight"])
    logp, _, _ = model(batch)
    loss = -(logp * batch.weight).sum() / batch.weight.sum().clamp(min=1)
    return loss, {"train/token": loss.item()}


class WrittenTitles(TorchDataset):
    """Batches of histories with the title that comes next, in words, behind several positions.

    Args:
        num_branches: Positions of each window that are asked about in one epoch, drawn; all where
            it has no more.
        max_tokens: Tokens to which titles are cut.
    """

    def __init__(
        self,
        log: InteractionLog,
        windows: Windows,
        model: TitleWritingModel,
        *,
        num_branches: int,
        max_tokens: int,
        seed: int,
    ) -> None:
        self.log, self.windows, self.writer = log, windows, model.writer
        self.num_branches, self.seed = num_branches, seed
        self.opening, self.end = model.opening, model.end_token
        self.titles = [model.title_tokens(item, max_tokens) for item in range(model.num_items)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return one batch for the named windows; torch calls this with a batch's indices."""
        index = np.asarray(rows)
        start, last = self.windows.start[index], self.windows.last[index]
        prompts = self.writer.prompts(self.log.histories(start, last, asked=last))
        begins_user = self.log.user_offsets[self.log.user_index[start]] == start
        tokens: list[list[int]] = []
        at: list[int] = []
        most = int((last - start).max()) + 1  # of a batch of short windows none has G positions
        G = min(self.num_branches, most)
        for row, window in enumerate(index.tolist()):
            asked = np.arange(0 if begins_user[row] else 1, last[row] - start[row] + 1)
            if len(asked) > G:
                drawn = stream(self.seed, "written-titles", window).choice(
                    len(asked), G, replace=False
                )
                asked = asked[np.sort(drawn)]
            for column in [*asked.tolist(), *[-1] * (G - len(asked))]:
                item = int(self.log.item_index[start[row] + max(column, 0)])
                is_real = column >= 0
                tokens.append([*self.opening, *self.titles[item], self.end] if is_real else [])
                at.append(int(prompts.item_ends[row, max(column, 0)]))
        written = [
            [False] * len(self.opening) + [True] * (len(t) - len(self.opening)) if t else []
            for t in tokens
        ]
        ids, lengths, is_written = pad_branches(tokens, written, self.writer.pad_id)
        B, S = len(index), ids.shape[1]
        return {
            "trunk_ids": torch.from_numpy(prompts.token_ids),
            "trunk_lengths": torch.from_numpy(prompts.lengths),
            "branch_ids": torch.from_numpy(ids).reshape(B, G, S),
            "branch_lengths": torch.from_numpy(lengths).reshape(B, G),
            "branch_at": torch.tensor(at).reshape(B, G),
            "is_written": torch.from_numpy(is_written).reshape(B, G, S),
        }


def title_loss(
    model: TitleWritingModel, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean of ``-log p`` over the written tokens of titles, their ends included."""
    batch = Batch(**inputs)
    logp = model(batch)
    assert batch.is_written is not None
    loss = -logp.sum() / batch.is_written.sum().clamp(min=1)
    return loss, {"train/token": loss.item()}

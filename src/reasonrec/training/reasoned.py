"""Supervised fine-tuning on questions, thoughts and answers (R2Rec): prompt masked, rows packed.

Texts are packed: a row holds several behind each other, each with positions of its own, and none
attends to another (`transformers` reads that off the positions). A step then costs what it trains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from reasonrec import ranks
from reasonrec.errors import TraceError
from reasonrec.models.answers import AnsweringModel
from reasonrec.models.text_batch import Choices, TextBatch, choice_tensors, choices_of, moved
from reasonrec.rng import stream
from reasonrec.traces.recital import Recital


@dataclass(frozen=True)
class ReasonedText:
    """One text to learn from."""

    token_ids: np.ndarray
    """(T,), int64: prompt, thought, marker, answer, end."""
    num_prompt: int
    """Tokens that are only read."""
    answer_at: int
    """Where the answer starts."""
    is_recited: np.ndarray
    """(T,), bool: tokens of the thought that are not to be learned."""
    choices: Choices = ()
    """Where the answer is a choice among those that the question offers."""


def texts_of(
    model: AnsweringModel,
    traces: pl.DataFrame,
    *,
    think: bool,
    recites: bool = False,
    offers: Callable[[Mapping[str, Any]], Sequence[str]] | None = None,
) -> list[ReasonedText]:
    """Return the texts of kept traces.

    Args:
        offers: Says of a row of ``traces`` everything that could be answered, as the student writes
            it, so that its answer is learned as a choice among them. None: as any other words.
        think: False leaves the thoughts out: the answer follows the question.
        recites: Whether what stands on a chain is put behind its cue, and not learned.

    Raises:
        TraceError: There is none.
    """
    if recites and think and "recitals" not in traces.columns:
        raise TraceError(
            "thoughts recite what their traces say of chains, and these traces were written by a "
            "version that did not; make them anew, or set recites to never"
        )
    texts = []
    for row in traces.filter("kept").iter_rows(named=True):
        prompt = model.prompt_tokens(row["prompt"])
        told = [Recital(**one) for one in row["recitals"]] if recites and think else []
        reply, at, is_recited = model.reply_tokens(
            row["thought"] if think else "", row["answer"], told
        )
        begin = len(prompt) + at
        choices: Choices = ()
        if offers is not None:
            encode = model.writer.encode
            answers = [encode(answer) for answer in offers(row)]
            found = choices_of(answers, encode(row["answer"]), model.end_token)
            choices = moved(found, begin)
        texts.append(
            ReasonedText(
                np.array([*prompt, *reply]),
                num_prompt=len(prompt),
                answer_at=begin,
                is_recited=np.array([False] * len(prompt) + is_recited),
                choices=choices,
            )
        )
    if not texts:
        raise TraceError(
            "supervised fine-tuning needs at least one kept trace; got none. "
            "`reasonrec traces show FOLDER` says why traces were set aside"
        )
    return texts


class PackedTexts(TorchDataset):
    """Rows of packed texts for a whole run, drawn up in advance: every text once an epoch.

    Args:
        tokens_per_row: Texts are put behind each other up to this length; a longer one has a row
            of its own.
        batch_size: The run is cut to whole batches where it has one.
        answer_weight: Weight, beside 1 for a token of the thought, of a choice of the answer;
            of an answer token, where the answer is no choice.
    """

    def __init__(
        self,
        texts: Sequence[ReasonedText],
        *,
        num_epochs: int,
        tokens_per_row: int,
        batch_size: int,
        answer_weight: float,
        pad_id: int,
        seed: int,
    ) -> None:
        self.texts, self.answer_weight, self.pad_id = texts, answer_weight, pad_id
        self.rows: list[list[int]] = []
        for epoch in range(num_epochs):
            room = 0
            for n in stream(seed, "sft-order", epoch).permutation(len(texts)).tolist():
                length = len(texts[n].token_ids)
                if length > room:
                    self.rows.append([])
                    room = tokens_per_row
                self.rows[-1].append(n)
                room -= length
        self.rows = self.rows[: max(batch_size, len(self.rows) - len(self.rows) % batch_size)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        packed = [[self.texts[n] for n in self.rows[r]] for r in rows]
        width = max(sum(len(text.token_ids) for text in row) for row in packed)
        ids = np.full((len(packed), width), self.pad_id, np.int64)
        position = np.zeros((len(packed), width), np.int64)
        weight = np.zeros((len(packed), width), np.float32)
        choices: list[list[tuple[int, Sequence[int]]]] = [[] for _ in packed]
        for r, row in enumerate(packed):
            begin = end = 0
            for text in row:
                end = begin + len(text.token_ids)
                ids[r, begin:end] = text.token_ids
                position[r, begin:end] = np.arange(end - begin)
                weight[r, begin + text.num_prompt : end] = 1.0
                weight[r, begin:end][text.is_recited] = 0.0
                if text.choices:
                    choices[r] += moved(text.choices, begin)
                else:
                    weight[r, begin + text.answer_at : end] = self.answer_weight
                begin = end
            # padding continues the last text, which does not see it: rows of one text need no mask
            last = len(row[-1].token_ids)
            position[r, end:] = np.arange(last, last + width - end)
        choice_at, choice_ids = choice_tensors(choices)
        return {
            "token_ids": torch.from_numpy(ids),
            "position_ids": torch.from_numpy(position),
            "weight": torch.from_numpy(weight),
            "choice_at": choice_at,
            "choice_ids": choice_ids,
            "choice_weight": (choice_at > 0) * self.answer_weight,
        }


def reasoned_loss(
    model: AnsweringModel, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, float]]:
    """Return the weighted mean of ``-log p`` over tokens and choices of answers, and its parts.

    The mean is over the tokens and choices of all processes together.

    Source: R2Rec, SFT objective (``docs/paper_index.md``, entry *SFT*); choices are ours.
    """
    batch = TextBatch(
        *(inputs[name] for name in ("token_ids", "position_ids", "weight")),
        *(inputs[name] for name in ("choice_at", "choice_ids")),
    )
    logp, _, choice_logp = model(batch)
    weight = inputs["choice_weight"]
    (total,) = ranks.mean_counts(float(batch.weight.sum() + weight.sum()))
    loss = -((logp * batch.weight).sum() + (choice_logp * weight).sum()) / max(total, 1e-9)
    with torch.no_grad():
        is_thought = batch.weight == 1
        is_answer, answers = batch.weight > 1, logp
        if weight.numel():
            is_answer, answers = weight > 0, choice_logp
        parts = {
            "sft/answer_logp": (answers * is_answer).sum() / is_answer.sum().clamp(min=1),
            "sft/thought_logp": (logp * is_thought).sum() / is_thought.sum().clamp(min=1),
        }
    return loss, {name: float(value) for name, value in parts.items()}

"""Texts as tensors: what is read, what is learned word by word, and what is chosen among few.

An answer is one of those that its question offers, and that is how it is ranked. So it can be
learned so, too: as a choice, among the tokens with which some offered answer goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Choices = Sequence[tuple[int, Sequence[int]]]
"""Of one text: places of tokens that are chosen, and what each is chosen from, itself first."""


@dataclass
class TextBatch:
    """Rows of text, one or several packed behind each other."""

    token_ids: Tensor
    """(R, T), padded on the right."""
    position_ids: Tensor
    """(R, T), from 0 within each text, which attends to itself alone; padding continues it."""
    weight: Tensor
    """(R, T), float32: how much each token counts in the loss; 0 for what is only read."""
    choice_at: Tensor
    """(R, C): places of tokens that are chosen among few; 0 fills rows that have fewer."""
    choice_ids: Tensor
    """(R, C, A): what could stand there, what does stand there first; -1 fills."""

    @classmethod
    def of_words(cls, token_ids: Tensor, position_ids: Tensor, weight: Tensor) -> "TextBatch":
        """Return texts in which nothing is chosen among few."""
        nothing = (one.to(token_ids.device) for one in choice_tensors([()] * len(token_ids)))
        return cls(token_ids, position_ids, weight, *nothing)

    def to(self, device: torch.device | str) -> "TextBatch":
        return TextBatch(*(tensor.to(device) for tensor in vars(self).values()))


def choices_of(answers: Sequence[Sequence[int]], label: Sequence[int], end_token: int) -> Choices:
    """Return where an answer's tokens, the end among them, have to be chosen, and from what.

    A token that every answer has which begins as this one does is no choice.

    Args:
        answers: Tokens of everything that can be answered.
        label: Those of the answer that is right, one of ``answers``.
    """
    ended, asked = [[*answer, end_token] for answer in answers], [*label, end_token]
    points = []
    for place, right in enumerate(asked):
        begins = [one for one in ended if one[:place] == asked[:place]]
        others = dict.fromkeys(one[place] for one in begins if one[place] != right)
        if others:
            points.append((place, [right, *others]))
    return points


def moved(choices: Choices, by: int) -> Choices:
    """Return the choices of a text that stands ``by`` tokens further on."""
    return [(place + by, ids) for place, ids in choices]


def choice_tensors(rows: Sequence[Choices]) -> tuple[Tensor, Tensor]:
    """Return the choices of each row as (R, C) and (R, C, A), as `TextBatch` holds them."""
    num_choices = max(len(row) for row in rows)
    num_ids = max((len(ids) for row in rows for _, ids in row), default=1)
    at = torch.zeros((len(rows), num_choices), dtype=torch.long)
    choice_ids = torch.full((len(rows), num_choices, num_ids), -1)
    for r, row in enumerate(rows):
        for c, (place, ids) in enumerate(row):
            at[r, c] = place
            choice_ids[r, c, : len(ids)] = torch.tensor(ids)
    return at, choice_ids


def choice_logp(batch: TextBatch, wanted: Tensor, logp: Tensor) -> Tensor:
    """Return the log-probabilities (R, C) of the choices of a batch, 0 where there is none.

    Args:
        logp: (M, V), of the M places where ``wanted`` (R, T) is True.
    """
    row = torch.arange(len(wanted), device=logp.device)[:, None]
    is_choice = batch.choice_at > 0
    place = (wanted.flatten().cumsum(0) - 1).view(wanted.shape)[row, batch.choice_at][is_choice]
    ids = batch.choice_ids[is_choice]
    among = logp[place].gather(-1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
    zeros = torch.zeros(is_choice.shape, device=logp.device)
    return zeros.masked_scatter(is_choice, among.log_softmax(-1)[:, :1])


def text_batch(
    texts: Sequence[tuple[Sequence[int], int]],
    pad_id: int,
    choices: Sequence[Choices] | None = None,
) -> TextBatch:
    """Return texts as one row each; tokens from the given place on have weight 1."""
    ids, lengths = padded([list(tokens) for tokens, _ in texts], pad_id)
    place = torch.arange(ids.shape[1])
    begin = torch.tensor([at for _, at in texts])
    weight = (place >= begin[:, None]) & (place < lengths[:, None])
    chosen = choice_tensors(choices or [()] * len(texts))
    return TextBatch(ids, place.expand(ids.shape), weight.float(), *chosen)


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ragged rows as (R, T), padded on the right, and their lengths (R,)."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), max(len(row) for row in rows)), pad_id)
    for r, row in enumerate(rows):
        ids[r, : len(row)] = torch.tensor(row)
    return ids, lengths

"""Generates a title in ordinary words and ranks the catalogue by what lies near it (grounding).

The words are written greedily behind the answer marker, as `answers.write` does for R2Rec; the
title tokens of a tiny backbone are shut. What was written and every item's title are then read
alone by the same model, and items are ranked by the distance between the states.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reasonrec.models.answers import AnsweringModel, HeadlessModel, write
from reasonrec.models.branches import Batch, read_states
from reasonrec.models.text_batch import padded
from reasonrec.records import Histories, Scored
from reasonrec.traces.prompts import ANSWER


class TitleWritingModel(HeadlessModel):
    """A causal LM that writes titles word by word behind several positions of one history."""

    def forward(self, batch: Batch) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return log p (B, G, S) of every written token of the branches, 0 elsewhere, float32."""
        _, hidden = self.hidden_states(batch)
        assert hidden is not None and batch.is_written is not None and batch.branch_ids is not None
        wanted = batch.is_written
        # token s is predicted from the state at s - 1; the opening, which stands first, is given
        states = F.dropout(hidden[wanted.roll(-1, dims=-1)], self.head.dropout, self.training)
        loss = F.cross_entropy(
            self.token_logits(states), batch.branch_ids[wanted], reduction="none"
        )
        return torch.zeros_like(hidden[..., 0], dtype=torch.float32).masked_scatter(wanted, -loss)

    def token_logits(self, states: Tensor) -> Tensor:
        """Return float32 logits of words; a title's own token is never written.

        (..., V), or where titles have tokens of their own, which are the last ones, (..., V - N).
        """
        if self.num_words is None:
            return super().token_logits(states)
        # the head of a tiny backbone is a product with its embeddings; titles are most of them
        words = self.backbone.get_output_embeddings().weight[: self.num_words]
        return (states @ words.T).float().masked_fill(self.is_shut, -torch.inf)

    @cached_property
    def num_words(self) -> int | None:
        """Tokens of words, the special ones among them; None where titles are words too."""
        titles = self.writer.title_token_ids
        return None if titles is None else int(titles.min())

    @cached_property
    def is_shut(self) -> Tensor:
        """(V - N,), True for words that are never written."""
        assert self.num_words is not None
        bos: Any = self.tokenizer.bos_token_id
        shut = {bos, *self.never_written.tolist()} - {self.end_token}  # a tiny backbone has one
        words = torch.arange(self.num_words)
        return torch.isin(words, torch.tensor(sorted(shut))).to(self.device)

    @cached_property
    def opening(self) -> list[int]:
        """The tokens between history and answer."""
        return [*self.writer.opening, *self.writer.encode(ANSWER)]

    def title_tokens(self, item_index: int, most: int) -> list[int]:
        """Return an item's title in ordinary words, cut to ``most`` tokens."""
        return self.writer.encode(f" {self.titles[item_index]}")[:most]


@torch.no_grad()
def text_states(
    model: AnsweringModel, texts: list[list[int]], *, mean: bool, batch_size: int = 256
) -> Tensor:
    """Return the states (R, D) of texts that the model reads alone, behind its begin token.

    Args:
        mean: Take the mean over the text's tokens; False takes the last one.
    """
    bos = model.tokenizer.bos_token_id
    start: list[int] = [] if bos is None else [int(bos)]  # pyright: ignore[reportArgumentType]
    states = [torch.empty(0, 1)] if not texts else []
    for begin in range(0, len(texts), batch_size):
        rows = [[*start, *text] or [model.end_token] for text in texts[begin : begin + batch_size]]
        ids, lengths = (x.to(model.device) for x in padded(rows, model.writer.pad_id))
        hidden = model.states_of_rows(ids, lengths)
        if not mean:
            states.append(read_states(hidden, (lengths - 1)[:, None])[:, 0])
            continue
        place = torch.arange(ids.shape[1], device=ids.device)
        first = (lengths - 1).clamp(max=len(start))  # an empty text is its begin token
        is_text = ((place >= first[:, None]) & (place < lengths[:, None]))[..., None]
        states.append((hidden.float() * is_text).sum(1) / is_text.sum(1))
    return torch.cat(states)


def grounded_scores(
    written: np.ndarray, titles: np.ndarray, popularity: np.ndarray, *, power: float
) -> np.ndarray:
    """Return minus the distance of each written text to each title, as a score (R, N), float32.

    Args:
        written, titles: States (R, D) and (N, D).
        popularity: (N,), in [0, 1].
        power: 0 leaves popularity out: the score is minus the Euclidean distance. Else distances
            are scaled to [0, 1] within each row and divided by ``(1 + popularity) ** power``.

    Source: BIGRec, grounding to the actual item space and the injection of popularity.
    """
    distance = np.empty((len(written), len(titles)))
    for r, row in enumerate(written):
        # differences, not a product: a title that was written word for word lies at exactly 0
        distance[r] = np.linalg.norm(titles - row, axis=1)
    if power:
        low, high = distance.min(1, keepdims=True), distance.max(1, keepdims=True)
        distance = (distance - low) / np.maximum(high - low, 1e-12) / (1 + popularity) ** power
    return -distance.astype(np.float32)


@dataclass(frozen=True)
class GroundingRecommender:
    """Writes one title and ranks by distance to it; meets `baselines.contract.Recommender`."""

    model: TitleWritingModel
    popularity: np.ndarray
    """(N,), in [0, 1]: training events, scaled."""
    power: float = 0.0
    """How much popular items are preferred; 0 not at all."""
    mean: bool = False
    """Whether a text's state is the mean over its tokens rather than the last one."""
    max_tokens: int = 24
    """Tokens to which titles are cut, written ones and those of items; the end is one more."""
    name: str = "bigrec"
    batch_size: int = 128

    @cached_property
    def title_states(self) -> np.ndarray:
        """(N, D), the state of every item's title."""
        items = range(self.model.num_items)
        titles = [self.model.title_tokens(item, self.max_tokens) for item in items]
        return text_states(self.model.eval(), titles, mean=self.mean).cpu().numpy()

    def score(self, histories: Histories) -> Scored:
        written, _, num_tokens = self.write(histories)
        scores = grounded_scores(written, self.title_states, self.popularity, power=self.power)
        return Scored(scores, num_tokens=num_tokens)

    def write(self, histories: Histories) -> tuple[np.ndarray, list[str], np.ndarray]:
        """Return the states (R, D) of what is written after each history, its text, and how many
        tokens were written (R,), int64, an end among them."""
        model = self.model.eval()
        tokens: list[list[int]] = []
        num_tokens: list[int] = []
        for start in range(0, len(histories), self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, len(histories)))
            prompts = model.writer.prompts(histories.take(rows))
            asked = [
                [*ids[:length].tolist(), *model.writer.opening]
                for ids, length in zip(prompts.token_ids, prompts.lengths)
            ]
            drawn = write(model, asked, max_tokens=0, max_answer_tokens=self.max_tokens + 1)
            for ids, length, at in zip(
                drawn.token_ids.tolist(), drawn.lengths.tolist(), drawn.answer_at.tolist()
            ):
                tokens.append([t for t in ids[at:length] if t != model.end_token])
                num_tokens.append(length - at)
        states = text_states(model, tokens, mean=self.mean).cpu().numpy()
        texts = [str(model.tokenizer.decode(ids)).strip() for ids in tokens]
        return states, texts, np.array(num_tokens, np.int64)

"""Ranking after every sentence of a thought, as if it had ended there.

A cut thought is read where every thought is: at the end of the answer marker, which is put behind
the sentence. The thought is the trunk here and the markers are its branches, so that one pass gives
the states of all its beginnings; evidence counts from the sentence on that looked it up.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reasonrec.models.branches import Batch
from reasonrec.models.generation import Generated
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.traces.prompts import AFTER, ASKING, Prompts, PromptWriter

_SENTENCE_ENDS = (".", "!", "?", ";")


@dataclass
class Cuts:
    """Where the thoughts of a batch can be cut: before any word, after each sentence and look-up.

    The last cut leaves the whole thought.
    """

    at: Tensor
    """(B, G, K), tokens that are kept, the opening included; -1 where a thought has fewer cuts."""
    num_found: Tensor
    """(B, G, K), how many of the thought's found titles are among them."""

    @property
    def exists(self) -> Tensor:
        """(B, G, K), bool."""
        return self.at >= 0

    def sentence_of_tokens(self, num_tokens: int) -> Tensor:
        """Return to which sentence, 0 .. K - 2, each token belongs, (B, G, S); -1 for none."""
        place = torch.arange(num_tokens, device=self.at.device)
        at = self.at.where(self.exists, num_tokens)
        index = (at[..., None] <= place).sum(2) - 1  # cuts that lie before it, the empty one aside
        return index.where(place < self.at.amax(-1, keepdim=True), -1)


def cut_places(
    tokens: Sequence[int], is_written: Sequence[bool], writer: PromptWriter
) -> list[int]:
    """Return where each sentence or look-up of a thought ends, as numbers of tokens kept.

    A look-up begins where `` After`` or a word of `ASKING` was written and ends with what was
    inserted behind it; other written text is cut after every token that ends a sentence outside of
    a title.

    Args:
        tokens: From the opening to the end of the answer marker.
        is_written: False for inserted and forced tokens.
    """
    end = len(tokens) - len(writer.answer)
    places: list[int] = []
    start = len(writer.opening)
    while start < end:
        inserted = start
        while inserted < end and is_written[inserted]:
            inserted += 1
        if inserted == end:  # the last words, with no answer of the graph behind them
            places += _sentence_ends(tokens, start, end, writer)
            break
        stop = inserted
        while stop < end and not is_written[stop]:
            stop += 1
        asking = [writer.encode(word) for word in (AFTER, *(word for word, _ in ASKING.values()))]
        question = max(_last_place(tokens[start:inserted], word) for word in asking) + start
        places += [*_sentence_ends(tokens, start, question, writer), stop]
        start = stop
    return places


def _sentence_ends(tokens: Sequence[int], start: int, end: int, writer: PromptWriter) -> list[int]:
    """Return the places in (start, end] after which written text is cut; ``end`` is one of them."""
    places, depth = [], 0
    for place in range(start, end):
        text = str(writer.tokenizer.decode([tokens[place]]))
        depth += text.count("[") - text.count("]")
        if depth <= 0 and text.rstrip().endswith(_SENTENCE_ENDS):
            behind = str(writer.tokenizer.decode(list(tokens[place + 1 : end][:1])))
            if not behind[:1].isdigit():  # the point of 3.8 ends nothing
                places.append(place + 1)
    if start < end and places[-1:] != [end]:
        places.append(end)
    return places


def _last_place(tokens: Sequence[int], wanted: Sequence[int]) -> int:
    """Return where ``wanted`` last begins, or 0: a backbone may spell it with other tokens."""
    width = len(wanted)
    for place in range(len(tokens) - width, -1, -1):
        if list(tokens[place : place + width]) == list(wanted):
            return place
    return 0


def cuts_of(batch: Batch, writer: PromptWriter) -> Cuts:
    """Return where the thoughts of a batch can be cut."""
    assert batch.branch_ids is not None and batch.branch_lengths is not None
    assert batch.is_written is not None and batch.named_item is not None
    assert batch.named_at is not None
    B, G = batch.branch_lengths.shape
    rows = zip(
        batch.branch_ids.flatten(0, 1).tolist(),
        batch.is_written.flatten(0, 1).tolist(),
        batch.branch_lengths.flatten().tolist(),
        batch.named_at.flatten(0, 1).tolist(),
        (batch.named_item >= 0).sum(-1).flatten().tolist(),
        strict=True,
    )
    all_places, all_found = [], []
    for tokens, is_written, length, named_at, num_named in rows:
        tokens, is_written = tokens[:length], is_written[:length]
        places = [len(writer.opening), *cut_places(tokens, is_written, writer)] if length else []
        all_places.append(places)
        all_found.append([sum(at < place for at in named_at[:num_named]) for place in places])
    most = max(len(places) for places in all_places)
    at = np.full((B * G, most), -1)
    found = np.zeros((B * G, most), np.int64)
    for row, (places, counts) in enumerate(zip(all_places, all_found, strict=True)):
        at[row, : len(places)], found[row, : len(counts)] = places, counts
    device = batch.branch_ids.device
    return Cuts(
        torch.from_numpy(at).to(device).reshape(B, G, most),
        torch.from_numpy(found).to(device).reshape(B, G, most),
    )


@torch.no_grad()
def scores_along(model: ReasoningRecommender, batch: Batch, cuts: Cuts) -> Tensor:
    """Return the scores after every beginning of every thought from one pass.

    The first are those of the empty thought, the last those of the whole one.

    Args:
        batch: Prompts and thoughts. The model must be in evaluation mode.

    Returns:
        (B, G, K, N), float32; without meaning where there is no cut.
    """
    assert batch.branch_ids is not None and batch.branch_lengths is not None
    assert batch.branch_at is not None
    (B, T), (_, G, S) = batch.trunk_ids.shape, batch.branch_ids.shape
    K = cuts.at.shape[-1]
    device = batch.trunk_ids.device
    begin = batch.branch_at.reshape(-1, 1) + 1  # (BG, 1)
    place = torch.arange(T + S, device=device)
    ids = torch.cat([batch.trunk_ids.repeat_interleave(G, 0), batch.branch_ids.reshape(-1, S)], 1)
    source = torch.where(place < begin, place, T + place - begin).clamp(max=T + S - 1)
    at = cuts.at.reshape(-1, K)
    answer = torch.tensor(model.writer.answer, device=device)
    named_item = named_weight = named_kind = None
    if batch.named_item is not None and batch.named_weight is not None:
        E = batch.named_item.shape[-1]
        read = torch.arange(E, device=device) < cuts.num_found.reshape(B * G, K, 1)  # (BG, K, E)
        named_item = batch.named_item.reshape(B * G, 1, E).where(read, -1)
        named_weight = batch.named_weight.reshape(B * G, 1, E).where(read, 0.0)
        assert batch.named_kind is not None
        named_kind = batch.named_kind.reshape(B * G, 1, E).expand(B * G, K, E)
    markers = Batch(
        trunk_ids=ids.gather(1, source),
        trunk_lengths=begin[:, 0] + batch.branch_lengths.reshape(-1),
        branch_ids=answer.expand(B * G, K, len(answer)),
        branch_lengths=torch.where(at >= 0, len(answer), 0),
        branch_at=begin - 1 + at.clamp(min=0),
        pre_at=(begin - 1).expand(-1, K),
        named_item=named_item,
        named_weight=named_weight,
        named_kind=named_kind,
    )
    logits = model(markers, with_tokens=False).think_logits
    return logits.reshape(B, G, K, -1)


def batch_of(model: ReasoningRecommender, prompts: Prompts, written: Generated) -> Batch:
    """Return prompts and the thoughts that were written after them as one batch, (P, G, ...)."""
    P = len(prompts.lengths)
    lengths = torch.from_numpy(prompts.lengths)
    G = len(written.lengths) // P
    return Batch(
        trunk_ids=torch.from_numpy(prompts.token_ids),
        trunk_lengths=lengths,
        branch_ids=written.token_ids.reshape(P, G, -1),
        branch_lengths=written.lengths.reshape(P, G),
        branch_at=(lengths - 1)[:, None].expand(P, G),
        is_written=written.is_written.reshape(P, G, -1),
        named_at=written.named_at.reshape(P, G, -1),
        named_item=written.named_item.reshape(P, G, -1),
        named_weight=written.named_weight.reshape(P, G, -1),
        named_kind=written.named_kind.reshape(P, G, -1),
    ).to(model.device)

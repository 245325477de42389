"""Thoughts taken apart, changed and put together again: what a faithfulness test hands the model.

A thought is a list of pieces: a sentence that the model wrote, or a question with the answer that
the graph gave. Edits move whole pieces or whole titles, so that what a look-up found stays with the
title that names it, and the model's pointer to it stays right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from reasonrec.models.anytime import cut_places
from reasonrec.models.generation import Generated
from reasonrec.models.recommenders import GivenThought
from reasonrec.records import LOOKUP_KINDS, Found, Lookup, QuestionKind
from reasonrec.traces.prompts import LIKE, NOTHING, PromptWriter

_LIKE = LOOKUP_KINDS.index("like")


class Quoted(NamedTuple):
    """One title that a look-up answered with."""

    at: int
    """Place of its last token in the piece."""
    item_index: int
    weight: float
    """As in ``Link.weight``."""
    kind: int = 0
    """The place of its kind in ``LOOKUP_KINDS``."""


@dataclass(frozen=True)
class Piece:
    """One sentence, or one look-up."""

    tokens: tuple[int, ...]
    named: tuple[Quoted, ...] = ()
    """What the answer quotes, in order."""
    via_item: int | None = None
    """The item that was asked about; None for a sentence, and where people were asked about."""
    kind: QuestionKind | None = None
    """What kind of look-up it is; None for a sentence."""
    also: tuple[Found, ...] = ()
    """What else the answer holds, which no title stands for."""


@dataclass(frozen=True)
class Thought:
    """What stands between ``<think>`` and the answer marker."""

    pieces: tuple[Piece, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces)

    @property
    def found(self) -> frozenset[int]:
        """Every item that some answer of the thought quotes."""
        return frozenset(found.item_index for piece in self.pieces for found in piece.named)

    @property
    def num_lookups(self) -> int:
        return sum(piece.kind is not None for piece in self.pieces)

    @property
    def via_items(self) -> tuple[int, ...]:
        """The items that the thought asked about, in order."""
        return tuple(piece.via_item for piece in self.pieces if piece.via_item is not None)


def thoughts_of(written: Generated, writer: PromptWriter) -> list[Thought]:
    """Return what the sampler wrote, thought by thought, as pieces."""
    thoughts = []
    rows = zip(
        written.token_ids.tolist(),
        written.is_written.tolist(),
        written.lengths.tolist(),
        written.named_at.tolist(),
        (written.named_item >= 0).sum(-1).tolist(),
        written.evidence,
        strict=True,
    )
    for tokens, is_written, length, named_at, num_named, evidence in rows:
        places = named_at[:num_named]
        pieces = take_apart(tokens[:length], is_written[:length], places, evidence, writer)
        thoughts.append(Thought(pieces))
    return thoughts


def take_apart(
    tokens: Sequence[int],
    is_written: Sequence[bool],
    named_at: Sequence[int],
    evidence: Sequence[Lookup],
    writer: PromptWriter,
) -> tuple[Piece, ...]:
    """Return the pieces of one thought, markers left out.

    A look-up begins where `` After`` or a word of `ASKING` was written and ends with what was
    inserted behind it; a look-up that was cut off before any answer is a sentence. Other written
    text is cut after every token that ends a sentence outside of a title.

    Args:
        tokens: From ``<think>`` to the end of the answer marker.
        is_written: False for inserted and forced tokens.
        named_at: Place of everything that was found, in order.
    """
    pieces: list[Piece] = []
    asked = iter(evidence)
    start = len(writer.opening)
    for stop in cut_places(tokens, is_written, writer):
        if all(is_written[start:stop]):
            pieces.append(Piece(tuple(tokens[start:stop])))
        else:
            lookup = next(asked)  # nothing is inserted but answers of the graph
            places = [at - start for at in named_at if start <= at < stop]
            # a forced end can keep the last of an answer out of the text
            named = tuple(Quoted(at, *found) for at, found in zip(places, lookup.quoted))
            also = tuple(lookup.also)[: len(places) - len(named)]
            via = lookup.via_item_index if lookup.kind == "after" else None
            pieces.append(Piece(tuple(tokens[start:stop]), named, via, lookup.kind, also))
        start = stop
    return tuple(pieces)


def assemble(thought: Thought, writer: PromptWriter) -> GivenThought:
    """Return a thought as the model reads it."""
    think = writer.opening
    starts = accumulate((len(piece.tokens) for piece in thought.pieces), initial=len(think))
    named = [
        found._replace(at=start + found.at)
        for start, piece in zip(starts, thought.pieces)
        for found in (*piece.named, *(Quoted(len(piece.tokens) - 1, *one) for one in piece.also))
    ]
    words = [token for piece in thought.pieces for token in piece.tokens]
    return GivenThought(
        tokens=(*think, *words, *writer.answer),
        named_at=tuple(found.at for found in named),
        named_item=tuple(found.item_index for found in named),
        named_weight=tuple(found.weight for found in named),
        named_kind=tuple(found.kind for found in named),
    )


def cut_after(thought: Thought, num_pieces: int) -> Thought:
    """Return the first ``num_pieces`` pieces."""
    return Thought(thought.pieces[:num_pieces])


def without_piece(thought: Thought, place: int) -> Thought:
    """Return the thought without one sentence or look-up."""
    return Thought(thought.pieces[:place] + thought.pieces[place + 1 :])


def without_chain(thought: Thought, place: int, chain: int, writer: PromptWriter) -> Thought:
    """Return the thought without one title that the answer at ``place`` quotes.

    The text is that of an answer which never held it.
    """
    piece = thought.pieces[place]
    gone, others = piece.named[chain], piece.named[:chain] + piece.named[chain + 1 :]
    start, stop = gone.at + 1 - len(writer.item_tokens(gone.item_index)), gone.at + 1
    is_like = gone.kind == _LIKE
    instead: tuple[int, ...] = ()
    if all((other.kind == _LIKE) != is_like for other in others):  # the last one of its sort
        if is_like:
            start -= len(writer.encode(LIKE))
        else:
            instead = tuple(writer.encode(NOTHING))
    moved = start + len(instead) - stop
    named = [
        other._replace(at=other.at + moved) if other.at > gone.at else other for other in others
    ]
    tokens = piece.tokens[:start] + instead + piece.tokens[stop:]
    changed = replace(piece, tokens=tokens, named=tuple(named))
    return Thought((*thought.pieces[:place], changed, *thought.pieces[place + 1 :]))


def unpointed(thought: Thought) -> Thought:
    """Return the same words, with no found item adding to its own score."""
    return Thought(tuple(replace(piece, named=(), also=()) for piece in thought.pieces))


def shuffled_pieces(thought: Thought, rng: np.random.Generator) -> Thought:
    """Return the pieces in another order, where there are two or more."""
    order = rng.permutation(len(thought.pieces))
    if len(order) > 1 and (order == np.arange(len(order))).all():
        order = np.roll(order, 1)
    return Thought(tuple(thought.pieces[i] for i in order))


def shuffled_tokens(thought: Thought, rng: np.random.Generator, writer: PromptWriter) -> Thought:
    """Return all tokens in a random order; found titles stay whole, and stay found."""
    units: list[tuple[tuple[int, ...], Quoted | None]] = []
    for piece in thought.pieces:
        start = 0
        for found in piece.named:
            first = found.at + 1 - len(writer.item_tokens(found.item_index))
            units += [((token,), None) for token in piece.tokens[start:first]]
            units.append((piece.tokens[first : found.at + 1], found))
            start = found.at + 1
        units += [((token,), None) for token in piece.tokens[start:]]
    units = [units[i] for i in rng.permutation(len(units))]
    ends = list(accumulate(len(tokens) for tokens, _ in units))
    named = [found._replace(at=end - 1) for end, (_, found) in zip(ends, units) if found]
    also = tuple(one for piece in thought.pieces for one in piece.also)
    return Thought(
        (Piece(tuple(t for tokens, _ in units for t in tokens), tuple(named), also=also),)
    )


def filler(thought: Thought, token: int) -> Thought:
    """Return one token over and over, as long as the thought."""
    return Thought((Piece((token,) * thought.num_tokens),))

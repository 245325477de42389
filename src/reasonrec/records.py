"""Frozen nouns that cross stages. Axes: B rows, N catalogue, M events, Q queries, U users."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

LookupKind = Literal["after", "alike", "like", "again", "maybe", "together"]
LOOKUP_KINDS: tuple[LookupKind, ...] = ("after", "alike", "like", "again", "maybe", "together")
"""Kinds of evidence: what people took around an item, what one person alike took, what reads like
an item, that item once more, what the state before the thought scores highest, and what goes with
the whole history taken together. In this order everywhere that kinds are counted by number; a new
one goes last, for models that were saved."""

QuestionKind = Literal["after", "alike", "maybe", "together", "taste"]
"""Kinds of questions that thoughts ask; only the answer about taste holds no item."""


@dataclass(frozen=True)
class TokenPolicy:
    """Which probabilities of tokens are meant, given their logits; by default the plain softmax."""

    temperature: float = 1.0
    """Divides the logits. Above 0."""
    top_k: int = 0
    """Likeliest tokens that the softmax is over; 0 for all."""


@dataclass(frozen=True)
class Histories:
    """What is known of B users when a recommendation is asked for: a ragged table, oldest first."""

    user_index: np.ndarray
    """(B,), int32. -1 for a user that training never saw."""
    item_index: np.ndarray
    """(M,), int32. The items of all rows, one row after the other."""
    offsets: np.ndarray
    """(B + 1,), int64. Row b is ``item_index[offsets[b]:offsets[b + 1]]``."""
    rating: np.ndarray | None = None
    """(M,), float32, NaN where an event has none. None if the data set has no ratings."""
    timestamp: np.ndarray | None = None
    """(M,), int64, UTC seconds. None if the data set has no times."""
    asked_at: np.ndarray | None = None
    """(B,), int64, UTC seconds of the query; evidence must be older. None if there are no times."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(B,), int64. Number of events in each row."""
        return np.diff(self.offsets)

    def row(self, b: int) -> np.ndarray:
        """Return the item indices of one row, oldest first."""
        return self.item_index[self.offsets[b] : self.offsets[b + 1]]

    def take(self, rows: np.ndarray) -> "Histories":
        """Return the named rows (integer indices, any order) as a table of their own."""
        rows = np.asarray(rows)
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        events = np.repeat(self.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Histories(
            user_index=self.user_index[rows],
            item_index=self.item_index[events],
            offsets=offsets,
            rating=None if self.rating is None else self.rating[events],
            timestamp=None if self.timestamp is None else self.timestamp[events],
            asked_at=None if self.asked_at is None else self.asked_at[rows],
        )

    @staticmethod
    def from_lists(rows: list[list[int]], *, user_index: list[int] | None = None) -> "Histories":
        """Return a table of plain lists of item indices, for requests and tests."""
        lengths = [len(row) for row in rows]
        return Histories(
            user_index=np.asarray(user_index or [-1] * len(rows), np.int32),
            item_index=np.asarray([item for row in rows for item in row], np.int32),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )


@dataclass(frozen=True)
class Scored:
    """What a recommender says of B histories."""

    scores: np.ndarray
    """(B, N), float32. Higher is better; any scale. (B, C) where candidates were given."""
    thoughts: tuple[str, ...] | None = None
    """B readable thoughts, or None for a method that does not think."""
    num_tokens: np.ndarray | None = None
    """(B,), int64. Tokens written or inserted per thought, or None."""
    evidence: tuple[tuple["Lookup", ...], ...] | None = None
    """For each row the graph evidence that its thought rests on, or None."""
    seconds: np.ndarray | None = None
    """(B,), float64. What each answer took where it was given, if that was not here and now."""
    parts: "Parts | None" = None
    """What the scores are the sum of, where a method knows."""


@dataclass(frozen=True)
class Parts:
    """What put each candidate where it is, kind by kind."""

    names: tuple[str, ...]
    """E kinds of evidence."""
    candidates: np.ndarray
    """(B, C), int32 item indices, -1 pads."""
    values: np.ndarray
    """(B, C, E), float32. What each kind adds to the candidate's score, less what it adds to the
    row's candidates on average; 0 at padding."""

    def of(self, row: int, item_index: int) -> dict[str, float] | None:
        """Return the parts of one candidate by name, None for an item that was none."""
        column = np.flatnonzero(self.candidates[row] == item_index)
        if not len(column):
            return None
        return dict(zip(self.names, self.values[row, column[0]].tolist(), strict=True))


@dataclass(frozen=True)
class Link:
    """One closed step of a chain: user -> ``via`` item -> neighbour -> ``item``.

    Or, where words lead on instead of people: user -> ``via`` item -> ``item`` that reads like it.
    """

    item_index: int
    """The neighbours' next item, which the user has not touched."""
    weight: float
    """Sum over neighbours of 1 / (steps after ``via``) x overlap weight, divided by how often
    ``via`` was taken to the power that was asked for; of words, their cosine. No unit, above 0."""
    num_neighbours: int
    """How many neighbours went from ``via`` to ``item``. 0 where words lead."""
    neighbour_index: int
    """The neighbour with the largest share of ``weight``, named as witness. A user index; -1 where
    words lead, of a candidate, and of what goes together."""


class Found(NamedTuple):
    """One item that an answer holds."""

    item_index: int
    weight: float
    """As in ``Link.weight``."""
    kind: int
    """The place of its kind in ``LOOKUP_KINDS``."""


@dataclass(frozen=True, eq=False)
class FoundItems:
    """E items that an answer holds, a column for each field of `Found`: there can be hundreds."""

    item_index: np.ndarray
    """(E,), int64."""
    weight: np.ndarray
    """(E,), float32."""
    kind: np.ndarray
    """(E,), int64."""

    @staticmethod
    def of(rows: Sequence[Found]) -> "FoundItems":
        item, weight, kind = zip(*rows) if rows else ((), (), ())
        return FoundItems(
            np.array(item, np.int64), np.array(weight, np.float32), np.array(kind, np.int64)
        )

    def __len__(self) -> int:
        return len(self.item_index)

    def __iter__(self) -> Iterator[Found]:
        columns = (self.item_index, self.weight, self.kind)
        return (Found(*one) for one in zip(*(column.tolist() for column in columns)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FoundItems) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def first(self, length: int) -> "FoundItems":
        """Return the first of them."""
        columns = (self.item_index, self.weight, self.kind)
        return FoundItems(*(column[:length] for column in columns))

    @staticmethod
    def joined(parts: Sequence["FoundItems"]) -> "FoundItems":
        """Return the items of all parts, in order."""
        parts = parts or [NOTHING_FOUND]
        return FoundItems(
            np.concatenate([one.item_index for one in parts]),
            np.concatenate([one.weight for one in parts]),
            np.concatenate([one.kind for one in parts]),
        )


NOTHING_FOUND = FoundItems.of(())


@dataclass(frozen=True)
class Lookup:
    """What the graph answered to one question of a thought."""

    via_item_index: int
    """The item that was asked about; of a person alike, the shared item that says most; of
    candidates, of all taken together, and of taste, -1."""
    links: tuple[Link, ...] = field(default=())
    kind: QuestionKind = "after"
    """after: what people took around an item. alike: what one person alike took lately. maybe:
    candidates of the model itself, whose links hold their probability and nobody's name. together:
    what goes with the whole history, whose links hold the score of an item-to-item model. taste:
    what the history is mostly of."""
    like: tuple[Link, ...] = field(default=())
    """Items that read like the one that was asked about, which are no links of the graph."""
    also: FoundItems = NOTHING_FOUND
    """The rest of the answer: weighed for the ranking, too little to be quoted in the thought."""
    words: tuple[str, ...] = ()
    """What the answer about taste says: categories."""

    @property
    def named(self) -> tuple[tuple[Link, QuestionKind | Literal["like"]], ...]:
        """Everything that the answer quotes, in order, each with the kind of evidence it is."""
        return (
            *((link, self.kind) for link in self.links),
            *((link, "like") for link in self.like),
        )

    @property
    def quoted(self) -> tuple[Found, ...]:
        """`named`, as the ranking weighs it."""
        return tuple(
            Found(link.item_index, link.weight, LOOKUP_KINDS.index(kind))
            for link, kind in self.named
        )

    @property
    def found(self) -> FoundItems:
        """All that the answer holds: what it quotes, then the rest."""
        return FoundItems.joined([FoundItems.of(self.quoted), self.also])


@dataclass(frozen=True)
class HistoryItem:
    """One item that a person took, as people name it."""

    item_id: str
    title: str


@dataclass(frozen=True)
class RecommendedItem:
    """One place of a ranking."""

    rank: int
    """1 is the best."""
    item_id: str
    title: str
    score: float
    """As the method gave it: any scale, higher is better."""
    because: dict[str, float] | None = None
    """What each kind of evidence adds to the score, above what it adds to the candidates on
    average; None where a method does not say."""


@dataclass(frozen=True)
class EvidenceChain:
    """One chain that a thought rests on: you -> ``via`` -> neighbour -> item."""

    via_item_id: str
    via_title: str
    neighbour_user_id: str | None
    """The witness: the neighbour with the largest share of ``weight``. None where the item's words,
    not people, lead from ``via`` to it."""
    item_id: str
    title: str
    num_neighbours: int
    """How many neighbours went from ``via`` to the item, the witness among them."""
    weight: float
    """As in ``Link.weight``. No unit, above 0."""
    rank: int | None = None
    """Place of the item in the ranking shown, None if it is not in it."""


@dataclass(frozen=True)
class Recommendation:
    """The answer to one person: a ranking, and what it rests on."""

    user_id: str | None
    """None for somebody known by a given history alone."""
    method: str
    history: tuple[HistoryItem, ...]
    """What the ranking was asked with, oldest first."""
    items: tuple[RecommendedItem, ...]
    thought: str | None = None
    chains: tuple[EvidenceChain, ...] = ()
    notes: tuple[str, ...] = ()
    """What the reader must know: items ignored, a list cut short, an answer from popularity."""

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers, for ``recommendations.json`` and ``--json``."""
        return asdict(self)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> "Recommendation":
        """Return the record that ``to_json`` took apart.

        Raises:
            ValueError: A field is missing or unknown.
        """
        try:
            return Recommendation(
                **fields
                | {
                    "history": tuple(HistoryItem(**item) for item in fields["history"]),
                    "items": tuple(RecommendedItem(**item) for item in fields["items"]),
                    "chains": tuple(EvidenceChain(**chain) for chain in fields["chains"]),
                    "notes": tuple(fields["notes"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"a recommendation must have the fields of its record: {error}"
            ) from None

"""Does a thought name only what its evidence holds? Items, users and attributes, beside chance.

The evidence of a thought is the history that its prompt shows, what it looked up, and the
categories of both. Chance is the same share for the evidence of another user: a thought that names
what everybody's evidence holds is no better grounded than that.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reasonrec.data.dataset import Catalogue
from reasonrec.evaluation.significance import bootstrap_intervals, resampling_users
from reasonrec.records import Lookup
from reasonrec.rng import stream
from reasonrec.traces.filters import named_titles
from reasonrec.traces.prompts import NOTHING, as_data

_BRACKETED = re.compile(r"\[[^\[\]]*\]?")
_TASTE = re.compile(rf"\bMostly(?::(?!{NOTHING})\s*([^;\[\]]*)|\s+([^.\[\]]*))")
"""Looked up, or in the model's own words."""
_USER = re.compile(r"\b(?:user|reader|neighbour|neighbor|customer|person)\s+#?([\w-]+)", re.I)


@dataclass(frozen=True)
class Evidence:
    """What one thought may name."""

    items: frozenset[int]
    """History that the prompt shows, look-ups asked and found."""
    users: frozenset[str]
    """Ids of the user and of the neighbours that the look-ups name."""
    attributes: frozenset[str]
    """Categories of the items."""


@dataclass(frozen=True)
class Named:
    """What one thought names; None stands for a name that nothing in the data set has."""

    items: tuple[int | None, ...]
    users: tuple[str | None, ...]
    attributes: tuple[str | None, ...]


@dataclass(frozen=True)
class Grounded:
    """How much of what thoughts name occurs in their evidence."""

    kind: str
    """``items``, ``users``, ``attributes``; of R2Rec also ``items of chains`` and ``ratings``."""
    value: float | None
    """Share of named things that occur in the evidence, mean over thoughts that name any. None
    where no thought names any."""
    ci_low: float | None
    ci_high: float | None
    chance: float | None
    """The same share for another user's evidence."""
    invented: float | None
    """Share of named things that the whole data set does not know."""
    repeated: float | None
    """Share of named things that the same thought named before."""
    num_named: float
    """Things named in a thought, mean over all thoughts."""
    n: int
    """Thoughts that name any."""


class Names:
    """Finds the names of a data set in thoughts."""

    def __init__(
        self, titles: Sequence[str], catalogue: Catalogue, user_ids: Sequence[str]
    ) -> None:
        """Read the names.

        Args:
            titles: Unique titles as the model writes them, in ``item_index`` order.
        """
        self.index_of_title = {title: index for index, title in enumerate(titles)}
        self.attributes_of = _attributes(catalogue)
        self.user_ids = user_ids
        self._known_users = frozenset(user_ids)
        known = sorted({word for words in self.attributes_of for word in words}, key=len)
        self._attribute = re.compile(
            "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in reversed(known)) or r"(?!)"
        )

    def named(self, thought: str) -> Named:
        """Return what a thought names: titles in brackets, users, and categories outside brackets.

        Whatever stands behind ``Mostly`` and is no category counts as one invented attribute for
        each comma. A user is an id behind a word such as "reader", or an id that is no number.
        """
        items = tuple(self.index_of_title.get(title) for title in named_titles(thought))
        text = _BRACKETED.sub(" ", thought)
        attributes: list[str | None] = self._attribute.findall(text)
        for looked_up, own in _TASTE.findall(text):
            unknown = self._attribute.sub("", looked_up or own).split(",")
            attributes += [None for part in unknown if part.strip()]
        called = _USER.findall(text)
        users = [name if name in self._known_users else None for name in called]
        users += [
            word
            for word in re.findall(r"[\w-]+", text)
            if not word.isdigit() and word in self._known_users and word not in called
        ]
        return Named(items, tuple(users), tuple(attributes))

    def evidence(self, user_index: int, shown: np.ndarray, lookups: Sequence[Lookup]) -> Evidence:
        """Return what a thought about a prompt that shows ``shown`` may name."""
        items = {int(item) for item in shown}
        users = {user_index} - {-1}
        for lookup in lookups:
            items |= {lookup.via_item_index, *(link.item_index for link, _ in lookup.named)} - {-1}
            users |= {link.neighbour_index for link in lookup.links} - {-1}
        return Evidence(
            frozenset(items),
            frozenset(self.user_ids[user] for user in users),
            frozenset(word for item in items for word in self.attributes_of[item]),
        )


def groundedness(
    named: Sequence[Named],
    evidence: Sequence[Evidence],
    partner: np.ndarray,
    user_index: np.ndarray,
) -> list[Grounded]:
    """Return the share of named items, users and attributes that occur in the evidence.

    Args:
        partner: Row of another user for each row, -1 for none: whose evidence chance is read from.
    """
    return [
        grounded(
            kind,
            [getattr(one, kind) for one in named],
            [getattr(one, kind) for one in evidence],
            partner,
            user_index,
        )
        for kind in ("items", "users", "attributes")
    ]


def grounded(
    kind: str,
    names: Sequence[Sequence[Any]],
    allowed: Sequence[frozenset[Any]],
    partner: np.ndarray,
    user_index: np.ndarray,
) -> Grounded:
    """Return the share of what each thought names that it may name.

    Args:
        names: What each of B thoughts names; None for what the data set does not know.
        allowed: What each may name.
    """
    rows = [row for row, found in enumerate(names) if found]
    num_named = float(np.mean([len(found) for found in names])) if names else 0.0
    if not rows:
        return Grounded(kind, None, None, None, None, None, None, num_named, 0)
    share = np.array([np.mean([name in allowed[row] for name in names[row]]) for row in rows])
    other = [
        np.mean([name in allowed[partner[row]] for name in names[row]])
        for row in rows
        if partner[row] >= 0
    ]
    (interval,) = bootstrap_intervals(
        share[:, None],
        rng=stream(0, f"faithfulness/grounding/{kind}"),
        users=resampling_users(user_index[rows]),
    )
    invented = [np.mean([name is None for name in names[row]]) for row in rows]
    repeated = [1 - len(set(names[row])) / len(names[row]) for row in rows]
    return Grounded(
        kind=kind,
        value=interval.mean,
        ci_low=interval.low,
        ci_high=interval.high,
        chance=float(np.mean(other)) if other else None,
        invented=float(np.mean(invented)),
        repeated=float(np.mean(repeated)),
        num_named=num_named,
        n=len(rows),
    )


def _attributes(catalogue: Catalogue) -> list[tuple[str, ...]]:
    """Return the categories of every item, as thoughts write them."""
    if "categories" not in catalogue.table.columns:
        return [()] * len(catalogue)
    return [
        tuple(as_data(str(word)) for word in words or ())
        for words in catalogue.table["categories"].to_list()
    ]

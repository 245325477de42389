"""On a planted world every event has a true reason: does the thought point at it?

A book was taken because a friend had read it, because it continues a series, or because of a taste;
the world recorded which. A thought agrees if its look-ups about titles name that friend as a
witness or ask about that volume, or if it names a category of the book. Chance asks about as many
titles, drawn evenly from the prompt. Two measures count look-ups of every kind, those about people
alike and about the whole history too, which nobody can draw at random: is the friend one of the
people alike, and does any look-up find the book? Chance is then what another user's thought looked
up, as for categories what it names. A chain of R2Rec is a look-up about its first item, whose
witness is its neighbour (`reasoned.reasons_of`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset, Queries
from reasonrec.errors import DataError
from reasonrec.evaluation.faithfulness.grounding import Named, Names
from reasonrec.evaluation.significance import bootstrap_intervals, resampling_users
from reasonrec.records import Histories, Lookup
from reasonrec.rng import stream
from reasonrec.traces.verbaliser import Verbaliser

NUM_DRAWS = 3
"""Random sets of questions that chance is the mean of."""
MEANINGS = {
    "friend-is-witness": "a look-up about a title, or a chain, names the friend who passed the book"
    " on",
    "friend-alike": "the friend who passed the book on is one of the people alike that it asks"
    " about",
    "found-through-friend": "a look-up about a title, or a chain, finds the book, with that friend"
    " as its witness",
    "volume-asked": "a look-up asks about the volume before, or a chain starts there",
    "found-from-volume": "the look-up about the volume before, or a chain from there, finds the"
    " book",
    "category-named": "the thought names a category of the book",
    "found": "some look-up about a title, or a chain, finds the book",
    "found-by-any": "some look-up, whatever it asks about, or a chain, finds the book",
}
"""What a thought does. A look-up finds what it quotes: about a title, what people took around it,
and for ``found-by-any`` what reads like it, too."""
OF_ANOTHER = ("friend-alike", "category-named", "found-by-any")
"""Measures whose chance is another user's thought: no random title asks for what they count."""
_OF_CAUSE = {
    "circle": (
        "friend-is-witness", "friend-alike", "found-through-friend", "found", "found-by-any",
    ),
    "series": ("volume-asked", "found-from-volume", "found", "found-by-any"),
    "taste": ("category-named", "found", "found-by-any"),
    "popularity": ("found", "found-by-any"),
    "noise": ("found", "found-by-any"),
}  # fmt: skip


@dataclass(frozen=True)
class Agreement:
    """How often thoughts point at the true reason of the event that they were to foresee."""

    cause: str
    measure: str
    """A key of ``MEANINGS``."""
    value: float
    """Share of the events of this cause."""
    ci_low: float
    ci_high: float
    chance: float
    n: int


@dataclass(frozen=True)
class Reasons:
    """Why each target was taken."""

    cause: list[str]
    friend: np.ndarray
    """(Q,), int32. User index of the friend; -1 for other causes and users who are not known."""
    volume: np.ndarray
    """(Q,), int32. Item index of the volume before; -1 for other causes."""


def has_reasons(dataset: Dataset) -> bool:
    """Return whether the data set is a planted world with its log beside it."""
    return (dataset.folder / "world" / "interactions.parquet").is_file()


def true_reasons(dataset: Dataset, queries: Queries) -> Reasons:
    """Return the recorded reasons of the targets of a planted world.

    Raises:
        DataError: The world is damaged, or a target is no event of it.
    """
    path = dataset.folder / "world" / "interactions.parquet"
    asked = pl.DataFrame(
        {
            "row": np.arange(len(queries)),
            "user_id": pl.Series(dataset.user_ids, dtype=pl.String).gather(queries.user_index),
            "item_id": pl.Series(dataset.catalogue.item_ids, dtype=pl.String).gather(
                queries.target
            ),
        }
    )
    try:
        log = pl.read_parquet(path, glob=False).select(
            "user_id", "item_id", "reason", "reason_source"
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{path} must hold the planted log with its reasons; {error}") from None
    found = asked.join(log, on=["user_id", "item_id"], how="left").sort("row")
    if found.height != len(queries) or found["reason"].null_count():
        raise DataError(
            f"every target must be one event of the planted log; {path} lacks "
            f"{found['reason'].null_count()} of {len(queries)}. Was the world generated anew?"
        )
    cause, source = found["reason"].to_list(), found["reason_source"].to_list()
    users, items = dataset.user_index_of, dataset.catalogue.index_of
    return Reasons(
        cause=cause,
        friend=np.array(
            [users.get(s, -1) if c == "circle" else -1 for c, s in zip(cause, source)], np.int32
        ),
        volume=np.array(
            [items.get(s, -1) if c == "series" else -1 for c, s in zip(cause, source)], np.int32
        ),
    )


def agreement(
    reasons: Reasons,
    targets: np.ndarray,
    user_index: np.ndarray,
    lookups: Sequence[Sequence[Lookup]],
    named: Sequence[Named],
    *,
    chance_lookups: Sequence[Sequence[Sequence[Lookup]]],
    partner: np.ndarray,
    names: Names,
) -> list[Agreement]:
    """Return how often thoughts point at the true reasons, cause by cause.

    Args:
        lookups: What each thought looked up.
        chance_lookups: The same for thoughts that ask about random titles, one list a draw.
        partner: Row of another user for each row, whose thought is the chance of `OF_ANOTHER`; -1
            for nobody, who looks up and names nothing.
    """
    none = Named((), (), ())
    others = [named[p] if p >= 0 else none for p in partner]
    lent = [lookups[p] if p >= 0 else () for p in partner]
    found = []
    for cause, measures in _OF_CAUSE.items():
        rows = [row for row, one in enumerate(reasons.cause) if one == cause]
        if not rows:
            continue
        for measure in measures:
            own = _values(measure, rows, reasons, targets, lookups, named, names)
            by_chance = [
                _values(measure, rows, reasons, targets, drawn, others, names).mean()
                for drawn in ([lent] if measure in OF_ANOTHER else chance_lookups)
            ]
            (interval,) = bootstrap_intervals(
                own[:, None],
                rng=stream(0, f"faithfulness/reasons/{cause}/{measure}"),
                users=resampling_users(user_index[rows]),
            )
            found.append(
                Agreement(
                    cause=cause,
                    measure=measure,
                    value=interval.mean,
                    ci_low=float(interval.low or 0.0),
                    ci_high=float(interval.high or 0.0),
                    chance=float(np.mean(by_chance)),
                    n=len(rows),
                )
            )
    return found


def num_titles(lookups: Sequence[Lookup]) -> int:
    """Return how many look-ups of a thought are about a title."""
    return sum(one.kind == "after" for one in lookups)


def random_lookups(
    verbaliser: Verbaliser,
    histories: Histories,
    shown: Sequence[np.ndarray],
    num_asked: Sequence[int],
    *,
    seed: int,
) -> list[list[list[Lookup]]]:
    """Return the evidence of random questions: about as many titles a user as the thought asked.

    Args:
        num_asked: Of `num_titles`.
        shown: Items of each prompt; questions are drawn from them evenly, none twice.

    Returns:
        ``NUM_DRAWS`` lists, each with the look-ups of every row.
    """
    draws = []
    for draw in range(NUM_DRAWS):
        most = max(num_asked, default=0)
        via = np.full((len(shown), most), -1, np.int32)
        for row, (items, count) in enumerate(zip(shown, num_asked)):
            rng = stream(seed, "faithfulness/random-lookups", draw, row)
            picked = rng.permutation(np.unique(items))[:count]
            via[row, : len(picked)] = picked
        tables = [verbaliser.look_up(histories, via[:, j]) for j in range(most)]
        draws.append(
            [[tables[j][row] for j in range(most) if via[row, j] >= 0] for row in range(len(shown))]
        )
    return draws


def _values(
    measure: str,
    rows: Sequence[int],
    reasons: Reasons,
    targets: np.ndarray,
    lookups: Sequence[Sequence[Lookup]],
    named: Sequence[Named],
    names: Names,
) -> np.ndarray:
    """Return 1.0 for every row whose thought meets the measure, else 0.0."""
    met = np.zeros(len(rows))
    for place, row in enumerate(rows):
        target, friend, volume = int(targets[row]), reasons.friend[row], reasons.volume[row]
        titles = [one for one in lookups[row] if one.kind == "after"]
        links = [
            (one.via_item_index, link.neighbour_index, link.item_index)
            for one in titles
            for link in one.links
        ]
        if measure == "friend-is-witness":  # an unknown friend is -1, and no witness
            met[place] = any(witness == friend for _, witness, _ in links)
        elif measure == "friend-alike":
            alike = [one.links for one in lookups[row] if one.kind == "alike"]
            met[place] = any(link.neighbour_index == friend for links in alike for link in links)
        elif measure == "found-through-friend":
            met[place] = any((witness, item) == (friend, target) for _, witness, item in links)
        elif measure == "volume-asked":
            met[place] = any(one.via_item_index == volume for one in titles)
        elif measure == "found-from-volume":
            met[place] = any((via, item) == (volume, target) for via, _, item in links)
        elif measure == "category-named":
            met[place] = bool({*named[row].attributes} & {*names.attributes_of[target]})
        elif measure == "found-by-any":
            quoted = [link for one in lookups[row] for link, _ in one.named]
            met[place] = any(link.item_index == target for link in quoted)
        else:
            met[place] = any(item == target for _, _, item in links)
    return met

"""Recommendations to people: names in, names out. Knows no web.

**What is known of a user** when serving: the history of their last test query and its target; for
a user without one, the same of their last validation query; for a user without either, their
training events. "Last" is the latest query by time, and by order where the set has no times.
Queries that ``min_history`` left out count as well: it says who is asked, not what is known.
Evaluation hides the target; serving asks what comes after it.
"""

import difflib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset, Part, Queries
from reasonrec.errors import ServingError
from reasonrec.models.ranking import top_k
from reasonrec.models.tiny.tokenizer import numbered_titles
from reasonrec.records import (
    EvidenceChain,
    Histories,
    HistoryItem,
    Lookup,
    Recommendation,
    RecommendedItem,
)

Mask = Literal["history", "none"]
MASKS = ("history", "none")
BATCH_SIZE = 256
"""Rows scored at once: 256 x 100,000 items in float32 are 100 MB."""


def recommend(
    recommender: Recommender,
    dataset: Dataset,
    user_ids: Sequence[str],
    *,
    k: int = 10,
    explain: bool = False,
    mask: Mask = "history",
) -> list[Recommendation]:
    """Return what to offer each user next, in the order of ``user_ids``.

    Args:
        user_ids: The data set's own ids.
        k: Length of each list, 1 or more. More than can be ranked gives all there is, and a note.
        explain: Add the thought and the chains it rests on.
        mask: ``history`` offers nothing that the user already took; ``none`` ranks everything.

    Raises:
        ServingError: A user is unknown (the message names ids that look alike), or ``k`` is
            below 1.
    """
    if isinstance(user_ids, str):
        raise ValueError(f"user_ids must be a sequence of ids; got one text, try [{user_ids!r}]")
    _check(k, mask)
    histories = known_histories(dataset, [_index_of(dataset, user_id) for user_id in user_ids])
    notes: list[list[str]] = [[] for _ in user_ids]
    return _answer(recommender, dataset, list(user_ids), histories, notes, k, explain, mask)


def recommend_for_history(
    recommender: Recommender,
    dataset: Dataset,
    item_ids: Sequence[str],
    *,
    user_id: str | None = None,
    k: int = 10,
    explain: bool = False,
    mask: Mask = "history",
) -> Recommendation:
    """Return what to offer somebody who took ``item_ids``, oldest first.

    The given history replaces whatever is known of ``user_id``. Items outside the catalogue are
    ignored and named in a note. Without any known item the answer is the method's prior, with a
    note.

    Args:
        user_id: Whose history it is. Unknown or None: somebody new.

    Raises:
        ServingError: ``k`` is below 1.
    """
    if isinstance(item_ids, str):
        raise ValueError(f"item_ids must be a sequence of ids; got one text, try [{item_ids!r}]")
    _check(k, mask)
    index_of = dataset.catalogue.index_of
    unknown = [item_id for item_id in item_ids if item_id not in index_of]
    known = [index_of[item_id] for item_id in item_ids if item_id in index_of]
    notes = []
    if unknown:
        shown = ", ".join(unknown[:5]) + (
            f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        )
        notes.append(
            f"ignored {len(unknown)} of {len(item_ids)} history items, "
            f"which the catalogue does not have: {shown}"
        )
    user_index = -1 if user_id is None else dataset.user_index_of.get(user_id, -1)
    row = Histories.from_lists([known], user_index=[user_index])
    histories = Histories(
        user_index=row.user_index,
        item_index=row.item_index,
        offsets=row.offsets,
        asked_at=None if dataset.train.timestamp is None else np.array([_now(dataset)]),
    )
    return _answer(recommender, dataset, [user_id], histories, [notes], k, explain, mask)[0]


def known_histories(dataset: Dataset, user_indices: Sequence[int]) -> Histories:
    """Return everything known of each user, oldest first, by the rule at the top of this module.

    ``asked_at`` is one second after the last event of the whole data set, where it has times.
    """
    users = np.asarray(user_indices, np.int64)
    parts = (_known_queries(dataset, "test"), _known_queries(dataset, "valid"))
    last = [(queries, _last_query_of(queries, dataset.num_users)) for queries in parts]
    rows = [_known_of_user(dataset, last, int(user)) for user in users]
    lengths = [len(items) for items, _, _ in rows]
    has_rating = dataset.train.rating is not None
    has_time = dataset.train.timestamp is not None
    return Histories(
        user_index=users.astype(np.int32),
        item_index=_joined([items for items, _, _ in rows], np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rating=_joined([rating for _, rating, _ in rows], np.float32) if has_rating else None,
        timestamp=_joined([time for _, _, time in rows], np.int64) if has_time else None,
        asked_at=np.full(len(rows), _now(dataset)) if has_time else None,
    )


def _known_queries(dataset: Dataset, part: Part) -> Queries:
    """Return the queries of a part after those left out of it, whose histories are shorter."""
    asked, unasked = dataset.queries(part), dataset.unasked.get(part)
    return asked if unasked is None else unasked.followed_by(asked)


def _last_query_of(queries: Queries, num_users: int) -> np.ndarray:
    """Return the row of each user's last query, -1 for a user without one. (U,), int64."""
    times = np.zeros(len(queries)) if queries.timestamp is None else queries.timestamp
    order = np.lexsort((np.arange(len(queries)), times))
    order = order[queries.user_index[order] >= 0]
    last = np.full(num_users, -1, np.int64)
    last[queries.user_index[order]] = order  # of several rows of a user the last one stays
    return last


def _known_of_user(
    dataset: Dataset, last: list[tuple[Queries, np.ndarray]], user: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return items, ratings (NaN where unknown) and times (0 where unknown) of one user."""
    for queries, row_of in last:
        if row_of[user] >= 0:
            return _history_and_target(queries, int(row_of[user]))
    log = dataset.train
    events = slice(log.user_offsets[user], log.user_offsets[user + 1])
    items = log.item_index[events]
    rating = np.full(len(items), np.nan) if log.rating is None else log.rating[events]
    time = np.zeros(len(items)) if log.timestamp is None else log.timestamp[events]
    return items, rating, time


def _history_and_target(queries: Queries, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    events = slice(queries.history_start[row], queries.history_stop[row])
    items = np.append(queries.log_item_index[events], queries.target[row])
    # the rating of a target is not kept by a data set: what is not known is NaN
    no_rating = np.full(len(items), np.nan)
    rating = (
        no_rating if queries.log_rating is None else np.append(queries.log_rating[events], np.nan)
    )
    if queries.log_timestamp is None or queries.timestamp is None:
        return items, rating, np.zeros(len(items))
    return items, rating, np.append(queries.log_timestamp[events], queries.timestamp[row])


def _now(dataset: Dataset) -> int:
    parts = (dataset.train, dataset.valid, dataset.test, *dataset.unasked.values())
    times = (part.timestamp for part in parts)
    return max((int(time.max()) for time in times if time is not None and len(time)), default=0) + 1


def _joined(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0), *parts]).astype(dtype)


def _answer(
    recommender: Recommender,
    dataset: Dataset,
    user_ids: Sequence[str | None],
    histories: Histories,
    notes: list[list[str]],
    k: int,
    explain: bool,
    mask: Mask,
) -> list[Recommendation]:
    answers = []
    ids, titles = dataset.catalogue.item_ids, _shown_titles(dataset)
    for start in range(0, len(histories), BATCH_SIZE):
        batch = histories.take(np.arange(start, min(start + BATCH_SIZE, len(histories))))
        scored = recommender.score(batch)
        ranked, scores = top_k(scored.scores, k, batch if mask == "history" else None)
        for b in range(len(batch)):
            history = batch.row(b).tolist()
            items = ranked[b][ranked[b] >= 0].tolist()  # -1 pads a list that ran out of items
            said = notes[start + b] + _notes(recommender.name, len(history), k, len(items))
            thought, chains, parts = None, (), None
            if explain:
                parts = scored.parts
                thought = scored.thoughts[b] if scored.thoughts else None
                chains = _chains(dataset, scored.evidence[b] if scored.evidence else (), items)
                if thought is None and not chains:
                    said.append(
                        f"{recommender.name} does not think, so there is nothing to explain"
                    )
            answers.append(
                Recommendation(
                    user_id=user_ids[start + b],
                    method=recommender.name,
                    history=tuple(HistoryItem(ids[item], titles[item]) for item in history),
                    items=tuple(
                        RecommendedItem(
                            rank,
                            ids[item],
                            titles[item],
                            score,
                            because=None if parts is None else parts.of(b, item),
                        )
                        for rank, (item, score) in enumerate(zip(items, scores[b].tolist()), 1)
                    ),
                    thought=thought,
                    chains=chains,
                    notes=tuple(said),
                )
            )
    return answers


def _shown_titles(dataset: Dataset) -> tuple[str, ...]:
    """Return the title of every item, told apart as in thoughts where several share one."""
    return numbered_titles(tuple(dataset.catalogue.titles))


def _notes(method: str, num_events: int, k: int, num_offered: int) -> list[str]:
    notes = []
    if num_events == 0:
        notes.append(
            f"nothing is known of this person, so this is what {method} offers to everybody new"
        )
    if num_offered < k:
        notes.append(
            f"{k} items were asked for; the catalogue has {num_offered} that can be offered"
        )
    return notes


def _chains(
    dataset: Dataset, lookups: tuple[Lookup, ...], ranked: list[int]
) -> tuple[EvidenceChain, ...]:
    """Return every link of the evidence by name, those of people first within a look-up.

    Candidates, and what goes with everything together, are none: no item and nobody leads there.
    """
    ids, titles = dataset.catalogue.item_ids, _shown_titles(dataset)
    place_of = {item: rank for rank, item in enumerate(ranked, start=1)}
    return tuple(
        EvidenceChain(
            via_item_id=ids[lookup.via_item_index],
            via_title=titles[lookup.via_item_index],
            neighbour_user_id=None if kind == "like" else dataset.user_ids[link.neighbour_index],
            item_id=ids[link.item_index],
            title=titles[link.item_index],
            num_neighbours=int(link.num_neighbours),
            weight=float(link.weight),
            rank=place_of.get(int(link.item_index)),
        )
        for lookup in lookups
        if lookup.via_item_index >= 0
        for link, kind in lookup.named
    )


def _check(k: int, mask: str) -> None:
    if k < 1:
        raise ServingError(f"k must be 1 or more; got {k}")
    if mask not in MASKS:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}; got {mask!r}")


def _index_of(dataset: Dataset, user_id: str) -> int:
    index = dataset.user_index_of.get(user_id)
    if index is not None:
        return index
    close = difflib.get_close_matches(user_id, dataset.user_ids, n=5, cutoff=0.6)
    hint = f"close to it: {', '.join(close)}" if close else f"ids look like {dataset.user_ids[0]!r}"
    raise ServingError(
        f"user {user_id!r} must be one of the {dataset.num_users} users of {dataset.name}; {hint}. "
        "For somebody new give a history of item ids instead"
    )

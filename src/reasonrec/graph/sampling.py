"""Closed chains u0 -> i0 -> u1 -> i1 -> u0 from the training graph (R2Rec, facts 8 and 9).

Two readings of "closed", since the paper's text does not decide between them:

- *candidate-closed*: i1 is the candidate. u0 took i0, u1 took i0 and i1; the edge i1 - u0 is what
  is to be predicted, and is never looked at.
- *history-closed*: i0 and i1 are both of u0's history, and u1 took both. Evidence about the user,
  the same for every candidate.

The candidate sets are exact: every chain that closes can be drawn. Departs from the paper (whose
sampling weights are unknown): items are weighed by inverse degree and neighbours by the sum of that
over the items they share. Where no chain closes, an open chain goes from one of the last history
items to the item that neighbours took soonest after it.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from reasonrec.graph import kernels
from reasonrec.graph.build import InteractionGraph, checked, frozen_array
from reasonrec.graph.config import READINGS, Reading
from reasonrec.graph.lookup import NUM_RECENT, checked_history, look_up
from reasonrec.graph.parallel import run_in_parts
from reasonrec.records import Histories
from reasonrec.rng import stream_seed

CLOSED, OPEN, HISTORY_ONLY = 0, 1, 2


@dataclass(frozen=True)
class ChainTable:
    """Chains of R queries: up to K closed ones each, else one open one, else an empty row.

    L neighbours lie on a chain: u0 -> i0 -> u1 -> i1 (-> u2 -> i2 ...) -> u0. Edge 2 j leads from
    the j-th neighbour back to the item before, edge 2 j + 1 on to the item after.
    """

    query: np.ndarray
    """(M,), int64, ascending. The row of the histories that the chain belongs to."""
    items: np.ndarray
    """(M, L + 1), int32. i0, an item of the user's history; i1; ...; -1 where it ends early."""
    users: np.ndarray
    """(M, L), int32. u1; u2; ...; -1 where it ends early."""
    weight: np.ndarray
    """(M,), float32. The chain's chance to be the first one drawn, times a constant of its query; 0
    where none was drawn by weight."""
    fallback: np.ndarray
    """(M,), int8. 0 closed, 1 open, 2 nothing but the history."""
    edge_event: np.ndarray
    """(M, 2 L), int32. Each neighbour's edges, as rows of the training log; -1 where there is none.
    All are older than the query."""
    edge_rating: np.ndarray | None
    """(M, 2 L), float32. Ratings of those edges, NaN where unknown. None if training has none."""
    user_rating: np.ndarray | None
    """(M,), float32. What u0 gave i0, NaN where unknown. None if histories have no ratings."""
    closing_rating: np.ndarray | None
    """(M,), float32. What u0 gave the last item, where chains close on the history; else NaN: it is
    the answer."""

    def __len__(self) -> int:
        return len(self.query)

    @property
    def first_item(self) -> np.ndarray:
        """(M,), int32. i0; -1 in an empty row."""
        return self.items[:, 0]

    @property
    def neighbour(self) -> np.ndarray:
        """(M,), int32. u1; -1 in an empty row."""
        return self.users[:, 0]

    @property
    def second_item(self) -> np.ndarray:
        """(M,), int32. i1: what closes a chain over one neighbour; -1 in an empty row."""
        return self.items[:, 1]

    @property
    def is_closed(self) -> np.ndarray:
        """(M,), bool."""
        return self.fallback == CLOSED

    def take(self, chains: np.ndarray, *, query: np.ndarray | None = None) -> "ChainTable":
        """Return the named chains, of other queries where ``query`` says so."""

        def taken(ratings: np.ndarray | None) -> np.ndarray | None:
            return None if ratings is None else ratings[chains]

        return ChainTable(
            query=self.query[chains] if query is None else query,
            items=self.items[chains],
            users=self.users[chains],
            weight=self.weight[chains],
            fallback=self.fallback[chains],
            edge_event=self.edge_event[chains],
            edge_rating=taken(self.edge_rating),
            user_rating=taken(self.user_rating),
            closing_rating=taken(self.closing_rating),
        )


@dataclass(frozen=True)
class _Rows:
    """The queries as the compiled loops want them."""

    users: np.ndarray
    history: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    limits: np.ndarray
    asked_at: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    def scratch(self, graph: InteractionGraph, num_chains: int = 1) -> kernels.Scratch:
        """Return what one thread needs beside its rows."""
        longest = int((self.stop - self.start).max(initial=1))
        return kernels.scratch(graph.num_users, graph.num_items, longest, num_chains)


def sample_chains(
    graph: InteractionGraph,
    histories: Histories,
    candidate: np.ndarray | None = None,
    *,
    seed: int,
    reading: Reading = "candidate-closed",
    num_chains: int = 3,
    num_neighbours: int = 1,
    max_history: int = 50,
    overlap_weight: bool = True,
    degree_weight: bool = True,
    open_from: int = 3,
    num_walks: int = 64,
    num_threads: int | None = None,
) -> ChainTable:
    """Return up to ``num_chains`` chains for each query, all through different neighbours.

    A neighbour is drawn in proportion to the sum of 1 / degree over the items that they share with
    the history, then i0 (and i1, if chains close on the history) among those in proportion to
    1 / degree. The degree of an item is the number of its older events by others. Only training
    events of others, older than ``asked_at``, are ever followed, so a query's own edges cannot
    leak. A query's chains depend on the seed and on that query alone.

    Args:
        histories: What is known of each query's user. An open chain leads out of it.
        candidate: i1 of each query, for candidate-closed chains. (R,). -1 has no chain.
        num_neighbours: Neighbours on a chain. With more than one, chains are walked from their end:
            to a taker of the last item, to an item of theirs that the user does not have, and so
            on, each step even, until i0 is drawn by weight among the items that u1 shares. A chain
            then is as likely as its walk; ``num_walks`` are tried for each chain wanted.
        max_history: Last events of a history that can be i0, or i1 of a history-closed chain.
        overlap_weight: False gives all neighbours who close a chain the same chance.
        degree_weight: False weighs all items alike: a neighbour by the number of shared items.
        open_from: Last items of a history that an open chain may lead out of, where none closes.
        num_threads: None for as many as numba uses. Changes no chain.

    Raises:
        ValueError: A candidate is missing or not wanted, lengths differ, an index is out of range.
    """
    _check_reading(reading, candidate)
    if min(num_chains, num_neighbours, max_history) < 1:
        raise ValueError(
            "num_chains, num_neighbours and max_history must be at least 1; "
            f"got {num_chains}, {num_neighbours} and {max_history}"
        )
    rows = _rows_of(graph, histories, max_history)
    candidates = np.full(len(rows), -1, np.int32) if candidate is None else candidate
    candidates = checked(candidates, np.int32, "candidate", len(rows), graph.num_items)
    shape = (len(rows), num_chains)
    items = np.full((*shape, num_neighbours + 1), -1, np.int32)
    users = np.full((*shape, num_neighbours), -1, np.int32)
    events = np.full((*shape, 2 * num_neighbours), -1, np.int32)
    position, last_position = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    weight = np.zeros(shape, np.float32)
    random_seed = np.uint64(stream_seed(seed, "graph/chains"))

    def work(begin: int, end: int) -> None:
        head = (graph.arrays, rows.scratch(graph, num_chains), begin, end, rows.users)
        asked = (rows.history, rows.start, rows.stop, rows.limits, rows.asked_at)
        settings = (graph.has_repeats, overlap_weight, degree_weight, random_seed)
        if num_neighbours > 1:
            kernels.sample_long(
                *head, candidates, *asked, candidate is None, degree_weight, random_seed,
                num_walks, items, users, weight, position, last_position,
            )  # fmt: skip
        elif candidate is not None:
            kernels.sample_candidate_closed(
                *head, candidates, *asked, *settings, items, users, weight, position, events
            )
        else:
            kernels.sample_history_closed(
                *head, *asked, *settings, items, users, weight, position, last_position, events
            )

    run_in_parts(work, len(rows), num_threads=num_threads)
    # if nobody shares two items of a history, there is no overlap to count
    has_overlap = candidate is not None or num_neighbours > 1 or max_history < NUM_RECENT
    is_open = _fall_back(
        graph, histories, items, users, position, has_overlap, open_from=open_from, seed=seed
    )
    # a query without any chain keeps its first, empty place, so that it is seen and counted
    kept = users[:, :, 0] >= 0
    kept[:, 0] = True
    kept = np.flatnonzero(kept)
    query = kept // num_chains
    users = users.reshape(-1, num_neighbours)[kept]
    fallback = np.where(users[:, 0] < 0, HISTORY_ONLY, np.where(is_open[query], OPEN, CLOSED))
    items = items.reshape(-1, num_neighbours + 1)[kept]
    events = events.reshape(-1, 2 * num_neighbours)[kept]
    run_in_parts(
        partial(kernels.edges_of, graph.arrays, users, items, rows.limits, query, events),
        len(query),
        num_threads=num_threads,
    )
    return ChainTable(
        query=query,
        items=items,
        users=users,
        weight=weight.ravel()[kept],
        fallback=fallback.astype(np.int8),
        edge_event=events,
        edge_rating=_ratings(graph.event_rating, events),
        user_rating=_ratings(histories.rating, position, kept),
        closing_rating=_ratings(histories.rating, last_position, kept),
    )


def count_closable(
    graph: InteractionGraph,
    histories: Histories,
    candidate: np.ndarray | None = None,
    *,
    reading: Reading = "candidate-closed",
    max_history: int = 50,
    num_threads: int | None = None,
) -> np.ndarray:
    """Return how many chains over one neighbour close for each query, exactly. (R,), int64.

    Arguments and errors are those of ``sample_chains``.
    """
    _check_reading(reading, candidate)
    rows = _rows_of(graph, histories, max_history)
    candidates = np.full(len(rows), -1, np.int32) if candidate is None else candidate
    candidates = checked(candidates, np.int32, "candidate", len(rows), graph.num_items)
    num_closable = np.zeros(len(rows), np.int64)

    def work(begin: int, end: int) -> None:
        kernels.count_closable(
            graph.arrays, rows.scratch(graph), begin, end, rows.users, candidates, rows.history,
            rows.start, rows.stop, rows.limits, candidate is None, num_closable,
        )  # fmt: skip

    run_in_parts(work, len(rows), num_threads=num_threads)
    return num_closable


def count_closable_everywhere(
    graph: InteractionGraph,
    histories: Histories,
    *,
    max_history: int = 50,
    num_threads: int | None = None,
) -> np.ndarray:
    """Return how many chains over one neighbour close on each item. (R, N), int64."""
    rows = _rows_of(graph, histories, max_history)
    counts = np.zeros((len(rows), graph.num_items), np.int64)

    def work(begin: int, end: int) -> None:
        kernels.count_closable_everywhere(
            graph.arrays, rows.scratch(graph), begin, end, rows.users, rows.history, rows.start,
            rows.stop, rows.limits, np.full(graph.num_items, -1, np.int64), counts,
        )  # fmt: skip

    run_in_parts(work, len(rows), num_threads=num_threads)
    return counts


def weigh_steps(
    graph: InteractionGraph,
    histories: Histories,
    candidates: np.ndarray,
    *,
    max_history: int = 50,
    window: int = 5,
    reverse_share: float = 0.5,
    recency_power: float = 1.0,
    total_power: float = 0.5,
    num_threads: int | None = None,
) -> np.ndarray:
    """Return how strongly closed chains of few steps lead to each candidate. (R, C), float64.

    A chain u0 -> i0 -> u1 -> i1 counts where u1 took i1 at most ``window`` steps after i0, as
    1 / steps, or before it, as ``reverse_share`` / steps; all times s ** -``recency_power`` for the
    s-th last item of the history, and over the number of older events of i0 to ``total_power``. So
    what the follow counter counts, from events older than the question and by others alone.

    Args:
        candidates: (R, C) item indices, -1 pads shorter rows and gets 0.
    """
    rows = _rows_of(graph, histories, max_history)
    asked = np.ascontiguousarray(candidates, np.int32)
    strength = np.zeros(asked.shape)

    def work(begin: int, end: int) -> None:
        kernels.weigh_steps(
            graph.arrays, begin, end, rows.users, asked, rows.history, rows.start, rows.stop,
            rows.limits, window, float(reverse_share), float(recency_power), float(total_power),
            np.full(graph.num_items, -1, np.int64), strength,
        )  # fmt: skip

    run_in_parts(work, len(rows), num_threads=num_threads)
    return strength


def count_older(
    graph: InteractionGraph, asked_at: np.ndarray | None, candidates: np.ndarray
) -> np.ndarray:
    """Return how many events of each candidate are older than the question. (R, C), int64."""
    asked = np.ascontiguousarray(candidates, np.int32)
    counts = np.zeros(asked.shape, np.int64)
    limits = graph.limits(asked_at, len(asked))
    kernels.count_older(graph.arrays, 0, len(asked), asked, limits, counts)
    return counts


def _check_reading(reading: str, candidate: np.ndarray | None) -> None:
    if reading not in READINGS:
        raise ValueError(f"reading must be one of {', '.join(READINGS)}; got {reading!r}")
    if (reading == "candidate-closed") != (candidate is not None):
        raise ValueError(
            f"{reading} needs {'no' if candidate is not None else 'a'} candidate a row"
        )


def _rows_of(graph: InteractionGraph, histories: Histories, max_history: int) -> _Rows:
    num_rows = len(histories)
    items, offsets = checked_history(
        graph, histories.item_index, histories.offsets, num_rows, name="histories"
    )
    is_timed = graph.has_times and histories.asked_at is not None
    return _Rows(
        users=checked(histories.user_index, np.int32, "user_index", num_rows, graph.num_users),
        history=items,
        start=frozen_array(np.maximum(offsets[:-1], offsets[1:] - max_history), np.int64),
        stop=frozen_array(offsets[1:], np.int64),
        limits=graph.limits(histories.asked_at, num_rows),
        asked_at=frozen_array(histories.asked_at if is_timed else np.zeros(num_rows), np.int64),
    )


def _ratings(
    ratings: np.ndarray | None, row: np.ndarray, kept: np.ndarray | None = None
) -> np.ndarray | None:
    """Return the rating at each row, or at the ``kept`` ones; NaN where the row is -1."""
    if ratings is None:
        return None
    row = row if kept is None else row.ravel()[kept]
    if len(ratings) == 0:
        return np.full(row.shape, np.nan, np.float32)
    return np.where(row >= 0, ratings[row], np.float32(np.nan)).astype(np.float32)


def _fall_back(
    graph: InteractionGraph,
    histories: Histories,
    items: np.ndarray,
    users: np.ndarray,
    position: np.ndarray,
    has_overlap: bool,
    *,
    open_from: int,
    seed: int,
) -> np.ndarray:
    """Fill rows without a closed chain with an open one; return which rows now have one. (R,)"""
    is_open = np.zeros(len(histories), bool)
    for back in range(1, open_from + 1):
        rows = np.flatnonzero((users[:, 0, 0] < 0) & (histories.lengths >= back))
        part = histories.take(rows)
        via = part.item_index[part.offsets[1:] - back]
        found = look_up(
            graph,
            user_index=part.user_index,
            via_item=via,
            exclude_items=(part.item_index, part.offsets),
            asked_at=part.asked_at,
            num_links=1,
            overlap_weight=has_overlap,
            seed=seed,
        )
        hit = found.item_index[:, 0] >= 0
        rows = rows[hit]
        items[rows, 0, 0] = via[hit]
        items[rows, 0, 1] = found.item_index[hit, 0]
        users[rows, 0, 0] = found.neighbour_index[hit, 0]
        position[rows, 0] = histories.offsets[rows + 1] - back
        is_open[rows] = True
    return is_open

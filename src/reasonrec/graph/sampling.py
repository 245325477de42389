"""Closed chains u0 -> i0 -> u1 -> i1 -> u0 from the training graph (R2Rec, facts 8 and 9).

Two readings of "closed", since the paper's text does not decide between them:

- *candidate-closed*: i1 is the candidate. u0 took i0, u1 took i0 and i1; the edge i1 - u0 is what
  is to be predicted, and is never looked at.
- *history-closed*: i0 and i1 are both of u0's history, and u1 took both. Evidence about the user,
  the same for every candidate.

Departs from the paper (whose sampling weights are unknown): neighbours are weighted by overlap and
items by inverse degree. Where no chain closes, an open chain goes from one of the last history
items to the item that neighbours took soonest after it, rather than to the one nearest by text.
"""

from dataclasses import dataclass

import numpy as np

from reasonrec.graph import kernels
from reasonrec.graph.build import InteractionGraph, checked, frozen_array
from reasonrec.graph.config import READINGS, Reading
from reasonrec.graph.lookup import checked_history, look_up
from reasonrec.records import Histories
from reasonrec.rng import stream_seed

CLOSED, OPEN, HISTORY_ONLY = 0, 1, 2
_NUM_OPEN_ATTEMPTS = 3


@dataclass(frozen=True)
class ChainTable:
    """Chains of R queries: up to K closed ones each, else one open one, else an empty row."""

    query: np.ndarray
    """(M,), int64, ascending. The row of the histories that the chain belongs to."""
    first_item: np.ndarray
    """(M,), int32. i0, an item of the user's history; -1 in an empty row."""
    neighbour: np.ndarray
    """(M,), int32. u1; -1 in an empty row."""
    second_item: np.ndarray
    """(M,), int32. i1: the candidate, a history item, or what an open chain leads to; or -1."""
    weight: np.ndarray
    """(M,), float32. What the chain was drawn by, above 0; 0 in an empty row."""
    fallback: np.ndarray
    """(M,), int8. 0 closed, 1 open, 2 nothing but the history."""
    num_closable: np.ndarray
    """(R,), float64. Chains that could have been drawn; estimated if events were thinned."""

    def __len__(self) -> int:
        return len(self.query)

    @property
    def is_closed(self) -> np.ndarray:
        """(M,), bool."""
        return self.fallback == CLOSED


def sample_chains(
    graph: InteractionGraph,
    histories: Histories,
    candidate: np.ndarray | None = None,
    *,
    seed: int,
    reading: Reading = "candidate-closed",
    num_chains: int = 3,
    max_history: int = 50,
    max_neighbours: int = 500,
    overlap_weight: bool = True,
    degree_weight: bool = True,
) -> ChainTable:
    """Return up to ``num_chains`` chains for each query, all through different neighbours.

    A neighbour is drawn in proportion to overlap x the sum of 1 / degree over the items that close
    a chain, then those items in proportion to 1 / degree. Overlap is the number of shared items
    among the last ``max_history``; the degree of an item is 1 + its older events by others. Only
    training events of others, older than ``asked_at``, are ever followed, so a query's own edges
    cannot leak. A query's chains depend on the seed and on that query alone.

    Args:
        histories: What is known of each query's user. An open chain leads out of it.
        candidate: i1 of each query, for candidate-closed chains. (R,). -1 has no chain.
        max_history: Last events of a history that can be i0, or i1 of a history-closed chain.
        max_neighbours: Events of one item that are followed, evenly spaced in time if it has more.
        overlap_weight: False weighs neighbours by their items alone.
        degree_weight: False weighs all items alike.

    Raises:
        ValueError: A candidate is missing or not wanted, lengths differ, an index is out of range.
    """
    num_rows = len(histories)
    if reading not in READINGS:
        raise ValueError(f"reading must be one of {', '.join(READINGS)}; got {reading!r}")
    if (reading == "candidate-closed") != (candidate is not None):
        raise ValueError(
            f"{reading} needs {'no' if candidate is not None else 'a'} candidate a row"
        )
    if min(num_chains, max_history, max_neighbours) < 1:
        raise ValueError(
            "num_chains, max_history and max_neighbours must be at least 1; "
            f"got {num_chains}, {max_history} and {max_neighbours}"
        )
    items, offsets = checked_history(
        graph, histories.item_index, histories.offsets, num_rows, name="histories"
    )
    users = checked(histories.user_index, np.int32, "user_index", num_rows, graph.num_users)
    shape = (num_rows, num_chains)
    first, second = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
    neighbour, weight = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
    num_closable = np.zeros(num_rows)
    start = frozen_array(np.maximum(offsets[:-1], offsets[1:] - max_history), np.int64)
    rows = (items, start, offsets[1:], graph.asked_at(histories.asked_at, num_rows))
    settings = (
        min(max_neighbours, int(np.diff(graph.item_offsets).max(initial=1))),
        overlap_weight,
        degree_weight,
        np.uint64(stream_seed(seed, "graph/chains")),
        np.full(graph.num_items, -1, np.int64),
    )
    out = (first, neighbour, second, weight, num_closable)
    if candidate is not None:
        candidate = checked(candidate, np.int32, "candidate", num_rows, graph.num_items)
        last_of_user = np.full(graph.num_users, -1, np.int64)
        kernels.sample_candidate_closed(
            *graph.arrays, users, candidate, *rows, *settings, last_of_user, *out
        )
    else:
        kernels.sample_history_closed(
            *graph.arrays, users, *rows, *settings,
            np.zeros(graph.num_users, np.int64),
            np.zeros(graph.num_users),
            np.full(graph.num_users, -1, np.int64),
            *out,
        )  # fmt: skip
    is_open = _fall_back(graph, histories, first, neighbour, second, weight, seed=seed)
    # a query without any chain keeps its first, empty place, so that it is seen and counted
    kept = neighbour >= 0
    kept[:, 0] = True
    fallback = np.where(neighbour < 0, HISTORY_ONLY, np.where(is_open[:, None], OPEN, CLOSED))
    return ChainTable(
        query=np.nonzero(kept)[0],
        first_item=first[kept],
        neighbour=neighbour[kept],
        second_item=second[kept],
        weight=weight[kept],
        fallback=fallback[kept].astype(np.int8),
        num_closable=num_closable,
    )


def _fall_back(
    graph: InteractionGraph,
    histories: Histories,
    first: np.ndarray,
    neighbour: np.ndarray,
    second: np.ndarray,
    weight: np.ndarray,
    *,
    seed: int,
) -> np.ndarray:
    """Fill rows without a closed chain with an open one; return which rows now have one. (R,)"""
    is_open = np.zeros(len(histories), bool)
    for back in range(1, _NUM_OPEN_ATTEMPTS + 1):
        rows = np.flatnonzero((neighbour[:, 0] < 0) & (histories.lengths >= back))
        part = histories.take(rows)
        via = part.item_index[part.offsets[1:] - back]
        found = look_up(
            graph,
            user_index=part.user_index,
            via_item=via,
            exclude_items=(part.item_index, part.offsets),
            asked_at=part.asked_at,
            num_links=1,
            seed=seed,
        )
        hit = found.item_index[:, 0] >= 0
        rows = rows[hit]
        first[rows, 0] = via[hit]
        neighbour[rows, 0] = found.neighbour_index[hit, 0]
        second[rows, 0] = found.item_index[hit, 0]
        weight[rows, 0] = found.weight[hit, 0]
        is_open[rows] = True
    return is_open

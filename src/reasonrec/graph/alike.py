"""Who is like a user, and what those people took lately: user -> shared items -> person -> items.

The same chains as in `lookup`, with the person kept and the items summed out: a person is alike by
all the items they share with the user, rare ones counting more. Departs from R2Rec, whose chains
go through one shared item and a drawn neighbour: here the people most alike are found.
"""

from dataclasses import dataclass

import numpy as np

from reasonrec.graph import kernels
from reasonrec.graph.build import InteractionGraph, checked
from reasonrec.graph.lookup import checked_history
from reasonrec.records import Link, Lookup

MOST_SHARED = 100
"""Newest distinct items of a history that people are compared by."""

MOST_GAP = 64
"""Events between two takings of a shared item that are told apart."""


@dataclass(frozen=True)
class AlikeTable:
    """R histories with up to P people each, most alike first, and up to K items of each person."""

    user_index: np.ndarray
    """(R, P), int32. -1 where there are fewer people."""
    likeness: np.ndarray
    """(R, P), float32. 0 where there is nobody."""
    via_item: np.ndarray
    """(R, P), int32. The shared item that says most, the newest of several; -1 for nobody."""
    num_shared: np.ndarray
    """(R, P), int32. Items shared."""
    item_index: np.ndarray
    """(R, P, K), int32. What they took, newest first; -1 where there is less."""
    weight: np.ndarray
    """(R, P, K), float32. 0 where there is no item."""

    def __len__(self) -> int:
        return len(self.user_index)

    def record(self, row: int, place: int) -> Lookup:
        """Return one person's answer as the evidence that a thought keeps; empty for nobody."""
        if place >= self.user_index.shape[1] or self.user_index[row, place] < 0:
            return Lookup(-1, kind="alike")
        person = int(self.user_index[row, place])
        pairs = zip(self.item_index[row, place].tolist(), self.weight[row, place].tolist())
        links = tuple(Link(item, weight, 1, person) for item, weight in pairs if item >= 0)
        return Lookup(int(self.via_item[row, place]), links, kind="alike")

    def records(self, row: int) -> list[Lookup]:
        """Return the answers of everybody who is alike, most alike first."""
        return [self.record(row, place) for place in range((self.user_index[row] >= 0).sum())]


def people_alike(
    graph: InteractionGraph,
    *,
    user_index: np.ndarray,
    history: tuple[np.ndarray, np.ndarray],
    asked_at: np.ndarray | None,
    num_people: int,
    num_links: int,
    taken_at: np.ndarray | None = None,
    degree_power: float = 0.5,
    length_power: float = 0.5,
    gap_decay: float = 1.0,
    gap_floor: float = 0.0,
    decay: float = 0.7,
) -> AlikeTable:
    """Return the people most alike, and what they took last that the user has not.

    A person's likeness is the sum, over the items that both took, of one over the number of other
    takers to ``degree_power``, divided by how many events the person has to ``length_power``. With
    ``gap_decay`` d below 1 an item counts ``f + (1 - f) d ** gap`` times that, where f is
    ``gap_floor`` and the gap is how many events whoever took it first had before the other took it
    too: who takes things soon after one another follows one another. What they took ``a`` events
    before their latest one weighs ``decay ** a`` times the likeness. People who took nothing else
    are passed over; ties go to the smaller ``user_index``. The user's own events never count, and
    neither do events at or after ``asked_at``.

    Args:
        user_index: Who asks. (R,). -1 for a user whom training never saw.
        history: The user's own history, oldest first: items of all rows (M,), and offsets (R + 1,),
            as in ``Histories``. None of them is returned.
        taken_at: UTC seconds of those items. (M,). None if unknown: gaps then count for nothing, as
            where the graph has no times.
        asked_at: UTC seconds of each query. (R,). None if unknown; ignored if the graph has no
            times.

    Raises:
        ValueError: Lengths differ, an index is out of range, or a setting is outside its range.
    """
    items, offsets = history
    num_rows = len(user_index)
    for name, value in (("num_people", num_people), ("num_links", num_links)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    for name, value in (("decay", decay), ("gap_decay", gap_decay)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1; got {value}")
    if not 0 <= gap_floor <= 1:  # no gap may make an item count more than none
        raise ValueError(f"gap_floor must be within 0 and 1; got {gap_floor}")
    counts = gap_decay < 1 and taken_at is not None and graph.has_times
    gap = np.arange(MOST_GAP + 1 if counts else 1)
    items, offsets = checked_history(graph, items, offsets, num_rows, name="history")
    people, answers = (num_rows, num_people), (num_rows, num_people, num_links)
    table = AlikeTable(
        user_index=np.full(people, -1, np.int32),
        likeness=np.zeros(people, np.float32),
        via_item=np.full(people, -1, np.int32),
        num_shared=np.zeros(people, np.int32),
        item_index=np.full(answers, -1, np.int32),
        weight=np.zeros(answers, np.float32),
    )
    kernels.alike_rows(
        graph.arrays,
        checked(user_index, np.int32, "user_index", num_rows, graph.num_users),
        items,
        graph.moments(taken_at, len(items)),
        offsets,
        graph.limits(asked_at, num_rows),
        float(degree_power),
        float(length_power),
        gap_floor + (1 - gap_floor) * gap_decay**gap,
        float(decay),
        MOST_SHARED,
        np.full(graph.num_items, -1, np.int64),
        np.full(graph.num_items, -1, np.int64),
        np.zeros(graph.num_users),
        np.full(graph.num_users, -1, np.int64),
        table.user_index,
        table.likeness,
        table.via_item,
        table.num_shared,
        table.item_index,
        table.weight,
    )
    return table

"""What the graph holds about one item of interest: user -> via -> neighbours -> their next items.

The cheapest chain (R2Rec facts 8 and 9, one neighbour, closing edge unknown) with the neighbour
summed out: a thought names ``via`` and is handed the items that neighbours took around it.
Departs from the paper: keeps order in time, and ranks items where the paper samples them.
"""

from dataclasses import dataclass

import numpy as np

from reasonrec import elapsed
from reasonrec.graph import kernels
from reasonrec.graph.build import InteractionGraph, checked
from reasonrec.records import Link, Lookup
from reasonrec.rng import stream_seed

NUM_RECENT = 10
"""Last items of a history that are compared with a neighbour's for the overlap weight."""


@dataclass(frozen=True)
class LookupTable:
    """R look-ups with up to K links each, best first."""

    item_index: np.ndarray
    """(R, K), int32. -1 where there are fewer than K links."""
    weight: np.ndarray
    """(R, K), float32. 0 where there is no link."""
    num_neighbours: np.ndarray
    """(R, K), int32. Neighbours who went from ``via`` to the item."""
    neighbour_index: np.ndarray
    """(R, K), int32. The witness: who has the largest share of ``weight``; -1 if none."""

    def __len__(self) -> int:
        return len(self.item_index)

    def record(self, row: int, via: int) -> Lookup:
        """Return one row as the evidence that a thought keeps."""
        return Lookup(int(via), self.links(row))

    def links(self, row: int, first: int | None = None) -> tuple[Link, ...]:
        """Return the links of one row, or the first of them."""
        columns = (self.item_index, self.weight, self.num_neighbours, self.neighbour_index)
        values = zip(*(column[row, :first].tolist() for column in columns))
        return tuple(Link(*one) for one in values if one[0] >= 0)


def look_up(
    graph: InteractionGraph,
    *,
    user_index: np.ndarray,
    via_item: np.ndarray,
    exclude_items: tuple[np.ndarray, np.ndarray],
    asked_at: np.ndarray | None,
    seed: int,
    num_links: int = 3,
    window: int = 5,
    max_neighbours: int = 200,
    overlap_weight: bool = True,
    reverse_share: float = 0.0,
    total_power: float = 0.0,
    same_pace: float = 0.0,
    seconds_since: np.ndarray | None = None,
) -> LookupTable:
    """Return the items that others took around ``via_item``, strongest first.

    A neighbour is any other user with ``via_item`` in the training log. An item that they took
    s steps later, s at most ``window``, gets 1 / s from them; times ``reverse_share`` if s steps
    earlier; and times 1 + the number of the user's last ten history items, ``via_item`` aside, that
    the neighbour took too. A neighbour counts once an item, by their first ``via_item``, after
    before earlier, nearest first. Weights are summed over neighbours; ties go to the smaller
    ``item_index``. The user's own events never count, so an answer in training is the answer of a
    graph without that user; events at or after ``asked_at`` never count either.

    Args:
        user_index: Who asks. (R,). -1 for a user whom training never saw.
        via_item: The item of interest. (R,). -1 finds nothing.
        exclude_items: The user's own history, oldest first: items of all rows (M,), and offsets
            (R + 1,), as in ``Histories``. None of them is returned, nor is ``via_item``.
        asked_at: UTC seconds of each query. (R,). None if unknown; ignored if the
            graph has no times.
        max_neighbours: With more occurrences of ``via_item`` than this, as many are taken, evenly
            spaced in time from a start that depends on ``seed``, user and item alone.
        overlap_weight: False weighs every neighbour alike.
        reverse_share: From 0 (only what came after) to 1.
        total_power: Weights are divided by the number of events with ``via_item`` to this power:
            0 keeps sums, 1 gives means over neighbours.
        same_pace: Steps that took about as long as it has been since the user took ``via_item``, of
            one class of `reasonrec.elapsed`, count 1 + ``same_pace`` times.
        seconds_since: How long that has been. (R,), below 0 where nobody knows. None is for
            nobody; not read where the graph has no times.

    Raises:
        ValueError: Lengths differ, an index is out of range, or a setting is below its least value.
    """
    items, offsets = exclude_items
    num_rows = len(via_item)
    for name, value in (("num_links", num_links), ("window", window)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if max_neighbours < 1 or not 0 <= reverse_share <= 1:
        raise ValueError(
            "max_neighbours must be at least 1 and reverse_share from 0 to 1; "
            f"got {max_neighbours} and {reverse_share}"
        )
    if same_pace < 0:
        raise ValueError(f"same_pace must be at least 0; got {same_pace}")
    pace = np.full(num_rows, elapsed.UNKNOWN, np.int64)
    if seconds_since is not None and graph.has_times and same_pace:
        since = checked(seconds_since, np.int64, "seconds_since", num_rows)
        pace = np.where(since < 0, elapsed.UNKNOWN, elapsed.elapsed_class(since))
    items, offsets = checked_history(graph, items, offsets, num_rows, name="exclude_items")
    shape = (num_rows, num_links)
    table = LookupTable(
        item_index=np.full(shape, -1, np.int32),
        weight=np.zeros(shape, np.float32),
        num_neighbours=np.zeros(shape, np.int32),
        neighbour_index=np.full(shape, -1, np.int32),
    )
    most = int(np.diff(graph.arrays.item_offsets).max(initial=1))
    kernels.look_up_rows(
        graph.arrays,
        checked(user_index, np.int32, "user_index", num_rows, graph.num_users),
        checked(via_item, np.int32, "via_item", num_rows, graph.num_items),
        items,
        offsets,
        graph.limits(asked_at, num_rows),
        graph.has_times and asked_at is not None,
        graph.has_repeats,
        window,
        float(reverse_share),
        float(same_pace),
        pace,
        elapsed.LIMITS,
        min(max_neighbours, most),
        NUM_RECENT if overlap_weight else 0,
        np.uint64(stream_seed(seed, "graph/lookup")),
        np.full(graph.num_users, -1, np.int32),
        np.full(graph.num_items, -1, np.int32),
        np.zeros(graph.num_items),
        np.zeros(graph.num_items, np.int32),
        table.item_index,
        table.weight,
        table.num_neighbours,
        table.neighbour_index,
    )
    if total_power:
        num_events = np.diff(graph.arrays.item_offsets)[np.maximum(via_item, 0)].clip(min=1)
        table.weight[:] *= (num_events**-total_power)[:, None]
    return table


def checked_history(
    graph: InteractionGraph, items: np.ndarray, offsets: np.ndarray, num_rows: int, *, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return a ragged table of items as the compiled loops want it, or a ``ValueError``."""
    offsets = checked(offsets, np.int64, f"the offsets of {name}", num_rows + 1)
    items = checked(items, np.int32, name, len(items), graph.num_items)
    if offsets[0] < 0 or offsets[-1] > len(items) or (np.diff(offsets) < 0).any():
        raise ValueError(f"the offsets of {name} must ascend from 0 to {len(items)}")
    if len(items) and items.min() < 0:
        raise ValueError(f"{name} must hold items of the catalogue; got -1. Drop such events")
    return items, offsets

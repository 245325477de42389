"""A prefix tree over the token sequences of all items: what a model may write, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TrieLevel:
    """All beginnings of one length, children of one node side by side."""

    token: np.ndarray
    """(n,), int64, the last token of each beginning."""
    num_items: np.ndarray
    """(n,), int64, how many items start like this; 1 or more."""
    item: np.ndarray
    """(n,), int64, the only item that does; -1 where there are several."""
    first_child: np.ndarray
    """(n,), int64, place of its first child in the next level."""
    num_children: np.ndarray
    """(n,), int64; 0 at the end of an item."""
    num_shared: np.ndarray
    """(n,), int64, how many beginnings at and below it are those of several items."""


class TokenTrie:
    """N token sequences, none of them the beginning of another.

    Args:
        sequences: Tokens of every item, in ``item_index`` order.

    Raises:
        ValueError: There is none, one is empty, two are the same, or one begins another.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        lengths = np.array([len(sequence) for sequence in sequences], np.int64)
        if not len(lengths) or lengths.min() == 0:
            raise ValueError(
                f"a trie needs at least one item, each with at least one token; got {len(lengths)} "
                f"items, the shortest of {lengths.min(initial=0)} tokens"
            )
        self.num_items = len(lengths)
        table = np.full((len(lengths), lengths.max()), -1, np.int64)
        table[np.arange(table.shape[1]) < lengths[:, None]] = [t for s in sequences for t in s]
        item, node = np.arange(len(lengths)), np.zeros(len(lengths), np.int64)
        levels: list[TrieLevel] = []
        num_above = 1
        for depth in range(table.shape[1]):
            going = lengths[item] > depth
            if not going.all():
                alone = np.bincount(node)[node[~going]] == 1
                if not alone.all():
                    first = int(item[~going][~alone][0])
                    raise ValueError(
                        "no item's tokens may be another's or begin them, else a text would not "
                        f"say which one is meant; item {first} ({list(sequences[first])}) does"
                    )
            item, node = item[going], node[going]
            keys = np.stack([node, table[item, depth]], 1)
            unique, own = np.unique(keys, axis=0, return_inverse=True)
            node = own.reshape(-1)
            num_items = np.bincount(node, minlength=len(unique))
            only = np.full(len(unique), -1, np.int64)
            only[node] = item
            only[num_items > 1] = -1
            _set_children(levels, unique[:, 0], num_above)
            none = np.zeros(len(unique), np.int64)
            shared = (num_items > 1).astype(np.int64)
            levels.append(
                TrieLevel(unique[:, 1], num_items, only, none.copy(), none.copy(), shared)
            )
            num_above = len(unique)
        if (levels[-1].num_items > 1).any():
            last = int(np.flatnonzero(levels[-1].num_items > 1)[0])
            twice = item[node == last].tolist()
            raise ValueError(f"no two items may have the same tokens; items {twice[:5]} do")
        for above, below in zip(levels[-2::-1], levels[:0:-1]):
            sums = np.concatenate([[0], below.num_shared.cumsum()])
            above.num_shared[:] += sums[above.first_child + above.num_children]
            above.num_shared[:] -= sums[above.first_child]
        self.levels = tuple(levels)

    def groups(self, most: int) -> list[np.ndarray]:
        """Return the first tokens that several items share, in groups to be read one by one.

        Args:
            most: Shared beginnings that a group holds, unless one first token alone has more.
        """
        first = self.levels[0]
        groups: list[list[int]] = []
        room = 0
        for node in np.flatnonzero(first.num_items > 1).tolist():
            if first.num_shared[node] > room:
                groups.append([])
                room = most
            groups[-1].append(node)
            room -= int(first.num_shared[node])
        return [np.array(group) for group in groups]


def _set_children(levels: list[TrieLevel], parent: np.ndarray, num_above: int) -> None:
    """Tell the last level where its children, whose parents are given in order, lie."""
    if levels:
        counts = np.bincount(parent, minlength=num_above)
        levels[-1].num_children[:] = counts
        levels[-1].first_child[:] = counts.cumsum() - counts

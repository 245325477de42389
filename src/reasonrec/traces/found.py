"""What thoughts found and where in them it stands, as the columns that a ranking weighs."""

from collections.abc import Sequence

import numpy as np

from reasonrec.records import FoundItems, Lookup


class FoundInThought:
    """What one thought has found so far."""

    def __init__(self) -> None:
        self._places: list[np.ndarray] = []
        self._found: list[FoundItems] = []

    def add(self, places: np.ndarray, found: FoundItems) -> None:
        """Add what an answer holds, and at which token of the thought each of it stands, (E,)."""
        self._places.append(places)
        self._found.append(found)

    def forget_from(self, length: int) -> None:
        """Leave out what stands at that token of the thought or behind it."""
        kept = [int((places < length).sum()) for places in self._places]  # places ascend
        self._places = [places[:n] for places, n in zip(self._places, kept, strict=True)]
        self._found = [found.first(n) for found, n in zip(self._found, kept, strict=True)]

    @property
    def places(self) -> np.ndarray:
        """(E,), int64. The end of a title, or of the answer for what is not quoted."""
        return np.concatenate([np.zeros(0, np.int64), *self._places])

    @property
    def items(self) -> FoundItems:
        return FoundItems.joined(self._found)


def found_columns(
    thoughts: Sequence[FoundInThought],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return places, items, weights and kinds of what R thoughts found, each (R, E), padded."""
    return (
        pad_rows([thought.places for thought in thoughts], 0),
        *_columns([thought.items for thought in thoughts]),
    )


def evidence_columns(
    evidence: Sequence[Sequence[Lookup]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return items, weights and kinds of everything that was found, each (R, E), padded."""
    return _columns([FoundItems.joined([one.found for one in row]) for row in evidence])


def pad_rows(rows: Sequence[np.ndarray], filling: float) -> np.ndarray:
    """Return ragged rows as (R, E), padded on the right; float32 or int64 as ``filling`` is."""
    lengths = np.array([len(row) for row in rows], np.int64)
    inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
    padded = np.full(inside.shape, filling, np.float32 if isinstance(filling, float) else np.int64)
    if len(rows):
        padded[inside] = np.concatenate(rows)
    return padded


def _columns(rows: Sequence[FoundItems]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        pad_rows([row.item_index for row in rows], -1),
        pad_rows([row.weight for row in rows], 0.0),
        pad_rows([row.kind for row in rows], 0),
    )

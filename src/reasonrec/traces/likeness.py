"""How alike items are in the words of title, categories and description: what a reader would see.

A backbone with one token a title cannot read titles. This says what their words say, so that an
item that nobody took yet can be tied to the history all the same.
"""

import re
from collections import Counter

import numpy as np
from scipy.sparse import csr_array, diags_array

from reasonrec.data.dataset import Catalogue
from reasonrec.records import Histories

_WORD = re.compile(r"[^\W_]+")
MOST_NEAREST = 100
"""Items that are remembered of those alike to one, so that memory stays that of the catalogue."""


class Likeness:
    """Holds a row of word weights for every item: (1 + ln n) ln(N / items with the word), length 1.

    A word must stand in two items at least. The title counts twice; a category is one word.
    """

    def __init__(self, catalogue: Catalogue, *, max_share: float = 0.3) -> None:
        """Args:
        max_share: Words in a larger share of the items say nothing about any.
        """
        words = _words(catalogue)
        num_items = Counter(word for item in words for word in item)
        known = [w for w, n in num_items.items() if 1 < n <= max_share * len(words)]
        column = {word: place for place, word in enumerate(known)}
        rows, columns, weights = [], [], []
        for n, item in enumerate(words):
            for word, count in item.items():
                if word in column:
                    rows.append(n)
                    columns.append(column[word])
                    rarity = np.log(len(words) / num_items[word])
                    weights.append((1.0 + np.log(count)) * rarity)
        table = csr_array(
            (np.array(weights, np.float64), (rows, columns)), shape=(len(words), len(column))
        )
        length = np.sqrt((table * table).sum(axis=1))
        scale = 1.0 / np.where(length > 0, length, 1.0)
        self._table = csr_array(diags_array(scale) @ table)
        self._nearest: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._table.indptr) - 1

    def nearest(
        self, item_index: np.ndarray, histories: Histories, *, num_items: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what reads most like one item of each history, without what the history holds.

        They are chosen among the `MOST_NEAREST` items that are most alike.

        Args:
            item_index: (R,), one for every history. -1 has nothing like it.

        Returns:
            (R, K) int32, the largest cosine first, ties to the smaller index, -1 padded, and those
            cosines, float32.
        """
        item = np.full((len(item_index), num_items), -1, np.int32)
        cosine = np.zeros(item.shape, np.float32)
        asks = np.flatnonzero(item_index >= 0)
        if not len(asks):
            return item, cosine
        self._find(item_index)
        found = [self._nearest[asked] for asked in item_index[asks].tolist()]
        near, weight = (np.stack(column) for column in zip(*found))
        num_all = len(self)
        owner = np.repeat(np.arange(len(histories)), histories.lengths)
        own = owner * num_all + histories.item_index  # a number for each pair of row and item
        is_left = (near >= 0) & ~np.isin(asks[:, None] * num_all + near, own)
        place = is_left.cumsum(1) - 1
        row, column = np.nonzero(is_left & (place < num_items))
        to = asks[row], place[row, column]
        item[to], cosine[to] = near[row, column], weight[row, column]
        return item, cosine

    def _find(self, item_index: np.ndarray) -> None:
        """Remember the items most alike to those named, with another cosine than 0."""
        asked = [i for i in np.unique(item_index).tolist() if i >= 0 and i not in self._nearest]
        for begin in range(0, len(asked), 256):
            part = asked[begin : begin + 256]
            alike = csr_array(self._table[part] @ self._table.T)
            for row, i in enumerate(part):
                inside = slice(*alike.indptr[row : row + 2])
                near = np.asarray(alike.indices[inside])
                weight = np.asarray(alike.data[inside], np.float64)
                near, weight = near[near != i], weight[near != i]
                order = np.lexsort((near, -weight))[:MOST_NEAREST]
                item = np.full(MOST_NEAREST, -1, np.int32)
                cosine = np.zeros(MOST_NEAREST, np.float32)
                item[: len(order)], cosine[: len(order)] = near[order], weight[order]
                self._nearest[i] = item, cosine

    def to_history(
        self, histories: Histories, candidates: np.ndarray, *, max_history: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the largest cosine of each candidate to a history item, and that item's index.

        Args:
            candidates: (R, C), -1 pads shorter rows.
            max_history: Last events that are looked at.

        Returns:
            (R, C) float64, 0 without words in common, and (R, C) int64, the newest of equals, -1
            where the cosine is 0.
        """
        alike = np.zeros(candidates.shape)
        nearest = np.full(candidates.shape, -1)
        for r, row in enumerate(candidates):
            own = histories.row(r)[-max_history:][::-1]  # newest first: argmax takes the first
            if not len(own):
                continue
            cosine = (self._table[own] @ self._table[np.maximum(row, 0)].T).toarray()
            best = cosine.argmax(axis=0)
            alike[r] = np.where(row >= 0, cosine.max(axis=0), 0.0)
            nearest[r] = np.where(alike[r] > 0, own[best], -1)
        return alike, nearest


def _words(catalogue: Catalogue) -> list[Counter[str]]:
    columns = catalogue.table.columns
    categories = catalogue.table["categories"] if "categories" in columns else None
    texts = catalogue.table["description"] if "description" in columns else None
    found = []
    for n, title in enumerate(catalogue.titles):
        words = Counter(_WORD.findall((title or "").lower()) * 2)
        named = categories[n] if categories is not None else None
        for category in [] if named is None else named:
            words[f"category {category}"] += 1
        text = texts[n] if texts is not None else None
        words.update(_WORD.findall((text or "").lower()))
        found.append(words)
    return found

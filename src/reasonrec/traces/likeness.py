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
MAX_SHARE = 0.3
"""Words in a larger share of the items say nothing about any."""


class Likeness:
    """Holds a row of word weights for every item: (1 + ln n) ln(N / items with the word), length 1.

    A word must stand in two items at least. The title counts twice; a category is one word.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        words = _words(catalogue)
        num_items = Counter(word for item in words for word in item)
        known = [w for w, n in num_items.items() if 1 < n <= MAX_SHARE * len(words)]
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

"""Item-kNN: items taken by the same people as those in the history."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.sparse import coo_array, csr_array

from reasonrec.baselines.history import popularity_prior, weigh_history
from reasonrec.data.dataset import Dataset
from reasonrec.records import Histories, Scored


@dataclass(frozen=True)
class ItemKnn:
    """Sums the cosine similarities of an item to the items of the history."""

    similarity: csr_array
    """(N, N), float32. Row i: the ``num_neighbours`` items most similar to item i."""
    prior: np.ndarray
    """(N,), float32, from 0 to 1."""
    recency_power: float
    max_events: int
    prior_weight: float

    @property
    def name(self) -> str:
        return "item-knn"

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        num_neighbours: int = 100,
        shrinkage: float = 10.0,
        recency_power: float = 1.0,
        max_events: int = 10,
        prior_weight: float = 1e-3,
    ) -> Self:
        """Return the neighbours of every item, counted over the users of ``dataset.train``.

        Args:
            num_neighbours: Neighbours kept for each item, the item itself aside.
            shrinkage: Added to the root of the two counts, so that rare pairs count less.
            recency_power: A history item ``s`` events back weighs ``s ** -recency_power``; 0
                weighs all alike.
            max_events: How far back the history is read.
            prior_weight: Share of popularity in the score: it orders what no neighbour names.
        """
        train, num_items = dataset.train, dataset.num_items
        pairs = np.unique(train.user_index.astype(np.int64) * num_items + train.item_index)
        taken = csr_array(
            (np.ones(len(pairs), np.float32), (pairs // num_items, pairs % num_items)),
            shape=(train.num_users, num_items),
        )
        counts = taken.sum(axis=0)
        together = coo_array(taken.T @ taken)
        row, column = together.coords
        is_other = row != column
        row, column = row[is_other], column[is_other]
        cosine = together.data[is_other] / (np.sqrt(counts[row] * counts[column]) + shrinkage)
        similarity = _strongest(row, column, cosine.astype(np.float32), num_items, num_neighbours)
        return cls(
            similarity,
            popularity_prior(train, num_items),
            recency_power,
            max_events,
            prior_weight,
        )

    def score(self, histories: Histories) -> Scored:
        weights = weigh_history(
            histories,
            len(self.prior),
            recency_power=self.recency_power,
            max_events=self.max_events,
        )
        scores = csr_array(weights @ self.similarity).toarray()  # (B, N) @ (N, N) -> (B, N)
        return Scored(scores + np.float32(self.prior_weight) * self.prior)


def _strongest(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, num_items: int, k: int
) -> csr_array:
    """Return the ``k`` largest values of each row; ties in column order."""
    order = np.lexsort((column, -value, row))
    row, column, value = row[order], column[order], value[order]
    starts = np.searchsorted(row, np.arange(num_items))
    kept = np.arange(len(row)) - starts[row] < k
    return csr_array((value[kept], (row[kept], column[kept])), shape=(num_items, num_items))

"""Item-kNN: items taken by the same people as those in the history, by cosine or by BM25."""

from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from scipy.sparse import csr_array, diags_array

from reasonrec.baselines.history import popularity_prior, taken_items, weigh_history
from reasonrec.config import Config
from reasonrec.data.dataset import Dataset
from reasonrec.records import Histories, Scored


class ItemKnnConfig(Config):
    """Cosine neighbours, and how a history is read."""

    num_neighbours: PositiveInt = 100
    """Neighbours kept for each item, the item itself aside."""
    shrinkage: NonNegativeFloat = 10.0
    """Added to the root of the two counts, so that rare pairs count less."""
    recency_power: NonNegativeFloat = 1.0
    """A history item ``s`` events back weighs ``s ** -recency_power``; 0 weighs all alike."""
    max_events: PositiveInt = 10
    """How far back the history is read."""
    prior_weight: PositiveFloat = 1e-3
    """Share of popularity in the score: it orders what no neighbour names."""


class ItemKnnBm25Config(Config):
    """BM25 neighbours, and how a history is read."""

    num_neighbours: PositiveInt = 100
    """Neighbours kept for each item, the item itself aside."""
    saturation: PositiveFloat = 1.2
    """BM25's k1. With events counted once it only sets how much item popularity matters."""
    popularity_share: Annotated[float, Field(ge=0, le=1)] = 0.75
    """BM25's b: how far popular items are weighed down."""
    recency_power: NonNegativeFloat = 1.0
    """A history item ``s`` events back weighs ``s ** -recency_power``; 0 weighs all alike."""
    max_events: PositiveInt = 10
    """How far back the history is read."""
    prior_weight: PositiveFloat = 1e-3
    """Share of popularity in the score, of the strongest similarity: it orders what no neighbour
    names."""


@dataclass(frozen=True)
class ItemKnn:
    """Sums the similarities of an item to the items of the history."""

    name: str
    similarity: csr_array
    """(N, N), float32. Row i: the ``num_neighbours`` items most similar to item i."""
    prior: np.ndarray
    """(N,), float32, from 0 to 1."""
    recency_power: float
    max_events: int
    prior_weight: float

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        num_neighbours: int,
        shrinkage: float,
        recency_power: float,
        max_events: int,
        prior_weight: float,
    ) -> Self:
        """Return the neighbours by shrunk cosine, counted over the users of ``dataset.train``.

        ``ItemKnnConfig`` explains the settings.
        """
        taken = taken_items(dataset.train, dataset.num_items)
        counts = taken.sum(axis=0)
        row, column, together = _pairs(taken)
        cosine = together / (np.sqrt(counts[row] * counts[column]) + shrinkage)
        return cls(
            "item-knn",
            _strongest(row, column, cosine, dataset.num_items, num_neighbours),
            popularity_prior(dataset.train, dataset.num_items),
            recency_power,
            max_events,
            prior_weight,
        )

    @classmethod
    def fit_bm25(
        cls,
        dataset: Dataset,
        *,
        num_neighbours: int,
        saturation: float,
        popularity_share: float,
        recency_power: float,
        max_events: int,
        prior_weight: float,
    ) -> Self:
        """Return the neighbours by BM25: items are documents, and users are their words.

        The largest similarity is scaled to 1, so that ``prior_weight`` means the same on any set.
        ``ItemKnnBm25Config`` explains the settings.
        """
        taken = taken_items(dataset.train, dataset.num_items)
        weighted = weigh_bm25(taken, saturation=saturation, popularity_share=popularity_share)
        row, column, product = _pairs(weighted)
        product /= max(product.max(initial=0.0), 1e-9)
        return cls(
            "item-knn-bm25",
            _strongest(row, column, product, dataset.num_items, num_neighbours),
            popularity_prior(dataset.train, dataset.num_items),
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


def weigh_bm25(taken: csr_array, *, saturation: float, popularity_share: float) -> csr_array:
    """Return the BM25 weight of each user for each item that they took. (U, N), float32.

    A user who took few items says much about each (idf); an item that many took is a long
    document, and each of its users says little.

    Args:
        taken: 1 where a user took an item. (U, N), float32.
        saturation: k1. Above 0.
        popularity_share: b, from 0 to 1.
    """
    items_of_user, users_of_item = taken.sum(axis=1), taken.sum(axis=0)
    num_items = len(users_of_item)
    # above 0 also for a user of everything, whom the classic idf would count against an item
    rarity = np.log1p((num_items - items_of_user + 0.5) / (items_of_user + 0.5))
    mean = max(float(users_of_item.mean()) if num_items else 0.0, 1e-9)
    length = 1.0 - popularity_share + popularity_share * users_of_item / mean
    strength = (saturation + 1.0) / (saturation * length + 1.0)  # the term frequency is 1
    weighted = diags_array(rarity) @ taken @ diags_array(strength)
    return csr_array(weighted, dtype=np.float32)


def _pairs(taken: csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return item, other item, and the product of their columns, wherever it is not 0; sorted."""
    together = csr_array(taken.T @ taken)
    together.sort_indices()
    row = np.repeat(np.arange(len(together.indptr) - 1), np.diff(together.indptr))
    is_other = row != together.indices
    return row[is_other], together.indices[is_other], together.data[is_other]


def _strongest(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, num_items: int, k: int
) -> csr_array:
    """Return the ``k`` largest values of each row, none below 0; ties in column order.

    Sorted by one integer of row and value, since a sort by three keys takes most of a fit: the bits
    of floats of 0 or more order as the floats do.
    """
    value = np.abs(value.astype(np.float32))  # -0.0 has the bits of a large number
    falling = np.uint64(2**32 - 1) - value.view(np.uint32).astype(np.uint64)
    order = np.argsort((row.astype(np.uint64) << np.uint64(32)) | falling, kind="stable")
    row, column, value = row[order], column[order], value[order]
    starts = np.searchsorted(row, np.arange(num_items))
    kept = np.arange(len(row)) - starts[row] < k
    return csr_array((value[kept], (row[kept], column[kept])), shape=(num_items, num_items))

"""EASE: a linear item-to-item model with zero self-similarity, in closed form.

Steck, *Embarrassingly Shallow Autoencoders for Sparse Data*, WWW 2019.

Departs from the paper: a history may be weighed by recency (``recency_power`` 0, the default, is
the paper), and popularity orders what the model scores alike.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import psutil
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from scipy.linalg import get_lapack_funcs
from scipy.sparse import csr_array

from reasonrec.baselines.history import popularity_prior, taken_items, weigh_history
from reasonrec.config import Config
from reasonrec.data.dataset import Dataset
from reasonrec.errors import DataError
from reasonrec.records import Histories, Scored


class EaseConfig(Config):
    """The ridge of EASE, and how a history is read."""

    regularisation: PositiveFloat = 300.0
    """Lambda, added to the diagonal of the item counts. In users."""
    recency_power: NonNegativeFloat = 0.0
    """A history item ``s`` events back weighs ``s ** -recency_power``; 0 weighs all alike."""
    max_events: PositiveInt = 10_000
    """How far back the history is read."""
    prior_weight: PositiveFloat = 1e-4
    """Share of popularity in the score: it orders what the model does not."""


@dataclass(frozen=True)
class Ease:
    """Sums the learned weights from the items of the history to every item."""

    weights: np.ndarray
    """(M, M), float32. From row to column, over the M items that training saw; diagonal 0."""
    seen: np.ndarray
    """(M,), item indices of its rows. All other weights of the whole matrix are 0."""
    prior: np.ndarray
    """(N,), float32, from 0 to 1."""
    recency_power: float
    max_events: int
    prior_weight: float

    @property
    def name(self) -> str:
        return "ease"

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        regularisation: float,
        recency_power: float,
        max_events: int,
        prior_weight: float,
    ) -> Self:
        """Return the weights of ``dataset.train``; ``EaseConfig`` explains the settings.

        Raises:
            DataError: Matrices over the items that training saw do not fit into memory.
        """
        prior = popularity_prior(dataset.train, dataset.num_items)
        seen = np.flatnonzero(prior)
        check_fits(len(seen), psutil.virtual_memory().available)
        taken = taken_items(dataset.train, dataset.num_items)[:, seen]
        counts = csr_array(taken.T @ taken).toarray(order="F")
        weights = solve_ease(counts, regularisation)
        return cls(weights, seen, prior, recency_power, max_events, prior_weight)

    def score(self, histories: Histories) -> Scored:
        history = weigh_history(
            histories,
            len(self.prior),
            recency_power=self.recency_power,
            max_events=self.max_events,
            add_repeats=False,
        )
        scores = np.tile(np.float32(self.prior_weight) * self.prior, (len(histories), 1))
        scores[:, self.seen] += csr_array(history[:, self.seen]) @ self.weights  # (B, M) @ (M, M)
        return Scored(scores)


def solve_ease(counts: np.ndarray, regularisation: float) -> np.ndarray:
    """Return B = I - P diag(1 / diag P), with P the inverse of ``counts`` + ridge; diagonal 0.

    Args:
        counts: How many users took both items. (M, M), float32, in Fortran order; overwritten.
        regularisation: Lambda, above 0, so that the matrix can be inverted.

    Source: Steck 2019, equations 6 to 8 (``docs/paper_index.md``, entry *EASE*).
    """
    if len(counts) == 0:
        return counts
    np.fill_diagonal(counts, counts.diagonal() + np.float32(regularisation))
    # by Cholesky in place: one matrix in memory, where a general inverse takes three
    factorise, invert = get_lapack_funcs(("potrf", "potri"), (counts,))
    factor, failed = factorise(counts, lower=1, overwrite_a=1, clean=0)
    inverse, also_failed = invert(factor, lower=1, overwrite_c=1)
    if failed or also_failed:
        raise ValueError(
            f"counts + regularisation must be positive definite in float32; {regularisation} is "
            "too small for this set: try a larger one"
        )
    _mirror_lower(inverse)
    weights = inverse.T  # symmetric: the same matrix, now in C order
    weights /= -weights.diagonal()
    np.fill_diagonal(weights, 0.0)
    return weights


def check_fits(num_items: int, free_bytes: int) -> None:
    """Refuse a catalogue whose dense matrices are larger than the memory that is free.

    Raises:
        DataError: They are.
    """
    needed = 3 * 4 * num_items**2  # the matrix, and the sparse counts that it is made of
    if needed > free_bytes:
        raise DataError(
            f"EASE must hold dense matrices over the {num_items:,} items of training, about "
            f"{needed / 2**30:.1f} GiB; {free_bytes / 2**30:.1f} GiB are free. Try item-knn or "
            "ials, or prepare the data with --k-core"
        )


def _mirror_lower(matrix: np.ndarray, *, width: int = 512) -> None:
    """Copy the lower triangle over the upper one in place, a block of columns at a time."""
    for start in range(0, len(matrix), width):
        stop = min(start + width, len(matrix))
        block = np.tril(matrix[start:stop, start:stop])
        matrix[start:stop, start:stop] = block + np.tril(block, -1).T
        matrix[start:stop, stop:] = matrix[stop:, start:stop].T

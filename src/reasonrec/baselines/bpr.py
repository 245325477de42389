"""BPR: factors that rank what was taken above what was not, by the library ``implicit``.

Rendle et al., *BPR: Bayesian Personalized Ranking from Implicit Feedback*, UAI 2009. The library
knows the users that it trained on and no others, so every history is folded in here: stochastic
gradient steps on the same loss for the user's factor alone, from 0, with the items as they are.

Departs from the paper: negatives are drawn by popularity, as the library draws them; and a history
may be weighed by recency (``recency_power`` 0, the default, is the paper).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numba import njit
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from scipy.sparse import csr_matrix

from reasonrec.baselines.history import (
    answer_by_popularity,
    finite_factors,
    popularity_prior,
    taken_items,
    weigh_history,
)
from reasonrec.config import Config
from reasonrec.data.dataset import Dataset
from reasonrec.records import Histories, Scored
from reasonrec.rng import stream, stream_seed

NUM_NEGATIVES = 8191
"""Negatives that fold-in goes through, the same ones for all users. A prime, so that histories of
any other length meet all of them."""


class BprConfig(Config):
    """The factorisation, and how a history is read."""

    num_factors: PositiveInt = 64
    """Width of a factor, besides the item's bias."""
    learning_rate: PositiveFloat = 0.01
    """Step size, in training and in fold-in."""
    regularisation: NonNegativeFloat = 0.01
    """Weight decay of each factor that a step touches."""
    num_iterations: PositiveInt = 100
    """Passes over the training pairs, and over a history that is folded in."""
    recency_power: NonNegativeFloat = 0.0
    """In a history, an event ``s`` events back pulls in proportion to ``s ** -recency_power``."""
    max_events: PositiveInt = 10_000
    """How far back the history is read."""


@dataclass(frozen=True)
class Bpr:
    """Folds the history in against the items' factors; the score is the product plus a bias."""

    item_factors: np.ndarray
    """(N, D), float32."""
    item_bias: np.ndarray
    """(N,), float32."""
    negatives: np.ndarray
    """(NUM_NEGATIVES,), int64. Items drawn from the training events; empty if there are none."""
    prior: np.ndarray
    """(N,), float32, from 0 to 1."""
    learning_rate: float
    regularisation: float
    num_iterations: int
    recency_power: float
    max_events: int

    @property
    def name(self) -> str:
        return "bpr"

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        seed: int,
        num_factors: int,
        learning_rate: float,
        regularisation: float,
        num_iterations: int,
        recency_power: float,
        max_events: int,
    ) -> Self:
        """Return the factors of ``dataset.train``; ``BprConfig`` explains the settings."""
        train, num_items = dataset.train, dataset.num_items
        factors = np.zeros((num_items, num_factors + 1), np.float32)
        negatives = np.zeros(0, np.int64)
        if len(train):
            from implicit.cpu.bpr import BayesianPersonalizedRanking

            model = BayesianPersonalizedRanking(
                factors=num_factors,
                learning_rate=learning_rate,
                regularization=regularisation,
                iterations=num_iterations,
                num_threads=1,  # several race, and no seed helps
                random_state=stream_seed(seed, "bpr"),
            )
            taken = csr_matrix(taken_items(train, num_items))
            with finite_factors(f"learning_rate {learning_rate}"):
                model.fit(taken, show_progress=False)
            factors = model.item_factors
            drawn = stream(seed, "bpr-fold-in").integers(taken.nnz, size=NUM_NEGATIVES)
            negatives = taken.indices[drawn].astype(np.int64)
        return cls(
            np.ascontiguousarray(factors[:, :-1]),
            np.ascontiguousarray(factors[:, -1]),
            negatives,
            popularity_prior(train, num_items),
            learning_rate,
            regularisation,
            num_iterations,
            recency_power,
            max_events,
        )

    def fold_in(self, histories: Histories) -> np.ndarray:
        """Return the factor of every history, (B, D), float32; 0 where nothing is known."""
        history = weigh_history(
            histories,
            len(self.prior),
            recency_power=self.recency_power,
            max_events=self.max_events,
            add_repeats=False,
        )
        factors_B_D = np.zeros((len(histories), self.item_factors.shape[1]), np.float32)
        if len(self.negatives):
            _fold_in_rows(
                history.indptr.astype(np.int64),
                history.indices.astype(np.int64),
                history.data,
                self.prior,
                self.item_factors,
                self.item_bias,
                self.negatives,
                self.learning_rate,
                self.regularisation,
                self.num_iterations,
                factors_B_D,
            )
        return factors_B_D

    def score(self, histories: Histories) -> Scored:
        factors_B_D = self.fold_in(histories)
        scores = np.empty((len(histories), len(self.prior)), np.float32)
        for b, factor_D in enumerate(factors_B_D):
            # row by row: a product of all rows may sum in another order, by their number
            scores[b] = self.item_factors @ factor_D + self.item_bias  # (N, D) @ (D,) -> (N,)
        return answer_by_popularity(scores, factors_B_D, self.prior)


@njit(nogil=True, cache=True)
def _fold_in_rows(
    offsets, items, weights, prior, item_factors, item_bias, negatives,
    learning_rate, regularisation, num_iterations, factors_B_D,
):  # fmt: skip
    """Write each row's factor: the mean over the second half of its gradient steps.

    One user's last step is noisy, and the mean is not. Items that training did not see are left
    out, and so is a step whose negative is in the history.
    """
    num_items, width = item_factors.shape
    is_taken = np.zeros(num_items, np.bool_)
    factor = np.empty(width)
    for b in range(len(offsets) - 1):
        known = items[offsets[b] : offsets[b + 1]]
        pull = weights[offsets[b] : offsets[b + 1]].astype(np.float64)
        pull = pull[prior[known] > 0]
        known = known[prior[known] > 0]
        if len(known) == 0:
            continue
        pull *= len(pull) / pull.sum()
        is_taken[known] = True
        factor[:] = 0.0
        total = np.zeros(width)
        num_steps = num_iterations * len(known)
        for step in range(num_steps):
            item, other = known[step % len(known)], negatives[step % len(negatives)]
            if not is_taken[other]:
                margin = item_bias[item] - item_bias[other]
                for d in range(width):
                    margin += factor[d] * (item_factors[item, d] - item_factors[other, d])
                push = pull[step % len(known)] / (1.0 + np.exp(margin))
                for d in range(width):
                    slope = push * (item_factors[item, d] - item_factors[other, d])
                    factor[d] += learning_rate * (slope - regularisation * factor[d])
            if step >= num_steps // 2:
                total += factor
        is_taken[known] = False
        factors_B_D[b] = total / (num_steps - num_steps // 2)

"""iALS: matrix factorisation of who took what, by the library ``implicit``.

Hu, Koren, Volinsky, *Collaborative Filtering for Implicit Feedback Datasets*, ICDM 2008. Users are
not looked up: every history is folded in by the library's own closed form, so that known and
unknown users are answered alike, from the events that all methods are given.

Departs from the paper: a history may be weighed by recency (``recency_power`` 0, the default, is
the paper).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
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
from reasonrec.rng import stream_seed

if TYPE_CHECKING:
    from implicit.cpu.als import AlternatingLeastSquares


class IalsConfig(Config):
    """The factorisation, and how a history is read."""

    num_factors: PositiveInt = 64
    """Width of a factor."""
    regularisation: PositiveFloat = 0.1
    """Lambda of the ridge on users and items."""
    confidence: PositiveFloat = 10.0
    """Alpha: how much more an event weighs than an item that was not taken."""
    num_iterations: PositiveInt = 15
    """Rounds over users and items."""
    recency_power: NonNegativeFloat = 0.0
    """In a history, an event ``s`` events back weighs ``s ** -recency_power`` of the confidence."""
    max_events: PositiveInt = 10_000
    """How far back the history is read."""


@dataclass(frozen=True)
class Ials:
    """Folds the history in against the items' factors; the score is the product."""

    model: "AlternatingLeastSquares | None"
    """None if training saw nothing."""
    prior: np.ndarray
    """(N,), float32, from 0 to 1."""
    recency_power: float
    max_events: int

    @property
    def name(self) -> str:
        return "ials"

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        seed: int,
        num_factors: int,
        regularisation: float,
        confidence: float,
        num_iterations: int,
        recency_power: float,
        max_events: int,
    ) -> Self:
        """Return the factors of ``dataset.train``; ``IalsConfig`` explains the settings."""
        prior = popularity_prior(dataset.train, dataset.num_items)
        if len(dataset.train) == 0:
            return cls(None, prior, recency_power, max_events)
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1, "blas"):  # the library asks for it; sums keep their order
            model = AlternatingLeastSquares(
                factors=num_factors,
                regularization=regularisation,
                alpha=confidence,
                iterations=num_iterations,
                num_threads=1,
                random_state=stream_seed(seed, "ials"),
            )
            taken = csr_matrix(taken_items(dataset.train, dataset.num_items))
            with finite_factors(f"regularisation {regularisation}"):
                model.fit(taken, show_progress=False)
        return cls(model, prior, recency_power, max_events)

    def fold_in(self, histories: Histories) -> np.ndarray:
        """Return the factor of every history, (B, D), float32; 0 where nothing is known."""
        if self.model is None:
            return np.zeros((len(histories), 1), np.float32)
        history = weigh_history(
            histories,
            len(self.prior),
            recency_power=self.recency_power,
            max_events=self.max_events,
            add_repeats=False,
        )
        return self.model.recalculate_user(np.arange(len(histories)), csr_matrix(history))

    def score(self, histories: Histories) -> Scored:
        scores = np.zeros((len(histories), len(self.prior)), np.float32)
        factors_B_D = self.fold_in(histories)
        if self.model is not None:
            for b, factor_D in enumerate(factors_B_D):
                # row by row: a product of all rows may sum in another order, by their number
                scores[b] = self.model.item_factors @ factor_D  # (N, D) @ (D,) -> (N,)
        return answer_by_popularity(scores, factors_B_D, self.prior)

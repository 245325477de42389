"""The follow counter: what people took within a few steps after an item of the history.

A first-order counter with a window. Untuned it ranks above the printed SASRec on Amazon Office,
so it stands in every table.
"""

from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from scipy.sparse import csr_array, diags_array

from reasonrec.baselines.history import popularity_prior, weigh_history
from reasonrec.config import Config
from reasonrec.data.dataset import Dataset, InteractionLog
from reasonrec.records import Histories, Scored


class FollowCounterConfig(Config):
    """How followers are counted, and how a history is read."""

    num_steps: PositiveInt = 5
    """Window: an item ``d`` steps later counts ``1 / d`` while d <= num_steps."""
    reverse_share: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Weight of the opposite direction."""
    total_power: NonNegativeFloat = 0.5
    """Each row is divided by its total to this power: 0 keeps counts, so that popular items
    shout; 1 gives shares."""
    recency_power: NonNegativeFloat = 1.0
    """A history item ``s`` events back weighs ``s ** -recency_power``."""
    max_events: PositiveInt = 20
    """How far back the history is read."""
    prior_weight: PositiveFloat = 1e-3
    """Share of popularity in the score: the back-off for what never followed."""


@dataclass(frozen=True)
class FollowCounter:
    """Sums, over the history, how often an item follows each of its items."""

    follows: csr_array
    """(N, N), float32. Row i: distance-weighted counts after item i, over i's total ** power."""
    prior: np.ndarray
    """(N,), float32, from 0 to 1."""
    recency_power: float
    max_events: int
    prior_weight: float

    @property
    def name(self) -> str:
        return "follow-counter"

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        num_steps: int,
        reverse_share: float,
        total_power: float,
        recency_power: float,
        max_events: int,
        prior_weight: float,
    ) -> Self:
        """Return the counts of ``dataset.train``; ``FollowCounterConfig`` explains the rest."""
        follows = count_follows(dataset.train, dataset.num_items, num_steps=num_steps)
        if reverse_share:
            follows = csr_array(follows + np.float32(reverse_share) * follows.T)
        totals = follows.sum(axis=1)
        scale = np.where(totals > 0, totals, 1.0).astype(np.float32) ** np.float32(-total_power)
        follows = csr_array(diags_array(scale) @ follows)
        return cls(
            follows,
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
        scores = csr_array(weights @ self.follows).toarray()  # (B, N) @ (N, N) -> (B, N)
        return Scored(scores + np.float32(self.prior_weight) * self.prior)


def count_follows(train: InteractionLog, num_items: int, *, num_steps: int) -> csr_array:
    """Return how often item j came within ``num_steps`` after item i, each time as 1 / distance.

    (N, N), float32, sparse; repeats of one item in a row are counted on the diagonal.
    """
    counted = csr_array((num_items, num_items), dtype=np.float32)
    for distance in range(1, num_steps + 1):
        same_user = train.user_index[distance:] == train.user_index[:-distance]
        earlier = train.item_index[:-distance][same_user]
        later = train.item_index[distance:][same_user]
        weight = np.full(len(earlier), 1.0 / distance, np.float32)
        counted = counted + csr_array((weight, (earlier, later)), shape=(num_items, num_items))
    return csr_array(counted)

"""The follow counter: what people took within a few steps after an item of the history.

A first-order counter with a window. Untuned it ranks above the printed SASRec on Amazon Office,
so it stands in every table. The pace counter is the same, told when the question is asked: some
networks are, and a claim against them needs a counter that is.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Self

import numpy as np
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from scipy.sparse import csr_array, dia_array, diags_array, vstack

from reasonrec import elapsed
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
        follows = count_follows(
            dataset.train, dataset.num_items, num_steps=num_steps, reverse_share=reverse_share
        )
        return cls(
            csr_array(_scale(follows, total_power) @ follows),
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


class PaceCounterConfig(FollowCounterConfig):
    """As the follow counter's, and what time counts."""

    same_pace: NonNegativeFloat = 3.0
    """A step counts 1 + same_pace times where it took about as long as it has been since the user
    took the item of the history: at once, seconds, minutes, hours, days, months, or years."""


@dataclass(frozen=True)
class PaceCounter(FollowCounter):
    """A follow counter that is told when the question is asked.

    Without times it is a follow counter.
    """

    at_pace: csr_array | None
    """(C * N, N), float32. For each of the C classes of `reasonrec.elapsed` the part of ``follows``
    that took so long, one below the other; None where the log has no times."""
    same_pace: float

    @property
    def name(self) -> str:
        return "pace-counter"

    @classmethod
    def fit(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        dataset: Dataset,
        *,
        num_steps: int,
        reverse_share: float,
        total_power: float,
        recency_power: float,
        max_events: int,
        prior_weight: float,
        same_pace: float,
    ) -> Self:
        """Return the counts of ``dataset.train``; ``PaceCounterConfig`` explains the rest."""
        train, N = dataset.train, dataset.num_items
        counting = {"num_steps": num_steps, "reverse_share": reverse_share}
        follows = count_follows(train, N, **counting)
        scale = _scale(follows, total_power)
        at_pace = None
        if train.timestamp is not None:
            classes = range(len(elapsed.WORDS))
            parts = [scale @ count_follows(train, N, pace=k, **counting) for k in classes]
            at_pace = csr_array(vstack(parts))
        return cls(
            csr_array(scale @ follows),
            popularity_prior(train, N),
            recency_power,
            max_events,
            prior_weight,
            at_pace,
            same_pace,
        )

    def score(self, histories: Histories) -> Scored:
        scored = super().score(histories)
        if self.at_pace is None or histories.timestamp is None or histories.asked_at is None:
            return scored
        since = np.repeat(histories.asked_at, histories.lengths) - histories.timestamp
        place = elapsed.elapsed_class(since) * len(self.prior) + histories.item_index
        weights = weigh_history(
            replace(histories, item_index=place),
            len(elapsed.WORDS) * len(self.prior),
            recency_power=self.recency_power,
            max_events=self.max_events,
        )
        more = csr_array(weights @ self.at_pace).toarray()  # (B, C * N) @ (C * N, N) -> (B, N)
        return Scored(scored.scores + np.float32(self.same_pace) * more)


def count_follows(
    train: InteractionLog,
    num_items: int,
    *,
    num_steps: int,
    reverse_share: float = 0.0,
    pace: int | None = None,
) -> csr_array:
    """Return how often item j came within ``num_steps`` after item i, each time as 1 / distance.

    And ``reverse_share`` times how often it came before. (N, N), float32, sparse; repeats of one
    item in a row are counted on the diagonal.

    Args:
        pace: The class of `reasonrec.elapsed` that steps must have to count; None for all.
    """
    counted = csr_array((num_items, num_items), dtype=np.float32)
    for distance in range(1, num_steps + 1):
        is_step = train.user_index[distance:] == train.user_index[:-distance]
        if pace is not None and train.timestamp is not None:
            seconds = train.timestamp[distance:] - train.timestamp[:-distance]
            is_step &= elapsed.elapsed_class(seconds) == pace
        earlier = train.item_index[:-distance][is_step]
        later = train.item_index[distance:][is_step]
        weight = np.full(len(earlier), 1.0 / distance, np.float32)
        counted = counted + csr_array((weight, (earlier, later)), shape=(num_items, num_items))
    if reverse_share:
        counted = counted + np.float32(reverse_share) * counted.T
    return csr_array(counted)


def _scale(follows: csr_array, total_power: float) -> dia_array:
    """Return what divides each row by its total to a power, as a diagonal. (N, N), float32."""
    totals = follows.sum(axis=1)
    scale = np.where(totals > 0, totals, 1.0).astype(np.float32) ** np.float32(-total_power)
    return diags_array(scale)

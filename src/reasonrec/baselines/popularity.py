"""Popularity, over all of training or recently: what everyone takes is recommended to everyone."""

import logging
from dataclasses import dataclass
from functools import cache
from typing import Self

import numpy as np
from pydantic import PositiveFloat, PositiveInt

from reasonrec.baselines.history import count_items
from reasonrec.config import Config
from reasonrec.data.dataset import Dataset
from reasonrec.records import Histories, Scored

logger = logging.getLogger(__name__)
SECONDS_PER_DAY = 86_400.0


class PopularityConfig(Config):
    """Popularity has nothing to set."""


class RecentPopularityConfig(Config):
    """How fast an event is forgotten."""

    half_life_days: PositiveFloat = 30.0
    """Age at which an event counts half."""
    half_life_events: PositiveFloat = 0.5
    """Used instead where the set has no times: an event counts half when the same user made this
    many after it."""
    num_moments: PositiveInt = 128
    """Slices of training. More follow the clock closer and take S x N x 4 bytes."""


@dataclass(frozen=True)
class Popularity:
    """Scores every item by its number of training events."""

    counts: np.ndarray
    """(N,), float32."""

    @property
    def name(self) -> str:
        return "popularity"

    @classmethod
    def fit(cls, dataset: Dataset) -> Self:
        """Return the counts of ``dataset.train``."""
        return cls(count_items(dataset.train, dataset.num_items))

    def score(self, histories: Histories) -> Scored:
        return Scored(np.tile(self.counts, (len(histories), 1)))


@dataclass(frozen=True)
class RecentPopularity:
    """Scores every item by its training events before the question, halved every half-life.

    The decay is the same factor for all items, so their order at any moment is the order of
    one running sum. It is kept at moments that cut training into equal numbers of events, and a
    question reads the last one before ``asked_at``: never the future, and at most one slice of
    training too old. A question older than training reads zeros.
    """

    moments: np.ndarray
    """(S,), int64, UTC seconds, rising. Empty where the set has no times."""
    weights: np.ndarray
    """(S + 1, N), float32. Row s: decayed counts of the events up to moment s - 1; without times
    the only row holds all events."""

    @property
    def name(self) -> str:
        return "recent-popularity"

    @classmethod
    def fit(
        cls,
        dataset: Dataset,
        *,
        half_life_days: float,
        half_life_events: float,
        num_moments: int,
    ) -> Self:
        """Return the decayed counts of ``dataset.train``; ``RecentPopularityConfig`` explains."""
        train, num_items = dataset.train, dataset.num_items
        if train.timestamp is None:
            _say_there_are_no_times(dataset.name)
            later = train.user_offsets[train.user_index + 1] - 1 - np.arange(len(train))
            weights = np.bincount(
                train.item_index, np.exp2(-later / half_life_events), minlength=num_items
            )
            return cls(np.zeros(0, np.int64), weights.astype(np.float32)[None])
        order = np.argsort(train.timestamp, kind="stable")
        times, items = train.timestamp[order], train.item_index[order]
        cuts = np.linspace(0, len(times) - 1, num_moments) if len(times) else np.zeros(0)
        moments = np.unique(times[cuts.astype(np.int64)])
        stops = np.searchsorted(times, moments, side="right")
        starts = np.concatenate([[0], stops[:-1]])
        weights = np.zeros((len(moments) + 1, num_items), np.float32)
        running, previous = np.zeros(num_items), times[:1].sum()
        for s, (start, stop, moment) in enumerate(zip(starts, stops, moments)):
            age_days = (moment - times[start:stop]) / SECONDS_PER_DAY
            running *= np.exp2(-(moment - previous) / SECONDS_PER_DAY / half_life_days)
            running += np.bincount(
                items[start:stop], np.exp2(-age_days / half_life_days), minlength=num_items
            )
            weights[s + 1] = running
            previous = moment
        return cls(moments, weights)

    def score(self, histories: Histories) -> Scored:
        row = np.full(len(histories), len(self.moments))
        if histories.asked_at is not None:
            # events of the very second of the question may be its own: strictly older ones only
            row = np.searchsorted(self.moments, histories.asked_at, side="left")
        return Scored(self.weights[row])


@cache
def _say_there_are_no_times(dataset_name: str) -> None:
    """Warn once a set, however many settings are tried on it."""
    logger.warning(
        "recent-popularity: %s has no times, so an event's age is the number of events that its "
        "user made after it",
        dataset_name,
    )

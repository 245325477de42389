"""The one contract that every method meets, ours and the floor's alike."""

from typing import Protocol, runtime_checkable

import numpy as np

from reasonrec.records import Histories, Scored


@runtime_checkable
class Recommender(Protocol):
    """Scores the whole catalogue for users who are known by their history."""

    @property
    def name(self) -> str:
        """A fixed word of ``docs/conventions.md``, such as ``item-knn`` or ``no-think``."""
        ...

    def score(self, histories: Histories) -> Scored:
        """Return a float32 score for every row and catalogue item.

        A row may be empty and its user unknown; the answer is then what popularity or the prior
        of the model says, never an error. A row's answer does not depend on the other rows.
        """
        ...


@runtime_checkable
class AnsweredElsewhere(Recommender, Protocol):
    """A recommender that only reads what was answered before; its costs were measured there."""

    @property
    def fit_seconds(self) -> float:
        """Wall-clock seconds of training."""
        ...

    @property
    def latency_ms(self) -> np.ndarray:
        """Milliseconds of queries that were asked one at a time; empty if none were."""
        ...


@runtime_checkable
class CandidateRecommender(Recommender, Protocol):
    """A recommender that ranks given candidates by other means than scores of the catalogue."""

    def score_candidates(self, histories: Histories, candidates: np.ndarray) -> Scored:
        """Return a score for every candidate of every row; ``scores`` is then (B, C).

        Args:
            candidates: (B, C), item indices; -1 pads a shorter list, and its scores mean nothing.
                A column tells nothing: columns in another order get the same scores.
        """
        ...

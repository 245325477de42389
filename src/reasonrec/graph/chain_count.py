"""Ranks by the number of chains that close on an item: the chain-existence leak as a recommender.

Whatever a method that reads chains reaches, it should reach more than this, which only counts them.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import PositiveInt

from reasonrec.config import Config
from reasonrec.data.dataset import Dataset
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.sampling import count_closable_everywhere
from reasonrec.records import Histories, Scored


class ChainCountConfig(Config):
    """Which chains are counted."""

    max_history: PositiveInt = 50
    """How far back the history is read."""


@dataclass(frozen=True)
class ChainCount:
    """Scores an item by how many chains u0 -> i0 -> u1 -> item exist, with popularity for ties."""

    graph: InteractionGraph
    prior: np.ndarray
    """(N,), float32, from 0 to below 1: it never outweighs a chain."""
    max_history: int

    @property
    def name(self) -> str:
        return "chain-count"

    @classmethod
    def fit(cls, dataset: Dataset, *, max_history: int = 50) -> Self:
        """Return the graph of ``dataset.train``.

        Args:
            max_history: How far back the history is read.
        """
        num_events = np.bincount(dataset.train.item_index, minlength=dataset.num_items)
        prior = num_events / (num_events.max(initial=0) + 1.0)
        graph = InteractionGraph.build(dataset.train, dataset.num_items)
        return cls(graph, prior.astype(np.float32), max_history)

    def score(self, histories: Histories) -> Scored:
        """Return the counts, exact up to 2 ** 24, above which float32 rounds them."""
        counts = count_closable_everywhere(self.graph, histories, max_history=self.max_history)
        return Scored(counts.astype(np.float32) + self.prior)

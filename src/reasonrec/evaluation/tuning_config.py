"""What ``reasonrec tune`` can be told; a module of its own, so that ``--help`` stays quick."""

from typing import Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from reasonrec.config import Config
from reasonrec.metrics import METRICS
from reasonrec.models.ranking import DEFAULT_MASK, Mask

LEAST_TRIALS = 4
"""Settings that are tried however long they take."""
UNCUT = "ndcg"
"""NDCG over the whole ranking, without a cut-off: 1 / log2(1 + rank) of every query."""


class TuneConfig(Config):
    """How the settings of baselines are searched."""

    budget: PositiveInt = 30
    """Settings tried per method, its defaults included."""
    minutes: PositiveFloat | None = None
    """Minutes of fitting and scoring after which a method's search tries nothing further, once it
    has tried four settings. None for no limit. What was tried then depends on the machine."""
    metric: str = "ndcg@10"
    """What the best setting is best at, over the full catalogue: hit@k, ndcg@k or mrr@k of the
    report, or ndcg without a cut-off, which a small validation part measures more steadily."""
    num_queries: PositiveInt = 5_000
    """Validation queries that a trial is measured on, the same ones for all methods."""
    mask: Mask = DEFAULT_MASK
    """What is kept out of the ranking."""
    batch_size: PositiveInt = 256
    """Histories scored at once. Changes time and memory only."""

    @model_validator(mode="after")
    def check_metric(self) -> Self:
        if self.metric not in (*METRICS, UNCUT):
            raise ValueError(f"metric must be {UNCUT} or one of {', '.join(METRICS)}")
        return self

"""Tunes the floor on validation, so that baselines get as much care as our own method.

A coordinate search from the defaults: each setting in turn is tried at every value of its grid,
the best one is kept, and the sweep starts again until nothing improves or the budget is spent.
The test part is never read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from reasonrec.baselines.floor import FLOOR, fit_floor
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.protocol import DEFAULT_MASK, evaluate
from reasonrec.models.ranking import Mask

GRIDS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "popularity": {},
    "recent-popularity": {
        "half_life_days": (30.0, 3.0, 10.0, 100.0, 300.0, 1000.0),
        "half_life_events": (0.5, 1.0, 2.0, 5.0, 20.0),
    },
    "item-knn": {
        "recency_power": (1.0, 0.0, 0.5, 1.5, 2.0),
        "max_events": (10, 5, 20, 50, 1000),
        "shrinkage": (10.0, 0.0, 3.0, 30.0, 100.0),
        "num_neighbours": (100, 20, 50, 200, 1000),
        "prior_weight": (1e-3, 1e-2, 1e-1),
    },
    "follow-counter": {
        "total_power": (0.5, 0.0, 0.3, 0.7, 1.0),
        "recency_power": (1.0, 0.5, 1.5, 2.0),
        "num_steps": (5, 1, 2, 3, 10),
        "reverse_share": (0.3, 0.0, 0.1, 0.6, 1.0),
        "max_events": (20, 5, 10, 50),
        "prior_weight": (1e-3, 1e-2, 1e-1),
    },
}
"""The values tried for each setting of each floor method; the first one is the default."""


@dataclass(frozen=True)
class Trial:
    """One setting of one method, measured on validation."""

    settings: Mapping[str, float]
    """Keywords of the method's ``fit``."""
    value: float
    """Mean NDCG@10 over the full catalogue."""


@dataclass(frozen=True)
class TunedMethod:
    """The best setting of a floor method, with everything that was tried."""

    name: str
    best: Trial
    trials: tuple[Trial, ...]
    """In the order of the search; the first one holds the defaults."""


def tune_floor(
    dataset: Dataset,
    *,
    budget: int = 30,
    num_queries: int = 2000,
    names: Sequence[str] = FLOOR,
    mask: Mask = DEFAULT_MASK,
    progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TunedMethod, ...]:
    """Return the setting of each floor method with the highest NDCG@10 on ``dataset.valid``.

    Args:
        budget: Settings tried per method, the defaults included; 1 or more.
        num_queries: Validation queries that a trial is measured on, the same ones for all.
        progress: Called with (method, trials done, budget) after every trial.

    Raises:
        ValueError: ``budget`` is below 1, or validation holds no query.
    """
    if budget < 1:
        raise ValueError(f"budget must be 1 or more; got {budget}")
    return tuple(_tune(name, dataset, budget, num_queries, mask, progress) for name in names)


def _tune(
    name: str,
    dataset: Dataset,
    budget: int,
    num_queries: int,
    mask: Mask,
    progress: Callable[[str, int, int], None] | None,
) -> TunedMethod:
    unused = "half_life_days" if dataset.train.timestamp is None else "half_life_events"
    grid = {key: values for key, values in GRIDS[name].items() if key != unused}
    trials: list[Trial] = []

    def measure(settings: Mapping[str, float]) -> Trial:
        for known in trials:
            if known.settings == settings:
                return known
        measured = evaluate(
            fit_floor(name, dataset, **settings),
            dataset,
            part="valid",
            protocols=("full",),
            mask=mask,
            num_queries=num_queries,
            num_timed_users=0,
        )
        value = next(row.value for row in measured.rows if row.metric == "ndcg@10")
        trials.append(Trial(settings, value))
        if progress:
            progress(name, len(trials), budget)
        return trials[-1]

    best = measure({key: values[0] for key, values in grid.items()})
    improved = True
    while improved and len(trials) < budget:
        improved = False
        for key, values in grid.items():
            for value in values:
                if len(trials) >= budget:
                    break
                trial = measure({**best.settings, key: value})
                if trial.value > best.value:
                    best, improved = trial, True
    return TunedMethod(name, best, tuple(trials))

import numpy as np
import pytest

from reasonrec.baselines.floor import BASELINES, FLOOR, fit_floor
from reasonrec.evaluation.protocol import evaluate
from reasonrec.evaluation.tuning import GRIDS, tune_floor
from toys import toy_dataset

TITLES = [f"item {i}" for i in range(20)]


def ring_dataset(seed=0, timestamps=True):
    """Everybody walks the ring of items, one step at a time, from a place of their own."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(20, size=80), rng.integers(4, 9, size=80)
    rows = [[int((s + step) % 20) for step in range(n)] for s, n in zip(starts, lengths)]
    return toy_dataset(rows, TITLES, timestamps=timestamps)


def test_the_best_setting_is_the_best_of_all_trials_and_none_is_tried_twice():
    for tuned in tune_floor(ring_dataset(), budget=12):
        assert tuned.best.value == max(trial.value for trial in tuned.trials)
        assert len(tuned.trials) <= 12
        tried = [tuple(trial.settings.items()) for trial in tuned.trials]
        assert len(set(tried)) == len(tried)


def test_the_value_of_a_trial_is_what_evaluation_gives_on_validation():
    dataset = ring_dataset()
    (tuned,) = tune_floor(dataset, budget=8, names=["follow-counter"])
    again = evaluate(
        fit_floor("follow-counter", dataset, **tuned.best.settings), dataset, part="valid"
    )
    (value,) = [
        row.value for row in again.rows if (row.protocol, row.metric) == ("full", "ndcg@10")
    ]
    assert value == tuned.best.value


def test_tuning_never_reads_the_test_part():
    dataset = ring_dataset()
    test = dataset.test
    shuffled = type(test)(**{**vars(test), "target": test.target[::-1].copy()})
    changed = type(dataset)(**{**vars(dataset), "test": shuffled})
    assert tune_floor(dataset, budget=6) == tune_floor(changed, budget=6)


def test_the_first_value_of_every_grid_is_the_default_of_the_method():
    assert tuple(GRIDS) == FLOOR
    for name, grid in GRIDS.items():
        defaults = BASELINES[name].config().model_dump()
        assert {key: defaults[key] for key in grid} == {k: v[0] for k, v in grid.items()}


def test_without_times_the_half_life_in_days_is_not_searched():
    (tuned,) = tune_floor(ring_dataset(timestamps=False), names=["recent-popularity"])
    assert {key for trial in tuned.trials for key in trial.settings} == {"half_life_events"}


def test_a_budget_below_one_is_refused():
    with pytest.raises(ValueError, match="budget must be 1 or more"):
        tune_floor(ring_dataset(), budget=0)

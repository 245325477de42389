"""Searches the settings of baselines on validation, so that they get as much care as our method.

Every method has the same budget of trials, and the first trial holds its defaults. Where the whole
grid of ``SPACES`` fits into the budget, all of it is tried. Else the first half of the budget is
drawn from the grid at random, and the second half redraws one or two settings of the best trial so
far. A budget is a number of trials, or of minutes, whichever is spent first. The test part is never
read.

A folder of ``tune_baselines`` holds ``trials.jsonl`` and ``trials.parquet`` (one row a trial, in
the order of the search), ``best.toml`` (a table of settings for each method) and, last of all,
``manifest.json``. A trial is written when it is done; an interrupted search reads what is there.
"""

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from reasonrec.baselines.contract import Recommender
from reasonrec.baselines.floor import CONFIGS, READING, check_settings, fit_floor
from reasonrec.baselines.peers import PEERS, Progress, ask_peer
from reasonrec.config import read_toml
from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError, ConfigError, DataError
from reasonrec.evaluation.protocol import chosen_queries, evaluate
from reasonrec.evaluation.tuning_config import LEAST_TRIALS, UNCUT, TuneConfig
from reasonrec.manifest import (
    check_outputs,
    is_finished,
    make_folder,
    read_manifest,
    start_stage,
    stopwatch,
    write_manifest,
    writes_alone,
)
from reasonrec.metrics import METRICS, metric_values
from reasonrec.rng import stream

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger(__name__)
FILES = ("trials.jsonl", "trials.parquet", "best.toml")
Settings = Mapping[str, float]

_RECENCY = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
_EVENTS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 10_000)
_PRIOR = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
_FACTORS = (8, 16, 32, 64, 96, 128)
_TRANSFORMER = {
    "num_factors": (32, 64, 128),
    "num_blocks": (1, 2, 3),
    "num_heads": (1, 2, 4),
    "dropout": (0.1, 0.2, 0.3, 0.5),
    "max_events": (20, 50, 100),
    "learning_rate": (0.0005, 0.001, 0.002, 0.004),
    "batch_size": (32, 64, 128),
}
_FOLLOW = {
    "num_steps": (1, 2, 3, 5, 7, 10, 15, 20, 30),
    "reverse_share": (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0),
    "total_power": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1.0),
    "recency_power": (*_RECENCY, 3.0),
    "max_events": _EVENTS,
    "prior_weight": _PRIOR,
}
SPACES: Mapping[str, Mapping[str, Sequence[float]]] = {
    "popularity": {},
    "recent-popularity": {
        "half_life_days": (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0),
        "half_life_events": (0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0),
    },
    "item-knn": {
        "num_neighbours": (10, 20, 50, 100, 200, 500, 1000),
        "shrinkage": (0.0, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0),
        "recency_power": _RECENCY,
        "max_events": _EVENTS,
        "prior_weight": _PRIOR,
    },
    "follow-counter": _FOLLOW,
    "pace-counter": {**_FOLLOW, "same_pace": (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0)},
    "item-knn-bm25": {
        "num_neighbours": (10, 20, 50, 100, 200, 500, 1000),
        "saturation": (0.1, 0.3, 0.6, 1.2, 3.0, 10.0, 30.0, 100.0),
        "popularity_share": (0.0, 0.2, 0.4, 0.6, 0.75, 0.9, 1.0),
        "recency_power": _RECENCY,
        "max_events": _EVENTS,
        "prior_weight": _PRIOR,
    },
    "ease": {
        "regularisation": (3.0, 10.0, 30.0, 100.0, 200.0, 300.0, 500.0, 1000.0, 3000.0, 10_000.0),
        "recency_power": _RECENCY,
        "max_events": _EVENTS,
        "prior_weight": _PRIOR,
    },
    "ials": {
        "num_factors": _FACTORS,
        "regularisation": (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        "confidence": (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0),
        "num_iterations": (5, 10, 15, 30),
        "recency_power": _RECENCY,
        "max_events": _EVENTS,
    },
    "bpr": {
        "num_factors": _FACTORS,
        "learning_rate": (0.003, 0.01, 0.02, 0.05, 0.1, 0.2),
        "regularisation": (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1),
        "num_iterations": (15, 30, 60, 100, 200),
        "recency_power": _RECENCY,
        "max_events": _EVENTS,
    },
    "chain-count": {"max_history": (1, 2, 5, 10, 20, 50, 100, 200)},
    "sasrec": _TRANSFORMER,
    "esasrec": {**_TRANSFORMER, "num_negatives": (32, 64, 128, 256)},
    "hstu": {**_TRANSFORMER, "num_negatives": (32, 64, 128, 256)},
    "bert4rec": {**_TRANSFORMER, "mask_share": (0.1, 0.15, 0.2, 0.4, 0.6)},
    "lightgcn": {
        "num_factors": (32, 64, 128),
        "num_layers": (1, 2, 3),
        "learning_rate": (0.003, 0.01, 0.03),
        "regularisation": (0.0, 1e-5, 1e-4, 1e-3),
        "batch_size": (1024, 4096),
    },
    "gru4rec": {
        "num_factors": (64, 128, 256),
        "dropout": (0.0, 0.2, 0.4, 0.6),
        "max_events": (50, 100, 200),
        "learning_rate": (0.02, 0.05, 0.1, 0.2),
        "momentum": (0.0, 0.1, 0.3),
        "batch_size": (32, 64, 128),
        "num_negatives": (128, 512, 2048),
        "sample_power": (0.0, 0.25, 0.5, 0.75),
    },
    "caser": {
        "num_factors": (32, 64, 128),
        "max_events": (3, 5, 8),
        "num_horizontal": (4, 8, 16, 32),
        "num_vertical": (2, 4, 8),
        "dropout": (0.2, 0.4, 0.6),
        "regularisation": (0.0, 1e-5, 1e-4, 1e-3),
        "learning_rate": (0.001, 0.003, 0.01),
        "batch_size": (128, 512),
    },
}
"""The values that are tried for each setting of each baseline."""


@dataclass(frozen=True)
class Trial:
    """One setting of one method, measured on validation."""

    method: str
    settings: Settings
    """The method's whole configuration."""
    value: float | None
    """Mean of the metric that is searched for. None if the method could not be fitted so."""
    metrics: Mapping[str, float]
    """Every metric of the report and ``ndcg`` without cut-off, full catalogue. Empty if it could
    not be fitted."""
    fit_seconds: float
    """Next to nothing where the best trial so far had learned the same."""
    score_seconds: float
    failure: str | None = None
    """Why it could not be fitted."""


@dataclass(frozen=True)
class TunedMethod:
    """The best setting of a baseline, with everything that was tried."""

    name: str
    trials: tuple[Trial, ...]
    """In the order of the search; the first one holds the defaults."""

    @property
    def best(self) -> Trial:
        """The trial of the highest value; of equal ones the first, so that defaults win ties."""
        return max(self.trials, key=_value)


def tune_baseline(
    name: str,
    dataset: Dataset,
    config: TuneConfig,
    *,
    seed: int = 0,
    known: Sequence[Trial] = (),
    spaces: Mapping[str, Mapping[str, Sequence[float]]] = SPACES,
    record: Callable[[Trial], None] | None = None,
    progress: Progress | None = None,
) -> TunedMethod:
    """Return what a search over ``spaces[name]`` on ``dataset.valid`` found.

    Args:
        seed: Names the random draws of the search, and fits the methods that are random.
        known: Trials of an interrupted search of the same kind; they are not run again.
        record: Called with every trial that was run.
        progress: Called with (method, trials done, trials in all) after every trial, and with the
            epochs of a peer within one.

    Raises:
        DataError: Validation holds no query, or no setting could be fitted.
        ValueError: There is no baseline of that name.
    """
    if len(dataset.valid) == 0:
        raise DataError(
            f"{dataset.name} must hold validation queries to tune anything; it has none. "
            "Prepare it with another split"
        )
    # of the two half-lives the one that the set can use
    unused = "half_life_days" if dataset.train.timestamp is None else "half_life_events"
    space = {key: values for key, values in spaces[name].items() if key != unused}
    size = math.prod(len(values) for values in space.values())
    found = {_key(trial): trial for trial in known if trial.method == name}
    trials: list[Trial] = []
    best_fit: tuple[Settings, Recommender] | None = None
    with TemporaryDirectory() as answers:  # of a peer, whose scores are large; gone when measured
        for settings in _proposals(name, space, trials, config, stream(seed, f"tune-{name}")):
            trial = Trial(name, settings, None, {}, 0.0, 0.0)
            if _key(trial) in found:
                trial = found[_key(trial)]
            else:
                trial, fit = _measure(
                    name, settings, dataset, config, seed, best_fit, Path(answers), progress
                )
                if record:
                    record(trial)
                if fit and _value(trial) >= max(map(_value, trials), default=-math.inf):
                    best_fit = settings, fit
            trials.append(trial)
            if progress:
                progress(name, len(trials), max(min(config.budget, size), len(trials)))
    tuned = TunedMethod(name, tuple(trials))
    if tuned.best.value is None:
        raise DataError(f"{name} could not be fitted with any setting: {tuned.best.failure}")
    return tuned


@writes_alone
def tune_baselines(
    names: Sequence[str],
    dataset: Dataset,
    out: Path,
    config: TuneConfig,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[TunedMethod, ...]:
    """Return and write the search of each method, in their order.

    Raises:
        DataError: Validation holds no query.
        CheckpointError: ``out`` holds another search.
    """
    out = make_folder(out)
    asked: dict[str, Any] = {
        "stage": "tune",
        "inputs": {"data": dataset.fingerprint},
        "config": config.model_dump(mode="json", exclude_none=True) | {"methods": list(names)},
        "seed": seed,
    }
    path = out / "trials.jsonl"
    if is_finished(out, **asked):
        trials = read_trials(path)
        return tuple(
            TunedMethod(name, tuple(t for t in trials if t.method == name)) for name in names
        )
    start_stage(out, **asked)
    known = read_trials(path) if path.exists() else []
    with stopwatch() as spent:
        write_trials(path, known)  # without a line that an interruption cut
        with path.open("a", encoding="utf-8") as file:

            def record(trial: Trial) -> None:
                file.write(_line(trial))
                file.flush()

            tuned = tuple(
                tune_baseline(
                    name, dataset, config, seed=seed, known=known, record=record, progress=progress
                )
                for name in names
            )
        trials = [trial for one in tuned for trial in one.trials]
        write_trials(path, trials)
        _table(trials).write_parquet(out / "trials.parquet")
        (out / "best.toml").write_text(_toml(tuned, dataset, config), encoding="utf-8")
    seconds = sum(trial.fit_seconds + trial.score_seconds for trial in trials)
    write_manifest(
        out,
        **asked,
        outputs=list(FILES),
        seconds=max(spent[0], seconds),
        extra={"data_folder": dataset.seen_from(out)},
    )
    return tuned


def read_params(path: Path, dataset: Dataset) -> dict[str, Settings]:
    """Return the settings of each method that a tune folder, or a TOML or JSON file, holds.

    Raises:
        CheckpointError: The folder is unfinished, of another stage, or of another data set.
        ConfigError: The file holds something else than settings of baselines.
    """
    if path.is_dir():
        manifest = read_manifest(path)
        if manifest["stage"] != "tune" or manifest["inputs"] != {"data": dataset.fingerprint}:
            raise CheckpointError(
                f"{path} must be a folder that `reasonrec tune` wrote for {dataset.folder}; it was "
                f"written by stage {manifest['stage']!r} for other data or another purpose. "
                "Settings found on another data set can be used by naming its best.toml"
            )
        check_outputs(path)
        path = path / "best.toml"
    if path.suffix == ".json":
        try:
            tables = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} must be JSON in UTF-8; {error}") from None
    else:
        tables = read_toml(path)
    if not isinstance(tables, dict) or not all(isinstance(one, dict) for one in tables.values()):
        raise ConfigError(f"{path} must hold a table of settings for each method")
    unknown = sorted(tables.keys() - CONFIGS.keys())
    if unknown:
        raise ConfigError(
            f"{path} must name baselines ({', '.join(CONFIGS)}); got {', '.join(unknown)}"
        )
    return {
        name: check_settings(name, table, str(path)).model_dump() for name, table in tables.items()
    }


def read_trials(path: Path) -> list[Trial]:
    """Return the trials of a ``trials.jsonl``; a last line that was cut short is left out.

    Raises:
        CheckpointError: Another line is damaged.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    try:
        return [Trial(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} must hold one trial a line; {error}") from None


def write_trials(path: Path, trials: Sequence[Trial]) -> None:
    """Write ``trials.jsonl``: one trial a line. A kill leaves the file as it was, or whole."""
    partial = path.with_suffix(".partial")
    partial.write_text("".join(map(_line, trials)), encoding="utf-8")
    partial.replace(path)


def tuning_table(tuned: Sequence[TunedMethod], metric: str, *, title: str) -> "Table":
    """Return a rich table: what the defaults reach, what the best does, and in what it differs."""
    from rich.table import Table

    table = Table(title=title, box=None, padding=(0, 1, 0, 0), title_justify="left")
    for heading in ("method", f"{metric}\ndefault", f"{metric}\nbest", "trials", "sec."):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    table.add_column("best settings, where not the default", overflow="fold")
    for one in tuned:
        default, best = one.trials[0], one.best
        seconds = sum(trial.fit_seconds + trial.score_seconds for trial in one.trials)
        table.add_row(
            one.name,
            *("-" if t.value is None else f"{t.value:.4f}" for t in (default, best)),
            str(len(one.trials)),
            f"{seconds:.0f}",
            ", ".join(
                f"{key} {value:g}"
                for key, value in best.settings.items()
                if value != default.settings[key]
            ),
        )
    return table


def _proposals(
    name: str,
    space: Mapping[str, Sequence[float]],
    trials: Sequence[Trial],
    config: TuneConfig,
    rng: np.random.Generator,
) -> Iterator[Settings]:
    """Yield the settings to try, none twice; ``trials`` holds those tried when the next is due."""

    def whole(changes: Mapping[str, float]) -> Settings:
        return check_settings(name, changes).model_dump()

    tried = [whole({})]
    yield tried[0]
    if math.prod(len(values) for values in space.values()) <= config.budget:
        for values in product(*space.values()):
            settings = whole(dict(zip(space, values)))
            if settings not in tried and _time_spent(trials, config) < 1:
                tried.append(settings)
                yield settings
        return
    while len(tried) < config.budget and _time_spent(trials, config) < 1:
        changed = list(space)
        if len(tried) > config.budget // 2 or _time_spent(trials, config) > 0.5:
            changed = rng.permutation(changed)[: int(rng.integers(1, 3))].tolist()
        base = dict(max(trials, key=_value).settings)
        # a draw that was tried is drawn again; one by one more keys, lest the nearest are all tried
        for num_more in range(len(space) + 1):
            keys = [*changed, *[key for key in space if key not in changed][:num_more]]
            settings = whole(
                base | {key: space[key][int(rng.integers(len(space[key])))] for key in keys}
            )
            if settings not in tried:
                break
        else:
            continue
        tried.append(settings)
        yield settings


def _time_spent(trials: Sequence[Trial], config: TuneConfig) -> float:
    """Return the share of the minutes that a search has spent: below 1 if it may go on."""
    if config.minutes is None:
        return 0.0
    seconds = sum(trial.fit_seconds + trial.score_seconds for trial in trials)
    share = seconds / (60 * config.minutes)
    return share if len(trials) >= LEAST_TRIALS else min(share, 0.99)


def _measure(
    name: str,
    settings: Settings,
    dataset: Dataset,
    config: TuneConfig,
    seed: int,
    other: tuple[Settings, Any] | None,
    folder: Path,
    progress: Progress | None,
) -> tuple[Trial, Recommender | None]:
    """Return a trial and its method, which is ``other`` read anew where it learned the same."""
    with stopwatch() as fitting:
        try:
            # a peer learns from the windows that its max_events names
            if other and name not in PEERS and _learned(other[0]) == _learned(settings):
                method = replace(other[1], **{k: settings[k] for k in READING if k in settings})
            else:
                method = _fit(name, settings, dataset, config, seed, folder, progress)
        except ValueError as error:  # a setting that this set does not bear, not the search's fault
            logger.warning("%s with %s: %s", name, dict(settings), error)
            return Trial(name, settings, None, {}, 0.0, 0.0, str(error)), None
    with stopwatch() as scoring:
        measured = evaluate(
            method,
            dataset,
            part="valid",
            protocols=("full",),
            mask=config.mask,
            batch_size=config.batch_size,
            num_queries=config.num_queries,
            num_timed_users=0,
        )
    ranks = measured.per_query["rank"].to_numpy()
    metrics = {row.metric: row.value for row in measured.rows if row.metric in METRICS}
    metrics[UNCUT] = float(metric_values(f"ndcg@{dataset.num_items}", ranks).mean())
    trial = Trial(
        name,
        settings,
        metrics[config.metric],
        metrics,
        fit_seconds=round(fitting[0], 4),
        score_seconds=round(scoring[0], 4),
    )
    return trial, method


def _fit(
    name: str,
    settings: Settings,
    dataset: Dataset,
    config: TuneConfig,
    seed: int,
    folder: Path,
    progress: Progress | None,
) -> Recommender:
    """Return a baseline of ours fitted, or the answers of a peer, in place of its last ones."""
    if name not in PEERS:
        return fit_floor(name, dataset, seed=seed, **settings)
    rows = chosen_queries(dataset.valid, None, config.num_queries, "valid")
    return ask_peer(
        name, dataset, folder, part="valid", settings=settings, seed=seed, rows=rows,
        progress=progress,
    )  # fmt: skip


def _learned(settings: Settings) -> Settings:
    return {key: value for key, value in settings.items() if key not in READING}


def _value(trial: Trial) -> float:
    return -math.inf if trial.value is None else trial.value


def _key(trial: Trial) -> tuple[str, str]:
    return trial.method, json.dumps(dict(trial.settings), sort_keys=True)


def _line(trial: Trial) -> str:
    return json.dumps(asdict(trial)) + "\n"


def _table(trials: Sequence[Trial]) -> pl.DataFrame:
    """Return one row a trial; a setting that a method does not have is null."""
    keys = list(dict.fromkeys(key for trial in trials for key in trial.settings))
    place = dict.fromkeys([trial.method for trial in trials], -1)
    rows = []
    for trial in trials:
        place[trial.method] += 1
        rows.append(
            {"method": trial.method, "trial": place[trial.method], "value": trial.value}
            | {metric: trial.metrics.get(metric) for metric in (*METRICS, UNCUT)}
            | {"fit_seconds": trial.fit_seconds, "score_seconds": trial.score_seconds}
            | {"failure": trial.failure}
            | {f"settings.{key}": _float(trial.settings.get(key)) for key in keys}
        )
    floats = [f"settings.{key}" for key in keys]
    schema = {"value": pl.Float64, "failure": pl.String} | dict.fromkeys(floats, pl.Float64)
    return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _toml(tuned: Sequence[TunedMethod], dataset: Dataset, config: TuneConfig) -> str:
    """Return a table of settings for each method; every setting is a plain number."""
    lines = [
        f"# The best of up to {config.budget} settings of each method: {config.metric}, full "
        "catalogue,",
        f"# {min(config.num_queries, len(dataset.valid)):,} validation queries of {dataset.name}.",
    ]
    for one in tuned:
        lines += ["", f"[{one.name}]  # {config.metric} {one.best.value:.4f}"]
        lines += [f"{key} = {value!r}" for key, value in one.best.settings.items()]
    return "\n".join(lines) + "\n"

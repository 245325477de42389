"""Makes the runs of a passport again, and says how far every number lies from the passport's."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reasonrec.baselines.peers import peer_versions
from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.oracle import ORACLES, oracle_of
from reasonrec.data.prepare import prepare, prepare_planted
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.evaluation.commands import PLANTED, split_source
from reasonrec.evaluation.compare_runs import compare_runs
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.drift import (
    DRIFTED,
    Drift,
    data_drifts,
    difference_drifts,
    row_drifts,
)
from reasonrec.evaluation.environment import Environment, describe_environment
from reasonrec.evaluation.measure import Contestant, floor_contestant, measure
from reasonrec.evaluation.passport import DataPassport, Passport, RunPassport, measured_tables
from reasonrec.evaluation.protocol import read_rows
from reasonrec.evaluation.recipe import Recipe
from reasonrec.manifest import fingerprint, read_manifest, sole_writer
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.repeatable import begin, check_repeatable

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Reproduction:
    """What came out when a passport's runs were made again."""

    drifts: tuple[Drift, ...]
    notes: tuple[str, ...]
    """What differs between then and now, and what is therefore asked of the numbers."""

    @property
    def drifted(self) -> list[Drift]:
        return [one for one in self.drifts if one.verdict == DRIFTED]


def reproduce(
    passport: Passport,
    out: Path,
    *,
    source: str | None = None,
    tolerance: float | None = None,
    announce: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
) -> Reproduction:
    """Return how the numbers of the passport's runs, made again in ``out``, differ from it.

    Where machine, versions and threads are those of a run, every number must be equal; elsewhere a
    number may move by half the width of its interval, or by ``tolerance``. What a clock measured is
    written down and not held.

    Args:
        source: Where the raw data lie, if no longer where the passport says.
        tolerance: How far a number may move on another machine, instead of half its interval.
        announce: Called with a sentence when something begins.
        progress: Called with (method, queries done, queries in all) while measuring.

    Raises:
        CheckpointError: A run cannot be made again from its passport, which is said before any is;
            or ``out`` holds what was not made by this reproduction.
        DataError: The raw data are not there, or cannot be used.
    """
    for run in passport.runs:
        check_repeatable(run)
    with sole_writer(out):
        return _make_again(passport, out, source, tolerance, announce, progress)


def _make_again(
    passport: Passport,
    out: Path,
    source: str | None,
    tolerance: float | None,
    announce: Callable[[str], None],
    progress: Progress | None,
) -> Reproduction:
    here = describe_environment()
    out = begin(passport, out, here)
    drifts: list[Drift] = []
    notes: list[str] = []
    are_exact: list[bool] = []
    for run in passport.runs:
        announce(f"making {run.name} again, which took {_minutes(run)}")
        repeat = _repeat_demo if run.kind == "demo" else _repeat_evaluation
        folder, prepared = repeat(run, out, source or _data(run).source, announce, progress)
        differences = _differences(run, here, folder)
        is_exact = not differences
        are_exact.append(is_exact)
        notes += _notes(run, here.commit, here.is_dirty, differences, tolerance)
        manifest = read_manifest(prepared)
        tables = measured_tables(manifest)
        drifts += data_drifts(
            run.name, _data(run).inputs, manifest["inputs"], is_exact=is_exact, what="raw"
        )
        drifts += data_drifts(
            run.name, _data(run).tables, tables, is_exact=is_exact, what="prepared"
        )
        if run.candidates_file is not None and run.candidates_hash is not None:
            drifts += data_drifts(
                run.name, {"candidates": run.candidates_hash},
                {"candidates": fingerprint(Path(run.candidates_file))},
                is_exact=is_exact, what="raw",
            )  # fmt: skip
        rows = read_rows(folder / "metrics.json")
        drifts += row_drifts(run, rows, is_exact=is_exact, tolerance=tolerance)
    if passport.comparison is not None:
        config = passport.comparison.config
        _, found = compare_runs(
            [out / run.name for run in passport.runs],
            out / "compared",
            reference=config["reference"],
            columns=[(protocol, metric) for protocol, metric in config["columns"]],
            num_resamples=config["num_resamples"],
            common_queries=config.get("common_queries", False),
        )
        drifts += difference_drifts(
            passport.comparison.rows,
            [asdict(one) for one in found],
            is_exact=all(are_exact),
            tolerance=tolerance,
        )
    made = Reproduction(tuple(drifts), tuple(notes))
    _write(made, out)
    return made


def _repeat_demo(
    run: RunPassport,
    out: Path,
    source: str,
    announce: Callable[[str], None],
    progress: Progress | None,
) -> tuple[Path, Path]:
    """Return the folder of the demo that was made again, and that of its data."""
    from reasonrec.methods.demo import run_demo  # brings torch, which a floor does without

    data = _data(run)
    folder = out / run.name
    run_demo(
        data.source if data.source == PLANTED else source,
        folder,
        R2ecConfig.model_validate(run.config["r2ec"]),
        seed=run.seed,
        world=_world(data),
        world_seed=data.seed or 0,
        preparation=_preparation(data),
        evaluation=EvaluateConfig.model_validate(run.config["evaluation"]),
        announce=announce,
        progress=progress,
    )
    return folder, folder / "data"


def _repeat_evaluation(
    run: RunPassport,
    out: Path,
    source: str,
    announce: Callable[[str], None],
    progress: Progress | None,
) -> tuple[Path, Path]:
    """Return the folder of the evaluation that was made again, and that of its data."""
    data = _data(run)
    prepared, folder = out / f"{run.name}-data", out / run.name
    if data.source == PLANTED:
        dataset = prepare_planted(prepared, _world(data), _preparation(data), data.seed or 0)
    else:
        dataset = prepare(source, prepared, _preparation(data), data.seed or 0)
    methods = run.config["methods"]
    settings = {key: value for key, value in run.config.items() if key != "methods"}
    config = EvaluateConfig.model_validate(settings)
    announce(f"measuring {', '.join(methods)}")
    measure(
        [
            _retrained(run.models[label], label, dataset, out / f"{run.name}-models", announce)
            if label in run.models
            else _contestant(label, one, dataset, config)
            for label, one in methods.items()
        ],
        dataset,
        folder,
        config,
        seed=run.seed,
        candidates_file=None if run.candidates_file is None else Path(run.candidates_file),
        progress=progress,
    )
    return folder, prepared


def _retrained(
    recipe: Recipe, label: str, dataset: Dataset, out: Path, announce: Callable[[str], None]
) -> Contestant:
    """Return a trained model, made again by its recipe."""
    from reasonrec.methods.loading import load_recommender  # brings torch
    from reasonrec.methods.retrain import retrain

    announce(f"training {label} again")
    folder = retrain(recipe, dataset, out)
    manifest = read_manifest(folder)
    return Contestant(
        label=label,
        seed=recipe.seed,
        source=manifest["fingerprint"],
        open=lambda _: load_recommender(folder, dataset),
        trained_on=manifest["trained_on"],
    )


def _contestant(
    label: str, method: dict[str, Any], dataset: Dataset, config: EvaluateConfig
) -> Contestant:
    seed = int(method["seed"])
    if label in ORACLES:
        return Contestant(label, seed, label, lambda _: oracle_of(label, dataset))
    _, settings = split_source(method["source"])
    return floor_contestant(
        label, dataset, seed=seed, tune=config.tune, settings=settings, asked=config
    )


def _data(run: RunPassport) -> DataPassport:
    assert run.data is not None  # checked before anything runs
    return run.data


def _world(data: DataPassport) -> PlantedConfig:
    return PlantedConfig.model_validate(data.config.get(PLANTED, {"size": "demo"}))


def _preparation(data: DataPassport) -> PrepareConfig:
    return PrepareConfig.model_validate(data.preparation)


def _differences(run: RunPassport, here: Environment, folder: Path) -> list[str]:
    """Return what could move the last digits of a run that was made again in ``folder``."""
    used = [one.environment for recipe in run.models.values() for one in recipe.chain]
    found = [text for one in (run.environment, *used) for text in one.differences(here)]
    for label, was in run.peers.items():
        now = peer_versions(folder / "methods" / label / "peer")
        found += [
            f"{name} of {label}: was {version}, is {now.get(name, 'not recorded')}"
            for name, version in was.items()
            if now.get(name) != version
        ]
    return list(dict.fromkeys(found))


def _notes(
    run: RunPassport,
    commit: str | None,
    is_dirty: bool | None,
    differences: Sequence[str],
    tolerance: float | None,
) -> list[str]:
    """Return what was different, and what that asks of the numbers."""
    notes = []
    if run.environment.commit != commit:
        then, now = ((one or "unknown")[:10] for one in (run.environment.commit, commit))
        notes.append(f"{run.name}: the code was at commit {then}, and is at {now}")
    if run.environment.is_dirty or is_dirty:
        notes.append(f"{run.name}: the code was changed since its commit, then or now")
    if not differences:
        notes.append(
            f"{run.name}: same machine, versions and threads, so every number must be equal"
        )
    else:
        reach = "half the width of its interval" if tolerance is None else f"{tolerance:g}"
        notes.append(f"{run.name}: a number may move by {reach}, since " + "; ".join(differences))
    return notes


def _minutes(run: RunPassport) -> str:
    return "an unknown time" if run.seconds is None else f"{run.seconds / 60:.1f} minutes"


def _write(made: Reproduction, out: Path) -> None:
    content = {"notes": list(made.notes), "drifts": [asdict(one) for one in made.drifts]}
    text = json.dumps(content, indent=1, ensure_ascii=False).replace("Infinity", "null")
    (out / "reproduction.json").write_text(text + "\n", encoding="utf-8")

"""The evaluate stage: measures several methods on the same queries, one finished folder each.

``<out>/methods/<label>/`` holds each method's own numbers and manifest, so that an interrupted
run continues with the next method; ``<out>/`` holds all of them together, manifest last.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reasonrec.baselines.contract import Recommender
from reasonrec.baselines.floor import check_settings, fit_floor
from reasonrec.baselines.peers import PEERS, Progress, ask_peer, peer_versions
from reasonrec.data.dataset import Dataset
from reasonrec.errors import DataError
from reasonrec.evaluation.candidates import (
    Candidates,
    draw_candidates,
    given_candidates,
    parse_protocol,
)
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.passport import pass_run, write_passport
from reasonrec.evaluation.protocol import (
    Evaluation,
    chosen_queries,
    evaluate,
    read_evaluation,
    write_evaluation,
)
from reasonrec.evaluation.recipe import Recipe
from reasonrec.evaluation.trajectory import TRAJECTORY, trace_thoughts
from reasonrec.evaluation.tuning import tune_baseline, write_trials
from reasonrec.evaluation.tuning_config import TuneConfig
from reasonrec.manifest import (
    check_outputs,
    fingerprint,
    is_finished,
    make_folder,
    stopwatch,
    write_manifest,
    writes_alone,
)
from reasonrec.models.recommenders import ThinkingRecommender


@dataclass(frozen=True)
class Contestant:
    """A method that waits to be measured; opening it may load or fit."""

    label: str
    """Names its folder; unique among the contestants."""
    seed: int
    """The seed that it was trained with."""
    source: str
    """What it is, for the manifest: a fixed word, or the fingerprint of its folder."""
    open: Callable[[Path], Recommender]
    """Returns the method; may write to the folder that it is given (what tuning tried)."""
    is_fitted_here: bool = False
    """Whether opening it is fitting, whose seconds are reported."""
    trained_on: str = "train"
    is_traced: bool = False
    """Whether it is known to have a trajectory, before it is opened."""
    recipe: Recipe | None = None
    """How it was trained, where its folder says so."""


def floor_contestant(
    name: str,
    dataset: Dataset,
    *,
    seed: int,
    tune: int = 0,
    settings: Mapping[str, float] | None = None,
    asked: EvaluateConfig | None = None,
    progress: Progress | None = None,
) -> Contestant:
    """Return a baseline that is fitted, and with ``tune`` above 0 tuned first, when opened.

    Args:
        settings: Keys of its configuration, its defaults if none are given.
        asked: How it will be measured, which a peer must know beforehand, and the rows that it is
            fitted on. Defaults if not given. Tuning reads ``train`` and validation whatever it is.
        progress: Told of each trial, and of the epochs of a peer, which can take an hour.
    """

    how = asked or EvaluateConfig()

    def open_method(folder: Path) -> Recommender:
        chosen = settings or {}
        if tune:
            tuned = tune_baseline(
                name, dataset, TuneConfig(budget=tune), seed=seed, progress=progress
            )
            write_trials(folder / "trials.jsonl", tuned.trials)
            chosen = tuned.best.settings
        if name not in PEERS:
            whole = how.train_on == "train+valid"
            learned = dataset.with_validation() if whole else dataset
            return fit_floor(name, learned, seed=seed, **chosen)
        rows = None
        if how.num_queries is not None:
            rows = chosen_queries(dataset.queries(how.part), None, how.num_queries, how.part)
        return ask_peer(
            name,
            dataset,
            folder / "peer",
            part=how.part,
            settings=check_settings(name, chosen).model_dump(),
            seed=seed,
            rows=rows,
            num_timed_users=how.num_timed_users,
            train_on=how.train_on,
            progress=progress,
        )

    source = name if settings is None else f"{name} {json.dumps(dict(settings), sort_keys=True)}"
    return Contestant(name, seed, source, open_method, is_fitted_here=True, trained_on=how.train_on)


@writes_alone
def measure(
    contestants: Sequence[Contestant],
    dataset: Dataset,
    out: Path,
    config: EvaluateConfig,
    *,
    seed: int = 0,
    candidates_file: Path | None = None,
    has_passport: bool = False,
    progress: Progress | None = None,
) -> tuple[Evaluation, ...]:
    """Return and write the evaluation of every contestant, in their order.

    Args:
        candidates_file: Published candidate lists, measured as ``candidates-given`` as well.
        has_passport: Write ``passport.json`` too: this evaluation is a result of its own.
        progress: Called with (label, queries done, queries in all).

    Raises:
        DataError: The part has no queries, or the candidates do not fit the data.
        CheckpointError: ``out`` holds another evaluation.
    """
    out = make_folder(out)
    queries = dataset.queries(config.part)
    if len(queries) == 0:
        raise DataError(
            f"{dataset.name} must hold {config.part} queries to measure anything; it has none. "
            "Under leave-one-out a user needs three events to be asked about"
        )
    inputs = {"data": dataset.fingerprint}
    if candidates_file is not None:
        if not candidates_file.is_file():
            raise DataError(
                f"the candidates must be a Parquet file; found none at {candidates_file}"
            )
        inputs["candidates"] = fingerprint(candidates_file)
    settings = config.model_dump(mode="json")
    whole = {"methods": {c.label: {"source": c.source, "seed": c.seed} for c in contestants}}
    if is_finished(out, stage="evaluate", inputs=inputs, config=settings | whole, seed=seed):
        folders = [out / "methods" / contestant.label for contestant in contestants]
        for folder in folders:
            check_outputs(folder)
        return tuple(read_evaluation(folder) for folder in folders)
    start = time.perf_counter()
    with stopwatch() as spent:
        sets = _candidates(dataset, config, out)
        if candidates_file is not None:
            sets.append(given_candidates(candidates_file, dataset, config.part))
        evaluations = tuple(
            _measure_one(
                contestant,
                dataset,
                out / "methods" / contestant.label,
                config,
                sets,
                inputs,
                progress,
            )
            for contestant in contestants
        )
        _check_distinct(evaluations)
        outputs = write_evaluation(out, evaluations)
        if has_passport:
            passport = pass_run(
                out, kind="evaluate", evaluation=out, data=dataset.folder, seed=seed,
                config=settings | whole, candidates_file=candidates_file,
                seconds=time.perf_counter() - start,
                models={c.label: c.recipe for c in contestants if c.recipe is not None},
                peers={
                    c.label: peer_versions(out / "methods" / c.label / "peer")
                    for c in contestants
                    if c.label in PEERS
                },
            )  # fmt: skip
            outputs.append(write_passport(passport, out).name)
    write_manifest(
        out,
        stage="evaluate",
        inputs=inputs,
        config=settings | whole,
        outputs=outputs,
        seconds=spent[0],
        seed=seed,
        extra={"data_folder": dataset.seen_from(out)}
        | ({} if candidates_file is None else {"candidates_file": str(candidates_file)}),
    )
    return evaluations


def _measure_one(
    contestant: Contestant,
    dataset: Dataset,
    folder: Path,
    config: EvaluateConfig,
    sets: Sequence[Candidates],
    inputs: Mapping[str, str],
    progress: Progress | None,
) -> Evaluation:
    """Measure one method, or read what an interrupted run measured already."""
    make_folder(folder)
    settings = config.model_dump(mode="json") | {"source": contestant.source}
    if is_finished(
        folder, stage="evaluate-method", inputs=inputs, config=settings, seed=contestant.seed
    ):
        return read_evaluation(folder)
    with stopwatch() as spent:
        with stopwatch() as opening:
            recommender = contestant.open(folder)
        report = progress
        evaluation = evaluate(
            recommender,
            dataset,
            part=config.part,
            protocols=config.protocols,
            mask=config.mask,
            seed=contestant.seed,
            batch_size=config.batch_size,
            num_queries=config.num_queries,
            candidates=sets,
            trained_on=contestant.trained_on,
            num_timed_users=config.num_timed_users,
            fit_seconds=opening[0] if contestant.is_fitted_here else None,
            keep_lists=True,
            progress=None
            if report is None
            else lambda done, total: report(contestant.label, done, total),
        )
        outputs = write_evaluation(folder, [evaluation])
        if config.trajectory and isinstance(recommender, ThinkingRecommender):
            queries = dataset.queries(config.part)
            rows = chosen_queries(queries, None, config.num_queries, config.part)
            traced = trace_thoughts(
                recommender, queries, rows, mask=config.mask, seed=contestant.seed
            )
            traced.write_parquet(folder / TRAJECTORY)
            outputs.append(TRAJECTORY)
    write_manifest(
        folder,
        stage="evaluate-method",
        inputs=inputs,
        config=settings,
        outputs=outputs,
        seconds=spent[0],
        seed=contestant.seed,
    )
    return evaluation


def _check_distinct(evaluations: Sequence[Evaluation]) -> None:
    """Refuse results that nobody could tell apart later."""
    names = [(one.rows[0].method, one.rows[0].seed) for one in evaluations]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            "the methods of one evaluation must differ in name or seed; got twice: "
            + ", ".join(f"{method} of seed {seed}" for method, seed in twice)
            + ". Evaluate them into folders of their own, and `reasonrec compare` those"
        )


def _candidates(dataset: Dataset, config: EvaluateConfig, out: Path) -> list[Candidates]:
    """Return the drawn candidate sets, drawn anew: what lies there may be of other data."""
    sets = []
    for word in config.protocols:
        if word == "full":
            continue
        path = out / f"{word}-{config.part}-seed{config.candidate_seed}.parquet"
        count, negatives = parse_protocol(word)
        drawn = draw_candidates(
            dataset,
            config.part,
            num_candidates=count,
            seed=config.candidate_seed,
            negatives=negatives,
        )
        drawn.write(path)
        sets.append(Candidates.read(path, dataset.queries(config.part)))
    return sets

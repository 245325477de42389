"""The whole road in one call: raw log -> data -> floor -> no-think -> thoughts -> RecPO -> report.

Layout of a run folder: ``data/``, ``no-think/``, ``think-sft/``, ``think-recpo/``, ``evaluation/``,
``audits/``, ``config.json``, ``metrics.json``, ``recommendations.json``, ``report.html``,
``passport.json``, ``manifest.json``.
Every part is a stage of its own, so an interrupted run continues where it stopped.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reasonrec.baselines.floor import FLOOR
from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.oracle import OracleRecommender
from reasonrec.data.prepare import prepare, prepare_planted
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.evaluation.audits.config import AuditConfig
from reasonrec.evaluation.audits.stage import write_audits
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.measure import Contestant, floor_contestant, measure
from reasonrec.evaluation.passport import pass_run, write_passport
from reasonrec.evaluation.protocol import MetricRow, read_rows
from reasonrec.manifest import (
    is_finished,
    make_folder,
    read_manifest,
    stopwatch,
    write_manifest,
    writes_alone,
)
from reasonrec.methods.r2ec import load_recommender, train
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.r2ec_stages import METHOD_OF_STAGE
from reasonrec.records import Recommendation
from reasonrec.serving.recommender import recommend

PLANTED = "planted"
NUM_SHOWN = 3
"""Users whose recommendations a run ends with."""


@dataclass(frozen=True)
class Demo:
    """What a finished run of the road shows."""

    dataset: Dataset
    rows: tuple[MetricRow, ...]
    recommendations: tuple[Recommendation, ...]
    report: Path
    seconds: float


@writes_alone
def run_demo(
    source: str,
    out: Path,
    config: R2ecConfig,
    *,
    seed: int,
    world: PlantedConfig,
    world_seed: int = 0,
    preparation: PrepareConfig,
    evaluation: EvaluateConfig,
    announce: Callable[[str], None] = lambda _: None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Demo:
    """Run every stage that is not finished in ``out`` and return what the run shows.

    Args:
        source: ``planted``, a data set's name, or a folder or file with a raw log.
        seed: Draws weights, orders and samples.
        world_seed: Draws the generated shop, so that several seeds can be compared on one shop.
        announce: Called with a sentence when a stage begins.
        progress: Called with (method, queries done, queries in all) while measuring.
    """
    from reasonrec.evaluation.report.records import load_run
    from reasonrec.evaluation.report.render import write_report

    if config.head.repeats:
        evaluation = evaluation.model_copy(update={"mask": "none"})
    out = make_folder(out)
    with stopwatch() as spent:
        announce(f"preparing {source}")
        if source == PLANTED:
            dataset = prepare_planted(out / "data", world, preparation, world_seed)
        else:
            dataset = prepare(source, out / "data", preparation)
        resolved = {
            "source": source,
            "seed": seed,
            "r2ec": config.model_dump(mode="json"),
            "evaluation": evaluation.model_dump(mode="json"),
        }
        inputs = {"data": dataset.fingerprint}
        done = is_finished(
            out, stage="demo", inputs=inputs, config=resolved, seed=seed, repairs=True
        )
        (out / "config.json").write_text(json.dumps(resolved, indent=2) + "\n", encoding="utf-8")
        folders = train(
            dataset, config, out=out, seed=seed, announce=lambda name: announce(f"training {name}")
        )
        announce("measuring every method on the test queries")
        evaluations = measure(
            _contestants(dataset, folders, seed=seed, tune=evaluation.tune),
            dataset, out / "evaluation", evaluation, seed=seed, progress=progress,
        )  # fmt: skip
        shutil.copyfile(out / "evaluation" / "metrics.json", out / "metrics.json")
        rows = tuple(row for measured in evaluations for row in measured.rows)
        announce("recommending to three users")
        shown = tuple(
            recommend(
                load_recommender(folders[-1], dataset),
                dataset,
                users_to_show(dataset),
                k=10,
                explain=True,
                mask="none" if config.head.repeats else "history",
            )
        )
        (out / "recommendations.json").write_text(
            json.dumps([answer.to_json() for answer in shown], ensure_ascii=False, indent=2) + "\n",
            encoding="utf-8",
        )
        report = out / "report.html"
        if not done:
            announce("auditing data and results")
            write_audits(out, out / "audits", AuditConfig(), seed=seed)
            write_report(load_run(out), report)
    if done:
        return Demo(dataset, rows, shown, report, read_manifest(out)["seconds"])
    parts = [*folders, out / "evaluation", out / "audits"]
    seconds = max(spent[0], sum(read_manifest(part)["seconds"] for part in parts))
    passport = pass_run(
        out, kind="demo", evaluation=out, data=out / "data", config=resolved, seed=seed,
        seconds=seconds,
    )  # fmt: skip
    write_passport(passport, out)
    write_manifest(
        out, stage="demo", inputs=inputs, config=resolved, seconds=seconds, seed=seed,
        outputs=[
            "config.json", "metrics.json", "passport.json", "recommendations.json", "report.html",
        ],
        extra={"data_folder": "data"},
    )  # fmt: skip
    return Demo(dataset, rows, shown, report, seconds)


def measured_rows(folder: Path) -> list[MetricRow]:
    """Return the metric rows of a finished run."""
    return read_rows(Path(folder) / "metrics.json")


def users_to_show(dataset: Dataset) -> list[str]:
    """Return three users with test queries: of short, middle and long history."""
    queries = dataset.test
    order = np.argsort(queries.history_stop - queries.history_start, kind="stable")
    places = np.linspace(0.1, 0.9, NUM_SHOWN) * (len(order) - 1)
    users = [dataset.user_ids[queries.user_index[order[int(place)]]] for place in places]
    return list(dict.fromkeys(users))


def _contestants(
    dataset: Dataset, folders: list[Path], *, seed: int, tune: int
) -> list[Contestant]:
    contestants = [floor_contestant(name, dataset, seed=seed, tune=tune) for name in FLOOR]
    for folder in folders:
        source = read_manifest(folder)["fingerprint"]
        if folder.name not in ("no-think", METHOD_OF_STAGE["gate"]):
            contestants.append(
                Contestant(
                    f"{folder.name}-silent", seed, source + "/silent",
                    lambda _, f=folder: load_recommender(f, dataset, thinks=False),
                )
            )  # fmt: skip
        contestants.append(
            Contestant(folder.name, seed, source, lambda _, f=folder: load_recommender(f, dataset))
        )
    if (dataset.folder / "world").is_dir():
        contestants.append(
            Contestant("oracle", seed, "oracle", lambda _: OracleRecommender(dataset))
        )
    return contestants

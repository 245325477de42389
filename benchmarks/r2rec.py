"""Measure R2Rec, its controls and ablations beside tuned baselines; write docs/results/r2rec.md.

    REASONREC_DATA=... python benchmarks/r2rec.py runs/r2rec ml-100k office-2018 --seeds 0 1 2
    REASONREC_DATA=... python benchmarks/r2rec.py runs/r2rec ml-100k --joined --thinkers runs
    REASONREC_DATA=... python benchmarks/r2rec.py runs/r2rec ml-100k --ablations
    python benchmarks/r2rec.py runs/r2rec ml-100k office-2018 --rated
    python benchmarks/r2rec.py runs/r2rec ml-100k office-2018 --transfer
    python benchmarks/r2rec.py runs/r2rec ml-100k office-2018 --seeds 0 1 2 --reweigh
    python benchmarks/r2rec.py runs/r2rec --only-write --beside runs/floor runs/peers

The first line prepares, tunes, trains and measures, set by set and seed by seed, goes on where it
stopped, and writes the page after every row; the second adds R2Rec whose first stage is R²ec; the
third does the ablations, with one seed; the fourth ranks by ratings, one question a candidate, a
part of the queries; the fifth measures on each set what was trained on the others of its rating
scale; the sixth trains nothing and weighs the blends of an older version anew. First stages are
trained here, or taken from finished runs of `reasonrec demo` in ``--thinkers``, folders
`<set>-<seed>` as benchmarks/results.py names them.
What benchmarks/floor.py and benchmarks/peers.py measured on the same queries stands beside them,
where ``--beside`` names their folders.
Every method ranks the same 20 candidates of the same queries: all of them, or a fixed sample of
2,000. Settings of baselines and weights of the blend are chosen on validation. Nothing is typed in
by hand.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from r2rec_page import write_page
from r2rec_rows import (
    ABLATIONS,
    AFTER_SFT,
    ALL,
    BASELINES,
    BLENDED,
    BUDGET,
    EVIDENCE,
    JOINED,
    MAIN,
    NUM_QUERIES,
    NUM_RATED,
    ONE_SCALE,
    PREPARE,
    PROTOCOL,
    RATED,
    SFT,
    TRANSFERRED,
)
from running import merged, reasonrec, say, source

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.measure import Contestant, floor_contestant, measure
from reasonrec.evaluation.tuning import read_params
from reasonrec.manifest import read_manifest
from reasonrec.methods import loading, r2ec, r2rec
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.r2rec_config import R2recConfig
from reasonrec.models.reasoned_ranking import ReasonedRanker
from reasonrec.records import Histories


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--joined", action="store_true")
    parser.add_argument("--thinkers", type=Path, help="folder of runs of R²ec, <set>-<seed>")
    parser.add_argument("--ablations", nargs="*", choices=[*ABLATIONS, []], default=None)
    parser.add_argument("--rated", action="store_true")
    parser.add_argument("--transfer", action="store_true")
    parser.add_argument("--reweigh", action="store_true")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="folders of baselines")
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    write = partial(write_page, asked.runs, asked.beside)
    if not asked.only_write:
        for name in asked.sets:
            for seed in asked.seeds:
                if asked.transfer:
                    run_transfer(asked.runs, name, seed)
                elif asked.rated:
                    run_rated(asked.runs / name, name, seed, asked.thinkers)
                elif asked.reweigh:
                    run_reweighed(asked.runs / name, seed)
                elif asked.joined:
                    run_joined(asked.runs / name, name, seed, asked.thinkers, write)
                elif asked.ablations is None:
                    run_seed(asked.runs / name, name, seed, asked.thinkers, write)
                for ablation in [] if asked.ablations is None else asked.ablations or ABLATIONS:
                    run_ablation(asked.runs / name, name, ablation, seed, asked.thinkers)
                    write()
                write()
    write()


def run_floor(folder: Path, name: str) -> Dataset:
    """Prepare one set, tune and measure its baselines, and return it."""
    data = folder / "data"
    reasonrec("prepare", name, "--out", data, *PREPARE[name])
    reasonrec("tune", *BASELINES, "--data", data, "--out", folder / "tune", "--budget", BUDGET)
    dataset = Dataset.load(data)
    settings = read_params(folder / "tune", dataset)
    floor = [floor_contestant(word, dataset, seed=0, settings=settings[word]) for word in BASELINES]
    floor.append(floor_contestant("chain-count", dataset, seed=0))
    measured(floor, dataset, folder / "floor", seed=0)
    return dataset


def run_seed(
    folder: Path, name: str, seed: int, thinkers: Path | None, write: Callable[[], None]
) -> None:
    """Train and measure one seed of one set, baselines first."""
    dataset = run_floor(folder, name)
    out = folder / f"seed-{seed}"
    start = first_stage("no-think", dataset, out, name, seed, thinkers)
    measured([opened(start, dataset, seed)], dataset, out / "measured" / "no-think", seed)
    for variant, changes in MAIN.items():
        # what is trained is measured, and the page written, before the next is trained
        train(dataset, {**changes, **SFT}, out / variant, start, seed)
        rows = rows_of_sft(variant, dataset, out / variant, seed)
        measured(rows, dataset, out / "measured" / f"{variant}-sft", seed)
        write()
        if variant != "r2rec":
            continue
        train(dataset, changes, out / variant, start, seed)
        for word, rows in rows_of_rl(dataset, out / variant, changes, seed).items():
            measured(rows, dataset, out / "measured" / word, seed)
            write()


def run_reweighed(folder: Path, seed: int) -> None:
    """Measure the blends of a seed that was trained, weighed by what this version knows."""
    dataset, out = Dataset.load(folder / "data"), folder / f"seed-{seed}"
    groups = {"r2rec-sft": rows_of_sft("r2rec", dataset, out / "r2rec", seed)}
    groups |= rows_of_rl(dataset, out / "r2rec", MAIN["r2rec"], seed)
    for word, rows in groups.items():
        try:
            measured(rows, dataset, out / "measured" / word, seed)
        except CheckpointError:  # measured with the blend of another version
            shutil.rmtree(out / "measured" / word)
            measured(rows, dataset, out / "measured" / word, seed)


def run_joined(
    folder: Path, name: str, seed: int, thinkers: Path | None, write: Callable[[], None]
) -> None:
    """Train and measure R2Rec whose first stage is R²ec, of one seed of one set."""
    dataset = run_floor(folder, name)
    out = folder / f"seed-{seed}"
    start = first_stage("think-recpo", dataset, out, name, seed, thinkers)
    measured([opened(start, dataset, seed)], dataset, out / "measured" / "think-recpo", seed)
    write()
    changes = {"blend": True, **SFT}
    train(dataset, changes, out / "joined", start, seed)
    sft = out / "joined" / "r2rec-sft"
    thoughts: Remembered = {}
    rows = [
        opened(sft, dataset, seed, name="joined-sft", blend=False, thoughts=thoughts),
        opened(sft, dataset, seed, name=JOINED, thoughts=thoughts),
        without_answers(sft, dataset, configured(changes), seed, name="joined/no-answers"),
    ]
    measured(rows, dataset, out / "measured" / "joined", seed)
    write()


def run_ablation(folder: Path, name: str, ablation: str, seed: int, thinkers: Path | None) -> None:
    """Train and measure one ablation of a set whose seed has been run."""
    dataset = Dataset.load(folder / "data")
    out = folder / f"seed-{seed}"
    changes = SFT | ABLATIONS[ablation]
    start = first_stage("no-think", dataset, out, name, seed, thinkers)
    if changes["stages"] == AFTER_SFT:  # RL alone differs
        say(f"{out / ablation}: r2rec-rl")
        stage = r2rec.train_stage(
            "r2rec-rl", dataset, configured(changes), out=out / ablation / "r2rec-rl", seed=seed,
            start=out / "r2rec" / "r2rec-sft", traces=out / "r2rec" / "traces",
        )  # fmt: skip
    else:
        train(dataset, changes, out / ablation, start, seed)
        stage = out / ablation / str(changes["stages"][-1])  # pyright: ignore[reportArgumentType, reportIndexIssue]
    contestant = opened(stage, dataset, seed, name=ablation, blend=False)
    measured([contestant], dataset, out / "ablations" / ablation, seed)


def run_rated(folder: Path, name: str, seed: int, thinkers: Path | None) -> None:
    """Train and measure what ranks by ratings, of a set whose seed has been run."""
    dataset = Dataset.load(folder / "data")
    out = folder / f"seed-{seed}"
    start = first_stage("no-think", dataset, out, name, seed, thinkers)
    for variant, changes in RATED.items():
        train(dataset, changes, out / variant, start, seed)
        for stage in configured(changes).stages:
            row = opened(out / variant / stage, dataset, seed, name=f"{variant}{stage[5:]}")
            measured([row], dataset, out / "by-rating" / row.label, seed, num_queries=NUM_RATED)


def run_transfer(runs: Path, name: str, seed: int) -> None:
    """Measure on one set what was trained on the others of its scale."""
    dataset = Dataset.load(runs / name / "data")
    for trained_on in ONE_SCALE if name in ONE_SCALE else ():
        trained = runs / trained_on / f"seed-{seed}"
        if trained_on == name or not (trained / "measured").is_dir():
            continue
        rows = [
            transferred(trained / folder / "r2rec-sft", f"{row} of {trained_on}", dataset, seed)
            for row, folder in TRANSFERRED.items()
        ]
        out = runs / name / f"seed-{seed}" / "transfer" / trained_on
        measured(rows, dataset, out, seed)


def transferred(folder: Path, name: str, dataset: Dataset, seed: int) -> Contestant:
    """Return a folder trained on another set as a row of its own name."""

    def opening(_: Path) -> Recommender:
        return replace(r2rec.transferred(folder, dataset), name=name)

    return Contestant(name.replace(" ", "-"), seed, f"{source(folder)} transferred", opening)


def first_stage(
    method: str, dataset: Dataset, out: Path, name: str, seed: int, thinkers: Path | None
) -> Path:
    """Return the folder of R²ec that R2Rec starts from, trained here where none is finished."""
    finished = None if thinkers is None else thinkers / f"{name}-{seed}" / method
    if finished is not None and (finished / "manifest.json").exists():
        return finished
    if method == "no-think":
        say(f"train no-think, seed {seed}")
        return r2ec.train_stage("no-think", dataset, R2ecConfig(), out=out / method, seed=seed)
    return r2ec.train(dataset, R2ecConfig(), out=out / "r2ec", seed=seed, announce=say)[-1]


def train(
    dataset: Dataset, changes: Mapping[str, object], out: Path, start: Path, seed: int
) -> None:
    begin = time.process_time()
    r2rec.train(
        dataset, configured(changes), out=out, seed=seed, start=start,
        announce=lambda stage: say(f"{out}: {stage}"),
    )  # fmt: skip
    say(f"{out}: {time.process_time() - begin:.0f} s of CPU time")


def configured(changes: Mapping[str, object]) -> R2recConfig:
    """Return the defaults with some keys changed, those beside them kept."""
    base = merged(R2recConfig().model_dump(), ALL)
    return R2recConfig.model_validate(merged(base, changes))


Remembered = dict[bytes, Any]
"""What was thought about each batch of histories and candidates."""


@dataclass(frozen=True)
class Remembering(ReasonedRanker):
    """Thinks once about each batch, for rows that differ in the weights of the blend alone."""

    thoughts: Remembered = field(default_factory=dict)

    def _listwise(self, histories: Histories, candidates: np.ndarray) -> Any:
        if len(histories) == 1:  # a user who is asked alone is timed
            return super()._listwise(histories, candidates)
        key = histories.item_index.tobytes() + candidates.tobytes()
        if key not in self.thoughts:
            self.thoughts[key] = super()._listwise(histories, candidates)
        return self.thoughts[key]


def remembering(ranker: ReasonedRanker, thoughts: Remembered) -> Remembering:
    own = {one.name: getattr(ranker, one.name) for one in fields(ReasonedRanker)}
    return Remembering(**own, thoughts=thoughts)


def rows_of_sft(variant: str, dataset: Dataset, folder: Path, seed: int) -> list[Contestant]:
    """Return the rows of the first stage of a configuration."""
    sft = folder / "r2rec-sft"
    if variant != "r2rec":
        return [opened(sft, dataset, seed, name=f"{variant}-sft", blend=False)]
    thoughts: Remembered = {}
    return [
        opened(sft, dataset, seed, blend=False, thoughts=thoughts),
        opened(sft, dataset, seed, name="r2rec-sft/blend", thoughts=thoughts),
    ]


def rows_of_rl(
    dataset: Dataset, folder: Path, changes: Mapping[str, object], seed: int
) -> dict[str, list[Contestant]]:
    """Return the rows of R2Rec's last stage, and of what they are compared with, by folder."""
    config = configured(changes)
    bare = config.traces.evidence.model_copy(update={"num_chains": 0})
    last = folder / "r2rec-rl"
    thoughts: Remembered = {}
    bare_thoughts: Remembered = {}

    def without_chains(blend: bool) -> Contestant:
        def opening(_: Path) -> Recommender:
            ranker = r2rec.load_recommender(last, dataset, evidence=bare, blend={})
            name = f"{BLENDED if blend else 'r2rec-rl'}/no-chains"
            kept = weights_of(last, dataset) if blend else None
            return remembering(replace(ranker, name=name, blend=kept), bare_thoughts)

        word = "blend-" if blend else ""
        return Contestant(f"rl-{word}no-chains", seed, said_of(last, bare, blend), opening)

    return {
        "r2rec-rl": [
            opened(last, dataset, seed, blend=False, thoughts=thoughts),
            opened(last, dataset, seed, name=BLENDED, thoughts=thoughts),
            without_answers(last, dataset, config, seed, name=EVIDENCE),
        ],
        "no-chains": [without_chains(False), without_chains(True)],
        "untuned": [opened(folder / "untuned", dataset, seed, blend=False)],
    }


def without_answers(
    folder: Path, dataset: Dataset, config: R2recConfig, seed: int, *, name: str
) -> Contestant:
    """Return the blend of a trained folder without the model's answers, weighed anew."""

    def opening(_: Path) -> Recommender:
        ranker = unblended(folder, dataset)
        silent = [expert for expert in ranker.expert_names if expert != "answers"]
        weights = r2rec.calibrated_blend(ranker, dataset, config, silent)
        return replace(ranker, blend=weights, name=name)

    label = name.replace("/", "-")
    return Contestant(label, seed, said_of(folder, "evidence alone", True), opening)


def weights_of(folder: Path, dataset: Dataset) -> Mapping[str, float] | None:
    """Return the weights of a blend, found anew where an older version heard its experts
    otherwise."""
    manifest, config = read_manifest(folder), configured(MAIN["r2rec"])
    if manifest["blend"] is None:
        return None
    if manifest["config"].get("blending") == config.blending.model_dump(mode="json"):
        return manifest["blend"]
    return r2rec.calibrated_blend(unblended(folder, dataset), dataset, config)


def unblended(folder: Path, dataset: Dataset) -> ReasonedRanker:
    """Return what a trained folder ranks with by its answers alone."""
    return replace(r2rec.load_recommender(folder, dataset, blend={}), blend=None)


def said_of(folder: Path, what: object, blend: bool) -> str:
    """Return what a measured row rests on: it is measured anew where that changes."""
    is_blended = blend and what is not None  # rows that keep the name of their folder have none
    blended = f" with {R2recConfig().blending.model_dump_json()}" if is_blended else ""
    return f"{source(folder)} {what} {blend}{blended}"


def opened(
    folder: Path,
    dataset: Dataset,
    seed: int,
    *,
    name: str | None = None,
    blend: bool = True,
    thoughts: Remembered | None = None,
) -> Contestant:
    """Return a trained folder as a row of its own name; without ``blend``, by answers alone."""

    def opening(_: Path) -> Recommender:
        if read_manifest(folder)["method"] not in r2rec.METHODS:
            return loading.load_recommender(folder, dataset)
        ranker, kept = unblended(folder, dataset), weights_of(folder, dataset) if blend else None
        named = replace(ranker, blend=kept, name=name or ranker.name)
        return named if thoughts is None else remembering(named, thoughts)

    label = (name or folder.name).replace("/", "-")
    return Contestant(label, seed, said_of(folder, name, blend), opening)


def measured(
    contestants: Sequence[Contestant],
    dataset: Dataset,
    out: Path,
    seed: int,
    *,
    num_queries: int = NUM_QUERIES,
) -> None:
    """Measure on all test queries, or on a fixed sample of them."""
    sampled = num_queries if len(dataset.test) > num_queries else None
    config = EvaluateConfig(protocols=(PROTOCOL,), num_queries=sampled, num_timed_users=10)
    say(f"measure {', '.join(one.label for one in contestants)}")
    measure(contestants, dataset, out, config, seed=seed)


if __name__ == "__main__":
    main()

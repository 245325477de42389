"""Measure R2Rec, its controls and ablations beside tuned baselines; write docs/results/r2rec.md.

    REASONREC_DATA=... python benchmarks/r2rec.py runs/r2rec ml-100k office-2018 --seeds 0 1 2
    REASONREC_DATA=... python benchmarks/r2rec.py runs/r2rec ml-100k --joined --thinkers runs
    REASONREC_DATA=... python benchmarks/r2rec.py runs/r2rec ml-100k --ablations
    python benchmarks/r2rec.py runs/r2rec ml-100k office-2018 --transfer
    python benchmarks/r2rec.py runs/r2rec --only-write

The first line prepares, tunes, trains and measures, set by set and seed by seed, goes on where it
stopped, and writes the page after every row; the second adds R2Rec whose first stage is R²ec; the
third does the ablations, with one seed; the fourth measures on each set what was trained on the
others of its rating scale. First stages are trained here, or taken from finished runs
of `reasonrec demo` in ``--thinkers``, folders `<set>-<seed>` as benchmarks/results.py names them.
Every method ranks the same 20 candidates of the same queries: all of them, or a fixed sample of
2,000. Settings of baselines and weights of the blend are chosen on validation. Nothing is typed in
by hand.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from running import ROOT, merged, reasonrec, say, source

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.comparison import Comparison, compare
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import find_runs, join_runs, values_of
from reasonrec.evaluation.measure import Contestant, floor_contestant, measure
from reasonrec.evaluation.significance import paired_test
from reasonrec.evaluation.table import MethodLine, short, summarise
from reasonrec.evaluation.tuning import read_params
from reasonrec.machine import describe_machine
from reasonrec.manifest import read_manifest
from reasonrec.methods import loading, r2ec, r2rec
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.r2rec_config import R2recConfig
from reasonrec.models.reasoned_ranking import EXPERTS, ReasonedRanker
from reasonrec.records import Histories

PREPARE = {
    "ml-100k": [],
    "office-2018": ["--split", "given"],
    "ml-latest-small": [],
    "ml-1m": [],
}
"""The sets of the page, and what `reasonrec prepare` is told; of ml-1m it keeps likes unasked."""
BASELINES = ("popularity", "recent-popularity", "item-knn-bm25", "follow-counter", "ease", "ials")
BUDGET = 20
"""Settings that are tried for each baseline, by NDCG@10 on validation."""
NUM_QUERIES = 2000
PROTOCOL = "candidates-20"
COLUMNS = ((PROTOCOL, "hit@1"), (PROTOCOL, "hit@3"), (PROTOCOL, "hit@5"), (PROTOCOL, "ndcg@20"))
HEADINGS = ("method", "seeds", "HR@1", "HR@3", "HR@5", "NDCG", "tokens / user", "ms / user")
ALL = {"ranking": {"num_orders_measured": 0}}
"""What every configuration below has: the effect of the order is left out, for time."""
SFT = {"stages": ["r2rec-sft"]}
ON_HISTORY = {"reading": "history-closed"}
MAIN = {
    "r2rec": {"blend": True},
    "direct": {"think": False, "stages": ["r2rec-sft"]},
    "history-closed": {"stages": ["r2rec-sft"], "traces": {"evidence": ON_HISTORY}},
    "no-chains": {"stages": ["r2rec-sft"], "traces": {"evidence": {"num_chains": 0}}},
}
"""Configurations that every seed of every set trains."""
AFTER_SFT = ["r2rec-sft", "r2rec-rl"]
LONGER = {"num_prompts": 800, "optimiser": {"num_validations": 5}}
ABLATIONS = {
    "no-recital": {"recites": "never"},
    "no-recital-on-history": {"recites": "never", "traces": {"evidence": ON_HISTORY}},
    "random-chains": {"traces": {"evidence": {"chain_ends": "random"}}},
    "no-support": {"traces": {"evidence": {"show_support": False}}},
    "one-chain": {"traces": {"evidence": {"num_chains": 1}}},
    "five-chains": {"traces": {"evidence": {"num_chains": 5}}, "max_tokens": 200},
    "copying": {"copies": True},
    "longer": {"sft": {"num_epochs": 8, "optimiser": {"num_validations": 8}}},
    "any-event": {
        "traces": {"events": "any", "num_questions": 6400},
        "sft": {"optimiser": {"num_validations": 8}},
    },
    "no-likeness": {"traces": {"evidence": {"show_likeness": False}}},
    "free-only": {"traces": {"progressive": {"runs": "free"}}},
    "guided-only": {"traces": {"progressive": {"runs": "guided"}}},
    "full-style": {"traces": {"teacher": {"style": "full"}}, "max_tokens": 300},
    "no-masking": {
        "traces": {"teacher": {"style": "full"}, "progressive": {"masking": "answer"}},
        "max_tokens": 300,
    },
    "masked-ratings": {
        "traces": {"teacher": {"style": "full"}, "progressive": {"masking": "ratings"}},
        "max_tokens": 300,
    },
    "words-of-answers": {"chooses": False},
    "four-orders": {"ranking": {"num_orders": 4}},
    "rl-only": {"stages": ["r2rec-rl"]},
    "rl-longer": {"stages": AFTER_SFT, "rl": LONGER},
    "rl-held": {"stages": AFTER_SFT, "rl": {**LONGER, "grpo": {"kl_weight": 0.1}}},
    "rl-rewards-alone": {"stages": AFTER_SFT, "rl": {**LONGER, "grpo": {"answer_weight": 0.0}}},
    "rl-spread": {
        "stages": AFTER_SFT,
        "rl": {**LONGER, "grpo": {"answer_weight": 0.0, "advantage": "grpo"}},
    },
    "rl-groups-of-16": {
        "stages": AFTER_SFT,
        "rl": {"num_prompts": 400, "grpo": {"group_size": 16}},
    },
    "rl-faster": {
        "stages": AFTER_SFT,
        "rl": merged(LONGER, {"optimiser": {"learning_rate": 5e-4}}),
    },
    "rated": {"task": "rated"},
}
"""One change each from r2rec-sft, whose first stage alone is trained unless they say otherwise."""
ONE_SCALE = ("ml-100k", "ml-1m", "office-2018")
"""Sets that are rated from 1 to 5 in whole stars."""
TRANSFERRED = {"r2rec-sft": "r2rec", "direct-sft": "direct"}
"""Rows that are measured on other sets than they were trained on, and their folders."""
BLENDED = "r2rec-rl/blend"
JOINED = "joined-sft/blend"
EVIDENCE = "blend/no-answers"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--joined", action="store_true")
    parser.add_argument("--thinkers", type=Path, help="folder of runs of R²ec, <set>-<seed>")
    parser.add_argument("--ablations", nargs="*", choices=[*ABLATIONS, []], default=None)
    parser.add_argument("--transfer", action="store_true")
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    if not asked.only_write:
        for name in asked.sets:
            for seed in asked.seeds:
                if asked.transfer:
                    run_transfer(asked.runs, name, seed)
                elif asked.joined:
                    run_joined(asked.runs / name, name, seed, asked.thinkers)
                elif asked.ablations is None:
                    run_seed(asked.runs / name, name, seed, asked.thinkers)
                for ablation in [] if asked.ablations is None else asked.ablations or ABLATIONS:
                    run_ablation(asked.runs / name, name, ablation, seed, asked.thinkers)
                    write_page(asked.runs)
                write_page(asked.runs)
    write_page(asked.runs)


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


def run_seed(folder: Path, name: str, seed: int, thinkers: Path | None) -> None:
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
        write_page(folder.parent)
        if variant != "r2rec":
            continue
        train(dataset, changes, out / variant, start, seed)
        for word, rows in rows_of_rl(dataset, out / variant, changes, seed).items():
            measured(rows, dataset, out / "measured" / word, seed)
            write_page(folder.parent)


def run_joined(folder: Path, name: str, seed: int, thinkers: Path | None) -> None:
    """Train and measure R2Rec whose first stage is R²ec, of one seed of one set."""
    dataset = run_floor(folder, name)
    out = folder / f"seed-{seed}"
    start = first_stage("think-recpo", dataset, out, name, seed, thinkers)
    measured([opened(start, dataset, seed)], dataset, out / "measured" / "think-recpo", seed)
    write_page(folder.parent)
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
    write_page(folder.parent)


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
            ranker = r2rec.load_recommender(last, dataset, evidence=bare)
            name = f"{BLENDED if blend else 'r2rec-rl'}/no-chains"
            kept = ranker.blend if blend else None
            return remembering(replace(ranker, name=name, blend=kept), bare_thoughts)

        word = "blend-" if blend else ""
        return Contestant(f"rl-{word}no-chains", seed, f"{source(last)} {bare} {blend}", opening)

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
        ranker = replace(r2rec.load_recommender(folder, dataset), blend=None)
        weights = r2rec.calibrated_blend(ranker, dataset, config, EXPERTS[1:])
        return replace(ranker, blend=weights, name=name)

    return Contestant(name.replace("/", "-"), seed, f"{source(folder)} evidence alone", opening)


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
        recommender = loading.load_recommender(folder, dataset)
        if not isinstance(recommender, ReasonedRanker):
            return recommender
        kept = recommender.blend if blend else None
        named = replace(recommender, blend=kept, name=name or recommender.name)
        return named if thoughts is None else remembering(named, thoughts)

    label = (name or folder.name).replace("/", "-")
    return Contestant(label, seed, f"{source(folder)} {name} {blend}", opening)


def measured(contestants: Sequence[Contestant], dataset: Dataset, out: Path, seed: int) -> None:
    """Measure on all test queries, or on a fixed sample of them."""
    sampled = NUM_QUERIES if len(dataset.test) > NUM_QUERIES else None
    config = EvaluateConfig(protocols=(PROTOCOL,), num_queries=sampled, num_timed_users=10)
    say(f"measure {', '.join(one.label for one in contestants)}")
    measure(contestants, dataset, out, config, seed=seed)


HEAD = """# R2Rec

Every number comes from `python benchmarks/r2rec.py`. Twenty candidates, the one taken and 19 that
the user touches nowhere, the same for all methods; all test queries, or a fixed sample of 2,000.
Baselines were tuned with a budget of {budget} settings each by NDCG@10 on validation. A tie for the
first place is no hit. ± is the standard deviation over seeds; tests are paired over queries.
Networks of other libraries are in [peers.md](peers.md), where they were run: none of them is above
the follow counter among 20 candidates of ml-100k or office-2018; on ml-latest-small and ml-1m they
were not measured, and could be.

| row | what it is |
| --- | --- |
| `chain-count` | how many chains close on a candidate, nothing else |
| `no-think` | the backbone before R2Rec, without a thought: what R2Rec starts from |
| `untuned` | the same weights, asked the questions of R2Rec in words |
| `direct-sft` | SFT on answers without thoughts; chains stand in the prompt |
| `history-closed-sft` | as `r2rec-sft`, with chains that close on the history, no support |
| `no-chains-sft` | SFT on thoughts from history and likeness of words alone |
| `r2rec-sft`, `r2rec-rl` | thoughts along chains: SFT, then GRPO; ranked by the answer alone |
| `.../blend` | the answer weighed with no-think, chains, popularity and words |
| `{evidence}` | the same blend without the model's answer: what thinking has to add to |
| `think-recpo` | R²ec after RecPO: scores every item after a thought, and is asked about these |
| `joined-sft...` | R2Rec that starts from `think-recpo`: both methods joined |
| `.../no-chains` | chains and their support taken out of the prompt, and of the blend |
"""


OVER_ALL = (
    (BLENDED, "best baseline"), (BLENDED, EVIDENCE), ("r2rec-rl", "r2rec-sft"),
    ("r2rec-sft", "direct-sft"), ("r2rec-rl", "untuned"), ("r2rec-rl/no-chains", "r2rec-rl"),
    ("r2rec-sft", "no-chains-sft"), ("r2rec-sft", "history-closed-sft"),
)  # fmt: skip
"""Pairs that are compared over all sets together."""


def write_page(runs: Path) -> None:
    """Write docs/results/r2rec.md from what is finished."""
    sections: list[str] = []
    found: list[tuple[str, dict[str, np.ndarray]]] = []
    for name in PREPARE:
        folder = runs / name
        if (folder / "floor" / "manifest.json").exists():
            section, hits = set_section(name, folder)
            sections.append(section)
            best = max(BASELINES, key=lambda method, hits=hits: hits[method].mean())
            found.append((name, {**hits, "best baseline": hits[best]}))
    head = HEAD.format(budget=BUDGET, evidence=EVIDENCE)
    head += "\n".join(
        [
            "",
            "Over all sets together: the mean over sets of the difference in HR@1 relative to the "
            "reference, means over seeds on each query, signs of users flipped. no-think is not "
            "counted among the baselines.",
            "",
            "| HR@1 of | against | each set | on average | 95 % interval | p |",
            "| --- | --- | --- | --: | --: | --: |",
            *(over_all(found, *pair) for pair in OVER_ALL),
            "",
        ]
    )
    page = ROOT / "docs" / "results" / "r2rec.md"
    page.write_text("\n".join([head, *sections]), encoding="utf-8")


def over_all(
    found: Sequence[tuple[str, Mapping[str, np.ndarray]]], method: str, reference: str
) -> str:
    """Return the row of one pair, compared on the queries of all sets that have both.

    A query's difference is weighed so that their mean is the mean over sets of the relative one.
    """
    both = [
        (name, hits[method], hits[reference])
        for name, hits in found
        if {method, reference} <= set(hits)
    ]
    num_queries = sum(len(one) for _, one, _ in both)
    if not both:
        return f"| `{method}` | `{reference}` | - | - | - | - |"
    weighed = [
        (one - other) / other.mean() * num_queries / (len(both) * len(one))
        for _, one, other in both
    ]
    values = np.concatenate(weighed)
    test = paired_test(values, np.zeros(len(values)), rng=np.random.default_rng(0))
    each = ", ".join(f"{name} {one.mean() / other.mean() - 1:+.1%}" for name, one, other in both)
    return (
        f"| `{method}` | `{reference}` | {each} | {test.difference:+.1%} | {test.low:+.1%} to "
        f"{test.high:+.1%} | {test.p_permutation:.4f} |"
    )


def set_section(name: str, folder: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Return the section of one set, and HR@1 of its methods on each query."""
    done = sorted(folder.glob("seed-*/measured/*/manifest.json"))
    runs = [folder / "floor", *(path.parent for path in done)]
    joined = join_runs(find_runs(runs))
    lines = summarise(joined.rows, COLUMNS)
    hits = {line.method: line.cells[0].value for line in lines if line.cells[0]}
    best = max(BASELINES, key=lambda method: hits[method])
    commits = sorted({str(read_manifest(run)["commit"])[:10] for run in runs})
    test = joined.rows[0]
    text = [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {test.split}, {test.n:,} test "
        f"queries; commit {', '.join(commits)}; {describe_machine(ROOT).cpu}, one thread beside "
        "other work, so milliseconds say an order of magnitude.",
        "",
        *table(lines),
    ]
    if any(method.startswith(("r2rec", "joined")) for method in hits):
        pairs = [
            (BLENDED, best), (BLENDED, "no-think"), (BLENDED, EVIDENCE), ("r2rec-rl", best),
            ("r2rec-sft/blend", best), ("r2rec-sft/blend", "no-think"), ("r2rec-sft", best),
            ("r2rec-rl", "untuned"), ("r2rec-rl", "r2rec-sft"), ("r2rec-sft", "direct-sft"),
            ("r2rec-sft", "history-closed-sft"), ("history-closed-sft", "direct-sft"),
            ("r2rec-sft", "no-chains-sft"), ("r2rec-rl/no-chains", "r2rec-rl"),
            (f"{BLENDED}/no-chains", BLENDED),
            (JOINED, best), (JOINED, "think-recpo"), (JOINED, "joined/no-answers"),
            ("joined-sft", best),
        ]  # fmt: skip
        compared = compare(joined, best, COLUMNS[:1])
        found = [one for a, b in pairs for one in compared.against.get(b, ()) if one.method == a]
        text += ["", *tests(found, hits)]
    ablations = sorted(folder.glob("seed-*/ablations/*/manifest.json"))
    if ablations:
        beside = ("history-closed-sft", "no-chains-sft", "direct-sft")
        heading = f"{name}: ablations of r2rec-sft"
        text += more_rows(heading, runs, ablations, "r2rec-sft", [*ABLATIONS, "r2rec-sft", *beside])
    transfers = sorted(folder.glob("seed-*/transfer/*/manifest.json"))
    if transfers:
        rows = [f"{row} of {one}" for one in ONE_SCALE for row in TRANSFERRED]
        shown = [*rows, "untuned", "chain-count", *TRANSFERRED]
        text += more_rows(f"{name}: trained on other sets", runs, transfers, "chain-count", shown)
    each = values_of(joined.per_query, *COLUMNS[0])
    assert each is not None
    return "\n".join(text) + "\n", dict(zip(each.methods, each.table.T, strict=True))


def more_rows(
    heading: str, runs: Sequence[Path], more: Sequence[Path], reference: str, shown: Sequence[str]
) -> list[str]:
    """Return a part of a set's section: rows beside a reference, those in ``more`` tested."""
    joined = join_runs(find_runs([*runs, *(path.parent for path in more)]))
    lines = [line for line in summarise(joined.rows, COLUMNS) if line.method in shown]
    added = join_runs(find_runs([path.parent for path in more]))
    tested = {row.method for row in added.rows}
    compared = compare(joined, reference, COLUMNS[:1])
    found = [one for one in compared.comparisons if one.method in tested]
    return ["", f"### {heading}", "", *table(lines), "", *tests(found, {})]


def table(lines: Sequence[MethodLine]) -> list[str]:
    text = ["| " + " | ".join(HEADINGS) + " |", "| ---" + " | --:" * (len(HEADINGS) - 1) + " |"]
    for line in lines:
        cells = []
        for cell in line.cells:
            spread = "" if cell is None or cell.seed_sd is None else f" ± {short(cell.seed_sd)}"
            cells.append("-" if cell is None else short(cell.value) + spread)
        tokens = "-" if not line.tokens else f"{line.tokens:.0f}"
        words = [line.method, str(line.num_seeds), *cells, tokens, f"{line.latency_ms or 0:.1f}"]
        text.append("| " + " | ".join(words) + " |")
    return text


def tests(found: Sequence[Comparison], hits: Mapping[str, float]) -> list[str]:
    text = [
        "| HR@1 of | against | difference | 95 % interval | relative | p |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    for one in found:
        relative = f"{one.difference / hits[one.reference]:+.1%}" if hits else "-"
        text.append(
            f"| {one.method} | {one.reference} | {one.difference:+.4f} | {one.ci_low:+.4f} to "
            f"{one.ci_high:+.4f} | {relative} | {one.p_permutation:.4f} |"
        )
    return text


if __name__ == "__main__":
    main()

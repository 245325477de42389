"""Train the paper's preset on the tiny backbone and measure it beside ours.

    REASONREC_DATA=... python benchmarks/papers_preset.py runs/paper ml-100k office-2018
    REASONREC_DATA=... python benchmarks/papers_preset.py runs/paper games-2018 --num-queries 10000
    python benchmarks/papers_preset.py runs/paper

Prepares each set as benchmarks/results.py does, trains configs/r2ec/paper-tiny.toml and leaves
`<set>/papers-preset-<seed>` and, to see what its thoughts are worth, `<set>/papers-no-think-<seed>`
of the stage that they start from. benchmarks/results.py (``--beside``) and benchmarks/comparison.py
(``--peers``) read both. Goes on where it stopped. Every line writes docs/results/papers-preset.md
from what is finished.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from floor import PREPARE, SEEDS
from running import ROOT, processors, reasonrec, say, source, write_sections

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.compare_runs import compare_runs, comparison_markdown
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.measure import Contestant, measure
from reasonrec.evaluation.table import results_markdown
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig

NAMES = {"no-think": "papers-no-think", "think-recpo": "papers-preset"}
"""What the rows of the first and the last stage are called."""
FIRST = NAMES["no-think"]
PRESET = ROOT / "configs" / "r2ec" / "paper-tiny.toml"

HEAD = """# The paper's preset on the tiny backbone

Written by `python benchmarks/papers_preset.py` with
[paper-tiny.toml](../../configs/r2ec/paper-tiny.toml): R²ec as the paper has it, on a backbone that
starts from nothing. `papers-no-think` ranks before it learned to think, `papers-preset` after
RecPO. Test queries, trained on `train` alone; where all are asked, the same ones as on the page of
each set, where our preset stands. Rows of text are slow to learn from, so that `papers-no-think` is
cut short after 1,000 steps: on ml-100k and office-2018 validation had ended to rise by then, on
ml-1m and games-2018 it had not. Trainings of commits before 947d52b sampled at temperature 1.5 and
took log-probabilities at 1 (`recpo.likelihood_at = "one"`), and before 109ac5c among all tokens
where 200 were drawn from; what the difference is worth stands in [ablations.md](ablations.md)
(`temperature-1.5-corrected`).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*SEEDS])
    parser.add_argument("--num-queries", type=int, help="a sample of the test queries, else all")
    asked = parser.parse_args()
    for name in asked.sets:
        data = asked.runs / name / "data"
        reasonrec("prepare", name, "--out", data, *PREPARE[name])
        for seed in asked.seeds:
            run(asked.runs / name, Dataset.load(data), seed, asked.num_queries)
    sections = {name: text for name in PREPARE if (text := section(name, asked.runs / name))}
    write_sections(ROOT / "docs" / "results" / "papers-preset.md", HEAD, sections, PREPARE)


def run(folder: Path, dataset: Dataset, seed: int, num_queries: int | None) -> None:
    """Train one seed, and measure its first and its last stage."""
    trained = folder / "trained" / str(seed)
    stages = r2ec.train(dataset, R2ecConfig.load(PRESET), out=trained, seed=seed, announce=say)
    for stage in stages:
        if (name := NAMES.get(stage.name)) is None:
            continue

        def opening(_: Path, stage: Path = stage, name: str = name) -> Recommender:
            return replace(r2ec.load_recommender(stage, dataset), name=name)  # pyright: ignore[reportArgumentType, reportReturnType]

        row = Contestant(name, seed, source(stage), opening)
        evaluation = EvaluateConfig(num_queries=num_queries)
        out = folder / f"{name}-{seed}"
        measure([row], dataset, out, evaluation, seed=seed, has_passport=True)


def section(name: str, folder: Path) -> str | None:
    """Return the table and the tests of one set, or None if nothing is finished there."""
    done = [one.parent for one in sorted(folder.glob("papers-*-[0-9]/manifest.json"))]
    if not done:
        return None
    with tempfile.TemporaryDirectory() as scratch:
        rows, comparisons = compare_runs(done, Path(scratch) / "compared", reference=FIRST)
    commits = sorted({str(read_manifest(one)["commit"])[:10] for one in done})
    seeds = sorted({row.seed for row in rows})
    return "\n".join(
        [
            f"## {name}",
            "",
            f"{rows[0].split}, {rows[0].n:,} queries; seeds {', '.join(map(str, seeds))}; commit "
            f"{', '.join(commits)}; {processors(done)}, one thread beside other work.",
            "",
            results_markdown(rows),
            comparison_markdown(comparisons),
        ]
    )


if __name__ == "__main__":
    main()

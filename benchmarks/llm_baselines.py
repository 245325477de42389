"""Train the language-model baselines on real data sets, measure them, write the table.

    REASONREC_DATA=... python benchmarks/llm_baselines.py runs/llm office-2018 ml-100k
    python benchmarks/llm_baselines.py runs/llm --only-write

The first line prepares each set, trains every setting of `SETTINGS` with seed 0, chooses by the
validation that chose the step, measures the chosen one on the test queries, and goes on where it
stopped; ``--seeds`` trains the chosen ones with more seeds. The second writes
docs/results/llm-baselines.md from what is finished. Nothing is typed in by hand.
"""

import argparse
from pathlib import Path
from typing import Any

from floor import PREPARE
from running import ROOT, processors, reasonrec, write_sections

from reasonrec.evaluation.protocol import MetricRow, read_rows
from reasonrec.evaluation.table import COST_HEADINGS, cost_cells, short, summarise
from reasonrec.manifest import read_manifest

FLOOR = ("popularity", "follow-counter")
QUICK = ["--num-valid-queries", "300"]
"""For methods whose validation writes or scores many tokens a query."""
SHORT = ["--bigrec.optimiser.num-validations", "4", "--bigrec.num-epochs"]
"""BIGRec's targets have twenty tokens: a few epochs are what the time allows."""
TRIED: dict[str, list[list[str]]] = {
    "untuned": [[]],
    "direct-sft": [["--direct-sft.num-epochs", "12"]],
    "bigrec": [[*QUICK, *SHORT, "8", "--bigrec.popularity"]],
    "tiger": [[*QUICK, "--tiger.optimiser.num-validations", "8"]],
}
SETTINGS = dict.fromkeys(PREPARE, TRIED) | {"office-2018": TRIED | {"direct-sft": [[]]}}
"""What is tried on each set; the rest is at its default."""
COLUMNS = (
    ("full", "hit@10"),
    ("full", "ndcg@10"),
    ("candidates-20", "hit@1"),
    ("candidates-20", "ndcg@10"),
)
HEADINGS = (
    "method", "seeds", "HR@10", "NDCG@10", "HR@1 of 20", "NDCG@10 of 20", "train s", *COST_HEADINGS,
)  # fmt: skip
HEAD = """# Language-model baselines

Every number comes from `python benchmarks/llm_baselines.py`, through `reasonrec prepare`, `train`
and `evaluate`; what each method is, and how it departs from its paper, stands in
[../baselines.md](../baselines.md). All rank the whole catalogue by themselves; the columns of 20
are those scores among the candidates, not a question about candidates as R2Rec asks it. The
backbone is the tiny one, trained here from nothing: these rows say what a training target and a
way to rank are worth, not what a pretrained model would bring. The best step was chosen by NDCG on
validation, the setting too where there are several; the test part was answered once. Trained on
`train` alone; `untuned/title` on nothing. *p50 ms* (*ms / user*) and *p95 ms* are those of one user
asked alone, over 30 users; *users/s* and *tokens/s* are answered and written in batches.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--methods", nargs="*", default=list(SETTINGS["office-2018"]))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    if not asked.only_write:
        for name in asked.sets:
            run_set(name, asked.runs / name, asked.methods, asked.seeds)
    found = [name for name in PREPARE if tests(asked.runs / name)]
    sections = {name: write_set(name, asked.runs / name) for name in found}
    write_sections(ROOT / "docs" / "results" / "llm-baselines.md", HEAD, sections, PREPARE)


def run_set(name: str, folder: Path, methods: list[str], seeds: list[int]) -> None:
    """Prepare, train and measure one set."""
    data = folder / "data"
    reasonrec("prepare", name, "--out", data, *PREPARE[name])
    reasonrec("evaluate", *FLOOR, "--data", data, "--out", folder / "test-floor")
    for method in methods:
        for number, settings in enumerate(SETTINGS[name][method]):
            train(method, data, folder, number, settings, seed=0)
        number = chosen(folder, name, method)
        for seed in seeds:
            out = train(method, data, folder, number, SETTINGS[name][method][number], seed)
            reasonrec("evaluate", out, "--data", data, "--out", folder / f"test-{method}-{seed}")


def train(
    method: str, data: Path, folder: Path, number: int, settings: list[str], seed: int
) -> Path:
    """Train one setting and return its folder; `reasonrec train` leaves a finished one as it is."""
    out = folder / f"{method}-{number}-{seed}"
    reasonrec("train", method, "--data", data, "--out", out, "--seed", seed, *settings)
    return out


def chosen(folder: Path, name: str, method: str) -> int:
    """Return the setting that is best on validation, the first of equals."""
    scores = [
        read_manifest(folder / f"{method}-{number}-0")["best_score"] or 0.0
        for number in range(len(SETTINGS[name][method]))
    ]
    return scores.index(max(scores))


def tests(folder: Path) -> list[Path]:
    """Return the finished evaluations of a set, in the order of the table."""
    names = ["test-floor"]
    for method in SETTINGS[folder.name]:
        names += sorted(path.name for path in folder.glob(f"test-{method}-*"))
    return [folder / name for name in names if (folder / name / "manifest.json").exists()]


def write_set(name: str, folder: Path) -> str:
    """Return the section of one set."""
    rows: list[MetricRow] = [
        row for test in tests(folder) for row in read_rows(test / "metrics.json")
    ]
    trained = {
        method: [
            (number, settings, manifests_of(folder, method, number))
            for number, settings in enumerate(SETTINGS[name][method])
        ]
        for method in SETTINGS[name]
    }
    commits = sorted(
        {
            str(manifest["commit"])[:10]
            for settings in trained.values()
            for _, _, manifests in settings
            for manifest in manifests
        }
    )
    lines = [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {rows[0].split}, {rows[0].n:,} "
        f"test queries. Trained at commit {', '.join(commits)}; {processors(tests(folder))}, one "
        "thread beside much other work: seconds are wall-clock and say an order of magnitude.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| ---" + " | --:" * (len(HEADINGS) - 1) + " |",
    ]
    for line in summarise(rows, COLUMNS):
        cells = [
            "-" if cell is None else short(cell.value) + (
                "" if cell.seed_sd is None else f" ± {short(cell.seed_sd)}"
            )
            for cell in line.cells
        ]  # fmt: skip
        seconds = [
            manifest["seconds"]
            for settings in trained.values()
            for _, _, manifests in settings
            for manifest in manifests
            if manifest["method"] == line.method
        ]
        spent = f"{sum(seconds) / len(seconds):.0f}" if seconds else "-"
        words = [line.method, str(line.num_seeds), *cells, spent, *cost_cells(line)]
        lines.append("| " + " | ".join(words) + " |")
    missing = [name for name in trained if not list(folder.glob(f"test-{name}-*/manifest.json"))]
    if missing:
        lines += ["", f"Not measured on the test queries yet: {', '.join(missing)}."]
    tried: list[str] = []
    for method, settings in trained.items():
        for _, words, manifests in settings:
            first = manifests[0] if manifests else None
            if first is not None and first["best_score"] is not None:
                shown = f"`{' '.join(words)}`" if words else "the defaults"
                tried.append(
                    f"- {method}, {shown}: {first['best_score']:.4f} at step {first['best_step']}"
                )
    if tried:
        heading = "Settings trained with seed 0, and NDCG without cut-off on validation:"
        lines += ["", heading, "", *tried]
    shared = {
        manifest["frac_shared_codes"]
        for _, _, manifests in trained["tiger"]
        for manifest in manifests[:1]
    }
    for frac in sorted(shared):
        lines += [
            "",
            f"tiger: {100 * frac:.1f} % of the items share all codes but the last with another.",
        ]
    return "\n".join(lines) + "\n"


def manifests_of(folder: Path, method: str, number: int) -> list[dict[str, Any]]:
    """Return the manifests of one setting, by seed."""
    found = sorted(folder.glob(f"{method}-{number}-*/manifest.json"))
    return [read_manifest(path.parent) for path in found]


if __name__ == "__main__":
    main()

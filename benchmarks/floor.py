"""Tune every baseline on each real data set, measure it on the test queries, write the table.

    REASONREC_DATA=... python benchmarks/floor.py runs/floor ml-100k office-2018 ml-latest-small
    python benchmarks/floor.py runs/floor --only-write

The first line prepares, tunes and measures the named sets, each in a folder of its own, and goes on
where it stopped; the second writes the sections of docs/results/floor.md that are finished there,
and leaves the others. Every command that runs is one that anybody can type. Settings are chosen by
NDCG@10 on validation; methods that draw at random are measured with three seeds. Nothing is typed
in by hand.
"""

import argparse
import json
from pathlib import Path

import polars as pl
from running import ROOT, processors, reasonrec, write_sections

from reasonrec.baselines.floor import BASELINES
from reasonrec.evaluation.protocol import MetricRow, read_rows
from reasonrec.evaluation.table import COST_HEADINGS, cost_cells, short, summarise
from reasonrec.evaluation.tuning import Trial, read_trials
from reasonrec.manifest import read_manifest

SEARCHES = ROOT / "docs" / "results" / "searches"
PREPARE = {
    "ml-100k": [],
    "ml-latest-small": [],
    "office-2018": ["--split", "given"],
    "ml-1m": ["--min-rating", "4"],
    "games-2018": ["--split", "given"],
}
"""The sets of the table, and what `reasonrec prepare` is told."""
SEEDS = (0, 1, 2)
COLUMNS = (
    ("full", "hit@10"),
    ("full", "ndcg@10"),
    ("candidates-20", "hit@1"),
    ("candidates-20", "ndcg@10"),
)
HEADINGS = (
    "method", "seeds", "HR@10", "NDCG@10", "HR@1 of 20", "NDCG@10 of 20", "trials", "fit s",
    "tune s", *COST_HEADINGS[:3],
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    if not asked.only_write:
        for name in asked.sets:
            run_set(name, asked.runs / name, asked.budget)
    sections = {
        name: write_set(name, asked.runs / name)
        for name in PREPARE
        if (asked.runs / name / f"test-{SEEDS[-1]}" / "manifest.json").exists()
    }
    write_sections(ROOT / "docs" / "results" / "floor.md", HEAD, sections, PREPARE)


HEAD = """# Baselines, tuned

Every number comes from `python benchmarks/floor.py`, through `reasonrec prepare`, `tune` and
`evaluate`; how each method works, which library it is and what is searched stands in
[../baselines.md](../baselines.md). Settings were chosen by NDCG@10 on validation, and the test part
was answered once; every setting tried is in [searches](searches). All methods are trained on
`train` alone (`trained_on`: train); the history of a test query holds the validation item, for all
alike. Full catalogue, and among 20 candidates; the largest value of a column is bold; ± is the
standard deviation over seeds, for methods that are random. *p50 ms* and *p95 ms* are those of one
user asked alone, over 30 users; *users/s* is answered in batches. No method here writes tokens.
"""


def run_set(name: str, folder: Path, budget: int) -> None:
    """Prepare, tune and measure one set."""
    random = [method for method in BASELINES if BASELINES[method].is_random]
    data, tuned = folder / "data", folder / "tune"
    reasonrec("prepare", name, "--out", data, *PREPARE[name])
    reasonrec("tune", *BASELINES, "--data", data, "--out", tuned, "--budget", budget)
    for seed in SEEDS:
        named = BASELINES if seed == SEEDS[0] else random
        reasonrec(
            "evaluate", *named, "--data", data, "--out", folder / f"test-{seed}",
            "--params", tuned, "--seed", seed,
        )  # fmt: skip


def store_trials(table: str, name: str, trials: list[Trial]) -> None:
    """Keep the searches behind a table, a row for each trial, in docs/results/searches."""
    SEARCHES.mkdir(exist_ok=True)
    rows = [
        {
            "method": trial.method,
            "value": trial.value,
            "fit_seconds": round(trial.fit_seconds, 2),
            "score_seconds": round(trial.score_seconds, 2),
            "settings": json.dumps(trial.settings),
        }
        for trial in trials
    ]
    pl.DataFrame(rows).write_csv(SEARCHES / f"{table}-{name}.csv", float_precision=5)


def stored_trials(table: str, name: str) -> list[Trial]:
    """Return the searches that ``store_trials`` kept; none if it kept none."""
    path = SEARCHES / f"{table}-{name}.csv"
    if not path.exists():
        return []
    return [
        Trial(row.pop("method"), json.loads(row.pop("settings")), metrics={}, **row)
        for row in pl.read_csv(path).to_dicts()
    ]


def write_set(name: str, folder: Path) -> str:
    """Return the section of one set."""
    rows = [row for seed in SEEDS for row in read_rows(folder / f"test-{seed}" / "metrics.json")]
    manifest = read_manifest(folder / "tune")
    statistics = json.loads((folder / "data" / "statistics.json").read_text(encoding="utf-8"))
    trials = read_trials(folder / "tune" / "trials.jsonl")
    store_trials("floor", name, trials)
    config = manifest["config"]
    cpus = processors(folder / f"test-{seed}" for seed in SEEDS)
    lines = [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {rows[0].split}, {rows[0].n:,} "
        f"test queries, {statistics['catalogue']['items']:,} items. `reasonrec tune`: budget "
        f"{config['budget']}, {config['metric']} on validation, seed {manifest['seed']}; commit "
        f"{str(manifest['commit'])[:10]}; {cpus}, one thread beside other work, so seconds "
        "say an order of magnitude.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| ---" + " | --:" * (len(HEADINGS) - 1) + " |",
    ]
    summary = summarise(rows, COLUMNS)
    best = [max(line.cells[i].value for line in summary if line.cells[i]) for i in range(4)]
    for line in summary:
        cells = []
        for cell, top in zip(line.cells, best):
            spread = "" if cell.seed_sd is None else f" ± {short(cell.seed_sd)}"
            value = f"**{short(cell.value)}**" if cell.value == top else short(cell.value)
            cells.append(value + spread)
        own = [trial for trial in trials if trial.method == line.method]
        spent = sum(trial.fit_seconds + trial.score_seconds for trial in own)
        counts = [str(len(own)), f"{fit_seconds(rows, line.method):.1f}", f"{spent:.0f}"]
        words = [line.method, str(line.num_seeds), *cells, *counts, *cost_cells(line)[:3]]
        lines.append("| " + " | ".join(words) + " |")
    strongest = max(summary, key=lambda line: line.cells[1].value)
    lines += [
        "",
        f"Strongest by NDCG@10: **{strongest.method}**. Settings that are not the defaults:",
        "",
    ]
    for method, table in chosen(folder / "tune").items():
        defaults = BASELINES[method].config().model_dump()
        changed = [f"{key} {value:g}" for key, value in table.items() if value != defaults[key]]
        lines.append(f"- {method}: {', '.join(changed) or 'the defaults'}")
    return "\n".join(lines) + "\n"


def chosen(folder: Path) -> dict[str, dict[str, float]]:
    import tomllib

    return tomllib.loads((folder / "best.toml").read_text(encoding="utf-8"))


def fit_seconds(rows: list[MetricRow], method: str) -> float:
    found = [r.value for r in rows if r.method == method and r.metric == "fit-seconds"]
    return sum(found) / len(found)


if __name__ == "__main__":
    main()

"""Fill docs/results/ and the README's table from finished runs of the road.

    for s in 0 1 2; do make demo SEED=$s OUT=runs/planted-$s; done
    for s in 0 1 2; do make demo DATA=ml-100k SEED=$s OUT=runs/ml-100k-$s; done
    for s in 0 1 2; do
        make demo DATA=office-2018 ARGS="--prepare.split given" SEED=$s OUT=runs/office-2018-$s
    done
    for s in 0 1 2; do
        make demo DATA=ml-1m ARGS="--preset configs/r2ec/ml-1m.toml" SEED=$s OUT=runs/ml-1m-$s
    done
    make demo DATA=games-2018 SEED=0 OUT=runs/games-2018-0 \
        ARGS="--prepare.split given --num-queries 10000"
    python benchmarks/results.py runs/ --beside runs/paper runs/control

Beside them stand evaluations in folders ``<set>/<name>-<seed>``: those of
benchmarks/papers_preset.py, and of the control of thinking, for each set and seed

    reasonrec train evidence --start runs/ml-100k-0/no-think --data runs/ml-100k-0/data --seed 0 \
        --out runs/control/trained/ml-100k-0/evidence-no-think
    reasonrec evaluate runs/control/trained/ml-100k-0/evidence-no-think --seed 0 \
        --data runs/ml-100k-0/data --out runs/control/ml-100k/evidence-no-think-0

Sets without a run there keep their page and their section. Runs that benchmarks/kept.py laid out
have neither audits nor logs: where the page is of the same runs, what it says from those stays.
Every number comes from the runs' own files; nothing is typed in by hand.
"""

import argparse
import re
import tempfile
from pathlib import Path

import polars as pl
from running import ROOT, UNKNOWN, processors

from reasonrec.evaluation.audits.records import SliceRow, read_audits
from reasonrec.evaluation.compare_runs import compare_runs, comparison_markdown
from reasonrec.evaluation.table import MethodLine, results_markdown, short, summarise
from reasonrec.manifest import read_manifest

COMMANDS = {
    "planted": "make demo SEED=s",
    "ml-100k": "make demo DATA=ml-100k SEED=s",
    "office-2018": 'make demo DATA=office-2018 ARGS="--prepare.split given" SEED=s',
    "ml-1m": 'make demo DATA=ml-1m ARGS="--preset configs/r2ec/ml-1m.toml" SEED=s',
    "games-2018": "make demo DATA=games-2018 "
    'ARGS="--prepare.split given --num-queries 10000" SEED=s',
}
REFERENCES = ("no-think", "follow-counter")
"""Every other method is tested against these."""
COLUMNS = (("full", "hit@10"), ("full", "ndcg@10"), ("candidates-20", "hit@1"))
NEW_ALONE = "not taken before"
"""The part of the queries that has a column in the README where not all belong to it."""
PARTS, REWARD = "## NDCG@10 on parts of the queries", "## What RecPO had to choose from"
"""Sections that are written from audits and logs."""
START, END = "<!-- results:start -->", "<!-- results:end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder that holds <set>-<seed> runs")
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="folders beside them")
    asked = parser.parse_args()
    runs = asked.runs
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, rest = readme.split(START)
    tables, after = rest.split(END)
    sections = {}
    for text in re.split(r"\n(?=\*\*)", tables)[1:]:
        sections[text.split("**")[1]] = text.rstrip() + "\n"
    for name, command in COMMANDS.items():
        folders = sorted(p for p in runs.glob(f"{name}-*") if (p / "manifest.json").exists())
        beside = [one for root in asked.beside for one in sorted(root.glob(f"{name}/*-[0-9]"))]
        if folders:
            sections[name] = write_set(name, command, folders, beside)
    written = [sections[name] for name in COMMANDS if name in sections]
    text = before + START + "\n" + "\n".join(written) + END + after
    (ROOT / "README.md").write_text(text, encoding="utf-8")


def write_set(name: str, command: str, folders: list[Path], beside: list[Path]) -> str:
    """Write docs/results/<name>.md and return the README's section."""
    with tempfile.TemporaryDirectory() as scratch:
        compared = {
            reference: compare_runs(
                [*folders, *beside], Path(scratch) / reference, reference=reference
            )
            for reference in REFERENCES
        }
    rows = compared[REFERENCES[0]][0]
    tests = [
        part
        for reference, (_, comparisons) in compared.items()
        for part in (
            f"## Against {reference}, paired over queries", "", comparison_markdown(comparisons),
        )
    ]  # fmt: skip
    manifests = [read_manifest(folder) for folder in folders]
    commits = ", ".join(sorted({str(m["commit"])[:10] for m in manifests}))
    seeds = ", ".join(str(m["seed"]) for m in manifests)
    minutes = ", ".join(f"{m['seconds'] / 60:.1f}" for m in manifests)
    start = f"`{command}` for s in {seeds}; commit {commits}; "
    end = (
        f", one thread a run; {minutes} minutes. {rows[0].split}, {rows[0].n:,} test queries, "
        f"trained on {' and '.join(sorted({row.trained_on for row in rows}))} alone."
    )
    path = ROOT / "docs" / "results" / f"{name}.md"
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    known = re.search(f"^{re.escape(start)}(.*){re.escape(end)}$", before, re.MULTILINE)
    if known is None:  # the page is of other runs
        before = ""
    made_on = processors(folders)
    if known is not None and UNKNOWN in made_on:
        made_on = known[1]
    origin = start + made_on + end
    fits = stage_seconds(folders)
    parts = parts_of_queries(folders) or parts_on(before)
    page = [
        f"# {name}", "", origin, "", "Training seconds, mean over seeds: " + fits, "",
        results_markdown(rows), *parts_markdown(parts), *reward_markdown(folders, before), *tests,
    ]  # fmt: skip
    path.write_text("\n".join(page), encoding="utf-8")
    lines = summarise(rows, COLUMNS)
    new = parts.get(NEW_ALONE)
    headings = ["HR@10", "NDCG@10", *(["NDCG@10, new"] if new else []), "HR@1 of 20"]
    headings = ["method", *headings, "tokens / user", "ms / user"]
    table = [
        f"**{name}**: {origin} More in [docs/results/{name}.md](docs/results/{name}.md).",
        "",
        "| " + " | ".join(headings) + " |",
        "| ---" + " | --:" * (len(headings) - 1) + " |",
        *(readme_row(line, new) for line in lines),
        "",
    ]
    if new:
        table.insert(1, "*New*: without the targets that were taken before (docs/conventions.md).")
        table.insert(1, "")
    return "\n".join(table)


def parts_of_queries(folders: list[Path]) -> dict[str, tuple[int, dict[str, float]]]:
    """Return the size of each part of the queries that the runs' audits report apart, and NDCG@10
    of every method on it, mean over seeds."""
    found: dict[str, list[SliceRow]] = {}
    for folder in folders:
        if (folder / "audits" / "audits.json").exists():
            for row in read_audits(folder / "audits").slices:
                if row.metric == "ndcg@10":
                    found.setdefault(row.slice, []).append(row)
    parts = {}
    for name, rows in found.items():
        values: dict[str, list[float]] = {}
        for row in rows:
            values.setdefault(row.method, []).append(row.value)
        means = {method: sum(each) / len(each) for method, each in values.items()}
        parts[name] = rows[0].n, means
    return parts


def parts_on(page: str) -> dict[str, tuple[int, dict[str, float]]]:
    """Return what ``parts_of_queries`` found when a page was written."""
    lines = [line for line in section_of(page, PARTS) if line.startswith("|")]
    if not lines:
        return {}
    headings, _, *rows = (line.strip("| ").split(" | ") for line in lines)
    parts = {}
    for i, heading in enumerate(headings[1:], start=1):
        name, _, size = heading.rpartition(" (")
        values = {row[0]: float(row[i]) for row in rows if row[i] != "-"}
        parts[name] = int(size.rstrip(")").replace(",", "")), values
    return parts


def section_of(page: str, heading: str) -> list[str]:
    """Return the lines of a page from a heading to the next, none where it has no such heading."""
    lines = page.split("\n")
    if heading not in lines:
        return []
    start = lines.index(heading)
    ends = [i for i, line in enumerate(lines) if i > start and line.startswith("## ")]
    return lines[start : min(ends, default=len(lines))]


def parts_markdown(parts: dict[str, tuple[int, dict[str, float]]]) -> list[str]:
    """Return the section of NDCG@10 on parts of the queries."""
    if not parts:
        return []
    return [
        PARTS, "",
        "Mean over seeds; what each part is, and with intervals for each seed: `audits/` of a run.",
        "", *parts_table(parts), "",
    ]  # fmt: skip


def parts_table(parts: dict[str, tuple[int, dict[str, float]]]) -> list[str]:
    """Return the table of NDCG@10 on parts of the queries, one column each."""
    methods = list(dict.fromkeys(method for _, values in parts.values() for method in values))
    headings = [f"{name} ({size:,})" for name, (size, _) in parts.items()]
    text = ["| method | " + " | ".join(headings) + " |", "| ---" + " | --:" * len(parts) + " |"]
    for method in methods:
        cells = [short(values[method]) if method in values else "-" for _, values in parts.values()]
        text.append(f"| {method} | " + " | ".join(cells) + " |")
    return text


def reward_markdown(folders: list[Path], before: str = "") -> list[str]:
    """Return what the thoughts of a group left RecPO to choose from, a row for each run.

    Args:
        before: The page as it was, which has the section of runs whose logs are not at hand.
    """
    logs = [folder / "think-recpo" / "metrics.jsonl" for folder in folders]
    if not all(log.exists() for log in logs):
        return section_of(before, REWARD)
    text = [
        REWARD, "",
        "Means over its steps: the reward of a group's thoughts, that of the best of them (what "
        "whoever knew the target could have picked), and the share of the groups whose thoughts "
        "all earned the same.", "",
        "| seed | mean reward | best of a group | more | groups without spread |",
        "| --: | --: | --: | --: | --: |",
    ]  # fmt: skip
    for folder, log in zip(folders, logs, strict=True):
        logged = pl.read_ndjson(log, infer_schema_length=None)
        mean, best, flat = (
            logged[f"rl/{name}"].mean()
            for name in ("reward_mean", "reward_best", "frac_flat_groups")
        )
        text.append(
            f"| {read_manifest(folder)['seed']} | {mean:.4f} | {best:.4f} | {best / mean - 1:+.1%} "
            f"| {flat:.0%} |"
        )
    return [*text, ""]


def stage_seconds(folders: list[Path]) -> str:
    parts = []
    for stage in ("no-think", "think-sft", "think-recpo"):
        seconds = [read_manifest(folder / stage)["seconds"] for folder in folders]
        parts.append(f"{stage} {sum(seconds) / len(seconds):.0f}")
    return ", ".join(parts)


def readme_row(line: MethodLine, new: tuple[int, dict[str, float]] | None) -> str:
    cells = [
        "-"
        if cell is None
        else f"{cell.value:.4f}" + (f" ± {cell.seed_sd:.4f}" if (cell.seed_sd or 0) >= 5e-5 else "")
        for cell in line.cells
    ]
    if new:
        cells.insert(2, f"{new[1][line.method]:.4f}" if line.method in new[1] else "-")
    tokens = "-" if not line.tokens else f"{line.tokens:.0f}"
    return f"| {line.method} | {' | '.join(cells)} | {tokens} | {line.latency_ms or 0:.1f} |"


if __name__ == "__main__":
    main()

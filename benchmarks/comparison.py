"""Lay our models beside every baseline, on the same queries; write docs/results/comparison.md, and
the README's table of the strongest.

    python benchmarks/comparison.py runs --floor runs/floor --peers runs/peers --llm runs/llm \
        --paper runs/paper

Reads what benchmarks/floor.py, peers.py, llm_baselines.py and papers_preset.py left, and the runs
of `reasonrec demo` that benchmarks/results.py reads; measures nothing. Where a set was
answered by a sample of its queries, every method is compared on that sample. Sections of sets that
are not among the runs stay as they are; the rows over all sets are over those that are.
benchmarks/kept.py lays kept runs out again.
Nothing is typed in by hand.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from floor import PREPARE
from over_all import heading, over_all
from peers import BEHIND, times_behind_last
from running import ROOT, write_sections

from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.audits.log import taken_later
from reasonrec.evaluation.comparison import Comparison, compare
from reasonrec.evaluation.joined import join_runs, on_common_queries, values_of
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.table import short
from reasonrec.manifest import read_manifest

OURS = ("no-think", "think-sft", "think-recpo")
BEST = OURS[-1]
PAPERS = ("papers-no-think", "papers-preset")
FULL, FEW = "full", "candidates-20"
COLUMNS = ((FULL, "hit@5"), (FULL, "ndcg@10"), (FULL, "ndcg@20"), (FEW, "hit@1"))
HEADINGS = ("method", "seeds", "HR@5", "NDCG@10", "NDCG@20", "HR@1 of 20")
LATER = "NDCG@10, later"
"""The queries whose target is later than the last event before it."""
TESTED = COLUMNS[:3]
STRONGEST = "best baseline"
OVER_ALL = (
    (BEST, STRONGEST), (BEST, "no-think"), ("think-sft", "no-think"), (BEST, "think-sft"),
)  # fmt: skip
"""Pairs that are compared over all sets together."""
HEAD = """# Ours beside every baseline

Written by `python benchmarks/comparison.py` from the runs behind [floor.md](floor.md) (baselines
tuned with 20 settings), [peers.md](peers.md) (other libraries; how many settings is said there),
[llm-baselines.md](llm-baselines.md) (on the backbone of ours), [papers-preset.md](papers-preset.md)
and the pages of each set (ours). Test queries, trained on `train` alone, means over seeds; the best
value of a column is bold. The tests are paired over queries, permutation, p after Holm's correction
within a set; *could have seen* is the smallest difference that a test at 5 %, uncorrected, would
have found in 80 of 100 tries.

Over the sets named, together: the mean over sets of the difference in NDCG@10 relative to the
reference, means over seeds on each query, signs of users flipped, p uncorrected. The best baseline
is that of each set, by NDCG@10 on the test queries in question; no-think is not counted among the
baselines. A set that is below and not in these rows was compared earlier, and its runs are not at
hand.

*Right behind* splits the queries by how often training holds their target as the very next item
after the last one of their history: what a count holds exactly, and weights in part.

*Later* are the queries whose target has another time than the last event before it. The others were
rated or reviewed at one go, on one page or one day: there, lists that are sorted the same for
everybody tell much of what comes next.
"""
START, END = "<!-- strongest:start -->", "<!-- strongest:end -->"
IN_SHORT = (
    "| NDCG@10 | best simple method | best other network | the paper's preset | ours, silent | "
    "ours, thinking | above the best |"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder that holds <set>-<seed> runs of ours")
    parser.add_argument("--floor", type=Path, required=True)
    parser.add_argument("--peers", type=Path, nargs="*", default=[])
    parser.add_argument("--llm", type=Path, nargs="*", default=[], help="of llm_baselines.py")
    parser.add_argument("--paper", type=Path, nargs="*", default=[], help="of papers_preset.py")
    asked = parser.parse_args()
    sections: dict[str, str] = {}
    in_short: dict[str, str] = {}
    of_sets: list[tuple[str, dict[str, np.ndarray]]] = []
    of_later: list[tuple[str, dict[str, np.ndarray]]] = []
    users: dict[str, np.ndarray] = {}
    users_later: dict[str, np.ndarray] = {}
    for name in PREPARE:
        ours = [
            run / "evaluation" / "methods" / method
            for run in sorted(asked.runs.glob(f"{name}-[0-9]"))
            for method in OURS
            if (run / "evaluation" / "manifest.json").exists()
        ]
        floor = finished(asked.floor.glob(f"{name}/test-[0-9]"))
        peers = [run for root in asked.peers for run in finished(root.glob(f"{name}/*-[0-9]"))]
        llm = [run for root in asked.llm for run in finished(root.glob(f"{name}/test-*-[0-9]"))]
        paper = [run for root in asked.paper for run in finished(root.glob(f"{name}/*-[0-9]"))]
        if ours and floor:
            dataset = Dataset.load(asked.floor / name / "data")
            folders = [*floor, *peers, *llm, *paper, *ours]
            text, users[name], each, is_later = section(name, folders, dataset)
            sections[name] = text
            in_short[name] = strongest_row(name, each, simple_methods(floor))
            of_sets.append((name, with_strongest(each)))
            if is_later is not None:
                part = {method: values[is_later] for method, values in each.items()}
                of_later.append((name, with_strongest(part)))
                users_later[name] = users[name][is_later]
    tables = [(of_sets, users, "All queries:")]
    if of_later:
        tables.append((of_later, users_later, "Later ones alone, where times are known:"))
    parts = [HEAD]
    for found, whose, words in tables:
        rows = (over_all(found, *pair, users=whose) for pair in OVER_ALL)
        parts += [words, "", *heading("NDCG@10"), *rows, ""]
    page = ROOT / "docs" / "results" / "comparison.md"
    write_sections(page, "\n".join(parts), sections, PREPARE)
    write_in_short(ROOT / "README.md", in_short)


def finished(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in sorted(folders) if (folder / "manifest.json").exists()]


def section(
    name: str, folders: Sequence[Path], dataset: Dataset
) -> tuple[str, np.ndarray, dict[str, np.ndarray], np.ndarray | None]:
    """Return the tables of one set with the tests of our best model against every baseline, whose
    query each is, NDCG@10 of each method on each query, and which of them are later: None where
    that is not known, or all are."""
    joined = on_common_queries(join_runs(find_runs(folders)))
    values = {column: values_of(joined.per_query, *column) for column in COLUMNS}
    seeds = joined.per_query.group_by("method").agg(pl.col("seed").n_unique())
    num_seeds = dict(seeds.iter_rows())
    table: dict[str, list[float]] = {}
    for found in values.values():
        assert found is not None
        for method, value in zip(found.methods, found.table.mean(0).tolist(), strict=True):
            table.setdefault(method, []).append(value)
    judged = values[FULL, "ndcg@10"]
    assert judged is not None
    headings, later = HEADINGS, taken_later(dataset.test)
    if later is not None:
        later = later[judged.queries["query"].to_numpy()]
        headings = (*HEADINGS, f"{LATER} ({later.sum():,})")
        for method, value in zip(judged.methods, judged.table[later].mean(0), strict=True):
            table[method].append(float(value))
    best = [max(column) for column in zip(*table.values())]
    commits = sorted({str(read_manifest(folder)["commit"])[:10] for folder in folders})
    shown = values[COLUMNS[0]]
    assert shown is not None
    text = [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {len(shown.users):,} queries; "
        f"commits {', '.join(commits)}.",
        "",
        "| " + " | ".join(headings) + " |",
        "| ---" + " | --:" * (len(headings) - 1) + " |",
    ]
    for method, row in sorted(table.items(), key=lambda one: one[1][1]):
        cells = [f"**{short(v)}**" if v == top else short(v) for v, top in zip(row, best)]
        text.append("| " + " | ".join([method, str(num_seeds[method]), *cells]) + " |")
    # every method against our best, as differences of ours from theirs
    compared = compare(joined, BEST, TESTED).comparisons
    text += ["", *tests(compared, table)]
    each = dict(zip(judged.methods, judged.table.T, strict=True))
    times = times_behind_last(dataset)[judged.queries["query"].to_numpy()]
    text += ["", *by_times_behind(each, times)]
    return "\n".join(text) + "\n", judged.users, each, later


def by_times_behind(each: dict[str, np.ndarray], times: np.ndarray) -> list[str]:
    """Return NDCG@10 of each method by how often training holds the target right behind the last
    item; rows in ascending order of the whole."""
    parts = {words: (least <= times) & (times <= most) for words, least, most in BEHIND}
    parts = {words: part for words, part in parts.items() if part.any()}
    heads = [f"{words} ({part.sum():,})" for words, part in parts.items()]
    lines = [
        "| NDCG@10, right behind | " + " | ".join(heads) + " |",
        "| ---" + " | --:" * len(heads) + " |",
    ]
    for method, values in sorted(each.items(), key=lambda one: one[1].mean()):
        cells = [short(values[part].mean()) for part in parts.values()]
        lines.append("| " + " | ".join([method, *cells]) + " |")
    return lines


def with_strongest(each: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the values of each method on each query, and those of the best baseline on them."""
    baselines = each.keys() - {*OURS, *PAPERS}
    strongest = max(baselines, key=lambda method: each[method].mean())
    return {**each, STRONGEST: each[strongest]}


def simple_methods(floor: Sequence[Path]) -> set[str]:
    """Return the names of the methods of floor.py."""
    tables = [pl.read_parquet(run / "per_query.parquet", columns=["method"]) for run in floor]
    return set(pl.concat(tables)["method"].unique())


def strongest_row(name: str, each: dict[str, np.ndarray], simple: set[str]) -> str:
    """Return one set's row of the README: the strongest of each kind, and how far ours is above."""
    means = {method: float(values.mean()) for method, values in each.items()}
    networks = means.keys() - simple - {*OURS, *PAPERS}
    first = [max(kind, key=means.__getitem__, default=None) for kind in (simple, networks)]
    cells = ["-" if one is None else f"{one} {short(means[one])}" for one in first]
    shown = [short(means[one]) if one in means else "-" for one in (PAPERS[1], OURS[0], BEST)]
    best = max(means[one] for one in first if one is not None)
    row = [name, *cells, *shown, f"{means[BEST] / best - 1:+.1%}"]
    return "| " + " | ".join(row) + " |"


def write_in_short(readme: Path, rows: dict[str, str]) -> None:
    """Put the rows of sets into the README's table; those of other sets stay."""
    before, rest = readme.read_text(encoding="utf-8").split(START)
    table, after = rest.split(END)
    kept = {line.split("|")[1].strip(): line for line in table.split("\n") if "|" in line}
    rows = kept | rows
    lines = [
        IN_SHORT, "| ---" + " | --:" * (IN_SHORT.count("|") - 2) + " |",
        *(rows[name] for name in PREPARE if name in rows),
    ]  # fmt: skip
    text = "\n".join([before + START, *lines, END + after])
    readme.write_text(text, encoding="utf-8")


def tests(compared: Sequence[Comparison], table: dict[str, list[float]]) -> list[str]:
    text = [
        f"| `{BEST}` against | HR@5 | NDCG@20 | NDCG@10 | difference | 95 % interval | p | "
        "could have seen |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for one in compared:
        if one.metric != "ndcg@10":
            continue
        gains = [
            f"{ours / theirs - 1:+.1%}" for ours, theirs in zip(table[BEST], table[one.method])
        ]
        text.append(
            f"| {one.method} | {gains[0]} | {gains[2]} | {gains[1]} | {-one.difference:+.4f} | "
            f"{-one.ci_high:+.4f} to {-one.ci_low:+.4f} | {one.p_holm:.4f} | "
            f"{one.could_have_seen:.4f} |"
        )
    return text


if __name__ == "__main__":
    main()

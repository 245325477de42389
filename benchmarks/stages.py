"""Trained folders as rows of one evaluation, tests of one against another, and a page of them."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
from floor import PREPARE, SEEDS
from running import ROOT, processors, source, write_sections

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.comparison import compare
from reasonrec.evaluation.joined import Joined
from reasonrec.evaluation.measure import Contestant
from reasonrec.evaluation.protocol import COST, FULL
from reasonrec.evaluation.table import short, summarise
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2ec


def fill_page(
    about: str,
    page: str,
    head: str,
    run: Callable[[str, Path, int], None],
    section: Callable[[str, Sequence[Path]], str],
    sets: Mapping[str, Sequence[str]] = PREPARE,
) -> None:
    """Run what the command line names; write a page of docs/results from all that is finished.

    Args:
        about: What ``--help`` says.
        run: Trains and measures a set, in a folder, with a seed; its numbers go to ``evaluation``.
        section: Returns what the page says of a set, from those folders.
        sets: Those of the page, and what `reasonrec prepare` is told.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set and seed")
    parser.add_argument("sets", nargs="*", choices=[*sets, []])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*SEEDS])
    asked = parser.parse_args()
    for name in asked.sets:
        for seed in asked.seeds:
            run(name, asked.runs / f"{name}-{seed}", seed)
    sections = {}
    for name in sets:
        found = sorted(asked.runs.glob(f"{name}-[0-9]/evaluation/manifest.json"))
        if found:
            sections[name] = section(name, [path.parent for path in found])
    write_sections(ROOT / "docs" / "results" / page, head, sections, sets)


def heading(
    name: str,
    joined: Joined,
    evaluations: Sequence[Path],
    sets: Mapping[str, Sequence[str]] = PREPARE,
) -> list[str]:
    """Return what the section of a set begins with: its name, and where its numbers are from."""
    commits = {str(read_manifest(folder)["commit"])[:10] for folder in evaluations}
    asked = next(row for row in joined.rows if row.protocol == FULL)
    return [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *sets[name]])}`: {asked.split}, {asked.n:,} test "
        f"queries; commit {', '.join(sorted(commits))}; {processors(evaluations)}, one thread "
        "beside other work.",
        "",
    ]


def contestant(
    own: str, folder: Path, seed: int, dataset: Dataset, *, thinks: bool = True
) -> Contestant:
    """Return a model of `train r2ec` as a row that is called ``own``.

    Args:
        dataset: What it was trained on. What it is measured on must hold the same ids and queries,
            and may call items otherwise.
        thinks: False ranks in silence.
    """

    def opening(_: Path) -> Recommender:
        recommender = r2ec.load_recommender(folder, dataset, thinks=thinks)
        return replace(recommender, name=own)  # pyright: ignore[reportArgumentType, reportReturnType]

    return Contestant(own, seed, source(folder), opening)


def method_table(joined: Joined, what: str = "method") -> list[str]:
    """Return the rows of a table: means over seeds, ± their standard deviation, and tokens."""
    columns = ((FULL, "hit@10"), (FULL, "ndcg@10"), (COST, "tokens"))
    lines = [f"| {what} | seeds | HR@10 | NDCG@10 | tokens |", "| --- | --: | --: | --: | --: |"]
    for line in summarise(joined.rows, columns):
        cells = [
            "-" if cell is None
            else f"{cell.value:.0f}" if metric == "tokens"
            else short(cell.value) + ("" if cell.seed_sd is None else f" ± {short(cell.seed_sd)}")
            for (_, metric), cell in zip(columns, line.cells, strict=True)
        ]  # fmt: skip
        lines.append("| " + " | ".join([line.method, str(line.num_seeds), *cells]) + " |")
    return lines


def paired_tests(joined: Joined, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Return a table of NDCG@10 of the first of each pair against the second, where both are.

    Where both have several seeds, those that both have are compared. The last column is the
    smallest difference that the test would have found in 80 of 100 tries.
    """
    lines = [
        "| NDCG@10 of | against | difference | 95 % interval | p | could have seen |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    methods = {row.method for row in joined.rows}
    for ours, theirs in pairs:
        if {ours, theirs} <= methods:
            both = on_shared_seeds(joined, ours, theirs)
            compared = compare(both, theirs, ((FULL, "ndcg@10"),)).comparisons
            lines += [
                f"| {ours} | {theirs} | {one.difference:+.4f} | {one.ci_low:+.4f} to "
                f"{one.ci_high:+.4f} | {one.p_permutation:.4f} | "
                f"{one.could_have_seen:.4f} |"
                for one in compared
                if one.method == ours
            ]
    return lines


def on_shared_seeds(joined: Joined, ours: str, theirs: str) -> Joined:
    """Return two methods on the seeds that both have, or on all where one of them has one alone."""
    per_query = joined.per_query.filter(pl.col("method").is_in([ours, theirs]))
    seeds = [
        set(per_query.filter(pl.col("method") == one)["seed"].unique()) for one in (ours, theirs)
    ]
    if min(map(len, seeds)) > 1 and (shared := seeds[0] & seeds[1]):
        per_query = per_query.filter(pl.col("seed").is_in(sorted(shared)))
    rows = tuple(row for row in joined.rows if row.method in (ours, theirs))
    return replace(joined, rows=rows, per_query=per_query)

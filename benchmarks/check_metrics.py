"""Measure the stored lists of evaluations again by ir_measures, and compare with metrics.json.

    python benchmarks/check_metrics.py runs/ /tmp/tables --out check.json

Goes through every folder below the named ones that holds `lists.parquet` beside `metrics.json`: the
first 20 items of every query with their scores, as the full protocol ranked them. Hit and NDCG at
1, 3, 5, 10 and 20 of each method are computed by the library from the lists alone and must be the
numbers of `metrics.json`, up to 1e-9.

Ties. The library breaks a tie at the target by the name of the item; our rank is the middle of the
places that are tied for. A query whose target ties with others is therefore measured by our rule,
here, from the scores of the list and the stored number of ties, and counted. Ties among other items
move nothing. Methods whose lists were not kept are counted, too, and not measured.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reasonrec.evaluation.protocol import NUM_LISTED, read_evaluation
from reasonrec.metrics import CUTOFFS, hit, ndcg

TOLERANCE = 1e-9
"""Sums in another order differ by less; one query more or less of 100,000 by far more."""


def main(folders: Sequence[Path], out: Path | None = None) -> int:
    """Print a line for each evaluation and method; return 1 if a number differs, or none was found.

    Args:
        out: Where the same is written as JSON.
    """
    found: list[dict[str, Any]] = []
    without: list[str] = []
    for folder in evaluations(folders):
        checked = check(folder)
        listed = {(one["method"], one["seed"]) for one in checked}
        measured = dict.fromkeys(
            (row.method, row.seed)
            for row in read_evaluation(folder).rows
            if row.protocol.startswith("full")
        )
        without += [f"{name} (seed {seed})  {folder}" for name, seed in measured.keys() - listed]
        found += checked
    for one in found:
        print(
            f"{one['largest_difference']:.1e}  {one['num_queries']:>7,} queries  "
            f"{one['num_tied']:>7,} tied  {one['method']} (seed {one['seed']})  {one['folder']}"
        )
    wrong = [one for one in found if not one["largest_difference"] <= TOLERANCE]
    print(
        f"{len(found)} methods measured again, {len(wrong)} differ by more than {TOLERANCE:g}; "
        f"of {len(without)} there are no lists"
    )
    if out is not None:
        content = {"tolerance": TOLERANCE, "without_lists": sorted(without), "methods": found}
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(bool(wrong) or not found)


def evaluations(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders of evaluations; the parts of one, ``methods/*``, are in its own files."""
    for folder in folders:
        for path in sorted(folder.rglob("per_query.parquet")):
            if path.parent.parent.name != "methods" and (path.parent / "metrics.json").is_file():
                yield path.parent


def check(folder: Path) -> list[dict[str, Any]]:
    """Return how far each method's numbers lie from the library's. A missing number is infinity."""
    evaluation = read_evaluation(folder)
    stored = {
        (row.method, row.seed, row.metric): row.value
        for row in evaluation.rows
        if row.protocol.startswith("full")
    }
    found = []
    for (method, seed), lists in evaluation.lists.group_by(["method", "seed"], maintain_order=True):
        values = measure_again(lists)
        differences = {
            name: abs(stored.get((method, seed, name), np.inf) - one.mean())
            for name, one in values.items()
        }
        found.append(
            {
                "folder": str(folder),
                "method": method,
                "seed": seed,
                "num_queries": lists.height,
                "num_tied": int((lists["num_tied"] > 0).sum()),
                "largest_difference": float(max(differences.values())),
                "worst_metric": max(differences, key=lambda name: differences[name]),
            }
        )
    return found


def measure_again(lists: pl.DataFrame) -> dict[str, np.ndarray]:
    """Return Hit and NDCG of every query, (Q,) for each metric, from the lists alone."""
    is_tied = (lists["num_tied"] > 0).to_numpy()
    values = {f"{kind}@{k}": np.zeros(lists.height) for kind in ("hit", "ndcg") for k in CUTOFFS}
    tied = lists.filter(pl.Series(is_tied))
    higher = [
        sum(score > own for score in row)
        for row, own in zip(tied["scores"].to_list(), tied["target_score"].to_list())
    ]
    # a list full of higher scores says that the target is beyond it, and not how far
    rank = 1.0 + np.array(higher, np.float64) + 0.5 * tied["num_tied"].to_numpy()
    for k in CUTOFFS:
        values[f"hit@{k}"][is_tied] = hit(rank, k)
        values[f"ndcg@{k}"][is_tied] = ndcg(rank, k)
    for row, metric, value in by_the_library(lists, np.flatnonzero(~is_tied)):
        values[metric][row] = value
    return values


def by_the_library(lists: pl.DataFrame, rows: np.ndarray) -> Iterator[tuple[int, str, float]]:
    """Yield (row, metric, value) of the named rows, as ir_measures has them."""
    import ir_measures
    from ir_measures import Success, nDCG

    names = {Success @ k: f"hit@{k}" for k in CUTOFFS} | {nDCG @ k: f"ndcg@{k}" for k in CUTOFFS}
    items, scores, target = (lists[name].to_list() for name in ("items", "scores", "target"))
    assert all(len(items[row]) <= NUM_LISTED for row in rows)
    run = [
        ir_measures.ScoredDoc(str(row), str(item), score)
        for row in rows
        for item, score in zip(items[row], scores[row])
    ]
    truth = [ir_measures.Qrel(str(row), str(target[row]), 1) for row in rows]
    if run:
        for found in ir_measures.iter_calc(list(names), truth, run):
            yield int(found.query_id), names[found.measure], found.value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    sys.exit(main(asked.folders, asked.out))

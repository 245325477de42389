"""Measure stored evaluations again by ir_measures, and compare with metrics.json.

    python benchmarks/check_metrics.py runs/ /tmp/tables --out check.json

Goes through every evaluation below the named folders. Where it kept `lists.parquet`, the first 20
items of every query with their scores, as the full protocol ranked them, Hit and NDCG at 1, 3, 5,
10 and 20 of each method are computed by the library from the lists alone and must be the numbers of
`metrics.json`, up to 1e-9. Of a method whose lists were not kept (benchmarks/kept.py keeps none)
the library measures lists whose target stands at the rank that was stored: that asks whether the
metrics and their means are right, and not whether the rank is.

Ties. The library breaks a tie at the target by the name of the item; our rank is the middle of the
places that are tied for. A query whose target ties with others is therefore measured by our rule,
here, from the scores of the list and the stored number of ties, and counted. Ties among other items
move nothing.
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
    """Print a line for each evaluation and method; return 1 if a number differs, or none is there.

    Args:
        out: Where the same is written as JSON.
    """
    found = [one for folder in evaluations(folders) for one in check(folder)]
    for one in found:
        print(
            f"{one['largest_difference']:.1e}  {one['num_queries']:>7,} queries  "
            f"{one['num_tied']:>7,} tied  from {one['from']}  {one['method']} "
            f"(seed {one['seed']})  {one['folder']}"
        )
    wrong = [one for one in found if not one["largest_difference"] <= TOLERANCE]
    num_listed = sum(one["from"] == "lists" for one in found)
    print(
        f"{num_listed} methods measured again from their lists and {len(found) - num_listed} from "
        f"their ranks, {len(wrong)} differ by more than {TOLERANCE:g}"
    )
    if out is not None:
        content = {"tolerance": TOLERANCE, "methods": found}
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
    ranks = evaluation.per_query.filter(pl.col("protocol").str.starts_with("full"))
    lists = dict(evaluation.lists.group_by(["method", "seed"]))
    found = []
    for key, ranked in ranks.group_by(["method", "seed"], maintain_order=True):
        listed = lists.get(key)
        rank = ranked["rank"].to_numpy()
        values = measure_ranks(rank) if listed is None else measure_again(listed)
        differences = {
            name: abs(stored.get((*key, name), np.inf) - one.mean()) for name, one in values.items()
        }
        is_tied = rank % 1 > 0 if listed is None else (listed["num_tied"] > 0).to_numpy()
        found.append(
            {
                "folder": str(folder),
                "method": key[0],
                "seed": key[1],
                "from": "ranks" if listed is None else "lists",
                "num_queries": len(rank),
                "num_tied": int(is_tied.sum()),
                "largest_difference": float(max(differences.values())),
                "worst_metric": max(differences, key=lambda name: differences[name]),
            }
        )
    return found


def measure_ranks(rank: np.ndarray) -> dict[str, np.ndarray]:
    """Return Hit and NDCG, (Q,) for each metric, of lists whose target stands at these ranks.

    The library measures one list for each whole rank that a list can hold.
    """
    places = range(1, NUM_LISTED + 1)
    filled = pl.DataFrame(
        {
            "items": [[*range(1, place), 0, *range(place, NUM_LISTED)] for place in places],
            "scores": [[float(-i) for i in range(NUM_LISTED)] for _ in places],
            "target": [0 for _ in places],
        }
    )
    of_place = {f"{kind}@{k}": np.zeros(NUM_LISTED) for kind in ("hit", "ndcg") for k in CUTOFFS}
    for row, metric, value in by_the_library(filled, np.arange(NUM_LISTED)):
        of_place[metric][row] = value
    rank = np.asarray(rank, np.float64)
    is_listed = (rank % 1 == 0) & (rank <= NUM_LISTED)
    values = {}
    for metric, by_place in of_place.items():
        kind, k = metric.split("@")
        values[metric] = (hit if kind == "hit" else ndcg)(rank, int(k))  # by our rule, where tied
        values[metric][is_listed] = by_place[rank[is_listed].astype(int) - 1]
        values[metric][(rank % 1 == 0) & ~is_listed] = 0.0
    return values


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

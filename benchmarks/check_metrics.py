"""Measure stored evaluations again by ir_measures, and compare with metrics.json.

    python benchmarks/check_metrics.py runs/ /tmp/tables --out check.json
    python benchmarks/kept.py unpack floor runs/floor
    cd runs; python ../benchmarks/check_metrics.py floor --out ../docs/results/checks/floor.json

The last two lines check what the repository keeps of a table, once more whenever runs are added.
Goes through every evaluation below the named folders. Where it kept `lists.parquet`, the first 20
items of every query with their scores, as the full protocol ranked them, Hit and NDCG at 1, 3, 5,
10 and 20 of each method are computed by the library from the lists alone and must be the numbers of
`metrics.json`, up to 1e-9. Of a method whose lists were not kept (benchmarks/kept.py keeps none),
and of every protocol that ranks candidates, the library measures lists whose target stands at the
rank that was stored, among as many as the protocol has: that asks whether the metrics and their
means are right, and not whether the rank is. A rank beyond the last candidate is wrong.

Ties. The library breaks a tie at the target by the name of the item; our rank is the middle of the
places that are tied for. So the library is asked twice, with the target named first and last among
its ties. `metrics.json` must lie between the means of the two, and be the mean of the stated rule,
whose rank is the middle of the two that the library found. A list says how many tie. A stored rank
does not: a fractional one is taken for a tie of two, which has the same middle. Ties among other
items move nothing.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reasonrec.evaluation.protocol import NUM_LISTED, read_evaluation
from reasonrec.metrics import CUTOFFS

TOLERANCE = 1e-9
"""Sums in another order differ by less; one query more or less of 100,000 by far more."""
FIRST, MIDDLE, LAST = range(3)
"""Rows of what is measured: the target before all that tie with it, by our rule, behind them."""
MOST = NUM_LISTED + 1
"""Items of a list, at most: one place more than the largest cutoff."""


def main(folders: Sequence[Path], out: Path | None = None) -> int:
    """Print a line for each ranking; return 1 if a number of one differs, or none is there.

    Args:
        out: Where the same is written as JSON.
    """
    found = [one for folder in evaluations(folders) for one in check(folder)]
    for one in found:
        print(
            f"{one['largest_difference']:.1e}  {one['num_queries']:>7,} queries  "
            f"{one['num_tied']:>7,} tied  from {one['from']}  {one['protocol']}  {one['method']} "
            f"(seed {one['seed']})  {one['folder']}"
        )
    wrong = [one for one in found if not one["largest_difference"] <= TOLERANCE]
    outside = [one for one in found if not one["is_between"]]
    num_listed = sum(one["from"] == "lists" for one in found)
    print(
        f"{num_listed} rankings measured again from their lists and {len(found) - num_listed} from "
        f"their ranks, {len(wrong)} differ by more than {TOLERANCE:g}, {len(outside)} do not lie "
        "between the library's two ways to break ties"
    )
    if out is not None:
        content = {"tolerance": TOLERANCE, "methods": found}
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return int(bool(wrong or outside) or not found)


def evaluations(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the folders of evaluations; the parts of one, ``methods/*``, are in its own files."""
    for folder in folders:
        for path in sorted(folder.rglob("per_query.parquet")):
            if path.parent.parent.name != "methods" and (path.parent / "metrics.json").is_file():
                yield path.parent


def check(folder: Path) -> list[dict[str, Any]]:
    """Return how far each method's numbers lie from the library's, protocol by protocol.

    A number that is missing, or of ranks that cannot be, is infinitely far.
    """
    evaluation = read_evaluation(folder)
    stored = {
        (row.protocol, row.method, row.seed, row.metric): row.value for row in evaluation.rows
    }
    lists = dict(evaluation.lists.group_by(["method", "seed"]))
    found = []
    groups = evaluation.per_query.group_by(["protocol", "method", "seed"], maintain_order=True)
    for (protocol, *key), ranked in groups:
        rank = ranked["rank"].to_numpy()
        listed = lists.get(tuple(key)) if str(protocol).startswith("full") else None
        if listed is None:
            measured = measure_ranks(rank, num_candidates=length_of(str(protocol)))
        else:
            measured = measure_again(listed)
        means = {name: one.mean(axis=1) for name, one in measured.items()}
        own = {name: stored.get((protocol, *key, name), np.nan) for name in means}
        differences = {name: abs(own[name] - means[name][MIDDLE]) for name in means}
        differences = {name: np.nan_to_num(one, nan=np.inf) for name, one in differences.items()}
        found.append(
            {
                "folder": str(folder),
                "protocol": protocol,
                "method": key[0],
                "seed": key[1],
                "from": "ranks" if listed is None else "lists",
                "num_queries": len(rank),
                "num_tied": int(
                    (rank % 1 > 0).sum() if listed is None else (listed["num_tied"] > 0).sum()
                ),
                "largest_difference": float(max(differences.values())),
                "worst_metric": max(differences, key=lambda name: differences[name]),
                "is_between": all(
                    means[name][LAST] - TOLERANCE <= own[name] <= means[name][FIRST] + TOLERANCE
                    for name in means
                ),
            }
        )
    return found


def length_of(protocol: str) -> int | None:
    """Return how many candidates a protocol has by its word, None where it does not say."""
    found = re.match(r"candidates-(\d+)", protocol)
    return int(found[1]) if found else None


def measure_ranks(rank: np.ndarray, *, num_candidates: int | None = None) -> dict[str, np.ndarray]:
    """Return Hit and NDCG, (3, Q) for each metric, of lists whose target stands at these ranks.

    The rows are `FIRST`, `MIDDLE` and `LAST`. A rank beyond the candidates is NaN.
    """
    rank = np.asarray(rank, np.float64)
    halves = np.nan_to_num(2 * rank, posinf=2.0**40).astype(np.int64)
    assert np.all((halves == 2 * rank) | np.isinf(rank)), "a rank is whole or half"
    length = min(num_candidates or MOST, MOST)
    of_rank = measure_places(length)
    row = np.where(halves > 2 * length, 0, halves)  # 0: not in the list
    is_wrong = rank > (num_candidates or np.inf)
    return {name: np.where(is_wrong, np.nan, one[:, row]) for name, one in of_rank.items()}


@cache
def measure_places(length: int) -> dict[str, np.ndarray]:
    """Return Hit and NDCG of each rank in a list of ``length`` items, (3, 2 length + 1).

    Column h is of rank h / 2; column 0 of a list without its target. Column 1 is none, and 0.
    """
    rows: list[dict[str, Any]] = [_row([*range(1, length + 1)], length)]
    for place in range(1, length + 1):
        others = range(1, length)
        rows.append(_row([*others[: place - 1], 0, *others[place - 1 :]], length))
        if place < length:  # it and the next share a score
            rows.append(_row(rows[-1]["items"], length, tied_from=place))
    measured = measure_again(pl.DataFrame(rows))
    nobody = np.zeros((3, 1))
    return {
        name: np.concatenate([one[:, :1], nobody, one[:, 1:]], axis=1)
        for name, one in measured.items()
    }


def _row(items: list[int], length: int, *, tied_from: int | None = None) -> dict[str, Any]:
    """Return a list as it is stored, its target 0; it and the next tie where that is asked."""
    scores = [float(-place) for place in range(1, length + 1)]
    if tied_from is not None:
        scores[tied_from] = scores[tied_from - 1]
    own = scores[items.index(0)] if 0 in items else -length - 1.0
    return {
        "items": items, "scores": scores, "target": 0, "target_score": own,
        "num_tied": int(tied_from is not None),
    }  # fmt: skip


def measure_again(lists: pl.DataFrame) -> dict[str, np.ndarray]:
    """Return Hit and NDCG of every query, (3, Q) for each metric, from the lists alone.

    The rows are `FIRST` and `LAST`, of the two names that the target is given, and `MIDDLE`: the
    library's where nothing ties, else the stated rule at the middle of the two ranks.
    """
    tied = np.flatnonzero((lists["num_tied"] > 0).to_numpy())
    one = by_the_library(lists, "!")
    other = by_the_library(lists[tied], "~")
    rank = (one["rank"][tied] + other["rank"]) / 2
    found = {}
    for kind in ("hit", "ndcg"):
        for k in CUTOFFS:
            first, middle, last = (one[f"{kind}@{k}"].copy() for _ in range(3))
            first[tied] = np.maximum(one[f"{kind}@{k}"][tied], other[f"{kind}@{k}"])
            last[tied] = np.minimum(one[f"{kind}@{k}"][tied], other[f"{kind}@{k}"])
            gain = np.ones(len(tied)) if kind == "hit" else 1 / np.log2(1 + rank)
            middle[tied] = np.where(rank <= k, gain, 0.0)
            found[f"{kind}@{k}"] = np.stack([first, middle, last])
    return found


def by_the_library(lists: pl.DataFrame, name: str) -> dict[str, np.ndarray]:
    """Return each metric and the ``rank`` of every target as ir_measures has them, (Q,) each.

    The rank of a target that is not in its list is infinite.

    Args:
        name: What the target is called: by it the library breaks ties. All others are numbers.
    """
    import ir_measures
    from ir_measures import RR, Success, nDCG

    names = {Success @ k: f"hit@{k}" for k in CUTOFFS} | {nDCG @ k: f"ndcg@{k}" for k in CUTOFFS}
    names |= {RR: "rank"}
    run, truth = [], []
    columns = ("items", "scores", "target", "target_score", "num_tied")
    for row, (items, scores, target, own, num_tied) in enumerate(
        zip(*(lists[column].to_list() for column in columns), strict=True)
    ):
        assert len(items) <= MOST
        docs = [(str(i) if i != target else name, s) for i, s in zip(items, scores)]
        if num_tied and min(scores) <= own:  # else it is beyond a list of higher scores
            if target not in items:
                docs.append((name, own))
            num_listed = sum(score == own for _, score in docs) - 1
            # the list may end among them; more than so many change no number
            missing = min(num_tied, 2 * MOST) - num_listed
            docs += [(f"0{i}", own) for i in range(missing)]  # no item is called so
        run += [ir_measures.ScoredDoc(str(row), doc, score) for doc, score in docs]
        truth.append(ir_measures.Qrel(str(row), name, 1))
    found = {metric: np.zeros(lists.height) for metric in names.values()}
    for one in ir_measures.iter_calc(list(names), truth, run):
        found[names[one.measure]][int(one.query_id)] = one.value
    with np.errstate(divide="ignore"):
        found["rank"] = 1 / found["rank"]  # from its reciprocal
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    sys.exit(main(asked.folders, asked.out))

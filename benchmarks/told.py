"""What is it worth to be told when the question is asked? The road with and without times.

    REASONREC_DATA=... python benchmarks/told.py runs/told ml-1m --seeds 0
    REASONREC_DATA=... python benchmarks/told.py runs/told

For each set and seed: `reasonrec train r2ec` with prompts that tell how long it has been
(`--prompt.elapsed --thought.same-pace 3`), the control that looks up and does not think, and all of
them on the test queries; each goes on where it stopped. Beside them stand, from the ranks that are
kept (benchmarks/kept.py), our models that are not told, and of the baselines those of either kind.
Every line writes docs/results/told.md from what is finished.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import kept
import numpy as np
import polars as pl
from floor import PREPARE
from other_titles import PRESETS
from running import reasonrec
from stages import contestant, fill_page, heading, paired_tests

from reasonrec.data.dataset import Dataset
from reasonrec.errors import DataError
from reasonrec.evaluation.audits.log import taken_later
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import Joined, join_runs, values_of
from reasonrec.evaluation.measure import measure
from reasonrec.evaluation.protocol import FULL
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.table import short

TELLING = ("--prompt.elapsed", "--thought.same-pace", "3")
EVIDENCE = "evidence-no-think"
STAGES = ("no-think", EVIDENCE, "think-sft", "think-recpo")
BASELINES = {"follow-counter": "", "pace-counter": ", told", "sasrec": "", "hstu": ", told"}
"""Those that stand beside ours, and whether they are told."""
PAIRS = (
    *((f"{stage}, told", stage) for stage in STAGES),
    *(("think-recpo, told", other) for other in ("no-think, told", f"{EVIDENCE}, told")),
    *(("think-recpo, told", other) for other in ("think-sft, told", "hstu, told")),
    ("think-recpo, told", "pace-counter, told"),
    ("pace-counter, told", "follow-counter"),
)
HEAD = """# What it is worth to be told when the question is asked

Written by `python benchmarks/told.py`, whose head says what is trained. *Told*: prompts hold a word
behind each title for how long it was until the next one and until the question (at once, seconds,
minutes, hours, days, months, years), and what others took after as long counts four times in
look-ups (`configs/r2ec/timed.toml`). HSTU and `pace-counter` are told too; nobody else is. In these
tables the question is asked at the very time at which the target was taken. Who serves knows what
time it is, but not that something is being taken: so models that are told are compared with each
other, and targets that were taken later than the event before are reported apart from those of the
same second. Our rows that are not told, where they are kept, and the baselines are those
of [comparison.md](comparison.md). Test queries; means over seeds (the number behind). p: sign-flip
permutation test over users, means over seeds on each query, not corrected; where two methods have
several seeds each, those that both have.
"""


def run(name: str, folder: Path, seed: int) -> None:
    """Train and measure what is told, one seed on one set."""
    data = folder / "data"
    reasonrec("prepare", name, "--out", data, *PREPARE[name])
    dataset = Dataset.load(data)
    if dataset.train.timestamp is None:
        raise DataError(f"{name} has no times to tell; name another set")
    told = ("--data", data, "--seed", seed, *PRESETS.get(name, ()), *TELLING)
    reasonrec("train", "r2ec", "--out", folder, *told)
    start = ("--start", folder / "no-think", "--out", folder / EVIDENCE)
    reasonrec("train", "evidence", *start, *told)
    rows = [contestant(f"{one}, told", folder / one, seed, dataset) for one in STAGES]
    measure(rows, dataset, folder / "evaluation", EvaluateConfig(), seed=seed, has_passport=True)


def beside(name: str, runs: Path) -> list[Path]:
    """Return what is kept of the same set: ours that are not told, and the baselines."""
    asked = {
        "demos": (f"{name}-*.zip", STAGES),
        "floor": (f"{name}/test-0.zip", (*BASELINES,)),
        "peers": (f"{name}/*.zip", (*BASELINES,)),
    }
    methods: list[Path] = []
    for table, (pattern, names) in asked.items():
        for path in sorted((kept.KEPT / table).glob(pattern)):
            if table == "peers" and path.name.rpartition("-")[0] not in names:
                continue
            run = runs / table / path.relative_to(kept.KEPT / table).with_suffix("")
            if not (run / "manifest.json").exists():
                kept.unpack(path, run, runs / table)
            methods += [one for one in run.rglob("methods/*") if one.name in names]
    return sorted(methods)


def named_apart(joined: Joined) -> Joined:
    """Return the runs with the baselines that are told named so."""
    names = {one: one + word for one, word in BASELINES.items()}
    rows = tuple(replace(row, method=names.get(row.method, row.method)) for row in joined.rows)
    return replace(
        joined,
        rows=rows,
        per_query=joined.per_query.with_columns(pl.col("method").replace(names)),
    )


def section(name: str, evaluations: Sequence[Path]) -> str:
    """Return the table of one set, and its tests on all queries and on later ones."""
    runs = evaluations[0].parent.parent
    joined = join_runs(find_runs([*evaluations, *beside(name, runs / "kept")]))
    joined = named_apart(joined)
    later = taken_later(Dataset.load(evaluations[0].parent / "data").test)
    if later is None:
        later = np.ones(joined.rows[0].n, bool)
    columns = [values_of(joined.per_query, FULL, metric) for metric in ("hit@10", "ndcg@10")]
    hits, gains = columns
    assert hits is not None and gains is not None
    seeds = dict(joined.per_query.group_by("method").agg(pl.col("seed").n_unique()).iter_rows())
    parts = [hits.table, gains.table, gains.table[~later], gains.table[later]]
    means = np.stack([part.mean(0) for part in parts], axis=1)
    lines = [
        *heading(name, joined, evaluations),
        f"| method | seeds | HR@10 | NDCG@10 | at the time of the last event ({(~later).sum():,}) "
        f"| later ({later.sum():,}) |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for m in np.argsort(means[:, 1]):
        cells = [short(float(value)) for value in means[m]]
        lines.append("| " + " | ".join([gains.methods[m], str(seeds[gains.methods[m]]), *cells]))
        lines[-1] += " |"
    is_later = pl.col("query").is_in(np.flatnonzero(later).tolist())
    of_later = replace(joined, per_query=joined.per_query.filter(is_later))
    lines += ["", "All queries:", "", *paired_tests(joined, PAIRS)]
    lines += ["", "Later ones:", "", *paired_tests(of_later, PAIRS)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    fill_page(__doc__ or "", "told.md", HEAD, run, section)

"""Tune every peer on a real data set, measure it on the test queries, write the table.

    make peers
    REASONREC_DATA=... python benchmarks/peers.py runs/peers office-2018
    REASONREC_DATA=... python benchmarks/peers.py runs/peers ml-100k --methods sasrec esasrec
    REASONREC_DATA=... python benchmarks/peers.py runs/untuned office-2018 --budget 0 --seeds 0
    REASONREC_DATA=... python benchmarks/peers.py runs/peers games-2018 --budget 0 --seeds 0 \
        --params configs/peers/games-2018.toml
    python benchmarks/peers.py runs/peers --only-write

A peer is a baseline of another library (docs/baselines.md). Each line but the last prepares, tunes
and measures the named sets, one method after the other, each in folders of its own, and goes on
where it stopped. A search has the settings of benchmarks/floor.py to try, 20, or 20 minutes; a
budget of 0 leaves the settings at their defaults, or at those of a file. Long
logs (`SAMPLES`) are searched on a sample of their users, and what was found is trained on all.
Every line writes the sections of docs/results/peers.md whose sets are in its folder, and leaves the
others; benchmarks/kept.py brings back what was measured elsewhere. Every command that runs is one
that anybody can type. Settings are chosen by NDCG@10 on validation; a search that stands in
docs/results/searches is not run again: delete its lines to have it anew. The follow counter,
untuned, stands beside the peers: it takes no time, and a model that stays below it has learned
nothing that counting does not know. Nothing is typed in by hand.
"""

import argparse
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from floor import COLUMNS, PREPARE, SEEDS, fit_seconds, store_trials, stored_trials
from kept import KEPT
from running import ROOT, processors, reasonrec, write_sections
from scipy.sparse import csr_array

from reasonrec.baselines.floor import CONFIGS
from reasonrec.baselines.follow_counter import count_follows
from reasonrec.baselines.history import taken_items
from reasonrec.baselines.peers import PEERS
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.audits.log import taken_later
from reasonrec.evaluation.protocol import MetricRow, read_rows
from reasonrec.evaluation.table import COST_HEADINGS, MethodLine, cost_cells, short, summarise
from reasonrec.evaluation.tuning import Trial, TunedMethod, read_trials
from reasonrec.evaluation.tuning_config import LEAST_TRIALS, TuneConfig
from reasonrec.manifest import read_manifest
from reasonrec.metrics import metric_values

COUNTER = "follow-counter"
BUDGET = TuneConfig(budget=20, minutes=20)
SAMPLES = {
    "ml-1m": ["--min-rating", "4", "--sample-users", "1500"],
    "games-2018": ["--sample-users", "10000"],  # a published split cannot be sampled
}
"""What `reasonrec prepare` is told for the searches on logs that would take them hours a method."""
BEHIND = (
    ("never", 0, 0), ("once", 1, 1), ("2 or 3 times", 2, 3), ("4 to 10 times", 4, 10),
    ("more often", 11, np.inf),
)  # fmt: skip
"""How often a target followed the last item of its history in training, from and to."""
HEADINGS = (
    "method", "library", "seeds", "HR@10", "NDCG@10", "HR@1 of 20", "NDCG@10 of 20", "valid",
    "trials", "epochs", "fit s", "tune s", *COST_HEADINGS[:3],
)  # fmt: skip
HEAD = """# Baselines of other libraries

Every number comes from `python benchmarks/peers.py`, through `reasonrec prepare`, `tune` and
`evaluate`; which library each method is, how it is asked and what is searched stands in
[../baselines.md](../baselines.md). Where there were trials ([searches](searches)), settings were
chosen by NDCG@10 on validation; validation also stops training; the test part was answered once.
All methods are trained on `train` alone; the history of a test query holds the validation item, for
all alike. The budget of a search is that of [floor.md](floor.md), 20 settings, which no method of
that page needs 20 minutes for, or 20 minutes, whichever is spent first, but four settings at least;
a set says where less was spent. The follow counter, at its defaults, stands beside the peers; what
it reaches tuned, there, is named below each table.
Full catalogue, and among 20 candidates; the largest value of a column is bold; ± is the standard
deviation over seeds. *valid* is NDCG@10 of the chosen settings on validation, *epochs* those of
the weights that were kept, a mean over seeds. Seconds are wall-clock, beside other work, and say
an order of magnitude. *p50 ms* and *p95 ms* are those of one user asked alone, over 30 users,
*users/s* is answered in batches; of peers in their own process. No method here writes tokens.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--budget", type=int, default=BUDGET.budget, help="settings tried")
    parser.add_argument("--minutes", type=float, default=BUDGET.minutes, help="of a search")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*SEEDS])
    parser.add_argument("--methods", nargs="*", choices=[*PEERS], default=[*PEERS])
    parser.add_argument("--params", type=Path, help="settings where nothing is searched")
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    if not asked.only_write:
        for name in asked.sets:
            folder = asked.runs / name
            budget = (
                TuneConfig(budget=asked.budget, minutes=asked.minutes) if asked.budget else None
            )
            run_set(name, folder, asked.methods, budget, asked.seeds, asked.params)
            write_page(asked.runs)
    write_page(asked.runs)


def run_set(
    name: str,
    folder: Path,
    methods: list[str],
    budget: TuneConfig | None,
    seeds: list[int],
    params: Path | None,
) -> None:
    """Prepare one set, and tune and measure the named methods on it."""
    data = folder / "data"
    reasonrec("prepare", name, "--out", data, *PREPARE[name])
    reasonrec("evaluate", COUNTER, "--data", data, "--out", folder / COUNTER)
    for method in methods:
        given = ["--params", params] if params else []
        if budget:
            given = ["--params", searched(name, folder, method, budget)]
        for seed in seeds:
            out = folder / f"{method}-{seed}"
            reasonrec("evaluate", method, "--data", data, "--out", out, *given, "--seed", seed)


def searched(name: str, folder: Path, method: str, budget: TuneConfig) -> Path:
    """Return where the best settings of a method stand; search them, unless that is stored."""
    tuned = folder / f"tune-{method}"
    if tuned.exists() or not is_spent(trials_of(name, folder, method), budget):
        data = folder / "data"
        if name in SAMPLES:
            data = folder / "sample"
            reasonrec("prepare", name, "--out", data, *SAMPLES[name])
        allowed = ["--budget", budget.budget, "--minutes", budget.minutes]
        reasonrec("tune", method, "--data", data, "--out", tuned, *allowed)
        if name not in SAMPLES:
            return tuned
    settings = TunedMethod(method, tuple(trials_of(name, folder, method))).best.settings
    path = folder / f"best-{method}.toml"
    lines = [f"[{method}]", *(f"{key} = {value!r}" for key, value in settings.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def is_spent(trials: Sequence[Trial], budget: TuneConfig) -> bool:
    """Tell whether a search has tried as many settings, or taken as long, as it may."""
    assert budget.minutes is not None
    is_over = seconds_of(trials) >= 60 * budget.minutes and len(trials) >= LEAST_TRIALS
    return is_over or len(trials) >= budget.budget


def seconds_of(trials: Sequence[Trial]) -> float:
    return sum(trial.fit_seconds + trial.score_seconds for trial in trials)


def trials_of(name: str, folder: Path, method: str) -> list[Trial]:
    """Return the search of a method: the one of this folder, or the one that is stored."""
    path = folder / f"tune-{method}" / "trials.jsonl"
    if path.exists():
        return read_trials(path)
    return [trial for trial in stored_trials("peers", name) if trial.method == method]


@dataclass(frozen=True)
class Measured:
    """What is finished of one peer on one set."""

    method: str
    rows: list[MetricRow]
    trials: list[Trial]
    """Of the search; none if the defaults were measured."""
    told: list[dict]
    """What the peer wrote of each run."""


def write_page(runs: Path) -> None:
    sections = {}
    for name in PREPARE:
        found = [one for method in PEERS if (one := read_measured(runs / name, method))]
        if found:
            sections[name] = write_set(name, runs / name, found)
    write_sections(ROOT / "docs" / "results" / "peers.md", HEAD, sections, PREPARE)


def read_measured(folder: Path, method: str) -> Measured | None:
    """Return what a peer reached, over the seeds that are finished; None if there is none."""
    done = sorted(folder.glob(f"{method}-*/manifest.json"))
    if not done:
        return None
    peers = [one.parent / "methods" / method / "peer" / "peer.json" for one in done]
    told = [json.loads(one.read_text(encoding="utf-8")) for one in peers]
    trials = trials_of(folder.name, folder, method)
    if trials and TunedMethod(method, tuple(trials)).best.settings != told[0]["job"]["settings"]:
        trials = []  # a search that these runs do not follow
    return Measured(
        method,
        rows=[row for one in done for row in read_rows(one.parent / "metrics.json")],
        trials=trials,
        told=told,
    )


def write_set(name: str, folder: Path, found: list[Measured]) -> str:
    """Return the section of one set."""
    if trials := [trial for method in PEERS for trial in trials_of(name, folder, method)]:
        store_trials("peers", name, trials)
    counter = read_rows(folder / COUNTER / "metrics.json")
    summary = summarise([*counter, *(row for one in found for row in one.rows)], COLUMNS)
    best = [max(line.cells[i].value for line in summary if line.cells[i]) for i in range(4)]
    finished = [*folder.glob("*-*/manifest.json")]
    commits = sorted({str(read_manifest(one.parent)["commit"])[:10] for one in finished})
    on_sample = ""
    if any(one.trials for one in found) and name in SAMPLES:
        words = " ".join(["reasonrec prepare", name, *SAMPLES[name]])
        on_sample = f" Searches, and *valid* of what they found: `{words}`."
    items = json.loads((folder / "data" / "statistics.json").read_text("utf-8"))["catalogue"]
    lines = [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {counter[0].split}, "
        f"{counter[0].n:,} test queries, {items['items']:,} items; commit {', '.join(commits)}; "
        f"{processors(one.parent for one in finished)}, one thread beside other work.{on_sample}"
        f"{less_searched(found)}",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "| --- | --- |" + " --: |" * (len(HEADINGS) - 2),
    ]
    of = {one.method: one for one in found}
    for line in summary:
        lines.append(table_line(line, best, of.get(line.method), counter))
    lines += [
        "",
        f"{below_counter(summary, tuned_counter(name))} Settings that are not the defaults:",
        "",
    ]
    for one in found:
        defaults = CONFIGS[one.method]().model_dump()
        settings = one.told[0]["job"]["settings"]
        changed = [f"{k} {v:g}" for k, v in settings.items() if v != defaults[k]]
        lines.append(f"- {one.method}: {', '.join(changed) or 'the defaults'}")
    lines += ["", *evidence_table(folder, [COUNTER, *of])]
    return "\n".join(lines) + "\n"


def less_searched(found: Sequence[Measured]) -> str:
    """Return which searches did not spend the budget, in words."""
    words = []
    less = [one.method for one in found if one.trials and not is_spent(one.trials, BUDGET)]
    if less:
        words.append(f" Searched for less than the budget: {', '.join(less)}.")
    if none := [one.method for one in found if not one.trials]:
        words.append(f" Not searched: {', '.join(none)}.")
    return "".join(words)


def below_counter(summary: Sequence[MethodLine], tuned: float | None) -> str:
    """Return which peers the follow counter beats by NDCG@10, untuned and tuned.

    Args:
        tuned: What the tuned one reaches, None if that is not known.
    """
    values = {line.method: cell.value for line in summary if (cell := line.cells[1])}
    words = []
    for kind, value in (("untuned", values.pop(COUNTER)), ("tuned", tuned)):
        if value is not None:
            below = [method for method, own in values.items() if own < value]
            words.append(
                f"the {kind} follow counter ({short(value)}): {', '.join(below) or 'none'}"
            )
    return f"By NDCG@10 below {'; below '.join(words)}."


def tuned_counter(name: str, kept: Path = KEPT) -> float | None:
    """Return NDCG@10 of the tuned follow counter of docs/results/floor.md, None if none is kept."""
    path = kept / "floor" / name / f"test-{SEEDS[0]}.zip"
    if not path.exists():
        return None
    with zipfile.ZipFile(path) as archive:
        rows = json.loads(archive.read("metrics.json"))
    asked = (COUNTER, *COLUMNS[1])
    found = [
        row["value"] for row in rows if (row["method"], row["protocol"], row["metric"]) == asked
    ]
    return found[0] if found else None


def evidence_table(folder: Path, methods: list[str]) -> list[str]:
    """Return NDCG@10 by what training knows of the way from a history to its target, and by
    whether the target has the time of the history's last event, where there are times: whoever is
    told when the question is asked can know it then as one of a list that was ticked at once.

    How often training holds the target right behind the last item of the history tells what is
    to be counted, and so remembered, from what is to be understood."""
    dataset = Dataset.load(folder / "data")
    taken = csr_array(taken_items(dataset.train, dataset.num_items))
    # who took both: (N, N), and for a query its row of the target at the items of the history
    together = (taken.T @ taken).tocsr()
    asked = dataset.test
    histories = asked.histories()
    is_met = np.zeros(len(asked), bool)
    for row, target in enumerate(asked.target):
        beside = together.indices[together.indptr[target] : together.indptr[target + 1]]
        is_met[row] = np.isin(histories.row(row)[histories.row(row) != target], beside).any()
    is_seen = np.isin(asked.target, dataset.train.item_index)
    parts = {
        "taken together with an item of the history": is_met,
        "seen in training, but never together": is_seen & ~is_met,
        "never seen in training": ~is_seen,
    }
    times = times_behind_last(dataset)
    parts |= {
        f"right behind the last item in training: {words}": (least <= times) & (times <= most)
        for words, least, most in BEHIND
    }
    told = "by what training holds of the target"
    later = taken_later(asked)
    if later is not None:
        told += ", and by when it was taken"
        parts |= {"taken at the time of the last event": ~later, "taken later": later}
    lines = [
        f"NDCG@10 {told}, full catalogue, mean over seeds:",
        "",
        "| target | queries | " + " | ".join(methods) + " |",
        "| --- |" + " --: |" * (len(methods) + 1),
    ]
    values = {method: ndcg_of_queries(folder, method) for method in methods}
    for word, chosen in parts.items():
        cells = [short(values[m][chosen].mean()) if chosen.any() else "-" for m in methods]
        lines.append("| " + " | ".join([word, f"{chosen.sum():,}", *cells]) + " |")
    return lines


def times_behind_last(dataset: Dataset) -> np.ndarray:
    """Return how often training holds each target right behind its history's last item. (Q,)."""
    asked = dataset.test
    behind = count_follows(dataset.train, dataset.num_items, num_steps=1, reverse_share=0.0)
    times = np.zeros(len(asked))
    begun = np.flatnonzero(asked.history_stop > asked.history_start)
    last = asked.log_item_index[asked.history_stop[begun] - 1]
    times[begun] = np.asarray(behind[last, asked.target[begun]]).ravel()
    return times


def ndcg_of_queries(folder: Path, method: str) -> np.ndarray:
    """Return NDCG@10 of every test query, a mean over the seeds that are finished. (Q,)."""
    done = sorted(folder.glob(f"{method}-*/manifest.json")) or [folder / method / "manifest.json"]
    seeds = []
    for one in done:
        ranks = pl.read_parquet(one.parent / "per_query.parquet")
        ranks = ranks.filter(pl.col("protocol") == "full").sort("query")
        seeds.append(metric_values("ndcg@10", ranks["rank"].to_numpy()))
    return np.mean(seeds, axis=0)


def table_line(
    line: MethodLine, best: list[float], peer: Measured | None, counter: list[MetricRow]
) -> str:
    cells = []
    for cell, top in zip(line.cells, best):
        spread = "" if cell.seed_sd is None else f" ± {short(cell.seed_sd)}"
        value = f"**{short(cell.value)}**" if cell.value == top else short(cell.value)
        cells.append(value + spread)
    if peer is None:
        costs = ["-", "-", "-", f"{fit_seconds(counter, line.method):.1f}", "-"]
        costs += cost_cells(line)[:3]
        return "| " + " | ".join([line.method, "ours", str(line.num_seeds), *cells, *costs]) + " |"
    values = [trial.value for trial in peer.trials if trial.value is not None]
    spent = seconds_of(peer.trials)
    epochs = sum(one["epochs"] for one in peer.told) / len(peer.told)
    costs = [
        short(max(values)) if values else "-", str(len(peer.trials)), f"{epochs:.0f}",
        f"{fit_seconds(peer.rows, peer.method):.0f}", f"{spent:.0f}", *cost_cells(line)[:3],
    ]  # fmt: skip
    words = [peer.method, peer.told[0]["library"], str(line.num_seeds), *cells, *costs]
    return "| " + " | ".join(words) + " |"


if __name__ == "__main__":
    main()

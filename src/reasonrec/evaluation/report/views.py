"""From a run's records to what each section says: numbers, sentences and positions, no markup."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from reasonrec.baselines.floor import BASELINES
from reasonrec.data.dataset import Part
from reasonrec.data.planted.oracle import ORACLES
from reasonrec.data.validation import count_reasons
from reasonrec.evaluation.commands import demo_command, source_of
from reasonrec.evaluation.protocol import COST, MetricRow, full_ranks, full_word_in
from reasonrec.evaluation.report.records import RunRecords
from reasonrec.evaluation.report.scales import Scale, nice_scale
from reasonrec.evaluation.significance import (
    PairedTest,
    bootstrap_intervals,
    paired_test,
    resampling_users,
)
from reasonrec.evaluation.slices import thirds
from reasonrec.evaluation.table import MethodLine, summarise
from reasonrec.metrics import ndcg
from reasonrec.rng import stream

REFERENCE = "no-think"
THINKERS = ("think-recpo", "r2rec-rl", "think-sft", "r2rec-sft")
"""Methods that write a thought, the one at the end of the road first."""
OURS = (REFERENCE, *THINKERS, "untuned")
SILENT = "/silent"
"""Follows the name of a thinking method that was asked to rank without its thought."""
CHOSEN = "ndcg@10"
"""The metric that headline and charts speak of, over the whole catalogue."""
NUM_EXAMPLES = 3
"""Thoughts shown on either side: moved up most, moved down most."""
CURVES = {
    "train/loss": "Training loss",
    "valid/ndcg@10": "NDCG@10 on validation",
    "valid/silent/ndcg@10": "The same without the thought",
    "rl/reward_mean": "Reward, mean over rollouts",
    "rl/reward_spread": "Spread of reward inside a group",
    "rl/frac_flat_groups": "Share of groups without any spread",
    "rl/thought_tokens": "Tokens of a thought",
    "rl/entropy": "Entropy of the thought's tokens (nats)",
    "rl/frac_clipped": "Share of tokens whose ratio is clipped",
}
"""Logged quantities that are always drawn; others follow, up to ``MAX_CURVES``."""
MAX_CURVES = 9
_ASKED = ("query", "user_index", "target", "history_length")
"""Columns that say what was asked, before those of methods."""


@dataclass(frozen=True)
class Mark:
    """A value with its interval, for one line of a forest plot."""

    method: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Band:
    """One group of a forest plot: the queries of one bin, every method beside the others."""

    label: str
    num_queries: int
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Forest:
    """Marks on one scale."""

    bands: tuple[Band, ...]
    scale: Scale


@dataclass(frozen=True)
class Versus:
    """A thinking method beside a reference on the same queries."""

    method: str
    reference: str
    value: float
    reference_value: float
    test: PairedTest
    verdict: str
    """``raises``, ``lowers`` or ``does not measurably change``."""


@dataclass(frozen=True)
class CostPoint:
    method: str
    latency_ms: float
    value: float
    tokens: float


@dataclass(frozen=True)
class Panel:
    """One small chart of training curves."""

    title: str
    key: str
    lines: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    """(method, steps, values), thinned to what a small chart can show."""
    x: Scale
    y: Scale


@dataclass(frozen=True)
class Moved:
    """One thought, and what it did to the place of the item that was taken next."""

    user_id: str
    history: tuple[str, ...]
    target: str
    rank_before: float
    rank_after: float
    thought: str


@dataclass(frozen=True)
class Bar:
    label: str
    count: int


def lines_of(run: RunRecords) -> tuple[MethodLine, ...]:
    """Return the lines of the results table, in order of arrival."""
    return summarise(run.metrics)


def thinking_method(metrics: Sequence[MetricRow]) -> str | None:
    """Return the thinking method furthest along the road, None if none was measured."""
    found = {row.method for row in metrics}
    return next((method for method in THINKERS if method in found), None)


def versus(run: RunRecords) -> list[Versus]:
    """Return the pairs that say what thinking does, compared query by query.

    Every thinking method against no-think, and against itself ranking without its thought; the
    last of them against the best simple method.
    """
    if run.per_query is None:
        return []
    found = [line.method for line in lines_of(run)]
    pairs = [(method, REFERENCE) for method in THINKERS if {method, REFERENCE} <= {*found}]
    pairs += [(method, method + SILENT) for method in THINKERS if method + SILENT in found]
    last, simple = thinking_method(run.metrics), best_simple(run.metrics)
    if last and simple:
        pairs.append((last, simple))
    compared = [_versus(run.per_query, *pair) for pair in pairs]
    return [one for one in compared if one is not None]


def best_simple(metrics: Sequence[MetricRow]) -> str | None:
    """Return the baseline with the highest NDCG@10 among those that are fitted in a moment.

    A network, of ours or of others, an oracle and a method of the user's own are none of them.
    """
    return _strongest(metrics, BASELINES.__contains__)


def best_method(metrics: Sequence[MetricRow]) -> str | None:
    """Return the method with the highest NDCG@10; an oracle does not compete."""
    return _strongest(metrics, lambda name: name not in ORACLES)


def _strongest(metrics: Sequence[MetricRow], is_meant: Callable[[str], bool]) -> str | None:
    """Return the method of highest NDCG@10 whose name, without that of its run, is meant."""
    values: dict[str, list[float]] = {}
    chosen = (full_word_in({row.protocol for row in metrics}), CHOSEN)
    for row in metrics:
        name, _, _ = row.method.partition(" (")  # methods that clash carry their run's name
        if (row.protocol, row.metric) == chosen and is_meant(name):
            values.setdefault(row.method, []).append(row.value)
    return max(values, key=lambda method: float(np.mean(values[method])), default=None)


def forest(lines: Sequence[MethodLine], column: int) -> Forest | None:
    """Return all methods on one scale, best first; None where nothing was measured."""
    marks = [
        Mark(line.method, cell.value, cell.low, cell.high)
        for line in lines
        if (cell := line.cells[column]) is not None
    ]
    if not marks:
        return None
    marks.sort(key=lambda mark: -mark.value)
    return Forest((Band("", 0, tuple(marks)),), _scale_of(marks))


def breakdown(run: RunRecords, by: str) -> Forest | None:
    """Return think beside no-think within thirds of the queries.

    Args:
        by: ``history`` (events known when asked) or ``popularity`` (training events of the target).
    """
    if run.per_query is None:
        return None
    wide = _wide(run.per_query, [REFERENCE, *reversed(THINKERS)])
    if wide is None or len(wide.columns) < len(_ASKED) + 2:  # two methods
        return None
    methods = [name for name in wide.columns if name in OURS]
    if by == "history":
        measure, unit = wide["history_length"].to_numpy(), "events known"
    else:
        counts = np.bincount(run.dataset.train.item_index, minlength=run.dataset.num_items)
        measure, unit = counts[wide["target"].to_numpy()], "training events"
    values = wide.select(methods).to_numpy()
    users = resampling_users(wide["user_index"].to_numpy())
    bands = []
    for low, high in thirds(measure):
        inside = (measure >= low) & (measure <= high)
        intervals = bootstrap_intervals(
            values[inside], rng=stream(0, "report"), users=users[inside], num_resamples=500
        )
        bands.append(
            Band(
                f"{low:,} {unit}" if low == high else f"{low:,} to {high:,} {unit}",
                int(inside.sum()),
                tuple(Mark(m, i.mean, i.low, i.high) for m, i in zip(methods, intervals)),
            )
        )
    return Forest(tuple(bands), _scale_of([mark for band in bands for mark in band.marks]))


def cost_points(lines: Sequence[MethodLine], column: int) -> tuple[CostPoint, ...]:
    """Return accuracy beside the median latency of one user; only methods that have both."""
    return tuple(
        CostPoint(line.method, line.latency_ms, cell.value, line.tokens or 0.0)
        for line in lines
        if (cell := line.cells[column]) is not None and line.latency_ms and line.method != "oracle"
    )


def panels(run: RunRecords) -> tuple[Panel, ...]:
    """Return the training curves, the most telling first."""
    logged = list(dict.fromkeys(curve.key for curve in run.curves))
    other = [key for key in logged if key not in CURVES]
    other = [key for key in other if key not in ("seconds", "epoch", "train/learning_rate")]
    keys = [key for key in CURVES if key in logged] + other
    found = []
    for key in keys[:MAX_CURVES]:
        curves = [curve for curve in run.curves if curve.key == key]
        lines = tuple((c.method, *_thinned(c.steps, c.values)) for c in curves)
        steps = [step for _, xs, _ in lines for step in xs]
        values = [value for _, _, ys in lines for value in ys]
        title = CURVES.get(key, key)
        y = nice_scale(min(values), max(values), num_ticks=4)
        x = nice_scale(min(0.0, *steps), max(steps), num_ticks=4, is_tight=True)
        found.append(Panel(title, key, lines, x, y))
    return tuple(found)


def moved(run: RunRecords) -> tuple[tuple[Moved, ...], tuple[Moved, ...]]:
    """Return the thoughts that moved the target up most and down most, against no-think.

    A move is measured as NDCG does, by log2(1 + rank): from 9 to 1 counts like 99 to 19.
    """
    method = thinking_method(run.metrics)
    if method is None or run.thoughts is None or run.per_query is None:
        return (), ()
    full = full_ranks(run.per_query).filter(pl.col("rank").is_finite())
    thoughts = run.thoughts.filter(pl.col("method") == method)
    thoughts = thoughts.filter(pl.col("seed") == pl.col("seed").min())  # one thought a query
    thoughts = thoughts.select("query", "seed", "thought")
    before = full.filter(pl.col("method") == REFERENCE).select("query", "seed", before="rank")
    table = (
        full.filter(pl.col("method") == method)
        .join(before, on=["query", "seed"])
        .join(thoughts, on=["query", "seed"])
        .with_columns(gain=(pl.col("before") + 1).log(2) - (pl.col("rank") + 1).log(2))
        .sort("gain", "query", descending=[True, False])
    )
    up = table.filter(pl.col("gain") > 0).head(NUM_EXAMPLES)
    down = table.filter(pl.col("gain") < 0).tail(NUM_EXAMPLES).reverse()
    return _examples(run, up), _examples(run, down)


def part_of(metrics: Sequence[MetricRow]) -> Part:
    """Return which queries were measured."""
    return "valid" if metrics and metrics[0].split.endswith("/valid") else "test"


def num_measured(metrics: Sequence[MetricRow]) -> int | None:
    """Return how many queries were ranked, at most by any method; None where nothing was."""
    return max((row.n for row in metrics if row.protocol != COST), default=None)


def history_bars(run: RunRecords, *, num_bars: int = 16) -> tuple[Bar, ...]:
    """Return how many queries have how long a history; the last bar takes the longest 2 %."""
    queries = run.dataset.queries(part_of(run.metrics))
    lengths = queries.history_stop - queries.history_start
    if not len(lengths):
        return ()
    low, high = int(lengths.min()), int(np.quantile(lengths, 0.98))
    width = max(1, -(-(high - low + 1) // num_bars))
    edges = [*range(low, high + 1, width), int(lengths.max()) + 1]
    counts, _ = np.histogram(lengths, edges)
    bars = []
    for start, stop, count in zip(edges, edges[1:], counts):
        label = f"{start}" if stop == start + 1 else f"{start}–{stop - 1}"
        bars.append(Bar(label, int(count)))
    return tuple(bars)


def rejected_bars(run: RunRecords) -> tuple[Bar, ...]:
    """Return how many rows were set aside for each reason, most frequent first."""
    if run.rejected is None or run.rejected.is_empty():
        return ()
    counts = count_reasons(run.rejected)
    return tuple(Bar(reason, count) for reason, count in counts.items())


def flattened(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted key, text)."""
    if isinstance(values, dict) and values:
        pairs = values.items()
        return [
            row for key, value in pairs for row in flattened(value, f"{prefix}.{key}".lstrip("."))
        ]
    return [(prefix, "" if values is None else str(values))]


def reproduce(run: RunRecords) -> tuple[str, ...]:
    """Return the lines for a shell that make this run again: its preset, and the command last.

    Nothing where the run does not hold how it was made.
    """
    if run.preparation is None or run.config is None or "r2ec" not in run.config:
        return ()
    data = run.preparation["config"]
    source = source_of(run.preparation, run.dataset.statistics)
    out = run.dataset.folder.resolve().parent.name
    return demo_command(run.config, source, data, run.preparation.get("seed") or 0, out=out)


def cost(metrics: Sequence[MetricRow], method: str, name: str) -> float | None:
    """Return a cost of a method, mean over seeds."""
    values = [row.value for row in metrics if (row.method, row.metric) == (method, name)]
    return float(np.mean(values)) if values else None


def _versus(per_query: pl.DataFrame, method: str, reference: str) -> Versus | None:
    keys = ["seed", "query"]
    full = full_ranks(per_query)
    right = full.filter(pl.col("method") == reference)
    if right["seed"].n_unique() == 1:  # a method without randomness is measured once
        keys, right = ["query"], right.drop("seed")
    both = full.filter(pl.col("method") == method).join(right, on=keys, suffix="_reference")
    if both.is_empty():
        return None
    values = ndcg(both["rank"].to_numpy(), 10)
    reference_values = ndcg(both["rank_reference"].to_numpy(), 10)
    test = paired_test(
        values,
        reference_values,
        rng=stream(0, "report"),
        users=resampling_users(both["user_index"].to_numpy()),
        num_resamples=2000,
    )
    verdict = "does not measurably change"
    if test.low > 0 or test.high < 0:
        verdict = "raises" if test.low > 0 else "lowers"
    means = float(values.mean()), float(reference_values.mean())
    return Versus(method, reference, *means, test, verdict)


def _wide(per_query: pl.DataFrame, methods: Sequence[str]) -> pl.DataFrame | None:
    """Return NDCG@10 per query, mean over seeds: one column for each method that was measured."""
    full = full_ranks(per_query).filter(pl.col("method").is_in(methods))
    if full.is_empty():
        return None
    full = full.with_columns(value=pl.Series(ndcg(full["rank"].to_numpy(), 10)))
    wide = full.pivot(
        on="method",
        index=_ASKED,
        values="value",
        aggregate_function="mean",
    ).drop_nulls()
    order = [method for method in methods if method in wide.columns]
    return wide.select(*_ASKED, *order).sort("query")


def _scale_of(marks: Sequence[Mark]) -> Scale:
    tops = [mark.value if mark.high is None else mark.high for mark in marks]
    return nice_scale(0.0, max(*tops, 1e-3), num_ticks=5)


def _thinned(
    steps: Sequence[float], values: Sequence[float], *, num_points: int = 240
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), num_points)).astype(int))
    return tuple(steps[i] for i in kept), tuple(values[i] for i in kept)


def _examples(run: RunRecords, table: pl.DataFrame) -> tuple[Moved, ...]:
    from reasonrec.models.tiny.tokenizer import numbered_titles  # brings transformers

    dataset = run.dataset
    rows = table["query"].to_numpy()
    histories = dataset.queries(part_of(run.metrics)).take(rows).histories(last=5)
    titles = numbered_titles(tuple(dataset.catalogue.titles))
    names = [*dataset.user_ids, "somebody new"]  # an unknown user has index -1
    return tuple(
        Moved(
            user_id=names[row["user_index"]],
            history=tuple(titles[item] for item in histories.row(n)),
            target=titles[row["target"]],
            rank_before=row["before"],
            rank_after=row["rank"],
            thought=row["thought"] or "",
        )
        for n, row in enumerate(table.iter_rows(named=True))
    )

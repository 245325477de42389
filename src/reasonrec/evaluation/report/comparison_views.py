"""From a comparison to what each part of its page says: numbers and positions, no markup."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from reasonrec.evaluation.comparison import Compared, Comparison
from reasonrec.evaluation.report.scales import Scale, nice_scale
from reasonrec.evaluation.report.views import CHOSEN, Band, Forest, Mark, Panel
from reasonrec.evaluation.significance import Interval, bootstrap_intervals, resampling_users
from reasonrec.evaluation.table import MethodLine, metric_title, protocol_title, summarise
from reasonrec.metrics import ndcg
from reasonrec.rng import stream

SIGNIFICANT = 0.05
"""Holm's p below which a difference is marked."""
BETTER, WORSE, ALIKE, SELF = "better", "worse", "alike", "self"


@dataclass(frozen=True)
class Verdict:
    """One method against one reference in one column, as a mark in the table."""

    reference: int
    """Place of the reference among the methods."""
    kind: str
    """``better``, ``worse``, ``alike`` or ``self``."""
    test: Comparison | None
    """None for the reference itself."""


@dataclass(frozen=True)
class ResultCell:
    """One number of the table with its noise, and its marks against every reference."""

    value: float
    low: float | None
    """Ends of the 95 % interval over users, of the mean over seeds."""
    high: float | None
    seed_sd: float | None
    """Standard deviation over seeds, where they differ."""
    oracle_share: float | None
    verdicts: tuple[Verdict, ...]


@dataclass(frozen=True)
class ResultLine:
    line: MethodLine
    cells: tuple[ResultCell | None, ...]


@dataclass(frozen=True)
class Against:
    """Every method's difference from one reference."""

    reference: str
    marks: tuple[Mark, ...]
    """In the shown column; ``value`` is the difference."""
    kinds: tuple[str, ...]
    """Of the marks."""
    scale: Scale
    tests: tuple[tuple[Comparison, str], ...]
    """In all columns, with their kind."""


@dataclass(frozen=True)
class Trajectory:
    """Where the target stands along the thoughts of each method."""

    panels: tuple[Panel, ...]
    lines: tuple[tuple[str, int, int, Interval, float], ...]
    """(method, step, thoughts that go on so long, NDCG@10, median rank). The rank is infinite where
    the mask kept half of the targets out; it is then in no panel."""


@dataclass(frozen=True)
class Parts:
    """What the audit of one run measured on parts of the queries."""

    run: str
    slices: tuple[tuple[str, int], ...]
    """(label, queries)."""
    lines: tuple[tuple[str, tuple[Interval | None, ...]], ...]
    """(method, its mean on each slice)."""


def result_lines(compared: Compared, columns: Sequence[tuple[str, str]]) -> list[ResultLine]:
    """Return the lines of the table, in order of arrival."""
    lines = summarise(compared.joined.rows, columns)
    methods = list(compared.against)
    found = {(c.protocol, c.metric): c for c in compared.columns}
    tests = {
        (one.reference, one.method, one.protocol, one.metric): one
        for group in compared.against.values()
        for one in group
    }
    made = []
    for line in lines:
        cells: list[ResultCell | None] = []
        for key, cell in zip(columns, line.cells):
            if cell is None:
                cells.append(None)
                continue
            low, high = cell.low, cell.high
            if low is None and key in found and line.method in found[key].values.methods:
                place = found[key].values.methods.index(line.method)
                low, high = found[key].tests.means[place].low, found[key].tests.means[place].high
            verdicts = tuple(
                _verdict(i, tests.get((reference, line.method, *key)), line.method == reference)
                for i, reference in enumerate(methods)
            )
            spread = cell.seed_sd if cell.seed_sd and cell.seed_sd >= 5e-5 else None
            cells.append(ResultCell(cell.value, low, high, spread, cell.oracle_share, verdicts))
        made.append(ResultLine(line, tuple(cells)))
    return made


def against(compared: Compared) -> list[Against]:
    """Return for every method as reference how the others differ from it, best first."""
    shown = compared.sliced
    found = []
    for reference, tests in compared.against.items():
        own = [
            one
            for one in tests
            if shown is not None and (one.protocol, one.metric) == (shown.protocol, shown.metric)
        ]
        own.sort(key=lambda one: -one.difference)
        found.append(
            Against(
                reference,
                tuple(Mark(o.method, o.difference, o.ci_low, o.ci_high) for o in own),
                tuple(_kind(one) for one in own),
                nice_scale(
                    min([0.0, *(one.ci_low for one in own)]),
                    max([0.0, *(one.ci_high for one in own)]),
                    num_ticks=6,
                ),
                tuple((one, _kind(one)) for one in tests),
            )
        )
    return found


def means_forest(lines: Sequence[ResultLine], column: int) -> Forest | None:
    """Return all methods on one scale, best first; None where nothing was measured."""
    marks = [
        Mark(one.line.method, cell.value, cell.low, cell.high)
        for one in lines
        if (cell := one.cells[column]) is not None
    ]
    if not marks:
        return None
    marks.sort(key=lambda mark: -mark.value)
    top = max(*(mark.high or mark.value for mark in marks), 1e-3)
    return Forest((Band("", 0, tuple(marks)),), nice_scale(0.0, top, num_ticks=5))


def trajectory(table: pl.DataFrame) -> Trajectory:
    """Return NDCG@10 and the median rank after each step of the thought.

    A thought that has ended keeps its last rank: every step is over all queries and seeds, so that
    short thoughts leaving cannot look like progress. NDCG is of each thought, averaged over a
    query's seeds and then over queries, with an interval over users; the median is over thoughts.

    Args:
        table: As ``Joined.trajectory``.
    """
    lines: list[tuple[str, int, int, Interval, float]] = []
    curves: list[tuple[str, tuple[float, ...], tuple[float, ...], tuple[float, ...]]] = []
    for (method,), group in table.group_by(["method"], maintain_order=True):
        steps = sorted(group["step"].unique().to_list())
        wide = group.pivot(on="step", index=["seed", "query", "user_index"], values="rank")
        rank = wide.select([str(step) for step in steps]).to_numpy()  # (thoughts, steps)
        still = np.count_nonzero(~np.isnan(rank), axis=0).tolist()
        rank = _carried(rank)
        values = [pl.Series(str(i), ndcg(rank[:, i], 10)) for i in range(len(steps))]
        each = wide.select("query", "user_index", *values).group_by("query", "user_index").mean()
        each = each.sort("query")
        intervals = bootstrap_intervals(
            each.drop("query", "user_index").to_numpy(),
            rng=stream(0, "trajectory"),
            users=resampling_users(each["user_index"].to_numpy()),
        )
        medians = np.median(rank, axis=0)
        lines += [
            (str(method), step, count, interval, float(median))
            for step, count, interval, median in zip(steps, still, intervals, medians)
        ]
        xs = tuple(float(step) for step in steps)
        curves.append((str(method), xs, tuple(i.mean for i in intervals), tuple(medians.tolist())))
    panels = [_panel("NDCG@10 after each step", [(m, xs, ys) for m, xs, ys, _ in curves])]
    places = []
    for method, xs, _, medians in curves:
        reached = [(x, median) for x, median in zip(xs, medians) if np.isfinite(median)]
        if reached:
            places.append((method, *zip(*reached)))
    if places:
        panels.append(_panel("Median place of the target", places))
    return Trajectory(tuple(panels), tuple(lines))


def audited_parts(rows: Sequence[Mapping[str, Any]]) -> tuple[Parts, ...]:
    """Return what each run's audit measured on parts of the queries, in ``CHOSEN``.

    Args:
        rows: As ``Joined.audited_slices``.
    """
    found = []
    for run in dict.fromkeys(row["run"] for row in rows):
        own = [row for row in rows if row["run"] == run and row["metric"] == CHOSEN]
        cells = {(row["method"], row["seed"], row["slice"]): row for row in own}
        sizes = {row["slice"]: row["n"] for row in own}
        measured = list(dict.fromkeys((row["method"], row["seed"]) for row in own))
        names = [method for method, _ in measured]
        lines = tuple(
            (
                f"{method}, seed {seed}" if names.count(method) > 1 else method,
                tuple(
                    Interval(row["value"], row["ci_low"], row["ci_high"])
                    if (row := cells.get((method, seed, label)))
                    else None
                    for label in sizes
                ),
            )
            for method, seed in measured
        )
        found.append(Parts(run, tuple(sizes.items()), lines))
    return tuple(found)


def headline(compared: Compared) -> tuple[str, str, list[str], list[str], list[str]] | None:
    """Return (metric, protocol, better, alike, worse) than the reference in the shown column."""
    shown = compared.sliced
    if shown is None or len(shown.values.methods) < 2:
        return None
    own = [
        one
        for one in compared.comparisons
        if (one.protocol, one.metric) == (shown.protocol, shown.metric)
    ]
    own.sort(key=lambda one: -one.difference)
    groups = {
        kind: [one.method for one in own if _kind(one) == kind] for kind in (BETTER, ALIKE, WORSE)
    }
    return (
        metric_title(shown.metric),
        protocol_title(shown.protocol),
        groups[BETTER],
        groups[ALIKE],
        groups[WORSE],
    )


def _verdict(place: int, test: Comparison | None, is_self: bool) -> Verdict:
    if test is None:
        return Verdict(place, SELF if is_self else "", None)
    return Verdict(place, _kind(test), test)


def _kind(test: Comparison) -> str:
    if test.p_holm >= SIGNIFICANT:
        return ALIKE
    return BETTER if test.difference > 0 else WORSE


def _carried(rank: np.ndarray) -> np.ndarray:
    """Return each row with its last rank, or before all of them its first, in place of NaN."""
    exists = ~np.isnan(rank)
    last = np.where(exists, np.arange(rank.shape[1]), exists.argmax(axis=1)[:, None])
    return np.take_along_axis(rank, np.maximum.accumulate(last, axis=1), axis=1)


def _panel(title: str, curves: list[tuple[str, tuple[float, ...], tuple[float, ...]]]) -> Panel:
    values = [value for _, _, ys in curves for value in ys]
    steps = [step for _, xs, _ in curves for step in xs]
    y = nice_scale(0.0, max(*values, 1e-3), num_ticks=4)
    x = nice_scale(min(steps), max(steps), num_ticks=6, is_tight=True)
    return Panel(title, title, tuple(curves), x, y)

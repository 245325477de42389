"""The table of results, for a terminal and for Markdown. Methods are rows, in order of arrival."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reasonrec.evaluation.protocol import COST, FULL, MetricRow, full_word_in

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = (
    (FULL, "hit@10"),
    (FULL, "ndcg@10"),
    ("candidates-20", "hit@1"),
    ("candidates-20", "ndcg@10"),
)
"""What a table shows where the usual protocols were measured: (protocol, metric)."""
_AMONG = ("hit@1", "ndcg@10")
"""What a table shows of any other candidates."""
_MASKS = {f"{FULL}-mask-none": "unmasked", f"{FULL}-mask-history": "new only"}
_TITLES = {"hit": "HR", "ndcg": "NDCG", "mrr": "MRR"}


@dataclass(frozen=True)
class Cell:
    """One metric of one method over its seeds."""

    value: float
    """Mean over seeds."""
    low: float | None
    """One seed: the ends of its interval. More: None."""
    high: float | None
    seed_sd: float | None
    """Standard deviation over seeds (n - 1). None for one seed."""
    oracle_share: float | None
    """Value / the oracle's value, where the oracle is among the methods."""


@dataclass(frozen=True)
class MethodLine:
    """One method's line of the table."""

    method: str
    trained_on: str
    num_seeds: int
    cells: tuple[Cell | None, ...]
    """One for each column; None where it was not measured."""
    tokens: float | None
    """Mean tokens a query."""
    latency_ms: float | None
    """Median for one user asked alone."""
    latency_p95_ms: float | None
    """The same, 95th percentile."""
    users_per_second: float | None
    """Answered in batches."""
    seconds: float
    """Scoring all queries, mean over seeds."""

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens of thought, answered in batches, ranking included; None where none is written."""
        if not self.tokens or self.users_per_second is None:
            return None
        return self.tokens * self.users_per_second


def usual_columns(rows: Iterable[MetricRow]) -> tuple[tuple[str, str], ...]:
    """Return ``COLUMNS``, over the catalogue as these rows were masked, and all other candidates.

    Where others were measured, what was not is left out; else it stays, and is a dash.
    """
    measured = dict.fromkeys(row.protocol for row in rows)
    full = full_word_in(measured)
    usual = [(full if protocol == FULL else protocol, metric) for protocol, metric in COLUMNS]
    known = {protocol for protocol, _ in COLUMNS}
    others = [word for word in measured if word.startswith("candidates-") and word not in known]
    if others:
        usual = [(protocol, metric) for protocol, metric in usual if protocol in measured]
    return (*usual, *((protocol, metric) for protocol in others for metric in _AMONG))


def summarise(
    rows: Iterable[MetricRow], columns: Sequence[tuple[str, str]] | None = None
) -> tuple[MethodLine, ...]:
    """Return a line for each (method, trained_on), averaged over seeds, in order of arrival.

    Raises:
        ValueError: The rows mix data sets or splits, whose numbers cannot share a table.
    """
    rows = list(rows)
    columns = columns or usual_columns(rows)
    sets = sorted({(row.dataset, row.split) for row in rows})
    if len(sets) > 1:
        raise ValueError(f"one table holds one data set and split; got {sets}")
    groups: dict[tuple[str, str], list[MetricRow]] = {}
    for row in rows:
        groups.setdefault((row.method, row.trained_on), []).append(row)
    oracle = [row for row in rows if row.method == "oracle"]
    return tuple(
        MethodLine(
            method=method,
            trained_on=trained_on,
            num_seeds=len({row.seed for row in group}),
            cells=tuple(_cell(group, oracle, *column) for column in columns),
            tokens=_mean(group, COST, "tokens"),
            latency_ms=_mean(group, COST, "latency-p50-ms"),
            latency_p95_ms=_mean(group, COST, "latency-p95-ms"),
            users_per_second=_mean(group, COST, "users-per-second"),
            seconds=float(np.mean(list({row.seed: row.seconds for row in group}.values()))),
        )
        for (method, trained_on), group in groups.items()
    )


def uneven_seeds(rows: Iterable[MetricRow]) -> str | None:
    """Return a sentence that names the seeds of methods with several, if they are not the same.

    A method with one seed may be one in which chance has no part, and is not asked.
    """
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row.method, set()).add(row.seed)
    several = {method: sorted(one) for method, one in seeds.items() if len(one) > 1}
    if len({tuple(one) for one in several.values()}) < 2:
        return None
    told = "; ".join(f"{method} {', '.join(map(str, one))}" for method, one in several.items())
    return (
        f"Seeds are not the same: {told}. A difference between these holds the luck of other "
        "trainings, too: compare runs of the same seeds."
    )


def results_table(
    rows: Iterable[MetricRow],
    *,
    columns: Sequence[tuple[str, str]] | None = None,
    title: str | None = None,
) -> "Table":
    """Return the results as a rich table: value, below it the interval and the oracle's share.

    Below the tokens stand those a second, where there are any; below the median milliseconds their
    95th percentile; below the seconds users a second.
    """
    from rich.table import Table
    from rich.text import Text

    rows = list(rows)
    columns = columns or usual_columns(rows)
    lines = summarise(rows, columns)
    best = _best(lines, len(columns))
    has_oracle = any(cell and cell.oracle_share for line in lines for cell in line.cells)
    captions = ["ms: median, p95 of one user at a time; /s: tokens, users a second in batches"]
    if has_oracle:
        captions.append("per cent: share of what the oracle reaches")
    if uneven := uneven_seeds(rows):
        captions.append(uneven)
    table = Table(
        title=title,
        caption="\n".join(captions),
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),  # narrow: with intervals it just fits 80 columns
        header_style="bold dim",
        title_justify="left",
    )
    table.add_column("method", no_wrap=True)
    for protocol, metric in columns:
        heading = f"{metric_title(metric)}\n{protocol_title(protocol)}"
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("tokens\n/user", "ms\np95", "sec.\nusers"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in lines:
        told = [_seeds(line)] if line.num_seeds > 1 else []
        told += [line.trained_on] if line.trained_on != "train" else []
        row = [Text("\n").join([Text(line.method), *(Text(one, style="dim") for one in told)])]
        for i, cell in enumerate(line.cells):
            if cell is None:
                row.append(Text("-", style="dim"))
                continue
            value = Text(short(cell.value), style="bold" if line.method in best[i] else "")
            below = [Text(text, style="dim") for text in _below(cell)]
            row.append(Text("\n").join([value, *below]))
        speed = line.tokens_per_second
        for value, below in (
            (line.tokens, "" if speed is None else _rate(speed)),
            (line.latency_ms, _number(line.latency_p95_ms)),
            (line.seconds, _rate(line.users_per_second)),
        ):
            shown = [Text(_number(value)), *([Text(below, style="dim")] if below else [])]
            row.append(Text("\n").join(shown))
        table.add_row(*row)
    return table


def results_markdown(
    rows: Iterable[MetricRow], *, columns: Sequence[tuple[str, str]] | None = None
) -> str:
    """Return the results as a Markdown table, one line a method."""
    rows = list(rows)
    columns = columns or usual_columns(rows)
    headings = [f"{metric_title(metric)} {protocol}" for protocol, metric in columns]
    headings = ["method", "trained on", *headings, "tokens", "ms/user", "p95", "seconds", "users/s"]
    text = [
        "| " + " | ".join(headings) + " |",
        "| --- | --- |" + " --: |" * (len(headings) - 2),
    ]
    for line in summarise(rows, columns):
        cells = [
            "-" if cell is None else f"{short(cell.value)} ({', '.join(_below(cell))})"
            for cell in line.cells
        ]
        name = line.method + (f" ({_seeds(line)})" if line.num_seeds > 1 else "")
        values = (line.tokens, line.latency_ms, line.latency_p95_ms, line.seconds)
        costs = [*map(_number, values), _number(line.users_per_second)]
        text.append("| " + " | ".join([in_table(name), line.trained_on, *cells, *costs]) + " |")
    if "oracle" in [line.method for line in summarise(rows, columns)]:
        text.append("\nPer cent: share of what the oracle reaches.")
    if uneven := uneven_seeds(rows):
        text.append(f"\n{uneven}")
    return "\n".join(text) + "\n"


COST_HEADINGS = ("p50 ms", "p95 ms", "users/s", "tokens/s")
"""Of ``cost_cells``."""


def cost_cells(line: MethodLine) -> list[str]:
    """Return what answering costs, a cell for each of ``COST_HEADINGS``; a dash where unknown.

    Milliseconds of one user asked alone; users a second in batches, and tokens in the same time,
    of methods that write any.
    """
    rate, written = line.users_per_second, line.tokens_per_second
    return [
        _number(line.latency_ms),
        _number(line.latency_p95_ms),
        "-" if rate is None else _number(rate) if rate < 10 else f"{rate:,.0f}",
        "-" if written is None else f"{written:,.0f}",
    ]


def in_table(name: str) -> str:
    """Return a name for a cell of a Markdown table, where a bar would end the cell."""
    return name.replace("|", "\\|")


def _cell(
    group: Sequence[MetricRow], oracle: Sequence[MetricRow], protocol: str, metric: str
) -> Cell | None:
    found = [row for row in group if (row.protocol, row.metric) == (protocol, metric)]
    if not found:
        return None
    value = float(np.mean([row.value for row in found]))
    known = _mean(oracle, protocol, metric)
    alone = found[0] if len(found) == 1 else None
    return Cell(
        value=value,
        low=alone.ci_low if alone else None,
        high=alone.ci_high if alone else None,
        seed_sd=None if alone else float(np.std([row.value for row in found], ddof=1)),
        oracle_share=value / known if known and group[0].method != "oracle" else None,
    )


def _mean(group: Sequence[MetricRow], protocol: str, metric: str) -> float | None:
    values = [row.value for row in group if (row.protocol, row.metric) == (protocol, metric)]
    return float(np.mean(values)) if values else None


def _best(lines: Sequence[MethodLine], num_columns: int) -> list[set[str]]:
    """Return for each column the method with the highest value; the oracle does not compete."""
    best: list[set[str]] = []
    for i in range(num_columns):
        values = {
            line.method: cell.value
            for line in lines
            if (cell := line.cells[i]) is not None and line.method != "oracle"
        }
        top = max(values.values(), default=None)
        best.append({method for method, value in values.items() if value == top})
    return best


def _below(cell: Cell) -> list[str]:
    """Return what stands under a value: its interval or spread, and the share of the oracle."""
    parts = []
    if cell.low is not None and cell.high is not None:
        parts.append(f"{short(cell.low, 3)}-{short(cell.high, 3)}")
    elif cell.seed_sd is not None:
        parts.append(f"±{short(cell.seed_sd)}")
    if cell.oracle_share is not None:
        parts.append(f"{cell.oracle_share:.0%}")
    return parts


def _seeds(line: MethodLine) -> str:
    return f"{line.num_seeds} seeds"


def metric_title(metric: str) -> str:
    """Return HR@10 for ``hit@10``, as papers print it."""
    kind, _, cutoff = metric.partition("@")
    return f"{_TITLES.get(kind, kind)}@{cutoff}"


def protocol_title(protocol: str) -> str:
    """Return a protocol's word, short enough for a column."""
    return _MASKS.get(protocol) or protocol.replace("candidates-", "1 of ")


def short(value: float, digits: int = 4) -> str:
    """Return .1234 for 0.1234 and 1.000 for 1, equally wide, for values from 0 to 10."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text[:-1]


def _rate(value: float | None) -> str:
    """Return users or tokens a second, in thousands from 10,000 on."""
    if value is None:
        return "-"
    return f"{value / 1000:.0f}k/s" if value >= 10_000 else f"{_number(value)}/s"


def _number(value: float | None) -> str:
    """Return a cost in at most two meaningful digits below 100, and no more than hundredths."""
    if value is None:
        return "-"
    if 0 < value < 0.01:
        return "<.01"
    if 0 < value < 1:
        return short(value, 2)
    return f"{value:.1f}" if 0 < value < 10 else f"{value:.0f}"

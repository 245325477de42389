"""The report of one run: hands what the views say to the template."""

from pathlib import Path

from reasonrec.evaluation.report import views
from reasonrec.evaluation.report.chain_drawing import draw_chains
from reasonrec.evaluation.report.page import (
    best_values,
    colours_of,
    cost_chart,
    render,
    write_page,
)
from reasonrec.evaluation.report.records import RunRecords
from reasonrec.evaluation.table import usual_columns

MAX_THOUGHT_CHARS = 1500


def write_report(run: RunRecords, out: Path) -> Path:
    """Return ``out``, written as one HTML file that needs no network.

    Raises:
        ReasonrecError: The file cannot be written.
    """
    return write_page(render_report(run), out)


def render_report(run: RunRecords) -> str:
    """Return the page."""
    lines = views.lines_of(run)
    columns = usual_columns(run.metrics)
    column = [metric for _, metric in columns].index(views.CHOSEN)
    points = views.cost_points(lines, column)
    up, down = views.moved(run)
    return render(
        "report.html",
        ["report.js"],
        run=run,
        dataset=run.dataset,
        statistics=run.dataset.statistics,
        part=views.part_of(run.metrics),
        num_measured=views.num_measured(run.metrics),
        lines=lines,
        columns=columns,
        column=column,
        best=best_values(lines, len(columns)),
        versus=views.versus(run),
        simple=views.best_simple(run.metrics),
        thinker=views.thinking_method(run.metrics),
        extra_tokens=_difference(run, "tokens"),
        extra_ms=_difference(run, "latency-p50-ms"),
        forest=views.forest(lines, column),
        by_history=views.breakdown(run, "history"),
        by_popularity=views.breakdown(run, "popularity"),
        points=cost_chart(points),
        panels=views.panels(run),
        drawings=[draw_chains(answer.chains) for answer in run.recommendations],
        up=up,
        down=down,
        history_bars=views.history_bars(run),
        rejected_bars=views.rejected_bars(run),
        settings=views.flattened(run.config) if run.config else [],
        commands=views.reproduce(run),
        colour=colours_of([line.method for line in lines]),
        max_thought=MAX_THOUGHT_CHARS,
    )


def _difference(run: RunRecords, cost: str) -> float | None:
    method = views.thinking_method(run.metrics)
    if method is None:
        return None
    mine = views.cost(run.metrics, method, cost)
    other = views.cost(run.metrics, views.REFERENCE, cost)
    return None if mine is None or other is None else mine - other

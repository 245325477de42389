"""Writes the page: templates, colours, formats. The templates escape everything from a run."""

import base64
import hashlib
import math
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from reasonrec.errors import ReasonrecError
from reasonrec.evaluation.report import views
from reasonrec.evaluation.report.chain_drawing import draw_chains, shorten
from reasonrec.evaluation.report.records import RunRecords
from reasonrec.evaluation.report.scales import log_scale, nice_scale
from reasonrec.evaluation.table import COLUMNS, MethodLine, metric_title, protocol_title

COLOURS = {
    "no-think": "blue",
    "think-sft": "amber",
    "r2rec-sft": "amber",
    "think-recpo": "green",
    "r2rec-rl": "green",
    "oracle": "stone",
    "popularity": "sand",
    "recent-popularity": "clay",
    "item-knn": "plum",
    "follow-counter": "brick",
}
"""One colour for each method in every chart; methods not named here share the others in turn."""
OTHER_COLOURS = ("teal", "rose", "olive", "violet")
MAX_THOUGHT_CHARS = 1500


def write_report(run: RunRecords, out: Path) -> Path:
    """Return ``out``, written as one HTML file that needs no network.

    Raises:
        ReasonrecError: The file cannot be written.
    """
    out = Path(out)
    page = render_report(run)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(out.name + ".partial")
        partial.write_bytes(page.encode("utf-8", errors="replace"))
        partial.replace(out)
    except OSError as error:
        raise ReasonrecError(f"the report must be writable; {out}: {error.strerror}") from None
    return out


def render_report(run: RunRecords) -> str:
    """Return the page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reasonrec.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "number": _number, "place": _place, "tick": _tick}
    environment.filters["signed"] = _signed
    environment.filters |= {"short": shorten, "widest": _widest}
    environment.filters |= {"metric_title": metric_title, "protocol_title": protocol_title}
    environment.globals["zip"] = zip
    lines = views.lines_of(run)
    column = COLUMNS.index(views.CHOSEN)
    points = views.cost_points(lines, column)
    up, down = views.moved(run)
    script = _template_text("report.js")
    return environment.get_template("report.html").render(
        run=run,
        dataset=run.dataset,
        statistics=run.dataset.statistics,
        lines=lines,
        columns=COLUMNS,
        column=column,
        best=_best(lines),
        versus=views.versus(run),
        simple=views.best_simple(run.metrics),
        thinker=views.thinking_method(run.metrics),
        extra_tokens=_difference(run, "tokens"),
        extra_ms=_difference(run, "latency-p50-ms"),
        forest=views.forest(lines, column),
        by_history=views.breakdown(run, "history"),
        by_popularity=views.breakdown(run, "popularity"),
        points=_placed_labels(points),
        panels=views.panels(run),
        drawings=[draw_chains(answer.chains) for answer in run.recommendations],
        up=up,
        down=down,
        history_bars=views.history_bars(run),
        rejected_bars=views.rejected_bars(run),
        settings=views.flattened(run.config) if run.config else [],
        command=views.reproduce(run),
        colour=_colours([line.method for line in lines]),
        max_thought=MAX_THOUGHT_CHARS,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=_template_text("report.css"),
        written_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _template_text(name: str) -> str:
    return (files("reasonrec.evaluation.report") / "templates" / name).read_text(encoding="utf-8")


def _colours(methods: Sequence[str]) -> Callable[[str], str]:
    others = [method for method in dict.fromkeys(methods) if method not in COLOURS]
    chosen = COLOURS | {m: OTHER_COLOURS[n % len(OTHER_COLOURS)] for n, m in enumerate(others)}
    return lambda method: f"--c:var(--{chosen.get(method, 'stone')})"


def _best(lines: Sequence[MethodLine]) -> list[float]:
    """Return the highest value of each column; the oracle does not compete."""
    return [
        max(
            (c.value for line in lines if line.method != "oracle" and (c := line.cells[i])),
            default=math.nan,
        )
        for i in range(len(COLUMNS))
    ]


def _difference(run: RunRecords, cost: str) -> float | None:
    method = views.thinking_method(run.metrics)
    if method is None:
        return None
    mine = views.cost(run.metrics, method, cost)
    other = views.cost(run.metrics, views.REFERENCE, cost)
    return None if mine is None or other is None else mine - other


def _placed_labels(points: Sequence[views.CostPoint]) -> dict[str, Any] | None:
    """Return the accuracy-against-cost chart with labels moved apart where they would overlap."""
    if not points:
        return None
    times = [point.latency_ms for point in points]
    x = log_scale(min(times), max(times))
    y = nice_scale(0.0, max(*(point.value for point in points), 1e-3), num_ticks=4)
    placed: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda p: -p.value):
        left, top = x.percent(point.latency_ms), 100 - y.percent(point.value)
        label_top = top
        for other in placed:
            if abs(other["left"] - left) < 45 and label_top - other["label_top"] < 7.5:
                label_top = max(label_top, other["label_top"] + 7.5)
        placed.append({"point": point, "left": left, "top": top, "label_top": label_top})
    return {"x": x, "y": y, "placed": placed}


def _score(value: float) -> str:
    """Return an accuracy with four decimals."""
    return f"{value:.4f}"


def _signed(value: float) -> str:
    """Return a difference with its sign; the minus is as wide as the plus."""
    return f"{value:+.4f}".replace("-", "−")


def _number(value: float | None) -> str:
    """Return a count or cost with about three digits that say something."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:.4g}"


def _widest(ticks: Sequence[float]) -> str:
    """Return the longest label of an axis, which makes room for all of them."""
    return max(map(_tick, ticks), key=len)


def _place(rank: float) -> str:
    """Return a rank; half places come from ties."""
    return f"{rank:,.0f}" if rank == int(rank) else f"{rank:,.1f}"

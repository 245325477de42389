"""What every page shares: templates, style, colours, formats, and how a file is written.

The templates escape everything that comes from a run. A page is one file that loads nothing, and
its policy lets no script run but its own.
"""

import base64
import hashlib
import math
import shlex
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from reasonrec.errors import ReasonrecError
from reasonrec.evaluation.report import views
from reasonrec.evaluation.report.chain_drawing import shorten
from reasonrec.evaluation.report.scales import log_scale, nice_scale
from reasonrec.evaluation.table import MethodLine, metric_title, protocol_title

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
CHAR_PERCENT, LABEL_PERCENT = 0.9, 6.5
"""Width of a letter and height of a label in the cost chart, in percent of its sides."""
OTHER_COLOURS = ("teal", "rose", "olive", "violet")


def render(template: str, scripts: Sequence[str], **values: Any) -> str:
    """Return a page made of a template, the common style and scripts, which run in their order."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reasonrec.evaluation.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "number": _number, "place": _place, "tick": _tick}
    environment.filters |= {"signed": _signed, "quoted": _quoted}
    environment.filters |= {"short": shorten, "widest": _widest}
    environment.filters |= {"metric_title": metric_title, "protocol_title": protocol_title}
    environment.globals["zip"] = zip
    code = "".join(map(_template_text, scripts))
    return environment.get_template(template).render(
        script=code,
        script_hash=base64.b64encode(hashlib.sha256(code.encode()).digest()).decode(),
        style=_template_text("report.css"),
        written_at=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        **values,
    )


def write_page(page: str, out: Path) -> Path:
    """Return ``out``, written whole or not at all.

    Raises:
        ReasonrecError: The file cannot be written.
    """
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(out.name + ".partial")
        partial.write_bytes(page.encode("utf-8", errors="replace"))
        partial.replace(out)
    except OSError as error:
        raise ReasonrecError(f"the report must be writable; {out}: {error.strerror}") from None
    return out


def colours_of(methods: Sequence[str]) -> Callable[[str], str]:
    """Return the style that gives each method its colour, the same in every chart."""
    others = [method for method in dict.fromkeys(methods) if method not in COLOURS]
    chosen = COLOURS | {m: OTHER_COLOURS[n % len(OTHER_COLOURS)] for n, m in enumerate(others)}
    return lambda method: f"--c:var(--{chosen.get(method, 'stone')})"


def best_values(lines: Sequence[MethodLine], num_columns: int) -> list[float]:
    """Return the highest value of each column; the oracle does not compete."""
    return [
        max(
            (c.value for line in lines if line.method != "oracle" and (c := line.cells[i])),
            default=math.nan,
        )
        for i in range(num_columns)
    ]


def cost_chart(points: Sequence[views.CostPoint]) -> dict[str, Any] | None:
    """Return the accuracy-against-cost chart with labels moved apart where they would overlap."""
    if not points:
        return None
    times = [point.latency_ms for point in points]
    x = log_scale(min(times), max(times))
    y = nice_scale(0.0, max(*(point.value for point in points), 1e-3), num_ticks=4)
    placed: list[dict[str, Any]] = []
    marks = [(x.percent(p.latency_ms), 100 - y.percent(p.value)) for p in points]
    taken = [(left - 1, left + 1, top) for left, top in marks]
    for point in sorted(points, key=lambda p: -p.value):
        left, top = x.percent(point.latency_ms), 100 - y.percent(point.value)
        width = CHAR_PERCENT * (len(point.method) + (6 if point.tokens else 0))
        start = left - 1.5 - width if left > 65 else left + 1.5
        # straight beside its mark where that is free, else as little above or below as it must
        steps = sorted((n * 1.5 for n in range(-20, 41)), key=lambda step: (abs(step), -step))
        free = (
            top + step
            for step in steps
            if 0 <= top + step <= 100
            and not any(
                start < to and begin < start + width and abs(top + step - at) < LABEL_PERCENT
                for begin, to, at in taken
                if step or (begin, to, at) != (left - 1, left + 1, top)
            )
        )
        label_top = next(free, top)
        taken.append((start, start + width, label_top))
        placed.append({"point": point, "left": left, "top": top, "label_top": label_top})
    # what no other method beats in both: each point higher than all that are quicker
    front: list[tuple[float, float]] = []
    for one in sorted(placed, key=lambda p: (p["left"], p["top"])):
        if not front or one["top"] < front[-1][1]:
            front.append((one["left"], one["top"]))
    return {"x": x, "y": y, "placed": placed, "front": front}


def _template_text(name: str) -> str:
    return (files("reasonrec.evaluation.report") / "templates" / name).read_text(encoding="utf-8")


def _score(value: float) -> str:
    """Return an accuracy with four decimals."""
    return f"{value:.4f}"


def _signed(value: float) -> str:
    """Return a difference with its sign; the minus is as wide as the plus."""
    return f"{value:+.4f}".replace("-", "−")


def _quoted(path: Path) -> str:
    """Return a path as a shell reads it."""
    return shlex.quote(str(path))


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
    """Return a rank; half places come from ties, and a target that was kept out has none."""
    if rank == float("inf"):
        return "–"
    return f"{rank:,.0f}" if rank == int(rank) else f"{rank:,.1f}"

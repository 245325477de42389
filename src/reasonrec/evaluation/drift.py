"""How far numbers that were made again lie from those of the passport, and how far they may."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reasonrec.evaluation.passport import RunPassport
from reasonrec.evaluation.protocol import COST, MetricRow

if TYPE_CHECKING:
    from rich.table import Table

EQUAL, WITHIN, DRIFTED, CLOCK = "equal", "within noise", "drifted", "clock"
TOKEN_TOLERANCE = 0.05
"""Share by which thoughts may differ in length on another machine; tokens have no interval."""
_KEYS = ("protocol", "method", "metric", "seed", "trained_on")
_DIFFERENCE = ("protocol", "method", "metric", "reference")
NUM_SHOWN = 30


@dataclass(frozen=True)
class Drift:
    """One number of the passport, and what came out now."""

    where: str
    """Run and method, protocol, metric; or the file of the data."""
    was: float | str | None
    """None: not in the passport."""
    now: float | str | None
    """None: did not come out."""
    distance: float
    """Largest of the distances of value and interval ends."""
    tolerance: float
    """0: they must be equal."""
    verdict: str
    """``equal``, ``within noise``, ``drifted``; ``clock`` for what a clock measured, never held."""


def row_drifts(
    run: RunPassport, rows: Sequence[MetricRow], *, is_exact: bool, tolerance: float | None
) -> list[Drift]:
    """Return one drift for each metric row of the passport or of the new run.

    Args:
        is_exact: Machine, versions and threads are those of the passport, so that every value and
            every end of an interval must be equal.
        tolerance: Otherwise, how far these may move; if None, half the width of the row's interval.
            Numbers of queries must be equal in any case.
    """
    was = {_key(asdict(row), _KEYS): row for row in run.rows}
    now = {_key(asdict(row), _KEYS): row for row in rows}
    found = []
    for key in dict.fromkeys((*was, *now)):
        old, new = was.get(key), now.get(key)
        allowed = 0.0 if is_exact or old is None else _allowed(old, tolerance)
        is_clock = key[0] == COST and key[2] != "tokens"
        found.append(
            _drift(
                f"{run.name}: {key[1]}, {key[2]} {key[0]}, seed {key[3]}",
                None if old is None else [old.value, old.ci_low, old.ci_high],
                None if new is None else [new.value, new.ci_low, new.ci_high],
                allowed,
                same=old is not None and new is not None and (is_clock or old.n == new.n),
                is_clock=is_clock,
            )
        )
    return found


def difference_drifts(
    was: Sequence[Mapping[str, Any]],
    now: Sequence[Mapping[str, Any]],
    *,
    is_exact: bool,
    tolerance: float | None,
) -> list[Drift]:
    """Return one drift for each tested difference of a comparison; p-values are not held."""
    old = {_key(row, _DIFFERENCE): row for row in was}
    new = {_key(row, _DIFFERENCE): row for row in now}
    found = []
    for key in dict.fromkeys((*old, *new)):
        one, other = old.get(key), new.get(key)
        allowed = 0.0
        if one is not None and not is_exact:
            width = one["ci_high"] - one["ci_low"]
            allowed = width / 2 if tolerance is None else tolerance
        found.append(
            _drift(
                f"comparison: {key[1]} - {key[3]}, {key[2]} {key[0]}",
                None if one is None else [one["difference"], one["ci_low"], one["ci_high"]],
                None if other is None else [other["difference"], other["ci_low"], other["ci_high"]],
                allowed,
                same=one is not None and other is not None and one["n"] == other["n"],
            )
        )
    return found


def data_drifts(
    name: str, was: Mapping[str, str], now: Mapping[str, str], *, is_exact: bool, what: str
) -> list[Drift]:
    """Return one drift for each file of the data; written by other versions its bytes may differ.

    Args:
        what: ``raw`` files must be equal anywhere; ``prepared`` ones only where ``is_exact``.
    """
    found = []
    for file in dict.fromkeys((*was, *now)):
        old, new = was.get(file), now.get(file)
        verdict = EQUAL if old == new else DRIFTED
        if verdict == DRIFTED and what == "prepared" and old and new and not is_exact:
            verdict = WITHIN
        found.append(
            Drift(
                f"{name}: {what} {file}",
                None if old is None else old[:12],
                None if new is None else new[:12],
                float(old != new),
                0.0,
                verdict,
            )
        )
    return found


def drift_table(drifts: Sequence[Drift]) -> "Table":
    """Return the numbers that are not equal, the furthest beyond their tolerance first."""
    from rich.table import Table

    moved = [one for one in drifts if one.verdict not in (EQUAL, CLOCK)]
    moved.sort(key=lambda one: (one.verdict != DRIFTED, one.tolerance - one.distance))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold dim", title_justify="left")
    table.add_column("number", overflow="fold")
    for heading in ("was", "is", "moved", "may move", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in moved[:NUM_SHOWN]:
        style = "bold red" if one.verdict == DRIFTED else ""
        table.add_row(
            one.where,
            _shown(one.was),
            _shown(one.now),
            _shown(one.distance),
            _shown(one.tolerance),
            one.verdict,
            style=style,
        )
    if len(moved) > NUM_SHOWN:
        table.caption = f"and {len(moved) - NUM_SHOWN} more"
    return table


def _drift(
    where: str,
    was: Sequence[float | None] | None,
    now: Sequence[float | None] | None,
    tolerance: float,
    *,
    same: bool,
    is_clock: bool = False,
) -> Drift:
    """Return the drift of a value and its interval; ``same``: the rest of the row is alike."""
    first = None if was is None else was[0]
    second = None if now is None else now[0]
    if was is None or now is None:
        return Drift(where, first, second, float("inf"), tolerance, CLOCK if is_clock else DRIFTED)
    distance = 0.0
    for old, new in zip(was, now):
        if (old is None) != (new is None):
            same = False
        elif old is not None and new is not None:
            distance = max(distance, abs(new - old))
    verdict = WITHIN if distance else EQUAL
    if is_clock:
        verdict = CLOCK
    elif distance > tolerance or not same:
        verdict = DRIFTED
    return Drift(where, first, second, distance, tolerance, verdict)


def _allowed(row: MetricRow, tolerance: float | None) -> float:
    if row.protocol == COST:
        return TOKEN_TOLERANCE * row.value
    if tolerance is not None:
        return tolerance
    return 0.0 if row.ci_low is None or row.ci_high is None else (row.ci_high - row.ci_low) / 2


def _key(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def _shown(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.6g}"

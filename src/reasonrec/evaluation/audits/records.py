"""One audit is one row: a number, what it means, and what limit it is held against."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from reasonrec.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

Verdict = Literal["pass", "warn", "fail"]
VERDICTS: tuple[Verdict, ...] = ("fail", "warn", "pass")
"""In the order in which they are shown."""
_STYLES: dict[Verdict, str] = {"pass": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Audit:
    """One number that could make a result look better than it is."""

    audit: str
    """A fixed word of ``docs/audits.md``."""
    value: float | None
    """None where the question cannot be asked of this data set; ``meaning`` says why."""
    meaning: str
    limit: str
    """What decides the verdict, in words."""
    verdict: Verdict
    n: int
    """What the value is a share or a mean of."""


@dataclass(frozen=True)
class SliceRow:
    """One metric of one method on one part of the queries."""

    method: str
    seed: int
    slice: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    """Queries; users are resampled for the interval."""


@dataclass(frozen=True)
class Audits:
    """Everything that ``audits.json`` holds."""

    dataset: str
    split: str
    rows: tuple[Audit, ...]
    slices: tuple[SliceRow, ...] = ()
    """Results of an evaluation on cold, rare and lately seen items and cold users, apart."""

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all rows."""
        found = {row.verdict for row in self.rows}
        return "fail" if "fail" in found else "warn" if "warn" in found else "pass"


def judged(
    audit: str,
    value: float | None,
    meaning: str,
    *,
    n: int,
    warn_above: float | None = None,
    fail_above: float | None = None,
    fail_below: float | None = None,
) -> Audit:
    """Return a row whose verdict follows from its stated limits; without a value it is a warning.

    No limit given means that the number is only reported.
    """
    limits = [
        f"{word} {number:g}"
        for word, number in (
            ("warn above", warn_above), ("fail above", fail_above), ("fail below", fail_below),
        )
        if number is not None
    ]  # fmt: skip
    verdict: Verdict = "pass"
    if value is None:
        verdict = "warn"
    elif (fail_above is not None and value > fail_above) or (
        fail_below is not None and value < fail_below
    ):
        verdict = "fail"
    elif warn_above is not None and value > warn_above:
        verdict = "warn"
    return Audit(audit, value, meaning, ", ".join(limits) or "reported only", verdict, n)


def write_audits_file(path: Path, audits: Audits) -> None:
    """Write ``audits.json``."""
    Path(path).write_text(
        json.dumps(asdict(audits), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_audits(folder: Path) -> Audits:
    """Return the audits of a folder that ``reasonrec audit`` wrote.

    Raises:
        DataError: The file is missing, damaged or of another layout.
    """
    path = Path(folder) / "audits.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Audits(
            dataset=fields["dataset"],
            split=fields["split"],
            rows=tuple(Audit(**row) for row in fields["rows"]),
            slices=tuple(SliceRow(**row) for row in fields["slices"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must be audits of `reasonrec audit`; {error}") from None


def audit_rows(audits: Audits) -> list[dict[str, Any]]:
    """Return the audits as plain rows for a report: what failed first, then what warns."""
    return [asdict(row) for row in in_order(audits.rows)]


def in_order(rows: Sequence[Audit]) -> list[Audit]:
    """Return audits as they are shown: what failed first, then what warns."""
    return sorted(rows, key=lambda row: VERDICTS.index(row.verdict))


def audits_table(audits: Audits) -> "Table":
    """Return the audits as a rich table: what failed first, then what warns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{audits.dataset}, {audits.split}: {audits.verdict}",
        box=None,
        padding=(0, 1, 0, 0),
        header_style="bold dim",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    table.add_column("audit", overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("limit", no_wrap=True)
    for row in in_order(audits.rows):
        table.add_row(
            Text(row.verdict, style=_STYLES[row.verdict]),
            Text(f"{row.audit}\n") + Text(row.meaning, style="dim"),
            shown(row.value),
            Text(row.limit.replace(", ", "\n"), style="dim"),
        )
    return table


def audits_markdown(audits: Audits) -> str:
    """Return the audits, and results on slices where there are any, as Markdown."""
    lines = [
        f"# Audits of {audits.dataset}, {audits.split}",
        "",
        "| verdict | audit | value | limit | meaning | n |",
        "| --- | --- | --: | --- | --- | --: |",
        *(
            f"| {row.verdict} | {row.audit} | {shown(row.value)} | {row.limit} | {row.meaning} "
            f"| {row.n:,} |"
            for row in audits.rows
        ),
    ]
    if audits.slices:
        lines += [
            "",
            "| slice | method | metric | value | 95 % interval | n |",
            "| --- | --- | --- | --: | --: | --: |",
            *(_slice_line(row) for row in audits.slices),
        ]
    return "\n".join(lines) + "\n"


def shown(value: float | None) -> str:
    """Return a number as the tables print it."""
    return "-" if value is None else f"{value:.4f}".rstrip("0").rstrip(".")


def _slice_line(row: SliceRow) -> str:
    return (
        f"| {row.slice} | {row.method} (seed {row.seed}) | {row.metric} | {row.value:.4f} "
        f"| {row.ci_low:.4f} to {row.ci_high:.4f} | {row.n:,} |"
    )


def share(truths: np.ndarray) -> float | None:
    """Return the mean of truths, None of none."""
    return float(truths.mean()) if len(truths) else None

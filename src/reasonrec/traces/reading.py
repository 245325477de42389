"""Reasoned traces as people read them: lines for a terminal, one HTML file without scripts."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from reasonrec.errors import ReasonrecError

MAX_HTML_TRACES = 2000
"""Most traces of one HTML file; a browser has to hold them."""


def trace_lines(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield one trace line by line: the question, its chains, each stage, answer and fate."""
    yield f"User {row['user_id']}: {heading(row)}"
    for chain in row["chains"]:
        yield f"  {chain['neighbour']}  {chain_line(chain)}"
    for number, steps in enumerate(row["steps"], 1):
        for place, step in enumerate(steps):
            yield f"  {f'{number}.' if place == 0 else '  '} {step}"
    if row["together"]:
        yield f"  = {row['together']}"
    fate = "kept" if row["kept"] else f"not kept: {row['reason']}"
    answer = (row["answer"] or " none").strip()
    yield f"  answer {answer}, true {row['label']}; {row['run']} run, {fate}"


def heading(row: Mapping[str, Any]) -> str:
    """Return the question in words: the last sentence of the student's prompt."""
    return str(row["prompt"]).rpartition("Question: ")[2]


def chain_line(chain: Mapping[str, Any]) -> str:
    """Return one chain with the ratings on its edges; ``?`` marks the edge that is asked about."""
    last = {"candidate": "?", "history": _rating(chain["own_second"])}.get(chain["closes_on"])
    closing = f" -{last}- user" if last is not None else ""
    return (
        f"user -{_rating(chain['own_first'])}- [{chain['first']}] "
        f"-{_rating(chain['neighbour_first'])}- {chain['neighbour']} ({chain['neighbour_id']}) "
        f"-{_rating(chain['neighbour_second'])}- [{chain['second']}]{closing}"
    )


def write_html(
    table: pl.DataFrame, statistics: Mapping[str, Any], out: Path, *, folder: str, page_size: int
) -> int:
    """Write the traces as pages of one file that needs no network; return how many it holds.

    Raises:
        ReasonrecError: The file cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("reasonrec.traces", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [
        row
        | {
            "heading": heading(row),
            "chains": [chain | {"line": chain_line(chain)} for chain in row["chains"]],
        }
        for row in table.head(MAX_HTML_TRACES).iter_rows(named=True)
    ]
    page = environment.get_template("traces.html").render(
        pages=[rows[i : i + page_size] for i in range(0, len(rows), page_size)],
        folder=folder,
        statistics=statistics,
        num_shown=len(rows),
        num_traces=table.height,
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(page.encode("utf-8", errors="replace"))
    except OSError as error:
        raise ReasonrecError(f"the page must be writable; {out}: {error.strerror}") from None
    return len(rows)


def _rating(rating: float | None) -> str:
    return "took" if rating is None else f"{rating:g}"

"""``reasonrec traces``: write thoughts from graph evidence, or read them page by page."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from reasonrec.cli.numbers import Count, Seed
from reasonrec.errors import ConfigError
from reasonrec.traces.config import TracesConfig
from reasonrec.traces.reasoned_config import ReasonedTracesConfig, Task

if TYPE_CHECKING:
    import polars as pl

What = Literal["look-ups", "rated", "likes", "show"]
Page = Annotated[int, Parameter(validator=Number(gte=1))]


def traces(
    what: What = "look-ups",
    folder: Path | None = None,
    /,
    *,
    data: Path | None = None,
    out: Path | None = None,
    seed: Seed = 0,
    show: Count = 3,
    page: Page = 1,
    page_size: Page = 5,
    html: Path | None = None,
    json: bool = False,
    settings: Annotated[TracesConfig | None, Parameter(name="*")] = None,
    reasoned: Annotated[ReasonedTracesConfig | None, Parameter(name="*")] = None,
) -> None:
    """Write thoughts for a sample of training events, or read what was written.

    look-ups writes thoughts that ask the graph what people took next. rated and likes lead a
    teacher along interaction chains, stage by stage, to a rating or to one of 20 candidates, and
    keep what is right, grounded and does not show the answer. show reads such traces, page by page.

    Examples:
        reasonrec traces --data runs/shop --out runs/traces
        reasonrec traces --data runs/shop --out runs/short --thought.num-lookups 1
        reasonrec traces rated --data runs/ml --out runs/rated --num-questions 5000
        reasonrec traces likes --data runs/ml --out runs/likes --teacher.kind endpoint
            --teacher.base-url http://localhost:8000/v1 --teacher.model NAME --limits.max-cost 2
        reasonrec traces show runs/rated --page 2
        reasonrec traces show runs/rated --html traces.html

    Args:
        what: look-ups, rated, likes, or show.
        folder: Folder to show.
        data: Folder that `reasonrec prepare` wrote.
        out: Folder to write. The same command continues an unfinished one and pays nothing twice.
        seed: Draws the events and what is sampled.
        show: Thoughts to print after writing.
        page: Page to show, from 1.
        page_size: Traces on a page.
        html: File to write all traces to, instead of showing a page.
        json: Print the statistics as JSON instead.
    """
    if (what == "show") != (folder is not None):
        raise ConfigError("show, and only show, takes a folder: reasonrec traces show FOLDER")
    if folder is not None:
        _show(folder, page, page_size, html, json)
        return
    if data is None or out is None:
        raise ConfigError("traces needs --data and --out")
    if what == "rated" or what == "likes":
        _write_reasoned(what, data, out, reasoned or ReasonedTracesConfig(), seed, show, json)
    else:
        _write_look_ups(data, out, settings or TracesConfig(), seed, show, json)


def _write_look_ups(
    data: Path, out: Path, settings: TracesConfig, seed: int, show: int, json: bool
) -> None:
    from rich.console import Console
    from rich.text import Text

    from reasonrec.data.dataset import Dataset
    from reasonrec.models.backbone import build_writer
    from reasonrec.models.config import TinyConfig
    from reasonrec.traces.stage import write_traces

    dataset = Dataset.load(data)
    writer = build_writer(dataset.catalogue, TinyConfig())
    table = write_traces(dataset, out, settings, writer, seed=seed)
    statistics = json_format.loads((out / "statistics.json").read_text(encoding="utf-8"))
    if json:
        print(json_format.dumps(statistics))
        return
    console = Console(highlight=False)
    for row in table.sample(min(show, table.height), seed=seed).iter_rows(named=True):
        console.print(Text(f"\n{row['user_id']}  ", style="bold") + Text(row["thought"]))
        console.print(Text(f"took next: {row['target_title']}", style="dim"))
    console.print(
        f"\n{statistics['num_thoughts']:,} thoughts, {statistics['num_kept']:,} kept, "
        f"{statistics['mean_tokens']:.1f} tokens each, the next item among the evidence in "
        f"{statistics['share_with_target_found']:.1%}\nwritten: {out}"
    )


def _write_reasoned(
    task: Task,
    data: Path,
    out: Path,
    config: ReasonedTracesConfig,
    seed: int,
    show: int,
    json: bool,
) -> None:
    from reasonrec.cli.trace_progress import trace_progress
    from reasonrec.data.dataset import Dataset
    from reasonrec.models.backbone import catalogue_titles
    from reasonrec.traces.reasoned import write_reasoned_traces
    from reasonrec.traces.store import STATISTICS
    from reasonrec.traces.teachers.choice import build_teacher

    dataset = Dataset.load(data)
    with trace_progress() as (on_progress, on_wait):
        table = write_reasoned_traces(
            dataset,
            catalogue_titles(dataset.catalogue),
            out,
            config,
            lambda: build_teacher(config, out, seed=seed, on_wait=on_wait),
            task=task,
            seed=seed,
            on_progress=on_progress,
        )
    statistics = json_format.loads((out / STATISTICS).read_text(encoding="utf-8"))
    if json:
        print(json_format.dumps(statistics))
        return
    _print(table.sample(min(show, table.height), seed=seed))
    print(_summary(statistics))
    print(f"written: {out}")


def _show(folder: Path, page: int, page_size: int, html: Path | None, json: bool) -> None:
    from reasonrec.traces.reading import write_html
    from reasonrec.traces.store import STATISTICS, page_of, read_traces

    table = read_traces(folder)
    text = (folder / STATISTICS).read_text(encoding="utf-8")
    statistics = json_format.loads(text)
    if json:
        print(json_format.dumps(statistics))
    elif html is not None:
        count = write_html(table, statistics, html, folder=str(folder), page_size=page_size)
        print(f"{count:,} of {table.height:,} traces written: {html}")
    else:
        _print(page_of(table, page, page_size=page_size))
        print(_summary(statistics))
        print(f"page {page} of {max(1, -(-table.height // page_size))}")


def _print(table: "pl.DataFrame") -> None:
    from rich.console import Console
    from rich.text import Text

    from reasonrec.traces.reading import trace_lines

    console = Console(highlight=False)
    for row in table.iter_rows(named=True):
        heading, *lines = trace_lines(row)
        console.print(Text(heading, style="bold"))
        for line in lines:
            console.print(Text(line))
        console.print()


def _summary(statistics: dict[str, Any]) -> str:
    lines = [f"{statistics['num_kept']:,} of {statistics['num_questions']:,} traces kept"]
    for run, part in statistics["runs"].items():
        if part["num_traces"]:
            reasons = "".join(f", {name} {count}" for name, count in part["reasons"].items())
            lines.append(f"{run}: {part['num_kept']:,} of {part['num_traces']:,} kept{reasons}")
    if statistics["reply_problems"]:
        problems = ", ".join(f"{k} {v}" for k, v in statistics["reply_problems"].items())
        lines.append(f"replies that could not be used: {problems}")
    right = statistics["first_free_answer_right"]
    if right is not None:
        lines.append(f"the first free answer is right in {right:.1%}")
    tokens = statistics["prompt_tokens"] + statistics["reply_tokens"]
    if tokens:
        lines.append(f"{tokens:,} tokens, cost {statistics['cost']:.4f}")
    return "\n".join(lines)

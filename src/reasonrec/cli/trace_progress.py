"""The progress bar of teachers, with calls, tokens and cost, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reasonrec.traces.reasoned import Progress


@contextmanager
def trace_progress() -> Iterator[tuple[Callable[["Progress"], None], Callable[[str], None]]]:
    """Yield a function that takes how far a run is, and one that takes why it waits."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("traces"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    words = TextColumn("{task.fields[spent]} {task.fields[waiting]}")
    with Bars(*columns, words, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("traces", total=None, spent="", waiting="")

        def show(progress: "Progress") -> None:
            spent = f"{progress.num_calls:,} calls, {progress.num_bought_before:,} bought before"
            spent += f", {progress.tokens:,} tokens, cost {progress.cost:.4f}"
            bars.update(
                bar, completed=progress.num_done, total=progress.num_questions,
                spent=spent, waiting="",
            )  # fmt: skip

        def wait(why: str) -> None:
            bars.update(bar, waiting=why)

        yield show, wait

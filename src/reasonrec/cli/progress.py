"""A progress bar over the methods that are being measured, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def method_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (label, done, total) that draws one bar for each label."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    bars: dict[str, TaskID] = {}
    progress = Progress(console=Console(stderr=True), transient=True)

    def show(label: str, done: int, total: int) -> None:
        if not bars:  # what fails before anything is done leaves no line behind
            progress.start()
        if label not in bars:
            bars[label] = progress.add_task(label, total=total)
        progress.update(bars[label], completed=done, total=total)

    try:
        yield show
    finally:
        if bars:
            progress.stop()

"""``reasonrec reproduce``: makes the runs of a passport again and holds every number to it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from reasonrec.errors import ReasonrecError


def reproduce(
    passport: Path,
    /,
    *,
    out: Path,
    source: str | None = None,
    tolerance: Annotated[float | None, Parameter(validator=Number(gte=0))] = None,
    json: bool = False,
) -> None:
    """Make the runs of a passport again, and fail where a number drifts beyond its noise.

    On the same machine with the same versions and threads every number must be equal. Elsewhere it
    may move by half the width of its 95 % interval. Times are written down and not held.

    Examples:
        reasonrec reproduce runs/demo/passport.json --out runs/again
        reasonrec reproduce runs/compared --out runs/again --source data/ml-100k
        reasonrec reproduce runs/floor --out runs/again --tolerance 0.001

    Args:
        passport: passport.json of a demo, an evaluation or a comparison, or the folder that
            holds it.
        out: Folder of its own to write the runs and reproduction.json to; a reproduction that was
            cut short goes on there.
        source: Where the raw data lie, if no longer where the passport says.
        tolerance: How far a number may move on another machine, instead of half its interval.
        json: Print what was compared as JSON instead of a table.
    """
    from rich.console import Console

    from reasonrec.cli.progress import method_progress
    from reasonrec.evaluation.drift import EQUAL, drift_table
    from reasonrec.evaluation.passport import read_passport
    from reasonrec.methods.reproduce import reproduce as repeat

    asked = read_passport(passport)
    console, said = Console(highlight=False), Console(stderr=True, highlight=False)
    with method_progress() as progress:
        made = repeat(
            asked, out, source=source, tolerance=tolerance, progress=progress,
            announce=lambda text: said.print(f"[dim]·[/dim] {text}"),
        )  # fmt: skip
    if json:
        print((out / "reproduction.json").read_text(encoding="utf-8"), end="")
    else:
        for note in made.notes:
            console.print(f"- {note}", markup=False, soft_wrap=True)
        table = drift_table(made.drifts)
        if table.row_count:
            console.print(table)
        num_equal = sum(one.verdict == EQUAL for one in made.drifts)
        num_clocked = sum(one.verdict == "clock" for one in made.drifts)
        console.print(f"{num_equal} numbers and files are equal; {num_clocked} times not held")
        console.print(f"written: {out}")
    if made.drifted:
        worst = max(made.drifted, key=lambda one: one.distance - one.tolerance)
        raise ReasonrecError(
            f"{len(made.drifted)} of {len(made.drifts)} numbers drifted beyond the stated noise; "
            f"the worst: {worst.where}"
        )

"""``reasonrec audit``: what could make results look better than they are."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reasonrec.cli.numbers import Seed
from reasonrec.evaluation.audits.config import AuditConfig


def audit(
    source: Path,
    /,
    *,
    out: Path,
    seed: Seed = 0,
    json: bool = False,
    settings: Annotated[AuditConfig | None, Parameter(name="*")] = None,
) -> None:
    """Look for leaks and short cuts: pass, warn or fail, each against a stated limit.

    Plants events from the future and looks for them in splits, training examples, graph and
    prompts; counts duplicates, repeats and ties; measures what popularity and the mere number of
    chains reach. With an evaluation it also shows cold, rare and lately seen items and cold users
    apart. --disguise writes copies of the data set with other titles, to train on as a control.

    Examples:
        reasonrec audit runs/shop --out runs/shop/audits
        reasonrec audit runs/ml/data --out runs/ml/audit --json
        reasonrec audit runs/ml/data --out runs/ml/control --disguise renamed --disguise hashed
        reasonrec audit runs/ml/floor --out runs/ml/floor/audits --first-seen-after 1998-03-01

    Args:
        source: A folder of `reasonrec prepare`, `evaluate` or `demo`.
        out: Folder to write: audits.json, audits.md, copies. A finished one is left as it is.
            `reasonrec compare RUN` shows what lies in RUN/audits. A demo audits itself there.
        seed: Draws the probes and the names of the copies.
        json: Print the audits as JSON instead of a table.
    """
    from rich.console import Console

    from reasonrec.evaluation.audits.records import audits_table
    from reasonrec.evaluation.audits.stage import write_audits

    audits = write_audits(source, out, settings or AuditConfig(), seed=seed)
    if json:
        print((out / "audits.json").read_text(encoding="utf-8"), end="")
        return
    console = Console()
    console.print(audits_table(audits))
    console.print(f"written: {out}", highlight=False)

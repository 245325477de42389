"""``reasonrec prepare``: a raw log becomes a data set that every later command reads."""

import json as json_format
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from reasonrec.cli.numbers import Seed
from reasonrec.data.planted.config import PlantedConfig, Size
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table


def prepare(
    source: str,
    /,
    *,
    out: Path,
    seed: Seed = 0,
    json: bool = False,
    size: Size | None = None,
    planted: Annotated[PlantedConfig | None, Parameter(name="planted")] = None,
    config: Annotated[PrepareConfig | None, Parameter(name="*")] = None,
) -> None:
    """Turn a raw log into a data set: validated, filtered, split, counted.

    Bad rows are set aside with a reason each in OUT/rejected.parquet; too many of them stop the
    command. Nothing is filtered unless you ask. Examples:

        reasonrec prepare planted --size small --out data/planted
        reasonrec prepare ml-100k --out data/ml-100k
        reasonrec prepare my-shop/ --out data/my-shop --split global-time --k-core 5
        reasonrec prepare log.csv --items items.csv --out data/log --min-rating 4
        reasonrec prepare office-2018 --split given --out data/office-2018

    Args:
        source: A folder, a .zip or an interactions file; or the name of a set in the folder that
            REASONREC_DATA names, or of one that its publisher offers (ml-100k, ml-1m, …); or
            `planted`, a generated shop whose truth is known.
        out: Folder to write.
        seed: Draws the planted world, and the users of --sample-users; nothing else is random.
        size: Size of the planted world, where nothing else of it is set.
        planted: The planted world in detail.
        json: Print the statistics as JSON instead of a table.
    """
    from reasonrec.data.prepare import prepare as prepare_data
    from reasonrec.data.prepare import prepare_planted

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if source == "planted":
        if size is not None and planted is not None:
            raise ConfigError("give the size of a planted world once: as --planted.size")
        world = planted or PlantedConfig(size=size or "demo")
        dataset = prepare_planted(out, world, config, seed)
    elif size is not None or planted is not None:
        raise ConfigError(f"--size and --planted belong to the source `planted`; got {source!r}")
    else:
        dataset = prepare_data(source, out, config, seed)
    if json:
        print(json_format.dumps(dataset.statistics, indent=2, ensure_ascii=False))
    else:
        _show(dataset.statistics, out)


def _show(statistics: dict[str, Any], out: Path) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(statistics))
    for note in statistics["notes"]:
        console.print(f"- {note}", markup=False, highlight=False)
    console.print(f"written to {out}", markup=False, highlight=False)


def _table(statistics: dict[str, Any]) -> "Table":
    from rich.table import Table

    log, catalogue = statistics["log"], statistics["catalogue"]
    table = Table(title=f"{statistics['name']} · {statistics['split']}", title_justify="left")
    table.add_column("")
    table.add_column("count", justify="right")
    table.add_column("of which", overflow="fold")

    def row(label: str, count: int, remark: str = "") -> None:
        table.add_row(label, f"{count:,}", remark)

    row("interactions read", log["rows"], _counts(statistics["rejected"]["interactions"]))
    row("items read", catalogue["rows"], _counts(statistics["rejected"]["items"]))
    for step in statistics["filters"]:
        removed = step["rows_before"] - step["rows_after"]
        row(f"filter: {step['name']}", step["rows_after"], f"{removed:,} events left out")
    row("users", log["users"], f"{log['events_per_user_median']:g} events in the median")
    row("items", catalogue["items"], f"{catalogue['never_seen']:,} without any event")
    for kind, count in catalogue["cleaned"].items():
        row(f"cleaned: {kind.replace('_', ' ')}", count)
    row("training events", statistics["train"]["events"], _dates(log))
    for part in ("valid", "test"):
        queries = statistics[part]
        row(
            f"{part} queries",
            queries["queries"],
            f"{queries['target_never_trained']:,} with a target that training never saw, "
            f"{queries['target_in_history']:,} with one in the history",
        )
    return table


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} set aside: {reason}" for reason, count in reasons.items())


def _dates(log: dict[str, Any]) -> str:
    return f"log from {log['first_time']} to {log['last_time']}" if log["first_time"] else ""

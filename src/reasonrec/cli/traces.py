"""``reasonrec traces``: thoughts written from histories and graph evidence."""

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reasonrec.cli.numbers import Count, Seed
from reasonrec.traces.config import TracesConfig


def traces(
    *,
    data: Path,
    out: Path,
    seed: Seed = 0,
    show: Count = 3,
    json: bool = False,
    settings: Annotated[TracesConfig | None, Parameter(name="*")] = None,
) -> None:
    """Write the verbaliser's thoughts for a sample of training positions, to read and to check.

    A thought never sees the item that was taken next. One that names anything outside the history
    and the looked-up evidence is marked as not kept.

    Examples:
        reasonrec traces --data runs/shop --out runs/traces
        reasonrec traces --data runs/shop --out runs/traces --show 20
        reasonrec traces --data runs/shop --out runs/short --thought.num-lookups 1

    Args:
        data: Folder that `reasonrec prepare` wrote.
        out: Folder to write: traces.parquet, statistics.json.
        seed: Draws the positions and what is looked up.
        show: Thoughts to print.
        json: Print the statistics as JSON instead.
    """
    from rich.console import Console
    from rich.text import Text

    from reasonrec.data.dataset import Dataset
    from reasonrec.models.backbone import build_writer
    from reasonrec.models.config import TinyConfig
    from reasonrec.traces.stage import write_traces

    dataset = Dataset.load(data)
    writer = build_writer(dataset.catalogue, TinyConfig())
    table = write_traces(dataset, out, settings or TracesConfig(), writer, seed=seed)
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

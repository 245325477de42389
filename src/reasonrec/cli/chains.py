"""``reasonrec chains``: draw user-item chains from the training graph, and audit them for leaks."""

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reasonrec.cli.numbers import Seed
from reasonrec.graph.config import ChainConfig

DEFAULTS = ChainConfig()


def chains(
    *,
    data: Path,
    out: Path,
    seed: Seed = 0,
    json: bool = False,
    settings: Annotated[ChainConfig, Parameter(name="*")] = DEFAULTS,
) -> None:
    """Sample closed user-item chains for every query, from the training graph alone.

    A chain goes from the user over an item of theirs to a neighbour, and on to an item that closes
    it. Writes chains.parquet and statistics.json: how often no chain closes, and how well the mere
    number of chains tells what the user took from what they did not (0.5 is chance).

    Examples:
        reasonrec chains --data runs/shop --out runs/chains
        reasonrec chains --data runs/shop --out runs/more --num-chains 5 --negatives popularity
        reasonrec chains --data runs/shop --out runs/context --reading history-closed --json

    Args:
        data: Folder that `reasonrec prepare` wrote.
        out: Folder to write. A finished one is left as it is.
        seed: Another seed draws other chains.
        json: Print the statistics as JSON.
    """
    from reasonrec.data.dataset import Dataset
    from reasonrec.graph.chains import write_chains
    from reasonrec.graph.drawing import render_statistics

    stage = write_chains(Dataset.load(data), out, settings, seed=seed)
    if json:
        print(json_format.dumps(stage.statistics, indent=2))
        return
    print(render_statistics(stage.statistics))
    print(f"{'already finished' if stage.was_finished else 'written'}: {stage.folder}")

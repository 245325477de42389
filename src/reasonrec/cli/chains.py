"""``reasonrec chains``: draw user-item chains from the training graph, and audit them for leaks."""

import json as json_format
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reasonrec.cli.numbers import Count, Seed
from reasonrec.graph.config import ChainConfig

DEFAULTS = ChainConfig()


def chains(
    *,
    data: Path,
    out: Path,
    seed: Seed = 0,
    draw: Count = 0,
    json: bool = False,
    settings: Annotated[ChainConfig, Parameter(name="*")] = DEFAULTS,
) -> None:
    """Sample closed user-item chains for every query, from the training graph alone.

    A chain goes from the user over an item of theirs to a neighbour, and on to an item that closes
    it. Writes chains.parquet and statistics.json: how often no chain closes, and how well the mere
    number of chains tells what the user took from what they did not (0.5 is chance). `--draw N`
    draws the chains of N questions as a page, of a finished folder too.

    Examples:
        reasonrec chains --data runs/shop --out runs/chains
        reasonrec chains --data runs/shop --out runs/more --num-chains 5 --negatives popularity
        reasonrec chains --data runs/shop --out runs/context --reading history-closed --json
        reasonrec chains --data runs/shop --out runs/chains --draw 20

    Args:
        data: Folder that `reasonrec prepare` wrote.
        out: Folder to write. A finished one is left as it is.
        seed: Another seed draws other chains.
        draw: Questions whose chains are drawn, to OUT/chains.html.
        json: Print the statistics as JSON.
    """
    from reasonrec.data.dataset import Dataset
    from reasonrec.graph.chains import load_chains, write_chains
    from reasonrec.graph.drawing import render_chains_page, render_statistics

    dataset = Dataset.load(data)
    stage = write_chains(dataset, out, settings, seed=seed)
    if draw:
        page = render_chains_page(load_chains(out), dataset, num_queries=draw, seed=seed)
        (out / "chains.html").write_text(page, encoding="utf-8")
    if json:
        print(json_format.dumps(stage.statistics, indent=2))
        return
    print(render_statistics(stage.statistics))
    if draw:
        print(f"drawn: {out / 'chains.html'}")
    print(f"{'already finished' if stage.was_finished else 'written'}: {stage.folder}")

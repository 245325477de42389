"""``reasonrec train``: one stage of a method, or all of them in a row."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from reasonrec.cli.numbers import Seed
from reasonrec.errors import ConfigError
from reasonrec.methods.r2ec_config import R2ecConfig

What = Literal["no-think", "sft", "recpo", "r2ec"]


def train(
    what: What,
    /,
    *,
    data: Path,
    out: Path,
    start: Path | None = None,
    seed: Seed = 0,
    settings: Annotated[R2ecConfig | None, Parameter(name="*")] = None,
) -> None:
    """Train the recommender: without thoughts, with taught thoughts, with rewarded thoughts.

    r2ec trains all three stages into OUT/no-think, OUT/think-sft and OUT/think-recpo. A run that
    was interrupted continues from its last checkpoint and ends with the same numbers.

    Examples:
        reasonrec train r2ec --data runs/shop --out runs/model
        reasonrec train no-think --data runs/shop --out runs/no-think --head.dropout 0.3
        reasonrec train sft --start runs/no-think --data runs/shop --out runs/sft
        reasonrec train recpo --start runs/sft --data runs/shop --out runs/recpo --seed 1

    Args:
        what: The stage, or r2ec for all of them.
        data: Folder that `reasonrec prepare` wrote.
        out: Folder to write. A finished one is left as it is.
        start: Folder of the stage before: no-think for sft, sft for recpo.
        seed: Draws weights, order and samples.
    """
    from rich.console import Console

    from reasonrec.data.dataset import Dataset
    from reasonrec.manifest import read_manifest
    from reasonrec.methods import r2ec

    config = settings or R2ecConfig()
    if what == "r2ec" and start is not None:
        raise ConfigError(f"r2ec trains all stages and takes no --start; got {start}")
    dataset = Dataset.load(data)
    console = Console(stderr=True, highlight=False)
    if what == "r2ec":
        folders = r2ec.train(
            dataset, config, out=out, seed=seed, announce=lambda name: console.print(f"· {name}")
        )
    else:
        folders = [r2ec.train_stage(what, dataset, config, out=out, seed=seed, start=start)]
    for folder in folders:
        manifest = read_manifest(folder)
        Console(highlight=False).print(
            f"{manifest['method']}: valid NDCG@10 {manifest['best_score']:.4f} at step "
            f"{manifest['best_step']}, {manifest['seconds']:.0f} s, written: {folder}"
        )

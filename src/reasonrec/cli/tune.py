"""``reasonrec tune``: search the settings of baselines on validation."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reasonrec.cli.numbers import Seed
from reasonrec.errors import ConfigError
from reasonrec.evaluation.tuning_config import TuneConfig


def tune(
    *methods: str,
    data: Path,
    out: Path,
    seed: Seed = 0,
    json: bool = False,
    settings: Annotated[TuneConfig | None, Parameter(name="*")] = None,
) -> None:
    """Search the settings of baselines on the validation queries, each with the same budget.

    Writes trials.parquet and trials.jsonl (a row for each setting tried: its metrics and seconds)
    and best.toml, which `reasonrec evaluate --params` takes. The test queries are never read. An
    interrupted search goes on where it stopped.

    Examples:
        reasonrec tune --data runs/shop --out runs/tune
        reasonrec tune ease ials --data runs/shop --out runs/tune --budget 30 --seed 1
        reasonrec tune sasrec esasrec --data runs/shop --out runs/peers --budget 8
        reasonrec tune follow-counter --data runs/shop --out runs/tune --metric ndcg --json

    Args:
        methods: Baselines by name. All that are fitted here if none is named; those of other
            libraries (sasrec, esasrec, hstu, bert4rec, lightgcn, gru4rec, caser) need `make peers`.
        data: Folder that `reasonrec prepare` wrote.
        out: Folder to write. A finished one is left as it is.
        seed: Draws the settings, and fits the methods that are random.
        json: Print the best settings as JSON instead of a table.
    """
    from json import dumps

    from rich.console import Console

    from reasonrec.baselines.floor import BASELINES, CONFIGS
    from reasonrec.cli.progress import method_progress
    from reasonrec.data.dataset import Dataset
    from reasonrec.evaluation.tuning import tune_baselines, tuning_table

    names = methods or tuple(BASELINES)
    unknown = [name for name in names if name not in CONFIGS]
    if unknown or len(set(names)) < len(names):
        raise ConfigError(
            f"each method must be one of {', '.join(CONFIGS)}, named once; got {', '.join(names)}"
        )
    settings = settings or TuneConfig()
    dataset = Dataset.load(data)
    with method_progress() as progress:
        tuned = tune_baselines(names, dataset, out, settings, seed=seed, progress=progress)
    if json:
        print(dumps({one.name: dict(one.best.settings) for one in tuned}, indent=2))
        return
    console = Console()
    console.print(tuning_table(tuned, settings.metric, title=f"{dataset.name}, validation"))
    console.print(f"written: {out}", highlight=False)

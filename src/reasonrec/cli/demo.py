"""``reasonrec demo``: the whole road, ending in a table, a report and three recommendations."""

from pathlib import Path

from reasonrec.cli.numbers import Count, Positive, Seed
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare_config import PrepareConfig


def demo(
    source: str = "planted",
    /,
    *,
    out: Path = Path("runs/demo"),
    seed: Seed = 0,
    json: bool = False,
    preset: Path | None = None,
    world: PlantedConfig | None = None,
    world_seed: Seed = 0,
    prepare: PrepareConfig | None = None,
    tune: Count = 0,
    num_queries: Positive | None = None,
    repeats: bool = False,
) -> None:
    """Run the whole road on a data set, or on a generated shop whose truth is known.

    Prepares, measures simple recommenders, trains one without thoughts, teaches it to think, lets
    it learn from labels which thoughts help, measures all of it side by side, and explains three
    recommendations. Interrupt it whenever you like: the same command continues.

    Examples:
        reasonrec demo
        reasonrec demo ml-100k --out runs/ml-100k
        reasonrec demo my-shop/ --out runs/my-shop --prepare.k-core 5
        reasonrec demo office-2018 --prepare.split given --out runs/office
        reasonrec demo games-2018 --prepare.split given --num-queries 10000 --out runs/games
        reasonrec demo ml-1m --preset configs/r2ec/ml-1m.toml --out runs/ml-1m
        reasonrec demo my-groceries/ --repeats --out runs/groceries

    Args:
        source: planted, a data set's name (see REASONREC_DATA), or a folder or file of your own.
        out: Folder of the run.
        seed: Draws the weights, orders and every sample.
        json: Print the metric rows as JSON instead of tables.
        preset: TOML file with keys of the method (see configs/).
        world: The generated shop.
        world_seed: Draws the generated shop.
        prepare: How a log is read, filtered and split.
        tune: Settings of each simple recommender that are tried on validation first.
        num_queries: Test queries that are answered, the same sample for all methods. All if not
            given.
        repeats: Offer again what a person took before, as groceries or songs are: rank it, learn
            from it and measure it.
    """
    from rich.console import Console

    from reasonrec.cli.progress import method_progress
    from reasonrec.cli.recommend import print_recommendation
    from reasonrec.evaluation.config import EvaluateConfig
    from reasonrec.evaluation.table import results_table
    from reasonrec.methods.demo import run_demo
    from reasonrec.methods.r2ec_config import R2ecConfig

    config = R2ecConfig.load(preset) if preset else R2ecConfig()
    if repeats:
        config = config.model_copy(
            update={"head": config.head.model_copy(update={"repeats": True})}
        )
    console, progress_console = Console(), Console(stderr=True, highlight=False)
    with method_progress() as progress:
        done = run_demo(
            source,
            out,
            config,
            seed=seed,
            world=world or PlantedConfig(size="demo"),
            world_seed=world_seed,
            preparation=prepare or PrepareConfig(),
            evaluation=EvaluateConfig(tune=tune, num_queries=num_queries),
            announce=lambda text: progress_console.print(f"[dim]·[/dim] {text}"),
            progress=progress,
        )
    if json:
        print((out / "metrics.json").read_text(encoding="utf-8"), end="")
        return
    first = done.rows[0]
    console.print(results_table(done.rows, title=f"{first.dataset}, {first.split}, n = {first.n}"))
    for answer in done.recommendations:
        print_recommendation(answer, console)
    console.print(f"\n{done.seconds / 60:.1f} minutes. Open {done.report}", highlight=False)

"""``reasonrec evaluate``: measure methods on held-out queries."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from reasonrec.cli.numbers import Seed
from reasonrec.errors import CheckpointError, ConfigError
from reasonrec.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from reasonrec.baselines.peers import Progress
    from reasonrec.data.dataset import Dataset
    from reasonrec.evaluation.measure import Contestant
    from reasonrec.evaluation.tuning import Settings


def evaluate(
    *methods: str,
    data: Path,
    out: Path,
    seed: Seed = 0,
    params: Path | None = None,
    candidates: Path | None = None,
    json: bool = False,
    settings: Annotated[EvaluateConfig | None, Parameter(name="*")] = None,
) -> None:
    """Measure methods on held-out queries: accuracy with intervals, tokens, time.

    Examples:
        reasonrec evaluate popularity item-knn follow-counter --data runs/shop --out runs/floor
        reasonrec evaluate oracle runs/no-think --data runs/shop --out runs/eval --part valid
        reasonrec evaluate ease ials --data runs/shop --out runs/tuned --params runs/tune
        reasonrec evaluate ease --data runs/shop --out runs/both --train-on train+valid
        reasonrec evaluate sasrec esasrec --data runs/shop --out runs/peers
        reasonrec evaluate item-knn --data runs/shop --out runs/knn --tune 30 --json
        reasonrec evaluate runs/think-recpo --data runs/shop --out runs/traced --trajectory

    Args:
        methods: Baselines by name (those of other libraries, such as sasrec, need `make peers`),
            oracle (planted worlds), or folders of trained models. If none is named, popularity,
            recent-popularity, item-knn and follow-counter.
        data: Folder that `reasonrec prepare` wrote.
        out: Folder to write. A finished one is left as it is.
        seed: Names the rows of methods that are fitted here; a model folder has its own.
        params: Settings of the baselines: folder that `reasonrec tune` wrote, or a TOML or JSON
            file with a table for each. Defaults if not given.
        candidates: Published candidate lists (user_id, candidates) to measure as well.
        json: Print the metric rows as JSON instead of a table.
    """
    from rich.console import Console

    from reasonrec.baselines.floor import FLOOR
    from reasonrec.cli.progress import method_progress
    from reasonrec.data.dataset import Dataset
    from reasonrec.evaluation.measure import measure
    from reasonrec.evaluation.table import results_table
    from reasonrec.evaluation.tuning import read_params

    settings = settings or EvaluateConfig()
    dataset = Dataset.load(data)
    if params is not None and settings.tune:
        raise ConfigError("settings are either given (--params) or searched (--tune), not both")
    given = None if params is None else read_params(params, dataset)
    with method_progress() as progress:
        contestants = [
            find_contestant(
                word, dataset, seed=seed, asked=settings, params=given, progress=progress
            )
            for word in methods or FLOOR
        ]
        labels = [contestant.label for contestant in contestants]
        if len(set(labels)) < len(labels):
            raise CheckpointError(f"each method can be named once; got {', '.join(labels)}")
        untraced = [one.label for one in contestants if not one.is_traced]
        if settings.trajectory and len(untraced) == len(labels):
            raise ConfigError(
                "--trajectory needs a method whose thought is read step by step: a folder of "
                f"think-sft or think-recpo; got {', '.join(labels)}. Leave it out, or name one"
            )
        evaluations = measure(
            contestants,
            dataset,
            out,
            settings,
            seed=seed,
            candidates_file=candidates,
            has_passport=True,
            progress=progress,
        )
    console = Console(stderr=json)
    if settings.trajectory and untraced:
        console.print(
            f"no trajectory of {', '.join(untraced)}: no thought that is read step by step",
            highlight=False,
        )
    if json:
        print((out / "metrics.json").read_text(encoding="utf-8"), end="")
        return
    rows = [row for evaluation in evaluations for row in evaluation.rows]
    console.print(results_table(rows, title=f"{dataset.name}, {rows[0].split}, n = {rows[0].n}"))
    console.print(f"written: {out}", highlight=False)


def find_contestant(
    word: str,
    dataset: "Dataset",
    *,
    seed: int,
    asked: EvaluateConfig,
    params: "Mapping[str, Settings] | None" = None,
    progress: "Progress | None" = None,
) -> "Contestant":
    """Return the method that a word of the command line names.

    Args:
        asked: How it will be measured.
        params: Settings by baseline, or None for the defaults of all.
        progress: Told of what a baseline does before it can answer.

    Raises:
        CheckpointError: It is neither a known word nor a finished model folder.
        ConfigError: ``params`` lack the baseline.
    """
    from reasonrec.baselines.floor import CONFIGS
    from reasonrec.data.planted.oracle import ORACLES, oracle_of
    from reasonrec.evaluation.measure import Contestant, floor_contestant
    from reasonrec.manifest import read_manifest

    if word in CONFIGS:
        if params is not None and word not in params:
            raise ConfigError(
                f"the settings given must hold every baseline that is named; {word} is not among "
                f"{', '.join(params)}. Tune it too, or evaluate it into another folder"
            )
        settings = None if params is None else params[word]
        return floor_contestant(
            word, dataset, seed=seed, tune=asked.tune, settings=settings, asked=asked,
            progress=progress,
        )  # fmt: skip
    if word in ORACLES:
        return Contestant(word, seed, word, lambda _: oracle_of(word, dataset))
    folder = Path(word)
    if not folder.is_dir():
        raise CheckpointError(
            f"a method must be one of {', '.join(CONFIGS)}, {', '.join(ORACLES)}, or a model "
            f"folder; got {word}"
        )
    manifest = read_manifest(folder)
    trained_on = manifest.get("trained_on", "train")
    if asked.train_on == "train+valid" and trained_on not in (asked.train_on, "nothing"):
        raise ConfigError(
            f"with train_on = {asked.train_on} every method must have learned from these rows; "
            f"{word} learned from {trained_on}. Measure it without train_on, into another folder: "
            "`reasonrec compare` shows both, each with its rows"
        )
    if asked.part == "valid" and trained_on == "train+valid":
        raise ConfigError(f"{word} learned from the targets of valid; measure it on test alone")
    from reasonrec.evaluation.recipe import Recipe
    from reasonrec.evaluation.trajectory import TRACED
    from reasonrec.methods.loading import load_recommender

    recipe = manifest.get("recipe")
    return Contestant(
        label="-".join(folder.resolve().parts[-2:]),
        seed=manifest.get("seed") or 0,
        source=manifest["fingerprint"],
        open=lambda _: load_recommender(folder, dataset),
        is_traced=manifest.get("method") in TRACED,
        trained_on=trained_on,
        recipe=None if recipe is None else Recipe.model_validate(recipe),
    )

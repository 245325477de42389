"""Trains a model again by its recipe, and all that it started from."""

from pathlib import Path
from typing import Any, cast

from reasonrec.config import Config
from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.recipe import Recipe
from reasonrec.methods import r2ec, r2rec
from reasonrec.methods.baselines.config import Baseline, BaselinesConfig
from reasonrec.methods.baselines.train import train as train_baseline
from reasonrec.methods.r2ec_config import R2ecConfig, Stage
from reasonrec.methods.r2rec_config import R2recConfig


def check_recipe(recipe: Recipe, label: str) -> None:
    """Refuse a recipe that cannot be followed by a machine alone.

    Raises:
        CheckpointError: Traces were bought or written by another model, or the stages of R2Rec do
            not share their settings.
    """
    reasoned = [one for one in recipe.chain if one.method == "r2rec"]
    teachers = {one.config["traces"]["teacher"]["kind"] for one in reasoned} - {"verbaliser"}
    if teachers:
        raise CheckpointError(
            f"the traces of {label} must be the verbaliser's to be written again; they are of "
            f"teacher {', '.join(teachers)}. Evaluate the folder itself"
        )
    settings = [(one.seed, {**one.config, "stages": None}) for one in reasoned]
    if any(one != settings[0] for one in settings):
        raise CheckpointError(
            f"the stages of {label} must share seed and settings to be trained again; they differ"
        )


def configs_of(recipe: Recipe) -> list[tuple[type[Config], dict[str, Any]]]:
    """Return the settings of a recipe and of all that it starts from, each with its class."""
    kinds: dict[str, type[Config]] = {"baseline": BaselinesConfig, "r2rec": R2recConfig}
    found: list[tuple[type[Config], dict[str, Any]]] = []
    for one in recipe.chain:
        found.append((kinds.get(one.method, R2ecConfig), one.config))
        if one.base is not None:
            found.append((R2ecConfig, one.base))
    return found


def retrain(recipe: Recipe, dataset: Dataset, out: Path) -> Path:
    """Return the folder of the model, trained below ``out`` with all that it starts from.

    What is finished there is left as it is, so that models share what they started from.

    Raises:
        CheckpointError: As in ``check_recipe``.
    """
    check_recipe(recipe, recipe.what)
    folder = out / recipe.folder
    if recipe.method == "baseline":
        return train_baseline(
            cast(Baseline, recipe.what), dataset, BaselinesConfig.model_validate(recipe.config),
            base=R2ecConfig.model_validate(recipe.base), out=folder, seed=recipe.seed,
        )  # fmt: skip
    reasoned = [one for one in recipe.chain if one.method == "r2rec"]
    before = reasoned[0].start if reasoned else recipe.start
    start = None if before is None else retrain(before, dataset, out)
    if not reasoned:
        config = R2ecConfig.model_validate(recipe.config)
        stage = cast(Stage, recipe.what)
        return r2ec.train_stage(stage, dataset, config, out=folder, seed=recipe.seed, start=start)
    stages = [one.what for one in reasoned[1:]]
    return r2rec.train(
        dataset, R2recConfig.model_validate({**recipe.config, "stages": stages}),
        base=R2ecConfig.model_validate(reasoned[0].base), out=folder.parent, seed=recipe.seed,
        start=start,
    )[-1]  # fmt: skip

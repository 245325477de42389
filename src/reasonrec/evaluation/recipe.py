"""How a model was trained, back to what it started from; kept in the manifest of its folder."""

import hashlib
from pathlib import Path
from typing import Any

from reasonrec.config import Config
from reasonrec.evaluation.environment import Environment, describe_environment
from reasonrec.manifest import read_manifest


class Recipe(Config):
    """One stage of ``reasonrec train``."""

    what: str
    """``no-think``, ``sft``, ..., ``untuned``, ``r2rec-sft``, ``r2rec-rl``, ``tiger``, ..."""
    seed: int
    config: dict[str, Any]
    """Resolved, of the method that the stage belongs to; without ``method`` a baseline's."""
    base: dict[str, Any] | None = None
    """Configuration of R²ec that a baseline, or R2Rec's first model, has its backbone from."""
    start: "Recipe | None" = None
    """Of the model that it started from."""
    environment: Environment = Environment()
    """What it was trained with."""

    @property
    def method(self) -> str:
        return self.config.get("method", "baseline")

    @property
    def chain(self) -> "list[Recipe]":
        """All that must be trained, the first one first, this one last."""
        return [*(self.start.chain if self.start else []), self]

    @property
    def folder(self) -> str:
        """A name for the model, the same wherever it is needed; R2Rec's stages share a folder."""
        if self.method != "r2rec":
            return f"{self.what}-{self._digest}"
        first = next(one for one in self.chain if one.method == "r2rec")
        return f"r2rec-{first._digest}/{self.what}"

    @property
    def _digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]


def recipe_of(
    what: str, config: Config, *, seed: int, start: Path | None, base: Config | None = None
) -> dict[str, Any]:
    """Return what a manifest says of a stage that ends now: ``recipe``, or nothing.

    Nothing where the model that it started from says nothing, as those do that are older than
    recipes.
    """
    before = None if start is None else read_manifest(start).get("recipe")
    if start is not None and before is None:
        return {}
    recipe = Recipe(
        what=what,
        seed=seed,
        config=config.model_dump(mode="json"),
        base=None if base is None else base.model_dump(mode="json"),
        start=None if before is None else Recipe.model_validate(before),
        environment=describe_environment(),
    )
    return {"recipe": recipe.model_dump(mode="json")}

"""What must hold before the runs of a passport are made again."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from reasonrec.config import Config, explain
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.commands import split_source
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.environment import Environment, code_fingerprint
from reasonrec.evaluation.passport import Passport, RunPassport
from reasonrec.manifest import LOCK, make_folder, write_whole
from reasonrec.methods.r2ec_config import R2ecConfig

BEGUN = "begun.json"
"""What the folder of a reproduction was begun for: passport, code and environment."""


def begin(passport: Passport, out: Path, here: Environment) -> Path:
    """Return ``out``, made for this passport, this code and this environment alone.

    The stages leave what is finished as it is; what something else left would be compared with
    itself, and nothing would have been made again.
    """
    machine = here.model_dump(exclude={"commit", "is_dirty", "memory_gib", "num_cores"})
    wanted = {
        "passport": hashlib.sha256(passport.model_dump_json().encode()).hexdigest(),
        "code": code_fingerprint(),
        "environment": json.loads(json.dumps(machine)),
    }
    path = out / BEGUN
    left = {LOCK, f"{BEGUN}.partial"}  # by a kill, before anything was made
    if out.is_dir() and any(one.name not in left for one in out.iterdir()):
        begun = _read_begun(path) if path.is_file() else {}
        other = [f"another {key}" for key in wanted if begun.get(key) != wanted[key]]
        if other:
            what = ", ".join(other) if begun else "something else"
            raise CheckpointError(
                "a reproduction must be made in a folder of its own, or what lies there would be "
                f"compared with itself; {out} holds what was made for {what}. Name an empty folder"
            )
    make_folder(out)
    write_whole(path, json.dumps(wanted, indent=1) + "\n")
    return out


def _read_begun(path: Path) -> dict[str, Any]:
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        begun = error
    if not isinstance(begun, dict):
        raise CheckpointError(
            f"{path} must say what the reproduction there was begun for; it is damaged "
            f"({begun}). Remove {path.parent} and run again, or name an empty folder"
        )
    return begun


def check_repeatable(run: RunPassport) -> None:
    """Refuse a run that its passport does not describe well enough."""
    _check_settings(run)
    if run.data is None:
        raise CheckpointError(
            f"the passport of {run.name} must name its data; when it was written they could not be "
            "found. Write it again where the prepared folder lies"
        )
    if run.kind == "demo":
        return
    methods = run.config.get("methods", {})
    if run.models:
        from reasonrec.methods.retrain import check_recipe  # brings torch

        for label, recipe in run.models.items():
            check_recipe(recipe, label)
    # what is fitted on the spot names itself first; a trained model is named by its fingerprint
    foreign = [
        label
        for label, one in methods.items()
        if split_source(one["source"])[0] != label and label not in run.models
    ]
    if foreign or not methods:
        raise CheckpointError(
            f"the passport of {run.name} must say how every method was made; "
            f"{', '.join(foreign) or 'its methods'} cannot be made again from it. {_why(run)}"
        )


def _why(run: RunPassport) -> str:
    """Return why a model of the run has no recipe, and what to do."""
    asked = run.config.get("train_on", "train")
    if any(row.trained_on == "train+valid" != asked for row in run.rows):
        return (
            "A model of `train r2ec --again RUN` rests on what was best in RUN, which no passport "
            "holds: train RUN again, then --again, and evaluate that"
        )
    return (
        "A model has no recipe if it, or what its --start names, was trained before recipes were "
        "kept or with rewards handed in from Python: train it again from the first stage on, and "
        "evaluate that. The models of a demo are made again by the passport of the demo"
    )


def _check_settings(run: RunPassport) -> None:
    """Refuse settings that this version does not know, with the commit that does."""
    asked: list[tuple[type[Config], Any, str]] = []
    if run.kind == "demo":
        asked.append((R2ecConfig, run.config.get("r2ec"), "r2ec"))
        asked.append((EvaluateConfig, run.config.get("evaluation"), "evaluation"))
    else:
        settings = {key: value for key, value in run.config.items() if key != "methods"}
        asked.append((EvaluateConfig, settings, "evaluation"))
    if run.data is not None:
        asked.append((PrepareConfig, run.data.preparation, "data"))
    if run.models:
        from reasonrec.methods.retrain import configs_of  # brings torch

        for label, recipe in run.models.items():
            asked += [(*one, f"model {label}") for one in configs_of(recipe)]
    for kind, given, origin in asked:
        try:
            kind.model_validate(given)
        except ValidationError as error:
            told = explain(error, kind, f"{origin}, passport of {run.name}")
            commit = run.environment.commit
            where = f"git checkout {commit[:10]}" if commit else "its commit was not recorded"
            raise CheckpointError(
                f"{told}\nthe run is of another version, which alone can make it again: {where}"
            ) from None

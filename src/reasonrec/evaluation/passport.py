"""The passport of a result: what it was made of, on what, by which commands, and every number.

``passport.json`` lies beside a demo, an evaluation and a comparison. It holds all that is needed to
make the numbers again (``methods/reproduce.py``) and to say how far the new ones may lie from them.
"""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from reasonrec.config import Config, explain
from reasonrec.data.dataset import UNASKED
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.commands import (
    PLANTED,
    demo_command,
    evaluate_command,
    prepare_command,
    source_of,
    train_commands,
)
from reasonrec.evaluation.environment import Environment, describe_environment
from reasonrec.evaluation.protocol import MetricRow, read_rows
from reasonrec.evaluation.recipe import Recipe
from reasonrec.evaluation.runs import Run
from reasonrec.manifest import fingerprint, read_manifest

NAME = "passport.json"
FORMAT = 1
Kind = Literal["demo", "evaluate"]


class DataPassport(Config):
    """A prepared data set, and how it was made."""

    name: str
    split: str
    source: str
    """As it was typed: a name, a path, or ``planted``."""
    seed: int | None
    config: dict[str, Any]
    """Resolved configuration of ``prepare``, with the planted world where there is one."""
    inputs: dict[str, str]
    """Raw file -> SHA-256."""
    tables: dict[str, str]
    """Prepared Parquet file -> SHA-256."""

    @property
    def preparation(self) -> dict[str, Any]:
        """Settings of ``prepare``, without the planted world."""
        return {key: value for key, value in self.config.items() if key != PLANTED}


class RunPassport(Config):
    """One run: a demo, or an evaluation."""

    name: str
    kind: Kind
    seed: int
    seconds: float | None
    data: DataPassport | None
    """None where the prepared data could not be found."""
    config: dict[str, Any]
    """Resolved: of a demo ``config.json``; of an evaluation its settings and ``methods``."""
    candidates_file: str | None = None
    """Published candidate lists that were measured as well."""
    candidates_hash: str | None = None
    """Their SHA-256. None: not recorded."""
    models: dict[str, Recipe] = Field(default_factory=dict)
    """How each trained model among the methods was made."""
    peers: dict[str, dict[str, str]] = Field(default_factory=dict)
    """Versions of the libraries that each peer among the methods ran on."""
    commands: tuple[str, ...]
    """Lines for a shell that make the run again."""
    environment: Environment
    rows: tuple[MetricRow, ...]
    """Every number, with the interval that states its noise."""


class ComparisonPassport(Config):
    """What ``compare`` made of the runs."""

    config: dict[str, Any]
    command: str
    rows: tuple[dict[str, Any], ...]
    """As in ``comparison.json``."""


class Passport(Config):
    """Everything that is needed to make a result again, and to tell whether it came out alike."""

    format: Literal[1] = FORMAT
    written_at: str
    environment: Environment
    """Of the command that wrote the passport; each run has its own."""
    runs: tuple[RunPassport, ...]
    comparison: ComparisonPassport | None = None


def pass_run(
    folder: Path,
    *,
    kind: Kind,
    evaluation: Path,
    data: Path,
    config: Mapping[str, Any],
    seed: int,
    seconds: float,
    candidates_file: Path | None = None,
    models: Mapping[str, Recipe] | None = None,
    peers: Mapping[str, dict[str, str]] | None = None,
) -> Passport:
    """Return the passport of a run that ends now, on this machine.

    Args:
        folder: The run's; it gives the run its name.
        evaluation: Where ``metrics.json`` lies.
        data: The prepared folder that was measured on.
        config: As in ``RunPassport.config``; likewise ``models`` and ``peers``.
    """
    environment = describe_environment()
    given = None if candidates_file is None else str(candidates_file)
    given_hash = None if candidates_file is None else fingerprint(candidates_file)
    name = folder.resolve().name
    one = _run_passport(
        name, kind, evaluation, data, config, seed, seconds, given, given_hash, environment,
        models or {}, peers or {},
    )  # fmt: skip
    return Passport(written_at=_now(), environment=environment, runs=(one,))


def pass_comparison(
    runs: Sequence[Run], config: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Passport:
    """Return the passport of a comparison: that of each run, and what was made of them."""
    words = ["reasonrec", "compare", *(run.name for run in runs)]
    words += ["--reference", config["reference"], "--out", "compared"]
    words += ["--common-queries"] if config.get("common_queries") else []
    return Passport(
        written_at=_now(),
        environment=describe_environment(),
        runs=tuple(_stored_passport(run) for run in runs),
        comparison=ComparisonPassport(
            config=dict(config), command=shlex.join(words), rows=tuple(dict(row) for row in rows)
        ),
    )


def write_passport(passport: Passport, folder: Path) -> Path:
    """Return ``folder/passport.json``, written."""
    path = Path(folder) / NAME
    content = passport.model_dump(mode="json")
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_passport(path: Path) -> Passport:
    """Return the passport in a file, or in a folder that holds one.

    Raises:
        CheckpointError: There is none, or it is no passport of this format.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        return Passport.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"the passport must be a file or a folder that holds {NAME}; found none at {path}. "
            "`reasonrec demo`, `evaluate` and `compare` write one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        raise CheckpointError(explain(error, Passport, str(path))) from None


def data_folder(run: Run) -> Path | None:
    """Return the prepared folder that a run was measured on, where it lies unchanged."""
    wanted = (run.manifest or {}).get("inputs", {}).get("data")
    for folder in run.data_folders():
        if fingerprint(folder) == wanted:
            return folder
    return None


def _stored_passport(run: Run) -> RunPassport:
    """Return the passport that a run wrote; else one made of its manifest, hardware unknown."""
    if (run.folder / NAME).is_file():
        return read_passport(run.folder).runs[0].model_copy(update={"name": run.name})
    manifest = run.manifest or {}
    versions = dict(manifest.get("versions", {}))
    environment = Environment(
        python=versions.pop("python", None), packages=versions, commit=manifest.get("commit")
    )
    kind: Kind = "demo" if manifest.get("stage") == "demo" else "evaluate"
    return _run_passport(
        run.name,
        kind,
        run.evaluation,
        data_folder(run),
        manifest.get("config", {}),
        manifest.get("seed") or 0,
        manifest.get("seconds"),
        manifest.get("candidates_file"),
        manifest.get("inputs", {}).get("candidates"),
        environment,
        {},
        {},
    )


def _run_passport(
    name: str,
    kind: Kind,
    evaluation: Path,
    folder: Path | None,
    config: Mapping[str, Any],
    seed: int,
    seconds: float | None,
    given: str | None,
    given_hash: str | None,
    environment: Environment,
    models: Mapping[str, Recipe],
    peers: Mapping[str, dict[str, str]],
) -> RunPassport:
    data = None if folder is None else _data_passport(folder)
    commands: tuple[str, ...] = ()
    if data is not None and kind == "demo":
        world_seed = data.seed or 0
        commands = demo_command(config, data.source, data.config, world_seed, out=name)
    elif data is not None:
        place = f"{name}-data"
        commands = (
            prepare_command(data.source, data.config, data.seed or 0, out=place),
            *train_commands(models.values(), data=place),
            *evaluate_command(
                config, seed, data=place, out=name, candidates=given,
                folders={label: recipe.folder for label, recipe in models.items()},
            ),
        )  # fmt: skip
    return RunPassport(
        name=name,
        kind=kind,
        seed=seed,
        seconds=None if seconds is None else round(seconds, 3),
        data=data,
        config=dict(config),
        candidates_file=given,
        candidates_hash=given_hash,
        models=dict(models),
        peers=dict(peers),
        commands=commands,
        environment=environment,
        rows=tuple(read_rows(evaluation / "metrics.json")),
    )


def _data_passport(folder: Path) -> DataPassport:
    manifest = read_manifest(folder)
    config = dict(manifest["config"])
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    hashes = measured_tables(manifest)
    return DataPassport(
        name=config["name"],
        split=config["split"],
        source=source_of(manifest, statistics),
        seed=manifest.get("seed"),
        config=config,
        inputs=manifest["inputs"],
        tables=hashes,
    )


def measured_tables(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of each table of a prepared folder but what serving alone reads."""
    outputs = manifest["outputs"].items()
    return {k: v for k, v in outputs if k.endswith(".parquet") and k != UNASKED}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

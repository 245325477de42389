"""Resolved configurations -> lines for a shell that say the same. Defaults are left unsaid."""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.recipe import Recipe

PLANTED = "planted"


def prepare_command(source: str, data: Mapping[str, Any], seed: int, *, out: str) -> str:
    """Return the ``reasonrec prepare`` that a prepared folder's configuration stands for."""
    words = ["reasonrec", "prepare", source, "--out", out, "--seed", str(seed)]
    if PLANTED in data:
        words += _world_options(data[PLANTED], PLANTED)
    return shlex.join([*words, *_prepare_options(data, "")])


def source_of(manifest: Mapping[str, Any], statistics: Mapping[str, Any]) -> str:
    """Return what a prepared folder was made of, as a command names it.

    Args:
        statistics: Of the folder; they say it where an earlier version prepared it.
    """
    config = manifest["config"]
    if PLANTED in config:
        return PLANTED
    return str(manifest.get("source") or statistics.get("source") or config["name"])


def evaluate_command(
    config: Mapping[str, Any],
    seed: int,
    *,
    data: str,
    out: str,
    candidates: str | None,
    folders: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return the ``reasonrec evaluate`` that an evaluation's configuration stands for.

    Settings that the baselines were given are written out first, for ``--params``.

    Args:
        folders: Where the trained models among the methods lie, by label.
    """
    methods = config.get("methods", {})
    named = [(folders or {}).get(label, label) for label in methods]
    given = {label: split_source(str(one.get("source")))[1] for label, one in methods.items()}
    params = toml_lines({label: found for label, found in given.items() if found})
    words = ["reasonrec", "evaluate", *named, "--data", data, "--out", out]
    words += ["--seed", str(seed)]
    if candidates is not None:
        words += ["--candidates", candidates]
    if params:
        words += ["--params", f"{out}.toml"]
    settings = {key: value for key, value in config.items() if key != "methods"}
    line = shlex.join(words + _options(settings, EvaluateConfig().model_dump(mode="json")))
    return (*_file(f"{out}.toml", params), line) if params else (line,)


def train_commands(recipes: Iterable[Recipe], *, data: str) -> tuple[str, ...]:
    """Return the ``reasonrec train`` of every model, each after what it starts from, none twice.

    Their configurations are written out first, for ``--config``.
    """
    made: dict[str, tuple[str, ...]] = {}
    for recipe in recipes:
        for one in recipe.chain:
            out, what, keys = one.folder, one.what, one.config | (one.base or {})
            start = one.start
            if one.method == "r2rec":
                first = next(two for two in recipe.chain if two.method == "r2rec")
                out, what, start = str(Path(out).parent), "r2rec", first.start
                keys = (first.base or {}) | {"r2rec": one.config}
            words = ["reasonrec", "train", what, "--config", f"{out}.toml", "--data", data]
            words += ["--out", out, "--seed", str(one.seed)]
            words += [] if start is None else ["--start", start.folder]
            made[out] = (*_file(f"{out}.toml", toml_lines(keys)), shlex.join(words))
    return tuple(line for lines in made.values() for line in lines)


def split_source(source: str) -> tuple[str, dict[str, Any] | None]:
    """Return the name and the settings that an evaluation's ``source`` of a method holds.

    A baseline is named by its word, followed by its settings as JSON where it was given any.
    """
    name, _, settings = source.partition(" ")
    return name, json.loads(settings) if settings else None


def demo_command(
    config: Mapping[str, Any], source: str, data: Mapping[str, Any], data_seed: int, *, out: str
) -> tuple[str, ...]:
    """Return the ``reasonrec demo`` that a run's configuration stands for, its preset written out.

    Args:
        config: What the run wrote to ``config.json``.
        data: Configuration of its prepared data.
        data_seed: The seed that its planted world was drawn with.
    """
    words = ["reasonrec", "demo", source, "--out", out, "--seed", str(config["seed"])]
    words += ["--preset", f"{out}.toml"]
    if PLANTED in data:
        words += ["--world-seed", str(data_seed), *_world_options(data[PLANTED], "world")]
    words += _prepare_options(data, "prepare")
    asked = {key: config["evaluation"].get(key) for key in ("tune", "num_queries")}
    words += _options(asked, {"tune": 0})
    return (*_file(f"{out}.toml", toml_lines(config["r2ec"])), shlex.join(words))


def toml_lines(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return nested keys as lines of TOML with dotted keys; None, which TOML lacks, is left out."""
    lines = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += toml_lines(value, f"{prefix}{key}.")
        elif value is not None:
            lines.append(f"{prefix}{key} = {json.dumps(value, ensure_ascii=False)}")
    return lines


def _file(name: str, lines: Sequence[str]) -> tuple[str, ...]:
    """Return the lines for a shell that write a file."""
    return (f"cat > {shlex.quote(name)} <<'END'", *lines, "END")


def _prepare_options(data: Mapping[str, Any], prefix: str) -> list[str]:
    settings = {key: value for key, value in data.items() if key not in (PLANTED, "name")}
    return _options(settings, PrepareConfig().model_dump(mode="json"), prefix)


def _world_options(world: Mapping[str, Any], prefix: str) -> list[str]:
    default = PlantedConfig(size=world["size"]).model_dump(mode="json") | {"size": None}
    return _options(world, default, prefix)


def _options(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the options that set what differs from the defaults."""
    words: list[str] = []
    for key, value in values.items():
        name = f"{prefix}.{key}".lstrip(".").replace("_", "-")
        default = defaults.get(key)
        if value is None or value == default:
            continue
        if isinstance(value, Mapping):
            words += _options(value, default or {}, name)
        elif isinstance(value, bool):
            head, dot, last = name.rpartition(".")
            words.append(f"--{name}" if value else f"--{head}{dot}no-{last}")
        elif isinstance(value, list) and value and not isinstance(value[0], str):
            words += [f"--{name}", *map(str, value)]  # a pair of numbers stands behind one option
        elif isinstance(value, list):
            words += [word for one in value for word in (f"--{name}", str(one))]
        else:
            words += [f"--{name}", str(value)]
    return words

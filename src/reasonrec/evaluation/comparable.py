"""Which runs can be compared: of the same data and candidates, as written, and of one setting."""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from reasonrec.baselines.floor import CONFIGS, check_settings
from reasonrec.data.dataset import UNASKED
from reasonrec.errors import CheckpointError, ConfigError, DataError
from reasonrec.evaluation.commands import split_source
from reasonrec.evaluation.protocol import MetricRow
from reasonrec.evaluation.runs import Run
from reasonrec.manifest import check_outputs, flat, read_manifest

GIVEN = "candidates-given"
_HARMLESS = ("rejected.parquet", UNASKED)
"""The tables of prepared data that no number depends on."""


def check_as_written(run: Run) -> None:
    """Refuse a run whose files were edited since.

    Raises:
        CheckpointError: What a comparison reads is not as its manifest says.
    """
    for folder in dict.fromkeys(path.parent for path in run.files()):
        if (folder / "manifest.json").is_file():
            check_outputs(folder)


def check_same_data(runs: Sequence[Run]) -> None:
    """Refuse runs of different prepared data; those that do not say theirs are not asked.

    A fingerprint also covers the counts for people, and in data of earlier versions the place that
    the log was read from. Where two differ, the tables decide.

    Raises:
        DataError: Tables differ, or it cannot be seen whether they do.
    """
    told = [(run, (_evaluated(run) or {}).get("inputs", {}).get("data")) for run in runs]
    named = [(run, data) for run, data in told if data is not None]
    for run, data in named[1:]:
        first, wanted = named[0]
        if data == wanted:
            continue
        here, there = _tables(first, wanted), _tables(run, data)
        if here == there and here is not None:
            continue
        where = f"those of {first.name} and {run.name}"
        if here is None or there is None:
            lost = first if here is None else run
            raise DataError(
                f"the runs to compare must share their prepared data; {where} have other "
                f"fingerprints, and without the data of {lost.name}, which could not be found, "
                "nobody can see whether it matters. Put them back, or measure both anew"
            )
        other = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
        raise DataError(
            f"the runs to compare must share their prepared data; {where} differ in "
            f"{', '.join(other)}. Measure both on one folder of `reasonrec prepare`"
        )


def check_same_candidates(runs: Sequence[Run], rows: Sequence[Sequence[MetricRow]]) -> None:
    """Refuse runs that ranked the same protocol's targets among other candidates.

    Args:
        rows: Of each run.

    Raises:
        DataError: They were drawn by another seed, or read from another file.
    """
    known: dict[str, tuple[Run, Any]] = {}
    for run, own in zip(runs, rows):
        told = _evaluated(run)
        if told is None:
            continue
        config = told["config"].get("evaluation", told["config"])
        for word in sorted({row.protocol for row in own}):
            if not word.startswith("candidates-"):
                continue
            seed = config.get("candidate_seed", 0)
            drawn = told["inputs"].get("candidates") if word == GIVEN else seed
            other, found = known.setdefault(word, (run, drawn))
            if found == drawn:
                continue
            how = "were read from different files in {} and {}. Give both the same --candidates"
            if word != GIVEN:
                how = f"were drawn by seed {found} in {{}} and by seed {drawn} in {{}}. "
                how += "Evaluate both with the same --candidate-seed"
            raise DataError(
                f"the runs to compare must rank among the same candidates; those of {word} "
                + how.format(other.name, run.name)
            )


def methods_of_several_settings(
    runs: Sequence[Run], rows: Sequence[Sequence[MetricRow]]
) -> set[str]:
    """Return the methods that were set otherwise in another run, as far as the runs say.

    A key that one of them does not have, or that is None there, is of another version and does not
    count.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for run, own in zip(runs, rows):
        for method, settings in _settings(run, own):
            if settings not in (seen := found.setdefault(method, [])):
                seen.append(settings)
    return {
        method
        for method, seen in found.items()
        if any(_is_set_otherwise(a, b) for a, b in combinations(seen, 2))
    }


def _evaluated(run: Run) -> dict[str, Any] | None:
    """Return what is said of the evaluation; of a demo that does not say it apart, of the demo."""
    is_told = (run.evaluation / "manifest.json").is_file()
    return read_manifest(run.evaluation) if is_told else run.manifest


def _tables(run: Run, wanted: str) -> dict[str, str] | None:
    """Return the hash of each table of the data of a fingerprint, None where nothing tells."""
    found: dict[str, str] | None = None
    for folder in run.data_folders():
        manifest = read_manifest(folder)
        if found is None and manifest["fingerprint"] == wanted:
            found = manifest["outputs"]
    if found is None:
        found = (_passport(run).get("data") or {}).get("tables")
    tables = (found or {}).items()
    return {k: v for k, v in tables if k.endswith(".parquet") and k not in _HARMLESS} or None


def _settings(run: Run, rows: Sequence[MetricRow]) -> list[tuple[str, dict[str, Any]]]:
    """Return the methods of a run whose settings it says, with these as flat keys."""
    told = _evaluated(run)
    if told is None:
        return []
    config = told["config"]
    sources = {label: one["source"] for label, one in config.get("methods", {}).items()}
    if "source" in config and told["stage"] == "evaluate-method":
        sources = {run.folder.name: config["source"]}
    names = [method for method, _ in dict.fromkeys((row.method, row.seed) for row in rows)]
    if len(names) != len(sources):
        return []
    recipes = _passport(run).get("models") or {}
    demo = (run.manifest or {}).get("config", {}).get("r2ec")
    found = []
    for method, (label, source) in zip(names, sources.items()):  # both in the order of measuring
        if label in CONFIGS:
            tuned = {"tune": config.get("tune", 0)}
            found.append((method, tuned | {"settings": _resolved(label, source)}))
        elif label in recipes:
            found.append((method, _settled(recipes[label])))
        elif demo is not None:
            found.append((method, _settled({"config": demo})))
    return found


def _resolved(label: str, source: str) -> str:
    """Return all settings of a baseline; those that were given, where they are no longer known."""
    _, given = split_source(source)
    try:
        return check_settings(label, given or {}).model_dump_json()
    except ConfigError:
        return source


def _passport(run: Run) -> dict[str, Any]:
    """Return the run's part of its passport, empty where it has none."""
    path = run.folder / "passport.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["runs"][0]
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(f"{path} must be the passport of a run; {error}") from None


def _is_set_otherwise(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return any(
        value != b[key] for key, value in a.items() if value is not None and b.get(key) is not None
    )


def _settled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under dotted keys, without seeds and machines."""
    told = flat(values).items()
    return {key: value for key, value in told if not {"seed", "environment"} & {*key.split(".")}}

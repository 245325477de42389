"""What a report shows, read from a run folder. Parts that are missing are None or empty."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.audits.records import audit_rows, read_audits
from reasonrec.evaluation.protocol import MetricRow, read_rows
from reasonrec.records import Recommendation

MODELS = ("no-think", "think-sft", "think-recpo")
"""Folders of a run that may hold training curves, in the order of the road."""


@dataclass(frozen=True)
class Curve:
    """What one training run logged of one quantity."""

    method: str
    key: str
    """As logged, such as ``rl/reward_mean``."""
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class RunRecords:
    """Everything a report shows."""

    dataset: Dataset
    rejected: pl.DataFrame | None
    """Rows that ``prepare`` set aside, with ``reason``."""
    metrics: tuple[MetricRow, ...]
    per_query: pl.DataFrame | None
    """As in ``Evaluation.per_query``."""
    thoughts: pl.DataFrame | None
    """As in ``Evaluation.thoughts``."""
    curves: tuple[Curve, ...]
    recommendations: tuple[Recommendation, ...]
    audits: tuple[dict[str, Any], ...]
    """Rows of ``audits/audits.json``, what failed first; none where nothing was audited."""
    config: dict[str, Any] | None
    """The resolved configuration, as it was written."""
    preparation: dict[str, Any] | None
    """How the data were prepared: the manifest of ``data/``."""
    manifest: dict[str, Any] | None
    """Versions and commit: of the run, or of its data while the run is not finished."""


def load_run(folder: Path | str) -> RunRecords:
    """Return what a run folder holds.

    ``data/`` and ``metrics.json`` must be there; all else may be missing.

    Raises:
        CheckpointError: A needed part is missing, or a part is damaged.
        DataError: The prepared data cannot be read.
    """
    folder = Path(folder)
    recommendations = _json(folder / "recommendations.json") or []
    try:
        explained = tuple(Recommendation.from_json(fields) for fields in recommendations)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'recommendations.json'}: {error}") from None
    audited = folder / "audits"
    preparation = _json(folder / "data" / "manifest.json")
    return RunRecords(
        dataset=Dataset.load(folder / "data"),
        rejected=_parquet(folder / "data" / "rejected.parquet"),
        metrics=tuple(read_rows(folder / "metrics.json")),
        per_query=_parquet(folder / "evaluation" / "per_query.parquet"),
        thoughts=_parquet(folder / "evaluation" / "thoughts.parquet"),
        curves=tuple(
            curve for name in MODELS for curve in read_curves(folder / name / "metrics.jsonl", name)
        ),
        recommendations=explained,
        audits=tuple(audit_rows(read_audits(audited)))
        if (audited / "manifest.json").is_file()
        else (),
        config=_json(folder / "config.json"),
        preparation=preparation,
        manifest=_json(folder / "manifest.json") or preparation,
    )


def read_curves(path: Path, method: str) -> list[Curve]:
    """Return one curve per logged number; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    points: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if not isinstance(step, int | float):
            continue
        for key, value in row.items():
            if key != "step" and isinstance(value, int | float) and abs(value) < float("inf"):
                points.setdefault(key, []).append((float(step), float(value)))
    return [
        Curve(method, key, tuple(s for s, _ in sorted(found)), tuple(v for _, v in sorted(found)))
        for key, found in points.items()
    ]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} must be JSON; {error}") from None


def _parquet(path: Path) -> pl.DataFrame | None:
    if not path.exists():
        return None
    try:
        return pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from None

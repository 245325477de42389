"""Evaluated runs on disk: what ``reasonrec evaluate`` and ``reasonrec demo`` left, and where."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reasonrec.errors import CheckpointError
from reasonrec.evaluation.protocol import FILES
from reasonrec.evaluation.trajectory import TRAJECTORY
from reasonrec.manifest import read_manifest

AUDITS = "audits.json"
EVALUATION = "evaluation"


@dataclass(frozen=True)
class Run:
    """One evaluated run: what ``reasonrec evaluate`` or ``reasonrec demo`` left."""

    name: str
    """Name of its folder, with as many parents as tell it from the other runs."""
    folder: Path
    evaluation: Path
    """The folder with the per-query values: ``folder`` itself, or one level below."""
    manifest: dict[str, Any] | None
    """Of ``folder``; None for values without one."""

    def data_folders(self) -> list[Path]:
        """Return where the prepared data of the run may lie: prepared folders that exist."""
        told = {self.folder: self.manifest or {}}
        whole = self.folder.resolve().parent.parent
        if self.folder.resolve().parent == whole / "methods" and is_stage(whole):
            # one method of an evaluation, which says it for all, or of a demo around that
            told |= {whole: read_manifest(whole), whole.parent: {}}
        places: list[Path] = []
        for folder, manifest in told.items():
            named = str(manifest.get("data_folder", "data"))
            places += [folder / "data", folder / named, Path(named)]
        return [place for place in dict.fromkeys(places) if is_stage(place)]

    def files(self) -> list[Path]:
        """Return everything of the run that a comparison reads."""
        parts = [self.evaluation / name for name in FILES]
        return [path for path in (*parts, *self.trajectories(), *self.audits()) if path.is_file()]

    def trajectories(self) -> list[Path]:
        places = {self.folder / TRAJECTORY, self.evaluation / TRAJECTORY}
        places |= set(self.folder.glob(f"*/{TRAJECTORY}"))
        places |= set(self.evaluation.glob(f"methods/*/{TRAJECTORY}"))
        return sorted(place for place in places if place.is_file())

    def audits(self) -> list[Path]:
        folders = dict.fromkeys((self.folder, self.evaluation, self.folder / "audits"))
        return [folder / AUDITS for folder in folders if (folder / AUDITS).is_file()]


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in the folders: per-query values beside the metrics, or one level below.

    The ``evaluation/`` of a demo stands for the demo, so that nothing of it is lost.

    Raises:
        CheckpointError: A folder holds no such values, or is named twice.
    """
    found = [_find_run(Path(folder)) for folder in folders]
    parts = [folder.resolve().parts for folder, _, _ in found]
    if twice := sorted({str(Path(*one)) for one in parts if parts.count(one) > 1}):
        raise CheckpointError(
            f"each run must be named once; got twice {', '.join(twice)}. A demo and the "
            "evaluation/ in it are one run"
        )
    depth = next((n for n in range(1, 9) if len({p[-n:] for p in parts}) == len(parts)), 1)
    return [Run("-".join(p[-depth:]), *one) for p, one in zip(parts, found)]


def is_stage(folder: Path) -> bool:
    """Return whether a finished stage lies there."""
    return (folder / "manifest.json").is_file()


def _find_run(folder: Path) -> tuple[Path, Path, dict[str, Any] | None]:
    """Return a run's folder, where its per-query values lie, and its manifest."""
    parent = folder.resolve().parent
    if folder.resolve().name == EVALUATION and (parent / "manifest.json").is_file():
        manifest = read_manifest(parent)
        if manifest["stage"] == "demo":
            return parent, folder, manifest
    for evaluation in (folder, folder / EVALUATION):
        if (evaluation / "per_query.parquet").is_file():
            return folder, evaluation, read_manifest(folder) if is_stage(folder) else None
    raise CheckpointError(
        f"a run to compare must hold per_query.parquet; found none in {folder} or "
        f"{folder / EVALUATION}. `reasonrec evaluate` writes it"
    )

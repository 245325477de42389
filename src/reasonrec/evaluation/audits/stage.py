"""The audit stage: a data set, and an evaluation where there is one, in; verdicts out.

The folder holds ``audits.json``, ``audits.md``, a copy of the data set for each disguise that was
asked for (``data-renamed``, ``data-hashed``: finished data folders of their own), and last
``manifest.json``.
"""

from pathlib import Path

import numpy as np

from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError, DataError
from reasonrec.evaluation.audits.config import AuditConfig
from reasonrec.evaluation.audits.disguise import write_disguised
from reasonrec.evaluation.audits.leaks import leak_audits
from reasonrec.evaluation.audits.log import log_audits
from reasonrec.evaluation.audits.records import (
    Audits,
    audits_markdown,
    read_audits,
    write_audits_file,
)
from reasonrec.evaluation.audits.shortcuts import chain_audits, popularity_audits, tie_audits
from reasonrec.evaluation.audits.slices import slice_audits, slice_rows, slices_of
from reasonrec.evaluation.protocol import chosen_queries, read_evaluation
from reasonrec.manifest import (
    fingerprint,
    is_finished,
    make_folder,
    read_manifest,
    stopwatch,
    write_manifest,
    writes_alone,
)

STAGE = "audit"
FILES = ("audits.json", "audits.md")


def find_source(source: Path) -> tuple[Path, Path | None]:
    """Return the data folder and the evaluation folder that a path stands for.

    A data folder stands for itself; a run for its ``data`` and ``evaluation``; an evaluation for
    the data that it was measured on.

    Raises:
        CheckpointError: It is none of them.
    """
    source = Path(source)
    if not (source / "manifest.json").exists() and (source / "data" / "manifest.json").exists():
        return source / "data", _evaluation_of(source)
    manifest = read_manifest(source)
    if manifest["stage"] == "prepare":
        return source, None
    if (source / "data").is_dir():
        return source / "data", _evaluation_of(source)
    named = manifest.get("data_folder")
    if (source / "per_query.parquet").is_file() and named is not None:
        for folder in (source / named, Path(named)):
            if folder.is_dir():
                return folder, source
        raise CheckpointError(f"{source} was measured on {named}, which is gone")
    raise CheckpointError(
        f"an audit needs a folder of `reasonrec prepare`, `evaluate` or `demo`; {source} is of "
        f"stage {manifest['stage']!r}"
    )


@writes_alone
def write_audits(source: Path, out: Path, config: AuditConfig, *, seed: int = 0) -> Audits:
    """Return and write all audits of what ``source`` stands for; a finished folder is only read.

    Raises:
        DataError: The data set has no test queries.
        CheckpointError: ``source`` cannot be audited, or ``out`` holds another run.
    """
    data, evaluated = find_source(source)
    dataset = Dataset.load(data)
    out = make_folder(out)
    inputs = {"data": dataset.fingerprint}
    if evaluated is not None:
        inputs["evaluation"] = fingerprint(evaluated / "per_query.parquet")
    settings = config.model_dump(mode="json")
    if is_finished(out, stage=STAGE, inputs=inputs, config=settings, seed=seed):
        return read_audits(out)
    if len(dataset.test) == 0:
        raise DataError(f"{dataset.name} must hold test queries to audit; it has none")
    with stopwatch() as spent:
        audits = audit(dataset, evaluated, config, seed=seed)
        write_audits_file(out / "audits.json", audits)
        (out / "audits.md").write_text(audits_markdown(audits), encoding="utf-8")
        for kind in config.disguise:
            write_disguised(dataset, out / f"data-{kind}", kind, seed=seed)
    write_manifest(
        out, stage=STAGE, inputs=inputs, config=settings, outputs=list(FILES), seconds=spent[0],
        seed=seed,
    )  # fmt: skip
    return audits


def audit(
    dataset: Dataset, evaluated: Path | None, config: AuditConfig, *, seed: int = 0
) -> Audits:
    """Return all audits of a prepared data set, and of an evaluation folder on its test part."""
    rows = chosen_queries(dataset.test, None, config.num_queries, "test")
    prepared = read_manifest(dataset.folder)["config"]
    slices = slices_of(dataset, first_seen_after=config.first_seen_after)
    found = [
        *leak_audits(dataset, rows, num_probes=config.num_probes, seed=seed, config=prepared),
        *log_audits(dataset),
        *popularity_audits(
            dataset, num_candidates=config.num_candidates, num_queries=config.num_queries
        ),
        *chain_audits(dataset, rows, seed=seed),
        *slice_audits(slices),
    ]
    results = []
    if evaluated is not None:
        measured = read_evaluation(evaluated)
        per_query = measured.per_query
        _check_is_test(per_query["query"].to_numpy(), per_query["target"].to_numpy(), dataset)
        found += tie_audits(per_query, measured.lists)
        results = slice_rows(per_query, slices)
    return Audits(dataset.name, dataset.split, tuple(found), tuple(results))


def _evaluation_of(run: Path) -> Path | None:
    folders = (run, run / "evaluation")
    return next((f for f in folders if (f / "per_query.parquet").is_file()), None)


def _check_is_test(query: np.ndarray, target: np.ndarray, dataset: Dataset) -> None:
    known = query < len(dataset.test)
    if not known.all() or not np.array_equal(dataset.test.target[query], target):
        raise DataError(
            f"the evaluation must be of the test part of {dataset.folder}; it asks for other "
            "targets. Was it measured on valid, or on other data?"
        )

"""Keep finished runs in the repository, as ranks of queries, and lay them out again.

    python benchmarks/kept.py keep peers runs/peers/games-2018 runs/peers/ml-1m
    python benchmarks/kept.py keep demos runs/ml-100k-0 runs/ml-100k-1
    REASONREC_DATA=... python benchmarks/kept.py unpack peers runs/peers

A table grows over days and machines, and its tests need every query of every method. So the first
lines leave, for each run or search, docs/results/kept/<table>/<run>.zip: its manifests, metrics and
trials, and the rank of each query's target. The last one prepares the data anew and writes the runs
as they were, but for thoughts, lists and models; the scripts that write pages read them like any
others, and go on from there. Nothing kept tells who a query is of or what was taken: both are read
from the data, whose tables must be, byte for byte, those that the run was measured on.
"""

import argparse
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from floor import PREPARE
from running import ROOT, reasonrec, say

from reasonrec.data.dataset import Dataset, Queries
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.protocol import Evaluation, MetricRow, read_rows, write_evaluation
from reasonrec.manifest import read_manifest

KEPT = ROOT / "docs" / "results" / "kept"
TEXTS = (
    "manifest.json", "metrics.json", "trials.jsonl", "best.toml", "peer.json", "passport.json",
)  # fmt: skip
"""What is kept as it is, wherever it lies in a run."""
DATA = "data.json"
"""The name of the data, and the fingerprint of each of its tables."""
RANKS = "ranks.parquet"
"""Stands for ``per_query.parquet``: a row for each ``method``, ``seed`` and ``protocol``, with the
lists ``query`` (null: all of the part, in order), ``rank`` and ``num_tokens`` (null: none)."""
MOST_HALVES = 2**16
"""Ranks, which are whole or half, are kept as so many halves, UInt16, where there are fewer; where
not, and in runs that were kept earlier, as float32."""
BY = ("method", "seed", "protocol")
_NOON = (1980, 1, 1, 12, 0, 0)
"""The time of every file in a zip, so that the same run gives the same bytes."""


def main(words: Sequence[str] | None = None, kept: Path = KEPT) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["keep", "unpack"])
    parser.add_argument("table", help="folder of docs/results/kept")
    parser.add_argument("folders", type=Path, nargs="+", help="runs, folders of runs; where to")
    asked = parser.parse_args(words)
    for folder in asked.folders:
        if asked.what == "keep":
            for run in runs_below(folder):
                say(f"kept {keep(run, kept / asked.table / name_of(run, folder))}")
        else:
            for path in sorted((kept / asked.table).rglob("*.zip")):
                run = folder / path.relative_to(kept / asked.table).with_suffix("")
                if not (run / "manifest.json").exists():
                    unpack(path, run, folder)


def runs_below(folder: Path) -> list[Path]:
    """Return the folder if it is a finished run, else the finished runs and searches in it."""
    folders = [folder] if (folder / "manifest.json").exists() else sorted(folder.iterdir())
    found = [one for one in folders if (one / "manifest.json").exists()]
    return [one for one in found if read_manifest(one)["stage"] != "prepare"]


def name_of(run: Path, named: Path) -> Path:
    """Return where a run is kept: by its name, below that of its set if a set was named."""
    return Path(run.name) if run == named else Path(named.name) / run.name


def keep(run: Path, to: Path) -> Path:
    """Write a run's zip and return its path."""
    named = str(read_manifest(run).get("data_folder", "data"))
    data = next(d for d in (run / named, Path(named)) if (d / "manifest.json").exists())
    told = {"name": Dataset.load(data).name, "tables": tables_of(data)}
    files = {DATA: json.dumps(told, indent=2).encode()}
    for path in sorted(run.rglob("*")):
        place, parent = path.relative_to(run), path.parent
        # what is said of each method of an evaluation stands in that of all
        is_part = parent.parent.name == "methods" and (evaluation_of(parent) / path.name).exists()
        if path.name in TEXTS and not (is_part and path.name == "metrics.json"):
            files[str(place)] = path.read_bytes()
        elif path.name == "per_query.parquet" and not is_part:
            files[str(place.with_name(RANKS))] = ranks_of(path)
    to = to.with_name(f"{to.name}.zip")
    to.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(to, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _NOON), content, zipfile.ZIP_LZMA)
    return to


def tables_of(data: Path) -> dict[str, str]:
    """Return the fingerprint of each table of a prepared folder."""
    outputs = read_manifest(data)["outputs"]
    return {name: value for name, value in outputs.items() if name.endswith(".parquet")}


def evaluation_of(method: Path) -> Path:
    """Return the evaluation that holds the folder of one of its methods."""
    return method.parent.parent


def ranks_of(path: Path) -> bytes:
    """Return what is kept of ``per_query.parquet``."""
    table = pl.read_parquet(path, glob=False)
    one_row = table.group_by(BY, maintain_order=True)
    lists = one_row.agg(
        pl.col("query", "num_tokens").cast(pl.Int32), pl.col("rank").cast(pl.Float32)
    )
    if table.select(pl.col("rank").max() < MOST_HALVES / 2).item():  # whole or half
        halves = (pl.element() * 2).cast(pl.UInt16)
        lists = lists.with_columns(pl.col("rank").list.eval(halves))
    is_all = pl.col("query") == pl.int_ranges(pl.col("query").list.len(), dtype=pl.Int32)
    thinks = pl.col("num_tokens").list.max() > 0
    packed = io.BytesIO()
    lists.with_columns(
        pl.when(~is_all).then("query"), pl.when(thinks).then("num_tokens")
    ).write_parquet(packed, compression="uncompressed")  # the zip does better
    return packed.getvalue()


def unpack(path: Path, run: Path, runs: Path) -> None:
    """Write a kept run to its folder, last of all its manifest.

    Raises:
        CheckpointError: It was measured on other data than are prepared here.
    """
    with zipfile.ZipFile(path) as archive:
        files = {Path(name): archive.read(name) for name in archive.namelist()}
    dataset = prepared(runs, **json.loads(files[Path(DATA)]))
    later = Path("manifest.json")
    apart = Path("data") / later  # of a demo: its tables lie where its manifest will say
    for place, content in files.items():
        if place.name in TEXTS and place not in (later, apart):
            is_manifest = place.name == "manifest.json"
            write(run / place, laid_out(content, dataset) if is_manifest else content)
    for place, content in files.items():
        if place.name != RANKS:
            continue
        evaluation = run / place.parent
        told = json.loads(files.get(place.parent / "manifest.json", files[Path("manifest.json")]))
        rows = read_rows(evaluation / "metrics.json")
        asked = dataset.queries(told["config"].get("part", "test"))
        per_query = queries_of(pl.read_parquet(content), asked)
        write_evaluation(evaluation, [Evaluation(tuple(rows), per_query)])
        if (evaluation / "methods").is_dir():
            # named by labels, which methods need not be: both are in the order of measuring
            measured = dict.fromkeys((row.method, row.seed) for row in rows)
            for label, one in zip(told["config"]["methods"], measured, strict=True):
                write_method(evaluation / "methods" / label, one, rows, per_query)
    write(run / later, laid_out(files[later], dataset))
    say(f"unpacked {run}")


def write_method(
    folder: Path, measured: tuple[str, int], rows: Sequence[MetricRow], per_query: pl.DataFrame
) -> None:
    """Write the part of an evaluation that is of one method and seed."""
    own = tuple(row for row in rows if (row.method, row.seed) == measured)
    of_method = (pl.col("method") == measured[0]) & (pl.col("seed") == measured[1])
    write_evaluation(folder, [Evaluation(own, per_query.filter(of_method))])


def laid_out(manifest: bytes, dataset: Dataset) -> bytes:
    """Return a manifest that is of the data here, and promises no files: most are not here."""
    told = json.loads(manifest)
    if "data" in told["inputs"]:
        told["inputs"]["data"] = dataset.fingerprint
        told["data_folder"] = str(dataset.folder.resolve())
    return json.dumps(told | {"outputs": {}}, indent=2).encode()


def prepared(runs: Path, name: str, tables: Mapping[str, str]) -> Dataset:
    """Return the data of a set, prepared if need be."""
    folder = runs / name / "data"
    if not (folder / "manifest.json").exists():
        reasonrec("prepare", name, "--out", folder, *PREPARE[name])
    found = tables_of(folder)
    if other := [table for table, value in tables.items() if found.get(table) != value]:
        raise CheckpointError(
            f"{folder} must hold the tables that the kept runs were measured on; these differ: "
            f"{', '.join(other)}. Was it prepared by another version?"
        )
    return Dataset.load(folder)


def queries_of(kept: pl.DataFrame, part: Queries) -> pl.DataFrame:
    """Return kept ranks with what the data say of their queries, as ``Evaluation.per_query`` is."""
    num_queries = pl.col("rank").list.len()
    if kept.schema["rank"] == pl.List(pl.UInt16):
        kept = kept.with_columns(pl.col("rank").list.eval(pl.element() / 2))
    ranks = kept.with_columns(
        pl.col("query").fill_null(pl.int_ranges(num_queries, dtype=pl.Int32)),
        pl.col("num_tokens").fill_null(pl.lit(0, pl.Int32).repeat_by(num_queries)),
    ).explode("query", "rank", "num_tokens")
    asked = part.take(ranks["query"].to_numpy().astype(np.int64))
    return ranks.select(
        *BY,
        pl.col("query").cast(pl.Int64),
        pl.Series("user_index", asked.user_index),
        pl.Series("target", asked.target),
        pl.Series("history_length", (asked.history_stop - asked.history_start).astype(np.int64)),
        pl.col("rank").cast(pl.Float64),
        pl.col("num_tokens").cast(pl.Int64),
        pl.lit(float("nan")).alias("seconds"),  # costs stand in the metrics
    )


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    main()

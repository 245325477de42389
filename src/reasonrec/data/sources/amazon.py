"""Amazon Reviews 2023: a ratings CSV or reviews JSONL, and the metadata of the same category.

``user_id, parent_asin, rating, timestamp`` (milliseconds), and ``meta_CATEGORY.jsonl(.gz)`` with
``parent_asin``, ``title``, ``description`` (a list of paragraphs), ``categories``, ``price`` and
others, as R²ec uses them. Products without a title are set aside, and their events with them.
"""

from dataclasses import replace
from pathlib import Path

import polars as pl

from reasonrec.data.raw import RawTables, Table
from reasonrec.data.sources.files import csv_header, items_from_json_lines, read_csv, read_log
from reasonrec.errors import DataError

LAYOUT = "Amazon Reviews 2023: CATEGORY.csv or CATEGORY.jsonl, and meta_CATEGORY.jsonl (or .gz)"
_LOG = ("user_id", "parent_asin", "rating", "timestamp")
_META = (
    "parent_asin", "title", "description", "categories", "main_category", "store", "price",
    "average_rating", "rating_number",
)  # fmt: skip


def recognises(folder: Path) -> bool:
    """Return whether there are metadata of a category and a log that names ``parent_asin``."""
    return bool(_meta_files(folder) and _log_files(folder))


def read(folder: Path) -> RawTables:
    """Return the ratings and products of one category.

    Raises:
        DataError: There are several logs or several metadata files.
    """
    logs, metas = _log_files(folder), _meta_files(folder)
    for kind, found in (("log", logs), ("metadata file", metas)):
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataError(f"{folder} must hold one {kind} of one category; found {names}")
    meta = items_from_json_lines(metas[0], _META)
    frame = meta.frame.rename({"parent_asin": "item_id"}, strict=False)
    return RawTables(
        layout="Amazon Reviews 2023",
        log=_read_log(logs[0]),
        items=replace(meta, frame=frame.with_columns(_numbers(frame))),
        files={logs[0].name: logs[0], metas[0].name: metas[0]},
        rating_scale=(1.0, 5.0),
    )


def _read_log(path: Path) -> Table:
    if ".csv" in path.name:
        table = read_csv(path, csv_header(path), wanted=_LOG)
    else:
        table = read_log(path, _LOG)
    return replace(table, frame=table.frame.rename({"parent_asin": "item_id"}, strict=False))


def _numbers(frame: pl.DataFrame) -> list[pl.Expr]:
    """Return ``price`` and the rating columns as numbers; a price may be written as text."""
    names = [n for n in ("price", "average_rating", "rating_number") if n in frame.columns]
    return [pl.col(name).cast(pl.Float64, strict=False) for name in names]


def _meta_files(folder: Path) -> list[Path]:
    return sorted(
        p for p in folder.glob("meta*.jsonl*") if p.name.endswith((".jsonl", ".jsonl.gz"))
    )


def _log_files(folder: Path) -> list[Path]:
    tables = [p for p in sorted(folder.glob("*.csv*")) if p.name.endswith((".csv", ".csv.gz"))]
    found = [
        p for p in tables if p.stat().st_size and {"user_id", "parent_asin"} <= {*csv_header(p)}
    ]
    if found:
        return found
    lines = sorted(p for p in folder.glob("*.jsonl*") if p.name.endswith((".jsonl", ".jsonl.gz")))
    return [path for path in lines if not path.name.startswith("meta")]

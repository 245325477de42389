"""MiniOneRec CSVs: one file each for train, valid and test, a row being a history and a target.

Columns ``user_id``, ``history_item_id`` and ``history_item_title`` (Python lists written as text),
``item_id``, ``item_title``; the ``sid`` columns are not read. Descriptions come from
``NAME.item.json`` if it is there.
The files state no times, so the order of the rows is the order of events.
"""

import ast
import json
from pathlib import Path

import polars as pl

from reasonrec.data.raw import ROW, RawTables, Table
from reasonrec.data.sources.files import csv_header, read_csv, read_text
from reasonrec.data.sources.sequences import log_of_sequences
from reasonrec.errors import DataError

LAYOUT = (
    "MiniOneRec: train, valid and test CSVs with history_item_id and item_id, flat or in folders"
)
_NEEDED = {"user_id", "history_item_id", "item_id", "item_title"}
_WANTED = ("user_id", "history_item_id", "item_id", "item_title", "history_item_title")


def recognises(folder: Path) -> bool:
    """Return whether there are three such CSVs."""
    found = _files(folder)
    return all(found.values()) and all(
        path.stat().st_size and {*csv_header(path)} >= _NEEDED
        for paths in found.values()
        for path in paths
    )


def read(folder: Path) -> RawTables:
    """Return the log of the training rows, the queries of the others, and all items they name.

    Raises:
        DataError: There are several files for one part.
    """
    paths = {}
    for part, found in _files(folder).items():
        if len(found) != 1:
            names = ", ".join(path.name for path in found)
            raise DataError(f"{folder} must hold one CSV for {part}; found {names}")
        paths[part] = found[0]
    tables = {
        part: read_csv(path, csv_header(path), wanted=_WANTED) for part, path in paths.items()
    }
    ids = pl.col("history_item_id").fill_null("").str.extract_all(r"[^\[\]'\",\s]+")
    rows = {
        part: table.frame.select("user_id", history=ids, target=pl.col("item_id"))
        for part, table in tables.items()
    }
    details = _item_json(folder)
    files = {path.relative_to(folder).as_posix(): path for path in paths.values()}
    if details is not None:
        files[details.relative_to(folder).as_posix()] = details
    return RawTables(
        layout="MiniOneRec",
        log=log_of_sequences(paths["train"].name, rows["train"]),
        items=_items(pl.concat([t.frame for t in tables.values()]), details),
        files=files,
        queries={"valid": rows["valid"], "test": rows["test"]},
    )


def _items(rows: pl.DataFrame, details: Path | None) -> Table:
    titles: dict[str, str | None] = {}
    named = rows.select("item_id", "item_title").drop_nulls().unique("item_id", maintain_order=True)
    titles.update(named.iter_rows())
    ids = pl.col("history_item_id").fill_null("").str.extract_all(r"[^\[\]'\",\s]+")
    if "history_item_title" in rows.columns:  # an item that is never a target is named only here
        untitled = pl.DataFrame({"item_id": rows.select(ids.list.explode()).to_series().unique()})
        untitled = untitled.drop_nulls().join(named, on="item_id", how="anti")["item_id"]
        is_needed = ids.list.eval(pl.element().is_in(untitled.implode())).list.any()
        pairs = rows.filter(is_needed).select(ids.alias("ids"), "history_item_title").unique()
        for history, written in pairs.sort("history_item_title").iter_rows():
            for item_id, title in zip(history, _listed(written)):
                titles.setdefault(item_id, title)
    descriptions: dict[str, str | None] = {}
    if details is not None:
        for item_id, item in _parsed(details).items():
            titles.setdefault(item_id, item.get("title"))
            descriptions[item_id] = item.get("description")
    order = sorted(titles, key=lambda i: (0, int(i), "") if i.isdecimal() else (1, 0, i))
    return Table(
        "items",
        pl.DataFrame(
            {
                "item_id": order,
                "title": [titles[i] for i in order],
                "description": [descriptions.get(i) for i in order],
                ROW: range(1, len(order) + 1),
            },
            schema={
                "item_id": pl.String,
                "title": pl.String,
                "description": pl.String,
                ROW: pl.Int64,
            },
            strict=False,
        ),
    )


def _listed(written: str | None) -> list[str | None]:
    try:
        value = ast.literal_eval(written or "[]")
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [None if v is None else str(v) for v in value] if isinstance(value, list) else []


def _parsed(path: Path) -> dict[str, dict[str, str]]:
    text, _ = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} must be JSON: an object of items by id; {error}") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} must be JSON: an object of items by id; got a {type(content).__name__}"
        )
    return {str(key): value for key, value in content.items() if isinstance(value, dict)}


def _files(folder: Path) -> dict[str, list[Path]]:
    return {
        part: sorted(folder.glob(f"{part}/*.csv")) or sorted(folder.glob(f"*{part}*.csv"))
        for part in ("train", "valid", "test")
    }


def _item_json(folder: Path) -> Path | None:
    found = sorted([*folder.glob("*.item.json"), *folder.glob("index/*.item.json")])
    return found[0] if len(found) == 1 else None

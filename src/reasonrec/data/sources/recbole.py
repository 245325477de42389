"""RecBole atomic files: ``NAME.inter`` and ``NAME.item``, tab-separated, headers ``name:type``.

Also the form with ``NAME.train.inter``, ``NAME.valid.inter`` and ``NAME.test.inter``, in which a
row is a history ``item_id_list`` and a target ``item_id``: a published split.
"""

from dataclasses import replace
from pathlib import Path

import polars as pl

from reasonrec.data.raw import ROW, RawTables, Table
from reasonrec.data.sources.files import csv_header, read_csv, read_text
from reasonrec.data.sources.sequences import log_of_sequences
from reasonrec.errors import DataError

LAYOUT = "RecBole atomic files: NAME.inter and NAME.item, or NAME.{train,valid,test}.inter"
_TITLES = ("title", "movie_title", "name", "item_name")
_CATEGORIES = ("categories", "class", "genre", "genres", "category")
_PARTS = ("train", "valid", "test")


def recognises(folder: Path) -> bool:
    """Return whether there are ``.inter`` files."""
    return any(folder.glob("*.inter"))


def read(folder: Path) -> RawTables:
    """Return the tables of one RecBole set.

    Raises:
        DataError: There are several sets, or a header is not ``name:type``.
    """
    logs = sorted(folder.glob("*.inter"))
    names = {path.name.split(".")[0] for path in logs}
    if len(names) != 1:
        raise DataError(f"{folder} must hold one RecBole set; found {', '.join(sorted(names))}")
    name = names.pop()
    files = {path.name: path for path in logs}
    item_file = folder / f"{name}.item"
    items = None
    if item_file.is_file():
        files[item_file.name] = item_file
        items = _read_items(item_file)
    parts = {part: folder / f"{name}.{part}.inter" for part in _PARTS}
    if all(path.is_file() for path in parts.values()):
        tables = {part: _sequences(_read(path)) for part, path in parts.items()}
        log = log_of_sequences(parts["train"].name, tables["train"])
        queries = {part: tables[part] for part in ("valid", "test")}
        return RawTables("RecBole sequences", log, items, files, queries=queries)
    if len(logs) != 1:
        raise DataError(
            f"{folder} must hold {name}.inter, or {name}.train, .valid and .test.inter; found "
            + ", ".join(path.name for path in logs)
        )
    return RawTables("RecBole atomic files", _read(logs[0]), items, files)


def _read(path: Path) -> Table:
    fields = _fields(path, csv_header(path, "\t"))
    return read_csv(path, fields, separator="\t", quoted=False)


def _read_items(path: Path) -> Table:
    text, notes = read_text(path)
    fields = _fields(path, csv_header(path, "\t"))
    table = read_csv(path, fields, separator="\t", quoted=False, text=text)
    renamed = {}
    for ours, theirs in (("title", _TITLES), ("categories", _CATEGORIES)):
        found = next((name for name in theirs if name in fields), None)
        if found is not None:
            renamed[found] = ours
    frame = table.frame.rename(renamed)
    if "categories" in frame.columns:
        # token_seq: words between spaces, or quoted phrases between commas
        value = pl.col("categories")
        is_quoted = value.str.contains(",", literal=True)
        phrases = value.str.split(",").list.eval(pl.element().str.strip_chars(" '\"[]"))
        frame = frame.with_columns(pl.when(is_quoted).then(phrases).otherwise(value.str.split(" ")))
    return replace(table, frame=frame, notes=notes)


def _sequences(table: Table) -> pl.DataFrame:
    if "item_id_list" not in table.frame.columns:
        raise DataError(
            f"{table.file} must have item_id_list:token_seq, the history of each row; found "
            + ", ".join(name for name in table.frame.columns if name != ROW)
        )
    history = pl.col("item_id_list").fill_null("").str.split(" ")
    return table.frame.select(
        "user_id",
        history.list.eval(pl.element().filter(pl.element() != "")).alias("history"),
        pl.col("item_id").alias("target"),
        *(name for name in ("timestamp",) if name in table.frame.columns),
    )


def _fields(path: Path, header: list[str]) -> list[str]:
    kinds = {"token", "float", "token_seq", "float_seq"}
    if not all(field.rpartition(":")[2] in kinds for field in header):
        raise DataError(
            f"the header of {path} must be fields like user_id:token, rating:float, between tabs; "
            f"got {header}"
        )
    return [field.rpartition(":")[0] for field in header]

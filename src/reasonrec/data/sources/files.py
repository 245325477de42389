"""One file -> one table, whatever is wrong with the file.

CSV and JSON lines keep every value as text; Parquet keeps its types. A row that cannot be read is
set aside; a file that cannot be read is a ``DataError``. Bytes that are no UTF-8 are taken for
Latin-1 in item tables (MovieLens is published so), and replaced by U+FFFD in logs, whose ids are
then refused one by one. Lines may end as on old Macs, in CR alone, where the first one does.
"""

import gzip
import io
import json
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from reasonrec.data.raw import ITEM_COLUMNS, REJECTED_SCHEMA, ROW, Table, rejected_rows
from reasonrec.errors import DataError

_SURPLUS = "_surplus"
_IDS = ("item_id", "parent_asin")
_READ_ERRORS = (
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    OSError,
    EOFError,
    zlib.error,
)
SUFFIXES = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".ndjson")


def read_log(path: Path, columns: Sequence[str]) -> Table:
    """Return those of ``columns`` that an interaction file has, and notes on the names of others.

    Names may differ from ``columns``, which are lower case, in capitals and in spaces around.

    Raises:
        DataError: The file is empty, damaged, or of no known kind.
    """
    kind = _kind(path)
    if kind == "parquet":
        found = parquet_columns(path)
        names = _names_of(columns, found)
        frame = _read_parquet(path, list(names.values()))
        table = Table(path.name, _numbered(frame.rename(_renamed(names))))
    elif kind == "jsonl":
        found = _keys(path)
        names = _names_of(columns, found)
        table = _log_from_json_lines(path, {name: names.get(name, name) for name in columns})
    else:
        line = _first_line(path)
        separator = _separator(line, kind)
        found = _header_fields(line, separator)
        names = _names_of(columns, found)
        ours = _renamed(names)
        header = [ours.get(name, name) for name in found]
        table = read_csv(path, header, wanted=columns, separator=separator)
    unread = [name for name in found if name not in names.values()]
    notes = _notes_on_names(path, names)
    if unread:
        said = f"{_listed(unread)}; understood are {', '.join(columns)}"
        notes.append(f"{path.name}: not read: {said}")
    return replace(table, notes=tuple(notes), columns=tuple(found))


def read_items(path: Path) -> Table:
    """Return an item table with all its columns, those that mean something under our names.

    Raises:
        DataError: The file is empty, damaged, or of no known kind.
    """
    table = _read_items(path)
    found = [name for name in table.frame.columns if name != ROW]
    names = _names_of(ITEM_COLUMNS, found)
    return replace(
        table,
        frame=table.frame.rename(_renamed(names)),
        notes=(*table.notes, *_notes_on_names(path, names)),
        columns=tuple(found),
    )


def _read_items(path: Path) -> Table:
    kind = _kind(path)
    if kind == "parquet":
        return Table(path.name, _numbered(_read_parquet(path, None)))
    if kind == "jsonl":
        return items_from_json_lines(path)
    text, notes = read_text(path)
    line = text.partition("\n")[0]
    separator = _separator(line, kind)
    table = read_csv(path, _header_fields(line, separator), separator=separator, text=text)
    return replace(table, notes=notes)


def _names_of(ours: Sequence[str], found: Sequence[str]) -> dict[str, str]:
    """Return what a file calls those of our columns that it has, in our order.

    Another spelling is taken where it is the only one.
    """
    alike: dict[str, list[str]] = {}
    for name in found:
        alike.setdefault(name.strip().lower(), []).append(name)
    return {
        name: name if name in found else alike[name][0]
        for name in ours
        if name in found or len(alike.get(name, ())) == 1
    }


def _renamed(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items() if theirs != ours}


def _notes_on_names(path: Path, names: Mapping[str, str]) -> list[str]:
    said = [f"{_listed([theirs])} as {ours}" for theirs, ours in _renamed(names).items()]
    return [f"{path.name}: {', '.join(said).replace(' as ', ' was read as ', 1)}"] if said else []


def _listed(names: Sequence[str]) -> str:
    shown = [name if name and name == name.strip() else repr(name) for name in names[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def read_csv(
    path: Path,
    header: Sequence[str],
    *,
    wanted: Sequence[str] | None = None,
    separator: str = ",",
    has_header: bool = True,
    quoted: bool = True,
    text: str | None = None,
) -> Table:
    """Return a delimited file as text columns; rows with too many fields are set aside.

    Args:
        header: Names of the columns of the file, all of them.
        wanted: Those to keep; None keeps all.
        text: Content of the file, where it had to be decoded already.
    """
    if len(set(header)) != len(header):
        raise DataError(f"the columns of {path} must have different names; got {list(header)}")
    keep = [name for name in header if wanted is None or name in wanted]
    try:
        frame = (
            pl.scan_csv(
                _source(path) if text is None else io.BytesIO(text.encode("utf-8", "replace")),
                schema=dict.fromkeys((*header, _SURPLUS), pl.String),
                missing_columns="insert",
                has_header=False,
                skip_rows=int(has_header),
                glob=False,
                separator=separator,
                quote_char='"' if quoted else None,
                encoding="utf8-lossy",
                truncate_ragged_lines=True,
            )
            .select(*keep, _SURPLUS)
            .collect()
        )
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None
    frame = _numbered(frame)
    surplus = frame.filter(pl.col(_SURPLUS).is_not_null())
    return Table(
        path.name,
        frame.filter(pl.col(_SURPLUS).is_null()).drop(_SURPLUS),
        rejected_rows(surplus, "more fields than the header names", file=path.name),
        columns=tuple(header),
    )


def csv_header(path: Path, separator: str = ",") -> list[str]:
    """Return the column names of a delimited file, which may be gzipped.

    Raises:
        DataError: The file is empty or cannot be read.
    """
    return _header_fields(_first_line(path), separator)


def _first_line(path: Path) -> str:
    line = _to_line_feed(path).decode("utf-8", "replace").rstrip("\r\n").partition("\r")[0]
    if not line.strip():
        raise DataError(f"{path} must start with a line of column names; it is empty")
    return line


def _to_line_feed(path: Path) -> bytes:
    try:
        with _open(path) as file:
            return file.readline(1 << 20)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _open_lines(path: Path) -> gzip.GzipFile | io.BufferedReader | io.BytesIO:
    source = _source(path)
    return source if isinstance(source, io.BytesIO) else _open(source)


def _source(path: Path) -> Path | io.BytesIO:
    """Return the file, or what it holds with line feeds where its lines end in CR alone."""
    return io.BytesIO(_bytes(path)) if _ends_in_cr(_to_line_feed(path)) else path


def _bytes(path: Path) -> bytes:
    """Return what a file holds, unpacked, no line ending in CR alone."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None
    if _ends_in_cr(content[: content.find(b"\n") + 1 or None]):
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content


def _ends_in_cr(line: bytes) -> bool:
    """Return whether what a line feed ends was parted by CR before it."""
    return b"\r" in line.rstrip(b"\r\n")


def read_lines(path: Path) -> pl.DataFrame:
    """Return a text file as ``_row`` and ``line``; blank lines are null."""
    try:
        frame = pl.read_csv(
            _source(path),
            glob=False,
            has_header=False,
            schema={"line": pl.String},
            separator="\x1f",
            quote_char=None,
            encoding="utf8-lossy",
            truncate_ragged_lines=True,
        )
    except pl.exceptions.NoDataError:
        frame = pl.DataFrame(schema={"line": pl.String})
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None
    return _numbered(frame)


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """Return the content of a text file, and a note if it was not UTF-8."""
    content = _bytes(path)
    try:
        return content.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        return content.decode("latin-1"), (f"{path.name} is not UTF-8; it was read as Latin-1",)


def parquet_columns(path: Path) -> list[str]:
    """Return the column names of a Parquet file, or a ``DataError`` if it is none."""
    try:
        return list(pl.read_parquet_schema(path))
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None


def read_parquet(path: Path) -> pl.DataFrame:
    """Return a whole Parquet file, or a ``DataError`` if it is damaged."""
    return _read_parquet(path, None)


def items_from_json_lines(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Return an item table of JSON objects, one a line; lists stay lists, objects become text."""
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    bad: list[tuple[str, int, str, str]] = []
    try:
        with _open_lines(path) as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    text = line.decode("utf-8", "replace").strip()[:2000]
                    bad.append((path.name, number, "not a JSON object", text))
                    continue
                rows.append(row if columns is None else {k: row[k] for k in columns if k in row})
                numbers.append(number)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None
    names = list(dict.fromkeys(name for row in rows for name in row))
    frame = pl.DataFrame(
        [
            (_ids if name.strip().lower() in _IDS else _series)(
                name, [row.get(name) for row in rows]
            )
            for name in names
        ]
        + [pl.Series(ROW, numbers, dtype=pl.Int64)]
    )
    return Table(path.name, frame, pl.DataFrame(bad, schema=REJECTED_SCHEMA, orient="row"))


def _series(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {list}:
        return pl.Series(name, [_texts(value) for value in values], dtype=pl.List(pl.String))
    if kinds in ({bool}, {float}, {int, float}):
        return pl.Series(name, values, strict=False)
    if kinds == {int} and all(-(2**63) <= value < 2**63 for value in values if value is not None):
        return pl.Series(name, values, dtype=pl.Int64)
    return pl.Series(name, [_text(value) for value in values], dtype=pl.String)


def _ids(name: str, values: list[Any]) -> pl.Series:
    """Return ids as text, 7.0 as 7: what an id is called does not depend on the other rows."""
    if any(isinstance(value, list | dict) for value in values):
        return _series(name, values)
    texts = [_number(value) if isinstance(value, float) else _text(value) for value in values]
    return pl.Series(name, texts, dtype=pl.String)


def _number(value: float) -> str:
    """Return a number as polars reads it from JSON lines into text."""
    return format(Decimal(repr(value)), "f").removesuffix(".0")


def _texts(values: list[Any] | None) -> list[str | None] | None:
    return None if values is None else [_text(value) for value in values]


def _text(value: Any) -> str | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate is no text


def _keys(path: Path) -> list[str]:
    """Return the keys of the JSON objects in the first thousand lines of a file."""
    keys: dict[str, None] = {}
    try:
        with _open_lines(path) as file:
            for line in islice(file, 1000):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                keys |= dict.fromkeys(row) if isinstance(row, dict) else {}
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None
    return [text for key in keys if (text := _text(key))]


def _log_from_json_lines(path: Path, names: Mapping[str, str]) -> Table:
    """Return a log under our names; ``names`` says what the file calls each."""
    rejected = pl.DataFrame(schema=REJECTED_SCHEMA)
    schema = dict.fromkeys(names.values(), pl.String)
    try:
        frame = _numbered(pl.read_ndjson(_source(path), schema=schema))
    except _READ_ERRORS:  # one bad line spoils the quick reader: look at the lines one by one
        lines = read_lines(path).drop(ROW).filter(pl.col("line").str.strip_chars() != "")
        lines = _numbered(lines)
        parsed = pl.col("line").str.json_path_match
        is_object = parsed("$").str.starts_with("{").fill_null(False)
        rejected = rejected_rows(lines.filter(~is_object), "not a JSON object", file=path.name)
        objects = lines.filter(is_object)
        text = io.BytesIO("\n".join(objects["line"]).encode())
        try:  # the quick reader again: both must call an id the same, 1.0 in JSON is 1
            frame = pl.read_ndjson(text, schema=schema).with_columns(objects[ROW])
        except _READ_ERRORS:
            fields = (parsed(f"$['{name}']").alias(name) for name in schema)
            frame = objects.select(ROW, *fields)
    frame = frame.rename(_renamed(names))
    present = [name for name in names if frame[name].null_count() < frame.height]
    return Table(path.name, frame.select(ROW, *present), rejected)


_PROBE = """import sys, polars
polars.read_parquet(sys.argv[1], columns=sys.argv[2:] or None, glob=False)"""


def _read_parquet(path: Path, columns: list[str] | None) -> pl.DataFrame:
    """Read a file of whoever's making, in a process of its own first.

    At some damaged pages polars asks for memory without bound, and ends the process that asks.
    """
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE, str(path), *(columns or ())],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if probe.returncode not in (0, 1):  # 1: an exception, which comes up below
        reason = probe.stderr.strip() or f"its reader ended with {probe.returncode}"
        raise _unreadable(path, MemoryError(reason))
    try:
        return pl.read_parquet(path, columns=columns, glob=False)
    except _READ_ERRORS as error:
        raise _unreadable(path, error) from None


def _numbered(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW))


def _separator(line: str, kind: str) -> str:
    """Return what parts the fields of a table whose first line is ``line``.

    A spreadsheet writes CSV with semicolons where the comma is in numbers; tabs and bars occur too.
    """
    return "\t" if kind == "tsv" else max(",;\t|", key=line.count)  # the first of equal ones


def _header_fields(line: str, separator: str) -> list[str]:
    fields = line.lstrip("\ufeff").rstrip("\r\n").split(separator)
    return [field.strip().strip('"').strip() for field in fields]


def _kind(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    if not path.is_file():
        raise DataError(f"there must be a file at {path}; found none")
    if path.stat().st_size == 0:
        raise DataError(f"{path} must hold a table; it is empty")
    for kind, endings in {
        "parquet": (".parquet",),
        "jsonl": (".jsonl", ".ndjson", ".json"),
        "tsv": (".tsv",),
        "csv": (".csv",),
    }.items():
        if name.endswith(endings):
            return kind
    raise DataError(f"{path} must be one of {', '.join(SUFFIXES)}")


def _unreadable(path: Path, error: BaseException) -> DataError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(
        f"{path} cannot be read: {reason[:300]}. Is it complete, and of the kind its name says?"
    )

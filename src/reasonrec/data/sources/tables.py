"""The two-table contract itself: ``interactions.*`` and ``items.*`` in one folder, or two paths.

Also the layout with published splits beside the tables: ``split_valid.parquet``,
``split_test.parquet``, or ``split_NAME_valid.parquet`` and ``split_NAME_test.parquet``.
"""

from pathlib import Path

from reasonrec.data.raw import LOG_COLUMNS, RawTables
from reasonrec.data.sources.files import SUFFIXES, read_items, read_log
from reasonrec.errors import DataError

LAYOUT = "interactions.{parquet,csv,tsv,jsonl} and items.{parquet,csv,tsv,jsonl}"


def recognises(folder: Path) -> bool:
    """Return whether the folder has an interactions table."""
    return bool(_table_files(folder, "interactions"))


def read(folder: Path) -> RawTables:
    """Return the tables of such a folder; the item table may be missing."""
    log = table_file(folder, "interactions")
    assert log is not None
    splits = {path.stem: path for path in sorted(folder.glob("split_*.parquet"))}
    return read_pair(log, table_file(folder, "items"), splits)


def read_pair(log: Path, items: Path | None, splits: dict[str, Path] | None = None) -> RawTables:
    """Return the tables of two files, wherever they lie."""
    events = read_log(log, LOG_COLUMNS)
    table = None if items is None else read_items(items)
    files = {log.name: log}
    if items is not None:  # from two folders, both may have one name
        clash = items.name == log.name
        files[f"items {items.name}" if clash else items.name] = items
    return RawTables(
        layout="tables",
        log=events,
        items=table,
        files=files,
        splits=splits or {},
        notes=(*events.notes, *(() if table is None else table.notes)),
    )


def table_file(folder: Path, stem: str) -> Path | None:
    """Return ``stem`` with the known ending that exists in ``folder``, None if there is none.

    Raises:
        DataError: There are several; one of them may be a stale export.
    """
    found = _table_files(folder, stem)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"{folder} must hold one file for the table {stem}; found {names}. Keep the one that "
            "is meant, or name it: reasonrec prepare LOG --items ITEMS"
        )
    return found[0] if found else None


def _table_files(folder: Path, stem: str) -> list[Path]:
    paths = (folder / f"{stem}{suffix}" for suffix in SUFFIXES)
    return [path for path in paths if path.is_file()]

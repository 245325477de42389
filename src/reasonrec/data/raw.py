"""What a reader hands over: tables as found, each row knowing where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

LOG_COLUMNS = ("user_id", "item_id", "rating", "timestamp", "position", "part")
"""Columns of an interaction log that mean something here; any others are not read."""
ITEM_COLUMNS = ("item_id", "title", "description", "categories")
"""Columns of an item table that mean something here; any others are kept as they are."""
ROW = "_row"
"""Number of the data row in its file, from 1, without the header."""
REJECTED_SCHEMA = {"file": pl.String, "row": pl.Int64, "reason": pl.String, "raw": pl.String}


@dataclass(frozen=True)
class Table:
    """One file as a table, and the rows of it that could not be read at all."""

    file: str
    """Name of the file, for messages."""
    frame: pl.DataFrame
    """The columns of the file, and ``_row`` (int64)."""
    rejected: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTED_SCHEMA))
    """``file``, ``row``, ``reason``, ``raw``."""
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """All columns of the file, those not read included, for messages."""


@dataclass(frozen=True)
class RawTables:
    """A raw data set under the names of the data contract, nothing checked yet."""

    layout: str
    """Which reader read it, for people."""
    log: Table
    """``user_id``, ``item_id`` and those of ``LOG_COLUMNS`` that the set has."""
    items: Table | None
    """``item_id``, ``title``, and any further columns. None if the set has no item table."""
    files: Mapping[str, Path]
    """Every file that was read: a short name -> where it lies."""
    splits: Mapping[str, Path] = field(default_factory=dict)
    """Published split files: ``split_valid`` and the like -> Parquet file."""
    queries: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """A published split inside ``files``: ``valid`` and ``test`` -> user_id, history, target."""
    rating_scale: tuple[float, float] | None = None
    """Lowest and highest rating that this layout allows; None if it does not say."""
    notes: tuple[str, ...] = ()


def rejected_rows(frame: pl.DataFrame, reason: pl.Expr | str, *, file: str) -> pl.DataFrame:
    """Return rows of ``frame`` as records of ``rejected.parquet``: where, why, what they said."""
    columns = [name for name in frame.columns if not name.startswith("_")]
    raw = pl.struct(columns).struct.json_encode() if columns else pl.lit("{}")
    return frame.select(
        file=pl.lit(file),
        row=pl.col(ROW).cast(pl.Int64),
        reason=pl.lit(reason) if isinstance(reason, str) else reason,
        raw=raw.str.slice(0, 2000),
    )

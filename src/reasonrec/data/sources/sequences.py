"""Published training rows ``history -> target`` -> the log that they were cut from."""

import polars as pl

from reasonrec.data.raw import ROW, Table


def log_of_sequences(file: str, rows: pl.DataFrame) -> Table:
    """Return each user's events in order: the first row's history, then the target of every row.

    Rows of one user must be in order of time and start with the shortest history, as published:
    each row's history ends where the row before it had its target.

    Args:
        rows: ``user_id``, ``history`` (list of item ids), ``target``; in file order.
    """
    numbered = rows.select("user_id", "history", "target").with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW)
    )
    first = numbered.unique("user_id", keep="first", maintain_order=True).select(
        ROW, "user_id", item_id=pl.col("history"), _step=pl.lit(0)
    )
    started = (
        first.filter(pl.col("item_id").list.len() > 0).explode("item_id")
        .with_columns(_step=pl.int_range(pl.len()).over("user_id") - 1_000_000)
    )  # fmt: skip
    targets = numbered.select(
        ROW, "user_id", item_id=pl.col("target"), _step=pl.int_range(pl.len()).over("user_id")
    )
    events = pl.concat([started, targets], how="vertical_relaxed")
    position = pl.col("_step").rank("ordinal").over("user_id").cast(pl.Int64) - 1
    frame = events.with_columns(position=position, part=pl.lit("train")).drop("_step")
    return Table(file, frame.sort("user_id", "position"))

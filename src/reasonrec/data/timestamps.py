"""Times of any kind -> microseconds since 1970, row by row, so that mixed units are seen."""

from dataclasses import dataclass

import polars as pl

SECOND_US = 1_000_000
_FIRST_DAY, _LAST_DAY = 19_700_102, 21_001_231
"""Days that are written as one number; as seconds they would be some of August 1970."""
_DATE_FORMATS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S%.f")
_ZONED_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M%:z", "%Y-%m-%d %H:%M:%S%.f%z")


@dataclass(frozen=True)
class Times:
    """A parsed column of times."""

    micros: pl.Series
    """int64 microseconds since 1970 UTC, so that order inside a second survives; null if unread."""
    units: dict[str, int]
    """How many rows were seconds, milliseconds, microseconds, nanoseconds, or dates."""


def parse_times(values: pl.Series) -> Times:
    """Return times from numbers, ISO dates or text of either; each row is read by its own size.

    Numbers that are all days of the calendar, as 20240131, are dates. Else
    a number below 10^11 is seconds (up to the year 5138), below 10^14 milliseconds, below 10^17
    microseconds, else nanoseconds. Dates without a zone are UTC; with dots, the day stands first.
    """
    if values.dtype == pl.Date or isinstance(values.dtype, pl.Datetime):
        if isinstance(values.dtype, pl.Datetime) and values.dtype.time_zone is not None:
            values = values.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        micros = values.cast(pl.Datetime("us")).cast(pl.Int64)
        return Times(micros, {"dates": micros.len() - micros.null_count()})
    if values.dtype == pl.String:
        numbers, dates = _from_text(values)
    else:
        numbers = values.cast(pl.Float64 if values.dtype.is_float() else pl.Int64, strict=False)
        dates = pl.Series(values=[None], dtype=pl.Int64).new_from_index(0, len(values))
    days = _days(numbers) if dates.null_count() == len(dates) else None
    if days is not None:
        return Times(days, {"dates": days.len() - days.null_count()})
    frame = pl.DataFrame({"number": numbers, "date": dates})
    size = pl.col("number").cast(pl.Float64).abs()
    unit = (
        pl.when(size < 1e11).then(pl.lit("seconds"))
        .when(size < 1e14).then(pl.lit("milliseconds"))
        .when(size < 1e17).then(pl.lit("microseconds"))
        .when(size < 1e20).then(pl.lit("nanoseconds"))
        .when(pl.col("date").is_not_null()).then(pl.lit("dates"))
    )  # fmt: skip
    number = pl.col("number")
    micros = (
        pl.when(size < 1e11).then(number * SECOND_US)
        .when(size < 1e14).then(number * 1000)
        .when(size < 1e17).then(number)
        .when(size < 1e20).then(number // 1000)
    )  # fmt: skip
    parsed = frame.select(
        unit=unit, micros=pl.coalesce(micros.cast(pl.Int64, strict=False), pl.col("date"))
    )
    counts = parsed.filter(pl.col("unit").is_not_null())["unit"].value_counts().sort("unit")
    return Times(parsed["micros"], dict(counts.iter_rows()))


def _days(numbers: pl.Series) -> pl.Series | None:
    """Return the microseconds of numbers as 20240131, None unless all that are given are such."""
    whole = numbers.cast(pl.Int64, strict=False)
    in_range = whole.is_between(_FIRST_DAY, _LAST_DAY) & (whole == numbers)
    days = whole.cast(pl.String).str.to_datetime("%Y%m%d", strict=False, time_unit="us")
    num_given = numbers.len() - numbers.null_count()
    if not num_given or (in_range & days.is_not_null()).sum() != num_given:
        return None
    return days.cast(pl.Int64)


def _from_text(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    text = values.str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    if whole.null_count() == text.null_count():
        return whole, pl.Series(values=[None], dtype=pl.Int64).new_from_index(0, len(values))
    number = text.cast(pl.Float64, strict=False)
    tidy = (
        text.str.replace_all("/", "-", literal=True)
        .str.replace(r"^(\d{1,2})\.(\d{1,2})\.(\d{4})", "${3}-${2}-${1}")
        .str.replace(r"^(\d{4}-\d{2}-\d{2})T", "${1} ")
        .str.replace(r" ?(Z|UTC)$", "+00:00")
    )
    dates = [tidy.str.to_datetime(f, strict=False, time_unit="us") for f in _DATE_FORMATS]
    zoned = [
        tidy.str.to_datetime(f, strict=False, time_unit="us", time_zone="UTC")
        for f in _ZONED_FORMATS
    ]
    frame = pl.DataFrame(
        [series.cast(pl.Int64).alias(str(i)) for i, series in enumerate([*dates, *zoned])]
    )
    return number, frame.select(pl.coalesce(frame.columns)).to_series()

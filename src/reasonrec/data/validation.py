"""Raw tables -> sound ones. A row set aside keeps its place, its content and a reason."""

from dataclasses import dataclass

import polars as pl

from reasonrec.data.raw import REJECTED_SCHEMA, ROW, Table, rejected_rows
from reasonrec.data.text import clean_text
from reasonrec.data.timestamps import SECOND_US, parse_times
from reasonrec.errors import DataError

DAY_S = 86_400
MAX_ID_CHARS = 200


@dataclass(frozen=True)
class CleanItems:
    """The catalogue, and what was done to it."""

    table: pl.DataFrame
    """``item_id``, ``title``, ``description``, ``categories``, further columns kept."""
    rejected: pl.DataFrame
    cleaned: dict[str, int]
    """How many values were changed: ``title_markup``, ``description_cut`` and the like."""
    num_rows: int


@dataclass(frozen=True)
class CleanLog:
    """Sound events in file order."""

    events: pl.DataFrame
    """``_row``, ``user_id``, ``item`` (int32 row of the catalogue), and where known ``rating``
    (float32), ``micros`` (int64, microseconds since 1970), ``position`` (int64), ``part``."""
    rejected: pl.DataFrame
    units: dict[str, int]
    """Rows per unit of time: ``seconds``, ``milliseconds``, ``dates``, …; empty without times."""
    num_rows: int


def clean_items(raw: Table, *, max_title_chars: int, max_description_chars: int) -> CleanItems:
    """Return the catalogue without unusable rows, its texts readable.

    Raises:
        DataError: A column is missing, or no item is left.
    """
    frame, file = raw.frame, raw.file
    require(raw, ("item_id", "title"))
    title = clean_text(_joined(frame["title"]), max_chars=max_title_chars)
    columns = [as_id(frame["item_id"]), title.values]
    cleaned = {"title_markup": title.num_markup, "title_control": title.num_control}
    cleaned["title_cut"] = title.num_cut
    if "description" in frame.columns:
        text = clean_text(_joined(frame["description"]), max_chars=max_description_chars)
        columns.append(text.values.alias("description"))
        cleaned["description_markup"] = text.num_markup
        cleaned["description_control"] = text.num_control
        cleaned["description_cut"] = text.num_cut
    else:
        columns.append(pl.Series("description", [None] * frame.height, dtype=pl.String))
    columns.append(_as_list(frame["categories"] if "categories" in frame.columns else None, frame))
    tidy = frame.with_columns(columns)
    reason = (
        pl.when(_bad_id("item_id").is_not_null()).then(_bad_id("item_id"))
        .when(pl.col("title").is_null()).then(pl.lit("empty title"))
        .when(~pl.struct("item_id").is_first_distinct()).then(pl.lit("duplicate item_id"))
    )  # fmt: skip
    tidy = tidy.with_columns(_reason=reason)
    is_bad = tidy["_reason"].is_not_null()
    rejected = rejected_rows(
        frame.with_columns(tidy["_reason"]).filter(is_bad), pl.col("_reason"), file=file
    )
    first = ["item_id", "title", "description", "categories"]
    rest = [name for name in tidy.columns if name not in first and not name.startswith("_")]
    table = tidy.filter(~is_bad).select(*first, *rest)
    if table.is_empty():
        raise DataError(f"{file} must hold at least one item with an id and a title; none is left")
    return CleanItems(
        table=table,
        rejected=pl.concat([raw.rejected, rejected]),
        cleaned={name: count for name, count in cleaned.items() if count},
        num_rows=frame.height + raw.rejected.height,
    )


def clean_log(
    raw: Table,
    item_ids: pl.Series,
    *,
    now_s: float,
    rating_scale: tuple[float, float] | None,
    keep_duplicates: bool,
) -> CleanLog:
    """Return the events that can be used, in file order.

    Args:
        item_ids: The catalogue in ``item_index`` order.
        now_s: UTC seconds; an event more than a day later is broken.
        rating_scale: Lowest and highest rating allowed; None allows any finite number.
        keep_duplicates: Keep an event that says the same user, item and time as an earlier row.

    Raises:
        DataError: A column is missing.
    """
    frame, file = _blank_is_missing(raw.frame, ("rating", "timestamp", "position")), raw.file
    require(raw, ("user_id", "item_id"))
    item = pl.DataFrame({"item_id": as_id(frame["item_id"])}).join(
        pl.DataFrame({"item_id": item_ids}).with_columns(
            item=pl.int_range(pl.len(), dtype=pl.Int32)
        ),
        on="item_id", how="left", maintain_order="left",
    )  # fmt: skip
    events = pl.DataFrame([frame[ROW], as_id(frame["user_id"]), item["item_id"], item["item"]])
    reasons = [_bad_id("user_id"), _bad_id("item_id")]
    reasons.append(pl.when(pl.col("item").is_null()).then(pl.lit("unknown item")))
    key = ["user_id", "item"]
    units: dict[str, int] = {}
    if _has_values(frame, "rating"):
        number = _numbers(frame["rating"])
        events = events.with_columns(number.alias("rating"), _said=frame["rating"].is_not_null())
        low, high = rating_scale or (float("-inf"), float("inf"))
        rating = pl.col("rating")
        reasons.append(
            pl.when(pl.col("_said") & (rating.is_null() | ~rating.is_finite()))
            .then(pl.lit("rating is no number"))
            .when((rating < low) | (rating > high))
            .then(pl.lit(f"rating outside {low:g} to {high:g}"))
        )
    if _has_values(frame, "timestamp"):
        times = parse_times(frame["timestamp"])
        units = times.units
        events = events.with_columns(
            times.micros.alias("micros"), _dated=frame["timestamp"].is_not_null()
        )
        micros = pl.col("micros")
        reasons.append(
            pl.when(~pl.col("_dated")).then(pl.lit("missing timestamp"))
            .when(micros.is_null()).then(pl.lit("timestamp is no time"))
            .when(micros < 0).then(pl.lit("timestamp before 1970"))
            .when(micros > (now_s + DAY_S) * SECOND_US).then(pl.lit("timestamp in the future"))
        )  # fmt: skip
        key.append("micros")
    if _has_values(frame, "position"):
        position = _whole_numbers(frame["position"])
        events = events.with_columns(position.alias("position"))
        reasons.append(
            pl.when(pl.col("position").is_null()).then(pl.lit("position is no whole number"))
        )
        key.append("position")
    if _has_values(frame, "part"):
        events = events.with_columns(frame["part"].cast(pl.String))
    events = events.with_columns(_reason=pl.coalesce(reasons))
    if len(key) > 2 and not keep_duplicates:  # without an order, the same pair twice is a repeat
        is_copy = ~pl.struct(key).is_first_distinct()
        reason = pl.when(is_copy).then(pl.lit("duplicate event"))
        events = events.with_columns(_reason=pl.coalesce("_reason", reason))
    is_bad = events["_reason"].is_not_null()
    rejected = rejected_rows(
        frame.filter(is_bad).with_columns(events["_reason"].filter(is_bad)),
        pl.col("_reason"),
        file=file,
    )
    keep = [name for name in events.columns if not name.startswith("_") and name != "item_id"]
    return CleanLog(
        events=events.filter(~is_bad).select(ROW, *keep),
        rejected=pl.concat([raw.rejected, rejected]),
        units=units,
        num_rows=frame.height + raw.rejected.height,
    )


def check_share(rejected: pl.DataFrame, num_rows: int, *, what: str, max_frac: float) -> None:
    """Stop when too many rows had to be set aside.

    Raises:
        DataError: Their share is above ``max_frac``; the message counts the reasons.
    """
    if rejected.height > max_frac * num_rows:
        raise DataError(
            f"at most {max_frac:.1%} of the {what} may be unusable; {rejected.height:,} of "
            f"{num_rows:,} are: {tally(rejected)}. First: {_first(rejected)}. Mend the file, or "
            "allow more with --max-rejected-frac (in a demo --prepare.max-rejected-frac)"
        )


def count_reasons(rejected: pl.DataFrame) -> dict[str, int]:
    """Return how many rows were set aside for each reason, most frequent first."""
    counts = rejected["reason"].value_counts().sort(["count", "reason"], descending=[True, False])
    return dict(counts.iter_rows())


def tally(rejected: pl.DataFrame) -> str:
    """Return the reasons and their counts in words."""
    return ", ".join(f"{reason} {count:,}" for reason, count in count_reasons(rejected).items())


def no_rejects() -> pl.DataFrame:
    """Return an empty table of rejected rows."""
    return pl.DataFrame(schema=REJECTED_SCHEMA)


def _first(rejected: pl.DataFrame) -> str:
    file, row, reason, raw = rejected.row(0)
    return f"{file} row {row}: {reason}: {raw[:200]}"


def require(table: Table, names: tuple[str, ...]) -> None:
    """Refuse a table without the named columns."""
    missing = [name for name in names if name not in table.frame.columns]
    if missing:
        read = [name for name in table.frame.columns if not name.startswith("_")]
        found = ", ".join(table.columns or read) or "none"
        raise DataError(
            f"{table.file} must have the columns {', '.join(names)}; {', '.join(missing)} missing, "
            f"found: {found}. Name them so in the file; a text table does so in its first line"
        )


def _blank_is_missing(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.DataFrame:
    """Return the frame with null for blank text, which is how a quoted CSV writes nothing."""
    texts = [name for name in names if frame.schema.get(name) == pl.String]
    is_blank = {name: pl.col(name).str.strip_chars() == "" for name in texts}
    return frame.with_columns(pl.when(~blank).then(name) for name, blank in is_blank.items())


def _has_values(frame: pl.DataFrame, name: str) -> bool:
    return name in frame.columns and frame[name].null_count() < frame.height


def _bad_id(name: str) -> pl.Expr:
    value = pl.col(name)
    return (
        pl.when(value.is_null()).then(pl.lit(f"missing {name}"))
        .when(value.str.contains("\ufffd", literal=True)).then(pl.lit(f"{name} is not UTF-8"))
        .when(value.str.len_chars() > MAX_ID_CHARS).then(pl.lit(f"{name} is too long"))
        .when(value.str.contains(r"\p{Cc}")).then(pl.lit(f"{name} has control characters"))
    )  # fmt: skip


def as_id(values: pl.Series) -> pl.Series:
    """Return ids as text, each by itself; 7.0, the trace of a lost integer column, becomes 7."""
    name = values.name
    if values.dtype == pl.Binary or values.dtype.is_nested():
        raise DataError(f"{name} must be text or whole numbers; got {values.dtype}")
    text = values.cast(pl.String)
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        is_whole = whole.cast(pl.Float64) == values.cast(pl.Float64)
        text = whole.cast(pl.String).zip_with(is_whole.fill_null(False), text)
    return text.str.strip_chars().replace("", None).alias(name)


def _numbers(values: pl.Series) -> pl.Series:
    if values.dtype.is_nested() or values.dtype in (pl.Binary, pl.Date, pl.Boolean):
        raise DataError(f"{values.name} must be numbers; got {values.dtype}")
    if values.dtype == pl.String:  # 4,5 is written where the comma is in numbers; 1,000 is not read
        values = values.str.strip_chars().str.replace(r"^([+-]?\d+),(\d{1,2})$", "${1}.${2}")
    return values.cast(pl.Float32, strict=False)


def _whole_numbers(values: pl.Series) -> pl.Series:
    _numbers(values)  # refuses other types
    text = values.str.strip_chars() if values.dtype == pl.String else values
    return text.cast(pl.Int64, strict=False)


def _joined(values: pl.Series) -> pl.Series:
    if isinstance(values.dtype, pl.List):
        return values.cast(pl.List(pl.String)).list.join(" ", ignore_nulls=True)
    if values.dtype.is_nested() or values.dtype == pl.Binary:
        raise DataError(f"{values.name} must be text; got {values.dtype}")
    return values.cast(pl.String)


def _as_list(values: pl.Series | None, frame: pl.DataFrame) -> pl.Series:
    """Return categories as lists of text: a list as it is, ``["a","b"]`` parsed, ``a|b`` split."""
    kind = pl.List(pl.String)
    if values is None:
        return pl.Series("categories", [None] * frame.height, dtype=kind)
    if not isinstance(values.dtype, pl.List):
        text = _joined(values).str.strip_chars()
        is_written_list = text.str.starts_with("[").fill_null(False)
        table = pl.DataFrame({"text": text, "written": is_written_list})
        quoted = pl.col("text").str.extract_all(r""""[^"]*"|'[^']*'""")
        unquoted = quoted.list.eval(pl.element().str.strip_chars("\"'"))
        split = pl.col("text").str.split("|")
        values = table.select(pl.when("written").then(unquoted).otherwise(split)).to_series()
    tidy = pl.element().cast(pl.String).str.replace_all(r"\s+", " ").str.strip_chars()
    lists = values.cast(kind).list.eval(tidy.filter(tidy != "")).alias("categories")
    return lists.to_frame().select(pl.when(pl.col("categories").list.len() > 0).then("categories"))[
        "categories"
    ]

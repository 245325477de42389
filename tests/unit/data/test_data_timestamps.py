"""Times of every kind end as microseconds since 1970, row by row."""

from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec.data.timestamps import parse_times

NOON_S = 1_577_880_000  # 2020-01-01 12:00 UTC: 18262 days * 86400 s + 43200 s


@pytest.mark.parametrize(
    "text",
    [
        str(NOON_S),
        f"{NOON_S}000",
        f"{NOON_S}000000",
        f"{NOON_S}000000000",
        f"{NOON_S}.0",
        "1.57788e9",
        "2020-01-01 12:00",
        "2020-01-01T12:00:00",
        "2020-01-01T12:00:00Z",
        "2020/01/01 12:00:00",
        "01.01.2020 12:00",
        "1.1.2020 12:00:00",
        "2020-01-01T12:00:00.000+00:00",
        "2020-01-01T14:00:00+02:00",
        " 2020-01-01 12:00:00 UTC ",
    ],
)
def test_the_same_noon_is_read_from_every_spelling(text: str):
    assert parse_times(pl.Series([text])).micros.to_list() == [NOON_S * 1_000_000]


def test_a_date_without_hours_is_its_midnight_in_utc():
    assert parse_times(pl.Series(["2020-01-01"])).micros[0] == (NOON_S - 12 * 3600) * 1_000_000
    assert parse_times(pl.Series([date(2020, 1, 1)])).micros[0] == (NOON_S - 12 * 3600) * 1_000_000


@pytest.mark.parametrize("kind", [pl.Int64, pl.Float64, pl.String])
def test_days_as_one_number_are_dates_where_all_are(kind):
    days = pl.Series([20200101, None, 20240229]).cast(kind)
    noon = NOON_S - 12 * 3600
    times = parse_times(days)
    assert times.micros.to_list() == [noon * 1_000_000, None, 1709164800 * 1_000_000]
    assert times.units == {"dates": 2}
    # no 30th of February: a number among others, of seconds
    assert parse_times(pl.Series([20200101, 20240230])).units == {"seconds": 2}


def test_a_zoned_parquet_column_is_converted_to_utc():
    zoned = pl.Series([datetime(2020, 1, 1, 12, tzinfo=UTC)]).dt.convert_time_zone("Asia/Tokyo")
    assert parse_times(zoned).micros.to_list() == [NOON_S * 1_000_000]


def test_mixed_units_in_one_column_are_read_row_by_row_and_counted():
    times = parse_times(pl.Series([NOON_S, NOON_S * 1000 + 250, NOON_S * 1_000_000, None]))
    # 250 ms survive, so that order inside a second does
    expected = [NOON_S * 1_000_000, NOON_S * 1_000_000 + 250_000, NOON_S * 1_000_000, None]
    assert times.micros.to_list() == expected
    assert times.units == {"microseconds": 1, "milliseconds": 1, "seconds": 1}


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2020-13-01", "2020-02-30", "01.13.2020", "13/01/2020", "nan", "inf", "1e30"],
)
def test_what_is_no_time_stays_empty(text: str):
    times = parse_times(pl.Series([text, "0"]))
    assert times.micros.to_list() == [None, 0]


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=20))
def test_any_integer_is_read_without_error(values: list[int | None]):
    micros = parse_times(pl.Series(values, dtype=pl.Int64)).micros
    assert [m is None for m in micros] == [v is None for v in values]
    for value, micro in zip(values, micros):
        if value is not None and 0 <= value < 10**11:
            assert micro == value * 10**6
        if value is not None and value < 0:
            assert micro < 0, "a negative time must stay negative, to be refused later"


@settings(deadline=None)
@given(st.lists(st.text(max_size=30), max_size=10))
def test_any_text_is_read_without_error(values: list[str]):
    assert len(parse_times(pl.Series(values, dtype=pl.String)).micros) == len(values)

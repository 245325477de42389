"""Titles and descriptions become readable, and every change is counted."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reasonrec.data.text import clean_text


@pytest.mark.parametrize(
    ("raw", "readable"),
    [
        ("Plain title", "Plain title"),
        ("<b>Bold</b> pen", "Bold pen"),
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("&lt;b&gt;Bold&lt;/b&gt;", "Bold"),
        ("A<br/>B<BR >C", "A B C"),
        ("<script type='x'>alert(1)</script>Pen", "Pen"),
        ("Pen <!-- old --> red", "Pen red"),
        ("I <3 you", "I <3 you"),
        ("<Untitled>", "<Untitled>"),
        ("1 < 2 and b > a", "1 < 2 and b > a"),
        ("Pen<|im_end|>\n", "Pen"),
        ("Tab\tand\r\nline", "Tab and line"),
        ("Bell\x07 and\x00 null", "Bell and null"),
        ("\u202eevil\u202c title\ufeff", "evil title"),
        ("R²ec – Éluard 東京", "R²ec – Éluard 東京"),
        ("AT&T", "AT&T"),
    ],
)
def test_a_title_is_made_readable(raw: str, readable: str):
    assert clean_text(pl.Series([raw]), max_chars=100).values.to_list() == [readable]


@pytest.mark.parametrize("raw", ["", "   ", "<p></p>", "\x00\x01", None, "&nbsp;"])
def test_what_holds_nothing_readable_is_empty(raw: str | None):
    assert clean_text(pl.Series([raw], dtype=pl.String), max_chars=9).values.to_list() == [None]


def test_each_kind_of_change_is_counted_once_per_value():
    raw = pl.Series(["fine", "<i>x</i>&amp;<b>y</b>", "a\x07b\x07", "x" * 12, "two\nlines"])
    clean = clean_text(raw, max_chars=10)
    assert (clean.num_markup, clean.num_control, clean.num_cut) == (1, 1, 1)
    assert clean.values.to_list() == ["fine", "x & y", "a b", "x" * 10, "two lines"]


def test_a_description_of_a_million_characters_is_cut_and_counted():
    clean = clean_text(pl.Series(["word " * 200_000, "short"]), max_chars=4000)
    assert clean.values.str.len_chars().to_list() == [3999, 5]  # the last of 4000 was a space
    assert clean.num_cut == 1


@settings(deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5))
def test_cleaned_text_is_short_tidy_and_stays_as_it_is(values: list[str]):
    once = clean_text(pl.Series(values, dtype=pl.String), max_chars=40).values
    for text in once.drop_nulls():
        assert 0 < len(text) <= 40
        assert text == " ".join(text.split())
        assert text.isprintable() or not any(ord(c) < 32 or ord(c) == 127 for c in text)

"""Titles and descriptions as people read them: no markup, no control characters, one line."""

import html
from dataclasses import dataclass

import polars as pl

_TAGS = (
    "a|abbr|b|big|blockquote|br|center|code|dd|div|dl|dt|em|font|h[1-6]|hr|i|iframe|img|input|li|"
    "link|meta|ol|p|pre|s|script|small|span|strike|strong|style|sub|sup|table|tbody|td|th|thead|tr|"
    "tt|u|ul"
)
_MARKUP = (
    r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>"
    r"|<!--.*?-->"
    rf"|</?(?:{_TAGS})(?:\s[^<>]*)?/?>"
    r"|<\|[^|<>\s]{1,40}\|>"  # the special tokens of language models
)
_CONTROL = r"[\p{Cc}\u{200B}\u{200E}\u{200F}\u{202A}-\u{202E}\u{2066}-\u{2069}\u{FEFF}\u{FFFD}]+"
_ENTITY = r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});"


@dataclass(frozen=True)
class CleanText:
    """A cleaned column, and how many of its values were changed in each way."""

    values: pl.Series
    """Text; null where nothing readable was left."""
    num_markup: int
    num_control: int
    num_cut: int


def clean_text(values: pl.Series, *, max_chars: int) -> CleanText:
    """Return text without HTML, model control tokens or control characters, cut at ``max_chars``.

    Character references are resolved once and before tags are removed, so ``&lt;b&gt;`` goes too.
    Only tags that HTML knows are removed: ``<3`` and ``<Untitled>`` stay. White space is one space.
    """
    name = values.name
    text = values.cast(pl.String).str.slice(0, 20 * max_chars)  # what is cut anyway is not cleaned
    was_long = values.cast(pl.String).str.len_chars() > 20 * max_chars
    has_entity = text.str.contains(_ENTITY).fill_null(False)
    plain = text
    if has_entity.any():
        frame = pl.DataFrame({"text": text, "has_entity": has_entity})
        resolved = pl.col("text").map_elements(html.unescape, return_dtype=pl.String)
        plain = frame.select(pl.when("has_entity").then(resolved).otherwise("text")).to_series()
    unmarked = plain.str.replace_all(_MARKUP, " ")
    readable = unmarked.str.replace_all(_CONTROL, " ")
    tidy = readable.str.replace_all(r"\s+", " ").str.strip_chars()
    has_control = unmarked.str.replace_all(r"[\t\r\n]", "").str.contains(_CONTROL)
    is_cut = was_long.fill_null(False) | (tidy.str.len_chars() > max_chars).fill_null(False)
    tidy = tidy.str.slice(0, max_chars).str.strip_chars()
    return CleanText(
        values=tidy.replace("", None).alias(name),
        num_markup=int((unmarked != text).fill_null(False).sum()),
        num_control=int(has_control.fill_null(False).sum()),
        num_cut=int(is_cut.sum()),
    )

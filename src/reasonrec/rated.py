"""What a rating is called where a prompt tells it."""

import math

WORDS = tuple(f" {half / 2:g}" for half in range(21))
"""`` 0``, `` 0.5``, ... `` 10``: those of the usual scales, which a tokenizer that is trained here
holds whole. Others are spelled."""


def rating_word(rating: float) -> str:
    """Return a rating as prompts write it, to the nearest half: `` 4.5``; nothing for NaN."""
    return "" if math.isnan(rating) else f" {round(2 * rating) / 2:.1f}".removesuffix(".0")

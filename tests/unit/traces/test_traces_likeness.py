"""How alike items are in words, worked out by hand."""

import numpy as np
import polars as pl
import pytest

from reasonrec.data.dataset import Catalogue
from reasonrec.records import Histories
from reasonrec.traces.likeness import Likeness


def catalogue(titles, texts=None, categories=None) -> Catalogue:
    columns = {"item_id": [f"i{n}" for n in range(len(titles))], "title": titles}
    if texts is not None:
        columns["description"] = texts
    if categories is not None:
        columns["categories"] = categories
    return Catalogue(pl.DataFrame(columns))


def test_the_cosine_is_that_of_the_words_in_common():
    # "red" stands in items 0 and 1, "ink" in 1 and 2; 8 items, so both weigh ln(8 / 2); twice in
    # every title: (1 + ln 2) times that. Others stand in one item alone and count nothing.
    titles = ["Red", "Red Ink", "Ink", "One", "Two", "Three", "Four", "Five"]
    alike, nearest = Likeness(catalogue(titles)).to_history(
        Histories.from_lists([[0, 2], [3]]), np.array([[1, 0], [1, -1]]), max_history=5
    )
    # item 1 points both ways: 1 / sqrt 2 to either, and the newer one is named
    np.testing.assert_allclose(alike, [[2**-0.5, 1.0], [0.0, 0.0]])
    assert nearest.tolist() == [[2, 0], [-1, -1]]


def test_only_the_last_items_are_looked_at_and_an_empty_history_is_like_nothing():
    titles = ["Red", "Red", "Ink", "Ink", "Two", "Three", "Four", "Five"]
    likeness = Likeness(catalogue(titles))
    histories = Histories.from_lists([[0, 2], []])
    alike, nearest = likeness.to_history(histories, np.array([[1, 3], [1, 3]]), max_history=1)
    np.testing.assert_allclose(alike, [[0.0, 1.0], [0.0, 0.0]])
    assert nearest.tolist() == [[-1, 2], [-1, -1]]


def test_categories_and_descriptions_count_too():
    texts = ["a quiet sea", None, "the sea", None, None, None, None]
    kinds = [["War"], ["War"], None, [], None, None, None]
    likeness = Likeness(catalogue([f"T{n}" for n in range(7)], texts, kinds))
    alike, _ = likeness.to_history(
        Histories.from_lists([[0]]), np.array([[1, 2, 3]]), max_history=1
    )
    # item 0 has "sea" and the category, each once and each in two of seven items
    np.testing.assert_allclose(alike, [[2**-0.5, 2**-0.5, 0.0]])
    assert float(alike[0, 0]) == pytest.approx(0.7071, abs=1e-4)

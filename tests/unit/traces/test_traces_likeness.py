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


@pytest.mark.parametrize(("max_share", "cosine"), [(0.3, 0.0), (0.5, 1.0)])
def test_words_of_many_items_say_nothing(max_share, cosine):
    likeness = Likeness(catalogue(["Red", "Red", "One", "Two"]), max_share=max_share)
    alike, _ = likeness.to_history(Histories.from_lists([[0]]), np.array([[1]]), max_history=1)
    np.testing.assert_allclose(alike, [[cosine]])


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


def test_the_nearest_are_those_of_all_cosines_and_none_of_the_history():
    rng = np.random.default_rng(0)
    words = np.array([f"word{chr(97 + i)}" for i in range(12)])
    titles = [" ".join(rng.choice(words, 3)) for _ in range(40)]
    likeness = Likeness(catalogue(titles))
    rows = [rng.choice(40, 6, replace=False).tolist() for _ in range(30)]
    histories = Histories.from_lists(rows)
    asked = np.array([row[-1] for row in rows])
    asked[3] = -1
    item, cosine = likeness.nearest(asked, histories, num_items=4)
    everything = np.tile(np.arange(40), (40, 1))
    each = Histories.from_lists([[n] for n in range(40)])
    table, _ = likeness.to_history(each, everything, max_history=1)  # (40, 40)
    for r, row in enumerate(rows):
        if r == 3:
            assert (item[r] == -1).all()
            continue
        others = [n for n in range(40) if n not in row and table[asked[r], n] > 0]
        others.sort(key=lambda n: (-round(table[asked[r], n], 9), n))
        found = [n for n in item[r].tolist() if n >= 0]
        assert len(found) == min(4, len(others))
        np.testing.assert_allclose(cosine[r, : len(found)], table[asked[r], others[:4]], rtol=1e-6)
        assert not {*found} & {*row}
    again, _ = likeness.nearest(asked, histories, num_items=4)  # from what is remembered
    np.testing.assert_array_equal(again, item)

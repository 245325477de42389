import re

import numpy as np
import polars as pl
import pytest

from reasonrec.data.planted.catalogue import build_catalogue
from reasonrec.data.planted.config import PlantedConfig

SIZES = [40, 500, 20_000]


@pytest.mark.parametrize("num_items", SIZES)
def test_no_title_comes_twice(num_items):
    table = build_catalogue(PlantedConfig(num_items=num_items, max_events=20), seed=3).table
    assert table["title"].n_unique() == num_items
    assert table["item_id"].n_unique() == num_items


def test_titles_and_descriptions_read_like_a_shops():
    table = build_catalogue(PlantedConfig(num_items=500), seed=3).table
    for row in table.iter_rows(named=True):
        # such as "The Glass Harbour, Vol. 3" or "The Ledger of Thornbury"
        assert re.fullmatch(r"The [A-Z][a-z]+( of)? [A-Z][a-z]+(, Vol\. [1-8])?", row["title"])
        assert 1 <= row["description"].count(". ") + 1 <= 2
        assert row["description"].endswith(".")
        for word in (row["maker"], row["genre"], row["era"]):
            assert word in row["description"]
        assert row["categories"][1] == row["genre"]
        assert len(row["categories"]) == 2


def test_a_series_has_volumes_one_to_n_by_one_maker_in_one_genre_and_era():
    table = build_catalogue(PlantedConfig(num_items=500), seed=3).table
    series = (
        table.filter(pl.col("series").is_not_null())
        .group_by("series")
        .agg(pl.col("volume").sort(), pl.col("maker", "genre", "era").n_unique())
    )
    assert 0.5 < series["volume"].list.len().sum() / 500 <= 0.6
    for row in series.iter_rows(named=True):
        assert row["volume"] == list(range(1, len(row["volume"]) + 1))
        assert 3 <= len(row["volume"]) <= 8
        assert row["maker"] == row["genre"] == row["era"] == 1


def test_next_volume_points_to_the_following_volume_of_the_same_series():
    catalogue = build_catalogue(PlantedConfig(num_items=500), seed=3)
    rows = catalogue.table.to_dicts()
    place = {(row["series"], row["volume"]): i for i, row in enumerate(rows) if row["series"]}
    for i, row in enumerate(rows):
        expected = place.get((row["series"], row["volume"] + 1), -1) if row["series"] else -1
        assert catalogue.next_volume[i] == expected


@pytest.mark.parametrize("num_items", SIZES)
def test_no_genre_is_empty_and_popularity_is_a_distribution(num_items):
    catalogue = build_catalogue(PlantedConfig(num_items=num_items, max_events=20), seed=5)
    assert np.bincount(catalogue.genre).min() > 0
    assert set(catalogue.genre_of_maker[:, 0]) == set(range(catalogue.num_genres))
    assert catalogue.popularity.min() > 0
    assert catalogue.popularity.sum() == pytest.approx(1, abs=1e-12)


def test_another_seed_gives_another_shop():
    config = PlantedConfig(size="tiny")
    first, second = (build_catalogue(config, seed).table for seed in (1, 2))
    assert first["title"].to_list() != second["title"].to_list()

"""The shop's books: attributes, series and readable titles, each from one seeded stream."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from reasonrec.data.planted import words
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.rng import stream

SERIES_SHARE = 0.6
"""Share of books that belong to a series."""
MIN_VOLUMES, MAX_VOLUMES = 3, 8
"""Volumes of a series, both included."""
POPULARITY_EXPONENT = 0.7
"""The book of sales rank r sells like (r + 5) ** -exponent."""
ITEMS_PER_GENRE, ITEMS_PER_MAKER, MAX_MAKERS = 28, 8, 2_000


@dataclass(frozen=True)
class PlantedCatalogue:
    """N books; row i of every array is world item i."""

    table: pl.DataFrame
    """item_id, title, description, categories, maker, genre, era, series, volume."""
    genre: np.ndarray
    """(N,), int32, 0..num_genres-1."""
    maker: np.ndarray
    """(N,), int32."""
    era: np.ndarray
    """(N,), int32."""
    next_volume: np.ndarray
    """(N,), int32. The item that continues the series, or -1."""
    popularity: np.ndarray
    """(N,), float64, sums to 1."""
    genre_of_maker: np.ndarray
    """(num_makers, 2), int32. Each maker writes in one or two genres."""

    @property
    def num_genres(self) -> int:
        return int(self.genre.max()) + 1


def build_catalogue(config: PlantedConfig, seed: int) -> PlantedCatalogue:
    """Return the books of the world; the same for the same ``num_items`` and ``seed``."""
    rng = stream(seed, "planted/catalogue")
    num_items = config.num_items
    num_genres = int(np.clip(num_items // ITEMS_PER_GENRE, 4, 6 * len(words.SECTIONS)))
    num_makers = int(np.clip(num_items // ITEMS_PER_MAKER, num_genres, MAX_MAKERS))

    # a "work" is a series or a single book: it has one name, maker, genre and era
    work, volume, num_volumes = _draw_works(num_items, rng)
    num_works = len(num_volumes)
    genre_of_maker = np.stack(
        [np.arange(num_makers) % num_genres, rng.integers(num_genres, size=num_makers)], axis=1
    ).astype(np.int32)
    maker_of_work = rng.permutation(np.arange(num_works) % num_makers)
    in_second_genre = rng.random(num_works) < 0.3
    in_second_genre[np.unique(maker_of_work, return_index=True)[1]] = (
        False  # so that no genre is empty
    )
    genre_of_work = genre_of_maker[maker_of_work, in_second_genre.astype(int)]
    era_of_work = rng.integers(len(words.ERAS), size=num_works)
    name_of_work = _draw_names(genre_of_work % len(words.SECTIONS), rng)
    makers = _draw_makers(num_makers, rng)

    is_series = num_volumes[work] > 1
    has_next = is_series & (volume < num_volumes[work])
    next_volume = np.where(has_next, np.arange(num_items) + 1, -1)
    sales_rank = rng.permutation(num_items)
    popularity = (sales_rank + 5.0) ** -POPULARITY_EXPONENT
    genre, maker, era = genre_of_work[work], maker_of_work[work], era_of_work[work]

    # items are shuffled so that a neighbouring id says nothing
    new_index = rng.permutation(num_items)
    order = np.argsort(new_index)
    next_volume = np.where(next_volume < 0, -1, new_index[next_volume])[order]
    table = _table(
        name=name_of_work[work][order],
        volume=np.where(is_series, volume, 0)[order],
        genre=genre[order],
        maker=makers[maker[order]],
        era=np.asarray(words.ERAS)[era[order]],
        rng=rng,
    )
    return PlantedCatalogue(
        table=table,
        genre=genre[order].astype(np.int32),
        maker=maker[order].astype(np.int32),
        era=era[order].astype(np.int32),
        next_volume=next_volume.astype(np.int32),
        popularity=(popularity / popularity.sum())[order],
        genre_of_maker=genre_of_maker,
    )


def _draw_works(
    num_items: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each item's work and volume (1-based), and each work's number of volumes."""
    in_series = int(SERIES_SHARE * num_items)
    lengths = rng.integers(MIN_VOLUMES, MAX_VOLUMES + 1, size=in_series // MIN_VOLUMES + 1)
    lengths = lengths[: np.searchsorted(np.cumsum(lengths), in_series, side="right")]
    num_volumes = np.concatenate([lengths, np.ones(num_items - lengths.sum(), dtype=np.int64)])
    work = np.repeat(np.arange(len(num_volumes)), num_volumes)
    first = np.cumsum(num_volumes) - num_volumes
    return work, np.arange(num_items) - first[work] + 1, num_volumes


def _draw_names(section: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a name for each work, in the words of its section; no name comes twice."""
    names = np.empty(len(section), dtype=object)
    for index, words_of in enumerate(words.SECTIONS):
        rows = np.flatnonzero(section == index)
        short = [f"The {a} {n}" for a in words_of.adjectives for n in words_of.nouns]
        placed = [f"The {n} of {p}" for n in words_of.nouns for p in words.PLACES]
        chosen = list(rng.permutation(short)[: (len(rows) + 1) // 2])
        chosen += list(rng.permutation(placed)[: len(rows) - len(chosen)])
        if len(chosen) < len(rows):
            long = [f"{name} of {p}" for name in short for p in words.PLACES]
            chosen += list(rng.permutation(long)[: len(rows) - len(chosen)])
        names[rows] = rng.permutation(np.asarray(chosen, dtype=object))
    return names


def _draw_makers(num_makers: int, rng: np.random.Generator) -> np.ndarray:
    """Return unique names of writers."""
    pairs = rng.permutation(len(words.FIRST_NAMES) * len(words.LAST_NAMES))[:num_makers]
    first, last = np.divmod(pairs, len(words.LAST_NAMES))
    return np.asarray(
        [f"{words.FIRST_NAMES[f]} {words.LAST_NAMES[n]}" for f, n in zip(first, last)], dtype=object
    )


def genre_name(genre: int) -> str:
    """Return the name on the shelf of one genre index."""
    section = words.SECTIONS[genre % len(words.SECTIONS)]
    return section.genres[genre // len(words.SECTIONS)]


def _table(
    *,
    name: np.ndarray,
    volume: np.ndarray,
    genre: np.ndarray,
    maker: np.ndarray,
    era: np.ndarray,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """Return the items table that the shop publishes."""
    heroes = np.asarray(words.HEROES)[rng.integers(len(words.HEROES), size=len(name))]
    deeds = np.asarray(words.DEEDS)[rng.integers(len(words.DEEDS), size=len(name))]
    sections = [words.SECTIONS[g % len(words.SECTIONS)].name for g in genre]
    genres = [genre_name(g) for g in genre]
    rows = []
    for i, (work, vol, shelf, writer, decade) in enumerate(zip(name, volume, genres, maker, era)):
        part = f", volume {vol} of {work}" if vol else ""
        rows.append(
            {
                "item_id": f"book-{i:05d}",
                "title": f"{work}, Vol. {vol}" if vol else work,
                "description": f"{shelf} by {writer}, first printed in the {decade}{part}. "
                f"{heroes[i][0].upper()}{heroes[i][1:]} {deeds[i]}.",
                "categories": [sections[i], shelf],
                "maker": writer,
                "genre": shelf,
                "era": decade,
                "series": work if vol else None,
                "volume": int(vol) if vol else None,
            }
        )
    schema = {
        "item_id": pl.String, "title": pl.String, "description": pl.String,
        "categories": pl.List(pl.String), "maker": pl.String, "genre": pl.String,
        "era": pl.String, "series": pl.String, "volume": pl.Int32,
    }  # fmt: skip
    return pl.DataFrame(rows, schema=schema)

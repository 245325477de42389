"""What is planted in each reader: circle, closest friend, tastes, and when they read."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from reasonrec.data.planted.catalogue import PlantedCatalogue
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.rng import stream

PERIOD_START = 1_640_995_200
"""2022-01-01 00:00 UTC."""
PERIOD_S = 3 * 365 * 86_400
NUM_FAVOURITES = 3
"""Favourite genres early in life, as many late in life, and favourite makers."""


@dataclass(frozen=True)
class Readers:
    """U readers of one block or of the whole world; all indices count within this table."""

    circle: np.ndarray
    """(U,), int32, 0..num_circles-1."""
    closest: np.ndarray
    """(U,), int32. The closest friend, a member of the same circle; the reader if alone."""
    early: np.ndarray
    """(U, 3), int32. Favourite genres at the start of life, most loved first."""
    late: np.ndarray
    """(U, 3), int32. Favourite genres at the end of life."""
    makers: np.ndarray
    """(U, 3), int32. Favourite makers: of the first early genre, the first late one, and any."""
    era: np.ndarray
    """(U,), int32. Favourite era."""
    offsets: np.ndarray
    """(U + 1,), int64. The events of reader u are ``[offsets[u], offsets[u + 1])``."""

    def __len__(self) -> int:
        return len(self.circle)

    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the readers sorted by circle, and where each circle starts (num_circles + 1,)."""
        order = np.argsort(self.circle, kind="stable").astype(np.int32)
        starts = np.searchsorted(self.circle[order], np.arange(self.circle.max(initial=-1) + 2))
        return order, starts.astype(np.int64)

    def table(self, first_user: int, first_circle: int) -> pl.DataFrame:
        """Return the rows of ``truth/readers.parquet`` for a block that starts at these indices."""
        columns = {
            "circle": (self.circle + first_circle).astype(np.int32),
            "closest": (self.closest + first_user).astype(np.int32),
            "era": self.era,
            "num_events": np.diff(self.offsets).astype(np.int32),
        }
        for name, values in (("early", self.early), ("late", self.late), ("maker", self.makers)):
            columns |= {f"{name}_{rank}": values[:, rank] for rank in range(NUM_FAVOURITES)}
        return pl.DataFrame(columns)

    @staticmethod
    def from_table(table: pl.DataFrame) -> "Readers":
        """Return the readers of the whole world from ``truth/readers.parquet``."""

        def favourites(name: str) -> np.ndarray:
            columns = [
                table[f"{name}_{rank}"].to_numpy(writable=True) for rank in range(NUM_FAVOURITES)
            ]
            return np.stack(columns, axis=1)

        num_events = table["num_events"].to_numpy(writable=True)
        return Readers(
            circle=table["circle"].to_numpy(writable=True),
            closest=table["closest"].to_numpy(writable=True),
            early=favourites("early"),
            late=favourites("late"),
            makers=favourites("maker"),
            era=table["era"].to_numpy(writable=True),
            offsets=np.concatenate([[0], np.cumsum(num_events)]).astype(np.int64),
        )


def draw_readers(
    config: PlantedConfig, catalogue: PlantedCatalogue, seed: int, block: int
) -> tuple[Readers, np.ndarray]:
    """Return the readers of one block and the UTC second of each of their events, in order."""
    rng = stream(seed, "planted/readers", block)
    num_users = min(config.users_per_block, config.num_users - block * config.users_per_block)
    num_genres = catalogue.num_genres

    # circles are drawn at random, so that neighbouring ids say nothing
    slot = rng.permutation(num_users)
    circle = slot // config.circle_size
    user_at = np.argsort(slot)
    first_slot = circle * config.circle_size
    size = np.minimum(first_slot + config.circle_size, num_users) - first_slot
    step = 1 + np.floor(rng.random(num_users) * np.maximum(size - 1, 1)).astype(np.int64)
    closest = user_at[first_slot + (slot - first_slot + step) % size]

    early = _distinct(num_users, num_genres, rng)
    late = _distinct(num_users, num_genres, rng)
    late[:, 0] = np.where(rng.random(num_users) < 0.5, early[:, 0], late[:, 0])  # some love stays
    any_loved = rng.permuted(np.concatenate([early, late], axis=1), axis=1)[:, 0]
    makers = _makers_of(np.stack([early[:, 0], late[:, 0], any_loved], axis=1), catalogue, rng)

    num_events = rng.integers(config.min_events, config.max_events + 1, size=num_users)
    joins, leaves = 0.4 * rng.random(num_users), 1 - 0.4 * rng.random(num_users)
    user = np.repeat(np.arange(num_users), num_events)
    life = joins[user] + rng.random(len(user)) * (leaves - joins)[user]
    timestamp = PERIOD_START + np.floor(life * PERIOD_S).astype(np.int64)
    readers = Readers(
        circle=circle.astype(np.int32),
        closest=closest.astype(np.int32),
        early=early,
        late=late,
        makers=makers,
        era=rng.integers(int(catalogue.era.max()) + 1, size=num_users, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(num_events)]).astype(np.int64),
    )
    return readers, timestamp[np.lexsort((timestamp, user))]


def _distinct(num_rows: int, num_choices: int, rng: np.random.Generator) -> np.ndarray:
    """Return three different choices a row. (num_rows, 3), int32."""
    return np.argsort(rng.random((num_rows, num_choices)), axis=1)[:, :NUM_FAVOURITES].astype(
        np.int32
    )


def _makers_of(
    genres: np.ndarray, catalogue: PlantedCatalogue, rng: np.random.Generator
) -> np.ndarray:
    """Return a maker for each of the ``genres``, who writes mainly in it. (U, 3), int32."""
    home = catalogue.genre_of_maker[:, 0]
    by_genre = np.argsort(home, kind="stable").astype(np.int32)
    starts = np.searchsorted(home[by_genre], np.arange(catalogue.num_genres + 1))
    num_writers = starts[genres + 1] - starts[genres]
    return by_genre[starts[genres] + np.floor(rng.random(genres.shape) * num_writers).astype(int)]

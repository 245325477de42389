"""Writes a planted world to disk, block of readers by block of readers.

A block depends on (seed, its number) alone, so order changes nothing and memory does not grow
with the number of readers.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from reasonrec.data.planted.catalogue import PlantedCatalogue, build_catalogue
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.kernels import CAUSES, CIRCLE, SERIES, Crowd, Shop, draw_log
from reasonrec.data.planted.readers import Readers, draw_readers
from reasonrec.manifest import make_folder
from reasonrec.rng import stream

WORLD_FORMAT = 1


@dataclass(frozen=True)
class Block:
    """The readers of one block and their events; indices count within the block."""

    readers: Readers
    timestamp: np.ndarray
    """(E,), int64, UTC seconds; reader after reader, oldest first."""
    item_index: np.ndarray
    """(E,), int32."""
    cause: np.ndarray
    """(E,), int8. Index into ``CAUSES``."""
    source: np.ndarray
    """(E,), int32. A reader of the block (circle), an item (series), or -1."""


def write_world(folder: Path, config: PlantedConfig, seed: int) -> None:
    """Write the shop's log and books, and apart from them the truth, to ``folder``.

    ``interactions.parquet`` has user_id, item_id, timestamp, reason and reason_source (the friend's
    user_id for ``circle``, the previous volume's item_id for ``series``, else null), sorted by user
    and time. ``items.parquet`` has the books. ``truth/`` is what ``WorldTruth.load`` needs.

    Raises:
        ReasonrecError: The folder cannot be written to.
    """
    folder = make_folder(folder)
    shutil.rmtree(folder / "parts", ignore_errors=True)  # of a run that was cut off
    truth, parts = make_folder(folder / "truth"), make_folder(folder / "parts")
    catalogue = build_catalogue(config, seed)
    catalogue.table.write_parquet(folder / "items.parquet")
    _truth_of_items(catalogue).write_parquet(truth / "items.parquet")
    first_circle = 0
    for number in range(config.num_blocks):
        block = generate_block(config, catalogue, seed, number)
        first_user = number * config.users_per_block
        log_table(block, first_user).write_parquet(parts / f"log-{number:06d}.parquet")
        readers = block.readers.table(first_user, first_circle)
        readers.write_parquet(parts / f"readers-{number:06d}.parquet")
        first_circle += int(block.readers.circle.max()) + 1
    _join(parts, "log", folder / "interactions.parquet")
    _join(parts, "readers", truth / "readers.parquet")
    shutil.rmtree(parts)
    description = {"format": WORLD_FORMAT, "seed": seed, "config": config.model_dump(mode="json")}
    (truth / "world.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def generate_block(
    config: PlantedConfig, catalogue: PlantedCatalogue, seed: int, number: int
) -> Block:
    """Return one block of the world, whatever was generated before it."""
    readers, timestamp = draw_readers(config, catalogue, seed, number)
    num_events = len(timestamp)
    item_index = np.zeros(num_events, np.int32)
    cause, source = np.zeros(num_events, np.int8), np.zeros(num_events, np.int32)
    user_of_event = np.repeat(np.arange(len(readers)), np.diff(readers.offsets))
    # circle by circle, each in time; ties in time go by reader, then by the reader's own order
    order = np.lexsort((user_of_event, timestamp, readers.circle[user_of_event]))
    rng = stream(seed, "planted/events", number)
    shop, crowd = make_shop(config, catalogue), make_crowd(readers, item_index)
    draw_log(shop, crowd, user_of_event, order, rng, cause, source)
    return Block(readers, timestamp, item_index, cause, source)


def make_shop(config: PlantedConfig, catalogue: PlantedCatalogue) -> Shop:
    """Return the catalogue and the mixture weights as the kernels want them."""
    shelf = np.argsort(catalogue.genre, kind="stable").astype(np.int32)
    weights = np.array([getattr(config.weights, cause) for cause in CAUSES], np.float64)
    return Shop(
        genre=catalogue.genre,
        maker=catalogue.maker,
        era=catalogue.era,
        next_volume=catalogue.next_volume,
        popularity=catalogue.popularity,
        popularity_cdf=np.cumsum(catalogue.popularity),
        shelf=shelf,
        shelf_starts=np.searchsorted(
            catalogue.genre[shelf], np.arange(catalogue.num_genres + 1)
        ).astype(np.int64),
        weights=weights / weights.sum(),
    )


def make_crowd(readers: Readers, item_index: np.ndarray) -> Crowd:
    """Return the readers and their items as the kernels want them."""
    members, member_starts = readers.members()
    return Crowd(
        circle=readers.circle,
        closest=readers.closest,
        early=readers.early,
        late=readers.late,
        makers=readers.makers,
        era=readers.era,
        offsets=readers.offsets,
        members=members,
        member_starts=member_starts,
        items=item_index,
    )


def log_table(block: Block, first_user: int) -> pl.DataFrame:
    """Return the block's rows of ``interactions.parquet``."""
    user = np.repeat(np.arange(len(block.readers)), np.diff(block.readers.offsets)) + first_user
    raw = pl.DataFrame(
        {
            "user": user,
            "item": block.item_index,
            "timestamp": block.timestamp,
            "cause": block.cause,
            "source": block.source,
        }
    )
    source = pl.col("source")
    return raw.select(
        _user_id(pl.col("user")).alias("user_id"),
        _item_id(pl.col("item")).alias("item_id"),
        "timestamp",
        pl.col("cause")
        .replace_strict(dict(enumerate(CAUSES)), return_dtype=pl.String)
        .alias("reason"),
        pl.when(pl.col("cause") == CIRCLE)
        .then(_user_id(source + first_user))
        .when(pl.col("cause") == SERIES)
        .then(_item_id(source))
        .alias("reason_source"),
    )


def _user_id(index: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit("reader-"), index.cast(pl.String).str.zfill(7))


def _item_id(index: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit("book-"), index.cast(pl.String).str.zfill(5))


def _truth_of_items(catalogue: PlantedCatalogue) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "genre": catalogue.genre,
            "maker": catalogue.maker,
            "era": catalogue.era,
            "next_volume": catalogue.next_volume,
            "popularity": catalogue.popularity,
        }
    )


def _join(parts: Path, name: str, path: Path) -> None:
    """Stream the parts of a table, in order of their block, into one file."""
    files = sorted(parts.glob(f"{name}-*.parquet"))
    partial = path.with_suffix(".partial")
    pl.scan_parquet(files, glob=False).sink_parquet(partial, row_group_size=1 << 19)
    partial.replace(path)

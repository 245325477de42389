"""MovieLens as GroupLens publishes it: 100K (``u.data``), 1M and 10M (``::``), later (CSV).

Item tables are Latin-1 in the older sets. ``#1`` of a title and its year stay as they are.
"""

from dataclasses import replace
from pathlib import Path

import polars as pl

from reasonrec.data.raw import ROW, RawTables, Table, rejected_rows
from reasonrec.data.sources.files import csv_header, read_csv, read_lines, read_text
from reasonrec.errors import DataError

LAYOUT = (
    "MovieLens: u.data and u.item (100K); ratings.dat and movies.dat (1M, 10M); "
    "ratings.csv and movies.csv (latest, 20M, 25M)"
)
_U_ITEM = ("item_id", "title", "release_date", "video_release_date", "imdb_url")
_NO_GENRES = "(no genres listed)"


def recognises(folder: Path) -> bool:
    """Return whether the folder holds one of the MovieLens layouts."""
    return any(
        all((folder / name).is_file() for name in pair)
        for pair in (
            ("u.data", "u.item"),
            ("ratings.dat", "movies.dat"),
            ("ratings.csv", "movies.csv"),
        )
    )


def read(folder: Path) -> RawTables:
    """Return the ratings and movies of one of the MovieLens layouts."""
    if (folder / "u.data").is_file():
        return _read_100k(folder)
    if (folder / "ratings.dat").is_file():
        return _read_dat(folder)
    return _read_csv(folder)


def _read_100k(folder: Path) -> RawTables:
    log = read_csv(
        folder / "u.data",
        ("user_id", "item_id", "rating", "timestamp"),
        separator="\t", has_header=False, quoted=False,
    )  # fmt: skip
    text, notes = read_text(folder / "u.item")
    genres = _genres_of_100k(folder / "u.genre")
    flags = [f"flag_{i}" for i in range(len(genres))]
    table = read_csv(
        folder / "u.item", (*_U_ITEM, *flags),
        separator="|", has_header=False, quoted=False, text=text,
    )  # fmt: skip
    named = [pl.when(pl.col(f) == "1").then(pl.lit(g)) for f, g in zip(flags, genres)]
    frame = table.frame.select(
        ROW, "item_id", "title",
        pl.concat_list(named).list.drop_nulls().alias("categories"),
        "release_date", "imdb_url",
    )  # fmt: skip
    return RawTables(
        layout="MovieLens 100K",
        log=log,
        items=replace(table, frame=frame),
        files={name: folder / name for name in ("u.data", "u.item", "u.genre")},
        rating_scale=(1.0, 5.0),
        notes=notes,
    )


def _genres_of_100k(path: Path) -> list[str]:
    text, _ = read_text(path)
    pairs = [line.strip().rpartition("|") for line in text.split("\n") if line.strip()]
    if sorted(number for _, _, number in pairs) != sorted(str(n) for n in range(len(pairs))):
        raise DataError(f"{path} must number its genres name|0, name|1, ...; got {pairs[:5]}")
    return [name for name, _, _ in sorted(pairs, key=lambda pair: int(pair[2]))]


def _read_dat(folder: Path) -> RawTables:
    text, notes = read_text(folder / "movies.dat")
    # only at line feeds: 0x85 and its like are letters in other code pages
    lines = pl.DataFrame({"line": text.split("\n")}, schema={"line": pl.String}).with_columns(
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW)
    )
    movies = _split_lines("movies.dat", lines, ("item_id", "title", "categories"))
    ratings = ("user_id", "item_id", "rating", "timestamp")
    return RawTables(
        layout="MovieLens 1M or 10M",
        log=_split_lines("ratings.dat", read_lines(folder / "ratings.dat"), ratings),
        items=replace(movies, frame=_with_genres(movies.frame)),
        files={name: folder / name for name in ("ratings.dat", "movies.dat")},
        rating_scale=(0.5, 5.0),
        notes=notes,
    )


def _split_lines(file: str, lines: pl.DataFrame, columns: tuple[str, ...]) -> Table:
    lines = lines.filter(pl.col("line").str.strip_chars() != "")
    parts = pl.col("line").str.strip_chars_end("\r").str.split("::")
    lines = lines.with_columns(_parts=parts)
    is_whole = pl.col("_parts").list.len() == len(columns)
    fields = [pl.col("_parts").list.get(i).alias(name) for i, name in enumerate(columns)]
    reason = f"not {len(columns)} fields between ::"
    return Table(
        file,
        lines.filter(is_whole).select(ROW, *fields),
        rejected_rows(lines.filter(~is_whole), reason, file=file),
    )


def _read_csv(folder: Path) -> RawTables:
    log = _named(folder / "ratings.csv")
    movies = _named(folder / "movies.csv")
    return RawTables(
        layout="MovieLens latest",
        log=log,
        items=replace(movies, frame=_with_genres(movies.frame)),
        files={name: folder / name for name in ("ratings.csv", "movies.csv")},
        rating_scale=(0.5, 5.0),
    )


def _named(path: Path) -> Table:
    table = read_csv(path, csv_header(path))
    ours = {"userId": "user_id", "movieId": "item_id", "genres": "categories"}
    return replace(table, frame=table.frame.rename(ours, strict=False))


def _with_genres(movies: pl.DataFrame) -> pl.DataFrame:
    if "categories" not in movies.columns:
        return movies
    genres = pl.col("categories").replace(_NO_GENRES, None).str.split("|")
    return movies.with_columns(genres)

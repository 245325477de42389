"""Candidate sets: one target and C - 1 negatives that the user never touched, or given lists."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset, Part, Queries
from reasonrec.data.validation import as_id
from reasonrec.errors import DataError
from reasonrec.rng import stream

logger = logging.getLogger(__name__)
Negatives = Literal["uniform", "popular"]
"""Every untouched item alike, or in proportion to its training events."""
_WORD = re.compile(r"candidates-(\d{1,6})(-popular)?")
_MAX_UNKNOWN_FRAC = 0.05
"""Share of given candidates that may lie outside the catalogue (NCF's MovieLens lists: 0.018)."""


@dataclass(frozen=True)
class Candidates:
    """The items that compete with each query's target."""

    item_index: np.ndarray
    """(Q, C), int32. Column 0 is the target; -1 pads a shorter list."""
    protocol: str
    """The word in reports: ``candidates-C``, ``candidates-C-popular`` or ``candidates-given``."""

    @property
    def num_short(self) -> int:
        """How many queries have fewer than C candidates."""
        return int(np.count_nonzero((self.item_index < 0).any(axis=1)))

    def write(self, path: Path) -> None:
        """Write one row a query: ``query``, ``candidates`` (item indices, the target first)."""
        pl.DataFrame(
            {
                "query": np.arange(len(self.item_index), dtype=np.int64),
                "candidates": pl.Series(
                    self.item_index, dtype=pl.Array(pl.Int32, self.item_index.shape[1])
                ).cast(pl.List(pl.Int32)),
                "protocol": pl.repeat(self.protocol, len(self.item_index), eager=True),
            }
        ).write_parquet(path)

    @staticmethod
    def read(path: Path, queries: Queries) -> "Candidates":
        """Return the candidates that ``write`` stored for exactly these queries.

        Raises:
            DataError: The file is damaged, or was written for other queries.
        """
        try:
            table = pl.read_parquet(path, glob=False)
            lists = table["candidates"].to_list()
            item_index = np.asarray(lists, np.int32).reshape(len(lists), -1)
            protocol = str(table["protocol"][0]) if len(lists) else ""
        except (OSError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"stored candidates must be readable; {path}: {error}. Remove it to draw anew"
            ) from None
        if len(item_index) != len(queries) or not np.array_equal(item_index[:, 0], queries.target):
            raise DataError(
                f"{path} holds candidates of other queries than these {len(queries)}; "
                "was the data prepared anew? Remove the file to draw anew"
            )
        return Candidates(item_index, protocol)


def parse_protocol(word: str) -> tuple[int, Negatives]:
    """Return C and the kind of negatives that a protocol's word asks for.

    Raises:
        ValueError: It is neither ``candidates-C`` nor ``candidates-C-popular`` with C of 2 or more.
    """
    found = _WORD.fullmatch(word)
    if found is None or int(found[1]) < 2:
        raise ValueError(
            "a protocol must be full or candidates-C (candidates-C-popular for popular negatives), "
            f"C of 2 or more; got {word!r}"
        )
    return int(found[1]), "popular" if found[2] else "uniform"


def draw_candidates(
    dataset: Dataset,
    part: Part,
    *,
    num_candidates: int,
    seed: int,
    negatives: Negatives = "uniform",
) -> Candidates:
    """Return each query's target with ``num_candidates - 1`` drawn negatives.

    A negative is an item that the user touches nowhere: not in training, in no history and as no
    target of validation or test. Each query draws from a stream of its own, so a query's
    candidates depend on the seed, its row, and nothing else. Where fewer items are left than
    asked for, all of them are taken and the row is padded with -1.

    Args:
        num_candidates: C, the target included; 2 or more.
        negatives: ``uniform``, or ``popular``: one after the other in proportion to the number of
            training events, so that popularity alone tells little. Items without a training event
            come in only where no other is left.

    Source: ``docs/conventions.md``, *Candidates*.
    """
    if num_candidates < 2:
        raise ValueError(f"num_candidates must be 2 or more; got {num_candidates}")
    queries, num_items = dataset.queries(part), dataset.num_items
    num_queries, num_negatives = len(queries), num_candidates - 1
    owner = _owners(queries, dataset.num_users)
    touched = _touched(dataset, part)
    word = f"candidates-{num_candidates}{'-popular' if negatives == 'popular' else ''}"
    stage = f"{word}-{part}"
    events = dataset.train.item_index
    is_popular = negatives == "popular" and len(events) > 0
    # popular items are often touched, and repeat: more draws are needed
    num_draws = (8 if is_popular else 2) * num_negatives + 8
    draws = np.empty((num_queries, num_draws), np.int64)
    for q in range(num_queries):
        drawn = stream(seed, stage, q).integers(
            len(events) if is_popular else num_items, size=num_draws
        )
        draws[q] = events[drawn] if is_popular else drawn
    keys = owner[:, None] * num_items + draws
    is_usable = ~_is_in(keys, touched)
    # a draw that repeats an earlier one of its row is dropped: stable sort, equal neighbours
    order = np.argsort(draws, axis=1, kind="stable")
    ordered = np.take_along_axis(draws, order, axis=1)
    repeats = np.zeros_like(is_usable)
    np.put_along_axis(repeats, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    is_usable &= ~repeats
    place = np.cumsum(is_usable, axis=1)
    is_usable &= place <= num_negatives
    chosen = np.full((num_queries, num_candidates), -1, np.int32)
    chosen[:, 0] = queries.target
    row, column = np.nonzero(is_usable)
    chosen[row, place[row, column]] = draws[row, column]
    counts = np.bincount(events, minlength=num_items) if is_popular else None
    for q in np.flatnonzero(chosen[:, -1] < 0):  # rare: a small catalogue or a user of everything
        everything = owner[q] * num_items + np.arange(num_items)
        left = np.flatnonzero(~_is_in(everything, touched))
        rng = stream(seed, f"{stage}-few", int(q))
        if counts is None:
            picked = rng.permutation(left)[:num_negatives]
            chosen[q, 1:] = -1
            chosen[q, 1 : 1 + len(picked)] = picked
            continue
        kept = chosen[q, 1:][chosen[q, 1:] >= 0]
        left = np.setdiff1d(left, kept)
        # the largest of log weight + Gumbel noise are draws in proportion, without repeats
        preference = np.log(np.maximum(counts[left], 1e-9)) + rng.gumbel(size=len(left))
        more = left[np.argsort(-preference, kind="stable")][: num_negatives - len(kept)]
        chosen[q, 1 + len(kept) : 1 + len(kept) + len(more)] = more
    return Candidates(chosen, word)


def given_candidates(path: Path, dataset: Dataset, part: Part) -> Candidates:
    """Return published candidate lists: a table of ``user_id`` and ``candidates`` (item ids).

    The target is put first, and dropped from the rest where the list holds it. Every query of a
    user gets the user's list. A few items outside the catalogue are left out, said aloud.

    Raises:
        DataError: A column or a user is missing, or over 5 % of the items are unknown.
    """
    try:
        table = pl.read_parquet(path, glob=False).select("user_id", "candidates")
        table = table.with_columns(as_id(table["user_id"]), pl.col("candidates").cast(pl.List))
    except (OSError, pl.exceptions.PolarsError, DataError) as error:
        raise DataError(
            f"given candidates must be Parquet with user_id and candidates (lists of item ids); "
            f"{path}: {error}"
        ) from None
    queries = dataset.queries(part)
    asked = pl.DataFrame(
        {
            "query": np.arange(len(queries)),
            "target": queries.target,
            "user_id": [dataset.user_ids[u] if u >= 0 else None for u in queries.user_index],
        },
        schema_overrides={"user_id": pl.String},
    )
    lists = asked.join(table.unique("user_id", keep="first"), on="user_id", how="left")
    missing = lists.filter(pl.col("candidates").is_null())
    if missing.height:
        raise DataError(
            f"{path} must hold candidates for every user of {part}; {missing.height} have none, "
            f"{missing['user_id'][0]!r} among them"
        )
    index = pl.DataFrame(
        {"candidates": dataset.catalogue.item_ids, "item": np.arange(dataset.num_items)}
    )
    long = lists.select("query", "target", "candidates").explode("candidates")
    long = long.with_columns(as_id(long["candidates"]))
    long = long.join(index, on="candidates", how="left", maintain_order="left")
    unknown = long.filter(pl.col("item").is_null())
    if unknown.height > _MAX_UNKNOWN_FRAC * long.height:
        raise DataError(
            f"{path} must name items of the catalogue; {unknown.height} of {long.height} entries "
            f"name others, {unknown['candidates'][0]!r} among them. Is it of another data set?"
        )
    if unknown.height:
        logger.warning(
            "%s: left out %d candidates that name %d items outside the catalogue",
            path,
            unknown.height,
            unknown["candidates"].n_unique(),
        )
        long = long.filter(pl.col("item").is_not_null())
    others = long.filter(pl.col("item") != pl.col("target")).unique(
        ["query", "item"], keep="first", maintain_order=True
    )
    column = others.select(pl.int_range(1, pl.len() + 1).over("query")).to_series().to_numpy()
    chosen = np.full((len(queries), 1 + int(column.max(initial=0))), -1, np.int32)
    chosen[:, 0] = queries.target
    chosen[others["query"].to_numpy(), column] = others["item"].to_numpy()
    return Candidates(chosen, "candidates-given")


def _owners(queries: Queries, num_users: int) -> np.ndarray:
    """Return whose touched items count for each query; an unknown user is one of its own."""
    rows = np.arange(len(queries), dtype=np.int64)
    return np.where(queries.user_index < 0, num_users + rows, queries.user_index).astype(np.int64)


def _touched(dataset: Dataset, part: Part) -> np.ndarray:
    """Return the sorted keys owner x N + item of everything that anyone touched."""
    num_items = dataset.num_items
    train = dataset.train
    keys = [train.user_index.astype(np.int64) * num_items + train.item_index]
    for name in ("valid", "test"):
        queries = dataset.queries(name)
        owner = _owners(queries, dataset.num_users)
        if name != part:  # unknown users of the other part are nobody of this one
            known = queries.user_index >= 0
            queries, owner = queries.take(known), owner[known]
        keys.append(owner * num_items + queries.target)
        # the slices of one user mostly share their start: the longest holds the others
        slices = pl.DataFrame(
            {"owner": owner, "start": queries.history_start, "stop": queries.history_stop}
        )
        longest = slices.group_by("owner", "start").agg(pl.col("stop").max())
        start, stop = longest["start"].to_numpy(), longest["stop"].to_numpy()
        lengths = stop - start
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        events = np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1])
        owners = np.repeat(longest["owner"].to_numpy(), lengths)
        keys.append(owners * num_items + queries.log_item_index[events])
    return np.unique(np.concatenate(keys))


def _is_in(keys: np.ndarray, sorted_keys: np.ndarray) -> np.ndarray:
    """Return which keys occur among the sorted ones. Same shape, bool."""
    if len(sorted_keys) == 0:
        return np.zeros(keys.shape, bool)
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return sorted_keys[place] == keys

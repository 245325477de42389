"""A prepared data set: catalogue, training log, and the queries of validation and test.

On disk (written by ``reasonrec prepare``, all Parquet; ``manifest.json`` last):

- ``items.parquet``: ``item_id``, ``title``, ``description``, ``categories``, further columns kept;
  row i is ``item_index`` i.
- ``users.parquet``: ``user_id``; row i is ``user_index`` i.
- ``train.parquet``: ``user_index``, ``item_index``, and where known ``rating``, ``timestamp``;
  sorted by user, then time, ties in file order. Nothing else may be trained on.
- ``histories.parquet``: ``item_index``, and where known ``rating``, ``timestamp``: the events that
  queries look back on, user after user, oldest first.
- ``valid.parquet``, ``test.parquet``: one row a query: ``user_index``, ``target`` (an item index),
  ``history_start``, ``history_stop`` (a slice of ``histories``), and where known ``timestamp``.
- ``unasked.parquet``, only where ``min_history`` left queries out: these, as in ``valid``, with
  the ``part`` that they would have been in. What serving knows of their users, and of no use to
  anybody else: nobody is asked them, and nothing may be trained on them.
- ``statistics.json``: counts for people; ``rejected.parquet``: rows set aside, with reasons.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from reasonrec.errors import DataError
from reasonrec.manifest import check_outputs, read_manifest
from reasonrec.records import Histories

Part = Literal["valid", "test"]
FILES = (
    "items.parquet", "users.parquet", "train.parquet", "histories.parquet",
    "valid.parquet", "test.parquet", "rejected.parquet", "statistics.json",
)  # fmt: skip
UNASKED = "unasked.parquet"


@dataclass(frozen=True)
class Catalogue:
    """The items that can be recommended; row i of ``table`` is ``item_index`` i."""

    table: pl.DataFrame

    def __len__(self) -> int:
        return self.table.height

    @cached_property
    def item_ids(self) -> list[str]:
        return self.table["item_id"].to_list()

    @cached_property
    def titles(self) -> list[str]:
        return self.table["title"].to_list()

    @cached_property
    def index_of(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}


@dataclass(frozen=True)
class InteractionLog:
    """E events sorted by user, then time; ties in time keep file order."""

    user_index: np.ndarray
    """(E,), int32."""
    item_index: np.ndarray
    """(E,), int32."""
    num_users: int
    rating: np.ndarray | None = None
    """(E,), float32, NaN where unknown; None if the set has no ratings."""
    timestamp: np.ndarray | None = None
    """(E,), int64, UTC seconds; None if the set has no times (order only)."""

    def __len__(self) -> int:
        return len(self.item_index)

    @cached_property
    def user_offsets(self) -> np.ndarray:
        """(U + 1,), int64. The events of user u are ``[user_offsets[u], user_offsets[u + 1])``."""
        return np.searchsorted(self.user_index, np.arange(self.num_users + 1)).astype(np.int64)

    @cached_property
    def is_repeat(self) -> np.ndarray:
        """(E,), bool. Whether the event's user had taken its item before."""
        key = self.user_index.astype(np.int64) * (int(self.item_index.max(initial=0)) + 1)
        is_repeat = np.ones(len(self), bool)
        is_repeat[np.unique(key + self.item_index, return_index=True)[1]] = False
        return is_repeat

    def without(self, event: np.ndarray) -> "InteractionLog":
        """Return the log without the events at the named positions (K,)."""
        is_kept = np.ones(len(self), bool)
        is_kept[event] = False
        return InteractionLog(
            user_index=self.user_index[is_kept],
            item_index=self.item_index[is_kept],
            num_users=self.num_users,
            rating=None if self.rating is None else self.rating[is_kept],
            timestamp=None if self.timestamp is None else self.timestamp[is_kept],
        )

    def histories_before(self, event: np.ndarray, *, last: int | None = None) -> Histories:
        """Return what each event's user had done before it, all of it or its ``last`` events.

        Args:
            event: (B,), positions in the log; the event itself is not part of its history.
        """
        start = self.user_offsets[self.user_index[event]]
        if last is not None:
            start = np.maximum(start, event - last)
        return self.histories(start, event, asked=event)

    def histories(self, start: np.ndarray, stop: np.ndarray, *, asked: np.ndarray) -> Histories:
        """Return the slices [start, stop) as histories, asked for when event ``asked`` happened."""
        lengths = stop - start
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        events = np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Histories(
            user_index=self.user_index[asked],
            item_index=self.item_index[events],
            offsets=offsets,
            rating=None if self.rating is None else self.rating[events],
            timestamp=None if self.timestamp is None else self.timestamp[events],
            asked_at=None if self.timestamp is None else self.timestamp[asked],
        )


@dataclass(frozen=True)
class Queries:
    """Q questions "what did this user take next?", each with what was known when it is asked."""

    user_index: np.ndarray
    """(Q,), int32."""
    target: np.ndarray
    """(Q,), int32. The item that was taken."""
    history_start: np.ndarray
    """(Q,), int64. First event of the history in ``log_item_index``."""
    history_stop: np.ndarray
    """(Q,), int64. One past its last event."""
    log_item_index: np.ndarray
    """(M,), int32. Shared by all queries of a data set."""
    log_rating: np.ndarray | None = None
    log_timestamp: np.ndarray | None = None
    timestamp: np.ndarray | None = None
    """(Q,), int64, UTC seconds of the target; None if the set has no times."""

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: np.ndarray) -> "Queries":
        """Return the named queries; the shared log is not copied."""
        return Queries(
            user_index=self.user_index[rows],
            target=self.target[rows],
            history_start=self.history_start[rows],
            history_stop=self.history_stop[rows],
            log_item_index=self.log_item_index,
            log_rating=self.log_rating,
            log_timestamp=self.log_timestamp,
            timestamp=None if self.timestamp is None else self.timestamp[rows],
        )

    def followed_by(self, other: "Queries") -> "Queries":
        """Return these queries and then the others, which share their log."""
        timestamp = None
        if self.timestamp is not None and other.timestamp is not None:
            timestamp = np.concatenate([self.timestamp, other.timestamp])
        return replace(
            self,
            user_index=np.concatenate([self.user_index, other.user_index]),
            target=np.concatenate([self.target, other.target]),
            history_start=np.concatenate([self.history_start, other.history_start]),
            history_stop=np.concatenate([self.history_stop, other.history_stop]),
            timestamp=timestamp,
        )

    @cached_property
    def is_repeat(self) -> np.ndarray:
        """(Q,), bool. Whether the target stands in the history of its own query."""
        histories = self.histories()
        owner = np.repeat(np.arange(len(self)), histories.lengths)
        is_repeat = np.zeros(len(self), bool)
        is_repeat[owner[histories.item_index == self.target[owner]]] = True
        return is_repeat

    def histories(self, *, last: int | None = None) -> Histories:
        """Return the history of every query, or only its ``last`` events."""
        start = self.history_start
        if last is not None:
            start = np.maximum(start, self.history_stop - last)
        lengths = self.history_stop - start
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        events = np.repeat(start - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Histories(
            user_index=self.user_index,
            item_index=self.log_item_index[events],
            offsets=offsets,
            rating=None if self.log_rating is None else self.log_rating[events],
            timestamp=None if self.log_timestamp is None else self.log_timestamp[events],
            asked_at=self.timestamp,
        )


@dataclass(frozen=True)
class Dataset:
    """What every later stage reads. Only ``train`` may be learned from."""

    name: str
    split: str
    """``leave-one-out``, ``global-time`` or ``given``."""
    folder: Path
    fingerprint: str
    catalogue: Catalogue
    user_ids: list[str]
    train: InteractionLog
    valid: Queries
    test: Queries
    statistics: dict[str, Any]
    unasked: Mapping[Part, Queries] = field(default_factory=dict)
    """What ``min_history`` left out of each part, for serving alone; empty where it left out none,
    and in folders of versions that did not keep it."""

    @property
    def num_users(self) -> int:
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        return len(self.catalogue)

    def queries(self, part: Part) -> Queries:
        if part not in get_args(Part):
            raise ValueError(f"part must be one of {', '.join(get_args(Part))}; got {part!r}")
        return self.valid if part == "valid" else self.test

    def seen_from(self, folder: Path) -> str:
        """Return the path from ``folder`` to the data, which can then be moved with it.

        Without symbolic links: what is above a linked folder is not what is above the link.
        """
        return os.path.relpath(self.folder.resolve(), Path(folder).resolve())

    def with_validation(self) -> "Dataset":
        """Return the data set whose ``train`` holds the validation targets as well.

        For methods that are fitted once nothing is left to choose. A target comes after what its
        user did before it; it has no rating. Targets of users that the set does not know are no
        part of any log, and are left out.
        """
        train, asked = self.train, self.valid.take(np.flatnonzero(self.valid.user_index >= 0))
        users = np.concatenate([train.user_index, asked.user_index])
        keys, timestamp = [users], None
        if train.timestamp is not None and asked.timestamp is not None:
            timestamp = np.concatenate([train.timestamp, asked.timestamp])
            keys.insert(0, timestamp)
        order = np.lexsort(keys)  # stable: of equal times training's own order, then the question's
        rating = None
        if train.rating is not None:
            unknown = np.full(len(asked), np.nan, np.float32)
            rating = np.concatenate([train.rating, unknown])[order]
        log = InteractionLog(
            user_index=users[order],
            item_index=np.concatenate([train.item_index, asked.target])[order],
            num_users=train.num_users,
            rating=rating,
            timestamp=None if timestamp is None else timestamp[order],
        )
        return replace(self, train=log)

    @cached_property
    def user_index_of(self) -> dict[str, int]:
        return {user_id: index for index, user_id in enumerate(self.user_ids)}

    @staticmethod
    def load(folder: Path | str) -> "Dataset":
        """Return the data set that ``reasonrec prepare`` wrote to ``folder``.

        Raises:
            CheckpointError: The folder is unfinished or of another format, or a file in it is
                missing or was changed since it was prepared.
            DataError: A file cannot be read.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest["stage"] != "prepare":
            raise DataError(
                f"{folder} must be a folder written by `reasonrec prepare`; "
                f"it was written by stage {manifest['stage']!r}"
            )
        check_outputs(folder)
        statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
        tables = {name: _read(folder, name) for name in FILES if name.endswith(".parquet")}
        users = tables["users.parquet"]["user_id"].to_list()
        train, histories = tables["train.parquet"], tables["histories.parquet"]
        return Dataset(
            name=manifest["config"]["name"],
            split=manifest["config"]["split"],
            folder=folder,
            fingerprint=manifest["fingerprint"],
            catalogue=Catalogue(tables["items.parquet"]),
            user_ids=users,
            train=InteractionLog(
                user_index=train["user_index"].to_numpy(),
                item_index=train["item_index"].to_numpy(),
                num_users=len(users),
                rating=_column(train, "rating"),
                timestamp=_column(train, "timestamp"),
            ),
            valid=_queries(tables["valid.parquet"], histories),
            test=_queries(tables["test.parquet"], histories),
            statistics=statistics,
            unasked=_unasked(folder, histories) if UNASKED in manifest["outputs"] else {},
        )


def _unasked(folder: Path, histories: pl.DataFrame) -> dict[Part, Queries]:
    table = _read(folder, UNASKED)
    return {
        part: _queries(table.filter(pl.col("part") == part), histories) for part in get_args(Part)
    }


def _queries(table: pl.DataFrame, histories: pl.DataFrame) -> Queries:
    return Queries(
        user_index=table["user_index"].to_numpy(),
        target=table["target"].to_numpy(),
        history_start=table["history_start"].to_numpy(),
        history_stop=table["history_stop"].to_numpy(),
        log_item_index=histories["item_index"].to_numpy(),
        log_rating=_column(histories, "rating"),
        log_timestamp=_column(histories, "timestamp"),
        timestamp=_column(table, "timestamp"),
    )


def _column(table: pl.DataFrame, name: str) -> np.ndarray | None:
    return table[name].to_numpy() if name in table.columns else None


def _read(folder: Path, name: str) -> pl.DataFrame:
    try:
        return pl.read_parquet(folder / name, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"{folder / name} cannot be read ({error}); prepare the data again"
        ) from None

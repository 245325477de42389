"""Published split files (``user_id``, ``history``, ``target``) -> a Split.

What may be trained on, in this order: the rows marked ``part = train`` that are older than the
first query of validation (Office 2018 marks some newer ones); else every event older than the
first query; else, for logs without times or splits without a validation file, the histories of
the test file themselves, whose last event becomes the validation target. The last rule keeps a
split that was made on another order of the log (Games 2018) apart from that log.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from reasonrec.data.raw import ROW, rejected_rows
from reasonrec.data.splits import Events, Questions, Split
from reasonrec.data.timestamps import parse_times
from reasonrec.data.validation import as_id
from reasonrec.errors import DataError


@dataclass(frozen=True)
class GivenQueries:
    """The sound rows of one published split file, in file order."""

    user_id: pl.Series
    target: np.ndarray
    micros: np.ndarray | None
    item: np.ndarray
    """(M,), int32: the histories, one after the other."""
    lengths: np.ndarray
    """(Q,), int64."""
    rating: np.ndarray | None
    history_micros: np.ndarray | None
    num_unknown: int
    """History events left out because the catalogue lacks their item."""

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: np.ndarray) -> "GivenQueries":
        """Return the named queries (sorted indices) with their histories."""
        is_kept = np.zeros(len(self), bool)
        is_kept[rows] = True
        events = np.repeat(is_kept, self.lengths)
        return replace(
            self,
            user_id=self.user_id.gather(rows),
            target=self.target[rows],
            micros=None if self.micros is None else self.micros[rows],
            item=self.item[events],
            lengths=self.lengths[rows],
            rating=None if self.rating is None else self.rating[events],
            history_micros=None if self.history_micros is None else self.history_micros[events],
        )


def choose_files(files: Mapping[str, Path], name: str | None) -> dict[str, Path]:
    """Return the files of one published split by part: ``test``, and ``valid`` if there is one.

    Args:
        files: ``split_test``, ``split_NAME_valid`` and the like -> Parquet file.
        name: The NAME; None if there is only one split.

    Raises:
        DataError: There is no such split, or several and no name.
    """
    # "split_llara_test" -> "split_llara"
    found = {
        stem.removesuffix("_test"): path for stem, path in files.items() if stem.endswith("_test")
    }
    chosen = [stem for stem in found if name is None or stem == f"split_{name}"]
    if len(chosen) != 1:
        names = ", ".join(f"{stem}_test" for stem in found) or "none"
        raise DataError(
            "--split given needs one published test file, split_test.parquet or "
            f"split_NAME_test.parquet; found {names}"
            + (". Choose one with --given-split NAME" if len(chosen) > 1 else "")
        )
    stem = chosen[0]
    parts = {"valid": files.get(f"{stem}_valid"), "test": files[f"{stem}_test"]}
    return {part: path for part, path in parts.items() if path is not None}


def read_queries(
    table: pl.DataFrame, item_ids: pl.Series, *, file: str
) -> tuple[GivenQueries, pl.DataFrame]:
    """Return the sound rows of a published split, and those set aside.

    Raises:
        DataError: A column is missing or of another type.
    """
    missing = [name for name in ("user_id", "history", "target") if name not in table.columns]
    if missing or not isinstance(table.schema.get("history"), pl.List):
        raise DataError(
            f"{file} must have user_id, target and history (a list, oldest first) to be a split; "
            f"found {', '.join(f'{n} {t}' for n, t in table.schema.items())}"
        )
    table = table.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias(ROW))
    index = pl.DataFrame({"item_id": item_ids}).with_columns(
        item=pl.int_range(pl.len(), dtype=pl.Int32)
    )
    target = (
        as_id(table["target"]).to_frame("item_id")
        .join(index, on="item_id", how="left", maintain_order="left")["item"]
    )  # fmt: skip
    lists = [
        name
        for name in ("history", "history_rating", "history_timestamp")
        if isinstance(table.schema.get(name), pl.List)
    ]
    uneven = pl.any_horizontal(
        pl.lit(False), *(pl.col(n).list.len() != pl.col("history").list.len() for n in lists[1:])
    )
    reason = (
        pl.when(pl.col("_user_id").is_null()).then(pl.lit("missing user_id"))
        .when(pl.col("_target").is_null()).then(pl.lit("unknown target"))
        .when(uneven).then(pl.lit("history, ratings and times differ in length"))
    )  # fmt: skip
    table = table.with_columns(as_id(table["user_id"]).alias("_user_id"), target.alias("_target"))
    times = parse_times(table["timestamp"]).micros if _known(table, "timestamp") else None
    if times is not None:
        table = table.with_columns(times.alias("_micros"))
        reason = pl.coalesce(
            reason, pl.when(pl.col("_micros").is_null()).then(pl.lit("timestamp is no time"))
        )
    table = table.with_columns(reason.alias("_reason"), pl.col("history").fill_null([]))
    rejected = rejected_rows(
        table.filter(pl.col("_reason").is_not_null()), pl.col("_reason"), file=file
    )
    sound = table.filter(pl.col("_reason").is_null())
    flat = (
        sound.select(pl.int_range(pl.len(), dtype=pl.Int64).alias("_query"), *lists)
        .filter(pl.col("history").list.len() > 0)
        .explode(lists)
    )
    flat = flat.with_columns(as_id(flat["history"])).join(
        index, left_on="history", right_on="item_id", how="left", maintain_order="left"
    )
    known = flat.filter(pl.col("item").is_not_null())
    has_rating = "history_rating" in lists
    has_times = "history_timestamp" in lists
    return GivenQueries(
        user_id=sound["_user_id"].alias("user_id"),
        target=sound["_target"].to_numpy(),
        micros=sound["_micros"].to_numpy() if times is not None else None,
        item=known["item"].to_numpy(),
        lengths=np.bincount(known["_query"].to_numpy(), minlength=sound.height),
        rating=_floats(known["history_rating"]) if has_rating else None,
        history_micros=_micros(known["history_timestamp"]) if has_times else None,
        num_unknown=flat.height - known.height,
    ), rejected


def from_log(events: Events, valid: GivenQueries, test: GivenQueries, user_ids: pl.Series) -> Split:
    """Return the split whose training events come from the log.

    Raises:
        DataError: Neither parts nor times say what is older than the queries.
    """
    notes: list[str] = []
    is_train = np.ones(len(events), bool) if events.is_marked is None else events.is_marked
    if events.micros is not None and valid.micros is not None and len(valid):
        start = int(valid.micros.min())
        if test.micros is not None and len(test):
            start = min(start, int(test.micros.min()))
        is_late = is_train & (events.micros >= start)
        is_train = is_train & ~is_late
        rule = "rows marked train and" if events.is_marked is not None else "events"
        notes.append(
            f"training holds the {rule} older than the first query: {is_train.sum():,} events; "
            f"{is_late.sum():,} that are not older were left out"
        )
    elif events.is_marked is None:
        raise DataError(
            "a published split needs times, or a column `part` that marks the training rows; the "
            "log has neither"
        )
    if not is_train.any():
        raise DataError("a published split must leave events to train on; none is older than it")
    return _assemble(events.take(is_train), valid, test, user_ids, notes)


def from_histories(test: GivenQueries, user_ids: pl.Series) -> Split:
    """Return the split made of a test file alone: its histories, less their last event, train.

    Of several rows of one user the longest stays, or the target of one would be trained on as the
    history of another.
    """
    num_rows, users = len(test), _codes(test.user_id, user_ids)
    test = test.take(np.sort(_longest_rows(users, test.lengths)))
    users = _codes(test.user_id, user_ids)
    events = _history_events(test, users, len(user_ids))
    offsets = np.concatenate([[0], np.cumsum(test.lengths)]).astype(np.int64)
    asked = np.flatnonzero(test.lengths >= 2)  # one event cannot be both history and target
    last = offsets[asked + 1] - 1
    is_train = np.ones(len(events), bool)
    is_train[last] = False
    rows = np.flatnonzero(is_train)
    micros = None if events.micros is None else events.micros[last]
    return Split(
        train=events.take(rows[np.argsort(events.user[rows], kind="stable")]),
        histories=events,
        valid=Questions(users[asked], events.item[last], offsets[asked], last, micros),
        test=Questions(users, test.target, offsets[:-1], offsets[1:], test.micros),
        notes=(
            "the published test file has no validation beside it, or the log no times: training "
            "holds the histories of the test file, the last event of each is the validation "
            "target, and the order of the log is not used",
            f"{num_rows - len(test):,} rows of users with another row were left out",
        ),
    )


def _longest_rows(users: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    order = np.lexsort((np.arange(len(users)), -lengths, users))
    _, first = np.unique(users[order], return_index=True)
    return order[first]


def _assemble(
    train: Events, valid: GivenQueries, test: GivenQueries, user_ids: pl.Series, notes: list[str]
) -> Split:
    parts, questions, start = [], [], 0
    for given in (valid, test):
        users = _codes(given.user_id, user_ids)
        offsets = start + np.concatenate([[0], np.cumsum(given.lengths)]).astype(np.int64)
        parts.append(_history_events(given, users, len(user_ids)))
        questions.append(Questions(users, given.target, offsets[:-1], offsets[1:], given.micros))
        start = int(offsets[-1])
        if given.num_unknown:
            notes.append(f"{given.num_unknown:,} history events name no item of the catalogue")
    return Split(train, _joined(parts), questions[0], questions[1], tuple(notes))


def _history_events(given: GivenQueries, users: np.ndarray, num_users: int) -> Events:
    return Events(
        user=np.repeat(users, given.lengths).astype(np.int32),
        item=given.item.astype(np.int32),
        num_users=num_users,
        rating=given.rating,
        micros=given.history_micros,
    )


def _joined(parts: list[Events]) -> Events:
    has_rating = all(part.rating is not None for part in parts)
    has_times = all(part.micros is not None for part in parts)
    return Events(
        user=np.concatenate([part.user for part in parts]),
        item=np.concatenate([part.item for part in parts]),
        num_users=parts[0].num_users,
        rating=np.concatenate([_given(p.rating) for p in parts]) if has_rating else None,
        micros=np.concatenate([_given(p.micros) for p in parts]) if has_times else None,
    )


def _given(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values


def _codes(user_id: pl.Series, user_ids: pl.Series) -> np.ndarray:
    index = pl.DataFrame({"user_id": user_ids}).with_columns(
        user=pl.int_range(pl.len(), dtype=pl.Int32)
    )
    asked = pl.DataFrame({"user_id": user_id})
    return asked.join(index, on="user_id", how="left", maintain_order="left")["user"].to_numpy()


def _known(table: pl.DataFrame, name: str) -> bool:
    return name in table.columns and table[name].null_count() < table.height


def _floats(values: pl.Series) -> np.ndarray:
    return values.cast(pl.Float32).fill_null(float("nan")).to_numpy()


def _micros(values: pl.Series) -> np.ndarray | None:
    micros = parse_times(values).micros
    return None if micros.null_count() else micros.to_numpy()

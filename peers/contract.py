"""What goes into a peer and what comes out of it: two files and a folder that reasonrec prepared.

A peer is a recommender of another library. It is asked with a *job*, a JSON file:

- ``method``: one of ``METHODS`` in ``run.py``;
- ``data``: a folder that ``reasonrec prepare`` wrote; ``fingerprint``: what its manifest says;
- ``part``: ``valid`` or ``test``; ``rows``: the queries of that part to answer, or null for all;
- ``settings``: every setting of the method by name, a number each; ``seed``;
- ``num_timed_users``: how many queries are asked again one at a time, for the latency;
- ``train_on``, where it is given: ``train+valid``, below.

It writes into the folder of the job, ``peer.json`` last of all:

- ``scores.parquet``: a row for each query, in the order of ``rows``: ``query`` (int64, its row in
  the part), ``scores`` (float32, one for each item of the catalogue in ``item_index`` order) and
  ``seconds`` (float64, its share of the batch that it was answered in);
- ``peer.json``: the job, the library with its version, the versions beside it, the epochs that
  were trained, ``fit_seconds``, ``answer_seconds``, ``latency_ms``.

The same for all peers, and done here, so that none is favoured: they learn from ``train.parquet``
alone; training stops, and goes back to its best weights, by NDCG@10 on validation over the full
catalogue; with ``train+valid`` they are then trained anew, from the same seed, on the validation
targets as well, for as many epochs as were best, without a look at anything; an item that the peer
never saw in training gets the score -inf; a history without any item that it saw is answered by
popularity. Nothing here reads ``test.parquet`` unless it is asked for.

This module shares no code with reasonrec: both sides know the files, and only those.
"""

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

BATCH = 256
"""Queries answered at once."""
NUM_WATCHED = 2_000
"""Validation queries that early stopping looks at, evenly spaced, at most."""
VERSIONS = ("torch", "numpy", "rectools", "cornac", "recbole", "torch-geometric", "pyarrow")


class UnfitError(Exception):
    """These settings cannot be trained on these data; others may."""


@dataclass(frozen=True)
class Histories:
    """What is known of B users when they are asked about, oldest first."""

    user_index: np.ndarray
    """(B,), int64. -1 for a user that the prepared folder does not know."""
    items: list[np.ndarray]
    """B arrays of item indices."""
    times: list[np.ndarray] | None
    """B arrays of UTC seconds, or None if the data have no times."""
    asked_at: np.ndarray | None
    """(B,), UTC seconds of the question, or None if the data have no times."""

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: np.ndarray) -> "Histories":
        return Histories(
            self.user_index[rows],
            [self.items[row] for row in rows],
            None if self.times is None else [self.times[row] for row in rows],
            None if self.asked_at is None else self.asked_at[rows],
        )

    def known(self, is_known: np.ndarray) -> "Histories":
        """Return the histories without the items that ``is_known`` (N,) denies."""
        kept = [is_known[items] for items in self.items]
        return Histories(
            self.user_index,
            [items[keep] for items, keep in zip(self.items, kept, strict=True)],
            None
            if self.times is None
            else [times[keep] for times, keep in zip(self.times, kept, strict=True)],
            self.asked_at,
        )


@dataclass(frozen=True)
class Prepared:
    """A prepared folder, as the peers need it."""

    num_users: int
    num_items: int
    user_index: np.ndarray
    """(E,), int64. Users of the training events, sorted by user, then time."""
    item_index: np.ndarray
    """(E,), int64."""
    timestamp: np.ndarray | None
    """(E,), int64, UTC seconds; None if the data have no times."""
    folder: Path
    holds_valid: bool = False
    """Whether the validation targets are among the events; nothing can then be stopped by them."""

    @staticmethod
    def load(folder: Path) -> "Prepared":
        """Return what a peer may learn from."""
        train = pq.read_table(folder / "train.parquet")
        return Prepared(
            num_users=pq.read_metadata(folder / "users.parquet").num_rows,
            num_items=pq.read_metadata(folder / "items.parquet").num_rows,
            user_index=_column(train, "user_index"),
            item_index=_column(train, "item_index"),
            timestamp=_column(train, "timestamp") if "timestamp" in train.column_names else None,
            folder=folder,
        )

    def with_validation(self) -> "Prepared":
        """Return the events with the validation targets of known users in their places."""
        table = pq.read_table(self.folder / "valid.parquet")
        is_known = _column(table, "user_index") >= 0
        user = np.append(self.user_index, _column(table, "user_index")[is_known])
        item = np.append(self.item_index, _column(table, "target")[is_known])
        keys, times = [user], None
        if self.timestamp is not None and "timestamp" in table.column_names:
            times = np.append(self.timestamp, _column(table, "timestamp")[is_known])
            keys.insert(0, times)
        order = np.lexsort(keys)  # stable: what training holds comes first
        return replace(
            self, user_index=user[order], item_index=item[order],
            timestamp=None if times is None else times[order], holds_valid=True,
        )  # fmt: skip

    @property
    def item_counts(self) -> np.ndarray:
        """(N,), int64. Training events of each item."""
        return np.bincount(self.item_index, minlength=self.num_items)

    def sessions(self) -> list[np.ndarray]:
        """Return the items of each user of training, oldest first; the users in their order."""
        ends = np.flatnonzero(np.diff(self.user_index)) + 1
        return np.split(self.item_index, ends)

    def queries(self, part: str) -> tuple[Histories, np.ndarray]:
        """Return the histories of all queries of a part, and their targets."""
        table = pq.read_table(self.folder / f"{part}.parquet")
        log = pq.read_table(self.folder / "histories.parquet")
        items = _column(log, "item_index")
        times = _column(log, "timestamp") if "timestamp" in log.column_names else None
        starts, stops = _column(table, "history_start"), _column(table, "history_stop")
        slices = [slice(start, stop) for start, stop in zip(starts, stops, strict=True)]
        asked_at = _column(table, "timestamp") if "timestamp" in table.column_names else None
        return Histories(
            user_index=_column(table, "user_index"),
            items=[items[one] for one in slices],
            times=None if times is None or asked_at is None else [times[one] for one in slices],
            asked_at=asked_at,
        ), _column(table, "target")


class Scorer(Protocol):
    """A trained peer."""

    epochs: int
    """How many epochs were trained to reach these weights."""

    @property
    def is_known(self) -> np.ndarray:
        """(N,), bool. The items that it saw in training."""
        ...

    def score(self, histories: Histories) -> np.ndarray:
        """Return (B, N), float32. Every history holds at least one item that it saw in training,
        and no other; what is said of items that it never saw is not looked at."""
        ...


@dataclass
class Watch:
    """Early stopping: looks at validation every few epochs and keeps the best weights.

    Where validation is learned it is not looked at: all epochs are trained, the last weights kept.
    """

    prepared: Prepared
    check_every: int
    """Epochs between two looks."""
    patience: int
    """Looks without a better one after which training is over."""
    best: float = -1.0
    best_epoch: int = 0
    _state: dict[str, Any] = field(default_factory=dict)
    _num_worse: int = 0

    def __post_init__(self) -> None:
        histories, targets = self.prepared.queries("valid")
        rows = np.arange(len(targets))
        if len(rows) > NUM_WATCHED:
            rows = np.linspace(0, len(rows) - 1, NUM_WATCHED).astype(np.int64)
        self._histories, self._targets = histories.take(rows), targets[rows]

    def is_over(self, epoch: int, model: torch.nn.Module, scorer: Scorer) -> bool:
        """Return whether to stop after ``epoch``, the first of which is 1.

        Raises:
            UnfitError: The scores left the finite numbers.
        """
        if self.prepared.holds_valid:
            self.best_epoch = epoch
            return False
        if epoch % self.check_every:
            return False
        was_training = model.training
        model.eval()
        reached = ndcg_at_10(scorer, self.prepared, self._histories, self._targets)
        model.train(was_training)
        if reached > self.best:
            self.best, self.best_epoch, self._num_worse = reached, epoch, 0
            self._state = copy.deepcopy(model.state_dict())
        else:
            self._num_worse += 1
        print(f"epoch {epoch}: ndcg@10 {reached:.4f} on validation", flush=True)
        return self._num_worse >= self.patience

    def restore(self, model: torch.nn.Module) -> int:
        """Put the best weights back into ``model`` and return the epoch that they are of."""
        if self.prepared.holds_valid:
            model.eval()
            return self.best_epoch
        if not self._state:
            raise UnfitError("max_epochs must be at least check_every, or nothing is ever kept")
        model.load_state_dict(self._state)
        model.eval()
        return self.best_epoch


def ndcg_at_10(
    scorer: Scorer, prepared: Prepared, histories: Histories, targets: np.ndarray
) -> float:
    """Return the mean NDCG@10 over the full catalogue, histories masked except the target.

    This decides when training stops, and nothing else: reasonrec measures what is reported.
    """
    gains = []
    for start in range(0, len(targets), BATCH):
        batch = np.arange(start, min(start + BATCH, len(targets)))
        asked, wanted = histories.take(batch), targets[batch]
        scores = full_scores(scorer, prepared, asked)
        own = scores[np.arange(len(batch)), wanted]
        for row, items in enumerate(asked.items):
            scores[row, items] = -np.inf
        scores[np.arange(len(batch)), wanted] = own
        higher = (scores > own[:, None]).sum(axis=1)
        tied = (scores == own[:, None]).sum(axis=1) - 1
        rank = 1 + higher + tied / 2
        gains.append(np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0))
    return float(np.concatenate(gains).mean())


def full_scores(scorer: Scorer, prepared: Prepared, histories: Histories) -> np.ndarray:
    """Return the scores of a batch of histories, by the rules that all peers share. (B, N)."""
    is_known = scorer.is_known
    histories = histories.known(is_known)
    is_asked = np.array([len(items) > 0 for items in histories.items], bool)
    scores = np.tile(prepared.item_counts.astype(np.float32), (len(histories), 1))
    if is_asked.any():
        scores[is_asked] = scorer.score(histories.take(np.flatnonzero(is_asked)))
    if not np.isfinite(scores[:, is_known]).all():
        raise UnfitError("the scores must stay finite; with these settings they did not")
    scores[:, ~is_known] = -np.inf
    return scores


def _version(library: str) -> str | None:
    """Return what is installed of a library; a peer needs none but its own."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def answer(
    job: Mapping[str, Any],
    train: Callable[[Prepared, Mapping[str, Any], int], Scorer],
    library: str,
    folder: Path,
) -> None:
    """Train a peer, answer the queries of the job, and write both files into ``folder``."""
    prepared = Prepared.load(Path(job["data"]))
    clock = time.perf_counter()
    scorer = train(prepared, job["settings"], job["seed"])
    if job.get("train_on", "train") == "train+valid":
        prepared = prepared.with_validation()
        scorer = train(prepared, job["settings"] | {"max_epochs": scorer.epochs}, job["seed"])
    fit_seconds = time.perf_counter() - clock
    histories, _ = prepared.queries(job["part"])
    rows = np.arange(len(histories)) if job["rows"] is None else np.asarray(job["rows"], np.int64)
    answer_seconds = 0.0
    # the exponents of neighbouring scores are alike, their low bits are not: planes of bytes pack
    writer = pq.ParquetWriter(
        folder / "scores.parquet",
        _schema(),
        compression="zstd",
        use_dictionary=["query"],
        use_byte_stream_split=["scores.list.element"],
    )
    with writer:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            clock = time.perf_counter()
            scores = full_scores(scorer, prepared, histories.take(batch))
            spent = time.perf_counter() - clock
            answer_seconds += spent
            writer.write_table(_table(batch, scores, spent / len(batch)))
    timed = np.linspace(0, len(rows) - 1, min(job["num_timed_users"], len(rows))).astype(np.int64)
    latency_ms = []
    for row in [*rows[timed[:1]], *rows[timed]]:  # the first one warms up
        clock = time.perf_counter()
        full_scores(scorer, prepared, histories.take(np.array([row])))
        latency_ms.append(1000.0 * (time.perf_counter() - clock))
    content = {
        "job": dict(job),
        "library": f"{library} {version(library)}",
        "versions": {name: found for name in VERSIONS if (found := _version(name))},
        "epochs": scorer.epochs,
        "fit_seconds": round(fit_seconds, 3),
        "answer_seconds": round(answer_seconds, 3),
        "latency_ms": [round(one, 4) for one in latency_ms[1:]],
        "num_threads": torch.get_num_threads(),
    }
    partial = folder / "peer.json.partial"
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / "peer.json")


def _schema() -> pa.Schema:
    return pa.schema(
        {"query": pa.int64(), "scores": pa.list_(pa.float32()), "seconds": pa.float64()}
    )


def _table(rows: np.ndarray, scores: np.ndarray, seconds: float) -> pa.Table:
    num_rows, num_items = scores.shape
    offsets = np.arange(num_rows + 1, dtype=np.int32) * num_items
    lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(scores.reshape(-1)))
    return pa.table([rows, lists, np.full(num_rows, seconds)], schema=_schema())


def _column(table: pa.Table, name: str) -> np.ndarray:
    return table[name].to_numpy().astype(np.int64)

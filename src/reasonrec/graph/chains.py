"""The stage ``reasonrec chains``: a prepared data set in, chains and their leak audit out.

The folder holds ``chains.parquet``, ``statistics.json``, and last ``manifest.json``; the columns
are listed in ``docs/chains.md``. ``load_chains`` reads it back.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset, InteractionLog, Queries
from reasonrec.errors import DataError
from reasonrec.graph.audit import area_under_curve, draw_negatives
from reasonrec.graph.audit import touched_keys as keys_of
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.config import NEGATIVES, ChainConfig, Reading
from reasonrec.graph.sampling import CLOSED, OPEN, ChainTable, count_closable, sample_chains
from reasonrec.manifest import (
    check_outputs,
    is_finished,
    make_folder,
    read_manifest,
    stopwatch,
    write_manifest,
    writes_alone,
)
from reasonrec.records import Histories

STAGE = "chains"
OUTPUTS = ["chains.parquet", "statistics.json"]
_FALLBACK_NAMES = ("none", "open", "history-only")
_ROWS_AT_A_TIME = 100_000


@dataclass(frozen=True)
class StoredChains:
    """What ``chains.parquet`` holds: M chains, and which question each belongs to."""

    split: np.ndarray
    """(M,), text: ``train``, ``valid`` or ``test``."""
    label: np.ndarray
    """(M,), int8. 1 for what the user took, 0 for a drawn negative, -1 without a candidate."""
    user_index: np.ndarray
    """(M,), int32. u0."""
    candidate: np.ndarray
    """(M,), int32. -1 where chains close on the history."""
    num_closable: np.ndarray
    """(M,), int64. Chains over one neighbour that close for the question."""
    chains: ChainTable
    """Its ``query`` is a row of that split's queries (for ``train``, of ``train_queries``)."""
    reading: Reading

    def __len__(self) -> int:
        return len(self.split)


def load_chains(folder: Path | str) -> StoredChains:
    """Return the chains that ``reasonrec chains`` wrote to ``folder``.

    Raises:
        CheckpointError: The folder is unfinished, or a file in it was changed since.
        DataError: Another command wrote it.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest["stage"] != STAGE:
        raise DataError(
            f"{folder} must be a folder written by `reasonrec chains`; "
            f"it was written by stage {manifest['stage']!r}"
        )
    check_outputs(folder)
    table = pl.read_parquet(folder / "chains.parquet", glob=False)
    num_neighbours = manifest["config"]["num_neighbours"]
    names = _EdgeNames(num_neighbours)
    code = {name: number for number, name in enumerate(_FALLBACK_NAMES)}

    def stacked(columns: list[str]) -> np.ndarray:
        return np.stack([table[name].fill_null(-1).to_numpy() for name in columns], axis=1)

    def rating(name: str) -> np.ndarray | None:
        if name not in table.columns:
            return None
        return table[name].fill_null(np.nan).to_numpy()

    edge_ratings = [found for name in names.edges if (found := rating(f"r_{name}")) is not None]
    return StoredChains(
        split=table["split"].to_numpy(),
        label=table["label"].fill_null(-1).cast(pl.Int8).to_numpy(),
        user_index=table["user_index"].to_numpy(),
        candidate=table["candidate"].fill_null(-1).to_numpy(),
        num_closable=table["num_closable"].to_numpy(),
        chains=ChainTable(
            query=table["query"].to_numpy(),
            items=stacked(names.items),
            users=stacked(names.users),
            weight=table["weight"].to_numpy(),
            fallback=table["fallback"].replace_strict(code, return_dtype=pl.Int8).to_numpy(),
            edge_event=stacked([f"e_{name}" for name in names.edges]),
            edge_rating=np.stack(edge_ratings, axis=1) if edge_ratings else None,
            user_rating=rating("r_u0_i0"),
            closing_rating=rating(f"r_u0_i{num_neighbours}"),
        ),
        reading=manifest["config"]["reading"],
    )


@dataclass(frozen=True)
class _EdgeNames:
    """How the columns of chains over L neighbours are called."""

    num_neighbours: int

    @property
    def items(self) -> list[str]:
        return [f"i{j}" for j in range(self.num_neighbours + 1)]

    @property
    def users(self) -> list[str]:
        return [f"u{j + 1}" for j in range(self.num_neighbours)]

    @property
    def edges(self) -> list[str]:
        return [f"u{j + 1}_i{k}" for j in range(self.num_neighbours) for k in (j, j + 1)]


@dataclass(frozen=True)
class ChainStage:
    """What ``write_chains`` did."""

    folder: Path
    statistics: dict[str, Any]
    was_finished: bool
    """True if the folder already held this very result."""


def train_queries(train: InteractionLog, *, per_user: int) -> Queries:
    """Return the last ``per_user`` events of every user as questions about what came next.

    A user's first event has no history and is none. Histories are slices of the training log.
    """
    start = train.user_offsets[train.user_index]
    stop = train.user_offsets[train.user_index.astype(np.int64) + 1]
    position = np.arange(len(train))
    rows = np.flatnonzero((position > start) & (position >= stop - per_user))
    return Queries(
        user_index=train.user_index[rows],
        target=train.item_index[rows],
        history_start=start[rows],
        history_stop=rows.astype(np.int64),
        log_item_index=train.item_index,
        log_rating=train.rating,
        log_timestamp=train.timestamp,
        timestamp=None if train.timestamp is None else train.timestamp[rows],
    )


@writes_alone
def write_chains(dataset: Dataset, out: Path, config: ChainConfig, *, seed: int) -> ChainStage:
    """Draw the chains of all splits, audit them, and write the stage folder.

    Raises:
        CheckpointError: ``out`` holds another finished run.
        ReasonrecError: It cannot be written to.
    """
    inputs = {"dataset": dataset.fingerprint}
    asked = {"stage": STAGE, "inputs": inputs, "config": config.model_dump(), "seed": seed}
    if is_finished(out, **asked):
        text = (Path(out) / "statistics.json").read_text(encoding="utf-8")
        return ChainStage(Path(out), json.loads(text), was_finished=True)
    out = make_folder(out)
    with stopwatch() as spent:
        graph = InteractionGraph.build(dataset.train, dataset.num_items)
        touched = keys_of(dataset)
        tables, splits = [], {}
        for split, queries in (
            ("train", train_queries(dataset.train, per_user=config.train_queries_per_user)),
            ("valid", dataset.valid),
            ("test", dataset.test),
        ):
            chains, splits[split] = _chains_of(
                dataset, graph, queries, touched, config, seed=seed, split=split
            )
            tables.append(chains)
        pl.concat(tables).write_parquet(out / "chains.parquet")
    statistics = {
        "dataset": dataset.name,
        "reading": config.reading,
        "num_chains": sum(table.height for table in tables),
        "splits": splits,
    }
    text = json.dumps(statistics, indent=2) + "\n"
    (out / "statistics.json").write_text(text, encoding="utf-8")
    write_manifest(out, outputs=OUTPUTS, seconds=spent[0], **asked)
    return ChainStage(out, statistics, was_finished=False)


def _chains_of(
    dataset: Dataset,
    graph: InteractionGraph,
    queries: Queries,
    touched: np.ndarray,
    config: ChainConfig,
    *,
    seed: int,
    split: str,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return the chains of one split as a table, and its statistics."""
    negatives: dict[str, np.ndarray] = {
        kind: draw_negatives(dataset, queries, touched, kind=kind, seed=seed) for kind in NEGATIVES
    }
    tables, labels, closable = [], {}, {}
    columns = {"positive": queries.target, **negatives}
    if config.reading == "history-closed":
        columns = {"history": None}
    for name, candidate in columns.items():
        is_stored = name in ("positive", "history", config.negatives)
        num_closable = np.zeros(len(queries), np.int64)
        counts = np.zeros(3, np.int64)
        num_rows = 0
        for rows, histories, chains in _sampled(graph, queries, candidate, config, seed=seed):
            num_closable[rows] = count_closable(
                graph,
                histories,
                None if candidate is None else candidate[rows],
                reading=config.reading,
                max_history=config.max_history,
            )
            if is_stored:
                table = _table(
                    graph, queries, rows, chains, candidate, num_closable[rows],
                    label=name, split=split,
                )  # fmt: skip
                tables.append(table)
            is_first = np.diff(chains.query, prepend=-1) > 0
            counts += np.bincount(chains.fallback[is_first], minlength=3)
            num_rows += len(rows)
        closable[name] = num_closable if candidate is None else num_closable[candidate >= 0]
        labels[name] = {
            "num_queries": num_rows,
            "num_without_candidate": len(queries) - num_rows,
            "closed_rate": _share(counts[CLOSED], num_rows),
            "open_rate": _share(counts[OPEN], num_rows),
            "history_only_rate": _share(counts[2], num_rows),
            "mean_num_closable": _share(closable[name].sum(), num_rows),
        }
    audit = {
        f"auc_against_{kind}_negatives": area_under_curve(closable["positive"], closable[kind])
        for kind in NEGATIVES
        if "positive" in closable
    }
    return pl.concat(tables), {"labels": labels, "chain_existence_audit": audit}


def _sampled(
    graph: InteractionGraph,
    queries: Queries,
    candidate: np.ndarray | None,
    config: ChainConfig,
    *,
    seed: int,
) -> Iterator[tuple[np.ndarray, Histories, ChainTable]]:
    """Yield query rows with histories and chains, some at a time, so that histories stay small."""
    rows = np.arange(len(queries)) if candidate is None else np.flatnonzero(candidate >= 0)
    for begin in range(0, max(len(rows), 1), _ROWS_AT_A_TIME):
        part = rows[begin : begin + _ROWS_AT_A_TIME]
        histories = queries.take(part).histories()
        yield (
            part,
            histories,
            sample_chains(
                graph,
                histories,
                None if candidate is None else candidate[part],
                seed=seed,
                reading=config.reading,
                num_chains=config.num_chains,
                num_neighbours=config.num_neighbours,
                max_history=config.max_history,
                overlap_weight=config.overlap_weight,
                degree_weight=config.degree_weight,
                open_from=config.open_from,
                num_walks=config.num_walks,
            ),
        )


def _table(
    graph: InteractionGraph,
    queries: Queries,
    rows: np.ndarray,
    chains: ChainTable,
    candidate: np.ndarray | None,
    num_closable: np.ndarray,
    *,
    label: str,
    split: str,
) -> pl.DataFrame:
    """Return the chains as they are stored; what is not there is null."""
    query = rows[chains.query]
    names = _EdgeNames(chains.users.shape[1])
    nothing = np.full(len(query), -1, np.int32)
    columns: dict[str, np.ndarray] = {
        "query": query.astype(np.int64),
        "user_index": queries.user_index[query],
        "candidate": nothing if candidate is None else candidate[query],
    }
    for j, name in enumerate(names.items):
        columns[name] = chains.items[:, j]
    for j, name in enumerate(names.users):
        columns[name] = chains.users[:, j]
    for j, name in enumerate(names.edges):
        columns[f"e_{name}"] = chains.edge_event[:, j]
    table = pl.DataFrame(columns)
    # a candidate of -1 has no chain and is no row; elsewhere -1 stands for nothing
    is_index = pl.exclude("query", "user_index")
    table = table.with_columns(pl.when(is_index >= 0).then(is_index))
    answer = None if candidate is None else int(label == "positive")
    table = table.with_columns(
        split=pl.lit(split),
        label=pl.lit(answer, pl.Int32),
        weight=chains.weight,
        closed=chains.is_closed,
        fallback=np.array(_FALLBACK_NAMES)[chains.fallback],
        num_closable=num_closable[chains.query],
    )
    if chains.edge_rating is not None:
        unknown = np.full(len(query), np.nan, np.float32)
        ratings = {"r_u0_i0": unknown if chains.user_rating is None else chains.user_rating}
        for j, name in enumerate(names.edges):
            ratings[f"r_{name}"] = chains.edge_rating[:, j]
        closing = unknown if chains.closing_rating is None else chains.closing_rating
        ratings[f"r_u0_{names.items[-1]}"] = closing
        table = table.with_columns(
            pl.Series(name, values).fill_nan(None) for name, values in ratings.items()
        )
    if graph.has_times:
        event_time = np.append(graph.arrays.event_time, np.int32(0))  # what -1 reads
        times = event_time[chains.edge_event].astype(np.int64) + graph.first_time
        newest = pl.Series(np.where(chains.edge_event >= 0, times, -1).max(axis=1))
        asked_at = None if queries.timestamp is None else queries.timestamp[query]
        table = table.with_columns(
            asked_at=pl.Series(asked_at, dtype=pl.Int64)
            if asked_at is not None
            else pl.lit(None, pl.Int64),
            newest_edge_at=pl.when(newest >= 0).then(newest),
        )
    first = ["split", "query", "label", "user_index", "candidate", *names.items, *names.users]
    return table.select(*first, pl.exclude(first))


def _share(part: float, whole: int) -> float | None:
    return float(part) / whole if whole else None

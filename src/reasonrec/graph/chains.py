"""The stage ``reasonrec chains``: a prepared data set in, chains and their leak audit out.

The folder holds ``chains.parquet`` (``split``, ``query``, ``label``, ``user_index``, ``candidate``,
``i0``, ``u1``, ``i1``, ``weight``, ``closed``, ``fallback``), ``statistics.json``, and last
``manifest.json``. ``query`` is a row of that split's queries (for ``train``, of ``train_queries``);
``label`` is 1 for what the user took, 0 for a drawn negative, null where chains know no candidate.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset, InteractionLog, Queries
from reasonrec.graph.audit import area_under_curve, draw_negatives
from reasonrec.graph.audit import touched_keys as keys_of
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.config import NEGATIVES, ChainConfig
from reasonrec.graph.sampling import CLOSED, OPEN, ChainTable, sample_chains
from reasonrec.manifest import is_finished, make_folder, stopwatch, write_manifest

STAGE = "chains"
OUTPUTS = ["chains.parquet", "statistics.json"]
_FALLBACK_NAMES = np.array(["none", "open", "history-only"])
_ROWS_AT_A_TIME = 100_000


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


def write_chains(dataset: Dataset, folder: Path, config: ChainConfig, *, seed: int) -> ChainStage:
    """Draw the chains of all splits, audit them, and write the stage folder.

    Raises:
        CheckpointError: The folder holds another finished run.
        ReasonrecError: It cannot be written to.
    """
    inputs = {"dataset": dataset.fingerprint}
    asked = {"stage": STAGE, "inputs": inputs, "config": config.model_dump(), "seed": seed}
    if is_finished(folder, **asked):
        text = (Path(folder) / "statistics.json").read_text(encoding="utf-8")
        return ChainStage(Path(folder), json.loads(text), was_finished=True)
    folder = make_folder(folder)
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
        pl.concat(tables).write_parquet(folder / "chains.parquet")
    statistics = {
        "dataset": dataset.name,
        "reading": config.reading,
        "num_chains": sum(table.height for table in tables),
        "splits": splits,
    }
    text = json.dumps(statistics, indent=2) + "\n"
    (folder / "statistics.json").write_text(text, encoding="utf-8")
    write_manifest(folder, outputs=OUTPUTS, seconds=spent[0], **asked)
    return ChainStage(folder, statistics, was_finished=False)


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
        num_closable = np.zeros(len(queries))
        counts = np.zeros(3, np.int64)
        num_rows = 0
        for rows, chains in _sampled(graph, queries, candidate, config, seed=seed):
            num_closable[rows] = chains.num_closable
            if is_stored:
                table = _table(queries, rows, chains, candidate, label=name, split=split)
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
) -> Iterator[tuple[np.ndarray, ChainTable]]:
    """Yield query rows with their chains, some at a time, so that histories stay small."""
    rows = np.arange(len(queries)) if candidate is None else np.flatnonzero(candidate >= 0)
    for begin in range(0, max(len(rows), 1), _ROWS_AT_A_TIME):
        part = rows[begin : begin + _ROWS_AT_A_TIME]
        yield (
            part,
            sample_chains(
                graph,
                queries.take(part).histories(),
                None if candidate is None else candidate[part],
                seed=seed,
                reading=config.reading,
                num_chains=config.num_chains,
                max_history=config.max_history,
                max_neighbours=config.max_neighbours,
                overlap_weight=config.overlap_weight,
                degree_weight=config.degree_weight,
            ),
        )


def _table(
    queries: Queries,
    rows: np.ndarray,
    chains: ChainTable,
    candidate: np.ndarray | None,
    *,
    label: str,
    split: str,
) -> pl.DataFrame:
    query = rows[chains.query]
    nothing = pl.lit(None, pl.Int32)
    return pl.DataFrame(
        {
            "query": query.astype(np.int64),
            "user_index": queries.user_index[query],
            "i0": chains.first_item,
            "u1": chains.neighbour,
            "i1": chains.second_item,
            "weight": chains.weight,
            "closed": chains.is_closed,
            "fallback": _FALLBACK_NAMES[chains.fallback],
        }
    ).select(
        pl.lit(split).alias("split"),
        "query",
        (nothing if candidate is None else pl.lit(int(label == "positive"), pl.Int32)).alias(
            "label"
        ),
        "user_index",
        (nothing if candidate is None else pl.Series(candidate[query])).alias("candidate"),
        *(pl.col(name) for name in ("i0", "u1", "i1", "weight", "closed", "fallback")),
    )


def _share(part: float, whole: int) -> float | None:
    return float(part) / whole if whole else None

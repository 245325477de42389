"""Lays the methods of any number of evaluated runs side by side, query by query."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError, DataError, ReasonrecError
from reasonrec.evaluation.audits.records import VERDICTS
from reasonrec.evaluation.comparable import (
    check_as_written,
    check_same_candidates,
    check_same_data,
    methods_of_several_settings,
)
from reasonrec.evaluation.protocol import (
    MetricRow,
    full_word_in,
    metric_intervals,
    read_evaluation,
)
from reasonrec.evaluation.runs import Run, is_stage
from reasonrec.evaluation.significance import resampling_users
from reasonrec.manifest import read_manifest
from reasonrec.metrics import metric_values


@dataclass(frozen=True)
class Joined:
    """The methods of all runs on the same data, split and queries."""

    runs: tuple[Run, ...]
    rows: tuple[MetricRow, ...]
    """Of all runs. A method and seed that two runs share carries its run's name, and so does one
    that learned from other rows in another run, or was set otherwise there."""
    per_query: pl.DataFrame
    """As in ``Evaluation.per_query``, of all runs."""
    dataset: Dataset | None
    """What the runs were measured on, where it can still be found."""
    trajectory: pl.DataFrame | None
    """``method``, ``seed``, ``query``, ``user_index`` (-1: unknown), ``step``, ``rank``; None where
    no run traced its thoughts."""
    audits: tuple[dict[str, Any], ...]
    """Rows of the runs' ``audits.json``, each with its ``run``; what failed first, then what
    warns."""
    audited_slices: tuple[dict[str, Any], ...]
    """Rows of their ``slices``, each with its ``run``: cold and rare items, items first seen late,
    users whom training knows."""


@dataclass(frozen=True)
class Values:
    """What every method earned on each query, under one protocol and metric."""

    methods: tuple[str, ...]
    table: np.ndarray
    """(Q, M), float64, mean over the seeds of a method."""
    users: np.ndarray
    """(Q,), int64. Whose query each row is; unknown users are all different."""
    queries: pl.DataFrame
    """(Q rows) ``query``, ``user_index``, ``target``, ``history_length``."""


def join_runs(runs: Sequence[Run]) -> Joined:
    """Return the rows and per-query values of all runs; clashing methods get their run's name.

    Raises:
        DataError: The runs are of several data sets or splits, of other prepared data, or ranked
            among other candidates.
        CheckpointError: A run cannot be read, or was edited since it was written.
    """
    for run in runs:
        check_as_written(run)
    evaluations = [read_evaluation(run.evaluation) for run in runs]
    sets = sorted({(row.dataset, row.split) for one in evaluations for row in one.rows})
    if len(sets) > 1:
        raise DataError(f"the runs to compare must share one data set and split; got {sets}")
    check_same_data(runs)
    check_same_candidates(runs, [one.rows for one in evaluations])
    owners: dict[tuple[str, int], set[int]] = {}
    lessons: dict[str, set[str]] = {}
    for i, one in enumerate(evaluations):
        for row in one.rows:
            owners.setdefault((row.method, row.seed), set()).add(i)
            lessons.setdefault(row.method, set()).add(row.trained_on)
    clashing = {method for (method, _), found in owners.items() if len(found) > 1}
    clashing |= {method for method, found in lessons.items() if len(found) > 1}
    clashing |= methods_of_several_settings(runs, [one.rows for one in evaluations])
    rows: list[MetricRow] = []
    tables: list[pl.DataFrame] = []
    trajectories: list[pl.DataFrame] = []
    for run, one in zip(runs, evaluations):
        renamed = {method: f"{method} ({run.name})" for method in clashing}
        rows += [replace(row, method=renamed.get(row.method, row.method)) for row in one.rows]
        tables.append(one.per_query.with_columns(pl.col("method").replace(renamed)))
        users = one.per_query.select("query", "user_index").unique("query")
        trajectories += [
            found.join(users, on="query", how="left").with_columns(
                pl.col("method").replace(renamed), pl.col("user_index").fill_null(-1)
            )
            for found in _trajectories(run)
        ]
    return Joined(
        runs=tuple(runs),
        rows=tuple(rows),
        per_query=pl.concat(tables),
        dataset=_find_dataset(runs),
        trajectory=pl.concat(trajectories) if trajectories else None,
        audits=tuple(sorted((row for run in runs for row in _audits(run)), key=_place)),
        audited_slices=tuple(row for run in runs for row in _audits(run, "slices")),
    )


def on_common_queries(joined: Joined) -> Joined:
    """Return the runs on the queries that all of them answered, measured there anew.

    Some runs answer a sample of what others answer in full. Costs stay as they were measured.

    Raises:
        DataError: There is no query that all methods of a protocol answered.
    """
    table = joined.per_query
    asker = pl.struct("method", "seed").n_unique().alias("num_askers")
    everybody = table.group_by("protocol").agg(asker)
    of_each = table.group_by("protocol", "query").agg(asker)
    common = of_each.join(everybody, on=["protocol", "num_askers"], how="semi")
    if lacking := sorted({*everybody["protocol"]} - {*common["protocol"]}):
        raise DataError(
            f"methods must share queries to be compared; under {', '.join(lacking)} there is none "
            "that all of them answered. Evaluate them with the same --part and --num-queries"
        )
    kept = table.join(common, on=["protocol", "query"], how="semi", maintain_order="left")
    intervals = {
        key: metric_intervals(asked["rank"].to_numpy(), asked["user_index"].to_numpy())
        for key, asked in kept.group_by("protocol", "method", "seed")
    }
    num_queries = dict(common.group_by("protocol").agg(pl.len()).iter_rows())
    rows = []
    for row in joined.rows:
        if row.n != num_queries.get(row.protocol, row.n):  # costs stand under none of them
            found = intervals[row.protocol, row.method, row.seed][row.metric]
            row = replace(
                row, value=found.mean, ci_low=found.low, ci_high=found.high,
                n=num_queries[row.protocol],
            )  # fmt: skip
        rows.append(row)
    return replace(
        joined, rows=tuple(rows), per_query=kept, trajectory=_traced_on(common, joined.trajectory)
    )


def values_of(per_query: pl.DataFrame, protocol: str, metric: str) -> Values | None:
    """Return each method's per-query values, averaged over seeds; None if nothing was measured.

    Raises:
        DataError: Two methods, or two seeds of one, answered different queries.
    """
    table = per_query.filter(pl.col("protocol") == protocol)
    table = table.with_columns(pl.Series("value", metric_values(metric, table["rank"].to_numpy())))
    columns: dict[str, np.ndarray] = {}
    asked: pl.DataFrame | None = None
    keys = ["query", "user_index", "target", "history_length"]
    for (method,), group in table.group_by(["method"], maintain_order=True):
        for _, one in group.group_by(["seed"], maintain_order=True):
            found = one.select(keys).sort("query")
            if asked is None:
                asked = found
            elif not found.drop("history_length").equals(asked.drop("history_length")):
                raise DataError(
                    f"methods must be compared on the same queries; {method} and "
                    f"{next(iter(columns), method)} were measured on different ones under "
                    f"{protocol}. Evaluate both with the same data, --part and --num-queries, or "
                    "compare with --common-queries"
                )
        mean = group.group_by("query").agg(pl.col("value").mean()).sort("query")
        columns[str(method)] = mean["value"].to_numpy()
    if asked is None:
        return None
    return Values(
        methods=tuple(columns),
        table=np.stack(list(columns.values()), axis=1),
        users=resampling_users(asked["user_index"].to_numpy()),
        queries=asked,
    )


def per_user_table(
    per_query: pl.DataFrame, columns: Sequence[tuple[str, str]], user_ids: Sequence[str] | None
) -> pl.DataFrame:
    """Return a row for each protocol and user, and a column for each method and metric.

    Columns are ``protocol``, ``user_index``, ``user_id`` (where the data set is at hand, null for
    an unknown user), ``num_queries``, then ``METHOD METRIC``: a mean over the user's queries and
    the method's seeds, null where the protocol was not asked for that metric.
    """
    parts = []
    for protocol in dict.fromkeys(protocol for protocol, _ in columns):
        own = per_query.filter(pl.col("protocol") == protocol)
        if own.is_empty():
            continue
        metrics = [metric for word, metric in columns if word == protocol]
        rank = own["rank"].to_numpy()
        own = own.with_columns([pl.Series(name, metric_values(name, rank)) for name in metrics])
        part = own.group_by("protocol", "user_index").agg(num_queries=pl.col("query").n_unique())
        for (method,), group in own.group_by(["method"], maintain_order=True):
            means = group.group_by("user_index").agg(
                [pl.col(name).mean().alias(f"{method} {name}") for name in metrics]
            )
            part = part.join(means, on="user_index", how="left")
        parts.append(part)
    table = pl.concat(parts, how="diagonal").sort("protocol", "user_index")
    if user_ids is None:
        return table
    names = [user_ids[index] if index >= 0 else None for index in table["user_index"].to_list()]
    return table.insert_column(2, pl.Series("user_id", names, dtype=pl.String))


def _find_dataset(runs: Sequence[Run]) -> Dataset | None:
    """Return the runs' data set from the first place where it lies unchanged."""
    for run in runs:
        wanted = (run.manifest or {}).get("inputs", {}).get("data")
        for folder in run.data_folders():
            try:
                dataset = Dataset.load(folder)
            except ReasonrecError:  # moved or edited since: the numbers stand without it
                continue
            if dataset.fingerprint == wanted:
                return dataset
    return None


def _trajectories(run: Run) -> list[pl.DataFrame]:
    """Return what a run traced; a file of one method is named by the folder that it lies in.

    One that does not say its seed has that of the manifest beside it, or else of the run.
    """
    found = []
    for path in run.trajectories():
        try:
            table = pl.read_parquet(path, glob=False)
            if "method" not in table.columns:
                table = table.with_columns(method=pl.lit(path.parent.name))
            if "seed" not in table.columns:
                beside = is_stage(path.parent)
                manifest = read_manifest(path.parent) if beside else run.manifest or {}
                table = table.with_columns(seed=pl.lit(manifest.get("seed") or 0))
            found.append(
                table.select(
                    pl.col("method").cast(pl.String),
                    pl.col("seed", "query", "step").cast(pl.Int64),
                    pl.col("rank").cast(pl.Float64),
                )
            )
        except (OSError, pl.exceptions.PolarsError) as error:
            raise CheckpointError(
                f"{path} must be a table of query, step and rank; {error}"
            ) from None
    return found


def _traced_on(common: pl.DataFrame, trajectory: pl.DataFrame | None) -> pl.DataFrame | None:
    """Return what was traced of the queries that were ranked over the catalogue by all methods."""
    word = full_word_in(common["protocol"].unique().to_list())
    ranked = common.filter(pl.col("protocol") == word)
    if trajectory is None or ranked.is_empty():  # nothing was ranked so: nothing to be the same as
        return trajectory
    kept = trajectory.join(ranked, on="query", how="semi", maintain_order="left")
    return None if kept.is_empty() else kept


def _place(row: dict[str, Any]) -> int:
    """Return where an audit of its verdict is shown; one without any comes last."""
    return [*VERDICTS, row.get("verdict")].index(row.get("verdict"))


def _audits(run: Run, part: str = "rows") -> list[dict[str, Any]]:
    """Return the audits that a run holds, or their slices, each with the run's name."""
    found = []
    for path in run.audits():
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, dict):  # a list of audits alone
                rows = {"rows": rows, "slices": []}
            found += [{"run": run.name, **row} for row in rows[part]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} must be a list of audits; {error}") from None
    return found

"""Compares methods measured in any number of runs, on the same queries, with paired tests."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from reasonrec.errors import CheckpointError, DataError
from reasonrec.evaluation.protocol import (
    Evaluation,
    MetricRow,
    read_evaluation,
    read_rows,
    write_rows,
)
from reasonrec.evaluation.significance import holm, paired_test, resampling_users
from reasonrec.evaluation.table import (
    COLUMNS,
    metric_title,
    protocol_title,
    results_markdown,
    short,
)
from reasonrec.manifest import fingerprint, is_finished, make_folder, stopwatch, write_manifest
from reasonrec.metrics import metric_values
from reasonrec.rng import stream

if TYPE_CHECKING:
    from rich.table import Table

FILES = ("metrics.json", "comparison.json", "comparison.md")


@dataclass(frozen=True)
class Comparison:
    """One method against the reference, in one metric, on the same queries."""

    dataset: str
    split: str
    protocol: str
    metric: str
    method: str
    reference: str
    difference: float
    """Mean over queries of (method - reference), each averaged over its seeds first."""
    ci_low: float
    """95 % bootstrap interval of the difference, users resampled."""
    ci_high: float
    p_permutation: float
    p_bootstrap: float
    p_holm: float
    """The permutation test's p, corrected over all rows of the comparison."""
    n: int
    num_seeds: int
    num_seeds_reference: int


def compare_runs(
    runs: Sequence[Path],
    out: Path,
    *,
    reference: str,
    columns: Sequence[tuple[str, str]] = COLUMNS,
    num_resamples: int = 10_000,
) -> tuple[tuple[MetricRow, ...], tuple[Comparison, ...]]:
    """Return all rows of the runs, and every method tested against ``reference``; write both.

    Args:
        runs: Folders that ``reasonrec evaluate`` or ``demo`` wrote. Several seeds of one method
            are averaged per query. The same method and seed from two runs keep their run's name.
        reference: The method that the others are compared with.
        columns: (protocol, metric) pairs to test; those not measured are left out.

    Raises:
        DataError: The runs are of other data, splits or queries, or the reference is not in them.
        CheckpointError: A run cannot be read, or ``out`` holds another comparison.
    """
    out = make_folder(out)
    folders = [_evaluation_folder(Path(run)) for run in runs]
    inputs = {
        f"{i}-{Path(run).name}": fingerprint(folder / "per_query.parquet")
        for i, (run, folder) in enumerate(zip(runs, folders))
    }
    config = {
        "reference": reference,
        "columns": [list(column) for column in columns],
        "num_resamples": num_resamples,
    }
    if is_finished(out, stage="compare", inputs=inputs, config=config, seed=None):
        found = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
        return tuple(read_rows(out / "metrics.json")), tuple(Comparison(**row) for row in found)
    with stopwatch() as spent:
        rows, per_query = _gather(runs, [read_evaluation(folder) for folder in folders])
        comparisons = _compare(rows, per_query, reference, columns, num_resamples)
        write_rows(out / "metrics.json", rows)
        found = json.dumps([asdict(one) for one in comparisons], indent=1)
        (out / "comparison.json").write_text(found + "\n", encoding="utf-8")
        text = results_markdown(rows, columns=columns) + "\n" + comparison_markdown(comparisons)
        (out / "comparison.md").write_text(text, encoding="utf-8")
    write_manifest(
        out,
        stage="compare",
        inputs=inputs,
        config=config,
        outputs=list(FILES),
        seconds=spent[0],
    )
    return rows, comparisons


def comparison_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the tests as a Markdown table."""
    if not comparisons:
        return "There is nothing to compare: only one method was measured.\n"
    text = [
        f"Differences from `{comparisons[0].reference}` on the same queries; p: sign-flip "
        "permutation test over users, in brackets after Holm's correction over all rows.\n",
        "| method | metric | difference | 95 % interval | p (Holm) | n |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    text += [
        f"| {one.method} | {one.metric} {one.protocol} | {one.difference:+.4f} "
        f"| {one.ci_low:+.4f} to {one.ci_high:+.4f} "
        f"| {one.p_permutation:.4f} ({one.p_holm:.4f}) | {one.n} |"
        for one in comparisons
    ]
    return "\n".join(text) + "\n"


def _evaluation_folder(run: Path) -> Path:
    """Return where a run keeps its per-query values: beside its metrics, or one level below."""
    for folder in (run, run / "evaluation"):
        if (folder / "per_query.parquet").is_file():
            return folder
    raise CheckpointError(
        f"a run to compare must hold per_query.parquet; found none in {run} or {run / 'evaluation'}"
        ". `reasonrec evaluate` writes it"
    )


def _gather(
    runs: Sequence[Path], evaluations: Sequence[Evaluation]
) -> tuple[tuple[MetricRow, ...], pl.DataFrame]:
    """Return the rows and per-query values of all runs; clashing methods get their run's name."""
    sets = sorted({(row.dataset, row.split) for one in evaluations for row in one.rows})
    if len(sets) > 1:
        raise DataError(f"the runs to compare must share one data set and split; got {sets}")
    owners: dict[tuple[str, int], set[int]] = {}
    for i, one in enumerate(evaluations):
        for row in one.rows:
            owners.setdefault((row.method, row.seed), set()).add(i)
    clashing = {method for (method, _), found in owners.items() if len(found) > 1}
    rows: list[MetricRow] = []
    tables: list[pl.DataFrame] = []
    for run, one in zip(runs, evaluations):
        renamed = {method: f"{method} ({Path(run).resolve().name})" for method in clashing}
        rows += [_with_method(row, renamed.get(row.method, row.method)) for row in one.rows]
        tables.append(one.per_query.with_columns(pl.col("method").replace(renamed)))
    return tuple(rows), pl.concat(tables)


def _with_method(row: MetricRow, method: str) -> MetricRow:
    return MetricRow(**{**asdict(row), "method": method})


def _compare(
    rows: Sequence[MetricRow],
    per_query: pl.DataFrame,
    reference: str,
    columns: Sequence[tuple[str, str]],
    num_resamples: int,
) -> tuple[Comparison, ...]:
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row.method, set()).add(row.seed)
    if reference not in seeds:
        raise DataError(f"the reference must be one of {', '.join(seeds)}; got {reference!r}")
    found: list[Comparison] = []
    for protocol, metric in columns:
        values, users = _values_by_method(per_query, protocol, metric)
        if reference not in values:
            continue
        for method, own in values.items():
            if method == reference:
                continue
            test = paired_test(
                own,
                values[reference],
                rng=stream(0, f"compare-{protocol}-{metric}"),
                users=users,
                num_resamples=num_resamples,
            )
            found.append(
                Comparison(
                    dataset=rows[0].dataset,
                    split=rows[0].split,
                    protocol=protocol,
                    metric=metric,
                    method=method,
                    reference=reference,
                    difference=test.difference,
                    ci_low=test.low,
                    ci_high=test.high,
                    p_permutation=test.p_permutation,
                    p_bootstrap=test.p_bootstrap,
                    p_holm=1.0,
                    n=test.num_queries,
                    num_seeds=len(seeds[method]),
                    num_seeds_reference=len(seeds[reference]),
                )
            )
    adjusted = holm(np.array([one.p_permutation for one in found]))
    return tuple(
        Comparison(**{**asdict(one), "p_holm": float(p)}) for one, p in zip(found, adjusted)
    )


def _values_by_method(
    per_query: pl.DataFrame, protocol: str, metric: str
) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """Return each method's per-query values, averaged over seeds, and whose the queries are.

    Raises:
        DataError: Two methods, or two seeds of one, answered different queries.
    """
    table = per_query.filter(pl.col("protocol") == protocol)
    table = table.with_columns(pl.Series("value", metric_values(metric, table["rank"].to_numpy())))
    values: dict[str, np.ndarray] = {}
    asked: pl.DataFrame | None = None
    first = ""
    for (method,), group in table.group_by(["method"], maintain_order=True):
        for _, one in group.group_by(["seed"], maintain_order=True):
            keys = one.sort("query").select("query", "user_index", "target")
            if asked is None:
                asked, first = keys, str(method)
            elif not keys.equals(asked):
                raise DataError(
                    f"methods must be compared on the same queries; {method} and {first} were "
                    f"measured on different ones under {protocol}. Evaluate both with the same "
                    "data, --part and --num-queries"
                )
        mean = group.group_by("query").agg(pl.col("value").mean()).sort("query")
        values[str(method)] = mean["value"].to_numpy()
    if asked is None:
        return values, np.empty(0, np.int64)
    return values, resampling_users(asked["user_index"].to_numpy())


def comparison_table(comparisons: Sequence[Comparison]) -> "Table":
    """Return the tests as a rich table; a difference that Holm keeps below 0.05 is bold."""
    from rich.table import Table

    title = f"difference from {comparisons[0].reference}, same queries"
    table = Table(
        title=title,
        box=None,
        padding=(0, 1, 0, 0),
        header_style="bold dim",
        title_justify="left",
    )
    for heading in ("method", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("differs by", "95 % interval", "p", "Holm's p"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in comparisons:
        table.add_row(
            one.method,
            f"{metric_title(one.metric)} {protocol_title(one.protocol)}",
            _signed(one.difference),
            f"{_signed(one.ci_low)} to {_signed(one.ci_high)}",
            f"{one.p_permutation:.4f}",
            f"{one.p_holm:.4f}",
            style="bold" if one.p_holm < 0.05 else "",
        )
    return table


def _signed(value: float) -> str:
    """Return +.0123 for 0.0123."""
    return ("-" if value < 0 else "+") + short(abs(value))

"""Compares methods measured in any number of runs: tables, tests, one page and a passport."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from reasonrec.evaluation.comparison import Compared, Comparison, compare
from reasonrec.evaluation.joined import Joined, join_runs, on_common_queries, per_user_table
from reasonrec.evaluation.passport import pass_comparison, write_passport
from reasonrec.evaluation.protocol import MetricRow, read_rows, write_rows
from reasonrec.evaluation.report.comparison_page import write_comparison_report
from reasonrec.evaluation.report.views import best_method, best_simple
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.table import (
    in_table,
    metric_title,
    protocol_title,
    results_markdown,
    short,
    usual_columns,
)
from reasonrec.manifest import (
    fingerprint,
    is_finished,
    make_folder,
    stopwatch,
    write_manifest,
    writes_alone,
)

if TYPE_CHECKING:
    from rich.table import Table

FILES = (
    "metrics.json", "comparison.json", "comparison.md", "per_query.parquet", "per_user.parquet",
    "passport.json", "report.html",
)  # fmt: skip


@writes_alone
def compare_runs(
    runs: Sequence[Path],
    out: Path,
    *,
    reference: str | None = None,
    columns: Sequence[tuple[str, str]] | None = None,
    num_resamples: int = 10_000,
    common_queries: bool = False,
) -> tuple[tuple[MetricRow, ...], tuple[Comparison, ...]]:
    """Return all rows of the runs, and every method tested against ``reference``.

    Writes ``FILES`` to ``out``: the rows, the tests (as JSON and as Markdown tables), the values of
    every query and of every user, the passport, and one page that shows all of it.

    Args:
        runs: Folders that ``reasonrec evaluate`` or ``demo`` wrote. Several seeds of one method
            are averaged per query. The same method and seed from two runs keep their run's name.
        reference: The method that the others are compared with; if None, the strongest baseline
            that is fitted in a moment, or the strongest method where there is none.
        columns: (protocol, metric) pairs to test; those not measured are left out.
        common_queries: Measure anew on the queries that all runs answered, where some answered a
            sample; else runs of other queries are refused.

    Raises:
        DataError: The runs are of other data, splits or queries, or the reference is not in them.
        CheckpointError: A run cannot be read, or ``out`` holds another comparison.
    """
    out = make_folder(out)
    found = find_runs(runs)
    inputs = {
        f"{i}-{run.name}/{os.path.relpath(path, run.folder)}": fingerprint(path)
        for i, run in enumerate(found)
        for path in run.files()
    }
    joined = join_runs(found)
    if common_queries:
        joined = on_common_queries(joined)
    columns = columns or usual_columns(joined.rows)
    reference = reference or _strongest(joined)
    config = {
        "reference": reference,
        "columns": [list(column) for column in columns],
        "num_resamples": num_resamples,
        **({"common_queries": True} if common_queries else {}),
    }
    if is_finished(out, stage="compare", inputs=inputs, config=config, seed=None):
        stored = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
        return tuple(read_rows(out / "metrics.json")), tuple(Comparison(**row) for row in stored)
    with stopwatch() as spent:
        compared = compare(joined, reference, columns, num_resamples)
        _write_tables(out, compared, columns)
        passport = pass_comparison(found, config, [asdict(one) for one in compared.comparisons])
        write_passport(passport, out)
        write_comparison_report(compared, passport, out / "report.html")
    write_manifest(
        out,
        stage="compare",
        inputs=inputs,
        config=config,
        outputs=list(FILES),
        seconds=spent[0],
    )
    return joined.rows, compared.comparisons


def _strongest(joined: Joined) -> str:
    rows = joined.rows
    return best_simple(rows) or best_method(rows) or rows[0].method


def _write_tables(out: Path, compared: Compared, columns: Sequence[tuple[str, str]]) -> None:
    joined, dataset = compared.joined, compared.joined.dataset
    write_rows(out / "metrics.json", joined.rows)
    found = json.dumps([asdict(one) for one in compared.comparisons], indent=1)
    (out / "comparison.json").write_text(found + "\n", encoding="utf-8")
    text = [
        results_markdown(joined.rows, columns=columns),
        comparison_markdown(compared.comparisons),
        slices_markdown(compared),
    ]
    (out / "comparison.md").write_text("\n".join(text), encoding="utf-8")
    joined.per_query.write_parquet(out / "per_query.parquet")
    users = per_user_table(joined.per_query, columns, None if dataset is None else dataset.user_ids)
    users.write_parquet(out / "per_user.parquet")


def comparison_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the tests as a Markdown table."""
    if not comparisons:
        return "There is nothing to compare: only one method was measured.\n"
    text = [
        f"Differences from `{comparisons[0].reference}` on the same queries; p: sign-flip "
        "permutation test over users, in brackets after Holm's correction over all rows; *could "
        "have seen*: the smallest difference that the test, uncorrected, would have found in 80 of "
        "100 tries.\n",
        "| method | metric | difference | 95 % interval | p (Holm) | could have seen | n |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    text += [
        f"| {in_table(one.method)} | {one.metric} {one.protocol} | {one.difference:+.4f} "
        f"| {one.ci_low:+.4f} to {one.ci_high:+.4f} "
        f"| {one.p_permutation:.4f} ({one.p_holm:.4f}) | {one.could_have_seen:.4f} | {one.n} |"
        for one in comparisons
    ]
    return "\n".join(text) + "\n"


def slices_markdown(compared: Compared) -> str:
    """Return a Markdown table for each way in which the queries were cut."""
    if compared.sliced is None:
        return ""
    title = metric_title(compared.sliced.metric)
    text = []
    for slicing in compared.slicings:
        labels = [f"{one.label} (n = {one.num_queries:,})" for one in slicing.slices]
        text += [
            f"\n{slicing.title}, {title} {compared.sliced.protocol}. {slicing.note}\n",
            f"| method | {' | '.join(labels)} |",
            "| --- |" + " --: |" * len(labels),
        ]
        for i, method in enumerate(compared.sliced.values.methods):
            cells = [
                f"{short(mean.mean)} ({short(mean.low or 0.0, 3)}-{short(mean.high or 0.0, 3)})"
                for mean in (one.means[i] for one in slicing.slices)
            ]
            text.append(f"| {in_table(method)} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n" if text else ""


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
        caption="sees: what the test, uncorrected, would have found in 80 of 100 tries",
        caption_justify="left",
    )
    for heading in ("method", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in ("differs", "95 % interval", "sees", "p", "Holm"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in comparisons:
        table.add_row(
            one.method,
            f"{metric_title(one.metric)} {protocol_title(one.protocol)}",
            _signed(one.difference),
            f"{_signed(one.ci_low)} to {_signed(one.ci_high)}",
            short(one.could_have_seen),
            f"{one.p_permutation:.4f}",
            f"{one.p_holm:.4f}",
            style="bold" if one.p_holm < 0.05 else "",
        )
    return table


def _signed(value: float) -> str:
    """Return +.0123 for 0.0123."""
    return ("-" if value < 0 else "+") + short(abs(value))

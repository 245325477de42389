"""``reasonrec compare``: evaluated methods side by side, with paired tests."""

from pathlib import Path

from reasonrec.errors import ConfigError


def compare(
    *runs: Path,
    out: Path,
    reference: str | None = None,
    common_queries: bool = False,
    json: bool = False,
) -> None:
    """Put evaluated methods side by side and test each against a reference, query by query.

    Writes report.html (one page, to open or to send), metrics.json (all rows), comparison.json and
    comparison.md, per_query.parquet and per_user.parquet, and passport.json, which `reasonrec
    reproduce` takes. Several seeds of a method are averaged per query before the test.

    Examples:
        reasonrec compare runs/floor runs/eval --reference no-think --out runs/compared
        reasonrec compare runs/shop-0 runs/shop-1 runs/shop-2 --out runs/compared
        reasonrec compare runs/demo --reference follow-counter --out runs/compared --json

    Args:
        runs: Folders that `reasonrec evaluate` or `reasonrec demo` wrote.
        out: Folder to write. A finished one is left as it is.
        reference: Method that the others are compared with. The strongest baseline that is
            fitted in a moment, if none is named, and the strongest method where there is none.
        common_queries: Compare on the queries that all runs answered, where some answered a
            sample of them; their metrics are measured anew there.
        json: Print the comparisons as JSON instead of tables.
    """
    if not runs:
        raise ConfigError("at least one run must be named: reasonrec compare RUN...")
    from rich.console import Console

    from reasonrec.evaluation.compare_runs import compare_runs, comparison_table
    from reasonrec.evaluation.table import results_table

    rows, comparisons = compare_runs(runs, out, reference=reference, common_queries=common_queries)
    if json:
        print((out / "comparison.json").read_text(encoding="utf-8"), end="")
        return
    console = Console()
    console.print(results_table(rows, title=f"{rows[0].dataset}, {rows[0].split}"))
    if comparisons:
        console.print(comparison_table(comparisons))
    console.print(f"written: {out}. Open {out / 'report.html'}", highlight=False)

"""The page of a comparison: hands what the views say to the template."""

from pathlib import Path

from reasonrec.evaluation.comparison import Compared
from reasonrec.evaluation.passport import Passport
from reasonrec.evaluation.report import comparison_views as views
from reasonrec.evaluation.report.page import (
    best_values,
    colours_of,
    cost_chart,
    render,
    write_page,
)
from reasonrec.evaluation.report.views import cost_points, flattened
from reasonrec.evaluation.table import metric_title, protocol_title, uneven_seeds, usual_columns
from reasonrec.evaluation.trajectory import TRACED


def write_comparison_report(compared: Compared, passport: Passport, out: Path) -> Path:
    """Return ``out``, written as one HTML file that needs no network.

    Raises:
        ReasonrecError: The file cannot be written.
    """
    return write_page(render_comparison(compared, passport), out)


def render_comparison(compared: Compared, passport: Passport) -> str:
    """Return the page."""
    joined, shown = compared.joined, compared.sliced
    columns = [(column.protocol, column.metric) for column in compared.columns] or list(
        usual_columns(joined.rows)
    )
    column = 0 if shown is None else columns.index((shown.protocol, shown.metric))
    lines = views.result_lines(compared, columns)
    methods = [one.line for one in lines]
    groups = views.against(compared)
    return render(
        "comparison.html",
        ["comparison.js", "report.js"],
        joined=joined,
        first=joined.rows[0],
        compared=compared,
        columns=columns,
        column=column,
        metric=metric_title(columns[column][1]),
        protocol=protocol_title(columns[column][0]),
        lines=lines,
        uneven=uneven_seeds(joined.rows),
        best=best_values(methods, len(columns)),
        headline=views.headline(compared),
        groups=groups,
        significant=views.SIGNIFICANT,
        forest=views.means_forest(lines, column),
        points=cost_chart(cost_points(methods, column)),
        could_be_traced=any(
            line.tokens and line.method.partition(" (")[0] in TRACED for line in methods
        ),
        trajectory=None if joined.trajectory is None else views.trajectory(joined.trajectory),
        parts=views.audited_parts(joined.audited_slices),
        passport=passport,
        settings=[(run.name, flattened(run.config)) for run in passport.runs],
        colour=colours_of([line.method for line in methods]),
    )

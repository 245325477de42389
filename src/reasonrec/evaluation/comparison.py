"""Tests methods against one another on the same queries, and cuts the queries into slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reasonrec.errors import DataError
from reasonrec.evaluation.joined import Joined, Values, values_of
from reasonrec.evaluation.protocol import MetricRow, full_word_in
from reasonrec.evaluation.report.views import CHOSEN
from reasonrec.evaluation.significance import (
    PairwiseTests,
    could_have_seen,
    holm,
    pairwise_tests,
)
from reasonrec.evaluation.slices import Slicing, slicings
from reasonrec.evaluation.table import usual_columns
from reasonrec.rng import stream


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

    @property
    def could_have_seen(self) -> float:
        """The smallest difference that the test, uncorrected, would have found in 80 of 100
        tries."""
        return could_have_seen(self.ci_low, self.ci_high)


@dataclass(frozen=True)
class Column:
    """One (protocol, metric) in which all methods were measured on the same queries."""

    protocol: str
    metric: str
    values: Values
    tests: PairwiseTests


@dataclass(frozen=True)
class Compared:
    """Several runs side by side, with what can be said of their differences."""

    joined: Joined
    columns: tuple[Column, ...]
    reference: str
    against: Mapping[str, tuple[Comparison, ...]]
    """For every method as reference: all others tested against it, Holm's correction within."""
    slicings: tuple[Slicing, ...]
    """In ``CHOSEN`` over the whole catalogue, or in what was measured first."""
    sliced: Column | None

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        return self.against[self.reference]


def compare(
    joined: Joined,
    reference: str,
    columns: Sequence[tuple[str, str]] | None = None,
    num_resamples: int = 10_000,
) -> Compared:
    """Return every method tested against every other, and the queries cut into slices.

    Raises:
        DataError: The reference is not among the methods, or they answered different queries.
    """
    columns = columns or usual_columns(joined.rows)
    methods = list(dict.fromkeys(row.method for row in joined.rows))
    if reference not in methods:
        raise DataError(f"the reference must be one of {', '.join(methods)}; got {reference!r}")
    tested = []
    for protocol, metric in columns:
        values = values_of(joined.per_query, protocol, metric)
        if values is not None:
            tests = pairwise_tests(
                values.table,
                rng=stream(0, f"compare-{protocol}-{metric}"),
                users=values.users,
                num_resamples=num_resamples,
            )
            tested.append(Column(protocol, metric, values, tests))
    sliced = {(column.protocol, column.metric): column for column in tested}
    chosen = (full_word_in({protocol for protocol, _ in sliced}), CHOSEN)
    shown = sliced.get(chosen) or (tested[0] if tested else None)
    return Compared(
        joined=joined,
        columns=tuple(tested),
        reference=reference,
        against={method: _against(method, joined.rows, tested) for method in methods},
        slicings=() if shown is None else slicings(shown.values, joined.dataset),
        sliced=shown,
    )


def _against(
    reference: str, rows: Sequence[MetricRow], columns: Sequence[Column]
) -> tuple[Comparison, ...]:
    """Return every other method's tests against one, corrected over all of them."""
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row.method, set()).add(row.seed)
    found: list[Comparison] = []
    for column in columns:
        methods, tests = column.values.methods, column.tests
        if reference not in methods:
            continue
        j = methods.index(reference)
        found += [
            Comparison(
                dataset=rows[0].dataset,
                split=rows[0].split,
                protocol=column.protocol,
                metric=column.metric,
                method=method,
                reference=reference,
                difference=float(tests.differences[i, j]),
                ci_low=float(tests.low[i, j]),
                ci_high=float(tests.high[i, j]),
                p_permutation=float(tests.p_permutation[i, j]),
                p_bootstrap=float(tests.p_bootstrap[i, j]),
                p_holm=1.0,
                n=tests.num_queries,
                num_seeds=len(seeds[method]),
                num_seeds_reference=len(seeds[reference]),
            )
            for i, method in enumerate(methods)
            if i != j
        ]
    adjusted = holm(np.array([one.p_permutation for one in found]))
    return tuple(replace(one, p_holm=float(p)) for one, p in zip(found, adjusted))

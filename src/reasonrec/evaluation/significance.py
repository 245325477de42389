"""How sure a mean is: bootstrap intervals and paired tests over per-query values.

Queries of one user are not independent, so users are resampled and flipped, each with all of
their queries; with one query a user this is the plain test. All means are over queries.
"""

from dataclasses import dataclass

import numpy as np

POWER = 1.96 + 0.84
"""Standard errors that a difference must have to be seen in 80 of 100 tries, by a test at 5 %."""
_CHUNK_CELLS = 4_000_000
"""Random numbers drawn at a time; bounds memory."""


@dataclass(frozen=True)
class Interval:
    """A mean and the percentile interval around it, where one is known."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PairedTest:
    """The difference of two methods on the same queries."""

    difference: float
    """Mean of (method - reference) over queries."""
    low: float
    """Lower end of the bootstrap interval of the difference."""
    high: float
    p_bootstrap: float
    """Two-sided: twice the share of resampled differences on the other side of 0."""
    p_permutation: float
    """Two-sided: share of sign flips that give a difference at least as far from 0."""
    num_queries: int

    @property
    def could_have_seen(self) -> float:
        return could_have_seen(self.low, self.high)


def could_have_seen(low: float, high: float) -> float:
    """Return the smallest difference that a test would have found in 80 of 100 tries, at 5 % and
    uncorrected.

    Args:
        low: Lower end of the 95 % interval of a difference, which is 1.96 standard errors away.
        high: Upper end.
    """
    return POWER * (high - low) / (2 * 1.96)


def bootstrap_intervals(
    values: np.ndarray,
    *,
    rng: np.random.Generator,
    users: np.ndarray | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
) -> list[Interval]:
    """Return the mean of each column with its percentile bootstrap interval.

    Args:
        values: Per-query values of M metrics. (Q, M), float64; Q of 1 or more.
        users: Whose query each row is, (Q,), integer; None takes each as a user of its own.
        num_resamples: Bootstrap samples; the same ones serve all columns.
        confidence: Share of the bootstrap distribution inside the interval.
    """
    means = _resampled_means(values, users, rng, num_resamples)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return [
        Interval(float(mean), float(lo), float(hi))
        for mean, lo, hi in zip(values.mean(axis=0), low, high)
    ]


def paired_test(
    values: np.ndarray,
    reference: np.ndarray,
    *,
    rng: np.random.Generator,
    users: np.ndarray | None = None,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> PairedTest:
    """Return how a method's per-query values differ from the reference's on the same queries.

    The permutation test flips the sign of each user's differences; both p-values count the
    observed sample among the resampled ones, so neither is ever 0.

    Args:
        values: (Q,), float64.
        reference: (Q,), float64, row for row the same queries.

    Raises:
        ValueError: The rows differ in number, or there are none.
    """
    if values.shape != reference.shape or values.ndim != 1:
        raise ValueError(
            "a paired test needs one value per query from both methods; got shapes "
            f"{values.shape} and {reference.shape}. Were they measured on the same queries?"
        )
    differences = values - reference
    means = _resampled_means(differences[:, None], users, rng, num_resamples)[:, 0]
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    one_side = min(np.count_nonzero(means <= 0), np.count_nonzero(means >= 0))
    sums, _ = _sums_by_user(differences[:, None], users)
    flipped = _flipped_sums(sums[:, 0], rng, num_resamples)
    observed = abs(sums.sum())
    # equal up to rounding counts as equal: the sums differ in the order of their terms only
    at_least = np.count_nonzero(np.abs(flipped) >= observed - 1e-12 * max(1.0, observed))
    return PairedTest(
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        p_bootstrap=float(min(1.0, 2.0 * (1 + one_side) / (1 + num_resamples))),
        p_permutation=float((1 + at_least) / (1 + num_resamples)),
        num_queries=len(differences),
    )


@dataclass(frozen=True)
class PairwiseTests:
    """M methods on the same queries, each against each other. Entry [i, j] is i minus j."""

    means: tuple[Interval, ...]
    """The M means over queries, each with its interval."""
    differences: np.ndarray
    """(M, M), float64."""
    low: np.ndarray
    """(M, M). Lower ends of the bootstrap intervals of the differences."""
    high: np.ndarray
    p_bootstrap: np.ndarray
    """(M, M), two-sided, as in ``PairedTest``; 1 on the diagonal."""
    p_permutation: np.ndarray
    num_queries: int


def pairwise_tests(
    values: np.ndarray,
    *,
    rng: np.random.Generator,
    users: np.ndarray | None = None,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
) -> PairwiseTests:
    """Return ``paired_test`` for all pairs of columns, from one set of resamples and signs.

    A resampled difference is a difference of resampled means, and a flipped one of flipped sums,
    so M methods cost one matrix product rather than M (M - 1) / 2 tests.

    Args:
        values: Per-query values of M methods, row for row the same queries. (Q, M), float64.
    """
    means = _resampled_means(values, users, rng, num_resamples)  # (R, M)
    sums, _ = _sums_by_user(values, users)  # (U, M)
    flipped = _flipped(sums, rng, num_resamples)  # (R, M)
    num_methods = values.shape[1]
    ends = np.array([0.5 - confidence / 2.0, 0.5 + confidence / 2.0])
    observed = values.mean(axis=0)
    low, high = np.zeros((2, num_methods, num_methods))
    p_bootstrap, p_permutation = np.ones((2, num_methods, num_methods))
    for i in range(num_methods):
        for j in range(i):
            resampled = means[:, i] - means[:, j]
            low[i, j], high[i, j] = np.quantile(resampled, ends)
            low[j, i], high[j, i] = -high[i, j], -low[i, j]
            one_side = min(np.count_nonzero(resampled <= 0), np.count_nonzero(resampled >= 0))
            p = min(1.0, 2.0 * (1 + one_side) / (1 + num_resamples))
            p_bootstrap[i, j] = p_bootstrap[j, i] = p
            total = abs(float((sums[:, i] - sums[:, j]).sum()))
            # equal up to rounding counts as equal: the two sides add the same terms in other orders
            reach = total - 1e-9 * max(1.0, total)
            at_least = np.count_nonzero(np.abs(flipped[:, i] - flipped[:, j]) >= reach)
            p_permutation[i, j] = p_permutation[j, i] = (1 + at_least) / (1 + num_resamples)
    intervals = np.quantile(means, ends, axis=0)
    return PairwiseTests(
        means=tuple(
            Interval(float(mean), float(lo), float(hi))
            for mean, lo, hi in zip(observed, *intervals)
        ),
        differences=observed[:, None] - observed[None, :],
        low=low,
        high=high,
        p_bootstrap=p_bootstrap,
        p_permutation=p_permutation,
        num_queries=len(values),
    )


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return Holm's adjusted p-values, which hold together for all tests. (M,), float64.

    The i-th smallest of M is multiplied by M - i (i from 0), made non-decreasing, cut at 1.
    """
    p_values = np.asarray(p_values, np.float64)
    order = np.argsort(p_values, kind="stable")
    steps = (len(p_values) - np.arange(len(p_values))) * p_values[order]
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def resampling_users(user_index: np.ndarray) -> np.ndarray:
    """Return whose each query is; every query of an unknown user (-1) is a user of its own."""
    rows = np.arange(len(user_index), dtype=np.int64)
    return np.where(user_index < 0, -1 - rows, user_index)


def _sums_by_user(values: np.ndarray, users: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return each user's sums (U, M) and number of queries (U,)."""
    if len(values) == 0:
        raise ValueError("an interval needs at least one query; got none")
    if users is None:
        return values, np.ones(len(values))
    _, group = np.unique(users, return_inverse=True)
    counts = np.bincount(group).astype(np.float64)
    columns = [np.bincount(group, values[:, m]) for m in range(values.shape[1])]
    return np.stack(columns, axis=1), counts


def _resampled_means(
    values: np.ndarray, users: np.ndarray | None, rng: np.random.Generator, num_resamples: int
) -> np.ndarray:
    """Return the mean of every column in every bootstrap sample of users, (R, M)."""
    sums, counts = _sums_by_user(values, users)
    num_users = len(counts)
    table = np.column_stack([sums, counts])  # (U, M + 1)
    totals = np.empty((num_resamples, table.shape[1]))
    chunk = max(1, _CHUNK_CELLS // num_users)
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        drawn = rng.integers(num_users, size=(rows, num_users))
        drawn += np.arange(rows)[:, None] * num_users
        times = np.bincount(drawn.ravel(), minlength=rows * num_users).reshape(rows, num_users)
        totals[start : start + rows] = times @ table  # (r, U) @ (U, M + 1)
    return totals[:, :-1] / totals[:, -1:]


def _flipped_sums(sums: np.ndarray, rng: np.random.Generator, num_resamples: int) -> np.ndarray:
    """Return the total under random signs of the users' sums, (R,)."""
    moving = sums[sums != 0]  # a zero stays zero under either sign
    totals = np.empty(num_resamples)
    chunk = max(1, _CHUNK_CELLS // max(1, len(moving)))
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        signs = rng.integers(2, size=(rows, len(moving)), dtype=np.int8)
        totals[start : start + rows] = 2.0 * (signs @ moving) - moving.sum()
    return totals


def _flipped(sums: np.ndarray, rng: np.random.Generator, num_resamples: int) -> np.ndarray:
    """Return every column's total when users' signs are drawn, the same for all columns. (R, M)."""
    totals = np.empty((num_resamples, sums.shape[1]))
    chunk = max(1, _CHUNK_CELLS // len(sums))
    for start in range(0, num_resamples, chunk):
        rows = min(chunk, num_resamples - start)
        signs = rng.integers(2, size=(rows, len(sums)), dtype=np.int8)
        totals[start : start + rows] = 2.0 * (signs.astype(np.float64) @ sums) - sums.sum(axis=0)
    return totals

"""Compares two methods over the queries of all sets of a page together."""

from collections.abc import Mapping, Sequence

import numpy as np

from reasonrec.evaluation.significance import paired_test


def heading(metric: str) -> list[str]:
    """Return what stands above the rows of ``over_all``."""
    return [
        f"| {metric} of | against | each set | on average | 95 % interval | p | could have seen |",
        "| --- | --- | --- | --: | --: | --: | --: |",
    ]


def over_all(
    found: Sequence[tuple[str, Mapping[str, np.ndarray]]],
    method: str,
    reference: str,
    users: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Return the row of one pair, compared on the queries of all sets that have both.

    A query's difference is weighed so that their mean is the mean over sets of the relative one.
    The last cell is the smallest such mean that the test would have found in 80 of 100 tries.

    Args:
        found: Name of each set, and of each method there the metric of each query, (Q,), a mean
            over seeds.
        users: Of each set, whose query each is, (Q,): their signs are flipped, and they are drawn
            again. Else every query is somebody's own.
    """
    both = [
        (name, hits[method], hits[reference])
        for name, hits in found
        if {method, reference} <= set(hits)
    ]
    num_queries = sum(len(one) for _, one, _ in both)
    if not both:
        return f"| `{method}` | `{reference}` | - | - | - | - | - |"
    weighed = [
        (one - other) / other.mean() * num_queries / (len(both) * len(one))
        for _, one, other in both
    ]
    values = np.concatenate(weighed)
    of_sets = None
    if users is not None:  # the same number in two sets is two people
        firsts = np.cumsum([0, *(users[name].max() + 1 for name, _, _ in both)])
        of_sets = np.concatenate([users[name] + first for (name, _, _), first in zip(both, firsts)])
    test = paired_test(values, np.zeros(len(values)), rng=np.random.default_rng(0), users=of_sets)
    each = ", ".join(f"{name} {one.mean() / other.mean() - 1:+.1%}" for name, one, other in both)
    return (
        f"| `{method}` | `{reference}` | {each} | {test.difference:+.1%} | {test.low:+.1%} to "
        f"{test.high:+.1%} | {test.p_permutation:.4f} | {test.could_have_seen:.1%} |"
    )

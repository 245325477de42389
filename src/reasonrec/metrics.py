"""Hit, NDCG and MRR of a rank: arithmetic shared by the reward, the evaluation and the report.

There is one relevant item per question. Its rank comes from ``models/ranking.py`` and is
1 + the items scored strictly higher + half of the items tied with it, so it may be fractional:
a rank of 10.5 is outside the first ten. A rank of infinity stands for a target that could not
be recommended at all (it was masked), and every metric of it is 0. A list shorter than ``k``
needs no special case: ranks beyond its end do not occur.
"""

import numpy as np

CUTOFFS = (1, 3, 5, 10, 20)
"""The ``k`` of every report."""
METRICS = tuple(f"{kind}@{k}" for kind in ("hit", "ndcg", "mrr") for k in CUTOFFS)
"""The names of all accuracy metrics, as in ``metrics.json``."""


def hit(rank: np.ndarray, k: int) -> np.ndarray:
    """Return 1.0 where the target is among the first ``k``, else 0.0. Any shape, float64.

    Source: R²ec, evaluation settings (``docs/paper_index.md``, entry *Hit, NDCG*).
    """
    return (_checked(rank) <= k).astype(np.float64)


def ndcg(rank: np.ndarray, k: int) -> np.ndarray:
    """Return 1 / log2(1 + rank) where the rank is at most ``k``, else 0.0. Any shape, float64.

    With one relevant item the ideal DCG is 1, so DCG and NDCG agree, and NDCG is at most Hit.
    """
    rank = _checked(rank)
    gain = np.where(rank <= k, 1.0 / np.log2(1.0 + rank), 0.0)
    assert np.all(gain <= hit(rank, k)), "NDCG of one relevant item can never exceed Hit"
    return gain


def mrr(rank: np.ndarray, k: int) -> np.ndarray:
    """Return 1 / rank where the rank is at most ``k``, else 0.0. Any shape, float64."""
    rank = _checked(rank)
    return np.where(rank <= k, 1.0 / rank, 0.0)


def metric_values(name: str, rank: np.ndarray) -> np.ndarray:
    """Return the per-question values of a metric named as in ``METRICS``, such as ``ndcg@10``.

    Raises:
        ValueError: There is no such metric, or a rank is below 1 or NaN.
    """
    kind, _, cutoff = name.partition("@")
    functions = {"hit": hit, "ndcg": ndcg, "mrr": mrr}
    if kind not in functions or not cutoff.isdecimal() or int(cutoff) < 1:
        raise ValueError(
            f"a metric must be hit@k, ndcg@k or mrr@k with k of 1 or more; got {name!r}"
        )
    return functions[kind](rank, int(cutoff))


def _checked(rank: np.ndarray) -> np.ndarray:
    rank = np.asarray(rank, np.float64)
    if not np.all(rank >= 1.0):  # also catches NaN
        raise ValueError(f"ranks must be 1 or more; got {rank[~(rank >= 1.0)][:5]}")
    return rank

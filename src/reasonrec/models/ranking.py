"""Turns scores into ranks and lists, for evaluation and serving alike. numpy in, numpy out.

The tie rule. Offline, a target tied with others gets the middle of the places that they share:
rank = 1 + strictly higher + half of the ties, so that a constant score earns what chance earns.
In a list that people see, ties come in the order of ``item_index``. A tied item's place in the
list therefore differs from its rank by at most half of its ties, and without ties the two agree.
"""

from typing import Literal, get_args

import numpy as np

from reasonrec.records import Histories

Mask = Literal["none", "history", "history-except-target"]
"""Which items may not be recommended: nothing is kept out; the history is; the history is, but a
target that repeats an earlier item stays reachable."""
DEFAULT_MASK: Mask = "history-except-target"
MASKS: tuple[Mask, ...] = get_args(Mask)


def rank_targets(
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    histories: Histories | None = None,
    mask: Mask = "none",
) -> np.ndarray:
    """Return the rank of each row's target among all items that may be recommended.

    Args:
        scores: Higher is better. (B, N), float32; infinities are scores like others.
        targets: The item that was taken. (B,), integer.
        histories: B rows of items already touched; repeats and any order are fine.
        mask: Whether those items compete.

    Returns:
        (B,), float64: 1 + strictly higher + half of the ties among the items that compete.
        Infinity where the target itself is masked (policy ``history``): it was unreachable.

    Raises:
        ValueError: A score is NaN or not float32, shapes differ, or a mask lacks its histories.

    Source: ``docs/conventions.md``, *Rank and ties*.
    """
    higher, tied = count_above(scores, targets, histories=histories, mask=mask)
    return 1.0 + higher + 0.5 * tied


def count_above(
    scores: np.ndarray,
    targets: np.ndarray,
    *,
    histories: Histories | None = None,
    mask: Mask = "none",
) -> tuple[np.ndarray, np.ndarray]:
    """Return how many competing items score strictly higher than each target, and how many tie.

    Arguments and errors are those of ``rank_targets``. Two arrays (B,), float64; a target that is
    itself masked has infinitely many above it, and none that tie.
    """
    scores = _checked(scores)
    targets = np.asarray(targets)
    num_rows, num_items = scores.shape
    if targets.shape != (num_rows,):
        raise ValueError(
            f"targets must hold one item for each of the {num_rows} rows of scores; "
            f"got shape {targets.shape}"
        )
    if num_rows and (targets.min() < 0 or targets.max() >= num_items):
        raise ValueError(
            f"targets must be item indices below {num_items}; "
            f"got {targets.min()} to {targets.max()}"
        )
    own = scores[np.arange(num_rows), targets][:, None]  # (B, 1)
    higher = np.count_nonzero(scores > own, axis=1)
    tied = np.count_nonzero(scores == own, axis=1) - 1  # the target ties with itself
    if mask == "none":
        return higher.astype(np.float64), tied.astype(np.float64)
    if mask not in MASKS:
        raise ValueError(f"mask must be one of {', '.join(MASKS)}; got {mask!r}")
    if histories is None or len(histories) != num_rows:
        raise ValueError(
            f"mask {mask!r} needs a history for each of the {num_rows} rows; "
            f"got {None if histories is None else len(histories)}"
        )
    rows, items = distinct_events(histories, num_items)
    is_target = items == targets[rows]
    others, other_rows = items[~is_target], rows[~is_target]
    excluded = scores[other_rows, others]
    own = own[:, 0]
    higher = higher - np.bincount(other_rows[excluded > own[other_rows]], minlength=num_rows)
    tied = tied - np.bincount(other_rows[excluded == own[other_rows]], minlength=num_rows)
    higher, tied = higher.astype(np.float64), tied.astype(np.float64)
    if mask == "history":
        higher[rows[is_target]], tied[rows[is_target]] = np.inf, 0.0
    return higher, tied


def rank_candidates(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the rank of the first candidate among its row's candidates. (B,), float64.

    Args:
        scores: (B, N), float32, over the whole catalogue.
        candidates: (B, C), integer; column 0 is the target, -1 pads a shorter list.
    """
    scores = _checked(scores)
    is_real = candidates >= 0
    if not np.all(is_real[:, :1]):
        raise ValueError("column 0 of candidates must be the target; got padding (-1) there")
    compared = np.take_along_axis(scores, np.where(is_real, candidates, 0), axis=1)  # (B, C)
    own = compared[:, :1]
    higher = np.count_nonzero((compared > own) & is_real, axis=1)
    tied = np.count_nonzero((compared == own) & is_real, axis=1) - 1
    return 1.0 + higher + 0.5 * tied


def top_k(
    scores: np.ndarray, k: int, excluded: Histories | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best ``k`` items of each row and their scores; ties in ``item_index`` order.

    Args:
        scores: (B, N), float32.
        k: Length of the lists, 1 or more; at most N of them are used.
        excluded: B rows of items that may not appear, or None.

    Returns:
        Item indices (B, K), int32, and scores (B, K), float32, with K = min(k, N). A row with
        fewer than K items left ends in index -1 with score -inf.

    Raises:
        ValueError: ``k`` is below 1, a score is NaN or not float32, or the rows differ.
    """
    scores = _checked(scores)
    if k < 1:
        raise ValueError(f"k must be 1 or more; got {k}")
    num_rows, num_items = scores.shape
    k = min(k, num_items)
    is_allowed = np.ones(scores.shape, bool)
    if excluded is not None:
        if len(excluded) != num_rows:
            raise ValueError(f"excluded must have {num_rows} rows, as scores; got {len(excluded)}")
        is_allowed[distinct_events(excluded, num_items)] = False
    best = np.full((num_rows, k), -1, np.int32)
    best_scores = np.full((num_rows, k), -np.inf, np.float32)
    for b in range(num_rows):
        items = np.flatnonzero(is_allowed[b])
        if len(items) > k:  # everything tied with the k-th stays, so that the index decides
            row = scores[b, items]
            items = items[row >= np.partition(row, len(row) - k)[len(row) - k]]
        items = items[np.argsort(-scores[b, items], kind="stable")][:k]
        best[b, : len(items)] = items
        best_scores[b, : len(items)] = scores[b, items]
    return best, best_scores


def masked_items(histories: Histories, targets: np.ndarray, mask: Mask) -> Histories | None:
    """Return what a mask keeps out of each row's list, as ``top_k`` takes it; None if nothing."""
    if mask != "history-except-target":
        return histories if mask == "history" else None
    rows = np.repeat(np.arange(len(histories)), histories.lengths)
    kept = histories.item_index != np.asarray(targets)[rows]
    counts = np.bincount(rows[kept], minlength=len(histories))
    return Histories(
        user_index=histories.user_index,
        item_index=histories.item_index[kept],
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def distinct_events(histories: Histories, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the (row, item) pairs of a ragged table without repeats, two arrays of int64."""
    rows = np.repeat(np.arange(len(histories), dtype=np.int64), histories.lengths)
    keys = np.unique(rows * num_items + histories.item_index)
    return keys // num_items, keys % num_items


def _checked(scores: np.ndarray) -> np.ndarray:
    """Return the scores if ranks can be read off them."""
    if scores.ndim != 2 or scores.dtype != np.float32:
        raise ValueError(
            "scores must be float32 of shape (rows, items): half precision merges close scores "
            f"into ties; got {scores.dtype} of shape {scores.shape}"
        )
    if np.isnan(scores).any():
        rows = np.flatnonzero(np.isnan(scores).any(axis=1))
        raise ValueError(
            f"scores must not be NaN; rows {rows[:5].tolist()} hold some. Did the training diverge?"
        )
    return scores

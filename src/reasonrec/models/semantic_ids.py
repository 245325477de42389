"""Semantic IDs: a few code words for every item, items alike sharing the first of them.

A residual quantiser by k-means: the items' vectors are clustered, what their cluster's centre
leaves of them is clustered again, and so on. Items that share all codes are told apart by one more
code, counted up in catalogue order, so that every item has an ID of its own and a hit is one of
the item.

An ID is written `` [a3|b17|c2|d0]`` with one token a code, brackets included: where a prompt shows
titles it shows IDs, and everything that reads or writes prompts stays as it is.
"""

from collections.abc import Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import svds
from transformers import AddedToken, PreTrainedTokenizerBase

from reasonrec.baselines.follow_counter import count_follows
from reasonrec.data.dataset import InteractionLog
from reasonrec.models.tiny.initialisation import weighted_words
from reasonrec.rng import stream

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
MAX_LEVELS = len(_LETTERS) - 1
_MAX_ITERATIONS = 100


def residual_codes(
    vectors: np.ndarray, *, num_levels: int, codebook_size: int, seed: int
) -> np.ndarray:
    """Return the codes of every item, coarse ones first. (N, L), int64.

    Args:
        vectors: (N, D), finite.
        codebook_size: Clusters at each level; fewer where there are fewer different vectors.
    """
    residual = vectors.astype(np.float64)
    codes = np.zeros((len(vectors), num_levels), np.int64)
    for level in range(num_levels):
        centres, codes[:, level] = k_means(
            residual, codebook_size, stream(seed, "semantic-ids", level)
        )
        residual = residual - centres[codes[:, level]]
    return codes


def k_means(
    points: np.ndarray, num_clusters: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return centres (K, D) and the nearest centre of each point (N,), by Lloyd's iterations.

    The first centres are drawn by their squared distance from those before (k-means++). There are
    never more centres than different points. A cluster that loses all its points takes the
    point that lies farthest from its own centre.
    """
    centres = points[[rng.integers(len(points))]]
    nearest = _distances(points, centres)[:, 0]
    while len(centres) < num_clusters and nearest.max() > 1e-12:
        drawn = np.searchsorted(nearest.cumsum(), rng.random() * nearest.sum(), side="right")
        centres = np.concatenate([centres, points[[min(int(drawn), len(points) - 1)]]])
        nearest = np.minimum(nearest, _distances(points, centres[-1:])[:, 0])
    label = np.full(len(points), -1)
    for _ in range(_MAX_ITERATIONS):
        distances = _distances(points, centres)
        before, label = label, distances.argmin(1)
        if np.array_equal(before, label):
            break
        own = distances[np.arange(len(points)), label]
        for cluster in np.setdiff1d(np.arange(len(centres)), label):
            farthest = own.argmax()
            label[farthest], own[farthest] = cluster, 0.0
        members = sparse.csr_array(
            (np.ones(len(points)), (label, np.arange(len(points)))),
            shape=(len(centres), len(points)),
        )
        centres = (members @ points) / members.sum(1)[:, None]
    return centres, label


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return squared distances (N, K)."""
    squares = (points**2).sum(1)[:, None] + (centres**2).sum(1)
    return np.maximum(squares - 2 * points @ centres.T, 0.0)


def with_last_code(codes: np.ndarray) -> np.ndarray:
    """Return codes (N, L + 1) whose last one tells apart items that share the others.

    It counts them from 0 in catalogue order.
    """
    _, group = np.unique(codes, axis=0, return_inverse=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    begins = np.repeat(counts.cumsum() - counts, counts)
    last = np.empty(len(codes), np.int64)
    last[order] = np.arange(len(codes)) - begins
    return np.concatenate([codes, last[:, None]], 1)


def frac_shared(codes: np.ndarray) -> float:
    """Return the share of items that another item shares all given codes with."""
    _, group, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
    return float((counts[group.reshape(-1)] > 1).mean())


def id_texts(codes: np.ndarray) -> list[str]:
    """Return each item's ID as it stands between the brackets: ``a3|b17|c2|d0``."""
    return [
        "|".join(f"{letter}{code}" for letter, code in zip(_LETTERS, row)) for row in codes.tolist()
    ]


def add_id_tokens(tokenizer: PreTrainedTokenizerBase, codes: np.ndarray) -> None:
    """Give every code of every level a token of its own, in place."""
    tokens: list[str | AddedToken] = []
    for level, column in enumerate(codes.T):
        before = " [" if level == 0 else "|"
        after = "]" if level == codes.shape[1] - 1 else ""
        tokens += [
            AddedToken(f"{before}{_LETTERS[level]}{code}{after}", normalized=False)
            for code in range(int(column.max()) + 1)
        ]
    tokenizer.add_tokens(tokens)


def text_vectors(texts: Sequence[str], *, width: int, seed: int) -> np.ndarray:
    """Return a unit vector (N, D) of each text: TF-IDF of its words, cut to its main axes."""
    weighted, num_words = weighted_words(texts)
    return main_axes(weighted, (len(texts), num_words), width=width, seed=seed)


def log_vectors(log: InteractionLog, num_items: int, *, width: int, seed: int) -> np.ndarray:
    """Return a unit vector (N, D) of each item: who follows and precedes it within five steps.

    Counts, nearer steps weighing more, as their positive pointwise mutual information, cut to its
    main axes. Items that training never saw are 0.
    """
    follows = count_follows(log, num_items, num_steps=5)
    both = sparse.coo_array(follows + follows.T)
    totals = np.asarray(both.sum(1)).ravel()
    expected = totals[both.coords[0]] * totals[both.coords[1]] / max(totals.sum(), 1e-9)
    information = np.log(np.maximum(both.data / np.maximum(expected, 1e-9), 1.0))
    shape = (num_items, num_items)
    table = sparse.csr_array((information, both.coords), shape=shape)
    return main_axes(table, shape, width=width, seed=seed)


def main_axes(
    table: sparse.csr_array, shape: tuple[int, int], *, width: int, seed: int
) -> np.ndarray:
    """Return the rows of a table (N, M) on its main axes, scaled to length 1. (N, D)."""
    width = min(width, min(shape) - 1)
    if width < 1 or table.nnz == 0:
        return np.zeros((shape[0], 1))
    start = stream(seed, "main-axes").random(min(shape))
    left, values, _ = svds(table.astype(np.float64), k=width, v0=start)
    rows = left * values
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    # what the axes leave of an item that they do not reach is rounding, not a direction
    return np.where(norms > 1e-9, rows / np.maximum(norms, 1e-9), 0.0)

"""Does the mere existence of a chain give the answer away? (leak audit of candidate-closed chains)

A candidate that the user did take closes with the history far more often than a random item, so a
model may count chains instead of reading them. The area under the curve of that count alone is the
baseline to beat; against negatives of the same degree it is nearer to chance. Measured as a
recommender it is ``chain_count.ChainCount``.
"""

import numpy as np

from reasonrec.data.dataset import Dataset, Queries
from reasonrec.graph import kernels
from reasonrec.graph.build import frozen_array
from reasonrec.graph.config import Negatives
from reasonrec.rng import stream_seed

_MAX_ATTEMPTS = 1000
_WINDOW = 10
"""Places to either side of the target, among items sorted by degree, that a match comes from."""


def area_under_curve(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """Return the probability that a positive's value is above a negative's, half for ties.

    None without a positive or without a negative. 0.5 is chance.
    """
    if len(positive) == 0 or len(negative) == 0:
        return None
    from scipy.stats import rankdata  # takes a second to import

    ranks = rankdata(np.concatenate([positive, negative]))
    above = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))


def touched_keys(dataset: Dataset) -> np.ndarray:
    """Return user x N + item of everything that users ever took, in any part; sorted, int64."""
    pairs = [(dataset.train.user_index, dataset.train.item_index)]
    for queries in (dataset.valid, dataset.test):
        pairs.append((queries.user_index, queries.target))
        pairs.append(_history_pairs(queries))
    keys = [users.astype(np.int64) * dataset.num_items + items for users, items in pairs]
    return np.unique(np.concatenate(keys))


def draw_negatives(
    dataset: Dataset, queries: Queries, touched: np.ndarray, *, kind: Negatives, seed: int
) -> np.ndarray:
    """Return one item a query that its user never took, or -1 where none was found. (Q,), int32.

    Args:
        touched: What ``touched_keys`` returned.
        kind: ``uniform`` draws from the catalogue; ``popularity`` from the events of training;
            ``degree`` from the items next to the target when sorted by number of events.
    """
    random_seed = np.uint64(stream_seed(seed, f"graph/negatives/{kind}"))
    if kind == "degree":
        num_events = np.bincount(dataset.train.item_index, minlength=dataset.num_items)
        order = np.argsort(num_events, kind="stable")
        return kernels.draw_alike(
            frozen_array(queries.user_index, np.int32),
            frozen_array(queries.history_stop, np.int64),
            frozen_array(queries.target, np.int32),
            frozen_array(touched, np.int64),
            frozen_array(order, np.int32),
            frozen_array(np.argsort(order), np.int32),
            _WINDOW,
            random_seed,
            _MAX_ATTEMPTS,
        )
    source = dataset.train.item_index if kind == "popularity" else np.zeros(0, np.int32)
    return kernels.draw_untouched(
        frozen_array(queries.user_index, np.int32),
        frozen_array(queries.history_stop, np.int64),  # tells the queries of one user apart
        frozen_array(touched, np.int64),
        frozen_array(source, np.int32),
        dataset.num_items,
        random_seed,
        _MAX_ATTEMPTS,
    )


def _history_pairs(queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """Return users and items of all histories, each event once: slices of a user may overlap."""
    num_open = np.zeros(len(queries.log_item_index) + 1, np.int64)
    np.add.at(num_open, queries.history_start, 1)
    np.add.at(num_open, queries.history_stop, -1)
    events = np.flatnonzero(np.cumsum(num_open)[:-1] > 0)
    # the log runs user after user, so the last slice that began before an event is its owner's
    by_start = np.argsort(queries.history_start, kind="stable")
    owner = np.searchsorted(queries.history_start[by_start], events, side="right") - 1
    return queries.user_index[by_start[owner]], queries.log_item_index[events]

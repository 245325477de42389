"""The floor by name: simple methods that every table holds, and how they are tuned."""

from collections.abc import Callable, Mapping

from reasonrec.baselines.contract import Recommender
from reasonrec.baselines.follow_counter import FollowCounter
from reasonrec.baselines.item_knn import ItemKnn
from reasonrec.baselines.popularity import Popularity, RecentPopularity
from reasonrec.data.dataset import Dataset

_FIT: Mapping[str, Callable[..., Recommender]] = {
    "popularity": Popularity.fit,
    "recent-popularity": RecentPopularity.fit,
    "item-knn": ItemKnn.fit,
    "follow-counter": FollowCounter.fit,
}
FLOOR = tuple(_FIT)
"""Names of the floor, simplest first."""


def fit_floor(name: str, dataset: Dataset, **settings: float) -> Recommender:
    """Return a floor method fitted on ``dataset.train``; ``settings`` are its ``fit`` keywords.

    Raises:
        ValueError: There is no floor method of that name.
    """
    if name not in _FIT:
        raise ValueError(f"a floor method must be one of {', '.join(FLOOR)}; got {name!r}")
    return _FIT[name](dataset, **settings)

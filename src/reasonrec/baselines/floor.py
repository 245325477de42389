"""The baselines by name: how each is configured, and how it is fitted.

The floor, which every table holds, is the part of them that takes milliseconds on any set.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from reasonrec.baselines.bpr import Bpr, BprConfig
from reasonrec.baselines.contract import Recommender
from reasonrec.baselines.ease import Ease, EaseConfig
from reasonrec.baselines.follow_counter import (
    FollowCounter,
    FollowCounterConfig,
    PaceCounter,
    PaceCounterConfig,
)
from reasonrec.baselines.ials import Ials, IalsConfig
from reasonrec.baselines.item_knn import ItemKnn, ItemKnnBm25Config, ItemKnnConfig
from reasonrec.baselines.peers import PEERS
from reasonrec.baselines.popularity import (
    Popularity,
    PopularityConfig,
    RecentPopularity,
    RecentPopularityConfig,
)
from reasonrec.config import Config, explain
from reasonrec.data.dataset import Dataset
from reasonrec.errors import ConfigError
from reasonrec.graph.chain_count import ChainCount, ChainCountConfig

READING = ("recency_power", "max_events", "prior_weight", "same_pace")
"""Settings of how a history is read. What was learned does not depend on them."""


@dataclass(frozen=True)
class Baseline:
    """How a baseline is made."""

    config: type[Config]
    """Its settings, with their defaults."""
    fit: Callable[..., Recommender]
    """Takes the data set and every setting by name."""
    is_random: bool = False
    """Whether ``fit`` takes a ``seed`` as well."""


BASELINES: Mapping[str, Baseline] = {
    "popularity": Baseline(PopularityConfig, Popularity.fit),
    "recent-popularity": Baseline(RecentPopularityConfig, RecentPopularity.fit),
    "item-knn": Baseline(ItemKnnConfig, ItemKnn.fit),
    "follow-counter": Baseline(FollowCounterConfig, FollowCounter.fit),
    "pace-counter": Baseline(PaceCounterConfig, PaceCounter.fit),
    "item-knn-bm25": Baseline(ItemKnnBm25Config, ItemKnn.fit_bm25),
    "ease": Baseline(EaseConfig, Ease.fit),
    "ials": Baseline(IalsConfig, Ials.fit, is_random=True),
    "bpr": Baseline(BprConfig, Bpr.fit, is_random=True),
    "chain-count": Baseline(ChainCountConfig, ChainCount.fit),
}
"""Every baseline that is fitted in a moment, simplest first."""
CONFIGS: Mapping[str, type[Config]] = {
    **{name: baseline.config for name, baseline in BASELINES.items()},
    **PEERS,
}
"""The settings of every baseline, ours and those of other libraries."""
FLOOR = ("popularity", "recent-popularity", "item-knn", "follow-counter")
"""The baselines that every table holds."""


def check_settings(name: str, settings: Mapping[str, Any], origin: str = "settings") -> Config:
    """Return the whole configuration of a baseline, with defaults where ``settings`` are silent.

    Raises:
        ValueError: There is no baseline of that name.
        ConfigError: A setting is unknown, or its value is not accepted.
    """
    if name not in CONFIGS:
        raise ValueError(f"a baseline must be one of {', '.join(CONFIGS)}; got {name!r}")
    config_class = CONFIGS[name]
    try:
        return config_class.model_validate(dict(settings))
    except ValidationError as error:
        raise ConfigError(explain(error, config_class, f"{name}, {origin}")) from None


def fit_floor(name: str, dataset: Dataset, *, seed: int = 0, **settings: Any) -> Recommender:
    """Return a baseline fitted on ``dataset.train``.

    Args:
        seed: For the methods that draw at random; the others give the same whatever it is.
        settings: Keys of the baseline's configuration.

    Raises:
        ValueError: There is no baseline of that name that is fitted here.
        ConfigError: A setting is unknown, or its value is not accepted.
    """
    if name in PEERS:
        raise ValueError(f"{name} is trained by another library; ask it with ask_peer")
    keywords = check_settings(name, settings).model_dump()
    if BASELINES[name].is_random:
        keywords["seed"] = seed
    return BASELINES[name].fit(dataset, **keywords)

"""Sizes and mixture weights of the planted world."""

from typing import Any, Literal, Self

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from reasonrec.config import Config

Size = Literal["tiny", "small", "demo", "large"]

SIZES: dict[Size, dict[str, int]] = {
    "tiny": {
        "num_users": 120,
        "num_items": 60,
        "min_events": 8,
        "max_events": 14,
        "users_per_block": 40,
    },
    "small": {"num_users": 1_000, "num_items": 200, "min_events": 12, "max_events": 24},
    "demo": {"num_users": 3_000, "num_items": 500, "min_events": 15, "max_events": 30},
    "large": {"num_users": 50_000, "num_items": 5_000, "min_events": 15, "max_events": 30},
}
"""What each size sets, unless a key is given by itself."""


class CauseWeights(Config):
    """How often each cause moves a reader. Only the ratios matter."""

    taste: NonNegativeFloat = 0.29
    """Taste over genre, maker and era, which drifts over a reader's life."""
    circle: NonNegativeFloat = 0.34
    """What the few friends of the same circle read lately."""
    series: NonNegativeFloat = 0.20
    """The next volume of a series that was begun."""
    popularity: NonNegativeFloat = 0.12
    """The shop's best-sellers."""
    noise: PositiveFloat = 0.05
    """Any book at all. Above 0, so that no untaken item is ever impossible."""


class PlantedConfig(Config):
    """A generated bookshop whose every next-item probability is known."""

    size: Size = "demo"
    """Sets the numbers below, where they are not given: tiny, small, demo or large."""
    num_users: PositiveInt = 3_000
    """Readers. The default is that of the size."""
    num_items: PositiveInt = 500
    """Books in the shop, 40 to 100,000. The default is that of the size."""
    min_events: PositiveInt = 15
    """Fewest books that a reader takes. The default is that of the size."""
    max_events: PositiveInt = 30
    """Most books that a reader takes; at most half of the shop. The default is that of the size."""
    circle_size: PositiveInt = 4
    """Readers in a circle of friends, the reader included."""
    users_per_block: PositiveInt = 2_000
    """Readers generated at a time. Bounds the memory; another value gives another world."""
    weights: CauseWeights = CauseWeights()
    """How often each cause moves a reader."""

    @model_validator(mode="before")
    @classmethod
    def fill_from_size(cls, values: Any) -> Any:
        """Put the numbers of the size below those that were given."""
        if not isinstance(values, dict):
            return values
        return SIZES.get(values.get("size", "demo"), {}) | values

    @model_validator(mode="after")
    def check_room(self) -> Self:
        if not 40 <= self.num_items <= 100_000:
            raise ValueError(f"num_items must be from 40 to 100,000; got {self.num_items}")
        if not self.min_events <= self.max_events <= self.num_items // 2:
            raise ValueError(
                "min_events <= max_events <= num_items / 2 must hold, so that nobody "
                f"empties the shop; got {self.min_events} and {self.max_events} events, "
                f"{self.num_items} items"
            )
        if self.num_users >= 10_000_000:
            raise ValueError(f"num_users must be below 10,000,000; got {self.num_users}")
        return self

    @property
    def num_blocks(self) -> int:
        return -(-self.num_users // self.users_per_block)

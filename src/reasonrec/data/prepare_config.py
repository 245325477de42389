"""How a raw log becomes a data set; a module of its own, so that ``--help`` stays quick."""

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from reasonrec.config import Config

SplitName = Literal["leave-one-out", "global-time", "given"]
Fraction = Annotated[float, Field(ge=0, le=1)]


class PrepareConfig(Config):
    """How a raw log becomes a data set. Nothing is filtered unless a key asks for it."""

    name: str | None = None
    """Name of the data set. None takes the name of the source."""
    split: SplitName = "leave-one-out"
    """leave-one-out (each user's last event is the test), global-time (two moments for all users,
    the stricter one), or given (published split files)."""
    given_split: str | None = None
    """Which published split, where a set has several: NAME of split_NAME_test.parquet."""
    items: Path | None = None
    """Item table, where the source is an interactions file."""
    titles_from_ids: bool = False
    """Accept a log without item table, and call each item by its id."""
    require_columns: tuple[str, ...] | None = None
    """Keep items with a value in each of these columns of the item table, as ``price``, and the
    events of those items."""
    since: date | None = None
    """First day kept, UTC."""
    least_items: PositiveInt | None = None
    """Move ``since`` back, month by month, until at least so many items have events after all
    filters."""
    until: date | None = None
    """Last day kept, UTC."""
    min_rating: float | None = None
    """Keep events rated at least so; a rating below it is not taken for a like."""
    sample_users: PositiveInt | None = None
    """Keep the events of so many users, drawn with the seed."""
    k_core: PositiveInt | None = None
    """Keep users and items with at least so many events, both at once."""
    keep_unseen_items: bool | None = None
    """Keep items without events in the catalogue. None keeps them unless k_core is set."""
    keep_duplicates: bool = False
    """Keep events that repeat the user, item and time of an earlier row."""
    min_history: NonNegativeInt = 0
    """Least number of events that a query must look back on. Others are not asked; serving knows
    their users as before."""
    valid_frac: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the events that validate, for global-time."""
    test_frac: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the events that test, for global-time."""
    rating_scale: tuple[float, float] | None = None
    """Lowest and highest rating. None takes that of the layout, if it has one."""
    max_rejected_frac: Fraction = 0.05
    """Share of unusable rows, of a log or an item table, above which nothing is prepared."""
    max_title_chars: PositiveInt = 500
    """Longer titles are cut, and counted."""
    max_description_chars: PositiveInt = 4000
    """Longer descriptions are cut, and counted."""

    @model_validator(mode="after")
    def check_order(self) -> Self:
        if self.valid_frac + self.test_frac >= 1:
            raise ValueError("valid_frac and test_frac must leave events to train on: sum below 1")
        if self.since and self.until and self.since > self.until:
            raise ValueError(f"since must not be after until; got {self.since} and {self.until}")
        if self.least_items is not None and self.since is None:
            raise ValueError(
                f"least_items moves since back, so it needs one; got least_items {self.least_items}"
            )
        filters = ("require_columns", "since", "until", "min_rating", "sample_users", "k_core")
        asked = [name for name in filters if getattr(self, name) is not None]
        if self.split == "given" and asked:
            raise ValueError(
                f"a given split is published for the whole log; {', '.join(asked)} would change it"
            )
        if self.rating_scale and not self.rating_scale[0] < self.rating_scale[1]:
            raise ValueError(f"rating_scale must be low, high; got {self.rating_scale}")
        return self

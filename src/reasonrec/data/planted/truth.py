"""What is true of a planted world: exact next-item probabilities, causes and expected metrics."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from reasonrec.data.planted import kernels
from reasonrec.data.planted.catalogue import PlantedCatalogue
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.readers import Readers
from reasonrec.data.planted.world import WORLD_FORMAT, make_crowd, make_shop
from reasonrec.errors import DataError
from reasonrec.metrics import METRICS, metric_values

BATCH = 256
"""Queries whose probabilities are held in memory at a time."""


@dataclass(frozen=True)
class Draws:
    """Independent draws of one reader's next event."""

    item: np.ndarray
    """(D,), int32. World items."""
    cause: np.ndarray
    """(D,), int8. Index into ``CAUSES``."""
    source: np.ndarray
    """(D,), int32. A reader for ``circle``, an item for ``series``, else -1."""


@dataclass(frozen=True)
class ExpectedMetrics:
    """What a ranking gets in expectation over the next items of B queries."""

    metrics: tuple[str, ...]
    """K names as in ``metrics.METRICS``."""
    values: np.ndarray
    """(B, K), float64. Expectation over the draw of each query's target."""
    variances: np.ndarray
    """(B, K), float64. Variance over the draw of each query's target."""

    def mean(self, metric: str) -> float:
        """Return the expectation averaged over the queries; NaN if there are none."""
        values = self.values[:, self.metrics.index(metric)]
        return float(values.mean()) if len(values) else float("nan")

    def standard_error(self, metric: str) -> float:
        """Return how far a measured average strays by the draw of the targets: one deviation."""
        variances = self.variances[:, self.metrics.index(metric)]
        return float(np.sqrt(variances.sum()) / len(variances)) if len(variances) else float("nan")


@dataclass(frozen=True)
class WorldTruth:
    """The planted parameters and the log, ready to be asked.

    Users and items are asked for by world index: the number in ``reader-0000042``, ``book-00007``.
    A query is a user with the number of events that the user already had. What friends did before
    the user's next event is known; after the user's last event, everything is.
    """

    config: PlantedConfig
    seed: int
    item_ids: list[str]
    timestamp: np.ndarray
    """(E,), int64, UTC seconds; user after user, oldest first."""
    shop: kernels.Shop
    crowd: kernels.Crowd

    @property
    def num_users(self) -> int:
        return len(self.crowd.circle)

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def num_events(self) -> np.ndarray:
        """(U,), int64. Events that each user has in the whole log."""
        return np.diff(self.crowd.offsets)

    @staticmethod
    def load(folder: Path | str) -> "WorldTruth":
        """Return the truth of the world that ``write_world`` wrote to ``folder``.

        Raises:
            DataError: A file is missing or damaged, or another version of the format wrote it.
        """
        folder = Path(folder)
        try:
            described = json.loads((folder / "truth" / "world.json").read_text(encoding="utf-8"))
            if described["format"] != WORLD_FORMAT:
                raise DataError(
                    f"{folder} holds a planted world of format {described['format']}, this version "
                    f"reads format {WORLD_FORMAT}; run `reasonrec prepare planted` again"
                )
            items = pl.read_parquet(folder / "truth" / "items.parquet", glob=False)
            readers = Readers.from_table(
                pl.read_parquet(folder / "truth" / "readers.parquet", glob=False)
            )
            table = pl.read_parquet(folder / "items.parquet", glob=False)
            log = pl.read_parquet(
                folder / "interactions.parquet", columns=["item_id", "timestamp"], glob=False
            )
        except (OSError, KeyError, ValueError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"{folder} must hold a planted world with its truth/ folder ({error}); "
                "run `reasonrec prepare planted` again"
            ) from None
        config = PlantedConfig(**described["config"])
        catalogue = PlantedCatalogue(
            table=table,
            genre=items["genre"].to_numpy(writable=True),
            maker=items["maker"].to_numpy(writable=True),
            era=items["era"].to_numpy(writable=True),
            next_volume=items["next_volume"].to_numpy(writable=True),
            popularity=items["popularity"].to_numpy(writable=True),
            genre_of_maker=np.empty((0, 2), np.int32),
        )
        item_index = log["item_id"].str.strip_prefix("book-").cast(pl.Int32).to_numpy(writable=True)
        return WorldTruth(
            config=config,
            seed=described["seed"],
            item_ids=table["item_id"].to_list(),
            timestamp=log["timestamp"].to_numpy(writable=True),
            shop=make_shop(config, catalogue),
            crowd=make_crowd(readers, item_index),
        )

    def next_item_probabilities(
        self, users: np.ndarray, num_known: np.ndarray, *, is_told: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the exact probability of every item to be each user's next one.

        Args:
            users: World indices of the users. (B,), integer.
            num_known: Events that each user already had, 0 to the user's total. (B,), integer.
            is_told: Which events of the log may speak for a friend. (E,), bool. None for all.

        Returns:
            (B, N), float64. Rows sum to 1, to less where something is not told; items already taken
            have 0, all others more than 0.

        Raises:
            ValueError: A user does not exist, or ``num_known`` is beyond the user's events.
        """
        users, num_known = np.asarray(users), np.asarray(num_known)
        out = np.empty((len(users), self.num_items))
        for start in range(0, len(users), BATCH):
            rows = slice(start, start + BATCH)
            causes = self.cause_probabilities(users[rows], num_known[rows])
            if is_told is not None:
                causes[:, kernels.CIRCLE] *= self._told(users[rows], num_known[rows], is_told)
            causes.sum(axis=1, out=out[rows])
        return out

    def _told(self, users: np.ndarray, num_known: np.ndarray, is_told: np.ndarray) -> np.ndarray:
        """Return how much of what the circle says of each item is told, (B, N), 0 to 1."""
        out = np.ones((len(users), self.num_items))
        users, num_known = users.astype(np.int64), num_known.astype(np.int64)
        kernels.fill_told(self.crowd, self.timestamp, users, num_known, is_told, out)
        return out

    def cause_probabilities(self, users: np.ndarray, num_known: np.ndarray) -> np.ndarray:
        """Return p(cause and next item): summed over causes it is ``next_item_probabilities``.

        Divided by that sum it is the posterior of the cause given the item: what a true thought
        about a recommended item would say.

        Returns:
            (B, 5, N), float64, causes in the order of ``CAUSES``.

        Raises:
            ValueError: As ``next_item_probabilities``.
        """
        users, num_known = np.asarray(users, np.int64), np.asarray(num_known, np.int64)
        self._check(users, num_known)
        out = np.zeros((len(users), len(kernels.CAUSES), self.num_items))
        kernels.fill_probabilities(self.shop, self.crowd, self.timestamp, users, num_known, out)
        return out

    def sample_next(
        self, user: int, num_known: int, *, num_draws: int, rng: np.random.Generator
    ) -> Draws:
        """Return independent draws of one user's next event, by the function that drew the log."""
        self._check(np.array([user]), np.array([num_known]))
        item, source = np.empty(num_draws, np.int32), np.empty(num_draws, np.int32)
        cause = np.empty(num_draws, np.int8)
        kernels.draw_next(
            self.shop, self.crowd, self.timestamp, user, num_known, rng, item, cause, source
        )
        return Draws(item, cause, source)

    def expected_metrics(
        self,
        users: np.ndarray,
        num_known: np.ndarray,
        *,
        metrics: tuple[str, ...] = METRICS,
        scores: np.ndarray | None = None,
    ) -> ExpectedMetrics:
        """Return the exact expectation of each metric over the users' next items.

        An item counts its p times what it would gain at its rank, which is 1 + the number of
        higher scores + half of the number of equal ones, over the whole catalogue, nothing masked.

        Args:
            scores: Any recommender's scores in world item order, (B, N). None takes the oracle's:
                gains fall with rank, so no other order can expect more. Ties could: of 19
                equal top scores all have rank 10, so the rule for ties rewards them.
        """
        from scipy.stats import rankdata  # takes a second to import

        users, num_known = np.asarray(users), np.asarray(num_known)
        values = np.empty((len(users), len(metrics)))
        squares = np.empty_like(values)
        for start in range(0, len(users), BATCH):
            rows = slice(start, start + BATCH)
            p = self.next_item_probabilities(users[rows], num_known[rows])
            given = p if scores is None else scores[rows]
            # float32, since that is what gets ranked
            rank = rankdata(-given.astype(np.float32), method="average", axis=1)
            for column, metric in enumerate(metrics):
                gains = metric_values(metric, rank)
                values[rows, column] = (p * gains).sum(axis=1)
                squares[rows, column] = (p * gains**2).sum(axis=1)
        return ExpectedMetrics(metrics, values, squares - values**2)

    def locate(self, users: np.ndarray, last_items: np.ndarray) -> np.ndarray:
        """Return how many events each user had when ``last_items`` was the latest; -1 if never.

        A user takes no item twice, so the latest item alone tells the state.
        """
        num_known = np.empty(len(users), np.int64)
        kernels.locate(self.crowd, users, last_items, num_known)
        return num_known

    def _check(self, users: np.ndarray, num_known: np.ndarray) -> None:
        if len(users) and not (users.min() >= 0 and users.max() < self.num_users):
            raise ValueError(
                f"users must be world indices from 0 to {self.num_users - 1}; "
                f"got {users.min()} to {users.max()}"
            )
        total = self.num_events[users]
        if np.any((num_known < 0) | (num_known > total)):
            row = int(np.argmax((num_known < 0) | (num_known > total)))
            raise ValueError(
                f"num_known must be from 0 to the user's number of events; got {num_known[row]} "
                f"for user {users[row]}, who has {total[row]}"
            )

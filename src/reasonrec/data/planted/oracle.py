"""The best recommender that there can be for a planted world: it ranks by the true probability."""

from functools import cached_property

import numpy as np

from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.truth import ExpectedMetrics, WorldTruth
from reasonrec.errors import DataError
from reasonrec.metrics import METRICS
from reasonrec.records import Histories, Scored

MAX_STRANGER_SAMPLE = 2_000
"""Readers over whose first step an unknown reader's answer is averaged."""


ORACLES = ("oracle", "oracle-of-training")
"""One knows everything; the other not what friends took in held-out events."""


def oracle_of(word: str, dataset: Dataset) -> "OracleRecommender":
    """Return one of `ORACLES`."""
    return OracleRecommender(dataset, knows_held_out=word == ORACLES[0])


class OracleRecommender:
    """Scores items by p(next item | reader), which it reads from the world's truth."""

    def __init__(self, dataset: Dataset, *, knows_held_out: bool = True) -> None:
        """Read the truth beside a prepared planted world.

        Args:
            knows_held_out: False leaves out of p what friends took in events that training does not
                hold: what is left is the most that a method can know that learns from training
                alone, if it knows every taste and every friend. A book that two friends took, one
                of them in training, keeps the share of both.

        Raises:
            DataError: The data set is no planted world, or its ids are not the world's.
        """
        folder = dataset.folder / "world"
        if not (folder / "truth").is_dir():
            raise DataError(
                f"the oracle needs a planted world; {dataset.folder} has no world/truth folder. "
                "It is written by `reasonrec prepare planted`"
            )
        self.truth = WorldTruth.load(folder)
        self.name = ORACLES[0 if knows_held_out else 1]
        self._world_user = _numbers(dataset.user_ids, "reader-", self.truth.num_users)
        self._world_item = _numbers(dataset.catalogue.item_ids, "book-", self.truth.num_items)
        self._is_told: np.ndarray | None = None
        if not knows_held_out:
            log, truth = dataset.train, self.truth
            # nobody takes a book twice, so that reader and book name an event
            told = self._world_user[log.user_index] * truth.num_items
            told = told + self._world_item[log.item_index]
            reader = np.repeat(np.arange(truth.num_users), truth.num_events)
            self._is_told = np.isin(reader * truth.num_items + truth.crowd.items, told)

    def score(self, histories: Histories) -> Scored:
        """Return p(next item) of every row, float32.

        The reader's state is found by the latest item of the row, so a row may be cut to its last
        events. An unknown reader gets the mean over readers who are just beginning, without the
        items of the row; the values then sum to less than 1.

        Raises:
            DataError: The latest item of a row was never taken by its reader.
        """
        scores = np.empty((len(histories), len(self._world_item)), np.float32)
        is_known = histories.user_index >= 0
        rows = np.flatnonzero(is_known)
        users, num_known = self._states(histories, rows)
        p = self.truth.next_item_probabilities(users, num_known, is_told=self._is_told)
        scores[rows] = p[:, self._world_item]
        for row in np.flatnonzero(~is_known):
            scores[row] = self._for_strangers
            scores[row, histories.row(int(row))] = 0.0
        return Scored(scores)

    def expected_metrics(
        self, histories: Histories, *, metrics: tuple[str, ...] = METRICS
    ) -> ExpectedMetrics:
        """Return the oracle's exact expected metrics for the known readers among the rows."""
        rows = np.flatnonzero(histories.user_index >= 0)
        return self.truth.expected_metrics(*self._states(histories, rows), metrics=metrics)

    def _states(self, histories: Histories, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the world user and number of known events of each of the named rows."""
        users = self._world_user[histories.user_index[rows]]
        num_known = np.zeros(len(rows), np.int64)
        begun = np.flatnonzero(histories.lengths[rows] > 0)
        last = histories.item_index[histories.offsets[rows[begun] + 1] - 1]
        num_known[begun] = self.truth.locate(users[begun], self._world_item[last])
        if np.any(num_known < 0):
            b = rows[int(np.argmax(num_known < 0))]
            raise DataError(
                "the oracle knows readers by the log of the world alone: the latest item of a "
                f"history must be one that its reader took; row {b} of user_index "
                f"{histories.user_index[b]} ends on item {histories.row(int(b))[-1]}. "
                "Ask about a made-up history as an unknown reader, user_index -1"
            )
        return users, num_known

    @cached_property
    def _for_strangers(self) -> np.ndarray:
        """The mean p of readers at their first step, in catalogue order. (N,), float32."""
        step = -(-self.truth.num_users // MAX_STRANGER_SAMPLE)
        users = np.arange(0, self.truth.num_users, step)
        p = self.truth.next_item_probabilities(users, np.zeros(len(users), np.int64))
        return p.mean(axis=0)[self._world_item].astype(np.float32)


def _numbers(ids: list[str], prefix: str, limit: int) -> np.ndarray:
    """Return the world indices that ids such as ``book-00042`` name."""
    digits = [i.removeprefix(prefix) if i.startswith(prefix) else "" for i in ids]
    numbers = np.array([int(d) if d.isdecimal() else -1 for d in digits], dtype=np.int64)
    if np.any((numbers < 0) | (numbers >= limit)):
        wrong = ids[int(np.argmax((numbers < 0) | (numbers >= limit)))]
        raise DataError(
            f"every id must be one of the planted world's, such as {prefix}42; got {wrong!r}. "
            "Was the world/ folder exchanged? Run `reasonrec prepare planted` again"
        )
    return numbers

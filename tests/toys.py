"""Small real stand-ins that several tests share. No mocks: everything here does what it says."""

from pathlib import Path

import numpy as np
import polars as pl

from reasonrec.data.dataset import Catalogue, Dataset, InteractionLog, Queries
from reasonrec.records import Histories, Link, Lookup, Scored


def toy_dataset(
    rows: list[list[int]], titles: list[str], *, timestamps: bool = True, ratings: bool = False
) -> Dataset:
    """Return a leave-one-out data set of one row of item indices per user, oldest first.

    Users are ``u0``, ``u1``, ...; items ``i0``, ``i1``, .... The last event of a row of three or
    more is the test target, the one before it the validation target; event n of any user happens at
    second ``100 * (n + 1)``, and is rated ``1 + n % 5`` where there are ratings.
    """
    log_items = np.array([item for row in rows for item in row], np.int32)
    log_times = np.array([100 * (n + 1) for row in rows for n in range(len(row))], np.int64)
    log_ratings = np.array([1 + n % 5 for row in rows for n in range(len(row))], np.float32)
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    asking = [user for user, row in enumerate(rows) if len(row) >= 3]

    def queries(from_end: int) -> Queries:
        stops = np.array([starts[user + 1] - from_end for user in asking], np.int64)
        return Queries(
            user_index=np.array(asking, np.int32),
            target=log_items[stops] if asking else np.empty(0, np.int32),
            history_start=np.array([starts[user] for user in asking], np.int64),
            history_stop=stops,
            log_item_index=log_items,
            log_rating=log_ratings if ratings else None,
            log_timestamp=log_times if timestamps else None,
            timestamp=log_times[stops] if timestamps and asking else None,
        )

    trained = [row[:-2] if len(row) >= 3 else row for row in rows]
    train_ratings = [1 + n % 5 for row in trained for n in range(len(row))]
    train_times = [100 * (n + 1) for row in trained for n in range(len(row))]
    return Dataset(
        name="toy",
        split="leave-one-out",
        folder=Path("toy"),
        fingerprint="toy",
        catalogue=Catalogue(
            pl.DataFrame({"item_id": [f"i{i}" for i in range(len(titles))], "title": titles})
        ),
        user_ids=[f"u{u}" for u in range(len(rows))],
        train=InteractionLog(
            user_index=np.repeat(np.arange(len(rows)), [len(row) for row in trained]).astype(
                np.int32
            ),
            item_index=np.array([item for row in trained for item in row], np.int32),
            num_users=len(rows),
            rating=np.array(train_ratings, np.float32) if ratings else None,
            timestamp=np.array(train_times, np.int64) if timestamps else None,
        ),
        valid=queries(2),
        test=queries(1),
        statistics={},
    )


class NextInLine:
    """Likes the item after the last one of the history best, then the one after it, and so on.

    Without history it likes items in catalogue order. Its thought names the last item, and its
    evidence is user 0, who went from the last item to the next one.
    """

    name = "next-in-line"

    def __init__(self, num_items: int, *, thinks: bool = True) -> None:
        self.num_items, self.thinks = num_items, thinks

    def score(self, histories: Histories) -> Scored:
        num_rows, num_items = len(histories), self.num_items
        last = np.array(
            [row[-1] if len(row) else -1 for row in map(histories.row, range(num_rows))], np.int64
        )
        steps = (np.arange(num_items)[None, :] - last[:, None] - 1) % num_items  # (B, N)
        scores = (num_items - steps).astype(np.float32)
        if not self.thinks:
            return Scored(scores)
        link = [Link(int((i + 1) % num_items), 1.5, 2, 0) for i in last]
        return Scored(
            scores,
            thoughts=tuple(f"after item {i} comes the next" for i in last),
            num_tokens=np.full(num_rows, 5, np.int64),
            evidence=tuple(
                () if i < 0 else (Lookup(int(i), (one,)),) for i, one in zip(last.tolist(), link)
            ),
        )

"""Audits of the log and its split: duplicates, repeats, ties, and what training holds too late."""

import numpy as np

from reasonrec.data.dataset import Dataset, Queries
from reasonrec.evaluation.audits.records import Audit, judged, share


def log_audits(dataset: Dataset) -> list[Audit]:
    """Return what the log itself makes doubtful about results on its test queries."""
    statistics, test = dataset.statistics, dataset.test
    log = statistics.get("log", {})
    rejected = statistics.get("rejected", {}).get("interactions", {})
    num_rows = int(log.get("rows", 0))
    duplicates = sum(count for reason, count in rejected.items() if "duplicate" in reason)
    repeats = test.is_repeat
    rows = [
        judged(
            "duplicate-rows", duplicates / num_rows if num_rows else None,
            "Share of the raw rows that say again what an earlier one said; they were set aside.",
            n=num_rows, warn_above=0.01,
        ),
        judged(
            "repeats", log.get("frac_repeats"),
            "Share of the events whose item the user had taken before.",
            n=int(log.get("events", 0)), warn_above=0.05,
        ),
        judged(
            "repeated-targets", share(repeats),
            "Share of the test targets that stand in their own history. The default mask leaves "
            "the rest of it out: a method finds them by putting what was taken before first.",
            n=len(test), warn_above=0.01,
        ),
    ]  # fmt: skip
    if test.timestamp is None or dataset.train.timestamp is None:
        untimed = "The log has no times: order is that of the file, and newer evidence is not known"
        return [
            *rows,
            *(
                judged(name, None, f"{untimed}.", n=0)
                for name in ("tied-times", "tied-targets", "own-future-in-train", "newer-in-train")
            ),
            target_in_train(dataset),
        ]
    newer = newer_in_train(dataset)
    is_strict = dataset.split == "global-time"
    return [
        *rows,
        judged(
            "tied-times", log.get("frac_tied_in_time"),
            "Share of the events with the time of the same user's event before: their order is "
            "that of the file.",
            n=int(log.get("events", 0)), warn_above=0.05,
        ),
        judged(
            "tied-targets",
            None if test.log_timestamp is None else share(tied_targets(test)),
            "Share of the test targets with the time of the last history event: which came last "
            "is a guess.",
            n=len(test), warn_above=0.05,
        ),
        judged(
            "own-future-in-train", share(own_future_in_train(dataset)),
            "Share of the test queries whose user has a training event after the question.",
            n=len(test), fail_above=0.0,
        ),
        judged(
            "newer-in-train", float(newer.mean()) if len(newer) else None,
            "Share of the training events that are newer than the test question, mean over "
            "questions. Look-ups and chains leave them out; what goes with a whole history, "
            "weights and counts do not.",
            n=len(newer), warn_above=None if is_strict else 0.0,
            fail_above=0.0 if is_strict else None,
        ),
        target_in_train(dataset),
    ]  # fmt: skip


def target_in_train(dataset: Dataset) -> Audit:
    """Return how many (user, target) pairs of test are training pairs that no history explains."""
    test, train = dataset.test, dataset.train
    N = dataset.num_items
    pairs = np.unique(train.user_index.astype(np.int64) * N + train.item_index)
    asked = test.user_index.astype(np.int64) * N + test.target
    is_pair = np.isin(asked, pairs) & (test.user_index >= 0)
    found = is_pair & ~test.is_repeat
    return judged(
        "target-in-train", share(found),
        "Share of the test queries whose user and target are a training event, though the target "
        "is not in the history.",
        n=len(test), fail_above=0.0,
    )  # fmt: skip


def tied_targets(queries: Queries) -> np.ndarray:
    """Return which targets have the time of the last event before them. (Q,), bool."""
    assert queries.timestamp is not None and queries.log_timestamp is not None
    begun = queries.history_stop > queries.history_start
    tied = np.zeros(len(queries), bool)
    last = queries.log_timestamp[queries.history_stop[begun] - 1]
    tied[begun] = last == queries.timestamp[begun]
    return tied


def taken_later(queries: Queries) -> np.ndarray | None:
    """Return which targets are later than the last event before them, (Q,), bool.

    None where all are, or the data have no times.
    """
    if queries.timestamp is None or queries.log_timestamp is None:
        return None
    tied = tied_targets(queries)
    return ~tied if tied.any() else None


def own_future_in_train(dataset: Dataset) -> np.ndarray:
    """Return which test queries are older than a training event of their user. (Q,), bool."""
    train, test = dataset.train, dataset.test
    assert train.timestamp is not None and test.timestamp is not None
    newest = np.full(dataset.num_users, np.iinfo(np.int64).min)
    np.maximum.at(newest, train.user_index, train.timestamp)
    return (test.user_index >= 0) & (newest[test.user_index] > test.timestamp)


def newer_in_train(dataset: Dataset) -> np.ndarray:
    """Return the share of training events newer than each test query. (Q,), float64."""
    train, test = dataset.train, dataset.test
    assert train.timestamp is not None and test.timestamp is not None
    if not len(train):
        return np.zeros(len(test))
    times = np.sort(train.timestamp)
    return 1.0 - np.searchsorted(times, test.timestamp, side="right") / len(times)

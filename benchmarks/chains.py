"""Time graph building, look-ups and chains on one core, on a prepared folder or a made-up log.

    python benchmarks/chains.py --data runs/ml-100k
    python benchmarks/chains.py --num-events 10000000
    python benchmarks/chains.py --num-events 100000000 --planted --num-rows 2000

Prints one JSON object a line: what was timed, how many a second of CPU time of one thread, the peak
of resident memory so far, on which data, commit and machine.
"""

import itertools
import json
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np

from reasonrec.data.dataset import Dataset, InteractionLog
from reasonrec.data.planted.catalogue import build_catalogue
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.world import generate_block
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.chains import train_queries
from reasonrec.graph.config import READINGS
from reasonrec.graph.lookup import look_up
from reasonrec.graph.sampling import sample_chains
from reasonrec.machine import describe_machine

_SECONDS = 2.0
"""Least time that each measurement runs after a first run, which compiles; the best run counts."""


def made_up_log(num_events: int, *, seed: int = 0) -> tuple[InteractionLog, int]:
    """Return a log of 20 events a user and 50 an item, popular as in a Zipf law of exponent 0.8.

    Drawn a million events at a time, so that no more than the log itself is held.
    """
    rng = np.random.default_rng(seed)
    num_users, num_items = max(num_events // 20, 1), max(num_events // 50, 1)
    popularity = np.cumsum(1.0 / np.arange(1, num_items + 1) ** 0.8)
    items, times = np.empty((num_users, 20), np.int32), np.empty((num_users, 20), np.int64)
    for begin in range(0, num_users, 50_000):
        part = slice(begin, min(begin + 50_000, num_users))
        shape = items[part].shape
        items[part] = np.searchsorted(popularity, rng.random(shape) * popularity[-1])
        times[part] = np.sort(rng.integers(0, 10**9, shape), axis=1)
    users = np.repeat(np.arange(num_users, dtype=np.int32), 20)
    return InteractionLog(users, items.ravel(), num_users, timestamp=times.ravel()), num_items


def planted_log(num_events: int, *, seed: int = 0) -> tuple[InteractionLog, int]:
    """Return the log of a planted shop: 20 events a reader and 50 a book, at most 100,000 books.

    Each block goes into its place as it is generated, so that no more than the log itself is held.
    """
    config = PlantedConfig(
        num_users=max(num_events // 20, 1),
        num_items=min(max(num_events // 50, 40), 100_000),
        min_events=20,
        max_events=20,
        users_per_block=20_000,
    )
    catalogue = build_catalogue(config, seed)
    items = np.empty((config.num_users, 20), np.int32)
    times = np.empty((config.num_users, 20), np.int64)
    for number in range(config.num_blocks):
        part = slice(number * config.users_per_block, (number + 1) * config.users_per_block)
        block = generate_block(config, catalogue, seed, number)
        items[part], times[part] = block.item_index.reshape(-1, 20), block.timestamp.reshape(-1, 20)
    users = np.repeat(np.arange(config.num_users, dtype=np.int32), 20)
    log = InteractionLog(users, items.ravel(), config.num_users, timestamp=times.ravel())
    return log, config.num_items


def peak_gib() -> float:
    """Return the most memory that this process has held so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def run(
    *,
    data: Path | None = None,
    num_events: int = 1_000_000,
    planted: bool = False,
    num_rows: int = 50_000,
) -> None:
    """Print the speeds; ``data`` is a prepared folder, else a log is made up.

    Args:
        planted: Make it up by the planted shop of ``docs/planted.md`` rather than by a Zipf law.
    """
    if data is not None:
        dataset = Dataset.load(data)
        name, log, num_items = dataset.name, dataset.train, dataset.num_items
    else:
        log, num_items = (planted_log if planted else made_up_log)(num_events)
        name = f"{'planted' if planted else 'zipf'}-{num_events}"
    machine = describe_machine(Path())
    asked_git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked_git, capture_output=True, text=True, check=True).stdout.strip()
    facts = {
        "data": name, "num_events": len(log), "num_users": log.num_users, "num_items": num_items,
        "commit": commit, "machine": f"{machine.cpu}, {machine.num_cores} cores", "num_threads": 1,
    }  # fmt: skip

    def report(what: str, num_things: int, work: Callable[[], Any]) -> None:
        """Take the best of several runs, since other work may disturb some of them."""
        work()
        best, begun = np.inf, time.thread_time()
        while time.thread_time() - begun < _SECONDS:
            start = time.thread_time()
            work()
            best = min(best, time.thread_time() - start)
        speed = round(num_things / best)
        print(
            json.dumps({"what": what, "per_second": speed, "peak_gib": peak_gib(), **facts}),
            flush=True,
        )

    InteractionGraph.build(*made_up_log(1000))  # compiles
    built: list[InteractionGraph] = []

    def build() -> None:
        built.clear()  # one at a time
        built.append(InteractionGraph.build(log, num_items))

    report("events built into a graph", len(log), build)
    graph = built[0]
    queries = train_queries(log, per_user=5)
    rows = np.sort(np.random.default_rng(0).permutation(len(queries))[:num_rows])
    queries = queries.take(rows)
    histories = queries.histories()
    ragged = (histories.item_index, histories.offsets)
    asked = {"user_index": queries.user_index, "asked_at": histories.asked_at, "seed": 0}
    via = histories.item_index[histories.offsets[1:] - 1]  # what the user took last
    for weighted in (True, False):
        report(
            f"look-ups, overlap weight {'on' if weighted else 'off'}",
            len(queries),
            lambda weighted=weighted: look_up(
                graph, via_item=via, exclude_items=ragged, overlap_weight=weighted, **asked
            ),
        )
    random_items = np.random.default_rng(1).integers(0, num_items, len(queries)).astype(np.int32)
    candidates: dict[str, np.ndarray | None] = {
        "candidate-closed on what was taken": queries.target,
        "candidate-closed on random items": random_items,
        "history-closed": None,
    }
    for what, candidate in candidates.items():
        reading = READINGS[1] if candidate is None else READINGS[0]
        # with what is asked where no chain closes, and the drawing of closed chains alone
        for num_chains, open_from in itertools.product((3, 10), (3, 0)):
            settings: dict[str, Any] = {"reading": reading, "num_chains": num_chains}
            settings |= {"open_from": open_from, "num_threads": 1}

            def work(candidate: Any = candidate, settings: Any = settings) -> Any:
                return sample_chains(graph, histories, candidate, seed=0, **settings)

            num_closed = int(work().is_closed.sum())
            fallback = "no fall-back" if open_from == 0 else "fall-back"
            report(f"closed chains, {num_chains} at most, {fallback}, {what}", num_closed, work)


if __name__ == "__main__":
    cyclopts.run(run)

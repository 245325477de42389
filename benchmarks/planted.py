"""Time and memory to write a planted world, and to ask its oracle.

python benchmarks/planted.py EVENTS [EVENTS ...], such as 1e6 1e7. Each size runs in a process of
its own, so that its peak memory is its own. Prints one JSON line a size.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.truth import WorldTruth
from reasonrec.data.planted.world import write_world
from reasonrec.machine import describe_machine

SEED = 1
NUM_QUERIES = 2_000


def measure(num_events: int) -> dict[str, object]:
    """Return what one size cost: seconds, peak memory and bytes on disk."""
    config = PlantedConfig(size="large", num_users=max(round(num_events / 22.5), 1))
    machine = describe_machine(Path())
    asked_git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked_git, capture_output=True, text=True, check=True).stdout.strip()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_world(folder / "warm", PlantedConfig(size="tiny"), SEED)  # compiles the kernels
        start = time.perf_counter()
        write_world(folder / "world", config, SEED)
        write_s = time.perf_counter() - start
        write_mib = _peak_mib()
        start = time.perf_counter()
        truth = WorldTruth.load(folder / "world")
        load_s = time.perf_counter() - start
        users = np.linspace(0, truth.num_users - 1, NUM_QUERIES).astype(np.int64)
        known = truth.num_events[users] - 1
        truth.next_item_probabilities(users[:1], known[:1])
        start = time.perf_counter()
        truth.next_item_probabilities(users, known)
        ask_s = time.perf_counter() - start
        log = folder / "world" / "interactions.parquet"
        return {
            "events": int(truth.num_events.sum()),
            "users": truth.num_users,
            "items": truth.num_items,
            "write_s": round(write_s, 2),
            "events_per_s": round(truth.num_events.sum() / write_s),
            "write_peak_mib": write_mib,
            "log_mib": round(log.stat().st_size / 2**20, 1),
            "load_s": round(load_s, 2),
            "peak_mib_with_truth": _peak_mib(),
            "oracle_ms_per_query": round(1000 * ask_s / NUM_QUERIES, 3),
            "commit": commit,
            "machine": f"{machine.cpu}, {machine.num_cores} cores",
        }


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(json.dumps(measure(int(float(sys.argv[1])))))
    else:
        for size in sys.argv[1:]:
            subprocess.run([sys.executable, __file__, size], check=True)

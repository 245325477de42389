"""Time and memory of `reasonrec prepare` on a synthetic log.

    python benchmarks/prepare.py [--rows 1000000] [--kind parquet|csv|jsonl]

Prints one JSON row: seconds, peak memory of the process that prepares, machine, versions. The log
is random: 20 events a user on average, item popularity falling like 1/rank, millisecond times, 1 %
of the rows broken. It is written first, by another process, so that its memory is not counted.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_log(folder: Path, num_rows: int, kind: str) -> None:
    """Write interactions and items of a synthetic shop."""
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(0)
    num_users, num_items = max(num_rows // 20, 3), max(num_rows // 50, 10)
    weights = 1 / np.arange(1, num_items + 1)
    items = rng.choice(num_items, size=num_rows, p=weights / weights.sum())
    times = 1_600_000_000_000 + rng.integers(0, 10**11, size=num_rows)
    times[rng.random(num_rows) < 0.01] *= -1
    log = pl.DataFrame(
        {
            "user_id": rng.integers(num_users, size=num_rows),
            "item_id": items,
            "rating": rng.integers(1, 6, size=num_rows).astype(np.float32),
            "timestamp": times,
        }
    ).with_columns(
        pl.format("user-{}", "user_id").alias("user_id"),
        pl.format("item-{}", "item_id").alias("item_id"),
    )
    catalogue = pl.DataFrame({"item": range(num_items)}).select(
        pl.format("item-{}", "item").alias("item_id"),
        pl.format("The {}th &amp; last thing", "item").alias("title"),
        pl.lit("A thing of the shop. " * 20).alias("description"),
    )
    for name, table in (("interactions", log), ("items", catalogue)):
        path = folder / f"{name}.{kind}"
        {"parquet": table.write_parquet, "csv": table.write_csv, "jsonl": table.write_ndjson}[kind](
            path
        )


def measure(folder: Path, out: Path, kind: str) -> None:
    """Prepare the log in this process and print what it took."""
    start = time.perf_counter()
    from reasonrec.data.prepare import prepare

    dataset = prepare(folder, out)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_gib = peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes or KiB
    import polars as pl

    print(
        json.dumps(
            {
                "events": dataset.statistics["log"]["rows"],
                "seconds": round(seconds, 2),
                "cpu_seconds": round(time.process_time(), 2),
                "peak_gib": round(peak_gib, 3),
                "kind": kind,
                "threads": pl.thread_pool_size(),
                "machine": platform.machine(),
                "polars": pl.__version__,
                "python": platform.python_version(),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--kind", choices=("parquet", "csv", "jsonl"), default="parquet")
    parser.add_argument("--phase", choices=("all", "write", "measure"), default="all")
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.phase == "write":
        write_log(arguments.folder, arguments.rows, arguments.kind)
    elif arguments.phase == "measure":
        measure(arguments.folder, arguments.folder / "out", arguments.kind)
    else:
        with tempfile.TemporaryDirectory() as folder:
            common = ["--rows", str(arguments.rows), "--kind", arguments.kind, "--folder", folder]
            for phase in ("write", "measure"):
                command = [sys.executable, __file__, "--phase", phase, *common]
                subprocess.run(command, check=True)


if __name__ == "__main__":
    main()

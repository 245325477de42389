"""Rows shared out over threads: the compiled loops hold no lock, and no row knows of another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numba

_PARTS_PER_THREAD = 4
"""More parts than threads, since rows differ in cost; not many more, since each has its scratch."""
_LEAST_ROWS = 256


def run_in_parts(
    work: Callable[[int, int], None], num_rows: int, *, num_threads: int | None = None
) -> None:
    """Call ``work(begin, end)`` for parts that cover all rows, on several threads at once.

    Args:
        num_threads: None for as many as numba uses (all cores, or ``NUMBA_NUM_THREADS``).
    """
    num_threads = numba.get_num_threads() if num_threads is None else num_threads
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1; got {num_threads}")
    num_parts = min(num_threads * _PARTS_PER_THREAD, -(-num_rows // _LEAST_ROWS))
    if num_threads == 1 or num_parts <= 1:
        work(0, num_rows)
        return
    bounds = [num_rows * part // num_parts for part in range(num_parts + 1)]
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))

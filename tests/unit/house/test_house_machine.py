"""What the process is told about memory changes what the system is asked for."""

import os
import platform
import subprocess
import sys

import pytest

from reasonrec.machine import KEEPS_FREED, num_usable_cores

COUNT_FAULTS = """
import resource, sys
import numpy as np
from reasonrec.machine import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()

def write_and_free():
    np.ones(1 << 23)  # 64 MiB, 16,384 pages

write_and_free()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    write_and_free()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_faults(*words, **more):
    command = [sys.executable, "-c", COUNT_FAULTS, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, **more)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing is changed")
def test_large_arrays_are_written_to_pages_that_were_freed_before():
    # huge pages may make few faults of many, so the two are compared
    assert num_faults("keep") < num_faults() / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing is changed")
def test_a_process_that_is_started_so_keeps_them_from_the_beginning():
    told = os.environ | {name: str(value) for name, value in KEEPS_FREED.items()}
    assert num_faults(env=told) < num_faults() / 4


COUNT_THREADS = """
import sys
import numba
import torch
from torch import nn
from reasonrec.evaluation.environment import describe_environment
from reasonrec.machine import settle_threads

torch.set_num_threads(2)
for width in sys.argv[1:]:
    settle_threads(nn.Linear(int(width), 100, bias=False))
    numba.get_num_threads()  # as graphs do, later
    print(torch.get_num_threads(), describe_environment().num_threads)
"""


@pytest.mark.parametrize(
    ("told", "small", "large"), [("", 1, min(2, num_usable_cores())), ("2", 2, 2)]
)
def test_a_small_model_is_worth_one_thread_unless_told_otherwise(told, small, large):
    widths = [99_999, 100_000, 1000, 100_000]  # of ten million weights, a hundred fewer, ...
    command = [sys.executable, "-c", COUNT_THREADS, *map(str, widths)]
    env = os.environ | {"OMP_NUM_THREADS": told, "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
    threads = [small, large, small, large]
    assert done.stdout.splitlines() == [f"{number} {number}" for number in threads]

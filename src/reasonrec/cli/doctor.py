"""``reasonrec doctor``: what is installed, what is missing, and what this machine can do."""

import json as json_format
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from reasonrec.errors import ReasonrecError
from reasonrec.machine import Checkup, check_up

REFERENCE_TOKENS_PER_S = 18_000
"""``train_tokens_per_s_all_threads`` of the two-core machine that the demo was sized on."""
REFERENCE_DEMO_MINUTES = 10
"""What the demo on the generated shop may take there at most."""


def doctor(*, folder: Path = Path(), measure: bool = True, json: bool = False) -> None:
    """Say what is installed, what is missing for which extra, and what this machine can do.

    Ends with exit code 1 only if something that every command needs is missing or broken.

    Examples:
        reasonrec doctor
        reasonrec doctor --no-measure
        reasonrec doctor --json --folder runs

    Args:
        folder: Where runs would be written; its disk is measured.
        measure: Time matrix products, memory, a tiny transformer and the disk.
        json: Print one JSON object instead of text.
    """
    root = os.environ.get("REASONREC_DATA")
    checkup = check_up(folder, data_root=Path(root) if root else None, measure=measure)
    if json:
        print(json_format.dumps(asdict(checkup), indent=2))
    else:
        console = Console(highlight=False)
        for line in describe(checkup, data_root=root):
            console.print(line, markup=line.startswith("[bold]"), soft_wrap=True)
    if checkup.broken:
        names = ", ".join(f"{p.name}{p.wanted} (found {p.installed})" for p in checkup.broken)
        raise ReasonrecError(f"every command needs {names}; install reasonrec again to get it")


def describe(checkup: Checkup, *, data_root: str | None) -> Iterator[str]:
    """Yield the lines of the report; those that start with ``[bold]`` are headings."""
    machine = checkup.machine
    yield "[bold]Machine"
    yield f"  {machine.cpu}, {machine.num_cores} cores, {machine.system}, Python {machine.python}"
    if machine.memory_gib is not None:
        free = machine.free_memory_gib
        yield f"  memory {machine.memory_gib:.1f} GiB" + (f", {free:.1f} free" if free else "")
    yield f"  disk {machine.free_disk_gib:.1f} GiB free"
    for gpu in checkup.accelerators:
        memory = f", {gpu.memory_gib:.0f} GiB" if gpu.memory_gib else ""
        yield f"  {gpu.name}{memory}: {'usable' if gpu.is_usable else 'NOT usable'}, {gpu.note}"
    if not checkup.accelerators:
        yield "  no GPU; everything runs on the CPU, in float32"
    yield from _describe_packages(checkup)
    yield "[bold]Data sets"
    for found in checkup.data_sets:
        rows = found.num_interactions
        size = f"{found.size_mib:8.1f} MiB"
        yield f"  {found.name:<20}{size}" + (f"  {rows:,} interactions" if rows is not None else "")
    if not checkup.data_sets:
        where = f"no folder with files in {data_root}" if data_root else "REASONREC_DATA is not set"
        yield f"  none: {where}. The generated shop needs no data."
    yield from _describe_speeds(checkup)


def _describe_packages(checkup: Checkup) -> Iterator[str]:
    for extra in sorted({package.extra for package in checkup.packages}):
        group = [package for package in checkup.packages if package.extra == extra]
        yield f"[bold]{'Extra ' + extra if extra else 'Needed by every command'}"
        if any(package.is_fit for package in group):
            yield "  " + ", ".join(f"{p.name} {p.installed}" for p in group if p.is_fit)
        unfit = [f"{p.name}{p.wanted} (found {p.installed})" for p in group if not p.is_fit]
        if unfit:
            cure = f": pip install 'reasonrec[{extra}]'" if extra else ""
            yield f"  missing: {', '.join(unfit)}{cure}"


def _describe_speeds(checkup: Checkup) -> Iterator[str]:
    speeds = checkup.speeds
    if speeds is None:
        return
    one, all_threads = speeds.train_tokens_per_s_one_thread, speeds.train_tokens_per_s_all_threads
    matmul = f"{speeds.matmul_gflops_one_thread:.0f} / {speeds.matmul_gflops_all_threads:.0f}"
    disk = speeds.disk_mib_per_s
    yield "[bold]Measured (float32; one thread / all threads)"
    yield f"  matrix product     {matmul} GFLOP/s"
    yield f"  tiny transformer   {one:,.0f} / {all_threads:,.0f} tokens/s in training"
    yield f"  memory             {speeds.memory_gib_per_s:.1f} GiB/s copied"
    yield f"  disk               {f'{disk:.0f} MiB/s' if disk else 'the folder is not writable'}"
    if all_threads < one:
        yield "  The cores are busy with other work now: more threads were slower than one."
    ratio = max(one, all_threads) / REFERENCE_TOKENS_PER_S
    yield (
        f"  This trains at {ratio:.1f} x the machine that the demo was sized on, which has up to "
        f"{REFERENCE_DEMO_MINUTES} minutes for it: expect about "
        f"{max(1, round(REFERENCE_DEMO_MINUTES / ratio))} or less here."
    )

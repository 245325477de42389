"""What this machine has, how fast it is, and how a process here comes by its memory."""

import ctypes
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

KEEPS_FREED = {"MALLOC_MMAP_MAX_": 0, "MALLOC_TRIM_THRESHOLD_": 1 << 30, "MALLOC_TOP_PAD_": 1 << 26}
"""The environment of a process that is to start as after ``keep_freed_memory``."""
_MALLOPT = {"MALLOC_MMAP_MAX_": -4, "MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2}
"""Numbers of the same settings in ``mallopt(3)``."""
_MATMUL_SIDE = 1024
_COPY_BYTES = 1 << 28
"""Far more than a cache holds."""
_DISK_BYTES = 1 << 26
_TINY_B, _TINY_T = 16, 128
INSTRUCTIONS = {
    "avx512f": "AVX-512", "avx2": "AVX2", "avx": "AVX", "sve2": "SVE2", "sve": "SVE",
    "asimd": "NEON",
}  # fmt: skip
"""Flags of Linux for instructions on several floats at once, widest first, and what they say."""
_SMALL_MODEL = 10_000_000
"""Parameters below which the products of a model are short beside what sharing them costs."""


@dataclass(frozen=True)
class Package:
    """One declared requirement, and what is installed of it."""

    name: str
    wanted: str
    """The range that this version of reasonrec asks for, such as ``>=2.8``; empty for any."""
    extra: str
    """The extra that asks for it; empty for what everything needs."""
    installed: str | None
    is_fit: bool
    """Installed, and within the range."""


@dataclass(frozen=True)
class Accelerator:
    """A device that torch could use instead of the CPU, tried with one small product."""

    name: str
    memory_gib: float | None
    is_usable: bool
    note: str


@dataclass(frozen=True)
class Machine:
    """The hardware and the operating system. Sizes in GiB, None where the system does not tell."""

    system: str
    python: str
    cpu: str
    """Name, and the widest instructions in brackets."""
    num_cores: int
    """Cores that this process may use: fewer than the machine's under a container's limit."""
    memory_gib: float | None
    free_memory_gib: float | None
    free_disk_gib: float


@dataclass(frozen=True)
class FoundDataset:
    """A folder below ``REASONREC_DATA`` that holds files."""

    name: str
    size_mib: float
    num_interactions: int | None
    """Rows of ``interactions.parquet``; None if there is no such file or it cannot be read."""


@dataclass(frozen=True)
class Speeds:
    """What was measured, best of several short trials. float32, as on every CPU run."""

    matmul_gflops_one_thread: float
    matmul_gflops_all_threads: float
    memory_gib_per_s: float
    """A large copy, bytes read plus bytes written."""
    train_tokens_per_s_one_thread: float
    """Forward, backward and update of a causal transformer of 2 layers, width 128."""
    train_tokens_per_s_all_threads: float
    disk_mib_per_s: float | None
    """Written and synchronised; None if the folder cannot be written to."""


@dataclass(frozen=True)
class Checkup:
    """All of the above, taken at one moment."""

    machine: Machine
    packages: list[Package]
    accelerators: list[Accelerator]
    data_sets: list[FoundDataset]
    speeds: Speeds | None
    """None if nothing was measured."""

    @property
    def broken(self) -> list[Package]:
        """What every command needs, and is missing or out of range."""
        return [package for package in self.packages if not package.extra and not package.is_fit]


def check_up(folder: Path, *, data_root: Path | None, measure: bool) -> Checkup:
    """Return what this machine has, and with ``measure`` how fast it is.

    Args:
        folder: Where runs would be written; its disk is meant. It need not exist yet.
        data_root: ``REASONREC_DATA``, or None if it is not set.
    """
    packages = check_packages()
    whole = all(package.is_fit for package in packages if not package.extra)
    return Checkup(
        machine=describe_machine(folder),
        packages=packages,
        accelerators=describe_accelerators() if whole else [],
        data_sets=find_data_sets(data_root) if data_root and whole else [],
        speeds=measure_speeds(folder) if measure and whole else None,
    )


def check_packages(distribution: str = "reasonrec") -> list[Package]:
    """Return every requirement that the installed ``distribution`` declares, core first.

    A source tree that was never installed declares none.
    """
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(words) for words in requires(distribution) or []]
        extras = ["", *(metadata(distribution).get_all("Provides-Extra") or [])]
    except PackageNotFoundError:
        return []
    found = []
    for wanted in declared:
        for extra in extras:
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
                continue  # of another extra, another system or another Python
            try:
                installed = version(wanted.name)
            except PackageNotFoundError:
                installed = None
            in_range = wanted.specifier.contains(installed or "0", prereleases=True)
            is_fit = installed is not None and in_range
            found.append(Package(wanted.name, str(wanted.specifier), extra, installed, is_fit))
            break  # what everything needs is not listed again under the extras
    return sorted(found, key=lambda package: (package.extra, package.name))


def describe_machine(folder: Path) -> Machine:
    """Return what the system says of itself; ``folder`` names the disk that is meant."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        cpu=cpu_name(),
        num_cores=num_usable_cores(),
        memory_gib=_pages_gib("SC_PHYS_PAGES"),
        free_memory_gib=_pages_gib("SC_AVPHYS_PAGES"),
        free_disk_gib=shutil.disk_usage(_existing(folder)).free / 2**30,
    )


def keep_freed_memory() -> bool:
    """Have large arrays come from memory that this process freed before; return whether it will.

    glibc asks the system for each large array and gives it back when it is freed, so that every
    score of a catalogue is written to pages that must first be found and cleared: a sixth of a
    training step on the CPU. Elsewhere, as on musl or macOS, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return all(mallopt(_MALLOPT[name], value) for name, value in KEEPS_FREED.items())


def num_usable_cores() -> int:
    """Return how many cores this process may keep busy, container quotas included."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(allowed or 1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit: the file is absent or says "max"
        return allowed or 1


def settle_threads(model: "nn.Module") -> None:
    """Give torch the threads that ``model``, on the CPU, is worth, unless OMP_NUM_THREADS says.

    One where the model is small: two gain it a seventh to a half on idle cores and cost it more
    than half of its speed as soon as another process runs, since threads spin while they wait for
    each other; and one thread sums in one order, whatever the machine. Torch's own number where it
    is large, but no more than there are usable cores: it does not know a container's quota.
    """
    import numba
    import torch

    if not os.environ.get("OMP_NUM_THREADS"):
        usual = _usual_threads()
        numba.get_num_threads()  # starts its threads, which sets torch's, too, on first use
        is_small = sum(weights.numel() for weights in model.parameters()) < _SMALL_MODEL
        torch.set_num_threads(1 if is_small else usual)


@cache
def _usual_threads() -> int:
    """Return what torch took before it was told anything here."""
    import torch

    return min(torch.get_num_threads(), num_usable_cores())


def describe_accelerators() -> list[Accelerator]:
    """Return the devices beside the CPU, each tried; a driver that torch cannot use is named."""
    import torch

    if torch.cuda.is_available():
        return [
            _try_device(
                f"cuda:{index}",
                torch.cuda.get_device_name(index),
                torch.cuda.get_device_properties(index).total_memory / 2**30,
            )
            for index in range(torch.cuda.device_count())
        ]
    if torch.backends.mps.is_available():
        return [_try_device("mps", "Apple GPU", None)]
    if shutil.which("nvidia-smi"):
        built = torch.version.cuda or "no CUDA"
        note = (
            f"a driver is here, but torch {torch.__version__} (built for {built}) does not see it"
        )
        return [Accelerator("NVIDIA GPU", None, False, note)]
    return []


def gpu_names() -> str:
    """Return the names of the GPUs that torch sees, the same one several times as ``2 x NAME``."""
    import torch

    if not torch.cuda.is_available():
        return ""
    names = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return ", ".join(
        f"{names.count(one)} x {one}" if names.count(one) > 1 else one
        for one in dict.fromkeys(names)
    )


def _try_device(device: str, name: str, memory_gib: float | None) -> Accelerator:
    import torch

    try:
        ones = torch.ones(64, 64, device=device)
        is_right = (ones @ ones).sum().item() == 64**3
    except RuntimeError as error:
        return Accelerator(name, memory_gib, False, str(error).splitlines()[0])
    return Accelerator(name, memory_gib, is_right, device if is_right else "computes wrongly")


def find_data_sets(root: Path) -> list[FoundDataset]:
    """Return the folders below ``root`` that hold files, by name."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = []
    for folder in folders:
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        if sizes:
            rows = _num_rows(folder / "interactions.parquet")
            found.append(FoundDataset(folder.name, sum(sizes) / 2**20, rows))
    return found


def _num_rows(path: Path) -> int | None:
    import polars as pl

    try:
        return pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()
    except (OSError, pl.exceptions.PolarsError):
        return None


def measure_speeds(folder: Path, *, trial_s: float = 0.25) -> Speeds:
    """Return what the CPU and the disk of ``folder`` do, in about ``12 * trial_s`` seconds."""
    import torch

    side, threads_before = _MATMUL_SIDE, torch.get_num_threads()
    a, b = torch.rand(side, side), torch.rand(side, side)
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    step = _tiny_training_step()
    matmul, tokens = [], []
    try:
        for num_threads in (1, num_usable_cores()):
            torch.set_num_threads(num_threads)
            matmul.append(2 * side**3 / _best_seconds(lambda: torch.mm(a, b), trial_s) / 1e9)
            tokens.append(_TINY_B * _TINY_T / _best_seconds(step, 2 * trial_s))
        copy_s = _best_seconds(lambda: target.copy_(source), trial_s)
    finally:
        torch.set_num_threads(threads_before)
    return Speeds(
        matmul_gflops_one_thread=matmul[0],
        matmul_gflops_all_threads=matmul[1],
        memory_gib_per_s=2 * _COPY_BYTES / copy_s / 2**30,
        train_tokens_per_s_one_thread=tokens[0],
        train_tokens_per_s_all_threads=tokens[1],
        disk_mib_per_s=_disk_mib_per_s(folder),
    )


def _tiny_training_step() -> Callable[[], object]:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, head_dim=32, use_cache=False,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens_B_T = torch.arange(_TINY_B * _TINY_T).reshape(_TINY_B, _TINY_T) % 2048

    def step() -> None:
        loss = model(input_ids=tokens_B_T, labels=tokens_B_T).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def _best_seconds(work: Callable[[], object], trial_s: float) -> float:
    """Return the shortest of the runs that fit into ``trial_s``, after one to warm up."""
    work()
    best, stop = float("inf"), time.perf_counter() + trial_s
    while best == float("inf") or time.perf_counter() < stop:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _disk_mib_per_s(folder: Path) -> float | None:
    block = os.urandom(1 << 20)
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            start = time.perf_counter()
            for _ in range(_DISK_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return _DISK_BYTES / 2**20 / (time.perf_counter() - start)
    except OSError:
        return None


def _existing(folder: Path) -> Path:
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _pages_gib(name: str) -> float | None:
    try:
        return os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def cpu_name(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the name of the processor and, where the system tells, its widest instructions.

    Machines that are rented say "AMD EPYC" of several generations. Libraries sum floats in other
    orders where instructions are wider, and a training that starts so ends with other numbers.
    """
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    flags = set((told.get("flags") or told.get("Features", "")).split())
    widest = next((word for flag, word in INSTRUCTIONS.items() if flag in flags), None)
    return name if widest is None else f"{name} ({widest})"

"""What numbers are computed with: machine, versions, threads, and the commit of this code."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from pydantic import Field

from reasonrec.config import Config
from reasonrec.machine import check_packages, describe_machine, gpu_names, num_usable_cores
from reasonrec.manifest import code_commit


class Environment(Config):
    """What the numbers were computed with. None: not recorded."""

    python: str | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    commit: str | None = None
    is_dirty: bool | None = None
    """Whether tracked files differed from the commit."""
    system: str | None = None
    cpu: str | None = None
    """Name, and in brackets the widest instructions: they decide how libraries sum floats."""
    num_cores: int | None = None
    num_threads: int | None = None
    """Of torch where it is loaded, else OMP_NUM_THREADS or all usable cores: sums of floats depend
    on it."""
    memory_gib: float | None = None
    gpu: str | None = None
    """Names of the GPUs that torch sees, or ``none``."""

    def differences(self, other: "Environment") -> list[str]:
        """Return what could move the last digits between two environments, in words.

        The commit is not among it: code that changes a number is what a reproduction looks for.
        """
        found = []
        for key in ("python", "system", "cpu", "num_threads"):
            was, now = getattr(self, key), getattr(other, key)
            if was is None or now is None:
                found.append(f"{key} was not recorded")
            elif was != now:
                found.append(f"{key}: was {was}, is {now}")
        if self.gpu is not None and self.gpu != other.gpu:  # None: from before it was recorded
            found.append(f"gpu: was {self.gpu}, is {other.gpu}")
        for name, was in self.packages.items():
            now = other.packages.get(name)
            if now != was:
                found.append(f"{name}: was {was}, is {now or 'not installed'}")
        return found


def describe_environment() -> Environment:
    """Return what this process computes with."""
    machine = describe_machine(Path.cwd())
    installed = {p.name: p.installed for p in check_packages() if not p.extra and p.installed}
    return Environment(
        python=machine.python,
        packages=installed,
        commit=code_commit(),
        is_dirty=_is_dirty(),
        system=machine.system,
        cpu=machine.cpu,
        num_cores=machine.num_cores,
        num_threads=_num_threads(),
        memory_gib=None if machine.memory_gib is None else round(machine.memory_gib, 1),
        gpu=gpu_names() or "none",
    )


def _num_threads() -> int:
    if "torch" in sys.modules:
        return sys.modules["torch"].get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() else num_usable_cores()


def code_fingerprint() -> str:
    """Return the SHA-256 of this package's modules, committed or not."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _is_dirty() -> bool | None:
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return None if changed is None else changed != ""


def _git(*words: str) -> str | None:
    """Return what git says of the tree that this code lies in; None where it is no tree of git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words],
            capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

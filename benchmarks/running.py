"""What the scripts that fill tables share: running commands, saying so, and changing defaults."""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from reasonrec.errors import CheckpointError
from reasonrec.evaluation.passport import read_passport
from reasonrec.manifest import read_manifest

ROOT = Path(__file__).parents[1]
UNKNOWN = "a processor that was not recorded"


def reasonrec(*words: object) -> None:
    """Run one command that anybody can type, on one thread: the numbers are then the same wherever
    they are made."""
    command = [str(word) for word in words]
    say(" ".join(["reasonrec", *command]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    subprocess.run(
        [sys.executable, "-m", "reasonrec", *command], check=True, env={**os.environ, **threads}
    )


def say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", flush=True)


def write_sections(page: Path, head: str, written: Mapping[str, str], order: Iterable[str]) -> None:
    """Write the sections of a page, one a set; those that are not in ``written`` stay.

    A section starts with its name after ``## ``; sets not in ``order`` are dropped.
    """
    before = page.read_text(encoding="utf-8").split("\n## ")[1:] if page.exists() else []
    sections = {text.split("\n")[0]: f"## {text.rstrip()}\n" for text in before} | dict(written)
    page.write_text(
        "\n".join([head, *(sections[name] for name in order if name in sections)]),
        encoding="utf-8",
    )


def merged(base: Mapping[str, object], changes: Mapping[str, object]) -> dict[str, object]:
    """Return nested tables, with the leaves of the second where both have one."""
    result = dict(base)
    for key, value in changes.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merged(below, value) if both else value  # pyright: ignore[reportArgumentType]
    return result


def processors(folders: Iterable[Path]) -> str:
    """Return the processors that runs were made on, as their passports have it."""
    found: set[str] = set()
    for folder in folders:
        try:
            found.add(read_passport(folder).runs[0].environment.cpu or "")
        except CheckpointError:  # kept without one, or of another version
            found.add("")
    unknown = [UNKNOWN] if not all(found) or not found else []
    return " and ".join([*sorted(filter(None, found)), *unknown])


def source(folder: Path) -> str:
    """Return what a trained folder is called in the manifest of its evaluation."""
    return str(read_manifest(folder)["fingerprint"])

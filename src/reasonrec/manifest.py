"""Stage folders: ``manifest.json`` is written last, so a folder without one is unfinished.

A manifest names what went in (with fingerprints), the resolved configuration, seed, versions and
commit, what came out, and how long it took. The same command on a finished folder with the same
inputs and configuration does nothing; with other inputs or configuration it is an error. A stage
that continues what an interrupted run left behind says in ``started.json`` what it was asked.
While a stage writes, no other process may write into its folder.
"""

import errno
import hashlib
import inspect
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from reasonrec import __version__
from reasonrec.errors import FREE_SPACE, FULL, CheckpointError, ReasonrecError, system_failure

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

FORMAT = 1
"""Raised when a stage's files change so that an older folder can no longer be read."""
STARTED = "started.json"
"""What an unfinished stage was asked, so that nothing else continues it."""
LOCK = ".lock"
"""Lies in a folder while a stage writes there; a kill leaves it behind, and it holds nobody up."""
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
_KEYS = {
    "stage": str, "inputs": dict, "config": dict, "outputs": dict, "fingerprint": str,
    "seconds": int | float,
}  # fmt: skip
_VERSIONS = ("reasonrec", "torch", "transformers", "numpy", "polars", "numba")


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, or of a finished stage folder's listed outputs."""
    path = Path(path)
    if path.is_dir():
        manifest = path / "manifest.json"
        if manifest.exists():
            return read_manifest(path)["fingerprint"]
        raise CheckpointError(f"{path} has no manifest.json: it is not a finished stage folder")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a finished stage folder.

    Raises:
        CheckpointError: There is none, it is damaged, or another version of the format wrote it.
    """
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if not Path(folder).is_dir():
            raise CheckpointError(
                f"the folder must exist, written by a command of reasonrec; found none at {folder}"
            ) from None
        raise CheckpointError(
            f"{folder} has no manifest.json. If a command was writing it, that did not finish: "
            "run the same command again and it continues. If it holds raw data, "
            "`reasonrec prepare` it first"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); remove the folder and run again"
        ) from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{folder} was written in format {found}, this version reads format {FORMAT}; "
            "write it again with this version, into another folder"
        )
    damaged = [key for key, kind in _KEYS.items() if not isinstance(manifest.get(key), kind)]
    if damaged:
        raise CheckpointError(
            f"{path} is damaged ({', '.join(damaged)}); remove the folder and run again"
        )
    return manifest


def changed_outputs(folder: Path) -> list[str]:
    """Return the outputs of a finished folder that are missing, or not as they were written."""
    changed = []
    for name, written in read_manifest(folder)["outputs"].items():
        try:
            if fingerprint(Path(folder) / name) != written:
                changed.append(name)
        except OSError:
            changed.append(name)
    return changed


def check_outputs(folder: Path) -> None:
    """Refuse a finished folder that is no longer what its stage wrote.

    Raises:
        CheckpointError: There is no sound manifest, or an output is missing, damaged or edited.
    """
    changed = changed_outputs(folder)
    if changed:
        raise CheckpointError(
            f"{', '.join(changed[:5])} in {folder} must be as the run wrote it; it is missing or "
            "was changed since. Put it back, or remove the folder and run again"
        )


def write_manifest(
    folder: Path,
    *,
    stage: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    outputs: list[str],
    seconds: float,
    seed: int | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``manifest.json`` over the named output files and return it.

    Args:
        inputs: Name of each input to its fingerprint.
        outputs: Files inside ``folder`` that make up the result; their hashes make the
            folder's own fingerprint.
        seconds: Wall-clock time that the stage took.
    """
    folder = Path(folder)
    hashes = {name: fingerprint(folder / name) for name in sorted(outputs)}
    manifest = {
        "format": FORMAT,
        "stage": stage,
        "inputs": dict(inputs),
        "config": dict(config),
        "seed": seed,
        "outputs": hashes,
        "fingerprint": hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest(),
        "versions": {"python": platform.python_version()} | _installed_versions(),
        "commit": code_commit(),
        "seconds": round(seconds, 3),
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **(extra or {}),
    }
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / "manifest.json", text)
    (folder / STARTED).unlink(missing_ok=True)
    return manifest


def write_whole(path: Path, text: str) -> None:
    """Write a file that is whole or as it was before, whatever ends the process meanwhile."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def is_finished(
    folder: Path,
    *,
    stage: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    seed: int | None,
    repairs: bool = False,
) -> bool:
    """Return whether this very stage already ended in ``folder``, and all it wrote is as it was.

    Args:
        repairs: The stage writes anew what was changed since, so that this is no error.

    Raises:
        CheckpointError: Something else did: another stage, configuration, seed or input; or an
            output was changed since. A folder is never overwritten silently.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").exists():
        return False
    asked = {"stage": stage, "inputs": dict(inputs), "config": dict(config), "seed": seed}
    _check_same(folder, "a finished run", read_manifest(folder), asked)
    if repairs:
        return not changed_outputs(folder)
    check_outputs(folder)
    return True


def start_stage(
    folder: Path,
    *,
    stage: str,
    inputs: Mapping[str, str],
    config: Mapping[str, Any],
    seed: int | None,
) -> None:
    """Note what an unfinished ``folder`` is for, before anything is written that can be continued.

    Raises:
        CheckpointError: An interrupted run left something there that was asked otherwise.
    """
    path = Path(folder) / STARTED
    asked = {"stage": stage, "inputs": dict(inputs), "config": dict(config), "seed": seed}
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else asked
    except ValueError:  # cut short: a kill here came before anything else was written
        found = asked
    _check_same(folder, "an interrupted run", found if isinstance(found, dict) else {}, asked)
    path.write_text(json.dumps(asked, ensure_ascii=False) + "\n", encoding="utf-8")


def make_folder(folder: Path) -> Path:
    """Return ``folder``, created if need be.

    Raises:
        ReasonrecError: It cannot be created or written to.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".write-probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may probe the same folder
    except OSError as error:
        raise ReasonrecError(
            f"the output folder must be writable; {folder}: {error.strerror or error}"
        ) from None
    return folder


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder`` during the block, which may open it once more.

    A finished folder is only read, by any number. The operating system lets go of the lock when its
    process ends, killed or not. Of processes that train together the first alone writes, and locks.

    Raises:
        CheckpointError: Another process writes there.
        ReasonrecError: It cannot be created or written to, or the disk is full.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    follows = os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"
    if follows or (folder / "manifest.json").exists():
        yield
        return
    path = make_folder(folder).resolve() / LOCK
    lock = FileLock(path, timeout=0, is_singleton=True)
    try:
        lock.acquire()
    except Timeout:
        raise CheckpointError(
            f"one process at a time may write into a folder; another is writing into {folder}. "
            "Wait until it has ended and run the same command again, or choose another --out"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        logger.warning(
            "%s lies on a file system without locks (%s): let one process at a time write there",
            folder, error.strerror,
        )  # fmt: skip
    try:
        yield
    except Exception as error:
        failure = system_failure(error)
        if failure is None or failure.errno not in FULL:
            raise
        raise ReasonrecError(
            f"the disk must have room for {folder}; it is full ({failure.strerror}). {FREE_SPACE}"
        ) from error
    finally:
        if lock.lock_counter <= 1:
            with suppress(OSError):  # Windows removes no file that is open
                path.unlink()  # while it is held: who opened it meanwhile opens anew
        lock.release()


def writes_alone(stage: Callable[P, T]) -> Callable[P, T]:
    """Return a stage that is the sole writer of its argument ``out`` while it runs."""
    signature = inspect.signature(stage)

    @wraps(stage)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with sole_writer(signature.bind(*args, **kwargs).arguments["out"]):
            return stage(*args, **kwargs)

    return alone


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """Yield a list that receives the seconds spent inside the block."""
    spent: list[float] = []
    start = time.perf_counter()
    try:
        yield spent
    finally:
        spent.append(time.perf_counter() - start)


def _check_same(
    folder: Path, what: str, found: Mapping[str, Any], asked: Mapping[str, Any]
) -> None:
    """Raise a ``CheckpointError`` where a folder was asked something else.

    A key that an earlier version did not have is as unset as one that is None.
    """
    for key, wanted in json.loads(json.dumps(asked)).items():
        if difference := _difference(json.loads(json.dumps(found.get(key))), wanted):
            raise CheckpointError(
                f"{folder} holds {what} with another {key}: {difference}. Choose another --out, "
                "or remove the folder to run it anew"
            )


def _difference(found: Any, wanted: Any) -> str:
    """Return what differs in words; an empty text where nothing does."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return "" if found == wanted else f"was {found!r}, now {wanted!r}"
    was, now = flat(found), flat(wanted)
    keys = [key for key in sorted({*was, *now}) if was.get(key) != now.get(key)]
    more = f"; and {len(keys) - 5} more" if len(keys) > 5 else ""
    return "; ".join(f"{k} was {was.get(k)!r}, now {now.get(k)!r}" for k in keys[:5]) + more


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        is_table = isinstance(value, dict) and value
        found |= flat(value, f"{prefix}{key}.") if is_table else {prefix + key: value}
    return found


def _installed_versions() -> dict[str, str]:
    found = {}
    for package in _VERSIONS:
        try:
            found[package] = __version__ if package == "reasonrec" else version(package)
        except PackageNotFoundError:
            continue
    return found


def code_commit() -> str | None:
    """Return the commit of this code; ``REASONREC_COMMIT`` says it where a container has no git."""
    if said := os.environ.get("REASONREC_COMMIT"):
        return said
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

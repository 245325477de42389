"""A word on the command line -> raw tables: a path, a set in ``REASONREC_DATA``, its publisher."""

import os
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from reasonrec.data.fetch import PUBLISHED, fetch
from reasonrec.data.raw import RawTables
from reasonrec.data.sources import amazon, minionerec, movielens, recbole, tables
from reasonrec.errors import DataError

MAX_UNPACKED_BYTES = 50 * 2**30


@dataclass(frozen=True)
class Layout:
    """One published arrangement of raw files."""

    description: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path], RawTables]


def layouts() -> tuple[Layout, ...]:
    """Return every layout that can be read; the first that recognises a folder reads it."""
    modules = (tables, movielens, amazon, recbole, minionerec)
    return tuple(Layout(m.LAYOUT, m.recognises, m.read) for m in modules)


def locate(source: str | Path) -> Path:
    """Return the file or folder that ``source`` means, fetched from its publisher if need be.

    Raises:
        DataError: It is no path, no set in ``REASONREC_DATA``, and no set that can be fetched.
    """
    path = Path(source)
    if path.exists():
        return path
    data = os.environ.get("REASONREC_DATA")
    if data and (Path(data) / source).exists():
        return Path(data) / source
    if str(source) in PUBLISHED:
        return fetch(str(source), _cache(data))
    where = f"REASONREC_DATA is {data}" if data else "REASONREC_DATA is not set"
    raise DataError(
        f"the source must be a folder, a file, or the name of a set; got {str(source)!r}. Either "
        f"put it into the folder that REASONREC_DATA names ({where}), or name one that can be "
        f"fetched from its publisher: {', '.join(PUBLISHED)}; `planted` needs no data at all"
    )


@contextmanager
def opened(path: Path, items: Path | None = None) -> Iterator[RawTables]:
    """Yield the raw tables of a folder, an archive, or an interactions file.

    Args:
        items: The item table, where ``path`` is an interactions file.

    Raises:
        DataError: Nothing there is in a known layout.
    """
    if path.is_file() and path.suffix == ".zip":
        with _unpacked(path) as folder:
            yield replace(_read_folder(folder), files={path.name: path})
    elif path.is_file():
        beside = items or tables.table_file(path.parent, "items")
        yield tables.read_pair(path, beside)
    elif items is not None:
        raise DataError(f"--items goes with an interactions file as source; {path} is a folder")
    else:
        archives = sorted(path.glob("*.zip"))
        if len(archives) == 1 and _recognised(path) is None:
            with opened(archives[0]) as raw:
                yield raw
        else:
            yield _read_folder(path)


def _read_folder(folder: Path) -> RawTables:
    found = _recognised(folder)
    if found is None:
        known = "".join(f"\n  - {layout.description}" for layout in layouts())
        names = sorted(path.name for path in folder.iterdir())[:10]
        raise DataError(
            f"{folder} must hold one of the known layouts; found {', '.join(names) or 'nothing'}. "
            f"Known:{known}\n  - one .zip with any of these"
        )
    place, layout = found
    return layout.read(place)


def _recognised(folder: Path) -> tuple[Path, Layout] | None:
    inner = [
        path for path in sorted(folder.iterdir()) if path.is_dir() and path.name[0] not in "._"
    ]
    for place in (folder, *(inner if len(inner) == 1 else ())):
        for layout in layouts():
            if layout.recognises(place):
                return place, layout
    return None


@contextmanager
def _unpacked(archive: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="reasonrec-") as folder:
        try:
            with zipfile.ZipFile(archive) as file:
                size = sum(member.file_size for member in file.infolist())
                if size > MAX_UNPACKED_BYTES:
                    raise DataError(f"{archive} would unpack to {size:,} bytes; unpack it yourself")
                file.extractall(folder)
        except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError) as error:
            raise DataError(f"{archive} cannot be unpacked ({error}); is it complete?") from None
        yield Path(folder)


def _cache(data: str | None) -> Path:
    if data:
        return Path(data)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "reasonrec"

"""Public data sets from their publisher, checked against the publisher's own checksum.

MovieLens may be used but not passed on, so it is never part of this project.
"""

import hashlib
import logging
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from reasonrec.errors import DataError

log = logging.getLogger(__name__)
GROUPLENS = "https://files.grouplens.org/datasets/movielens"
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Published:
    """An archive that its publisher offers for download."""

    file: str
    md5: str | None
    """As the publisher states it; None where the archive changes from time to time."""


PUBLISHED = {
    "ml-100k": Published("ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
    "ml-1m": Published("ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),
    "ml-10m": Published("ml-10m.zip", "ce571fd55effeba0271552578f2648bd"),
    "ml-20m": Published("ml-20m.zip", "cd245b17a1ae2cc31bb14903e1204af3"),
    "ml-25m": Published("ml-25m.zip", "6b51fb2759a8657d3bfcbfc42b592ada"),
    "ml-latest-small": Published("ml-latest-small.zip", None),
    "ml-latest": Published("ml-latest.zip", None),
}


def fetch(name: str, folder: Path, *, base_url: str = GROUPLENS) -> Path:
    """Return the archive of a published set, downloaded to ``folder/name`` unless it lies there.

    An archive without a published checksum is trusted once: its SHA-256 is written beside it, and
    any later copy must agree.

    Raises:
        DataError: The download fails, or the content is not what the publisher (or the first
            download) says.
    """
    published = PUBLISHED[name]
    archive = Path(folder) / name / published.file
    if archive.is_file():
        _check(archive, archive, published)
        return archive
    url = f"{base_url}/{published.file}"
    log.info("fetching %s", url)
    partial = archive.with_suffix(".zip.partial")
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as reply, partial.open("wb") as file:
            shutil.copyfileobj(reply, file, 1 << 20)
    except (urllib.error.URLError, OSError, ValueError) as error:
        partial.unlink(missing_ok=True)
        reason = getattr(error, "reason", None) or error
        raise DataError(
            f"{name} could not be fetched from {url} ({reason}). Either try again with a network, "
            f"or put the set into a folder {name} of the folder that REASONREC_DATA names"
        ) from None
    try:
        _check(partial, archive, published)
    except DataError:
        partial.unlink()
        raise
    partial.replace(archive)
    return archive


def _check(file: Path, archive: Path, published: Published) -> None:
    if published.md5 is not None:
        _agree(_digest(file, "md5"), published.md5, "MD5", "its publisher states", archive)
        return
    record = archive.with_suffix(".zip.sha256")
    found = _digest(file, "sha256")
    if record.is_file():
        stated = record.read_text(encoding="utf-8").strip()
        _agree(found, stated, "SHA-256", f"{record.name} recorded at the first download", archive)
    else:
        record.write_text(found + "\n", encoding="utf-8")
        log.warning("%s has no published checksum; its SHA-256 %s was recorded", archive, found)


def _agree(found: str, stated: str, kind: str, who: str, archive: Path) -> None:
    if found != stated:
        raise DataError(
            f"{archive} must have the {kind} that {who}, {stated}; it has {found}. Remove it and "
            "fetch it again"
        )


def _digest(file: Path, kind: str) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, kind).hexdigest()

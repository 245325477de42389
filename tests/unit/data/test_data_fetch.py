"""Sets are found by name or fetched with a checksum; the publisher is a server on this machine."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from reasonrec.data import fetch as fetching
from reasonrec.data.fetch import PUBLISHED, Published, fetch
from reasonrec.data.sources.locate import locate
from reasonrec.errors import DataError


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Yield the address of a publisher and the folder that it offers."""
    folder = tmp_path / "publisher"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_set_is_fetched_once_and_checked(
    publisher: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url, folder = publisher
    (folder / "pens.zip").write_bytes(b"pens")
    md5 = hashlib.md5(b"pens").hexdigest()
    monkeypatch.setitem(PUBLISHED, "pens", Published("pens.zip", md5))
    archive = fetch("pens", tmp_path / "data", base_url=url)
    assert archive == tmp_path / "data" / "pens" / "pens.zip"
    assert archive.read_bytes() == b"pens"
    (folder / "pens.zip").unlink()
    assert fetch("pens", tmp_path / "data", base_url=url) == archive


def test_content_that_is_not_what_the_publisher_states_is_refused_and_removed(
    publisher: tuple[str, Path], tmp_path: Path
):
    url, folder = publisher
    (folder / "ml-100k.zip").write_bytes(b"something else")
    with pytest.raises(DataError, match="must have the MD5 that its publisher states, 0e33842e"):
        fetch("ml-100k", tmp_path / "data", base_url=url)
    assert [path.name for path in (tmp_path / "data" / "ml-100k").iterdir()] == []


def test_without_a_published_checksum_the_first_download_is_recorded(
    publisher: tuple[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    url, folder = publisher
    (folder / "ml-latest-small.zip").write_bytes(b"first")
    archive = fetch("ml-latest-small", tmp_path / "data", base_url=url)
    recorded = archive.with_suffix(".zip.sha256").read_text().strip()
    assert recorded == hashlib.sha256(b"first").hexdigest()
    assert f"no published checksum; its SHA-256 {recorded} was recorded" in caplog.text
    archive.write_bytes(b"changed")
    with pytest.raises(DataError, match="recorded at the first download"):
        fetch("ml-latest-small", tmp_path / "data", base_url=url)


def test_a_failed_download_says_both_ways_to_get_the_set(
    publisher: tuple[str, Path], tmp_path: Path
):
    with pytest.raises(DataError, match="try again with a network, or put the set into a folder"):
        fetch("ml-1m", tmp_path / "data", base_url=publisher[0])
    assert list((tmp_path / "data" / "ml-1m").iterdir()) == []


def test_a_name_is_looked_up_in_the_named_folder_and_else_both_ways_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "pens").mkdir()
    monkeypatch.setenv("REASONREC_DATA", str(tmp_path))
    assert locate("pens") == tmp_path / "pens"
    with pytest.raises(DataError, match=r"REASONREC_DATA names .* or name one that can be fetched"):
        locate("nothing-of-the-kind")
    monkeypatch.delenv("REASONREC_DATA")
    with pytest.raises(DataError, match="REASONREC_DATA is not set"):
        locate("pens")


def test_every_stable_archive_has_a_checksum():
    without = {name for name, published in PUBLISHED.items() if published.md5 is None}
    assert without == {"ml-latest", "ml-latest-small"}  # GroupLens replaces these from time to time
    assert fetching.GROUPLENS.startswith("https://")

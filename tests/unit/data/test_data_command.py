"""``reasonrec prepare`` as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from reasonrec.cli import main

WriteShop = Callable[..., Path]
ROWS = [("ann", f"i{n}", 5, 1_600_000_000 + n) for n in range(4)]


def test_the_table_shows_counts_and_says_the_notes(
    write_shop: WriteShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main(["prepare", str(write_shop(ROWS)), "--out", str(tmp_path / "out"), "--min-rating", "4"])
    shown = capsys.readouterr().out
    assert "shop · leave-one-out" in shown
    assert "filter: rating at least 4" in shown
    assert "test queries" in shown
    assert (tmp_path / "out" / "manifest.json").exists()


def test_the_statistics_come_as_json(
    write_shop: WriteShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = str(write_shop(ROWS))
    main(["prepare", source, "--out", str(tmp_path / "out"), "--name", "pens", "--json"])
    statistics = json.loads(capsys.readouterr().out)
    assert statistics["name"] == "pens"
    assert statistics["log"]["events"] == 4


def test_a_planted_world_takes_a_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["prepare", "planted", "--size", "tiny", "--out", str(tmp_path / "out"), "--json"])
    assert json.loads(capsys.readouterr().out)["log"]["users"] == 120


def test_a_stated_failure_is_one_line_and_exits_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        main(["prepare", str(tmp_path), "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith(f"reasonrec: {tmp_path} must hold one of the known")


@pytest.mark.parametrize(
    "options",
    [["planted", "--kcore", "5"], ["shop", "--size", "tiny"], ["planted", "--split", "x"]],
)
def test_bad_usage_exits_with_2(tmp_path: Path, options: list[str]):
    with pytest.raises(SystemExit) as stop:
        main(["prepare", *options, "--out", str(tmp_path / "out")])
    assert stop.value.code == 2

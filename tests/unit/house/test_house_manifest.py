"""Stage folders: finished, unfinished, damaged, of another version, or of another run."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors import SafetensorError

from reasonrec.errors import CheckpointError, ReasonrecError, system_failure
from reasonrec.manifest import (
    FORMAT,
    LOCK,
    fingerprint,
    is_finished,
    make_folder,
    read_manifest,
    sole_writer,
    stopwatch,
    write_manifest,
    writes_alone,
)


def finish(folder: Path, *, content: str = "1", config: dict[str, object] | None = None) -> Path:
    make_folder(folder)
    (folder / "table.csv").write_text(content, encoding="utf-8")
    write_manifest(
        folder,
        stage="chains",
        inputs={"data": "abc"},
        config=config or {"max_hops": 3},
        outputs=["table.csv"],
        seconds=1.5,
        seed=7,
    )
    return folder


def asked(**changes):
    return {
        "stage": "chains", "inputs": {"data": "abc"}, "config": {"max_hops": 3}, "seed": 7
    } | changes  # fmt: skip


def test_a_finished_folder_is_finished_for_the_same_question(tmp_path):
    assert is_finished(finish(tmp_path / "run"), **asked())


def test_a_folder_without_a_manifest_is_unfinished(tmp_path):
    assert not is_finished(tmp_path, **asked())
    assert not is_finished(tmp_path / "absent", **asked())
    with pytest.raises(CheckpointError, match="run the same command again and it continues"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "traces"}, "another stage: was 'chains', now 'traces'"),
        ({"config": {"max_hops": 5}}, "another config: max_hops was 3, now 5"),
        ({"seed": 8}, "another seed: was 7, now 8"),
        ({"inputs": {"data": "def"}}, "another inputs: data was 'abc', now 'def'"),
    ],
)
def test_a_folder_of_another_run_is_never_taken_for_this_one(tmp_path, changes, message):
    folder = finish(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        is_finished(folder, **asked(**changes))


def test_a_configuration_counts_as_equal_after_the_way_through_json(tmp_path):
    folder = finish(tmp_path / "run", config={"cutoffs": (1, 5), "name": "é"})
    assert is_finished(folder, **asked(config={"cutoffs": (1, 5), "name": "é"}))


def test_a_key_that_an_earlier_version_did_not_have_counts_as_unset(tmp_path):
    folder = finish(tmp_path / "run")
    assert is_finished(folder, **asked(config={"max_hops": 3, "since": None}))
    with pytest.raises(CheckpointError, match="another config: since was None, now 5"):
        is_finished(folder, **asked(config={"max_hops": 3, "since": 5}))


@pytest.mark.parametrize("content", ["", "{", "\0", "[1, 2]", '"text"', "null"])
def test_a_damaged_manifest_is_a_stated_failure(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        read_manifest(tmp_path)


def test_a_folder_of_another_format_says_both_numbers(tmp_path):
    folder = finish(tmp_path / "run")
    manifest = read_manifest(folder) | {"format": FORMAT + 1}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    expected = rf"written in format {FORMAT + 1}, this version reads format {FORMAT}"
    with pytest.raises(CheckpointError, match=expected):
        read_manifest(folder)


def test_a_folder_has_the_fingerprint_of_what_it_holds(tmp_path):
    one, same = finish(tmp_path / "one"), finish(tmp_path / "same")
    other = finish(tmp_path / "other", content="2")
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_the_fingerprint_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, example B.1
    assert fingerprint(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_an_unfinished_folder_has_no_fingerprint(tmp_path):
    with pytest.raises(CheckpointError, match="not a finished stage folder"):
        fingerprint(tmp_path)


def test_an_output_that_was_not_written_leaves_no_manifest(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_manifest(
            tmp_path, stage="chains", inputs={}, config={}, outputs=["absent.csv"], seconds=0.0
        )
    assert not (tmp_path / "manifest.json").exists()


def test_a_manifest_names_versions_seed_and_time(tmp_path):
    manifest = read_manifest(finish(tmp_path / "run"))
    assert manifest["seed"] == 7
    assert manifest["seconds"] == 1.5
    assert {"python", "reasonrec", "torch", "polars"} <= manifest["versions"].keys()
    assert manifest["written_at"].endswith("Z")


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ReasonrecError, match=r"must be writable; .*file"):
        make_folder(tmp_path / "file" / "run")


def test_a_folder_that_nobody_may_write_to_is_refused(tmp_path):
    # root may write where the mode forbids it, so root gets a place that refuses everyone
    folder = Path("/proc/run") if os.geteuid() == 0 else tmp_path / "shut"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o500)
    with pytest.raises(ReasonrecError, match="must be writable"):
        make_folder(folder)


def test_making_a_folder_leaves_nothing_in_it(tmp_path):
    assert list(make_folder(tmp_path / "a" / "b").iterdir()) == []


@contextmanager
def another_writer(folder):
    """Yield another process while it writes into the folder."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from reasonrec.manifest import sole_writer\n"
        "with sole_writer(Path(sys.argv[1])):\n"
        "    print('writes', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writes\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_that_another_process_writes_into_is_refused_until_that_process_is_killed(
    tmp_path,
):
    folder = tmp_path / "run"

    @writes_alone
    def stage(number, *, out):
        return number, [path.name for path in out.iterdir()]

    with another_writer(folder) as process:
        with pytest.raises(CheckpointError, match=f"another is writing into {folder}. Wait until"):
            stage(1, out=folder)
        process.kill()
        process.wait()
        assert [path.name for path in folder.iterdir()] == [LOCK]
        assert stage(2, out=folder) == (2, [LOCK])
    assert list(folder.iterdir()) == []


def test_a_stage_within_a_stage_may_write_into_the_same_folder(tmp_path):
    with sole_writer(tmp_path):
        with sole_writer(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


def test_a_finished_folder_is_read_by_any_number(tmp_path):
    with another_writer(tmp_path):
        finish(tmp_path)
        with sole_writer(tmp_path):
            assert is_finished(tmp_path, **asked())


def test_a_file_system_without_locks_is_told_and_written_to(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with sole_writer(tmp_path):
        pass
    assert "on a file system without locks (No locks available): let one process" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_of_processes_that_train_together_the_first_alone_locks(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with another_writer(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with sole_writer(tmp_path):
            pass
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(CheckpointError, match="one process at a time"), sole_writer(tmp_path):
            pass


def write_bytes(path):
    path.write_bytes(bytes(100))


def write_table(path):
    pl.DataFrame({"a": [1]}).write_parquet(path)


def write_tensor(path):
    with path.open("wb", buffering=0) as file:
        torch.save(torch.zeros(100), file)


@pytest.mark.parametrize("write", [write_bytes, write_table, write_tensor])
def test_a_full_disk_is_told_with_the_folder_and_what_goes_on(tmp_path, write):
    full = Path("/dev/full")  # takes nothing: as a disk without room
    if not full.is_char_device():
        pytest.skip("this system has no /dev/full")
    told = rf"room for {tmp_path}; it is full .*Free space and run the same command again; it goes"
    with pytest.raises(ReasonrecError, match=told), sole_writer(tmp_path):
        write(full)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SafetensorError("Error while serializing: I/O error: No space left (os error 28)"), 28),
        (Exception("Permission denied (os error 13)"), 13),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), 28),
    ],
)
def test_libraries_that_tell_of_the_system_in_words_are_understood(error, code):
    failure = system_failure(error)
    assert failure is not None
    assert (failure.errno, failure.strerror) == (code, str(error))
    assert system_failure(ValueError("28")) is None


def test_the_stopwatch_tells_the_time_of_a_block_that_failed():
    with pytest.raises(ZeroDivisionError), stopwatch() as spent:
        1 / 0  # noqa: B018
    assert spent[0] >= 0

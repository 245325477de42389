"""``reasonrec doctor``: packages, data sets, the machine and its speeds."""

import json
import os
import platform
import time
from pathlib import Path

import polars as pl
import pytest
import torch

from reasonrec import machine
from reasonrec.cli import main
from reasonrec.cli.doctor import describe

UNNAMED = platform.processor() or platform.machine()
"""What a processor is called that the system does not name."""


def install(folder: Path, name: str, *lines: str) -> None:
    """Write the metadata of an installed distribution, as an installer does."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    text = "\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *lines])
    (metadata / "METADATA").write_text(text + "\n", encoding="utf-8")


def test_what_we_need_is_installed_and_within_its_range():
    packages = machine.check_packages()
    needed = {package.name for package in packages if not package.extra}
    assert {"torch", "transformers", "polars", "numba"} <= needed
    assert "pytest" not in needed
    assert all(package.is_fit for package in packages if not package.extra)


def test_missing_old_and_foreign_requirements_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    install(
        tmp_path, "toyshop",
        "Requires-Dist: numpy>=1", "Requires-Dist: numpy>=999; extra == 'future'",
        "Requires-Dist: surely-absent", "Requires-Dist: surely-absent; sys_platform == 'amiga'",
        "Provides-Extra: future",
    )  # fmt: skip
    found = [(p.name, p.extra, p.is_fit) for p in machine.check_packages("toyshop")]
    assert found == [
        ("numpy", "", True), ("surely-absent", "", False), ("numpy", "future", False)
    ]  # fmt: skip


def test_a_missing_need_is_printed_and_ends_with_1(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    install(tmp_path, "reasonrec", "Requires-Dist: surely-absent>=2")
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert "missing: surely-absent>=2 (found None)" in captured.out
    assert captured.err.startswith("reasonrec: every command needs surely-absent>=2")


def test_a_missing_extra_says_how_to_get_it_and_is_no_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    install(
        tmp_path, "reasonrec", "Provides-Extra: moon", "Requires-Dist: absent; extra == 'moon'"
    )  # fmt: skip
    main(["doctor", "--no-measure"])
    assert "missing: absent (found None): pip install 'reasonrec[moon]'" in capsys.readouterr().out


def test_data_sets_are_folders_with_files_and_their_interactions_are_counted(tmp_path):
    for name in ("whole", "cut", "bare", "empty"):
        (tmp_path / name).mkdir()
    pl.DataFrame({"user_id": ["a", "b", "a"]}).write_parquet(
        tmp_path / "whole/interactions.parquet"
    )
    (tmp_path / "cut/interactions.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "bare/ratings.dat").write_bytes(b"x" * 2**20)
    found = machine.find_data_sets(tmp_path)
    assert [(each.name, each.num_interactions) for each in found] == [
        ("bare", None), ("cut", None), ("whole", 3)
    ]  # fmt: skip
    assert found[0].size_mib == 1.0


def test_a_data_folder_that_is_not_there_holds_nothing(tmp_path):
    assert machine.find_data_sets(tmp_path / "absent") == []


def test_the_report_names_the_data_sets_it_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "shop").mkdir()
    pl.DataFrame({"user_id": ["a"] * 1234}).write_parquet(tmp_path / "shop/interactions.parquet")
    monkeypatch.setenv("REASONREC_DATA", str(tmp_path))
    main(["doctor", "--no-measure"])
    assert "1,234 interactions" in capsys.readouterr().out
    monkeypatch.delenv("REASONREC_DATA")
    main(["doctor", "--no-measure"])
    assert "REASONREC_DATA is not set" in capsys.readouterr().out


def test_the_json_report_holds_machine_packages_and_speeds(capsys):
    main(["doctor", "--no-measure", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["machine"]["num_cores"] >= 1
    assert report["machine"]["free_disk_gib"] > 0
    assert report["speeds"] is None
    assert {"name", "wanted", "extra", "installed", "is_fit"} == report["packages"][0].keys()


def test_every_speed_is_measured_and_the_threads_are_given_back(tmp_path):
    before = torch.get_num_threads()
    speeds = machine.measure_speeds(tmp_path / "not" / "there" / "yet", trial_s=0.01)
    assert torch.get_num_threads() == before
    assert speeds.matmul_gflops_one_thread > 0.1
    assert speeds.memory_gib_per_s > 0.1
    assert speeds.train_tokens_per_s_all_threads > 1
    assert speeds.disk_mib_per_s is not None
    assert speeds.disk_mib_per_s > 0.1
    assert list(tmp_path.iterdir()) == []


def test_the_report_says_what_the_speed_means_for_the_demo():
    speeds = machine.Speeds(50, 100, 10, 18_000, 36_000, None)
    checkup = machine.Checkup(machine.describe_machine(Path()), [], [], [], speeds)
    lines = list(describe(checkup, data_root=None))
    # twice the 18,000 tokens/s of the reference, so half of its ten minutes
    assert "2.0 x" in lines[-1]
    assert "about 5 or less" in lines[-1]
    assert any("the folder is not writable" in line for line in lines)


def test_busy_cores_are_said_aloud_and_do_not_stretch_the_estimate():
    speeds = machine.Speeds(50, 10, 10, 9_000, 300, 100)
    checkup = machine.Checkup(machine.describe_machine(Path()), [], [], [], speeds)
    *_, busy, meaning = describe(checkup, data_root=None)
    assert "busy with other work" in busy
    assert "about 20 or less" in meaning  # one thread at half of the reference's 18,000 tokens/s


def test_a_driver_that_torch_cannot_use_is_shown_as_not_usable():
    gpu = machine.Accelerator("NVIDIA GPU", None, False, "torch was built without CUDA")
    checkup = machine.Checkup(machine.describe_machine(Path()), [], [gpu], [], None)
    assert any("NOT usable, torch was built" in line for line in describe(checkup, data_root=None))


def test_a_disk_that_refuses_writing_has_no_speed():
    assert machine._disk_mib_per_s(Path("/proc")) is None


def test_the_best_of_several_runs_counts_and_the_first_is_left_out():
    waits = iter([0.05, 0.02, 0.001] + [0.02] * 50)
    best = machine._best_seconds(lambda: time.sleep(next(waits)), 0.1)
    assert 0.001 <= best < 0.02


def test_usable_cores_are_at_most_those_of_the_machine():
    assert 1 <= machine.num_usable_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (["model name\t: Rented", "flags\t\t: fpu avx2 avx512f avx512_bf16"], "Rented (AVX-512)"),
        (["model name\t: Rented", "flags\t\t: fpu avx avx2 bmi2"], "Rented (AVX2)"),
        (["model name\t: Old", "flags\t\t: fpu sse2"], "Old"),
        (["CPU part\t: 0xd40", "Features\t: fp asimd sve"], f"{UNNAMED} (SVE)"),
        ([], UNNAMED),
    ],
)  # fmt: skip
def test_a_processor_is_told_from_another_of_its_name_by_its_instructions(tmp_path, lines, name):
    info = tmp_path / "cpuinfo"
    info.write_text("\n".join(lines), encoding="utf-8")
    assert machine.cpu_name(info) == name
    assert machine.cpu_name(tmp_path / "none") == UNNAMED

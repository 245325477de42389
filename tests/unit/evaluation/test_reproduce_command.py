"""``reproduce`` as it is typed, on a tiny planted world: equal numbers, and every way to drift."""

import json
import shutil

import pytest

from reasonrec.cli import main


def run(*arguments) -> None:
    main([str(argument) for argument in arguments])


def failure(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 1
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def floor(tmp_path_factory):
    """Return the evaluation of a planted world whose prepared folder is gone again."""
    folder = tmp_path_factory.mktemp("reproduce")
    run("prepare", "planted", "--size", "tiny", "--seed", 2, "--out", folder / "shop")
    methods = ["popularity", "follow-counter", "oracle"]
    run("evaluate", *methods, "--data", folder / "shop", "--out", folder / "floor", "--seed", 5)
    run("compare", folder / "floor", "--out", folder / "compared")
    shutil.rmtree(folder / "shop")
    return folder / "floor"


def tampered(folder, tmp_path, change) -> str:
    """Return the path of a copy of the folder's passport in which something was changed."""
    passport = json.loads((folder / "passport.json").read_text(encoding="utf-8"))
    change(passport)
    path = tmp_path / "tampered.json"
    path.write_text(json.dumps(passport), encoding="utf-8")
    return str(path)


def test_an_evaluation_made_again_gives_every_number_again(floor, tmp_path, capsys):
    run("reproduce", floor, "--out", tmp_path / "again")
    said = capsys.readouterr().out
    assert "same machine, versions and threads" in said
    found = json.loads((tmp_path / "again" / "reproduction.json").read_text())["drifts"]
    assert {one["verdict"] for one in found} == {"equal", "clock"}
    # 3 methods, 2 protocols, 15 metrics, and the tokens of each
    assert sum(one["verdict"] == "equal" and "popularity" in one["where"] for one in found) == 31
    assert any("raw interactions.parquet" in one["where"] for one in found)


def test_a_comparison_made_again_gives_every_difference_again(floor, tmp_path, capsys):
    run("reproduce", floor.parent / "compared", "--out", tmp_path / "again", "--json")
    found = json.loads(capsys.readouterr().out)["drifts"]
    differences = [one for one in found if one["where"].startswith("comparison")]
    assert len(differences) == 2 * 4  # two methods against the third, in four columns
    assert {one["verdict"] for one in differences} == {"equal"}


def test_a_number_that_does_not_come_out_again_fails_loudly(floor, tmp_path, capsys):
    def change(passport):
        passport["runs"][0]["rows"][0]["value"] += 0.001

    path = tampered(floor, tmp_path, change)
    with pytest.raises(SystemExit) as stopped:
        run("reproduce", path, "--out", tmp_path / "again")
    captured = capsys.readouterr()
    assert stopped.value.code == 1
    assert "drifted" in captured.out
    assert "1 of " in captured.err
    assert "numbers drifted beyond the stated noise" in captured.err
    assert "popularity, hit@1 full" in captured.err


def test_on_another_machine_the_interval_is_the_noise(floor, tmp_path, capsys):
    def change(passport):
        passport["runs"][0]["environment"]["cpu"] = "another"
        passport["runs"][0]["rows"][1]["value"] += 0.001

    path = tampered(floor, tmp_path, change)
    run("reproduce", path, "--out", tmp_path / "again")
    said = capsys.readouterr().out
    assert "may move by half the width of its interval, since cpu: was another" in said
    assert "within noise" in said
    message = failure(capsys, "reproduce", path, "--out", tmp_path / "again", "--tolerance", 0.0005)
    assert "1 of " in message


def test_other_data_fail_even_where_no_number_moves(floor, tmp_path, capsys):
    def change(passport):
        passport["runs"][0]["data"]["inputs"]["items.parquet"] = "0" * 64

    path = tampered(floor, tmp_path, change)
    assert "raw items.parquet" in failure(capsys, "reproduce", path, "--out", tmp_path / "again")


def test_a_trained_model_is_no_part_of_an_evaluation_to_make_again(floor, tmp_path, capsys):
    def change(passport):
        passport["runs"][0]["config"]["methods"]["demo-no-think"] = {"source": "a" * 64, "seed": 0}

    path = tampered(floor, tmp_path, change)
    message = failure(capsys, "reproduce", path, "--out", tmp_path / "again")
    assert "demo-no-think cannot be made again" in message
    assert not (tmp_path / "again").exists()


def test_a_passport_without_data_says_so_before_anything_runs(floor, tmp_path, capsys):
    path = tampered(floor, tmp_path, lambda passport: passport["runs"][0].update(data=None))
    message = failure(capsys, "reproduce", path, "--out", tmp_path / "again")
    assert "must name its data" in message


def test_no_passport_is_a_stated_failure(tmp_path, capsys):
    assert "found none" in failure(capsys, "reproduce", tmp_path, "--out", tmp_path / "again")

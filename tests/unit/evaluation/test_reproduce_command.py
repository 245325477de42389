"""``reproduce`` as it is typed, on a tiny planted world: equal numbers, and every way to drift."""

import json
import shutil

import pytest

from reasonrec.baselines.follow_counter import FollowCounter
from reasonrec.cli import main
from reasonrec.records import Scored


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


def test_code_that_gives_other_numbers_is_found_in_a_folder_of_its_own_and_nowhere_else(
    floor, tmp_path, capsys, monkeypatch
):
    message = failure(capsys, "reproduce", floor, "--out", floor.parent)
    assert "must be made in a folder of its own" in message
    assert "something else" in message
    run("reproduce", floor, "--out", tmp_path / "again")
    honest = FollowCounter.score
    monkeypatch.setattr(FollowCounter, "score", lambda *asked: Scored(-honest(*asked).scores))
    monkeypatch.setattr(
        "reasonrec.methods.repeatable.code_fingerprint", lambda: "of the changed code"
    )
    message = failure(capsys, "reproduce", floor, "--out", tmp_path / "again")
    assert "what was made for another code" in message
    message = failure(capsys, "reproduce", floor, "--out", tmp_path / "fresh")
    assert "numbers drifted beyond the stated noise" in message
    assert "follow-counter" in message


def test_settings_of_another_version_are_refused_before_anything_runs(floor, tmp_path, capsys):
    def change(passport):
        passport["runs"][0]["config"]["forgotten"] = 3
        passport["runs"][0]["environment"]["commit"] = "abcdef0123456789"

    path = tampered(floor, tmp_path, change)
    message = failure(capsys, "reproduce", path, "--out", tmp_path / "again")
    assert "forgotten: there is no such key" in message
    assert "git checkout abcdef0123" in message
    assert not (tmp_path / "again").exists()


def test_other_data_fail_even_where_no_number_moves(floor, tmp_path, capsys):
    def change(passport):
        passport["runs"][0]["data"]["inputs"]["items.parquet"] = "0" * 64

    path = tampered(floor, tmp_path, change)
    assert "raw items.parquet" in failure(capsys, "reproduce", path, "--out", tmp_path / "again")


def test_a_model_whose_making_is_not_told_cannot_be_made_again(floor, tmp_path, capsys):
    def change(passport):
        passport["runs"][0]["config"]["methods"]["demo-no-think"] = {"source": "a" * 64, "seed": 0}

    path = tampered(floor, tmp_path, change)
    message = failure(capsys, "reproduce", path, "--out", tmp_path / "again")
    assert "demo-no-think cannot be made again from it" in message
    assert "it, or what its --start names, was trained before recipes were kept" in message
    assert not (tmp_path / "again").exists()

    def learn_from_validation(passport):
        change(passport)
        passport["runs"][0]["rows"][0]["trained_on"] = "train+valid"

    path = tampered(floor, tmp_path, learn_from_validation)
    message = failure(capsys, "reproduce", path, "--out", tmp_path / "again")
    assert "`train r2ec --again RUN` rests on what was best in RUN" in message


def test_a_reproduction_whose_beginning_was_cut_short_is_told_or_begun_anew(
    floor, tmp_path, capsys
):
    out = tmp_path / "again"
    out.mkdir()
    for content in ("", "{", "[]", "\0"):
        (out / "begun.json").write_text(content)
        message = failure(capsys, "reproduce", floor, "--out", out)
        assert f"{out / 'begun.json'} must say what the reproduction there was begun for" in message
        assert f"Remove {out} and run again" in message
    (out / "begun.json").rename(out / "begun.json.partial")  # killed while it wrote
    (out / ".lock").touch()
    run("reproduce", floor, "--out", out)
    assert not (out / "begun.json.partial").exists()


def test_a_trained_model_is_made_again_with_all_that_it_started_from(tmp_path, capsys):
    shop, preset = tmp_path / "shop", tmp_path / "quick.toml"
    preset.write_text(
        'stages = ["no-think", "sft"]\nnum_valid_queries = 10\nhead.max_history = 8\n'
        "no_think.num_epochs = 1\nno_think.max_windows = 64\nsft.num_epochs = 1\n"
        "sft.max_windows = 32\nsft.num_branches = 1\nthought.num_lookups = 1\n"
        "tiny.width = 16\ntiny.num_layers = 1\ntiny.num_heads = 2\n"
        "tiny.feed_forward_width = 32\n"
    )
    run("prepare", "planted", "--size", "tiny", "--out", shop)
    words = ["--data", shop, "--config", preset, "--seed", 3]
    run("train", "no-think", *words, "--out", tmp_path / "a" / "no-think")
    run("train", "sft", *words, "--start", tmp_path / "a" / "no-think", "--out", tmp_path / "b")
    asked = ["--num-queries", 20, "--num-timed-users", 0]
    run(
        "evaluate", tmp_path / "b", "popularity", "--data", shop, "--out", tmp_path / "eval", *asked
    )
    told = json.loads((tmp_path / "eval" / "passport.json").read_text())["runs"][0]
    (label,) = told["models"]
    assert [told["models"][label][key] for key in ("what", "seed")] == ["sft", 3]
    assert told["models"][label]["start"]["what"] == "no-think"
    lines = [line.split() for line in told["commands"] if line.startswith("reasonrec")]
    assert [words[1] for words in lines] == ["prepare", "train", "train", "evaluate"]
    out = [words[words.index("--out") + 1] for words in lines]
    assert lines[2][lines[2].index("--start") + 1] == out[1]
    assert lines[3][2:4] == [out[2], "popularity"]
    for folder in (tmp_path / "a", tmp_path / "b", shop):
        shutil.rmtree(folder)
    run("reproduce", tmp_path / "eval", "--out", tmp_path / "again")
    assert "same machine, versions and threads" in capsys.readouterr().out
    found = json.loads((tmp_path / "again" / "reproduction.json").read_text())["drifts"]
    assert {one["verdict"] for one in found} == {"equal", "clock"}
    assert any("think-sft" in one["where"] for one in found)


def test_a_passport_without_data_says_so_before_anything_runs(floor, tmp_path, capsys):
    path = tampered(floor, tmp_path, lambda passport: passport["runs"][0].update(data=None))
    message = failure(capsys, "reproduce", path, "--out", tmp_path / "again")
    assert "must name its data" in message


def test_no_passport_is_a_stated_failure(tmp_path, capsys):
    assert "found none" in failure(capsys, "reproduce", tmp_path, "--out", tmp_path / "again")

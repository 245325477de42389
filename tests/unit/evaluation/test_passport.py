"""Passports, their commands, and how far a number may lie from its passport."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from reasonrec.cli import build_app
from reasonrec.config import read_toml
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.commands import (
    demo_command,
    evaluate_command,
    prepare_command,
    toml_lines,
)
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.drift import data_drifts, difference_drifts, row_drifts
from reasonrec.evaluation.passport import (
    Environment,
    Passport,
    RunPassport,
    describe_environment,
    read_passport,
    write_passport,
)
from reasonrec.evaluation.protocol import MetricRow
from reasonrec.machine import cpu_name
from reasonrec.manifest import read_manifest, write_manifest
from reasonrec.methods.r2ec_config import R2ecConfig

ROW = MetricRow(
    dataset="toy", split="leave-one-out", protocol="full", method="a", metric="ndcg@10",
    value=0.20, ci_low=0.18, ci_high=0.24, n=100, seed=0, trained_on="train", seconds=1.0,
)  # fmt: skip
TOKENS = replace(ROW, protocol="cost", metric="tokens", value=40.0, ci_low=None, ci_high=None)
LATENCY = replace(TOKENS, metric="latency-p50-ms", n=30)


def passport_of(*rows: MetricRow) -> RunPassport:
    return RunPassport(
        name="run", kind="evaluate", seed=0, seconds=1.0, data=None, config={}, commands=(),
        environment=Environment(), rows=rows,
    )  # fmt: skip


def verdicts(was: MetricRow, now: MetricRow, **settings) -> str:
    settings = {"is_exact": False, "tolerance": None} | settings
    (one,) = row_drifts(passport_of(was), [now], **settings)
    return one.verdict


def test_elsewhere_a_number_may_move_by_half_its_interval():
    # (.24 - .18) / 2 = .03
    assert verdicts(ROW, ROW) == "equal"
    assert verdicts(ROW, replace(ROW, value=0.225)) == "within noise"
    assert verdicts(ROW, replace(ROW, value=0.235)) == "drifted"
    assert verdicts(ROW, replace(ROW, ci_high=0.28)) == "drifted"
    assert verdicts(ROW, replace(ROW, value=0.225), tolerance=0.001) == "drifted"


def test_on_the_same_machine_the_last_digit_counts():
    assert verdicts(ROW, replace(ROW, value=0.2 + 1e-15), is_exact=True) == "drifted"
    assert verdicts(ROW, replace(ROW, seconds=9.0), is_exact=True) == "equal"


def test_another_number_of_queries_is_a_drift_anywhere():
    assert verdicts(ROW, replace(ROW, n=99)) == "drifted"


def test_clocks_are_not_held_and_tokens_are():
    assert verdicts(LATENCY, replace(LATENCY, value=900.0), is_exact=True) == "clock"
    assert verdicts(TOKENS, replace(TOKENS, value=41.5)) == "within noise"  # 5 % of 40 is 2
    assert verdicts(TOKENS, replace(TOKENS, value=43.0)) == "drifted"
    assert verdicts(TOKENS, replace(TOKENS, value=41.5), is_exact=True) == "drifted"


def test_a_number_that_is_missing_or_new_is_a_drift():
    other = replace(ROW, metric="hit@10")
    gone, new = row_drifts(passport_of(ROW), [other], is_exact=False, tolerance=9.0)
    assert (gone.was, gone.now, gone.verdict) == (0.2, None, "drifted")
    assert (new.was, new.now, new.verdict) == (None, 0.2, "drifted")


def test_a_difference_may_move_by_half_of_its_own_interval():
    was = {
        "protocol": "full", "method": "a", "metric": "hit@10", "reference": "b",
        "difference": 0.01, "ci_low": -0.01, "ci_high": 0.03, "n": 100,
    }  # fmt: skip
    for moved, verdict in ((0.0, "equal"), (0.015, "within noise"), (0.025, "drifted")):
        now = was | {"difference": 0.01 + moved}
        (one,) = difference_drifts([was], [now], is_exact=False, tolerance=None)
        assert one.verdict == verdict


def test_raw_data_must_be_the_same_bytes_and_prepared_ones_with_the_same_versions():
    was, now = {"items.parquet": "a" * 64}, {"items.parquet": "b" * 64}
    for what, is_exact, verdict in (
        ("raw", False, "drifted"),
        ("prepared", True, "drifted"),
        ("prepared", False, "within noise"),
    ):
        (one,) = data_drifts("run", was, now, is_exact=is_exact, what=what)
        assert one.verdict == verdict
    (gone,) = data_drifts("run", was, {}, is_exact=False, what="prepared")
    assert gone.verdict == "drifted"


def test_two_environments_differ_in_what_moves_a_last_digit():
    here = describe_environment()
    assert here.differences(here) == []
    assert here.packages["torch"]
    assert here.num_threads >= 1
    moved = here.model_copy(update={"num_threads": 99, "commit": "other", "memory_gib": 1.0})
    assert here.differences(moved) == [f"num_threads: was {here.num_threads}, is 99"]
    older = here.model_copy(update={"packages": here.packages | {"numpy": "1.0"}})
    assert older.differences(here) == [f"numpy: was 1.0, is {here.packages['numpy']}"]
    assert here.cpu == cpu_name(), "a name alone is that of several processors"
    assert "cpu was not recorded" in Environment().differences(here)


def test_a_passport_is_read_as_it_was_written(tmp_path):
    passport = Passport(
        written_at="2026-11-22T00:00:00Z",
        environment=describe_environment(),
        runs=(passport_of(ROW, TOKENS),),
    )
    path = write_passport(passport, tmp_path)
    assert read_passport(path) == read_passport(tmp_path) == passport


def test_what_is_no_passport_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="found none at"):
        read_passport(tmp_path)
    for text in ("{", "[]", '{"format": 2}', '{"format": 1, "runs": [], "extra": 0}'):
        (tmp_path / "passport.json").write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match="was not accepted"):
            read_passport(tmp_path)


def accept(line: str, tmp_path: Path) -> None:
    words = shlex.split(line)
    assert words[0] == "reasonrec"
    build_app(words[1:]).parse_args(words[1:], exit_on_error=False, print_error=False)


def test_commands_leave_defaults_unsaid_and_are_accepted(tmp_path):
    plain = PrepareConfig().model_dump(mode="json", exclude={"items"})
    line = prepare_command("my log.csv", plain, 0, out="shop")
    assert line == "reasonrec prepare 'my log.csv' --out shop --seed 0"
    changed = PrepareConfig(
        split="global-time", k_core=5, keep_duplicates=True, rating_scale=(1.0, 5.0),
        require_columns=("price", "brand"),
    )  # fmt: skip
    line = prepare_command("log", changed.model_dump(mode="json", exclude={"items"}), 3, out="x")
    required = "--require-columns price --require-columns brand"
    assert f"--split global-time {required} --k-core 5" in line.replace("  ", " ")
    accept(line, tmp_path)
    world = plain | {"planted": PlantedConfig(size="tiny", circle_size=3).model_dump(mode="json")}
    line = prepare_command("planted", world, 1, out="x")
    assert "--planted.size tiny --planted.circle-size 3" in line
    accept(line, tmp_path)
    config = EvaluateConfig(part="valid", protocols=("full", "candidates-50"), num_timed_users=0)
    methods = {"methods": {"popularity": {}, "item-knn": {}}}
    (line,) = evaluate_command(
        config.model_dump(mode="json") | methods, 4, data="d", out="o", candidates=None
    )
    assert line.startswith("reasonrec evaluate popularity item-knn --data d --out o --seed 4")
    assert "--protocols full --protocols candidates-50 --num-timed-users 0" in line
    accept(line, tmp_path)


def test_settings_that_a_baseline_was_given_stand_in_a_file_of_their_own(tmp_path):
    methods = {"ease": {"source": 'ease {"l2": 30.0}', "seed": 0}}
    config = EvaluateConfig().model_dump(mode="json") | {"methods": methods}
    first, setting, end, line = evaluate_command(config, 0, data="d", out="o", candidates="c.csv")
    assert (first, setting, end) == ("cat > o.toml <<'END'", "ease.l2 = 30.0", "END")
    assert line.endswith("--candidates c.csv --params o.toml")


def test_the_command_of_a_demo_brings_its_whole_preset(tmp_path):
    config = R2ecConfig().model_copy(update={"num_valid_queries": 17})
    data = PrepareConfig(split="given").model_dump(mode="json", exclude={"items"})
    resolved = {"seed": 2, "r2ec": config.model_dump(mode="json"), "evaluation": {"tune": 4}}
    resolved["evaluation"]["num_queries"] = 500
    first, *preset, end, line = demo_command(resolved, "office", data, 0, out="office-2")
    assert (first, end) == ("cat > office-2.toml <<'END'", "END")
    (tmp_path / "office-2.toml").write_text("\n".join(preset), encoding="utf-8")
    assert R2ecConfig.load(tmp_path / "office-2.toml") == config
    assert (
        "--seed 2 --preset office-2.toml --prepare.split given --tune 4 --num-queries 500" in line
    )
    accept(line, tmp_path)


def test_lines_of_toml_read_back_as_the_keys_they_came_from(tmp_path):
    keys = {"a": {"b": 1, "c": [0.1, 0.2], "d": None}, "e": 'say "é"', "f": True}
    (tmp_path / "x.toml").write_text("\n".join(toml_lines(keys)), encoding="utf-8")
    assert read_toml(tmp_path / "x.toml") == {"a": {"b": 1, "c": [0.1, 0.2]}} | {
        key: keys[key] for key in "ef"
    }


def test_a_container_without_git_says_its_commit_in_both_places(monkeypatch, tmp_path):
    monkeypatch.setenv("REASONREC_COMMIT", "abc123")
    assert describe_environment().commit == "abc123"
    write_manifest(tmp_path, stage="prepare", inputs={}, config={}, outputs=[], seconds=0.0, seed=0)
    assert read_manifest(tmp_path)["commit"] == "abc123"

"""The search of settings: what is tried, what is kept, what is read, and how it is continued."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from reasonrec.baselines.floor import BASELINES, CONFIGS, fit_floor
from reasonrec.cli import main
from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.errors import CheckpointError, ConfigError, DataError
from reasonrec.evaluation.protocol import evaluate
from reasonrec.evaluation.tuning import SPACES, read_params, tune_baseline, tune_baselines
from reasonrec.evaluation.tuning_config import TuneConfig
from toys import toy_dataset

TITLES = [f"item {i}" for i in range(20)]


def ring_dataset(seed=0, timestamps=True):
    """Everybody walks the ring of items, one step at a time, from a place of their own."""
    rng = np.random.default_rng(seed)
    starts, lengths = rng.integers(20, size=80), rng.integers(4, 9, size=80)
    rows = [[int((s + step) % 20) for step in range(n)] for s, n in zip(starts, lengths)]
    return toy_dataset(rows, TITLES, timestamps=timestamps)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "data"
    prepare_planted(folder, PlantedConfig(size="tiny"), None, 0)
    return folder


def run(*arguments):
    main([str(argument) for argument in arguments])


def failure(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    return stopped.value.code, capsys.readouterr().err


@pytest.mark.parametrize("name", BASELINES)
def test_every_space_is_made_of_values_that_its_baseline_accepts(name):
    fields = BASELINES[name].config.model_fields
    for key, values in SPACES[name].items():
        assert fields[key].default in values or fields[key].default > max(values), key
        for value in values:
            BASELINES[name].config.model_validate({key: value})
    assert list(SPACES) == list(CONFIGS)


@pytest.mark.parametrize("name", ["popularity", "recent-popularity", "item-knn", "ease", "bpr"])
def test_the_best_setting_is_the_best_of_all_trials_and_none_is_tried_twice(name):
    tuned = tune_baseline(name, ring_dataset(), TuneConfig(budget=10))
    assert tuned.best.value == max(trial.value for trial in tuned.trials)
    tried = [tuple(trial.settings.items()) for trial in tuned.trials]
    assert len(set(tried)) == len(tried)
    # popularity has nothing to set; half-lives have 9 values, and 30 is the default and one of them
    assert len(tried) == {"popularity": 1, "recent-popularity": 9}.get(name, 10)
    assert dict(tuned.trials[0].settings) == BASELINES[name].config().model_dump()


def test_a_grid_that_fits_into_the_budget_is_tried_whole():
    grid = {"follow-counter": {"num_steps": (1, 2, 5), "reverse_share": (0.0, 0.3)}}
    tuned = tune_baseline("follow-counter", ring_dataset(), TuneConfig(budget=6), spaces=grid)
    tried = [(t.settings["num_steps"], t.settings["reverse_share"]) for t in tuned.trials]
    assert tried[0] == (5, 0.3)  # the defaults
    assert sorted(tried) == [(s, r) for s in (1, 2, 5) for r in (0.0, 0.3)]


def test_the_second_half_of_the_budget_stays_near_the_best_trial():
    tuned = tune_baseline("follow-counter", ring_dataset(), TuneConfig(budget=40))
    assert_near_the_best(tuned.trials, 21)


def assert_near_the_best(trials, first):
    """From the ``first`` on, each trial changes one or two settings of the best before it."""
    for number, trial in enumerate(trials[first:], start=first):
        best = max(trials[:number], key=lambda one: one.value)
        changed = [key for key in best.settings if trial.settings[key] != best.settings[key]]
        assert 1 <= len(changed) <= 3  # two, and one more where a draw had been tried


def test_a_search_ends_with_the_minutes_but_not_before_four_trials():
    dataset, soon = ring_dataset(), TuneConfig(budget=40, minutes=1e-9)
    tuned = tune_baseline("follow-counter", dataset, soon)
    assert len(tuned.trials) == 4
    assert_near_the_best(tuned.trials, 1)
    grid = {"follow-counter": {"num_steps": (1, 2, 3, 5), "reverse_share": (0.0, 0.3)}}
    assert len(tune_baseline("follow-counter", dataset, soon, spaces=grid).trials) == 4


def test_the_second_half_of_the_minutes_stays_near_the_best_trial():
    dataset = ring_dataset()
    drawn = tune_baseline("follow-counter", dataset, TuneConfig(budget=14)).trials
    known = [replace(trial, fit_seconds=10.0, score_seconds=0.0) for trial in drawn]
    # 30 of the 70 seconds are spent after three trials, 40 after four
    config = TuneConfig(budget=14, minutes=70 / 60)
    trials = tune_baseline("follow-counter", dataset, config, known=known[:4]).trials
    assert trials[:4] == tuple(known[:4])
    assert_near_the_best(trials, 4)
    assert len(trials) == 14  # the others take next to no time


def test_a_ring_is_walked_forwards_and_the_search_finds_it():
    # the next item follows the last one: counting backwards and reading far back can only hurt
    tuned = tune_baseline("follow-counter", ring_dataset(), TuneConfig(budget=25))
    assert tuned.best.value == pytest.approx(1.0)
    item_knn = tune_baseline("item-knn", ring_dataset(), TuneConfig(budget=25))
    assert item_knn.best.value > item_knn.trials[0].value


def test_the_value_of_a_trial_is_what_evaluation_gives_on_validation():
    dataset = ring_dataset()
    tuned = tune_baseline("bpr", dataset, TuneConfig(budget=3, metric="mrr@5"), seed=2)
    method = fit_floor("bpr", dataset, seed=2, **tuned.best.settings)
    again = evaluate(method, dataset, part="valid", protocols=("full",))
    found = {row.metric: row.value for row in again.rows if row.protocol == "full"}
    assert tuned.best.value == found["mrr@5"]
    uncut = tuned.best.metrics["ndcg"]
    assert tuned.best.metrics == {**found, "ndcg": uncut}
    rank = again.per_query["rank"].to_numpy()
    assert uncut == pytest.approx(np.mean(1 / np.log2(1 + rank)))


@pytest.mark.parametrize("name", [n for n in BASELINES if "popularity" not in n])
def test_a_trial_that_reads_a_fitted_method_anew_is_the_same_as_one_that_is_fitted(name):
    dataset = ring_dataset()
    tuned = tune_baseline(name, dataset, TuneConfig(budget=12), seed=1)
    for trial in tuned.trials[-3:]:
        alone = evaluate(
            fit_floor(name, dataset, seed=1, **trial.settings), dataset, part="valid",
            protocols=("full",), num_timed_users=0,
        )  # fmt: skip
        assert {row.metric: row.value for row in alone.rows if row.protocol == "full"} == {
            metric: value for metric, value in trial.metrics.items() if metric != "ndcg"
        }


def test_tuning_never_reads_the_test_part():
    dataset = ring_dataset()
    test = dataset.test
    shuffled = type(test)(**{**vars(test), "target": test.target[::-1].copy()})
    changed = type(dataset)(**{**vars(dataset), "test": shuffled})
    for name in BASELINES:
        values = [
            [(t.settings, t.metrics) for t in tune_baseline(name, d, TuneConfig(budget=4)).trials]
            for d in (dataset, changed)
        ]
        assert values[0] == values[1]


def test_without_times_only_the_half_life_in_events_is_searched():
    tuned = tune_baseline("recent-popularity", ring_dataset(timestamps=False), TuneConfig())
    assert len({trial.settings["half_life_days"] for trial in tuned.trials}) == 1
    assert len({trial.settings["half_life_events"] for trial in tuned.trials}) == 8


def test_a_setting_that_cannot_be_fitted_is_a_trial_without_value():
    grid = {"bpr": {"learning_rate": (0.01, 1e30)}}
    tuned = tune_baseline("bpr", ring_dataset(), TuneConfig(budget=2), spaces=grid)
    first, second = tuned.trials
    assert tuned.best == first
    assert second.value is None
    assert "must stay finite; with learning_rate 1e+30" in (second.failure or "")


def test_nothing_to_validate_on_is_said():
    with pytest.raises(DataError, match="must hold validation queries to tune anything"):
        tune_baseline("ease", toy_dataset([[0, 1]], ["a", "b"]), TuneConfig())


def test_an_interrupted_search_goes_on_where_it_stopped(tmp_path):
    dataset, config = ring_dataset(), TuneConfig(budget=8)
    names = ["follow-counter", "ials"]
    whole = tune_baselines(names, dataset, tmp_path / "whole", config)
    stopped_at = ("ials", 3)

    def interrupt(name, done, total):
        if (name, done) == stopped_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_baselines(names, dataset, tmp_path / "cut", config, progress=interrupt)
    path = tmp_path / "cut" / "trials.jsonl"
    assert len(path.read_text().splitlines()) == 8 + 3
    with path.open("a") as file:
        file.write('{"method": "ials", "sett')  # a kill in the middle of a line
    with pytest.raises(CheckpointError, match="an interrupted run with another seed"):
        tune_baselines(names, dataset, tmp_path / "cut", config, seed=1)
    resumed = tune_baselines(names, dataset, tmp_path / "cut", config)
    for one, other in zip(whole, resumed):
        assert [(t.settings, t.metrics) for t in one.trials] == [
            (t.settings, t.metrics) for t in other.trials
        ]
    # seconds are never twice the same: those of the first eleven are the interrupted run's own
    lines = path.read_text().splitlines()
    assert len(lines) == 16
    assert tune_baselines(names, dataset, tmp_path / "cut", config) == resumed
    assert path.read_text().splitlines() == lines


def test_the_command_writes_trials_and_the_best_settings_which_evaluate_takes(
    shop, tmp_path, capsys
):
    command = ("tune", "popularity", "ease", "--data", shop, "--out", tmp_path / "t")
    run(*command, "--budget", 5, "--metric", "ndcg")
    assert "ndcg" in capsys.readouterr().out
    run(*command, "--budget", 5, "--metric", "ndcg", "--json")  # finished: nothing is run again
    best = json.loads(capsys.readouterr().out)
    table = pl.read_parquet(tmp_path / "t" / "trials.parquet")
    assert table["method"].to_list() == ["popularity"] + 5 * ["ease"]
    assert table["trial"].to_list() == [0, 0, 1, 2, 3, 4]
    assert table["value"].to_list() == table["ndcg"].to_list()
    chosen = table.row(int(table["value"].arg_max() or 0), named=True)
    assert chosen["settings.regularisation"] == best["ease"]["regularisation"]
    assert table.filter(pl.col("method") == "popularity")["settings.regularisation"].is_null().all()

    dataset = Dataset.load(shop)
    assert read_params(tmp_path / "t", dataset) == best
    out = tmp_path / "e"
    run("evaluate", "popularity", "ease", "--data", shop, "--out", out, "--params", tmp_path / "t")
    found = evaluate(fit_floor("ease", dataset, **best["ease"]), dataset)
    rows = json.loads((out / "metrics.json").read_text())
    (value,) = [
        row["value"] for row in rows
        if (row["method"], row["protocol"], row["metric"]) == ("ease", "full", "ndcg@10")
    ]  # fmt: skip
    assert value == next(
        row.value for row in found.rows if (row.protocol, row.metric) == ("full", "ndcg@10")
    )
    manifest = json.loads((out / "manifest.json").read_text())
    source = manifest["config"]["methods"]["ease"]["source"]
    assert json.loads(source.removeprefix("ease ")) == best["ease"]


def test_settings_can_be_written_by_hand_and_missing_ones_keep_their_defaults(tmp_path):
    toml, as_json = tmp_path / "mine.toml", tmp_path / "mine.json"
    toml.write_text("[ease]\nregularisation = 7\n[popularity]\n")
    as_json.write_text('{"ease": {"regularisation": 7}, "popularity": {}}')
    whole = BASELINES["ease"].config().model_dump() | {"regularisation": 7.0}
    for path in (toml, as_json):
        assert read_params(path, ring_dataset()) == {"ease": whole, "popularity": {}}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "[magic]\nwidth = 3", r"must name baselines \(popularity.*got magic"),
        ("a.toml", "[ease]\nlambda = 3", r"lambda: there is no such key; known here: max_events"),
        ("a.toml", "ease = 3", "must hold a table of settings for each method"),
        ("a.json", "{", "must be JSON"),
        ("a.json", "[]", "must hold a table of settings for each method"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_params(tmp_path / name, ring_dataset())


def test_settings_of_another_data_set_are_refused_as_a_folder(shop, tmp_path):
    tune_baselines(["popularity"], ring_dataset(), tmp_path, TuneConfig(budget=1))
    with pytest.raises(CheckpointError, match=r"can be used by naming its best\.toml"):
        read_params(tmp_path, Dataset.load(shop))
    assert read_params(tmp_path / "best.toml", Dataset.load(shop)) == {"popularity": {}}


def test_bad_usage_is_a_sentence_and_a_code(shop, tmp_path, capsys):
    params = tmp_path / "mine.toml"
    params.write_text("[ease]\n")
    for arguments, message in (
        (["tune", "magic"], "must be one of popularity"),
        (["tune", "ease", "ease"], "named once; got ease, ease"),
        (["tune", "ease", "--metric", "auc"], "metric must be ndcg or one of hit@1"),
        (["tune", "ease", "--budget", "0"], "budget: Input should be greater than 0"),
        (["evaluate", "bpr", "--params", params], "bpr is not among ease"),
        (["evaluate", "ease", "--params", params, "--tune", "3"], "not both"),
        (["evaluate", "ease", "--params", tmp_path / "no.toml"], "found none at"),
    ):
        code, said = failure(capsys, *arguments, "--data", shop, "--out", tmp_path / "out")
        assert (code, message in said) == (2, True), said
        assert "Traceback" not in said


def test_a_trial_that_failed_has_the_lowest_value_and_its_row_says_why(tmp_path):
    from reasonrec.evaluation.tuning import Trial, TunedMethod, read_trials, write_trials

    failed = Trial("bpr", {"learning_rate": 9.0}, None, {}, 0.0, 0.0, "too fast")
    poor = Trial("bpr", {"learning_rate": 1.0}, 0.0, {"ndcg": 0.0}, 0.1, 0.2)
    assert TunedMethod("bpr", (failed, poor)).best == poor
    write_trials(tmp_path / "trials.jsonl", [failed, poor])
    assert read_trials(tmp_path / "trials.jsonl") == [failed, poor]

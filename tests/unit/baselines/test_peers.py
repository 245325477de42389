"""The reading side of the peers, on files written here as a peer writes them.

That each peer learns is tested beside them, in their own environment: `make peers-test`.
"""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from reasonrec.baselines.floor import check_settings, fit_floor
from reasonrec.baselines.peers import PEERS, ask_peer, read_peer
from reasonrec.cli import main
from reasonrec.data.dataset import Dataset
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.errors import CheckpointError, ConfigError
from reasonrec.evaluation.protocol import evaluate, read_rows
from reasonrec.evaluation.tuning import SPACES, tune_baseline
from reasonrec.evaluation.tuning_config import TuneConfig
from reasonrec.records import Histories

PEERS_FOLDER = Path(__file__).parents[3] / "peers"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "data"
    prepare_planted(folder, PlantedConfig(size="tiny"), None, 0)
    return folder


def job_of(dataset, name="sasrec", part="test", rows=None, seed=0, num_timed_users=30):
    return {
        "method": name,
        "data": str(dataset.folder.resolve()),
        "fingerprint": dataset.fingerprint,
        "part": part,
        "rows": rows,
        "settings": check_settings(name, {}).model_dump(),
        "seed": seed,
        "num_timed_users": num_timed_users,
    }


def write_answers(folder, dataset, scores, job):
    """Leave in ``folder`` what a peer does, with a hundredth of a second for each answer."""
    folder.mkdir(parents=True)
    queries = range(len(scores)) if job["rows"] is None else job["rows"]
    pl.DataFrame(
        {"query": queries, "scores": scores.tolist(), "seconds": [0.01] * len(scores)},
        schema={"query": pl.Int64, "scores": pl.List(pl.Float32), "seconds": pl.Float64},
    ).write_parquet(folder / "scores.parquet")
    told = {"job": job, "fit_seconds": 12.5, "latency_ms": [1.0, 2.0, 3.0]}
    (folder / "peer.json").write_text(json.dumps(told))


def follow_scores(dataset, part="test"):
    return fit_floor("follow-counter", dataset).score(dataset.queries(part).histories()).scores


def test_a_peer_is_measured_like_the_method_whose_scores_it_hands_back(shop, tmp_path):
    dataset = Dataset.load(shop)
    write_answers(tmp_path / "peer", dataset, follow_scores(dataset), job_of(dataset))
    peer = evaluate(read_peer(tmp_path / "peer", dataset), dataset, batch_size=7)
    ours = evaluate(fit_floor("follow-counter", dataset), dataset)
    assert peer.per_query["rank"].to_list() == ours.per_query["rank"].to_list()
    of_peer = {(row.protocol, row.metric): row for row in peer.rows}
    assert {row.method for row in peer.rows} == {"sasrec"}
    for row in ours.rows:
        if row.protocol != "cost":
            assert of_peer[row.protocol, row.metric].value == row.value
    # the costs are those that the peer measured: 12.5 s, the middle of 1, 2 and 3 ms, 1 / 0.01 s
    assert of_peer["cost", "fit-seconds"].value == 12.5
    assert of_peer["cost", "latency-p50-ms"].value == 2.0
    assert of_peer["cost", "users-per-second"].value == pytest.approx(100.0)
    assert of_peer["full", "hit@10"].seconds == pytest.approx(0.01 * len(dataset.test))


def test_scores_come_back_in_the_order_that_histories_are_asked_in(shop, tmp_path):
    dataset = Dataset.load(shop)
    stored = [9, 2, 30]
    scores = np.random.default_rng(0).normal(size=(3, dataset.num_items)).astype(np.float32)
    write_answers(
        tmp_path / "peer", dataset, scores, job_of(dataset, rows=stored, num_timed_users=0)
    )
    peer = read_peer(tmp_path / "peer", dataset)
    asked = dataset.test.take(np.array([30, 9, 30])).histories()
    np.testing.assert_array_equal(peer.score(asked).scores, scores[[2, 0, 2]])
    assert peer.score(Histories.from_lists([])).scores.shape == (0, dataset.num_items)
    with pytest.raises(ValueError, match=r"1 of 2 histories are not among them"):
        peer.score(dataset.test.take(np.array([2, 3])).histories())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda scores: scores[:-1], "queries of"),
        (lambda scores: scores[:, :-1], "scores each"),
    ],
)
def test_answers_that_are_not_whole_are_refused(shop, tmp_path, damage, reason):
    dataset = Dataset.load(shop)
    whole = follow_scores(dataset)
    write_answers(tmp_path / "peer", dataset, damage(whole), job_of(dataset))
    with pytest.raises(CheckpointError, match=reason):
        read_peer(tmp_path / "peer", dataset)


def test_answers_about_other_data_are_refused(shop, tmp_path):
    dataset = Dataset.load(shop)
    job = job_of(dataset) | {"fingerprint": "other"}
    write_answers(tmp_path / "peer", dataset, follow_scores(dataset), job)
    with pytest.raises(CheckpointError, match="about other data"):
        read_peer(tmp_path / "peer", dataset)


def test_evaluate_takes_a_peer_by_name_and_reads_an_answer_that_lies_there(
    shop, tmp_path, monkeypatch
):
    dataset = Dataset.load(shop)
    folder = tmp_path / "eval" / "methods" / "gru4rec" / "peer"
    write_answers(folder, dataset, follow_scores(dataset), job_of(dataset, "gru4rec", seed=3))
    monkeypatch.setenv("REASONREC_PEERS_PYTHON", str(tmp_path / "none"))  # nothing is run
    main(["evaluate", "popularity", "gru4rec", "--data", str(shop), "--seed", "3",
          "--out", str(tmp_path / "eval")])  # fmt: skip
    rows = read_rows(tmp_path / "eval" / "metrics.json")
    found = {(row.method, row.seed): row.value for row in rows if row.metric == "fit-seconds"}
    assert found["gru4rec", 3] == 12.5
    assert set(found) == {("popularity", 3), ("gru4rec", 3)}


@pytest.mark.parametrize("verb", ["evaluate", "tune"])
def test_a_missing_environment_is_an_error_that_says_how_to_make_it(
    verb, shop, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("REASONREC_PEERS_PYTHON", str(tmp_path / "none"))
    with pytest.raises(SystemExit) as stopped:
        main([verb, "sasrec", "--data", str(shop), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 1
    assert "Run: make peers" in " ".join(capsys.readouterr().err.split())


def test_a_peer_that_stops_early_is_an_error_that_names_its_log(shop, tmp_path, monkeypatch):
    # our own environment has no torch_geometric, as an environment of old packages might
    monkeypatch.setenv("REASONREC_PEERS_PYTHON", sys.executable)
    assert importlib.util.find_spec("torch_geometric") is None
    with pytest.raises(CheckpointError, match=r"lightgcn must end well.*peer\.log"):
        ask_peer(
            "lightgcn", Dataset.load(shop), tmp_path / "peer", part="valid",
            settings=check_settings("lightgcn", {}).model_dump(), seed=0,
        )  # fmt: skip
    assert "ModuleNotFoundError" in (tmp_path / "peer" / "peer.log").read_text()


def test_epochs_are_told_while_a_peer_trains(shop, tmp_path, monkeypatch):
    dataset = Dataset.load(shop)
    settings = check_settings("sasrec", {}).model_dump()
    write_answers(tmp_path / "left", dataset, follow_scores(dataset), job_of(dataset))
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\necho GPU available: no\n"
        "for n in 3 6; do echo epoch $n: ndcg@10 0.1 on validation; done\n"
        f"cp {tmp_path}/left/* $2\n"
    )
    python.chmod(0o755)
    monkeypatch.setenv("REASONREC_PEERS_PYTHON", str(python))
    told = []
    ask_peer(
        "sasrec", dataset, tmp_path / "peer", part="test", settings=settings, seed=0,
        num_timed_users=30, progress=lambda *one: told.append(one),
    )  # fmt: skip
    assert told == [("sasrec: epochs at most", done, settings["max_epochs"]) for done in (0, 3, 6)]
    assert (tmp_path / "peer" / "peer.log").read_text().count("\n") == 3


@pytest.mark.parametrize("name", PEERS)
def test_every_space_is_made_of_values_that_its_peer_accepts(name):
    fields = PEERS[name].model_fields
    for key, values in SPACES[name].items():
        assert fields[key].default in values, key
        for value in values:
            PEERS[name].model_validate({key: value})


def test_both_sides_know_the_same_peers():
    specification = importlib.util.spec_from_file_location("peers_run", PEERS_FOLDER / "run.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert list(module.METHODS) == list(PEERS)


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="num_factors must be a multiple of num_heads"):
        check_settings("sasrec", {"num_factors": 65})
    with pytest.raises(ConfigError, match="check_every must be at most max_epochs"):
        check_settings("caser", {"max_epochs": 2})


def test_a_search_trains_a_peer_again_for_windows_of_another_length(shop, tmp_path, monkeypatch):
    dataset = Dataset.load(shop)
    rng = np.random.default_rng(0)
    scores = rng.random((len(dataset.valid), dataset.num_items), np.float32)
    write_answers(tmp_path / "left", dataset, scores, job_of(dataset, part="valid"))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho trained >> {tmp_path}/runs\ncp {tmp_path}/left/* $2\n")
    python.chmod(0o755)
    monkeypatch.setenv("REASONREC_PEERS_PYTHON", str(python))
    spaces = {"sasrec": {"max_events": (50, 20)}}  # a setting of reading, for baselines of ours
    tuned = tune_baseline("sasrec", dataset, TuneConfig(budget=4), spaces=spaces)
    assert [trial.settings["max_events"] for trial in tuned.trials] == [50, 20]
    assert (tmp_path / "runs").read_text().count("trained") == 2

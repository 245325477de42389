"""The target's rank along the thought."""

import json

import numpy as np
import polars as pl
import pytest
from tests.toy_models import TOY_SHAPE, ring_rows, talking_toy, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec import cli
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.faithfulness.edits import thoughts_of
from reasonrec.evaluation.faithfulness.effects import OWN, score_conditions
from reasonrec.evaluation.measure import Contestant, measure
from reasonrec.evaluation.trajectory import TRACED, trace_thoughts
from reasonrec.methods.r2ec import train_stage
from reasonrec.methods.r2ec_config import NoThinkStage, R2ecConfig, SftStage
from reasonrec.methods.r2ec_stages import METHOD_OF_STAGE
from reasonrec.models.config import HeadConfig
from reasonrec.models.ranking import MASKS
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender
from reasonrec.training.config import OptimiserConfig


@pytest.fixture(scope="module")
def asked():
    dataset = toy_dataset(ring_rows(8, 12, 9), [f"Tale {i}" for i in range(12)])
    model = talking_toy(dataset, num_lookups=2)
    verbaliser = toy_verbaliser(model, dataset, num_lookups=2)
    return dataset, ThinkingRecommender(model, verbaliser, name="think-toy", max_tokens=20)


def test_ranks_along_the_thought_are_those_of_the_cut_thoughts_of_a_faithfulness_report(asked):
    dataset, recommender = asked
    rows = np.array([1, 4, 6])
    table = trace_thoughts(recommender, dataset.valid, rows, batch_size=2)
    queries = dataset.valid.take(rows)
    thoughts = thoughts_of(recommender.write(queries.histories()), recommender.model.writer)
    cases = score_conditions(
        recommender.model, queries.histories(), queries.target, thoughts, seed=0
    )
    slow = {
        (row, name): rank for row, name, rank in cases.select("row", "condition", "rank").rows()
    }
    assert table["method"].unique().to_list() == ["think-toy"]
    for row, thought in enumerate(thoughts):
        last = len(thought.pieces)
        names = ["empty", *(f"cut-{k}" for k in range(1, last)), OWN]
        found = table.filter(pl.col("query") == rows[row])
        assert found["step"].to_list() == list(range(last + 1))
        assert found["rank"].to_list() == [slow[row, name] for name in names]


def test_an_evaluation_keeps_them_beside_the_method_if_asked(asked, tmp_path):
    dataset, recommender = asked
    config = EvaluateConfig(protocols=("full",), num_timed_users=0, trajectory=True)
    contestants = [
        Contestant("think", 5, "a", lambda _: recommender),
        Contestant("silent", 0, "b", lambda _: NoThinkRecommender(recommender.model)),
    ]
    measured, _ = measure(contestants, dataset, tmp_path, config)
    traced = pl.read_parquet(tmp_path / "methods" / "think" / "trajectory.parquet")
    last = traced.group_by("query").agg(pl.col("rank").last()).sort("query")
    assert last["rank"].to_list() == measured.per_query.sort("query")["rank"].to_list()
    assert traced["seed"].unique().to_list() == [5]
    assert not (tmp_path / "methods" / "silent" / "trajectory.parquet").exists()


@pytest.mark.parametrize("mask", MASKS)
def test_a_whole_thought_ranks_as_the_evaluation_does_whatever_is_kept_out(asked, tmp_path, mask):
    _, recommender = asked
    rows = ring_rows(8, 12, 9)
    for row in rows[::2]:
        row[-1] = row[0]  # every other target was taken before
    dataset = toy_dataset(rows, [f"Tale {i}" for i in range(12)])
    config = EvaluateConfig(protocols=("full",), num_timed_users=0, trajectory=True, mask=mask)
    contestant = Contestant("think", 0, "a", lambda _: recommender)
    (measured,) = measure([contestant], dataset, tmp_path, config)
    traced = pl.read_parquet(tmp_path / "methods" / "think" / "trajectory.parquet")
    last = traced.group_by("query").agg(pl.col("rank").last()).sort("query")["rank"].to_list()
    assert last == measured.per_query.sort("query")["rank"].to_list()
    # 4 of 8 targets are kept out with the history, at every step
    assert np.isinf(last).sum() == (4 if mask == "history" else 0)


def test_the_command_says_who_has_no_trajectory_and_refuses_if_nobody_has(tmp_path, capsys):
    data = prepare_planted(tmp_path / "data", PlantedConfig(size="tiny"), seed=2)
    optimiser = OptimiserConfig(batch_size=32, num_validations=1)
    config = R2ecConfig(
        tiny=TOY_SHAPE,
        head=HeadConfig(max_history=8),
        no_think=NoThinkStage(num_epochs=1, optimiser=optimiser),
        sft=SftStage(num_epochs=1, num_branches=1, optimiser=optimiser),
    )
    silent = train_stage("no-think", data, config, out=tmp_path / "m" / "no-think", seed=0)
    think = train_stage("sft", data, config, out=tmp_path / "m" / "think-sft", seed=0, start=silent)
    gate = train_stage("gate", data, config, out=tmp_path / "m" / "gate", seed=0, start=think)
    out = tmp_path / "evaluated"
    methods = [str(folder) for folder in (gate, silent, think)]
    asked = ["--data", str(data.folder), "--num-queries", "5", "--num-timed-users", "0"]
    asked += ["--trajectory", "--protocols", "full"]
    cli.main(["evaluate", "popularity", *methods, *asked, "--out", str(out)])
    said = " ".join(capsys.readouterr().out.split())
    names = "popularity, m-gate, m-no-think"
    assert f"no trajectory of {names}: no thought that is read step by step" in said
    assert [path.parent.name for path in out.rglob("trajectory.parquet")] == ["m-think-sft"]
    cli.main(["evaluate", "popularity", *methods, *asked, "--out", str(out), "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out) and "no trajectory of" in printed.err

    cli.main(["evaluate", methods[2], *asked, "--out", str(tmp_path / "alone")])
    assert "no trajectory" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "popularity", methods[1], *asked, "--out", str(tmp_path / "none")])
    assert "got popularity, m-no-think. Leave it out" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_the_methods_with_a_trajectory_are_the_stages_that_teach_thoughts():
    assert set(TRACED) == {METHOD_OF_STAGE["sft"], METHOD_OF_STAGE["recpo"]}

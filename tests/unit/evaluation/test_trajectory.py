"""The target's rank along the thought."""

import numpy as np
import polars as pl
import pytest
from tests.toy_models import ring_rows, talking_toy, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.faithfulness.edits import thoughts_of
from reasonrec.evaluation.faithfulness.effects import OWN, score_conditions
from reasonrec.evaluation.measure import Contestant, measure
from reasonrec.evaluation.trajectory import trace_thoughts
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender


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

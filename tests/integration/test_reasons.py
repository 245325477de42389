"""R2Rec by its real commands, from a planted shop to reasons that people read."""

import json
import re
from pathlib import Path

import polars as pl
import pytest
from tests.integration.test_road import run

SETTINGS = """
[tiny]
width = 32
num_heads = 2
feed_forward_width = 64
vocab_size = 400

[no_think]
num_epochs = 2
optimiser = { batch_size = 16, num_validations = 1, learning_rate = 5e-3 }

[r2rec]
vocab_size = 600
max_tokens = 30
num_valid_queries = 8
ranking = { num_candidates = 5, num_orders_measured = 0 }

[r2rec.traces]
num_questions = 80
evidence = { num_chains = 1, num_candidates = 5 }

[r2rec.sft]
num_epochs = 2
optimiser = { batch_size = 8, num_validations = 1 }

[r2rec.rl]
num_prompts = 8
grpo = { group_size = 2, max_tokens = 30 }
optimiser = { batch_size = 8, num_validations = 1 }
"""
STAGES = ["untuned", "r2rec-sft", "r2rec-rl"]


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reasons")
    (out / "settings.toml").write_text(SETTINGS)
    run("prepare", "planted", "--size", "tiny", "--out", out / "data")
    said = run(
        "train", "r2rec", "--config", out / "settings.toml", "--data", out / "data",
        "--out", out / "run",
    )  # fmt: skip
    assert [name for name in STAGES if f"{name}: " in said] == STAGES
    return out


def test_training_leaves_traces_models_and_what_was_left_out(road):
    traces = json.loads((road / "run/traces/statistics.json").read_text())
    assert traces["num_questions"] == 80 and traces["num_kept"] > 0
    manifest = json.loads((road / "run/r2rec-rl/manifest.json").read_text())
    assert manifest["method"] == "r2rec-rl" and manifest["num_questions_dropped"] >= 0
    assert manifest["config"]["task"] == "likes"


def test_evaluate_measures_both_stages_on_the_same_candidates(road):
    folders = [road / "run" / name for name in STAGES[1:]]
    run(
        "evaluate", "chain-count", *folders, "--data", road / "data", "--out", road / "evaluation",
        "--protocols", "candidates-5",
    )  # fmt: skip
    rows = json.loads((road / "evaluation/metrics.json").read_text())
    found = {
        r["method"]: r["value"]
        for r in rows
        if r["protocol"] == "candidates-5" and r["metric"] == "hit@1"
    }
    assert set(found) == {"chain-count", *STAGES[1:]}
    assert all(0 <= value <= 1 for value in found.values())
    thoughts = pl.read_parquet(road / "evaluation/thoughts.parquet")
    assert set(thoughts["method"]) == set(STAGES[1:])


def test_recommend_explains_with_chains_that_bear_the_reason_out(road):
    user = pl.read_parquet(road / "data/users.parquet")["user_id"][0]
    said = run(
        "recommend", road / "run", "--data", road / "data", "--user", user, "--k", 3, "--explain",
        "--json",
    )  # fmt: skip
    (answer,) = json.loads(said)
    assert answer["method"] == "r2rec-rl"
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3]
    assert answer["thought"] is not None
    known = {title for chain in answer["chains"] for title in (chain["via_title"], chain["title"])}
    assert set(re.findall(r"\[([^\[\]]*)\]", answer["thought"])) <= known

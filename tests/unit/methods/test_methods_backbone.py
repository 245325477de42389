"""The command with a backbone from elsewhere: our preset for such, all three stages, an answer."""

import json
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file
from tests.toy_models import ring_rows, save_backbone

from reasonrec.cli import main
from reasonrec.manifest import read_manifest
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.training.loop import read_metrics

PRESET = Path(__file__).parents[3] / "configs/r2ec/backbone.toml"
N = 8
FEW_STEPS = """
    --no-think.max-windows 8 --no-think.optimiser.batch-size 4 --sft.max-windows 8
    --sft.optimiser.batch-size 4 --sft.num-branches 2 --thought.num-lookups 1
    --thought.num-people 0 --recpo.num-prompts 8 --recpo.optimiser.batch-size 4
    --recpo.recpo.max-tokens 24 --recpo.recpo.group-size 2 --num-valid-queries 4
    --recpo.optimiser.refresh-items-every 1 --head.live-rows 6 --no-calibrate
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    rows = ring_rows(8, N, 6)
    log = [(f"u{u}", f"i{i}", 100 * u + t) for u, row in enumerate(rows) for t, i in enumerate(row)]
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(
        folder / "interactions.csv"
    )
    items = {"item_id": [f"i{n}" for n in range(N)], "title": [f"Tale {n}" for n in range(N)]}
    pl.DataFrame(items).write_csv(folder / "items.csv")
    main(["prepare", str(folder), "--out", str(folder / "data")])
    backbone = save_backbone(folder / "qwen", "qwen2")
    main(
        ["train", "r2ec", "--config", str(PRESET), "--backbone", str(backbone),
         "--data", str(folder / "data"), "--out", str(folder / "run"), *FEW_STEPS.split()]
    )  # fmt: skip
    return folder / "run"


def test_the_preset_for_backbones_from_elsewhere_asks_for_what_they_need():
    config, usual = R2ecConfig.load(PRESET), R2ecConfig()
    assert config.stages == usual.stages == ("no-think", "sft", "recpo")
    assert (config.weights.lora, config.weights.dtype, config.prompt.chat) == (
        True,
        "bfloat16",
        True,
    )
    assert (config.head.item_rows, config.head.dropout) == ("text", 0.0)
    stages = (config.no_think, config.sft, config.recpo)
    assert max(stage.optimiser.learning_rate for stage in stages) <= 1e-4
    assert {stage.optimiser.weight_decay for stage in stages} == {0.0}
    # rows of the batch's targets are all of today's weights
    assert config.recpo.recpo.item_softmax == "batch"
    assert config.recpo.optimiser.batch_size <= config.head.live_rows
    # our extras stay on
    assert config.head.gated and config.head.pointer and config.calibrate
    assert config.thought.num_lookups and config.thought.together == usual.thought.together


def test_all_three_stages_train_adapters_on_the_backbone_of_the_folder(run):
    methods = ("no-think", "think-sft", "think-recpo")
    adapters = []
    for method in methods:
        config = read_manifest(run / method)["config"]
        assert config["backbone"] == str(run.parent / "qwen")
        folder = run / method / "model/backbone"
        told = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert told["base_model_name_or_path"] == str(run.parent / "qwen")
        adapters.append(load_file(folder / "adapter_model.safetensors"))
    for before, after in pairwise(adapters):
        assert before.keys() == after.keys()
        assert any((before[name] != after[name]).any() for name in before)
    rows = [[row for row in read_metrics(run / method / "metrics.jsonl") if "train/loss" in row]
            for method in methods]  # fmt: skip
    # 8 windows, 8 windows, 8 prompts, four a step
    assert [len(of_stage) for of_stage in rows] == [2, 2, 2]
    assert all("rl/reward_mean" in row for row in rows[2])


def test_the_trained_run_recommends_with_its_thought(run, capsys):
    capsys.readouterr()
    main(["recommend", str(run), "--user", "u1", "--k", "2", "--explain", "--json"])
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["method"] == "think-recpo"
    # u1 took 1 to 6; what is left of 8 items is offered
    assert {item["item_id"] for item in answer["items"]} == {"i0", "i7"}
    assert isinstance(answer["thought"], str)


def test_settings_of_the_tiny_backbone_are_named_where_another_one_keeps_them(run, capsys):
    shop = run.parent
    asked = ["train", "no-think", "--data", str(shop / "data"), "--backbone", str(shop / "qwen")]
    few = ["--no-think.max-windows", "4", "--no-think.optimiser.batch-size", "4"]
    main([*asked, "--out", str(shop / "bare"), *few])
    told = " ".join(capsys.readouterr().err.split())
    assert "no_think.optimiser.learning_rate 0.002" in told and "head.item_rows id" in told
    assert "configs/r2ec/backbone.toml" in told
    assert not R2ecConfig().left_as_for_tiny()
    assert not R2ecConfig.load(PRESET).left_as_for_tiny()

"""Adapters: what trains, what is saved, and what is merged into a copy."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, save_backbone
from tests.toys import toy_dataset
from transformers import AutoModelForCausalLM

from reasonrec.errors import CheckpointError, ConfigError
from reasonrec.methods.r2ec import load_recommender, train, train_stage
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.models.adapters import merged_weights
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig, TinyConfig, WeightsConfig
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.records import Histories
from reasonrec.training.loop import last_checkpoint

N = 12
DATASET = toy_dataset(ring_rows(6, N, 8), [f"Tale {i}" for i in range(N)])
HISTORIES = Histories.from_lists([[1, 2, 3], [4, 5]])
STAGE = {"optimiser": {"batch_size": 6, "num_validations": 2, "learning_rate": 1e-2}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbones")
    return {name: save_backbone(path / name, name) for name in ("qwen2", "llama", "gemma2", "gpt2")}


@pytest.fixture(scope="module")
def folder(folders):
    return folders["qwen2"]


def config_of(folder, **weights):
    return R2ecConfig.model_validate(
        {
            "backbone": str(folder), "weights": {"lora": True, **weights},
            "head": {"item_rows": "text+id", "dropout": 0.0, "max_history": 8},
            "stages": ["sft", "recpo"], "held_out": {"max_events": 0},
            "thought": {"num_lookups": 1}, "sft": {"num_epochs": 2, **STAGE},
            "recpo": {"num_prompts": 12, "recpo": {"max_tokens": 8, "group_size": 2}, **STAGE},
        }
    )  # fmt: skip


def build(folder, **weights):
    return build_model(
        DATASET.catalogue, backbone=str(folder), tiny=TinyConfig(), seed=0,
        head=HeadConfig(item_rows="text+id", dropout=0.0, max_history=8),
        weights=WeightsConfig(lora=True, **weights),
    )  # fmt: skip


def open_adapters(model):
    """Give adapters, which start at nothing, something to say."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.backbone.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.3)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [("qwen2", "float32"), ("qwen2", "bfloat16"), ("llama", "bfloat16"), ("gemma2", "float32")],
)
def test_adapters_head_and_item_table_move_and_nothing_else(folders, tmp_path, architecture, dtype):
    folder = folders[architecture]
    start = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).state_dict()
    taught, rewarded = train(DATASET, config_of(folder, dtype=dtype), out=tmp_path, seed=0)
    models = [build(folder, dtype=dtype)]
    models += [
        ReasoningRecommender.from_pretrained(path / "model").cpu() for path in (taught, rewarded)
    ]
    for earlier, later in pairwise(models):
        moved = set()
        for name, weight in later.named_parameters():
            if not torch.equal(weight, earlier.get_parameter(name)):
                moved.add(name)
            assert weight.requires_grad == ("lora_" in name or not name.startswith("backbone."))
        assert any("lora_B" in name for name in moved)
        assert "item_table.learned" in moved
        assert not [name for name in moved if name.startswith("backbone.") and "lora_" not in name]
    # the backbone under the adapters is, bit by bit, the one that was loaded
    for name, weight in models[-1].backbone.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(weight, start[name.replace(".base_layer", "")]), name


def test_only_the_adapter_is_saved_beside_the_head_and_both_come_back(folder, tmp_path):
    model = build(folder)
    open_adapters(model)
    model.refresh_items()
    model.eval().save_pretrained(tmp_path)
    assert not (tmp_path / "backbone/model.safetensors").exists()
    about = json.loads((tmp_path / "backbone/adapter_config.json").read_text())
    assert (about["r"], about["lora_alpha"]) == (4, 8)
    assert about["base_model_name_or_path"] == str(folder.resolve())
    loaded = ReasoningRecommender.from_pretrained(tmp_path).cpu()
    prompts = torch.arange(24).reshape(2, 12) + 5
    with torch.no_grad():
        expected, found = (
            one.backbone.base_model(prompts).last_hidden_state for one in (model, loaded)
        )
    assert torch.equal(expected, found)
    assert torch.equal(model.item_rows(), loaded.item_rows())


def test_an_adapter_whose_backbone_is_gone_is_a_stated_error(folder, tmp_path):
    build(folder).save_pretrained(tmp_path)
    path = tmp_path / "backbone/adapter_config.json"
    path.write_text(path.read_text().replace(str(folder.resolve()), str(tmp_path / "gone")))
    with pytest.raises(CheckpointError, match="must be a folder of a saved model"):
        ReasoningRecommender.from_pretrained(tmp_path)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma2", "gpt2"])
def test_a_merged_copy_has_the_same_logits_and_the_original_stays_as_it_is(folders, architecture):
    folder = folders[architecture]
    model = build(folder)
    open_adapters(model)
    before = {name: weight.clone() for name, weight in model.backbone.state_dict().items()}
    copy = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(24).reshape(2, 12) + 5
    with torch.no_grad():
        plain = copy(ids).logits
        copy.load_state_dict(dict(merged_weights(model.backbone)))
        merged, adapted = copy.eval()(ids).logits, model.backbone.eval()(ids).logits
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-4)
    assert (adapted - plain).abs().max() > 0.1
    for name, weight in model.backbone.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_checkpoints_leave_frozen_weights_out_and_resume_with_the_same_numbers(
    folder, tmp_path, monkeypatch
):
    from reasonrec.training import loop

    config = config_of(folder).model_copy(update={"stages": ("sft",)})
    whole = train_stage("sft", DATASET, config, out=tmp_path / "whole", seed=0)
    measure, seen = loop._Trainer._measure, []

    def unplug(self, model):
        seen.append(self.state.global_step)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(self, model)

    monkeypatch.setattr(loop._Trainer, "_measure", unplug)
    with pytest.raises(KeyboardInterrupt):
        train_stage("sft", DATASET, config, out=tmp_path / "again", seed=0)
    monkeypatch.undo()
    kept = last_checkpoint(tmp_path / "again/checkpoints")
    assert kept is not None
    size = sum(weight.numel() for weight in build(folder).backbone.parameters()) * 4
    assert (kept / "model.safetensors").stat().st_size < size / 2
    again = train_stage("sft", DATASET, config, out=tmp_path / "again", seed=0)
    scores = [load_recommender(path, DATASET).score(HISTORIES).scores for path in (whole, again)]
    assert np.array_equal(*scores)


def test_layers_that_no_backbone_has_are_a_stated_error(folder):
    with pytest.raises(ConfigError, match="lora_targets must be 'all-linear' or names of layers"):
        build(folder, lora_targets="no_such_layer")


def test_named_layers_alone_get_an_adapter(folder):
    model = build(folder, lora_targets="q_proj,v_proj", lora_rank=2)
    names = {name for name, _ in model.backbone.named_parameters() if "lora_" in name}
    assert {name.split(".")[-4] for name in names} == {"q_proj", "v_proj"}

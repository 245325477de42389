"""The answer marker as a token that a tokenizer is given: in training, on disk, with adapters."""

import json

import numpy as np
import pytest
import torch
from tests.toy_models import TOY_SHAPE, ring_rows, save_backbone, toy_catalogue
from tests.toys import toy_dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from reasonrec.errors import ConfigError
from reasonrec.methods.r2ec import train
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig, WeightsConfig
from reasonrec.models.generation import think
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.recommenders import NoThinkRecommender
from reasonrec.records import Histories
from reasonrec.traces.config import PromptConfig
from reasonrec.training.rl.engines.continuation import ContinuationEngine

N = 12
DATASET = toy_dataset(ring_rows(6, N, 8), [f"Tale {i}" for i in range(N)])
HISTORIES = Histories.from_lists([[1, 2, 3], [4, 5]])
MARKER = "<item-next>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"), "qwen2")


@pytest.fixture(scope="module")
def full(folder, tmp_path_factory):
    """A backbone whose tokenizer fills its vocabulary, with vectors in and out of their own."""
    path = tmp_path_factory.mktemp("full")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
        initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def build(folder, *, add=True, lora=False):
    model = build_model(
        toy_catalogue(N), backbone=str(folder), tiny=TOY_SHAPE, seed=0,
        head=HeadConfig(item_rows="text", dropout=0.0, max_history=8),
        prompt=PromptConfig(answer_marker=MARKER, add_marker=add),
        weights=WeightsConfig(lora=lora),
    )  # fmt: skip
    model.refresh_items()
    return model.eval()


@pytest.mark.parametrize("which", ["folder", "full"])
def test_the_marker_is_one_token_that_starts_as_the_mean_of_its_parts(which, request):
    path = request.getfixturevalue(which)
    plain, model = build(path, add=False), build(path)
    assert len(plain.writer.answer) > 1
    (place,) = model.writer.answer
    parts = [t for part in ("<", MARKER[1:-1], ">") for t in plain.writer.encode(part)]
    for before, after in (
        (plain.backbone.get_input_embeddings(), model.backbone.get_input_embeddings()),
        (plain.backbone.get_output_embeddings(), model.backbone.get_output_embeddings()),
    ):
        torch.testing.assert_close(after.weight[place], before.weight[parts].mean(0))
        known = len(plain.tokenizer)
        assert torch.equal(after.weight[:known], before.weight[:known])
        assert after.weight.shape[0] == max(before.weight.shape[0], place + 1)
    assert plain.writer.encode("Tale 3 < 4 item") == model.writer.encode("Tale 3 < 4 item")
    thought = [*model.writer.opening, *model.writer.encode(" Mostly tales"), place]
    assert model.writer.ends_thought(thought)
    assert model.writer.thought_text(thought) == "Mostly tales"


def test_a_marker_that_the_tokenizer_has_is_left_as_it_is(folder):
    model = build_model(
        toy_catalogue(N), backbone=str(folder), tiny=TOY_SHAPE, seed=0, head=HeadConfig(),
        prompt=PromptConfig(answer_marker="</s>", add_marker=True),
    )  # fmt: skip
    assert len(model.tokenizer) == len(AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize(("which", "lora"), [("folder", False), ("folder", True), ("full", False)])
def test_it_is_learned_written_saved_and_read_again(which, lora, request, tmp_path):
    stage = {"optimiser": {"batch_size": 6, "num_validations": 1, "learning_rate": 1e-2}}
    config = R2ecConfig.model_validate(
        {
            "backbone": str(request.getfixturevalue(which)), "weights": {"lora": lora},
            "prompt": {"answer_marker": MARKER, "add_marker": True},
            "head": {"item_rows": "text", "dropout": 0.0, "max_history": 8},
            "stages": ["sft", "recpo"], "held_out": {"max_events": 0},
            "thought": {"num_lookups": 1}, "sft": {"num_epochs": 2, **stage},
            "recpo": {"num_prompts": 12, "recpo": {"max_tokens": 8, "group_size": 2}, **stage},
        }
    )  # fmt: skip
    taught, rewarded = train(DATASET, config, out=tmp_path, seed=0)
    start = build(request.getfixturevalue(which), lora=lora)
    (place,) = start.writer.answer
    for path in (taught, rewarded):
        model = ReasoningRecommender.from_pretrained(path / "model").cpu()
        assert model.writer.answer == [place]
        row = model.backbone.get_input_embeddings().weight[place]
        began = start.backbone.get_input_embeddings().weight[place]
        assert torch.equal(row, began) == lora  # with adapters it stays, without it learns
        again = tmp_path / "again"
        model.save_pretrained(again)
        loaded = ReasoningRecommender.from_pretrained(again).cpu()
        scores = [NoThinkRecommender(one).score(HISTORIES).scores for one in (model, loaded)]
        assert np.array_equal(*scores)
        thoughts = think(
            model, model.writer.prompts(HISTORIES), None, max_tokens=4, temperature=0.0
        )
        ends = thoughts.lengths - 1
        assert (thoughts.token_ids[np.arange(2), ends] == place).all()
        if lora:
            assert not (again / "backbone/model.safetensors").exists()
            about = json.loads((again / "backbone/adapter_config.json").read_text())
            assert not about["modules_to_save"]


def test_adapters_ask_for_a_row_to_spare(full):
    with pytest.raises(ConfigError, match=r"more embeddings than tokens.*this one has 293 for 293"):
        build(full, lora=True)


def test_an_engine_elsewhere_is_refused(folder):
    engine = ContinuationEngine(completer=None)  # type: ignore[arg-type] # nothing is sent to it
    with pytest.raises(ConfigError, match="lacks the new token"):
        engine.sync(build(folder))

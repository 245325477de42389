"""Every architecture walks the same road, and the code knows the name of none of them."""

import numpy as np
import pytest
import torch
from tests.toy_models import (
    ARCHITECTURES,
    TOY_SHAPE,
    ring_rows,
    save_backbone,
    toy_catalogue,
    toy_verbaliser,
)
from tests.toys import toy_dataset
from transformers import AutoModelForCausalLM

from reasonrec.errors import CheckpointError, ConfigError
from reasonrec.methods.r2ec import load_recommender, train, train_stage
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.models import reasoning_recommender
from reasonrec.models.adapters import merged_weights
from reasonrec.models.backbone import build_model
from reasonrec.models.branches import Batch
from reasonrec.models.config import HeadConfig, WeightsConfig
from reasonrec.models.generation import think
from reasonrec.models.language_head import PLAIN
from reasonrec.models.look_ups import look_up_for
from reasonrec.models.recommenders import ThinkingRecommender
from reasonrec.records import Histories, TokenPolicy
from reasonrec.serving.recommender import recommend
from reasonrec.traces.config import PromptConfig
from reasonrec.training.config import RecpoConfig
from reasonrec.training.rl.recpo import recpo_loss, roll_out

N = 12
DATASET = toy_dataset(ring_rows(6, N, 8), [f"Tale {i}" for i in range(N)])
HISTORIES = Histories.from_lists([[1, 2, 3], [], [4, 5]])
HEAD = {
    "item_rows": "text", "dropout": 0.0, "token_dropout": 0.0, "label_smoothing": 0.0,
    "max_history": 8,
}  # fmt: skip
STAGE = {"optimiser": {"batch_size": 6, "num_validations": 1, "learning_rate": 1e-3}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbones")
    return {name: save_backbone(path / name, name) for name in ARCHITECTURES}


def build(folder, *, prompt=None, weights=None, **head):
    model = build_model(
        toy_catalogue(N), backbone=str(folder), tiny=TOY_SHAPE, seed=0,
        head=HeadConfig(**(HEAD | head)), prompt=prompt, weights=weights,
    )  # fmt: skip
    model.refresh_items()
    return model.eval()


def as_batch(prompts, written, num_prompts, group_size):
    lengths = torch.from_numpy(prompts.lengths)
    shape = (num_prompts, group_size)
    return Batch(
        torch.from_numpy(prompts.token_ids), lengths,
        branch_ids=written.token_ids.reshape(*shape, -1),
        branch_lengths=written.lengths.reshape(shape),
        branch_at=(lengths - 1)[:, None].expand(shape),
        is_written=written.is_written.reshape(*shape, -1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "chat", "weights"),
    [
        ("qwen2", True, {}),
        ("qwen3", False, {"dtype": "bfloat16"}),
        ("llama", False, {"gradient_checkpointing": True}),
        ("mistral", True, {"dtype": "bfloat16", "gradient_checkpointing": True}),
        ("gemma2", True, {"gradient_checkpointing": True}),
        ("gemma3_text", False, {}),
        ("llama", True, {"lora": True}),
        ("gemma2", False, {"lora": True, "gradient_checkpointing": True}),
    ],
)
def test_it_is_taught_rewarded_saved_loaded_and_recommends(
    folders, tmp_path, architecture, chat, weights
):
    config = R2ecConfig.model_validate(
        {
            "backbone": str(folders[architecture]), "head": HEAD, "weights": weights,
            "prompt": {"chat": chat}, "stages": ["sft", "recpo"], "held_out": {"max_events": 0},
            "thought": {"num_lookups": 1}, "sft": {"num_epochs": 1, **STAGE},
            "recpo": {"num_prompts": 6, "recpo": {"max_tokens": 12, "group_size": 2}, **STAGE},
        }
    )  # fmt: skip
    taught, rewarded = train(DATASET, config, out=tmp_path, seed=0)
    start = AutoModelForCausalLM.from_pretrained(folders[architecture])
    before, after = (
        AutoModelForCausalLM.from_pretrained(path / "model/backbone") for path in (taught, rewarded)
    )
    assert str(after.dtype) == f"torch.{weights.get('dtype', 'float32')}"
    for old, new in ((start, before), (before, after)):
        weights_of = [dict(merged_weights(one)) for one in (old, new)]
        assert weights_of[0].keys() == weights_of[1].keys()
        moved = [float((weights_of[1][n] - w).abs().max()) for n, w in weights_of[0].items()]
        assert max(moved) > 1e-4
        assert all(np.isfinite(moved))
    recommender = load_recommender(rewarded, DATASET)
    assert isinstance(recommender, ThinkingRecommender)
    assert recommender.model.writer.prompt.chat == chat
    trained = {n for n, w in recommender.model.backbone.named_parameters() if w.requires_grad}
    assert trained and all("lora_" in name for name in trained) == weights.get("lora", False)
    again = load_recommender(rewarded, DATASET)
    scores = recommender.score(HISTORIES)
    assert np.array_equal(scores.scores, again.score(HISTORIES).scores)
    assert len(np.unique(scores.scores[0])) > N // 2
    (answer,) = recommend(recommender, DATASET, ["u1"], k=3, explain=True)
    assert len(answer.items) == 3
    assert "<answer>" not in answer.thought
    assert "assistant" not in answer.thought


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_token_logits_are_those_of_the_backbones_own_forward(folders, architecture):
    model = build(folders[architecture])
    ids = torch.arange(20)[None] * 5 % 200 + 2
    with torch.no_grad():
        expected = model.backbone(ids).logits[0]
        states = model.backbone.base_model(ids).last_hidden_state[0]
        logits = model.language_logits(states, *[torch.zeros(20, 0, dtype=torch.long)] * 2, ids[0])
    never = model.never_written
    assert (logits[:, never] == -torch.inf).all()
    torch.testing.assert_close(
        logits.index_fill(1, never, 0.0), expected.index_fill(1, never, 0.0), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("architecture", ["qwen2", "mistral", "gemma2", "gemma3_text", "gpt2"])
def test_sampler_and_training_pass_agree_past_the_end_of_a_window(folders, architecture, chat):
    model = build(folders[architecture], prompt=PromptConfig(chat=chat, instruction="Think."))
    verbaliser = toy_verbaliser(model, DATASET)
    prompts = model.writer.prompts(HISTORIES)
    with torch.no_grad():
        written = think(
            model, prompts, look_up_for(verbaliser, HISTORIES), max_tokens=20, group_size=2,
            generator=torch.Generator().manual_seed(1),
        )  # fmt: skip
        assert prompts.lengths.max() + written.lengths.max() > 24
        outputs = model(as_batch(prompts, written, 3, 2))
    assert written.is_written.sum() > 20
    torch.testing.assert_close(
        outputs.token_logp.reshape(6, -1), written.token_logp, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        outputs.post_states.reshape(6, -1), written.post_states, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        outputs.pre_states.reshape(6, -1), written.pre_states, atol=1e-4, rtol=1e-4
    )


def test_rows_of_their_own_yield_what_branches_of_one_trunk_yield(folders):
    model = build(folders["qwen3"])
    ids = torch.arange(40).reshape(2, 20) * 7 % 200 + 2
    batch = Batch(
        ids[:, :8], torch.tensor([8, 5]), branch_ids=ids[:, 8:].reshape(2, 3, 4),
        branch_lengths=torch.tensor([[4, 2, 4], [1, 3, 4]]),
        branch_at=torch.tensor([[7, 3, 0], [4, 4, 2]]),
    )  # fmt: skip
    with torch.no_grad():
        shared, apart = model._hidden_shared(batch), model._hidden_apart(batch)
    torch.testing.assert_close(shared[0][0], apart[0][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(shared[0][1, :5], apart[0][1, :5], atol=1e-5, rtol=1e-4)
    for b, g in np.ndindex(2, 3):
        n = int(batch.branch_lengths[b, g])
        torch.testing.assert_close(shared[1][b, g, :n], apart[1][b, g, :n], atol=1e-5, rtol=1e-4)


def _gradients(model, monkeypatch=None, most_logits=None, policy=PLAIN):
    rollouts = roll_out(
        model, DATASET.train, toy_verbaliser(model, DATASET), np.array([3, 9]),
        RecpoConfig(max_tokens=8, group_size=2), generator_seed=1,
    )  # fmt: skip
    if most_logits is not None:
        monkeypatch.setattr(reasoning_recommender, "MOST_LOGITS", most_logits)
    outputs = model(rollouts.batch, token_policy=policy)
    loss, logged = recpo_loss(outputs, rollouts, RecpoConfig())
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss, logged, found


def test_recomputed_layers_have_the_same_gradients_in_evaluation_mode_too(folders):
    plain = build(folders["llama"])
    frugal = build(folders["llama"], weights=WeightsConfig(gradient_checkpointing=True))
    calls = []
    for model in (plain, frugal):
        model.backbone.base_model.layers[0].self_attn.register_forward_hook(
            lambda *_, which=model: calls.append(which)
        )
    (loss, _, expected), (again, _, found) = _gradients(plain), _gradients(frugal)
    assert loss.item() == again.item()
    assert calls.count(frugal) > calls.count(plain)  # the backward pass ran them again
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


@pytest.mark.parametrize("policy", [PLAIN, TokenPolicy(1.5, 20)])
def test_token_logits_in_parts_have_the_same_loss_entropy_and_gradients(
    folders, monkeypatch, policy
):
    whole = _gradients(build(folders["gemma2"]), policy=policy)
    parts = _gradients(build(folders["gemma2"]), monkeypatch, 3 * 300, policy)  # 3 tokens each
    torch.testing.assert_close(parts[0], whole[0])
    assert parts[1]["rl/entropy"] == pytest.approx(whole[1]["rl/entropy"], rel=1e-5)
    for name, gradient in whole[2].items():
        torch.testing.assert_close(parts[2][name], gradient, msg=name, atol=1e-6, rtol=1e-4)


def test_a_chat_prompt_is_the_template_filled_in_and_the_thought_begins_behind_it(folders):
    model = build(folders["qwen2"], prompt=PromptConfig(chat=True, instruction="Think."))
    writer = model.writer
    prompts = writer.prompts(HISTORIES)
    shown = model.tokenizer.decode(prompts.token_ids[0, : prompts.lengths[0]])
    assert shown == "<s>user: Think.\nHistory: [Tale 1] [Tale 2] [Tale 3]"
    assert shown == writer.prompt_text([1, 2, 3])
    assert model.tokenizer.decode(writer.opening) == "</s>assistant: <think>"
    thoughts = toy_verbaliser(model, DATASET, num_lookups=0).write(
        HISTORIES, seed=0, keys=np.arange(3)
    )
    opening = len(writer.opening)
    assert thoughts.tokens[0][:opening] == writer.opening
    assert not any(thoughts.is_written[0][:opening])
    assert writer.thought_text(thoughts.tokens[0]) == "Mostly Ember, Tide."
    ids, lengths = writer.item_prompts(["Tale 3."])
    said = model.tokenizer.decode(ids[0, : lengths[0]])
    assert said.startswith("<s>user: Sum up what this item is")
    assert said.endswith("Item: Tale 3.</s>assistant: <answer>")


def test_chat_without_a_template_is_a_stated_error(folders, tmp_path):
    model = build(folders["qwen2"])
    model.save_pretrained(tmp_path)
    (tmp_path / "backbone/chat_template.jinja").unlink()
    with pytest.raises(ConfigError, match="needs a tokenizer with a chat template"):
        build(tmp_path / "backbone", prompt=PromptConfig(chat=True))


def test_a_small_model_is_read_into_one_thread(folders, tmp_path, monkeypatch):
    build(folders["qwen2"]).save_pretrained(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        there = reasoning_recommender.ReasoningRecommender.from_pretrained(tmp_path)
        assert torch.get_num_threads() == (1 if there.device.type == "cpu" else 2)
    finally:
        torch.set_num_threads(before)


def _speak(model, words):
    """Let the token head say given tokens one after the other, whatever it sees."""
    spoken = iter(words)

    def scripted(states, *_):
        logits = torch.full((len(states), len(model.tokenizer)), -30.0)
        logits[:, next(spoken)] = 30.0
        return logits

    model.language_logits = scripted


def test_a_thought_ends_however_the_answer_marker_is_spelled(folders):
    model = build(folders["qwen2"])
    tokenizer, writer = model.tokenizer, model.writer
    letters = [tokenizer.encode(c, add_special_tokens=False)[0] for c in "a<answer>"]
    assert letters[1:] != writer.encode("<answer>") or len(writer.encode("<answer>")) == 8
    _speak(model, [*letters, *[5] * 20])
    written = think(
        model, writer.prompts(Histories.from_lists([[2, 3]])), None, max_tokens=30, temperature=0
    )
    assert writer.thought_text(written.token_ids[0].tolist()) == "a"
    assert int(written.lengths) == len(writer.opening) + len(letters)
    assert not written.is_truncated.any()


def test_a_model_that_ends_its_turn_has_its_marker_forced_without_token_loss(folders):
    model = build(folders["qwen2"])
    model.writer.pad_id = 0
    tokenizer, writer = model.tokenizer, model.writer
    assert writer.end_ids == {tokenizer.eos_token_id}
    _speak(model, [9, tokenizer.eos_token_id, *[5] * 30])
    written = think(
        model, writer.prompts(Histories.from_lists([[2, 3]])), None, max_tokens=30, temperature=0
    )
    answer = writer.encode("<answer>")
    said = written.token_ids[0].tolist()
    assert said == [*writer.opening, 9, tokenizer.eos_token_id, *answer]
    assert written.is_truncated.tolist() == [True]
    marks = written.is_written[0].tolist()
    assert marks == [False] * len(writer.opening) + [True, True] + [False] * len(answer)


def test_stages_are_named_once_and_in_order():
    with pytest.raises(ValueError, match="once each and in this order; got"):
        R2ecConfig(stages=("recpo", "sft"))
    with pytest.raises(ValueError, match="backbone is 'tiny'"):
        R2ecConfig(prompt=PromptConfig(chat=True))


def test_a_stage_that_is_not_the_first_needs_the_one_before(tmp_path):
    with pytest.raises(CheckpointError, match=r"Stage recpo got start = None, with stages"):
        train_stage("recpo", DATASET, R2ecConfig(), out=tmp_path, seed=0)

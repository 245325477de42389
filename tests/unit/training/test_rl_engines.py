"""Rollouts by engines elsewhere: the same thoughts as our sampler's, with the weights of today."""

import json
import sys

import numpy as np
import pytest
import torch
from tests.toy_models import (
    TOY_SHAPE,
    ring_rows,
    save_backbone,
    toy_catalogue,
    toy_model,
    toy_verbaliser,
)
from tests.toy_vllm import ToyVllm
from tests.toys import toy_dataset
from transformers import AutoModelForCausalLM

from reasonrec.errors import ConfigError, ReasonrecError
from reasonrec.methods import r2rec
from reasonrec.methods.r2ec import train
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.r2rec_config import R2recConfig
from reasonrec.models.answers import AnsweringModel
from reasonrec.models.backbone import build_model
from reasonrec.models.branches import Batch
from reasonrec.models.config import HeadConfig, WeightsConfig
from reasonrec.models.look_ups import look_up_for
from reasonrec.records import Histories
from reasonrec.training.config import EngineConfig, RecpoConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.rl.engines.choice import build_engine
from reasonrec.training.rl.engines.sampler import Sampler
from reasonrec.training.rl.engines.vllm import room_for_rank, without_never
from reasonrec.training.rl.recpo import PromptSample, Recpo, recpo_loss, roll_out

N = 12
DATASET = toy_dataset(ring_rows(6, N, 8), [f"Tale {i}" for i in range(N)])
HISTORIES = Histories.from_lists([[1, 2, 3], [4, 5], [7, 8, 9, 10]])
SMALL = RecpoConfig(max_tokens=12, group_size=2, next_item_weight=0.0)
EVENTS = np.array([2, 9])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"), "qwen3")


@pytest.fixture(scope="module")
def server(folder):
    with ToyVllm(folder) as running:
        yield running


def build(folder, *, kind=None, **weights):
    model = build_model(
        toy_catalogue(N), backbone=str(folder), tiny=TOY_SHAPE, seed=0,
        head=HeadConfig(dropout=0.0, max_history=8), weights=WeightsConfig(**weights),
    ).eval()  # fmt: skip
    if kind is None:
        return model
    return kind(model.backbone, model.tokenizer, model.titles, model.head).eval()


def engine_of(server, **config):
    return build_engine(EngineConfig(kind="vllm-server", url=server.url, **config))


def mismatch(model, engine, *, seed=1):
    """Return what a training step would log of engine and trainer."""
    rollouts = roll_out(
        model, DATASET.train, toy_verbaliser(model, DATASET), EVENTS, SMALL,
        generator_seed=seed, engine=engine,
    )  # fmt: skip
    assert rollouts.batch.is_written.sum() > 20
    _, logged = recpo_loss(model(rollouts.batch), rollouts, SMALL)
    return logged["rl/sampler_mismatch"]


def perturb(model):
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.backbone.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * (0.3 if "lora_B" in name else 0.05))


@pytest.fixture(scope="module")
def taught(folder):
    """A toy that was trained on the verbaliser's thoughts until it asks about titles itself."""
    model = build(folder)
    verbaliser = toy_verbaliser(model, DATASET, num_lookups=2)
    windows = schedule_windows(DATASET.train, max_history=8, num_epochs=1, batch_size=6, seed=0)
    data = WindowDataset(
        DATASET.train, windows, model.writer, verbaliser=verbaliser, num_branches=2
    )
    batch = Batch(**data.__getitems__(list(range(6))))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        optimiser.zero_grad()
        outputs = model(batch)
        (-outputs.token_logp.sum() / batch.is_written.sum()).backward()
        optimiser.step()
    return model, verbaliser


def test_an_engine_that_was_not_synced_is_found_out_and_a_synced_one_agrees(folder, server):
    # the official code's engine kept the weights without what was learned, and nobody could tell
    model, engine = build(folder), engine_of(server)
    engine.sync(model)
    assert mismatch(model, engine) < 1e-4
    perturb(model)
    assert mismatch(model, engine) > 0.05
    engine.sync(model)
    assert mismatch(model, engine) < 1e-4
    engine.close()


@pytest.mark.parametrize("handover", ["merged", "adapter"])
def test_adapters_reach_the_engine_and_the_frozen_weights_stay_bit_by_bit(folder, server, handover):
    model, engine = build(folder, lora=True), engine_of(server, handover=handover)
    frozen = {n: w.clone() for n, w in model.backbone.state_dict().items() if "lora_" not in n}
    engine.sync(model)
    perturb(model)
    assert mismatch(model, engine) > 0.05
    for _ in range(3):
        engine.sync(model)
    assert mismatch(model, engine) < 1e-4
    now = model.backbone.state_dict()
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())
    engine.close()


def test_the_merged_copy_is_a_folder_that_any_loader_reads(folder, server, tmp_path):
    model = build(folder, lora=True)
    perturb(model)
    engine = engine_of(server, folder=tmp_path / "handed")
    engine.sync(model)
    engine.sync(model)
    (copy,) = (tmp_path / "handed").glob("*/*")  # the one before was removed
    ids = torch.arange(10)[None] + 5
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(copy)(ids).logits
        torch.testing.assert_close(loaded, model.backbone(ids).logits, atol=1e-4, rtol=1e-4)
    engine.close()
    assert not list((tmp_path / "handed").glob("*"))


def test_an_engine_that_draws_among_few_is_compared_by_what_it_says_itself(folder, server):
    # it tells probabilities among all tokens: of the first prompt, those are what it is held to
    model, engine = build(folder), engine_of(server)
    hot = SMALL.model_copy(update={"temperature": 1.5, "top_k": 4})
    sample = PromptSample(EVENTS, num_prompts=2, batch_size=2, num_inner_epochs=1, seed=0)
    learner = Recpo(hot, DATASET.train, toy_verbaliser(model, DATASET), seed=0, engine=engine)
    _, logged = learner(model, sample.__getitems__([0, 1]))
    assert logged["rl/sampler_mismatch"] < 1e-4
    rollouts = learner._rollouts
    written = rollouts.batch.is_written
    assert written.sum() > 20
    # what is trained is among four: more likely, each token, than among all
    assert rollouts.writer_token_logp.shape[0] == 1
    gain = (rollouts.old_token_logp_P_G_S - rollouts.sampler_logp_P_G_S)[written]
    assert (gain > 0).all()
    assert rollouts.old_token_logp_P_G_S[written].exp().mean() > 1 / 5
    engine.close()


@pytest.mark.parametrize("looks_up", [True, False])
def test_greedy_thoughts_are_those_of_our_sampler_token_for_token(taught, server, looks_up):
    model, verbaliser = taught
    prompts = model.writer.prompts(HISTORIES)
    look_up = look_up_for(verbaliser, HISTORIES) if looks_up else None
    engine = engine_of(server)
    engine.sync(model)
    for max_tokens in (70, 33, 9):  # to the end; cut short within what was looked up; at once
        ask = {
            "max_tokens": max_tokens, "group_size": 2, "temperature": 0.0, "top_k": 0, "seed": 0
        }  # fmt: skip
        ours = Sampler(model).think(prompts, look_up, **ask)
        theirs = engine.think(prompts, look_up, **ask)
        assert torch.equal(theirs.token_ids, ours.token_ids)
        assert torch.equal(theirs.lengths, ours.lengths)
        assert torch.equal(theirs.is_written, ours.is_written)
        assert torch.equal(theirs.is_truncated, ours.is_truncated)
        torch.testing.assert_close(theirs.token_logp, ours.token_logp, atol=1e-4, rtol=0)
        if max_tokens == 70:
            assert torch.equal(theirs.named_item, ours.named_item)
            assert torch.equal(theirs.named_weight, ours.named_weight)
            assert torch.equal(theirs.named_kind, ours.named_kind)
            assert bool((theirs.named_item >= 0).any()) == looks_up
    engine.close()


@pytest.mark.parametrize("max_tokens", [0, 7])
def test_greedy_answers_are_those_of_our_sampler_token_for_token(folder, server, max_tokens):
    model = build(folder, kind=AnsweringModel)
    prompts = [model.prompt_tokens("What next?"), model.prompt_tokens("And after that, what?")]
    engine = engine_of(server)
    engine.sync(model)
    ask = {
        "max_tokens": max_tokens, "group_size": 2, "temperature": 0.0, "max_answer_tokens": 5,
        "seed": 0,
    }  # fmt: skip
    ours, theirs = Sampler(model).write(prompts, **ask), engine.write(prompts, **ask)
    for name in ("token_ids", "lengths", "answer_at", "is_written", "is_truncated"):
        assert torch.equal(getattr(theirs, name), getattr(ours, name)), name
    torch.testing.assert_close(theirs.token_logp, ours.token_logp, atol=1e-4, rtol=0)
    theirs_next, ours_next = theirs.marker_logp.exp(), ours.marker_logp.exp()
    torch.testing.assert_close(theirs_next, ours_next, atol=1e-4, rtol=1e-4)
    engine.close()


def test_sampled_thoughts_depend_on_seed_and_row_alone(folder, server):
    model, engine = build(folder), engine_of(server)
    engine.sync(model)
    ask = {"max_tokens": 8, "group_size": 2, "temperature": 1.5, "top_k": 50, "seed": 4}
    whole = engine.think(model.writer.prompts(HISTORIES), None, **ask)
    tail = HISTORIES.take(np.array([1, 2]))
    part = engine.think(model.writer.prompts(tail), None, **ask, part=(2, 6))
    for r in range(4):
        length = int(part.lengths[r])
        assert part.token_ids[r, :length].tolist() == whole.token_ids[r + 2, :length].tolist()
    assert len({tuple(row) for row in whole.token_ids.tolist()}) > 3
    engine.close()


def test_a_part_of_a_batch_draws_what_it_would_draw_in_the_whole():
    model = toy_model()
    verbaliser = toy_verbaliser(model, DATASET)
    ask = {"max_tokens": 12, "group_size": 2, "temperature": 1.0, "top_k": 0, "seed": 4}

    def think(histories, part=None):
        prompts, look_up = model.writer.prompts(histories), look_up_for(verbaliser, histories)
        return Sampler(model).think(prompts, look_up, **ask, part=part)

    whole, part = think(HISTORIES), think(HISTORIES.take(np.array([1, 2])), (2, 6))
    width = part.token_ids.shape[1]
    assert torch.equal(part.token_ids, whole.token_ids[2:, :width])
    assert torch.equal(part.lengths, whole.lengths[2:])


def test_probabilities_leave_out_what_is_never_written():
    # p = .2 among all, .5 and .1 are never written: .2 / .4
    assert without_never(np.log(0.2), [np.log(0.5), np.log(0.1)]) == pytest.approx(np.log(0.5))


def test_every_setting_of_sampling_is_said_to_the_server(folder, server):
    # a generation_config.json of the backbone may hold others, as a penalty on repetitions
    model, engine = build(folder), engine_of(server)
    engine.sync(model)
    engine.think(
        model.writer.prompts(HISTORIES), None,
        max_tokens=3, group_size=1, temperature=0.7, top_k=9, seed=0,
    )  # fmt: skip
    path, body = server.bodies[-1]
    assert path == "/v1/completions"
    said = {name: body[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    assert said == {"temperature": 0.7, "top_k": 9, "top_p": 1.0, "repetition_penalty": 1.0}
    assert set(body["logit_bias"]) == {str(token) for token in model.never_written.tolist()}
    engine.close()


def test_a_stage_is_trained_from_rollouts_of_the_server(folder, server, tmp_path):
    optimiser = {"batch_size": 4, "num_validations": 1}
    config = R2ecConfig.model_validate(
        {
            "backbone": str(folder), "stages": ["recpo"], "head": {"max_history": 8},
            "recpo": {
                "num_prompts": 8, "optimiser": optimiser,
                "recpo": {"max_tokens": 6, "group_size": 2},
                "engine": {"kind": "vllm-server", "url": server.url},
            },
        }
    )  # fmt: skip
    (done,) = train(DATASET, config, out=tmp_path, seed=0)
    rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    logged = [row["rl/sampler_mismatch"] for row in rows if "rl/sampler_mismatch" in row]
    assert len(logged) == 2
    assert max(logged) < 1e-4
    manifest = json.loads((done / "manifest.json").read_text())
    said = {"kind": "vllm-server", "handover": "merged"}  # where it ran decides no number
    assert manifest["config"]["recpo"]["engine"] == said


def test_answers_are_trained_from_rollouts_of_the_server(folder, server, tmp_path):
    optimiser = {"batch_size": 4, "num_validations": 1}
    config = R2recConfig.model_validate(
        {
            "traces": {"num_questions": 6}, "max_tokens": 6, "num_valid_queries": 2,
            "sft": {"num_epochs": 1, "optimiser": optimiser},
            "rl": {
                "num_prompts": 4, "optimiser": optimiser,
                "grpo": {"max_tokens": 5, "max_answer_tokens": 3, "group_size": 2},
                "engine": {"kind": "vllm-server", "url": server.url},
            },
        }
    )  # fmt: skip
    base = R2ecConfig.model_validate({"backbone": str(folder), "head": {"max_history": 8}})
    done = r2rec.train(DATASET, config, base=base, out=tmp_path, seed=0)[-1]
    rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["rl/sampler_mismatch"] < 1e-4
    assert r2rec.load_recommender(done, DATASET).name == "r2rec-rl"


def test_what_cannot_be_done_is_said(folder, server, monkeypatch):
    with pytest.raises(ConfigError, match="must be 'sampler' for R²ec and R2Rec with the tiny"):
        engine_of(server).sync(toy_model())
    with pytest.raises(ConfigError, match=r"'adapter' needs weights.lora"):
        engine_of(server, handover="adapter").sync(build(folder))
    nowhere = EngineConfig(kind="vllm-server", url="http://127.0.0.1:9")
    with pytest.raises(ReasonrecError, match=r"engine.url must be that of a running vLLM server"):
        build_engine(nowhere).sync(build(folder))
    with (
        ToyVllm(folder, is_dev=False) as closed,
        pytest.raises(ReasonrecError, match="VLLM_SERVER_DEV_MODE=1"),
    ):
        engine_of(closed).sync(build(folder))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match="needs the package vllm"):
        build_engine(EngineConfig(kind="vllm-colocated")).sync(build(folder))
    with pytest.raises(ValueError, match="call sync first"):
        Sampler().think(None, None, max_tokens=1, group_size=1, temperature=1, top_k=0, seed=0)


@pytest.mark.parametrize(("rank", "room"), [(4, 8), (8, 8), (12, 16), (300, 320), (512, 512)])
def test_adapters_get_a_rank_that_the_engine_takes(rank, room):
    assert room_for_rank(rank) == room
    with pytest.raises(ConfigError, match="rank 512 at most; got 513"):
        room_for_rank(513)

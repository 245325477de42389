"""RecPO's token term against an independent GRPO, and its switches by hand."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, save_backbone, toy_catalogue, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig, TinyConfig
from reasonrec.models.generation import _draw
from reasonrec.models.language_head import logp_and_entropy
from reasonrec.training.config import RecpoConfig
from reasonrec.training.examples import events_with_history
from reasonrec.training.rl.advantages import advantages_within_groups
from reasonrec.training.rl.loss import kl_to_start
from reasonrec.training.rl.recpo import (
    PromptSample,
    Recpo,
    StartingPoint,
    recpo_loss,
    roll_out,
    token_logp,
)

N = 12
DATASET = toy_dataset(ring_rows(8, N, 9), [f"Tale {i}" for i in range(N)])
TOKENS = RecpoConfig(
    max_tokens=10, item_weight=0.0, next_item_weight=0.0, flat_groups="skip", advantage="grpo"
)
G = TOKENS.group_size


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = save_backbone(tmp_path_factory.mktemp("backbone"), "qwen2")
    model = build_model(
        toy_catalogue(N), backbone=str(folder), tiny=TinyConfig(), seed=0,
        head=HeadConfig(item_rows="text", dropout=0.0, max_history=8),
    ).eval()  # fmt: skip
    model.never_written = torch.zeros(0, dtype=torch.long)  # an ordinary softmax, as the oracle's
    model.refresh_items()
    return model


@pytest.fixture(scope="module")
def rollouts(model):
    rollouts = roll_out(
        model, DATASET.train, toy_verbaliser(model, DATASET), np.array([3, 11, 25]), TOKENS,
        generator_seed=1,
    )  # fmt: skip
    recpo_loss(model(rollouts.batch), rollouts, TOKENS)
    rollouts.rewards_P_G = torch.rand((3, G), generator=torch.Generator().manual_seed(2))
    return rollouts


def oracle(model, folder, **settings):
    """Return TRL's trainer over a copy of the model's backbone."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", num_generations=G,
        per_device_train_batch_size=G, max_completion_length=10, epsilon=TOKENS.clip_low,
        disable_tqdm=True, gradient_checkpointing=False, **settings,
    )  # fmt: skip
    return GRPOTrainer(
        model=copy.deepcopy(model.backbone),
        reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": f"History: [Tale {i}]"} for i in range(4)]),
        processing_class=model.tokenizer,
    )


def as_inputs(model, rollouts, advantages):
    """Return rollouts in the oracle's words: prompts padded on the left, completions behind."""
    batch = rollouts.batch
    (P, T), S = batch.trunk_ids.shape, batch.branch_ids.shape[-1]
    before = T - batch.trunk_lengths[:, None]
    place = torch.arange(T)
    ids = batch.trunk_ids.gather(1, (place - before).clamp(min=0))
    return {
        "prompt_ids": ids.repeat_interleave(G, 0),
        "prompt_mask": (place >= before).long().repeat_interleave(G, 0),
        "completion_ids": batch.branch_ids.reshape(P * G, S),
        "completion_mask": (torch.arange(S) < batch.branch_lengths.reshape(-1, 1)).long(),
        "tool_mask": batch.is_written.reshape(P * G, S).long(),
        "advantages": advantages.reshape(-1),
        "old_per_token_logps": rollouts.old_token_logp_P_G_S.reshape(P * G, S),
    }


def shifted(model):
    """Return a model a little beside itself, so that ratios are real and some are clipped."""
    moved = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in moved.backbone.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return moved


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ours", "theirs", "temperature"),
    [("rollouts", "grpo", 1.0), ("tokens", "bnpo", 1.0), ("tokens", "bnpo", 2.0)],
)
def test_loss_and_gradient_of_tokens_are_those_of_an_independent_grpo(
    model, rollouts, tmp_path, ours, theirs, temperature
):
    moved = shifted(model)
    if temperature != 1:
        old = token_logp(model, rollouts.batch, temperature)
        rollouts = replace(rollouts, old_token_logp_P_G_S=old)
    config = TOKENS.model_copy(update={"token_mean": ours, "kl_weight": 0.0})
    outputs = moved(rollouts.batch, token_temperature=temperature)
    loss, logged = recpo_loss(outputs, rollouts, config)
    loss.backward()
    assert 0.05 < logged["rl/frac_clipped"] < 0.95
    trainer = oracle(moved, tmp_path, loss_type=theirs, beta=0.0, temperature=temperature)
    trainer.model.eval()
    trainer.model.zero_grad()
    advantages = advantages_within_groups(rollouts.rewards_P_G, "grpo")
    expected = trainer._compute_loss(trainer.model, as_inputs(moved, rollouts, advantages))
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    compared = 0
    theirs_by_name = dict(trainer.model.named_parameters())
    for name, weight in moved.backbone.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(
                weight.grad, theirs_by_name[name].grad, atol=1e-5, rtol=1e-3, msg=name
            )
            compared += 1
    assert compared > 20


@pytest.mark.filterwarnings("ignore")
def test_the_distance_from_the_start_is_that_of_an_independent_grpo(model, rollouts, tmp_path):
    moved = shifted(model)
    start = rollouts.old_token_logp_P_G_S
    written = rollouts.batch.is_written
    logp = moved(rollouts.batch).token_logp
    trainer = oracle(moved, tmp_path, loss_type="bnpo", beta=0.0, use_bias_correction_kl=False)
    trainer.model.eval()
    advantages = torch.zeros(3, G)
    inputs = as_inputs(moved, rollouts, advantages)
    inputs["ref_per_token_logps"] = start.reshape(3 * G, -1)
    trainer.beta = 1.0
    expected = trainer._compute_loss(trainer.model, inputs)
    torch.testing.assert_close(kl_to_start(logp, start, written), expected, atol=1e-5, rtol=1e-4)
    assert expected > 0.01


@pytest.mark.filterwarnings("ignore")
def test_advantages_are_those_of_an_independent_grpo(model, tmp_path):
    for scale, estimator in (("group", "grpo"), ("none", "centred")):
        trainer = oracle(model, tmp_path, scale_rewards=scale, temperature=1.0)
        rewards = []

        def reward(completions, rewards=rewards, **_):
            rewards += [len(set(text)) / 10 for text in completions]
            return rewards[-len(completions) :]

        trainer.reward_funcs = [reward]
        scored = trainer._generate_and_score_completions(
            [{"prompt": "History: [Tale 1]"}] * G + [{"prompt": "History: [Tale 5]"}] * G
        )
        ours = advantages_within_groups(torch.tensor(rewards).reshape(2, G), estimator)
        # TRL adds 1e-4 to the spread that it divides by
        torch.testing.assert_close(ours.reshape(-1), scored["advantages"], atol=1e-6, rtol=2e-3)
        assert ours.abs().max() > 0.01


def test_the_distance_from_the_start_worked_out_by_hand():
    logp = torch.tensor([[[math.log(0.5), -1.0, -9.0]]], requires_grad=True)
    start = torch.tensor([[[math.log(0.25), -1.0, 0.0]]])
    written = torch.tensor([[[True, True, False]]])
    # token 1: d = log(1/2), so 1/2 + log 2 - 1 = .1931; token 2 is alike, token 3 not written
    distance = kl_to_start(logp, start, written)
    torch.testing.assert_close(distance.detach(), torch.tensor((math.log(2) - 0.5) / 2))
    distance.backward()
    # d/d logp of exp(d) - d - 1 is 1 - exp(d) = 1/2, over 2 tokens
    torch.testing.assert_close(logp.grad, torch.tensor([[[0.25, 0.0, 0.0]]]))


def test_what_is_trained_is_the_policy_that_was_sampled_from():
    # the mean of a policy's own score function is 0; that of another policy, which the official
    # code trains where it samples hotter, is not: it drifts without any reward
    logits = torch.tensor([math.log(9.0), 0.0], requires_grad=True)
    every = torch.arange(2)

    def drift(temperature):
        hot, _ = logp_and_entropy(logits.expand(2, 2), every, False, 2.0)
        logp, _ = logp_and_entropy(logits.expand(2, 2), every, False, temperature)
        return torch.autograd.grad((hot.exp().detach() * logp).sum(), logits)[0]

    # at 2, 9 to 1 are 3 to 1
    logp, entropy = logp_and_entropy(logits.expand(2, 2), every, False, 2.0)
    torch.testing.assert_close(logp.exp().detach(), torch.tensor([0.75, 0.25]))
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(entropy, torch.tensor([expected, expected]))
    torch.testing.assert_close(drift(2.0), torch.zeros(2), atol=1e-6, rtol=0)
    # drawn at 3/4 and 1/4 from what gives 9/10 and 1/10: (3/4 - 9/10, 1/4 - 1/10)
    torch.testing.assert_close(drift(1.0), torch.tensor([-0.15, 0.15]))


@pytest.mark.parametrize(("likelihood_at", "divisor"), [("sampling", 2.0), ("one", 1.0)])
def test_ratios_start_at_one_and_the_engine_is_compared_at_any_temperature(likelihood_at, divisor):
    model = toy_model()
    config = TOKENS.model_copy(
        update={"temperature": 2.0, "likelihood_at": likelihood_at, "kl_weight": 1.0}
    )
    learner = Recpo(
        config, DATASET.train, toy_verbaliser(model, DATASET), seed=7, start=StartingPoint(model)
    )
    sample = PromptSample(
        events_with_history(DATASET.train), num_prompts=4, batch_size=4, num_inner_epochs=2, seed=0
    )
    _, logged = learner(model, sample.__getitems__(range(4)))
    assert logged["rl/frac_clipped"] == 0
    assert logged["rl/kl_to_start"] == pytest.approx(0.0, abs=1e-6)
    assert logged["rl/sampler_mismatch"] < 1e-4
    rollouts = learner._rollouts
    batch, old = rollouts.batch, rollouts.old_token_logp_P_G_S
    # slowly: token by token, each behind its own prompt and thought so far
    num_compared = 0
    for p, g in np.ndindex(4, G):
        prompt = batch.trunk_ids[p, : batch.trunk_lengths[p]].tolist()
        thought = batch.branch_ids[p, g, : batch.branch_lengths[p, g]].tolist()
        for s in batch.is_written[p, g].nonzero()[:, 0].tolist():
            read = torch.tensor([prompt + thought[:s]])
            with torch.no_grad():
                state = model.run_backbone(model.embed(read)).last_hidden_state[:, -1]
                asked = [t for t, own in zip(thought[:s], batch.is_written[p, g], strict=False)
                         if own] or [model.writer.pad_id]  # fmt: skip
                logits = model.language_logits(
                    state, torch.tensor([prompt]), torch.tensor([asked]), read[:, -1]
                )
            expected = (logits[0] / divisor).log_softmax(-1)[thought[s]]
            assert old[p, g, s].item() == pytest.approx(expected.item(), abs=1e-4)
            num_compared += 1
    assert num_compared > 40
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    _, logged = learner(model, sample.__getitems__(range(4, 8)))
    assert learner._rollouts is rollouts  # the second inner epoch
    assert logged["rl/frac_clipped"] > 0
    assert logged["rl/sampler_mismatch"] < 1e-4


def _recpo(model, config, start=None):
    sample = PromptSample(
        events_with_history(DATASET.train), num_prompts=4, batch_size=4, num_inner_epochs=1, seed=0
    )
    learner = Recpo(config, DATASET.train, toy_verbaliser(model, DATASET), seed=7, start=start)
    return learner(model, sample.__getitems__(range(4)))


def test_the_starting_point_stays_where_it_was_while_the_model_moves():
    model = toy_model()
    config = TOKENS.model_copy(update={"kl_weight": 2.0})
    start = StartingPoint(model)
    _, logged = _recpo(model, config, start)
    assert logged["rl/kl_to_start"] == pytest.approx(0.0, abs=1e-6)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.3)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    loss, logged = _recpo(model, config, start)
    assert logged["rl/kl_to_start"] > 0.01
    for name, weight in model.state_dict().items():  # the model's own weights are back in place
        assert torch.equal(weight, kept[name])
    plain, _ = _recpo(model, TOKENS)
    assert (loss - plain).item() == pytest.approx(2.0 * logged["rl/kl_to_start"], rel=1e-4)
    reference = toy_model()
    reference.load_state_dict(before)
    batch = roll_out(
        model, DATASET.train, toy_verbaliser(model, DATASET), np.array([3, 9]), config,
        generator_seed=1,
    ).batch  # fmt: skip
    with torch.no_grad():
        assert torch.equal(start.token_logp(model, batch), reference(batch).token_logp)


def test_frozen_rollouts_are_those_of_the_start_and_the_difference_is_logged():
    model = toy_model()
    frozen = TOKENS.model_copy(update={"rollouts_from": "start"})
    start = StartingPoint(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.3)
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}

    def written(config, start=None):
        learner = Recpo(config, DATASET.train, toy_verbaliser(model, DATASET), seed=7, start=start)
        sample = PromptSample(
            events_with_history(DATASET.train), num_prompts=4, batch_size=4, num_inner_epochs=1,
            seed=0,
        )  # fmt: skip
        _, logged = learner(model, sample.__getitems__(range(4)))
        return learner._rollouts.batch.branch_ids, logged["rl/sampler_mismatch"]

    ids, mismatch = written(frozen, start)
    assert all(torch.equal(weight, kept[name]) for name, weight in model.state_dict().items())
    of_moved, exact = written(TOKENS)
    model.load_state_dict(toy_model().state_dict())
    of_start, _ = written(TOKENS)
    assert torch.equal(ids, of_start)
    assert not torch.equal(ids, of_moved)
    assert mismatch > 0.01
    assert exact < 1e-4
    with pytest.raises(ValueError, match="needs the StartingPoint"):
        written(frozen)


def test_the_reward_for_uncertainty_is_the_mean_entropy_and_raises_it():
    model = toy_model()
    config = TOKENS.model_copy(update={"entropy_weight": 0.5})
    loss, logged = _recpo(model, config)
    plain, _ = _recpo(model, TOKENS)
    assert (plain - loss).item() == pytest.approx(0.5 * logged["rl/entropy"], rel=1e-5)
    config = config.model_copy(update={"entropy_weight": 100.0})
    loss, first = _recpo(model, config)
    loss.backward()
    assert all(w.grad.isfinite().all() for w in model.parameters() if w.grad is not None)
    torch.optim.SGD(model.parameters(), lr=1e-3).step()
    assert _recpo(model, config)[1]["rl/entropy"] > first["rl/entropy"]


def test_top_k_draws_among_the_likeliest_and_keeps_the_probability_among_all():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).repeat(4000, 1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    drawn, logp = _draw(logits, 2.0, 2, uniform)
    assert set(drawn.tolist()) == {1, 2}
    # heated by 2, the two left are e^1.5 : e^1
    share = 1 / (1 + math.exp(-0.5))
    assert (drawn == 1).float().mean().item() == pytest.approx(share, abs=0.03)
    whole = logits[0].log_softmax(-1)
    assert torch.equal(logp, whole[drawn])
    # every token is among the likeliest 9: the draw is that without the switch
    again, expected = (_draw(logits, 1.0, k, uniform)[0] for k in (9, 0))
    assert torch.equal(again, expected)

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
from reasonrec.records import TokenPolicy
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
    policy = TokenPolicy(temperature)
    if temperature != 1:
        old = token_logp(model, rollouts.batch, policy)
        rollouts = replace(rollouts, old_token_logp_P_G_S=old)
    config = TOKENS.model_copy(update={"token_mean": ours, "kl_weight": 0.0})
    outputs = moved(rollouts.batch, token_policy=policy)
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


def sampled(likelihood_at, top_k):
    """Return how tokens are drawn at temperature 2, and what is then trained."""
    config = TOKENS.model_copy(
        update={"temperature": 2.0, "top_k": top_k, "likelihood_at": likelihood_at}
    )
    return TokenPolicy(config.temperature, config.top_k), config.token_policy


@pytest.mark.parametrize("top_k", [0, 2])
def test_what_is_trained_is_the_policy_that_was_sampled_from(top_k):
    # the mean of a policy's own score function is 0; that of another policy, which the official
    # code trains where it samples hotter or among fewer, is not: it drifts without any reward
    third = math.log(0.25) if top_k else -math.inf
    logits = torch.tensor([math.log(9.0), 0.0, third], requires_grad=True)
    num_draws = 400

    def drift(likelihood_at, policy=None):
        writer, trained = sampled(likelihood_at, top_k)
        # as many draws of each token as it has chances: the numbers drawn are spread evenly
        drawn, _ = _draw(
            logits.detach().expand(num_draws, 3),
            writer,
            (torch.arange(num_draws) + 0.5) / num_draws,
        )
        logp, _ = logp_and_entropy(logits.expand(num_draws, 3), drawn, False, policy or trained)
        return torch.autograd.grad(logp.mean(), logits)[0]

    # at 2, 9 to 1 are 3 to 1; of the third, 1/2 to 1, nothing is drawn among two
    writer, trained = sampled("sampling", top_k)
    assert trained == writer
    logp, entropy = logp_and_entropy(logits.expand(2, 3), torch.arange(2), False, trained)
    torch.testing.assert_close(logp.exp().detach(), torch.tensor([0.75, 0.25]))
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(entropy, torch.tensor([expected, expected]))
    torch.testing.assert_close(drift("sampling"), torch.zeros(3), atol=1e-6, rtol=0)
    if top_k:
        # drawn at (3/4, 1/4, 0) from what gives 3 : 1 : 1/2, (2/3, 2/9, 1/9); halved by the heat
        expected = torch.tensor([1 / 24, 1 / 72, -1 / 18])
        torch.testing.assert_close(drift("sampling", TokenPolicy(2.0)), expected)
        # and from 9 : 1 : 1/4, as at 1: 36/41, 4/41, 1/41
        expected = torch.tensor([0.75 - 36 / 41, 0.25 - 4 / 41, -1 / 41])
    else:
        # drawn at 3/4 and 1/4 from what gives 9/10 and 1/10: (3/4 - 9/10, 1/4 - 1/10)
        expected = torch.tensor([-0.15, 0.15, 0.0])
    torch.testing.assert_close(drift("one"), expected)


def test_a_drawn_token_that_is_no_longer_among_the_likeliest_counts_as_if_it_were():
    # the weights have moved since: of 3, 2, 1 and 0 the likeliest two are kept, and what was drawn
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2, requires_grad=True)
    logp, entropy = logp_and_entropy(logits, torch.tensor([3, 0]), True, TokenPolicy(1.0, 2))
    left = torch.tensor([math.exp(3), math.exp(2), 1.0])
    p = left / left.sum()
    stayed = left[:2] / left[:2].sum()
    torch.testing.assert_close(logp.detach().exp(), torch.stack([p[2], stayed[0]]))
    expected = torch.stack([-(p * p.log()).sum(), -(stayed * stayed.log()).sum()])
    torch.testing.assert_close(entropy.detach(), expected)
    logp.sum().backward(retain_graph=True)
    expected = torch.tensor([[-p[0], -p[1], 0.0, 1 - p[2]], [1 - stayed[0], -stayed[1], 0.0, 0.0]])
    torch.testing.assert_close(logits.grad, expected)
    entropy.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad[:, 2] == 0).all()  # left out, and the choice has no gradient


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 3), (1.5, 1), (0.7, 7), (2.0, 20)])
def test_the_policy_is_that_worked_out_token_by_token(temperature, top_k):
    generator = torch.Generator().manual_seed(top_k)
    logits = torch.randn((60, 12), generator=generator).mul(2).round(decimals=1)  # with ties
    logits[torch.rand((60, 12), generator=generator) < 0.3] = -torch.inf  # never written
    logits[:, 5] = 0.3
    drawn = logits.exp().multinomial(1, generator=generator)[:, 0]
    weights = torch.rand(60, generator=generator)
    logits.requires_grad_()
    logp, entropy = logp_and_entropy(logits, drawn, False, TokenPolicy(temperature, top_k))
    (gradient,) = torch.autograd.grad((logp * weights).sum(), logits)
    num_outside = 0
    for r in range(60):
        row, token = logits[r].tolist(), int(drawn[r])
        least = sorted(row, reverse=True)[min(top_k, 12) - 1]
        num_outside += row[token] < least
        kept = [v for v in range(12) if row[v] > -math.inf and (row[v] >= least or v == token)]
        total = sum(math.exp(row[v] / temperature) for v in kept)
        p = {v: math.exp(row[v] / temperature) / total for v in kept}
        assert logp[r].item() == pytest.approx(math.log(p[token]), abs=1e-5)
        expected = -sum(one * math.log(one) for one in p.values())
        assert entropy[r].item() == pytest.approx(expected, abs=1e-5)
        for v in range(12):
            score = ((v == token) - p[v]) / temperature if v in p else 0.0
            assert gradient[r, v].item() == pytest.approx(weights[r].item() * score, abs=1e-6)
    assert (num_outside > 3) == (top_k < 7)


@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("likelihood_at", ["sampling", "one"])
def test_ratios_start_at_one_and_the_engine_is_compared_whatever_it_drew_by(likelihood_at, top_k):
    model = toy_model()
    config = TOKENS.model_copy(
        update={
            "temperature": 2.0, "top_k": top_k, "likelihood_at": likelihood_at, "kl_weight": 1.0
        }
    )  # fmt: skip
    divisor, top_k = (2.0, top_k) if likelihood_at == "sampling" else (1.0, 0)
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
    assert (rollouts.writer_token_logp is None) == (likelihood_at == "sampling")
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
            if top_k:
                logits[logits < logits.sort(descending=True).values[:, top_k - 1]] = -torch.inf
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
    assert all(math.isfinite(value) for value in logged.values())


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


def test_top_k_draws_among_the_likeliest_and_tells_their_probability():
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0]]).repeat(4000, 1)
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    drawn, logp = _draw(logits, TokenPolicy(2.0, 2), uniform)
    assert set(drawn.tolist()) == {1, 2}
    # heated by 2, the two left are e^1.5 : e^1
    share = 1 / (1 + math.exp(-0.5))
    assert (drawn == 1).float().mean().item() == pytest.approx(share, abs=0.03)
    among_two = torch.tensor([0.0, share, 1 - share, 0.0])
    torch.testing.assert_close(logp.exp(), among_two[drawn])
    # every token is among the likeliest 9: the draw is that without the switch
    again, expected = (_draw(logits, TokenPolicy(1.0, k), uniform)[0] for k in (9, 0))
    assert torch.equal(again, expected)

"""What a step must not compute or keep: each of these once cost time or memory somewhere."""

import numpy as np
import pytest
import torch
from tests.live_tensors import LiveTensors
from tests.toy_models import (
    TOY_SHAPE,
    ring_rows,
    save_backbone,
    toy_catalogue,
    toy_model,
    toy_verbaliser,
)
from tests.toys import toy_dataset

from reasonrec.models import reasoning_recommender
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig
from reasonrec.models.language_head import PLAIN
from reasonrec.models.rec_head import Evidence, EvidencePointer
from reasonrec.records import TokenPolicy
from reasonrec.training.config import RecpoConfig
from reasonrec.training.rl import rewards
from reasonrec.training.rl.recpo import log_prob_of_targets, roll_out
from reasonrec.training.rl.rewards import ranks_of_targets, softmax_reward

P, G, N = 6, 4, 5000
COPY = P * G * N * 4  # bytes of one copy of all scores


def _scores():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn((P, G, N), generator=generator).mul(2).round(decimals=1)  # with ties
    target = torch.randint(N, (P,), generator=generator)
    masked = torch.rand((P, N), generator=generator) < 0.3
    return scores.requires_grad_(), target, masked.scatter(1, target[:, None], False)


def _rollouts(model, *, max_tokens=12):
    dataset = toy_dataset(ring_rows(8, 12, 9), [f"Tale {i}" for i in range(12)])
    return roll_out(
        model, dataset.train, toy_verbaliser(model, dataset), np.array([3, 11, 25]),
        RecpoConfig(max_tokens=max_tokens), generator_seed=1,
    )  # fmt: skip


def _of_all(scores, target, masked):
    found = [softmax_reward(scores, target, masked), ranks_of_targets(scores, target, masked)]
    logp = [log_prob_of_targets(scores, target, masked, over=o) for o in ("batch", "catalogue")]
    (gradient,) = torch.autograd.grad((logp[0] + 2 * logp[1]).sum(), scores)
    return [*found, *logp, gradient]


def test_scores_in_parts_give_what_all_of_them_at_once_give(monkeypatch):
    whole = _of_all(*_scores())
    monkeypatch.setattr(rewards, "MOST_SCORES", 2 * G * N)  # two prompts at a time
    for part, expected in zip(_of_all(*_scores()), whole, strict=True):
        assert torch.equal(part, expected)


@pytest.mark.parametrize("over", ["batch", "catalogue"])
def test_rewards_and_item_term_make_no_second_copy_of_many_scores(monkeypatch, over):
    monkeypatch.setattr(rewards, "MOST_SCORES", G * N)  # one prompt at a time
    scores, target, masked = _scores()
    with LiveTensors() as live, torch.no_grad():
        softmax_reward(scores, target, masked)
        ranks_of_targets(scores, target, masked)
    assert live.peak < COPY
    with LiveTensors() as live:
        logp = log_prob_of_targets(scores, target, masked, over=over)
    assert live.peak < COPY
    with LiveTensors() as live:
        torch.autograd.grad(logp.sum(), scores)
    # the gradient itself, its parts until they are put together, and one prompt's own work
    assert live.peak < 3 * COPY


def test_found_items_cost_two_copies_of_the_scores_and_are_added_item_by_item():
    torch.manual_seed(0)
    pointer = EvidencePointer(8, N)
    pointer.count(torch.randint(9, (N,)))
    with torch.no_grad():
        for few in (pointer.sharpness, pointer.from_popularity, pointer.lift):
            few.uniform_(0.2, 0.8)
        pointer.amount.fill_(0.4)
        pointer.trust.weight.normal_()
    item = torch.tensor([[[3, 7, 3, 0], [5, -1, -1, -1]], [[-1, -1, -1, -1], [9, 8, 9, 9]]])
    weight = torch.rand(2, 2, 4) * (item >= 0)
    post, found = torch.randn(2, 2, 8), Evidence(item, weight, item % 2)
    scores = torch.randn(2, 2, N, requires_grad=True)
    with LiveTensors(lambda tensor: tensor.numel() >= scores.numel()) as live:
        mixed = pointer(scores, post, found)
    assert live.peak == 2 * 4 * scores.numel()
    # the slow way: every kind of every item by itself, and mixed over the whole catalogue
    odds = pointer.sharpness * scores.log_softmax(-1)
    odds = odds + pointer.from_popularity * pointer.log_popularity
    for b in range(2):
        for g in range(2):
            for i in {*item[b, g].tolist()} - {-1}:
                one = torch.zeros_like(odds)
                one[b, g, i] = 1.0
                for kind in range(2):
                    of_kind = (item[b, g] == i) & (found.kind[b, g] == kind)
                    half = pointer.log_half[kind].exp()
                    added = torch.log1p(weight[b, g][of_kind].sum() / half)
                    odds = odds + one * pointer.lift[kind] * added
    prior = odds.softmax(-1)
    share, given = pointer.shares(prior.log().gather(-1, item.clamp(min=0)), post, found)
    expected = (1 - share) * prior
    for b in range(2):
        for g in range(2):
            for e in range(4):
                if item[b, g, e] >= 0:
                    one = torch.zeros_like(expected)
                    one[b, g, item[b, g, e]] = 1.0
                    expected = expected + one * given[b, g, e]
    torch.testing.assert_close(mixed, expected.log(), atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(mixed)
    inputs = (scores, *pointer.parameters())
    fast = torch.autograd.grad((mixed * weights).sum(), inputs)
    slow = torch.autograd.grad((expected.log() * weights).sum(), inputs)
    for gradient, obvious in zip(fast, slow, strict=True):
        torch.testing.assert_close(gradient, obvious, atol=1e-4, rtol=1e-4)


def test_no_scores_on_the_way_to_those_with_evidence_are_kept(monkeypatch):
    num_items = 400
    copy = P * G * num_items * 4
    model = toy_model(num_items)
    pointer, embeddings = model.pointer, model.backbone.get_input_embeddings().weight
    with torch.no_grad():
        for few in (pointer.amount, pointer.from_popularity, pointer.lift):
            few.fill_(0.2)
    torch.manual_seed(0)
    pre, post = (torch.randn(P, G, model.item_rows().shape[1]) for _ in range(2))
    item, target = torch.randint(-1, num_items, (P, G, 6)), torch.arange(P)
    found = Evidence(item, torch.rand(P, G, 6) * (item >= 0), item % 2)
    masked = torch.zeros(P, num_items, dtype=torch.bool)
    results = {}
    for most in (2**24, G * num_items):  # all; one prompt at a time
        monkeypatch.setattr(rewards, "MOST_SCORES", most)
        monkeypatch.setattr(reasoning_recommender, "MOST_SCORES", most)
        with LiveTensors(lambda x: x.shape[-1:] == (num_items,) and x.dim() == 3) as live:
            scores = model.score_thoughts(pre, post, found)
            logp = log_prob_of_targets(scores, target, masked, over="catalogue")
            weights = [*pointer.parameters(), model.readout.gate, embeddings]
            gradients = torch.autograd.grad(logp.sum(), weights, allow_unused=True)
        results[most] = live.peak / copy, [scores, logp, *gradients]
    (at_once, whole), (in_parts, parts) = results.values()
    for part, expected in zip(parts, whole, strict=True):
        torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)
    # the scores, their gradient, its parts until they are put together, one prompt's own work
    assert in_parts < 3.5 < 5 < at_once, (in_parts, at_once)


def test_scores_of_next_items_in_parts_have_the_same_gradients(monkeypatch):
    results = []
    for most in (2**27, 2 * 12):  # all; two positions of twelve items
        monkeypatch.setattr(reasoning_recommender, "MOST_LOGITS", most)
        model = toy_model()
        logp = model(_rollouts(model).batch).next_item_logp
        logp.sum().backward()
        results.append((logp, model.backbone.get_input_embeddings().weight.grad))
    assert len(logp) > 4
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("policy", [PLAIN, TokenPolicy(1.5, 20)])
def test_token_logits_are_made_of_written_tokens_alone_and_a_few_at_a_time(
    tmp_path, monkeypatch, policy
):
    model = build_model(
        toy_catalogue(12), backbone=str(save_backbone(tmp_path, "qwen2")), tiny=TOY_SHAPE, seed=0,
        head=HeadConfig(dropout=0.0, max_history=8),
    ).eval()  # fmt: skip
    batch = _rollouts(model).batch
    V = model.backbone.get_output_embeddings().weight.shape[0]
    monkeypatch.setattr(reasoning_recommender, "MOST_LOGITS", 4 * V)
    rows = []
    logits_of = reasoning_recommender.backbone_logits

    def counted(backbone, states, *tokens):
        rows.append(len(states))
        return logits_of(backbone, states, *tokens)

    monkeypatch.setattr(reasoning_recommender, "backbone_logits", counted)
    # the gradient of the head's own weights is one as large, whatever is written
    with LiveTensors(lambda t: t.shape[-1:] == (V,) and t.numel() > 4 * V) as live:
        logp = model(batch, token_policy=policy).token_logp
        (gradient,) = torch.autograd.grad(
            logp.sum(), model.backbone.get_output_embeddings().weight, retain_graph=True
        )
    assert live.peak == 0
    assert gradient.abs().sum() > 0
    assert max(rows) == 4
    assert sum(rows) == 2 * batch.is_written.sum() > 40  # and once more in the backward pass


def test_states_of_inner_layers_are_not_kept():
    peaks = []
    for num_layers in (2, 6):
        model = build_model(
            toy_catalogue(12), backbone="tiny", head=HeadConfig(dropout=0.0, max_history=8), seed=0,
            tiny=TOY_SHAPE.model_copy(update={"num_layers": num_layers}),
        ).eval()  # fmt: skip
        batch = _rollouts(toy_model()).batch
        with LiveTensors() as live, torch.no_grad():
            model(batch)
        peaks.append(live.peak)
    assert peaks[0] == peaks[1]


def _tokens_through(model):
    """Return a list that gets the number of tokens of every pass through the first layer."""
    counts = []
    model.backbone.base_model.layers[0].mlp.register_forward_hook(
        lambda _, inputs, __: counts.append(inputs[0].shape[:-1].numel())
    )
    return counts


def test_a_prompt_is_read_once_for_all_its_thoughts_in_sampling_and_in_training():
    model = toy_model()
    counts = _tokens_through(model)
    rollouts = _rollouts(model)
    num_prompts, longest = rollouts.batch.trunk_ids.shape
    assert counts[0] == num_prompts * longest  # not times G; then thoughts alone
    # of 12 thoughts, at most a question and its answer at a time: none of the prompts again
    assert max(counts[1:]) <= 12 * 5
    counts.clear()
    with torch.no_grad():
        model(rollouts.batch)
    num_branch = rollouts.batch.branch_ids.numel()
    assert counts == [num_prompts * longest + num_branch]

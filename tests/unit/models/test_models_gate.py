"""When to think: the prediction, the threshold, and a recommender that obeys them."""

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.errors import CheckpointError
from reasonrec.models.branches import Batch
from reasonrec.models.gate import RIDGES, ThinkingGate, choose_threshold, fit_gain
from reasonrec.models.ranking import rank_targets
from reasonrec.models.recommenders import (
    GatedThinkingRecommender,
    NoThinkRecommender,
    ThinkingRecommender,
)
from reasonrec.records import Histories
from reasonrec.rng import stream_seed
from reasonrec.training.config import GateConfig, RecpoConfig
from reasonrec.training.gating import learn_gate, rollout_gains, states_before
from reasonrec.training.rl.recpo import roll_out

OF_BRANCHES = {
    "branch_ids", "branch_lengths", "branch_at", "is_written", "named_at", "named_item",
    "named_weight", "named_kind", "target",
}  # fmt: skip

PREDICTED = np.array([0.1, 0.9, -0.3, 0.5])
SILENT = np.array([0.2, 0.4, 0.6, 0.1])
THINK = np.array([0.1, 0.7, 0.2, 0.3])
TOKENS = np.array([10, 20, 30, 40])


def test_a_threshold_by_hand():
    # from the largest prediction on, thinking gains .3, .2, -.1, -.4: two thoughts are best
    choice = choose_threshold(PREDICTED, THINK, SILENT, TOKENS)
    assert choice.threshold == pytest.approx((0.5 + 0.1) / 2)
    assert choice.share_thinking == 0.5
    assert choice.silent_value == pytest.approx(1.3 / 4)
    assert choice.think_value == pytest.approx(1.3 / 4)
    assert choice.value == pytest.approx((1.3 + 0.5) / 4)
    assert (choice.tokens, choice.think_tokens) == (60 / 4, 100 / 4)


def test_the_budget_is_a_mean_over_all_queries():
    # two thoughts cost 60 tokens, 15 a query; one costs 20, 5 a query
    assert choose_threshold(PREDICTED, THINK, SILENT, TOKENS, max_mean_tokens=15).tokens == 15
    within = choose_threshold(PREDICTED, THINK, SILENT, TOKENS, max_mean_tokens=14.9)
    assert (within.tokens, within.threshold) == (5, pytest.approx(0.7))
    nothing = choose_threshold(PREDICTED, THINK, SILENT, TOKENS, max_mean_tokens=4.9)
    assert (nothing.tokens, nothing.threshold) == (0, np.inf)


def test_where_thinking_never_pays_nobody_thinks():
    choice = choose_threshold(PREDICTED, SILENT - 0.1, SILENT, TOKENS)
    assert choice.threshold == np.inf
    assert choice.value == choice.silent_value > choice.think_value
    # and a thought that changes nothing is not paid for
    assert choose_threshold(PREDICTED, SILENT, SILENT, TOKENS).tokens == 0
    everybody = choose_threshold(PREDICTED, SILENT + 0.1, SILENT, TOKENS)
    assert (everybody.threshold, everybody.tokens) == (-np.inf, 25)


def test_equal_predictions_are_thought_about_together():
    # thinking of the first alone would gain .3, but the gate cannot tell it from the second
    choice = choose_threshold(
        np.zeros(2), np.array([0.4, 0.0]), np.array([0.1, 0.9]), np.array([5, 5])
    )
    assert choice.threshold == np.inf


def test_the_prediction_is_ridge_regression_with_the_best_strength():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(40, 5)) * [1, 10, 0.1, 1, 1] + 3
    gains = states @ [1.0, 0.0, 5.0, -1.0, 0.0] + rng.normal(size=40)
    X = (states - states.mean(0)) / states.std(0)

    def left_out(ridge):  # one after the other, the slow way; the scale is that of all rows
        errors = []
        for i in range(40):
            kept = np.delete(np.arange(40), i)
            A = np.column_stack([X[kept], np.ones(39)])
            penalty = np.diag([ridge * 40] * 5 + [0.0])
            solved = np.linalg.solve(A.T @ A + penalty, A.T @ gains[kept])
            errors.append((gains[i] - X[i] @ solved[:5] - solved[5]) ** 2)
        return np.mean(errors)

    best = min(RIDGES, key=left_out)
    A = np.column_stack([X, np.ones(40)])
    solved = np.linalg.solve(A.T @ A + np.diag([best * 40] * 5 + [0.0]), A.T @ gains)
    predicted = fit_gain(states, gains).predict(states)
    np.testing.assert_allclose(predicted, A @ solved, rtol=1e-6)


def test_a_column_that_never_varies_tells_nothing():
    states = np.column_stack([np.ones(10), np.arange(10.0)])
    gate = fit_gain(states, np.arange(10.0))
    assert gate.weight[0] == 0
    with pytest.raises(ValueError, match="two or more"):
        fit_gain(states[:1], np.ones(1))


def test_where_thinking_helps_one_kind_of_user_only_it_thinks_of_those():
    # planted: kind 1 gains .4 from a thought, kind 0 loses .2; the state shows the kind in noise
    rng = np.random.default_rng(1)
    kind = rng.integers(0, 2, 2400)
    axis = rng.normal(size=16)
    axis *= 4 / np.linalg.norm(axis)
    states = (rng.normal(size=(2400, 16)) + np.outer(kind, axis)).astype(np.float32)
    gains = np.where(kind, 0.4, -0.2) + rng.normal(size=2400)  # the noise of one event is larger
    gate = fit_gain(states[:1200], gains[:1200])
    silent = rng.random(1200)
    choice = choose_threshold(
        gate.predict(states[1200:]), silent + gains[1200:], silent, np.full(1200, 30)
    )
    gate = ThinkingGate(gate.weight, gate.bias, choice.threshold)
    right = gate.thinks(states[1200:]) == (kind[1200:] == 1)
    assert right.mean() > 0.9
    assert choice.value > max(choice.silent_value, choice.think_value)


@pytest.fixture(scope="module")
def dataset():
    return toy_dataset(ring_rows(10, 12, 9), [f"Tale {i}" for i in range(12)])


@pytest.fixture(scope="module")
def thinking(dataset):
    model = toy_model()
    with torch.no_grad():
        model.pointer.amount.fill_(0.5)
    verbaliser = toy_verbaliser(model, dataset)
    return ThinkingRecommender(model, verbaliser, name="think-toy", max_tokens=12)


def test_a_gated_recommender_thinks_where_it_is_told_and_keeps_silent_elsewhere(thinking):
    histories = Histories.from_lists([[1, 2, 3], [5], [7, 8], [], [9, 10, 11, 0]])
    always, silent = thinking.score(histories), NoThinkRecommender(thinking.model).score(histories)
    weight = np.zeros(16)
    weight[0] = 1.0
    gated = GatedThinkingRecommender(thinking, ThinkingGate(weight, 0.0), batch_size=2)
    everyone = gated.score(histories)
    np.testing.assert_allclose(everyone.scores, always.scores, atol=1e-4)
    assert everyone.thoughts == always.thoughts
    nobody = GatedThinkingRecommender(thinking, ThinkingGate(weight, 0.0, np.inf)).score(histories)
    np.testing.assert_array_equal(nobody.scores, silent.scores)
    assert (nobody.num_tokens.sum(), set(nobody.thoughts), set(nobody.evidence)) == (0, {""}, {()})

    from reasonrec.models.generation import read_prompts

    first = read_prompts(thinking.model, thinking.model.writer.prompts(histories))[:, 0].numpy()
    some = GatedThinkingRecommender(
        thinking, ThinkingGate(weight, 0.0, float(np.median(first))), batch_size=2
    )
    scored = some.score(histories)
    chosen = first > np.median(first)
    assert chosen.sum() == 2
    assert ((scored.num_tokens > 0) == chosen).all()
    np.testing.assert_allclose(scored.scores[chosen], always.scores[chosen], atol=1e-4)
    np.testing.assert_allclose(scored.scores[~chosen], silent.scores[~chosen], atol=1e-5)
    assert some.name == "think-toy/gated"


def test_a_gate_can_learn_from_rollouts_what_they_earn_above_the_empty_thought(thinking, dataset):
    log, events = dataset.train, np.arange(2, 60, 7)
    recpo = RecpoConfig(group_size=3, beta=0.0, reward_at=12)
    gains = rollout_gains(thinking, log, events, recpo, seed=5)
    # the slow way: every rollout by itself, ranked by the rule of evaluation
    asked = recpo.model_copy(update={"empty_rollout": True, "max_tokens": 12})
    drawn = stream_seed(5, "gate-rollout", 0)
    batch = roll_out(
        thinking.model, log, thinking.verbaliser, events, asked, generator_seed=drawn
    ).batch
    targets, expected = log.item_index[events], []
    for p in range(len(events)):
        rewards = []
        for g in range(3):
            alone = {
                name: value[p : p + 1, g : g + 1] if name in OF_BRANCHES else value[p : p + 1]
                for name, value in vars(batch).items()
                if value is not None
            }
            with torch.no_grad():
                scores = thinking.model(Batch(**alone), with_tokens=False).think_logits
            rank = rank_targets(
                scores[0].numpy(), targets[p : p + 1],
                histories=log.histories_before(events[p : p + 1]), mask="history-except-target",
            )  # fmt: skip
            rewards.append(1 / np.log2(1 + rank[0]))
        assert not batch.is_written[p, 2].any()  # the empty thought
        expected.append((rewards[0] + rewards[1]) / 2 - rewards[2])
    np.testing.assert_allclose(gains, expected, atol=1e-5)
    assert np.abs(gains).max() > 0.01
    gate, _ = learn_gate(
        thinking, thinking, log, events, (log.histories_before(events), targets),
        GateConfig(source="rollouts"), recpo, seed=5,
    )  # fmt: skip
    fitted = fit_gain(states_before(thinking, log.histories_before(events)), gains)
    np.testing.assert_array_equal(gate.weight, fitted.weight)


def test_a_gate_is_saved_and_read_and_a_damaged_one_refused(tmp_path):
    gate = ThinkingGate(np.array([0.5, -2.0]), 0.25, np.inf)
    gate.save(tmp_path)
    again = ThinkingGate.load(tmp_path)
    assert again.weight.tolist() == [0.5, -2.0]
    assert (again.bias, again.threshold) == (0.25, np.inf)
    (tmp_path / "gate.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="must be a gate"):
        ThinkingGate.load(tmp_path)

"""Rewards of written answers and the GRPO step over them, worked out by hand."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.toy_models import toy_model
from tests.toy_traces import hand_question

from reasonrec.models.answers import AnsweringModel, CopyingModel, next_logp, with_words_of
from reasonrec.traces.interaction_of_thought import student_prompt
from reasonrec.training.reasoned_config import GrpoConfig
from reasonrec.training.rl.grpo import Grpo
from reasonrec.training.rl.recpo import StartingPoint
from reasonrec.training.rl.text_rewards import (
    Rollout,
    exact_hit,
    first_place,
    pairwise_order,
    rating_closeness,
    reciprocal_rank,
    well_formed,
)


def rollout(answer=None, *, task="rated", label="4", is_truncated=False, p=(0.2,) * 5) -> Rollout:
    question = hand_question(task=task, label=label)
    return Rollout(question, "so", answer, is_truncated, np.array(p))


def test_closeness_falls_with_the_error_over_the_scale():
    # the scale is 1 to 5: one star off is 1 - 1/4, the far end 1 - 3/4
    assert rating_closeness(rollout("4")) == 1.0
    assert rating_closeness(rollout("3")) == 0.75
    assert rating_closeness(rollout("1")) == 0.25
    assert rating_closeness(rollout(None)) == 0.0


def test_only_the_exact_answer_hits_and_only_a_whole_text_is_well_formed():
    assert [exact_hit(rollout(a)) for a in ("4", "5", None)] == [1.0, 0.0, 0.0]
    assert [well_formed(rollout(a)) for a in ("4", None)] == [1.0, 0.0]
    assert well_formed(rollout("4", is_truncated=True)) == 0.0
    unlabelled = rollout("4", label=None)
    assert exact_hit(unlabelled) == rating_closeness(unlabelled) == reciprocal_rank(unlabelled) == 0


def test_the_rank_of_the_label_counts_ties_half():
    # candidates are Cradle, Comet, Ledger; Comet was taken
    def likes(*p):
        return rollout(task="likes", label="Comet", p=p)

    assert first_place(likes(0.3, 0.5, 0.2)) == reciprocal_rank(likes(0.3, 0.5, 0.2)) == 1.0
    assert first_place(likes(0.5, 0.3, 0.2)) == 0.0
    assert reciprocal_rank(likes(0.5, 0.3, 0.2)) == 0.5
    assert likes(0.4, 0.4, 0.2).rank_of_label == 1.5
    assert first_place(likes(0.4, 0.4, 0.2)) == 0.0


def test_pairs_are_rewarded_for_expecting_more_of_what_was_taken():
    high, low = rollout(p=(0, 0, 0, 0, 1)), rollout(p=(1, 0, 0, 0, 0))
    middle = rollout(p=(0, 0, 1, 0, 0))
    assert middle.expected_rating == 3.0
    taken, untouched = pairwise_order([high, middle], [low, high])
    # 5 > 1 and 5 = 5: (1 + 1/2) / 2; 3 > 1 and 3 < 5: 1/2. The other side: low is below both,
    # high ties once and is above once: (1/2 + 0) / 2
    assert taken.tolist() == [0.75, 0.5]
    assert untouched.tolist() == [1.0, 0.25]


def answering(task="rated", kind=AnsweringModel):
    words = ["So 1 2 3 4 5."] * 9
    model = with_words_of(toy_model(12), words, vocab_size=300, dropout=0, seed=0, kind=kind)
    questions = [hand_question(task=task, label="4"), hand_question(task=task, label="2")]
    return model, questions


SMALL = GrpoConfig(group_size=3, max_tokens=4, max_answer_tokens=3)


def step(grpo, model, key=0, events=(0, 1), batch=0):
    inputs = {"event": events, "key": [key] * len(events), "batch": [batch] * len(events)}
    return grpo(model, {name: torch.tensor(values) for name, values in inputs.items()})


def test_without_spread_in_reward_grpo_alone_teaches_nothing():
    model, questions = answering()
    flat = SMALL.model_copy(update={"answer_weight": 0.0})
    loss, logged = step(Grpo(flat, questions, [(1.0, lambda _: 0.3)], seed=0), model)
    loss.backward()
    gradients = [p.grad.abs().max().item() for p in model.parameters() if p.grad is not None]
    assert max(gradients) == 0.0
    assert logged["rl/frac_flat_groups"] == 1.0
    assert logged["rl/reward_mean"] == pytest.approx(0.3)


def test_what_was_rewarded_becomes_likelier():
    model, questions = answering()
    config = SMALL.model_copy(update={"answer_weight": 0.0})
    lengths = Grpo(config, questions, [(1.0, lambda one: float(len(one.thought)))], seed=0)
    loss, _ = step(lengths, model)
    rollouts = lengths._rollouts
    assert rollouts is not None and rollouts.old_logp is not None
    best = int(rollouts.advantages_P_G[0].argmax())
    loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.grad is not None:
                weight -= 1e-3 * weight.grad
        after, _, _ = model(rollouts.batch)
    assert float(after[best].sum()) > float(rollouts.old_logp[best].sum())


def test_the_answer_term_is_the_cross_entropy_of_the_label_after_own_thoughts():
    model, questions = answering()
    one = SMALL.model_copy(update={"answer_weight": 2.0})
    grpo = Grpo(one, questions, [(1.0, lambda _: 0.0)], seed=0)
    loss, logged = step(grpo, model)
    rollouts = grpo._rollouts
    assert rollouts is not None and rollouts.labelled is not None
    # flat rewards leave the answer term alone: loss = 2 x mean over 6 rollouts of -log p(label)
    assert float(loss.detach()) == pytest.approx(2 * logged["rl/answer_loss"], rel=1e-5)
    ids, weight = rollouts.labelled.token_ids, rollouts.labelled.weight > 0
    written = [str(model.tokenizer.decode(ids[r][weight[r]])).strip() for r in range(6)]
    assert written == ["4</s>"] * 3 + ["2</s>"] * 3


def test_the_answer_term_can_be_a_choice_among_the_offered_answers():
    model, questions = answering()
    grpo = Grpo(SMALL, questions, [(1.0, lambda _: 0.0)], seed=0, chooses=True)
    loss, _ = step(grpo, model)
    assert grpo._rollouts is not None
    labelled = grpo._rollouts.labelled
    assert labelled is not None and not labelled.weight.any()
    expected = []
    for row, at in zip(labelled.token_ids.tolist(), labelled.choice_at[:, 0].tolist(), strict=True):
        question = questions[len(expected) // 3]
        answers = [one[0] for one in model.answer_tokens(question)]
        logp = next_logp(model, [row[:at]])[0, answers].log_softmax(-1)
        expected.append(float(logp[question.answers.index(str(question.label))]))
    assert float(loss.detach()) == pytest.approx(-np.mean(expected), rel=1e-4)


def test_the_distance_from_the_start_is_nothing_at_first_and_grows_with_the_weights():
    model, questions = answering()
    config = SMALL.model_copy(update={"answer_weight": 0.0, "kl_weight": 2.0})
    flat = [(1.0, lambda _: 0.0)]  # so that the loss is the distance alone
    grpo = Grpo(config, questions, flat, seed=0, start=StartingPoint(model))
    loss, logged = step(grpo, model)
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-6)
    started = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    loss, logged = step(grpo, model, key=2)
    rollouts = grpo._rollouts
    assert rollouts is not None and rollouts.start_logp is not None
    with torch.no_grad():
        now, _, _ = model(rollouts.batch)
        model.load_state_dict(started, strict=False)
        before, _, _ = model(rollouts.batch)
    far = (before - now)[rollouts.batch.weight > 0].double()
    expected = float((far.exp() - far - 1).mean())
    assert logged["rl/kl_to_start"] == pytest.approx(expected, rel=1e-4) and expected > 1e-3
    assert float(loss.detach()) == pytest.approx(2 * expected, rel=1e-4)
    # a new batch is held to the same start, not to where the weights are by then
    with torch.no_grad():
        again, _, _ = model(rollouts.batch)
    torch.testing.assert_close(rollouts.start_logp, again)


@pytest.mark.parametrize("kind", [AnsweringModel, CopyingModel])
def test_ratios_are_of_the_policy_that_was_drawn_from_and_the_engine_is_compared(kind):
    model, questions = answering(kind=kind)
    config = SMALL.model_copy(update={"temperature": 2.0, "kl_weight": 1.0, "answer_weight": 0.0})
    grpo = Grpo(config, questions, [(1.0, well_formed)], seed=0, start=StartingPoint(model))
    _, logged = step(grpo, model)
    rollouts = grpo._rollouts
    assert rollouts is not None and rollouts.old_logp is not None
    assert logged["rl/kl_to_start"] == pytest.approx(0.0, abs=1e-6)
    assert logged["rl/sampler_mismatch"] < 1e-4
    # slowly: token by token, each behind its own text so far
    entropies = []
    for r, place in (rollouts.batch.weight > 0).nonzero().tolist():
        text = rollouts.batch.token_ids[r].tolist()
        hot = (next_logp(model, [text[:place]])[0] / 2).log_softmax(-1)
        old = float(rollouts.old_logp[r, place])
        assert old == pytest.approx(float(hot[text[place]]), abs=1e-4)
        entropies.append(float(torch.special.entr(hot.exp()).sum()))
    assert len(entropies) > 20
    assert logged["rl/entropy"] == pytest.approx(np.mean(entropies), abs=1e-4)


def test_inner_epochs_keep_the_rollouts_and_a_new_batch_draws_new_ones():
    model, questions = answering()
    grpo = Grpo(SMALL, questions, [(1.0, well_formed)], seed=0)
    step(grpo, model)
    first = grpo._rollouts
    step(grpo, model, key=2)
    assert grpo._rollouts is first
    step(grpo, model, key=4, batch=1)
    assert grpo._rollouts is not first


def test_pairs_need_no_label_on_the_untouched_side():
    model, questions = answering()
    pairs = [q for one in questions for q in (one, dataclasses.replace(one, label=None))]
    config = SMALL.model_copy(update={"pairwise_weight": 1.0})
    grpo = Grpo(config, pairs, [(0.5, exact_hit)], seed=0)
    loss, logged = step(grpo, model)
    rollouts = grpo._rollouts
    assert rollouts is not None and rollouts.labelled is not None
    assert rollouts.advantages_P_G.shape == (4, 3)
    assert len(rollouts.labelled.token_ids) == 6
    # taken and untouched are one question here, so each is right as often as wrong: 1/2 on average
    assert logged["rl/reward_mean"] == pytest.approx(0.5, abs=0.26)
    assert torch.isfinite(loss)


def test_what_was_recited_is_read_and_not_learned():
    model, questions = answering(task="likes")
    config = SMALL.model_copy(update={"max_tokens": 160, "answer_weight": 0.0})
    grpo = Grpo(config, questions, [(1.0, well_formed)], seed=0, recites=True)
    step(grpo, model)
    rollouts = grpo._rollouts
    assert rollouts is not None
    [(cue, words), *_] = model.recital_tokens(questions[0])
    assert cue == []  # one chain: its facts stand at the beginning
    prompt = len(model.prompt_tokens(student_prompt(questions[0])))
    for row in range(3):
        told = rollouts.batch.token_ids[row, prompt : prompt + len(words)]
        assert told.tolist() == words
        assert not rollouts.batch.weight[row, : prompt + len(words)].any()
        assert rollouts.batch.weight[row, prompt + len(words)] == 1

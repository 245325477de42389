"""What each sentence earns, and the empty thought among the rollouts."""

import copy
import math

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, talking_toy, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.models.ranking import rank_targets
from reasonrec.models.recommenders import GivenThought, score_given
from reasonrec.training.config import RecpoConfig
from reasonrec.training.rl.loss import log_prob_of_targets
from reasonrec.training.rl.recpo import recpo_loss, roll_out
from reasonrec.training.rl.sentences import (
    measure_sentences,
    of_tokens,
    sentence_advantages,
    sentence_gains,
)

SMALL = RecpoConfig(max_tokens=20, next_item_weight=0.0)
EVENTS = (3, 11, 25)


@pytest.fixture(scope="module")
def dataset():
    return toy_dataset(ring_rows(8, 12, 9), [f"Tale {i}" for i in range(12)])


def _rollouts(dataset, model, config, seed=1):
    verbaliser = toy_verbaliser(model, dataset, num_lookups=2)
    return roll_out(model, dataset.train, verbaliser, np.array(EVENTS), config, generator_seed=seed)


@pytest.fixture(scope="module")
def taught(dataset):
    return talking_toy(dataset, num_lookups=2)


@pytest.fixture
def model(taught):
    return copy.deepcopy(taught)


def test_gains_and_advantages_by_hand():
    # two thoughts of one prompt: three sentences, and two
    p = torch.tensor([[[0.1, 0.2, 0.2, 0.4], [0.1, 0.05, 0.4, 0.9]]])
    is_cut = torch.tensor([[[True, True, True, True], [True, True, True, False]]])
    gains, exists = sentence_gains(p.log(), is_cut)
    ln2 = math.log(2)
    # log .2/.1, .2/.2, .4/.2; log .05/.1, .4/.05, and nothing
    expected = torch.tensor([[[ln2, 0.0, ln2], [-ln2, 3 * ln2, 0.0]]])
    torch.testing.assert_close(gains, expected)
    # first sentences: mean 0; second ones: mean 1.5 ln 2; the third has no other to compare with
    advantages = sentence_advantages(gains, exists)
    expected = torch.tensor([[[ln2, -1.5 * ln2, 0.0], [-ln2, 1.5 * ln2, 0.0]]])
    torch.testing.assert_close(advantages, expected)
    sentence = torch.tensor([[[-1, 0, 0, 1, 2, -1], [-1, 0, 1, 1, -1, -1]]])
    expected = torch.tensor(
        [[[0, ln2, ln2, -1.5 * ln2, 0, 0], [0, -ln2, 1.5 * ln2, 1.5 * ln2, 0, 0]]]
    )
    torch.testing.assert_close(of_tokens(advantages, sentence), expected)


def test_the_gains_of_a_thought_sum_to_what_it_adds_to_the_empty_one(dataset, model):
    rollouts = _rollouts(dataset, model, SMALL.model_copy(update={"sentence_weight": 1.0}))
    own = log_prob_of_targets(
        model(rollouts.batch).think_logits, rollouts.target_P, rollouts.masked_P_N, over="catalogue"
    )
    empty = GivenThought(tuple(model.writer.opening + model.writer.encode("<answer>")))
    histories = dataset.train.histories_before(np.array(EVENTS))
    scores = torch.from_numpy(score_given(model, histories, [empty] * 3))
    silent = log_prob_of_targets(
        scores[:, None], rollouts.target_P, rollouts.masked_P_N, over="catalogue"
    )
    total = rollouts.sentences.gains_P_G_K.sum(-1)
    torch.testing.assert_close(total, own - silent, atol=1e-4, rtol=1e-4)
    assert total.abs().max() > 0.1


@pytest.mark.parametrize("item_rows", ["text", "text+id"])
def test_sentences_are_measured_with_the_rows_that_the_reward_sees(dataset, item_rows):
    model = toy_model(item_rows=item_rows)
    model.refresh_items()
    model.item_table.encoded[:, 0] += 1.0  # stale rows
    stale = model.item_rows().detach().clone()
    rollouts = _rollouts(dataset, model, SMALL.model_copy(update={"sentence_weight": 1.0}))
    measured = rollouts.sentences.gains_P_G_K
    rows = model.item_rows().detach().clone()
    assert (rows[rollouts.target_P] != stale[rollouts.target_P]).any(-1).all()
    model(
        rollouts.batch
    )  # the pass whose scores are rewarded; it encodes the targets, with gradient
    torch.testing.assert_close(model.item_rows(), rows)
    again = measure_sentences(model, rollouts.batch, rollouts.target_P, rollouts.masked_P_N)
    torch.testing.assert_close(again.gains_P_G_K, measured)


def test_only_written_tokens_of_sentences_have_an_advantage_to_learn_from(dataset, model):
    rollouts = _rollouts(dataset, model, SMALL.model_copy(update={"sentence_weight": 1.0}))
    sentences, batch = rollouts.sentences, rollouts.batch
    opening = len(model.writer.opening)
    assert (sentences.token_advantages[..., :opening] == 0).all()
    for p in range(3):
        for g in range(4):
            length = int(batch.branch_lengths[p, g])
            assert (
                sentences.token_advantages[p, g, length - 1 :] == 0
            ).all()  # the marker, padding
    # in each group and place they sum to nothing
    values = torch.zeros_like(sentences.gains_P_G_K)
    values[sentences.exists_P_G_K] = sentence_advantages(
        sentences.gains_P_G_K, sentences.exists_P_G_K
    )[sentences.exists_P_G_K]
    torch.testing.assert_close(values.sum(1), torch.zeros_like(values.sum(1)), atol=1e-5, rtol=0)


def test_a_step_makes_sentences_that_help_likelier(dataset, model):
    config = SMALL.model_copy(
        update={
            "sentence_weight": 1.0, "thought_weight": 0.0, "item_weight": 0.0, "token_mean": "sum",
        }
    )  # fmt: skip
    rollouts = _rollouts(dataset, model, config)
    loss, logged = recpo_loss(model(rollouts.batch), rollouts, config)
    optimiser = torch.optim.SGD(model.parameters(), lr=2e-3)
    loss.backward()
    optimiser.step()
    moved = model(rollouts.batch).token_logp - rollouts.old_token_logp_P_G_S
    advantages = rollouts.sentences.token_advantages * rollouts.batch.is_written
    assert advantages.abs().max() > 0
    assert (advantages * moved).sum() > 0
    assert logged["rl/sentences"] >= 1.0


def test_both_advantages_add_up_and_off_is_as_before(dataset, model):
    on = SMALL.model_copy(update={"sentence_weight": 0.5, "item_weight": 0.0})
    rollouts = _rollouts(dataset, model, on)
    outputs = model(rollouts.batch)
    whole, _ = recpo_loss(outputs, rollouts, on.model_copy(update={"flat_groups": "skip"}))
    alone = on.model_copy(update={"thought_weight": 0.0, "flat_groups": "skip"})
    sentences_alone, _ = recpo_loss(outputs, rollouts, alone)
    rollouts.sentences = None
    off = SMALL.model_copy(update={"item_weight": 0.0, "flat_groups": "skip"})
    thought_alone, logged = recpo_loss(outputs, rollouts, off)
    torch.testing.assert_close(whole, thought_alone + sentences_alone)
    assert _rollouts(dataset, model, SMALL).sentences is None
    assert not {"rl/sentence_gain", "rl/think_gain"} & set(logged)


EMPTY = SMALL.model_copy(update={"empty_rollout": True})


def test_the_last_rollout_of_each_group_is_the_empty_thought(dataset, model):
    batch = _rollouts(dataset, model, EMPTY).batch
    assert batch.branch_lengths.shape == (3, 4)
    for p in range(3):
        length = int(batch.branch_lengths[p, 3])
        assert model.tokenizer.decode(batch.branch_ids[p, 3, :length]) == "<think><answer>"
        assert not batch.is_written[p, 3].any()
        assert (batch.named_item[p, 3] == -1).all()
    # the others are what a smaller group would have been
    three = _rollouts(dataset, model, SMALL.model_copy(update={"group_size": 3})).batch
    assert torch.equal(batch.branch_ids[:, :3], three.branch_ids)
    assert torch.equal(batch.is_written[:, :3], three.is_written)


def test_the_gain_of_thinking_is_the_reward_of_thoughts_less_that_of_silence(dataset, model):
    config = EMPTY.model_copy(update={"beta": 0.0})
    rollouts = _rollouts(dataset, model, config)
    _, logged = recpo_loss(model(rollouts.batch), rollouts, config)
    rewards = rollouts.rewards_P_G
    gains = [sum(row[:3]) / 3 - row[3] for row in rewards.tolist()]
    assert logged["rl/think_gain"] == pytest.approx(sum(gains) / 3)
    assert logged["rl/frac_think_wins"] == pytest.approx(sum(gain > 0 for gain in gains) / 3)
    # the reward of silence is the NDCG of the empty thought, read the slow way
    histories = dataset.train.histories_before(np.array(EVENTS))
    empty = GivenThought(tuple(model.writer.opening + model.writer.encode("<answer>")))
    rank = rank_targets(
        score_given(model, histories, [empty] * 3), rollouts.target_P.numpy(),
        histories=histories, mask="history-except-target",
    )  # fmt: skip
    np.testing.assert_allclose(rewards[:, 3].numpy(), 1 / np.log2(1 + rank), rtol=1e-5)


def test_silence_moves_the_advantage_of_words_and_has_no_token_loss_itself(dataset, model):
    config = EMPTY.model_copy(
        update={"item_weight": 0.0, "flat_groups": "skip", "advantage": "centred"}
    )
    rollouts = _rollouts(dataset, model, config)
    outputs = model(rollouts.batch)
    loss, _ = recpo_loss(outputs, rollouts, config)
    rewards, written = rollouts.rewards_P_G, rollouts.batch.is_written
    advantages = rewards - rewards.mean(1, keepdim=True)  # silence among the four
    # ratios are 1: the loss is the mean advantage over written tokens, of three rollouts alone
    expected = -(advantages[..., None] * written)[:, :3].sum() / written.sum()
    torch.testing.assert_close(loss, expected)


def test_an_empty_thought_longer_than_all_others_still_fits(dataset, model):
    config = EMPTY.model_copy(update={"max_tokens": 1, "sentence_weight": 1.0})
    rollouts = _rollouts(dataset, model, config)
    assert rollouts.batch.branch_ids.shape[-1] >= 2
    loss, logged = recpo_loss(model(rollouts.batch), rollouts, config)
    assert torch.isfinite(loss)
    assert logged["rl/frac_truncated"] <= 0.75

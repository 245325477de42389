import copy
import math

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.models.branches import Outputs
from reasonrec.training.config import RecpoConfig
from reasonrec.training.examples import events_with_history, pad_branches
from reasonrec.training.rl.engines.contract import Thoughts
from reasonrec.training.rl.engines.sampler import Sampler
from reasonrec.training.rl.loss import log_prob_of_targets
from reasonrec.training.rl.recpo import (
    PromptSample,
    Recpo,
    masked_items,
    recpo_loss,
    rewards_of,
    roll_out,
)

SMALL = RecpoConfig(max_tokens=6, next_item_weight=0.0)


@pytest.fixture
def dataset():
    return toy_dataset(ring_rows(8, 12, 9), [f"Tale {i}" for i in range(12)])


def _rollouts(dataset, model, config=SMALL, events=(3, 11, 25), seed=1):
    verbaliser = toy_verbaliser(model, dataset)
    return roll_out(model, dataset.train, verbaliser, np.array(events), config, generator_seed=seed)


def test_in_batch_softmax_counts_shared_targets_once_and_never_the_history():
    scores = torch.tensor([[[1.0, 2.0, 3.0, 4.0]], [[1.0, 2.0, 3.0, 4.0]], [[0.0, 0.0, 0.0, 9.0]]])
    target = torch.tensor([0, 1, 1])
    masked = torch.zeros(3, 4, dtype=torch.bool)
    masked[0, 1] = True  # the first user has item 1 already
    logp = log_prob_of_targets(scores, target, masked, over="batch")
    # targets are {0, 1}: alone; 2 against 1; 0 against 0
    expected = [0.0, -math.log(1 + math.exp(-1)), -math.log(2)]
    torch.testing.assert_close(logp[:, 0], torch.tensor(expected))
    whole = log_prob_of_targets(scores, target, masked, over="catalogue")
    expected = -math.log(1 + math.exp(2) + math.exp(3))
    torch.testing.assert_close(whole[0, 0], torch.tensor(expected))


def test_the_history_is_masked_except_the_target(dataset):
    histories = dataset.train.histories_before(np.array([3]))
    masked = masked_items(histories, torch.tensor([1]), 12)
    # user 0 has walked 0, 1, 2; item 1 is the target here, so it stays reachable
    assert masked[0].nonzero()[:, 0].tolist() == [0, 2]


def _taken_again():
    """Return a log where a target repeats: user 0 walks 0, 1, 2 and takes 1 again."""
    return toy_dataset([[0, 1, 2, 1, 3, 4], *ring_rows(7, 12, 9)], [f"T {i}" for i in range(12)])


@pytest.mark.parametrize(
    ("mask", "repeats", "left_out"),
    [
        (None, True, []),
        (None, False, [0, 2]),
        ("none", False, []),
        ("history-except-target", True, [0, 2]),
    ],
)
def test_what_the_rewarded_ranking_leaves_out_is_a_setting(mask, repeats, left_out):
    again = _taken_again()
    model = toy_model()
    config = SMALL.model_copy(update={"beta": 0.0, "mask": mask})
    rollouts = roll_out(
        model, again.train, toy_verbaliser(model, again), np.array([3]), config,
        generator_seed=1, repeats=repeats,
    )  # fmt: skip
    assert rollouts.target_P.tolist() == [1]
    assert rollouts.masked_P_N[0].nonzero()[:, 0].tolist() == left_out
    outputs = model(rollouts.batch)
    loss, _ = recpo_loss(outputs, rollouts, config)
    scores = outputs.think_logits[0].detach()  # (G, N)
    kept = [i for i in range(12) if i not in left_out]
    for g in range(4):
        higher = sum(bool(scores[g, i] > scores[g, 1]) for i in kept)
        assert rollouts.rewards_P_G[0, g].item() == pytest.approx(1 / math.log2(2 + higher))
        logp = scores[g, kept].log_softmax(-1)[kept.index(1)]
        torch.testing.assert_close(rollouts.old_item_logp_P_G[0, g], logp)
    assert torch.isfinite(loss)


@pytest.mark.parametrize("item_term", ["best", "infonce"])
def test_a_target_that_the_strict_mask_leaves_out_earns_nothing_and_is_not_taught(item_term):
    again = _taken_again()
    model = toy_model()
    config = SMALL.model_copy(
        update={"mask": "history", "item_term": item_term, "sentence_weight": 1.0}
    )
    # user 0 is asked about 1, taken before, and user 1, after 0, 1, 2 too, about 3, which is new
    rollouts = _rollouts(again, model, config, events=(3, 7))
    assert rollouts.target_P.tolist() == [1, 3]
    assert [row.nonzero()[:, 0].tolist() for row in rollouts.masked_P_N] == [[0, 1, 2]] * 2
    outputs = model(rollouts.batch)
    outputs.think_logits.retain_grad()
    loss, _ = recpo_loss(outputs, rollouts, config)
    assert rollouts.rewards_P_G[0].tolist() == [0.0] * 4
    assert (rollouts.rewards_P_G[1] > 0).all()
    assert not rollouts.sentences.gains_P_G_K[0].any() and rollouts.sentences.gains_P_G_K[1].any()
    loss.backward()
    # a flat group is taught its label by default: here not, since nobody is ever offered it
    assert not outputs.think_logits.grad[0].any() and outputs.think_logits.grad[1].any()


def test_the_masks_of_rewards_are_those_of_rankings():
    from reasonrec.models.ranking import MASKS, rank_targets
    from reasonrec.records import Histories
    from reasonrec.training.rl.rewards import ranks_of_targets

    scores = torch.tensor([[4.0, 3.0, 2.0, 1.0]] * 2)
    histories, target = Histories.from_lists([[0, 1], [0, 2]]), torch.tensor([1, 1])
    # items 0 and 1 rank first. none: second, twice; except-target: first, twice; strict: the first
    # row's target stands in its history
    expected = {"none": [2, 2], "history": [math.inf, 1], "history-except-target": [1, 1]}
    assert set(expected) == set(MASKS)
    for mask, places in expected.items():
        masked = masked_items(histories, target, 4, mask)
        assert ranks_of_targets(scores[:, None], target, masked)[:, 0].tolist() == places
        offline = rank_targets(scores.numpy(), target.numpy(), histories=histories, mask=mask)
        assert offline.tolist() == places


def test_tokens_cost_their_share_of_the_budget(dataset):
    model = toy_model()
    rollouts = _rollouts(dataset, model)
    scores = model(rollouts.batch).think_logits.detach()
    free = rewards_of(rollouts, scores, SMALL)
    rollouts.batch.branch_lengths = torch.zeros_like(rollouts.batch.branch_lengths)
    rollouts.batch.branch_lengths[0, 0], rollouts.batch.branch_lengths[1, 2] = 3, 6
    charged = rewards_of(rollouts, scores, SMALL.model_copy(update={"length_weight": 0.2}))
    expected = torch.zeros(3, 4)
    # 3 and 6 of at most 6 tokens: 0.2 * 3 / 6 and 0.2 * 6 / 6
    expected[0, 0], expected[1, 2] = 0.1, 0.2
    torch.testing.assert_close(free - charged, expected)


@pytest.mark.parametrize("flat", [False, True])
def test_infonce_trains_the_recommendation_of_all_rollouts_whatever_they_earned(dataset, flat):
    model = toy_model()
    config = SMALL.model_copy(update={"item_term": "infonce", "thought_weight": 0.0})
    rollouts = _rollouts(dataset, model, config)
    recpo_loss(model(rollouts.batch), rollouts, config)
    if flat:
        rollouts.rewards_P_G = torch.full_like(rollouts.rewards_P_G, 0.4)
    outputs = model(rollouts.batch)
    outputs.think_logits.retain_grad()
    loss, _ = recpo_loss(outputs, rollouts, config)
    loss.backward(retain_graph=True)
    found, outputs.think_logits.grad = outputs.think_logits.grad, None
    # on-policy: the gradient of the mean cross-entropy of the target over prompts and rollouts
    scores = outputs.think_logits.masked_fill(rollouts.masked_P_N[:, None], -torch.inf)
    target = rollouts.target_P.repeat_interleave(4)
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), target).backward()
    torch.testing.assert_close(found, outputs.think_logits.grad)


def test_rollouts_carry_the_target_of_their_own_prompt(dataset):
    model = toy_model(max_history=4)
    rollouts = _rollouts(dataset, model, events=(3, 12))
    # user 0 at its fourth training event takes 3; 7 events a user, so event 12 is user 1's sixth: 6
    assert rollouts.target_P.tolist() == [3, 6]
    prompt = model.tokenizer.decode(rollouts.batch.trunk_ids[1, : rollouts.batch.trunk_lengths[1]])
    assert prompt == "<s>History: [Tale 2] [Tale 3] [Tale 4] [Tale 5]"


def test_sampler_and_trainer_agree_and_the_ratio_starts_at_one(dataset):
    model = toy_model()
    rollouts = _rollouts(dataset, model)
    _, logged = recpo_loss(model(rollouts.batch), rollouts, SMALL)
    assert logged["rl/sampler_mismatch"] < 1e-4
    assert logged["rl/frac_clipped"] == 0.0


def test_a_step_makes_better_thoughts_likelier_and_worse_ones_less_likely(dataset):
    # the advantages of every group sum to zero; the released code learns nothing from them
    model = toy_model(seed=3)
    config = SMALL.model_copy(update={"item_weight": 0.0, "token_mean": "sum"})
    rollouts = _rollouts(dataset, model, config)
    loss, _ = recpo_loss(model(rollouts.batch), rollouts, config)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
    loss.backward()
    assert sum(p.grad.abs().sum() for p in model.parameters() if p.grad is not None) > 0
    optimiser.step()
    after = model(rollouts.batch).token_logp.sum(-1) - rollouts.old_token_logp_P_G_S.sum(-1)
    centred = rollouts.rewards_P_G - rollouts.rewards_P_G.mean(1, keepdim=True)
    spread = rollouts.rewards_P_G.std(1, keepdim=True).clamp(min=1e-6)
    assert ((centred / spread) * after).sum() > 0


def test_rewards_and_old_probabilities_stay_fixed_over_inner_epochs(dataset):
    model = toy_model()
    rollouts = _rollouts(dataset, model)
    recpo_loss(model(rollouts.batch), rollouts, SMALL)
    rewards, old = rollouts.rewards_P_G.clone(), rollouts.old_token_logp_P_G_S.clone()
    old_item = rollouts.old_item_logp_P_G.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    outputs = model(rollouts.batch)
    _, logged = recpo_loss(outputs, rollouts, SMALL)
    torch.testing.assert_close(rollouts.rewards_P_G, rewards)
    torch.testing.assert_close(rollouts.old_token_logp_P_G_S, old)
    torch.testing.assert_close(rollouts.old_item_logp_P_G, old_item)
    assert logged["rl/frac_clipped"] > 0  # now the ratios are real
    # and so is that of the recommendation, r = p / p_old, of the best rollout of each group
    alone = SMALL.model_copy(update={"thought_weight": 0.0, "flat_groups": "skip"})
    loss, _ = recpo_loss(outputs, rollouts, alone)
    expected = 0.0
    for p in range(3):
        A = (rewards[p] - rewards[p].mean()) / rewards[p].std()
        best = int(A.argmax())
        scores = outputs.think_logits[p, best].masked_fill(rollouts.masked_P_N[p], -torch.inf)
        logp = scores.log_softmax(-1)[rollouts.target_P[p]]
        ratio = (logp - old_item[p, best]).exp().item()
        assert abs(ratio - 1) > 1e-3
        expected += min(ratio * A[best], min(max(ratio, 0.8), 1.2) * A[best]).item() / (3 * 4)
    assert loss.item() == pytest.approx(-expected, rel=1e-4)


class Dictated(Sampler):
    """Writes what it is told: for each rollout a number of words, and whether its marker came by
    itself."""

    def __init__(self, model, told):
        super().__init__(model)
        self.told = told

    def think(self, prompts, look_up, **_):
        writer = self._synced().writer
        word, open_, close = writer.encode(" After"), writer.opening, writer.answer
        rows = [[*open_, *(word * count), *close] for count, _ in self.told]
        marks = [
            [False] * len(open_) + [True] * (count * len(word)) + [ends] * len(close)
            for count, ends in self.told
        ]
        ids, lengths, is_written = map(torch.from_numpy, pad_branches(rows, marks, writer.pad_id))
        none = torch.full((len(rows), 1), -1)
        return Thoughts(
            ids, lengths, is_written, torch.zeros(ids.shape), none, none, torch.zeros(none.shape),
            torch.zeros_like(none), ~torch.tensor([ends for _, ends in self.told]),
        )  # fmt: skip


@pytest.mark.parametrize(
    ("empty", "share"),
    # of two groups one rollout of the first is cut short, and all three of the second
    [(False, 4 / 6), (True, 4 / 8)],  # the empty thought, one more a group, is none that was cut
)
def test_the_share_of_thoughts_that_were_cut_short_is_that_counted_by_hand(dataset, empty, share):
    model = toy_model()
    config = SMALL.model_copy(update={"group_size": 3 + empty, "empty_rollout": empty})
    told = [(1, True), (2, False), (1, True), (2, False), (2, False), (3, False)]
    learner = Recpo(
        config, dataset.train, toy_verbaliser(model, dataset), seed=0, engine=Dictated(model, told)
    )
    inputs = {name: torch.tensor(of) for name, of in
              {"event": [3, 11], "key": [0, 1], "batch": [0, 0]}.items()}  # fmt: skip
    _, logged = learner(model, inputs)
    assert logged["rl/frac_truncated"] == pytest.approx(share)


def test_flat_groups_learn_from_their_label_only_if_told_to(dataset):
    model = toy_model()
    rollouts = _rollouts(dataset, model)
    recpo_loss(model(rollouts.batch), rollouts, SMALL)
    rollouts.rewards_P_G = torch.full_like(rollouts.rewards_P_G, 0.4)
    outputs: Outputs = model(rollouts.batch)
    skipped, logged = recpo_loss(
        outputs, rollouts, SMALL.model_copy(update={"flat_groups": "skip"})
    )
    assert logged["rl/frac_flat_groups"] == 1.0
    assert skipped.item() == 0.0
    trained, _ = recpo_loss(outputs, rollouts, SMALL)
    logp = log_prob_of_targets(
        outputs.think_logits, rollouts.target_P, rollouts.masked_P_N, over="catalogue"
    )
    torch.testing.assert_close(trained, -logp.mean())


def test_prompts_are_training_positions_with_a_history_and_repeat_per_inner_epoch(dataset):
    sample = PromptSample(
        events_with_history(dataset.train), num_prompts=40, batch_size=8, num_inner_epochs=2, seed=0
    )
    assert len(sample) == 80
    for step in range(0, 10, 2):
        first, second = sample.event[step * 8 :][:8], sample.event[(step + 1) * 8 :][:8]
        assert first.tolist() == second.tolist()
    position = sample.event - dataset.train.user_offsets[dataset.train.user_index[sample.event]]
    assert position.min() >= 2


def test_the_same_step_rolls_out_the_same_thoughts(dataset):
    model = toy_model()
    sample = PromptSample(
        events_with_history(dataset.train), num_prompts=8, batch_size=4, num_inner_epochs=1, seed=0
    )
    losses = []
    for _ in range(2):
        learner = Recpo(SMALL, dataset.train, toy_verbaliser(model, dataset), seed=7)
        losses.append(learner(model, sample.__getitems__([4, 5, 6, 7]))[0].item())
    assert losses[0] == losses[1]


def test_each_batch_is_rolled_out_anew_though_it_asks_about_the_same_events(dataset):
    model = toy_model()
    learner = Recpo(SMALL, dataset.train, toy_verbaliser(model, dataset), seed=0)
    sample = PromptSample(
        np.array([3]), num_prompts=2, batch_size=1, num_inner_epochs=2, seed=0
    )  # one event
    found = []
    for step in range(4):
        learner(model, sample[step])
        found.append(learner._rollouts)
    assert found[0] is found[1] and found[2] is found[3]
    assert found[0] is not found[2]


@pytest.mark.parametrize("next_item_weight", [0.0, 0.5])
def test_rows_from_text_are_encoded_for_what_is_trained_alone(
    dataset, monkeypatch, next_item_weight
):
    model = toy_model(item_rows="text")
    model.refresh_items()
    config = SMALL.model_copy(update={"next_item_weight": next_item_weight})
    rollouts = _rollouts(dataset, model, config, events=(3, 11, 25))
    asked = []
    encode = model.encode_items
    monkeypatch.setattr(model, "encode_items", lambda items: asked.append(items) or encode(items))
    model(rollouts.batch)
    targets = {int(dataset.train.item_index[event]) for event in (3, 11, 25)}
    (encoded,) = [set(items.tolist()) for items in asked]
    assert (encoded == targets) == (next_item_weight == 0)
    assert targets <= encoded


def test_ranks_in_rewards_follow_the_rule_of_evaluation():
    from reasonrec.models.ranking import rank_targets
    from reasonrec.records import Histories
    from reasonrec.training.rl.rewards import ranks_of_targets

    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (20, 15)).astype(np.float32)  # few values: many ties
    target = rng.integers(0, 15, 20)
    rows = [rng.choice(15, 4, replace=False).tolist() for _ in range(20)]
    histories = Histories.from_lists(rows)
    expected = rank_targets(scores, target, histories=histories, mask="history-except-target")
    masked = masked_items(histories, torch.from_numpy(target), 15)
    found = ranks_of_targets(torch.from_numpy(scores)[:, None], torch.from_numpy(target), masked)
    assert found[:, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("over", ["batch", "catalogue"])
def test_reward_and_item_term_read_targets_that_were_encoded_just_now_and_teach_them(dataset, over):
    model = toy_model(item_rows="text")
    model.refresh_items()
    words = torch.tensor(model.tokenizer(" Ember", add_special_tokens=False)["input_ids"])
    embeddings = model.backbone.get_input_embeddings().weight
    with torch.no_grad():  # the category of odd items; no title holds it
        embeddings[words] += 1.0
    config = SMALL.model_copy(update={"item_softmax": over, "thought_weight": 0.0})
    rollouts = _rollouts(dataset, model, config)
    target = rollouts.target_P
    assert target.tolist() == [3, 5, 7]  # each an odd one
    read = torch.cat([rollouts.batch.trunk_ids.flatten(), rollouts.batch.branch_ids.flatten()])
    assert not torch.isin(words, read).any()  # so that item texts alone can move it
    fresh, expected = copy.deepcopy(model), copy.deepcopy(model)
    fresh.refresh_items()
    expected.item_table.store(target, fresh.item_table.encoded[target])
    with torch.no_grad():  # a pass without gradient scores with the table as it is
        known, stale = expected(rollouts.batch).think_logits, model(rollouts.batch).think_logits
    assert ((known - stale).abs().amin((0, 1))[target] > 1e-3).all()
    outputs = model(rollouts.batch)
    torch.testing.assert_close(outputs.think_logits.detach(), known)
    loss, _ = recpo_loss(outputs, rollouts, config)
    torch.testing.assert_close(rollouts.rewards_P_G, rewards_of(rollouts, known, config))
    assert (rollouts.rewards_P_G - rewards_of(rollouts, stale, config)).abs().max() > 1e-4
    (moved,) = torch.autograd.grad(loss, embeddings)
    assert (moved[words].abs().amax(-1) > 1e-6).all()

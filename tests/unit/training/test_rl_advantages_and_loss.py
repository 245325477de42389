import math

import pytest
import torch

from reasonrec.training.rl.advantages import advantages_within_groups, is_flat
from reasonrec.training.rl.loss import (
    clipped_objective,
    item_objective,
    item_weights,
    token_objective,
)
from reasonrec.training.rl.rewards import (
    fused_reward,
    ndcg_reward,
    ranks_of_targets,
    softmax_reward,
)

CLIP = {"clip_low": 0.2, "clip_high": 0.2}


def test_ranks_count_greater_items_and_half_of_ties_and_skip_masked_ones():
    scores = torch.tensor([[[5.0, 3.0, 3.0, 9.0, 1.0], [0.0, 3.0, 3.0, 3.0, 3.0]]])
    masked = torch.tensor([[False, False, False, True, False]])
    # rollout 1: item 0 is greater, item 2 ties, item 3 is masked: 1 + 1 + 1/2
    # rollout 2: items 2 and 4 tie: 1 + 0 + 2/2
    ranks = ranks_of_targets(scores, torch.tensor([1]), masked)
    assert ranks.tolist() == [[2.5, 2.0]]


def test_ndcg_reward_is_zero_past_its_cut_off():
    rewards = ndcg_reward(torch.tensor([1.0, 3.0, 10.0, 11.0]), 10)
    torch.testing.assert_close(rewards, torch.tensor([1.0, 0.5, 1 / math.log2(11), 0.0]))


def test_the_softmax_reward_leaves_masked_items_out():
    scores = torch.tensor([[[0.0, math.log(3.0), 50.0]]])
    masked = torch.tensor([[False, False, True]])
    # 3 / (1 + 3): the masked item would have taken all of it
    torch.testing.assert_close(
        softmax_reward(scores, torch.tensor([1]), masked), torch.tensor([[0.75]])
    )


def test_a_target_that_is_masked_is_out_of_reach():
    scores = torch.tensor([[[5.0, 9.0, 3.0]]])
    masked = torch.tensor([[False, True, False]])
    assert ranks_of_targets(scores, torch.tensor([1]), masked).tolist() == [[math.inf]]
    assert ndcg_reward(torch.tensor([math.inf]), 1000).tolist() == [0.0]
    assert softmax_reward(scores, torch.tensor([1]), masked).tolist() == [[0.0]]


def test_the_fused_reward_separates_equal_ranks():
    discrete = torch.tensor([[0.5, 0.5]])
    continuous = torch.tensor([[0.2, 0.1]])
    fused = fused_reward(discrete, continuous, beta=0.05)
    # .05 * .2 + .95 * .5 and .05 * .1 + .95 * .5
    torch.testing.assert_close(fused, torch.tensor([[0.485, 0.48]]))
    with pytest.raises(ValueError, match=r"beta must be in \[0, 1\]; got 2"):
        fused_reward(discrete, continuous, beta=2)


def test_a_group_with_equal_rewards_has_no_advantage():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.3, 0.3, 0.3, 0.3]])
    # row 0 has mean 1/4: 1 - 1/4, and 0 - 1/4 three times; row 1 is all alike, so nothing to learn
    expected = torch.tensor([[0.75, -0.25, -0.25, -0.25], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(advantages_within_groups(rewards, "centred"), expected)
    assert is_flat(rewards).tolist() == [False, True]


def test_grpo_divides_by_the_unbiased_spread():
    # mean 1/4; squares .5625 + 3 * .0625 = .75, over 3 = .25, spread .5
    advantages = advantages_within_groups(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "grpo")
    torch.testing.assert_close(advantages, torch.tensor([[1.5, -0.5, -0.5, -0.5]]))


def test_leave_one_out_compares_with_the_mean_of_the_others_and_sums_to_zero():
    # 1 - 0, and 0 - 1/3 three times; the official code's version sums to the mean reward instead
    advantages = advantages_within_groups(torch.tensor([[1.0, 0.0, 0.0, 0.0]]), "leave-one-out")
    torch.testing.assert_close(advantages, torch.tensor([[1.0, -1 / 3, -1 / 3, -1 / 3]]))
    torch.testing.assert_close(advantages.sum(), torch.tensor(0.0))


def test_a_group_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2 rollouts per prompt; got 1"):
        advantages_within_groups(torch.ones(3, 1), "grpo")


def test_clipping_acts_only_where_it_lowers_the_objective():
    old = torch.zeros(4)
    logp = torch.tensor([1.5, 0.5, 1.5, 0.5]).log()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    # min(1.5, 1.2); min(.5, .8); min(-1.5, -1.2); min(-.5, -.8)
    expected = torch.tensor([1.2, 0.5, -1.5, -0.8])
    torch.testing.assert_close(clipped_objective(logp, old, advantage, **CLIP), expected)


def test_an_outer_product_of_advantages_and_ratios_is_refused():
    with pytest.raises(ValueError, match=r"same shape; got \(4, 7\), \(4, 7\) and \(4, 1\)"):
        clipped_objective(torch.zeros(4, 7), torch.zeros(4, 7), torch.zeros(4, 1), **CLIP)


@pytest.mark.parametrize("mean_over", ["tokens", "rollouts", "sum"])
def test_each_rollouts_tokens_follow_its_own_advantage(mean_over):
    # a group whose advantages sum to zero: in the official code its gradient is exactly zero
    logp = torch.full((1, 4, 3), -1.0, requires_grad=True)
    advantages = torch.tensor([[1.5, -0.5, -0.5, -0.5]])
    written = torch.tensor([[[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]]).bool()
    objective = token_objective(
        logp, logp.detach(), advantages, written, **CLIP, mean_over=mean_over
    )
    objective.backward()
    gradient = logp.grad
    assert (gradient[0, 0] > 0).all()
    assert (gradient[0, 1:][written[0, 1:]] < 0).all()
    assert (gradient[~written] == 0).all()
    # at ratio 1 a token's gradient is its advantage times its share of the mean
    share = {"tokens": 1 / 9, "rollouts": 1 / 4 / 2, "sum": 1 / 4}[mean_over]
    torch.testing.assert_close(gradient[0, 1, 0], torch.tensor(-0.5 * share))


def test_only_the_best_rollout_trains_the_recommendation():
    advantages = torch.tensor(
        [[1.5, -0.5, -0.5, -0.5], [0.2, 0.7, -0.9, 0.0], [0.0, 0.0, 0.0, 0.0]]
    )
    expected = torch.tensor([[1.5, 0, 0, 0], [0, 0.7, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(item_weights(advantages, "best"), expected)
    positive = torch.tensor([[1.5, 0, 0, 0], [0.2, 0.7, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(item_weights(advantages, "positive"), positive)
    torch.testing.assert_close(item_weights(advantages, "all"), advantages)
    assert item_weights(advantages, "infonce").tolist() == [[1.0] * 4] * 3


def test_on_policy_the_item_term_is_the_weighted_log_likelihood():
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    weights = torch.tensor([[0.7, 0.0]])
    item_objective(logp, logp.detach(), weights, **CLIP).backward()
    # d/d logp of ratio * A at ratio 1 is A, over G = 2
    torch.testing.assert_close(logp.grad, torch.tensor([[0.35, 0.0]]))

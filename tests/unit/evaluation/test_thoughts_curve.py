"""Accuracy against the number of sampled thoughts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.evaluation.significance import POWER, paired_test
from reasonrec.evaluation.thoughts_curve import curve_markdown, thoughts_curve
from reasonrec.metrics import ndcg
from reasonrec.models.ranking import rank_targets
from reasonrec.models.rec_head import Evidence
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender
from reasonrec.rng import stream

N = 12


@pytest.fixture(scope="module")
def asked():
    dataset = toy_dataset(ring_rows(10, N, 9), [f"Tale {i}" for i in range(N)])
    model = toy_model()
    with torch.no_grad():
        model.pointer.amount.fill_(0.6)
    thinking = ThinkingRecommender(
        model, toy_verbaliser(model, dataset), name="think-toy", max_tokens=12, seed=5
    )
    points = thoughts_curve(
        thinking, dataset.valid, temperatures=(0.7, 1.5), counts=(1, 2, 4), num_timed=3
    )
    return thinking, dataset.valid, points


def _values(recommender, queries):
    histories = queries.histories()
    scores = recommender.score(histories).scores
    rank = rank_targets(scores, queries.target, histories=histories, mask="history-except-target")
    return ndcg(rank, 10)


def test_there_is_a_point_for_silence_greed_and_every_count_and_temperature(asked):
    _, _, points = asked
    assert [(one.way, one.temperature, one.num_thoughts) for one in points] == [
        ("silent", 0.0, 0), ("greedy", 0.0, 1),
        ("sampled", 0.7, 1), ("sampled", 0.7, 2), ("sampled", 0.7, 4),
        ("sampled", 1.5, 1), ("sampled", 1.5, 2), ("sampled", 1.5, 4),
    ]  # fmt: skip


def test_averages_of_all_samples_are_those_of_serving(asked):
    thinking, queries, points = asked
    # ten queries fit one batch, whose stream is that of serving: the points of 4 must agree
    for point in (one for one in points if one.num_thoughts == 4):
        served = replace(thinking, temperature=point.temperature, num_samples=4)
        scored = served.score(queries.histories())
        assert point.ndcg == pytest.approx(_values(served, queries).mean(), abs=1e-12)
        assert point.tokens == pytest.approx(scored.num_tokens.mean())


def test_a_prefix_averages_the_probabilities_of_the_first_thoughts(asked):
    thinking, queries, _ = asked
    sampler = replace(thinking, temperature=1.5, num_samples=4)
    histories = queries.histories()
    written = sampler.write(histories)
    # thought by thought, the slow way
    model = sampler.model
    found = Evidence(written.named_item, written.named_weight, written.named_kind)
    reached = model.score_thoughts(written.pre_states, written.post_states, found)
    alone = reached.detach().numpy().astype(np.float64)
    p = np.exp(alone - alone.max(1, keepdims=True))
    p = (p / p.sum(1, keepdims=True)).reshape(len(histories), 4, N)
    for first in (1, 2, 4):
        scores = sampler.rank_with(written, histories, first=first)
        mean = torch.from_numpy(np.log(p[:, :first].mean(1)))
        with torch.no_grad():
            expected = model.beside_history(mean, written.pre_states[::4], histories)
        np.testing.assert_allclose(np.exp(scores), expected.exp().numpy(), rtol=1e-4)


def test_silent_and_greedy_are_what_they_say_and_tests_are_against_greedy(asked):
    thinking, queries, points = asked
    silent, greedy = points[:2]
    values = [_values(one, queries) for one in (NoThinkRecommender(thinking.model), thinking)]
    assert [silent.ndcg, greedy.ndcg] == pytest.approx([v.mean() for v in values])
    assert (silent.tokens, greedy.difference, greedy.p) == (0.0, 0.0, 1.0)
    test = paired_test(
        values[0], values[1], rng=stream(0, "thoughts-curve/test"), users=queries.user_index
    )
    assert silent.difference == pytest.approx(test.difference)
    assert silent.p >= test.p_permutation  # corrected over seven
    spread = (values[0] - values[1]).std(ddof=1)
    assert silent.detectable == pytest.approx(POWER * spread / np.sqrt(10))


def test_more_thoughts_cost_more_tokens_and_time(asked):
    _, _, points = asked
    for temperature in (0.7, 1.5):
        tokens = [p.tokens for p in points if p.temperature == temperature]
        assert tokens == sorted(tokens)
        assert tokens[2] > 3 * tokens[0]
    assert all(point.cpu_ms is not None and point.cpu_ms >= 0 for point in points)


def test_the_table_names_every_point(asked):
    _, _, points = asked
    lines = curve_markdown(points).splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + len(points)
    assert lines[2].startswith("| silent | - | ")
    assert lines[-1].startswith("10 queries; a difference of ")


def test_samples_that_are_all_the_same_are_refused(asked):
    thinking, queries, _ = asked
    with pytest.raises(ValueError, match="temperatures above 0"):
        thoughts_curve(thinking, queries, temperatures=(0.0,))

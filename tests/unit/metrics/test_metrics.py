import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrec.metrics import METRICS, hit, metric_values, mrr, ndcg
from reasonrec.models.ranking import rank_targets

ranks = st.lists(st.integers(2, 100).map(lambda n: n / 2), min_size=1, max_size=20)


def test_a_target_in_third_place_is_worth_half_of_the_ndcg_and_a_third_of_the_mrr():
    rank = np.array([3.0])
    assert hit(rank, 3) == [1.0]
    assert ndcg(rank, 3) == [0.5]  # 1 / log2(1 + 3) = 1 / 2
    np.testing.assert_allclose(mrr(rank, 3), [1 / 3])
    assert hit(rank, 1) == ndcg(rank, 1) == mrr(rank, 1) == [0.0]


def test_a_tie_across_the_tenth_place_is_no_hit():
    # two items share places 10 and 11: rank 10.5 is outside the first ten, inside the first eleven
    rank = np.array([10.5])
    assert hit(rank, 10) == [0.0]
    assert hit(rank, 11) == [1.0]
    np.testing.assert_allclose(ndcg(rank, 11), [1 / np.log2(11.5)])


def test_an_unreachable_target_scores_zero_everywhere():
    for name in METRICS:
        assert metric_values(name, np.array([np.inf])) == [0.0]


def test_a_rank_below_one_or_missing_is_refused():
    with pytest.raises(ValueError, match="ranks must be 1 or more"):
        hit(np.array([0.5]), 10)
    with pytest.raises(ValueError, match="ranks must be 1 or more"):
        ndcg(np.array([np.nan]), 10)


@pytest.mark.parametrize("name", ["recall@10", "hit", "hit@", "hit@0", "ndcg@ten", "hit@-1"])
def test_an_unknown_metric_is_refused_by_name(name):
    with pytest.raises(ValueError, match="must be hit@k, ndcg@k or mrr@k"):
        metric_values(name, np.array([1.0]))


@given(ranks, st.integers(1, 30))
def test_mrr_is_at_most_ndcg_is_at_most_hit_and_all_grow_with_k(rank, k):
    rank = np.array(rank)
    assert np.all(mrr(rank, k) <= ndcg(rank, k))
    assert np.all(ndcg(rank, k) <= hit(rank, k))
    for metric in (hit, ndcg, mrr):
        assert np.all(metric(rank, k) <= metric(rank, k + 1))


@given(ranks, st.integers(1, 30))
def test_a_better_rank_is_never_worth_less(rank, k):
    rank = np.sort(np.array(rank))
    for metric in (hit, ndcg, mrr):
        assert np.all(np.diff(metric(rank, k)) <= 0)


def measured_by_ir_measures(scores, targets, *, k, names=None):
    """Per-row (success, ndcg, reciprocal rank) at k by an independent library."""
    import ir_measures
    from ir_measures import RR, Success, nDCG

    names = [f"item{i:03d}" for i in range(scores.shape[1])] if names is None else names
    run = [
        ir_measures.ScoredDoc(str(b), names[i], float(scores[b, i]))
        for b in range(len(scores))
        for i in range(scores.shape[1])
    ]
    truth = [ir_measures.Qrel(str(b), names[t], 1) for b, t in enumerate(targets)]
    measures = (Success @ k, nDCG @ k, RR @ k)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about their own dependencies
        found = {
            (int(m.query_id), m.measure): m.value
            for m in ir_measures.iter_calc(measures, truth, run)
        }
    return np.array([[found[b, measure] for measure in measures] for b in range(len(scores))])


@pytest.mark.parametrize("k", [1, 5, 10])
def test_metrics_agree_with_an_independent_library_where_nothing_ties(k):
    rng = np.random.default_rng(k)
    scores = rng.permuted(np.tile(np.arange(40, dtype=np.float32), (60, 1)), axis=1)
    targets = rng.integers(40, size=60)
    rank = rank_targets(scores, targets)
    ours = np.stack([hit(rank, k), ndcg(rank, k), mrr(rank, k)], axis=1)
    np.testing.assert_allclose(ours, measured_by_ir_measures(scores, targets, k=k), atol=1e-12)


def test_with_ties_our_rank_is_the_middle_of_what_the_library_gives_by_item_name():
    # the library orders ties by name: naming the target first or last gives the two ends
    rng = np.random.default_rng(0)
    scores = rng.integers(4, size=(30, 12)).astype(np.float32)
    targets = np.zeros(30, int)
    ends = []
    for name in ("aaa", "zzz"):
        names = [name] + [f"item{i}" for i in range(1, 12)]
        reciprocal = measured_by_ir_measures(scores, targets, k=12, names=names)[:, 2]
        ends.append(1 / reciprocal)
    np.testing.assert_allclose(rank_targets(scores, targets), (ends[0] + ends[1]) / 2)

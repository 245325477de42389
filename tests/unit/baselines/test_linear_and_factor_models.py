"""EASE, iALS, BPR and BM25 against slow obvious versions, and that each learns planted taste."""

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from reasonrec.baselines.bpr import Bpr
from reasonrec.baselines.ease import Ease, check_fits, solve_ease
from reasonrec.baselines.floor import BASELINES, fit_floor
from reasonrec.baselines.history import taken_items, weigh_history
from reasonrec.baselines.ials import Ials
from reasonrec.baselines.item_knn import weigh_bm25
from reasonrec.errors import ConfigError, DataError
from reasonrec.evaluation.protocol import evaluate
from reasonrec.records import Histories
from toys import toy_dataset


def random_dataset(seed, *, num_users=40, num_items=15):
    """Everybody takes what they like, repeats included; the last item is never taken."""
    rng = np.random.default_rng(seed)
    rows = [
        rng.integers(num_items - 1, size=rng.integers(1, 12)).tolist() for _ in range(num_users)
    ]
    return toy_dataset(rows, [f"item {i}" for i in range(num_items)])


def three_tastes(seed=0):
    """Everybody takes seven of the ten items of one taste, in any order: popularity cannot tell."""
    rng = np.random.default_rng(seed)
    rows = [(10 * (user % 3) + rng.permutation(10)[:7]).tolist() for user in range(90)]
    return toy_dataset(rows, [f"item {i}" for i in range(30)])


def ndcg_at_10(name, dataset, **settings):
    method = fit_floor(name, dataset, **settings)
    measured = evaluate(method, dataset, protocols=("full",), num_timed_users=0)
    return next(row.value for row in measured.rows if row.metric == "ndcg@10")


@pytest.mark.parametrize("name", [n for n in BASELINES if "popularity" not in n])
def test_every_personal_baseline_learns_planted_taste(name):
    # at the test 4 of 30 items are left of one's own taste. Popularity ranks 24 alike: one in 24
    # at each of ten places is (1 + 1/log2(3) + ... + 1/log2(11)) / 24 = 4.54 / 24 = 0.19; who knows
    # the taste has one in 4 at each of four places: (1 + 0.63 + 0.5 + 0.43) / 4 = 0.64
    dataset = three_tastes()
    assert ndcg_at_10("popularity", dataset) < 0.3
    assert ndcg_at_10(name, dataset) > 0.5


def test_recent_popularity_learns_what_came_into_fashion():
    # item 0 was taken by all in their first two events, item 1 by all in their third and after
    dataset = toy_dataset([[0, 0, 1, 1, 1]] * 3, ["early", "late"])
    # train: 0 0 1, so popularity answers 0; one day's half-life cannot tell 100 seconds apart
    asked = dataset.test.histories()
    assert fit_floor("popularity", dataset).score(asked).scores[0].argmax() == 0
    quick = fit_floor("recent-popularity", dataset, half_life_days=50 / 86_400)
    assert quick.score(asked).scores[0].argmax() == 1


def test_who_took_what_is_1_however_often():
    dataset = toy_dataset([[2, 0, 2, 1, 1], [1]], list("abc"))  # train: 2 0 2, and 1
    np.testing.assert_array_equal(taken_items(dataset.train, 3).toarray(), [[1, 0, 1], [0, 1, 0]])


def test_a_repeated_item_weighs_the_sum_of_its_events_or_its_latest_one():
    histories = Histories.from_lists([[1, 0, 1], [2], []])
    # events back: 1 is 3 and 1 back, 0 is 2 back
    summed = weigh_history(histories, 3, recency_power=1.0, max_events=10)
    np.testing.assert_allclose(
        summed.toarray(), [[1 / 2, 1 / 3 + 1, 0], [0, 0, 1], [0, 0, 0]], rtol=1e-6
    )
    latest = weigh_history(histories, 3, recency_power=1.0, max_events=10, add_repeats=False)
    np.testing.assert_allclose(latest.toarray(), [[1 / 2, 1, 0], [0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("seed", range(3))
def test_ease_agrees_with_the_closed_form_over_the_whole_catalogue(seed):
    dataset = random_dataset(seed)
    method = fit_floor("ease", dataset, regularisation=3.0, recency_power=0.5, prior_weight=0.01)
    taken = taken_items(dataset.train, dataset.num_items).toarray().astype(np.float64)
    inverse = np.linalg.inv(taken.T @ taken + 3.0 * np.eye(dataset.num_items))
    weights = np.eye(dataset.num_items) - inverse / np.diag(inverse)
    popularity = np.bincount(dataset.train.item_index, minlength=dataset.num_items)
    histories = dataset.test.histories()
    slow = []
    for b in range(len(histories)):
        latest = {item: s for s, item in reversed(list(enumerate(histories.row(b)[::-1], 1)))}
        scores = 0.01 * popularity / popularity.max()
        for item, steps_back in latest.items():
            scores = scores + weights[item] / steps_back**0.5
        slow.append(scores)
    np.testing.assert_allclose(method.score(histories).scores, slow, rtol=1e-4, atol=1e-6)


def test_the_weights_of_two_items_are_what_the_algebra_says():
    # counts [[3, 2], [2, 4]] + ridge 1 = [[4, 2], [2, 5]]; its inverse is [[5, -2], [-2, 4]] / 16;
    # column j over -diag j: from 0 to 1 it is 2/4, from 1 to 0 it is 2/5
    counts = np.array([[3, 2], [2, 4]], np.float32, order="F")
    np.testing.assert_allclose(solve_ease(counts, 1.0), [[0, 1 / 2], [2 / 5, 0]], rtol=1e-6)


def test_the_blocks_of_a_larger_matrix_fit_together():
    rng = np.random.default_rng(0)
    taken = (rng.random((300, 1100)) < 0.05).astype(np.float64)  # three blocks of 512, the last cut
    inverse = np.linalg.inv(taken.T @ taken + 20.0 * np.eye(1100))
    expected = np.eye(1100) - inverse / np.diag(inverse)
    found = solve_ease(np.asfortranarray((taken.T @ taken).astype(np.float32)), 20.0)
    np.testing.assert_allclose(found, expected, atol=1e-5)  # float32, sums over 300 users


def test_ease_keeps_a_matrix_over_the_items_of_training_only():
    method = fit_floor("ease", random_dataset(0))
    assert isinstance(method, Ease)
    assert method.weights.shape == (14, 14)  # 15 items, and the last was never taken
    assert method.weights.flags.c_contiguous


def test_a_catalogue_too_large_for_ease_is_refused_with_what_to_try():
    check_fits(1000, 12 * 1000**2)  # three float32 matrices
    with pytest.raises(DataError, match=r"over the 1,000,000 items.*Try item-knn"):
        check_fits(1_000_000, 2**34)


def test_a_ridge_too_small_for_float32_is_refused():
    counts = np.asfortranarray(np.full((3, 3), 1e6, np.float32))
    with pytest.raises(ValueError, match=r"positive definite in float32; 1e-08 is too small"):
        solve_ease(counts, 1e-8)


@pytest.mark.parametrize("recency_power", [0.0, 1.0])
def test_a_folded_in_history_solves_the_equation_of_ials(recency_power):
    dataset = random_dataset(1)
    method = fit_floor(
        "ials", dataset, num_factors=4, regularisation=0.3, confidence=5.0,
        recency_power=recency_power,
    )  # fmt: skip
    assert isinstance(method, Ials) and method.model is not None
    items = method.model.item_factors.astype(np.float64)
    histories = Histories.from_lists([[3, 1, 3, 7], [0], []])
    # the latest places, counted from the end: 7 is 1 back, 3 is 2 back, 1 is 3 back
    steps_back = [{7: 1, 3: 2, 1: 3}, {0: 1}, {}]
    slow = []
    for places in steps_back:
        confidence = np.ones(len(items))
        preference = np.zeros(len(items))
        for item, s in places.items():
            confidence[item] = 5.0 * s**-recency_power
            preference[item] = 1.0
        left = items.T @ np.diag(confidence) @ items + 0.3 * np.eye(4)
        slow.append(np.linalg.solve(left, items.T @ (confidence * preference)))
    np.testing.assert_allclose(method.fold_in(histories), slow, rtol=1e-3, atol=1e-5)  # float32
    np.testing.assert_allclose(
        method.score(histories).scores[:2], np.array(slow[:2]) @ items.T, rtol=1e-3, atol=1e-5
    )


def test_fold_in_of_a_training_history_is_what_the_library_recalculates():
    dataset = random_dataset(2)
    method = fit_floor("ials", dataset, num_factors=8)
    assert isinstance(method, Ials) and method.model is not None
    taken = csr_matrix(taken_items(dataset.train, dataset.num_items))
    users = np.arange(dataset.num_users)
    last = dataset.train.user_offsets[1:]
    histories = dataset.train.histories(dataset.train.user_offsets[:-1], last, asked=last - 1)
    # the same sums in the order of the history instead of the catalogue
    np.testing.assert_allclose(
        method.fold_in(histories),
        method.model.recalculate_user(users, taken),
        rtol=1e-3,
        atol=1e-5,
    )


def slow_bpr_factor(method, history, pull):
    factor, steps = np.zeros(method.item_factors.shape[1]), []
    pull = np.array(pull) * len(pull) / sum(pull)
    for step in range(method.num_iterations * len(history)):
        item, other = history[step % len(history)], method.negatives[step % len(method.negatives)]
        if other not in history:
            margin = method.item_bias[item] - method.item_bias[other]
            apart = method.item_factors[item] - method.item_factors[other]
            slope = pull[step % len(history)] * apart / (1 + math.exp(margin + factor @ apart))
            factor = factor + method.learning_rate * (slope - method.regularisation * factor)
        steps.append(factor)
    return np.mean(steps[len(steps) // 2 :], axis=0)


def test_fold_in_of_bpr_agrees_with_plain_gradient_steps():
    dataset = random_dataset(3)
    method = fit_floor(
        "bpr", dataset, num_factors=4, num_iterations=5, learning_rate=0.1, recency_power=1.0
    )
    assert isinstance(method, Bpr)
    never_taken = dataset.num_items - 1
    found = method.fold_in(Histories.from_lists([[2, 5, 5, never_taken, 9], [never_taken], []]))
    # in the order of the catalogue; 2 is 5 events back, 5 is 3 back, 9 is 1 back
    expected = slow_bpr_factor(method, [2, 5, 9], [1 / 5, 1 / 3, 1])
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
    np.testing.assert_array_equal(found[1:], 0.0)


def test_a_folded_in_reader_scores_like_the_same_reader_in_training():
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    from reasonrec.rng import stream_seed

    shop = three_tastes()
    settings = {"num_factors": 16, "learning_rate": 0.05, "num_iterations": 60}
    method = fit_floor("bpr", shop, seed=1, **settings)
    assert isinstance(method, Bpr)
    library = BayesianPersonalizedRanking(
        factors=16, learning_rate=0.05, iterations=60, regularization=0.01, num_threads=1,
        random_state=stream_seed(1, "bpr"),
    )  # fmt: skip
    library.fit(csr_matrix(taken_items(shop.train, shop.num_items)), show_progress=False)
    np.testing.assert_array_equal(method.item_bias, library.item_factors[:, -1])
    last = shop.train.user_offsets[1:]
    histories = shop.train.histories(shop.train.user_offsets[:-1], last, asked=last - 1)
    folded = method.fold_in(histories) @ method.item_factors.T
    trained = library.user_factors[:, :-1] @ method.item_factors.T
    likeness = [np.corrcoef(a, b)[0, 1] for a, b in zip(folded, trained)]
    assert np.mean(likeness) > 0.8  # other negatives, drawn in another order: not the same


@pytest.mark.parametrize("name", ["ials", "bpr"])
def test_a_seed_names_one_model_and_another_seed_another(name):
    dataset = random_dataset(4)
    asked = dataset.test.histories()
    first, again, other = (
        fit_floor(name, dataset, seed=seed).score(asked).scores for seed in (7, 7, 8)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["ease", "ials", "bpr", "item-knn-bm25"])
def test_a_history_of_items_that_training_never_saw_gets_the_popular_items(name):
    dataset = random_dataset(5)
    unseen = Histories.from_lists([[dataset.num_items - 1], []])
    scores = fit_floor(name, dataset).score(unseen).scores
    popularity = fit_floor("popularity", dataset).score(unseen).scores
    np.testing.assert_array_equal(np.argsort(-scores[0], kind="stable"),
                                  np.argsort(-popularity[0], kind="stable"))  # fmt: skip
    np.testing.assert_array_equal(scores[0], scores[1])


@pytest.mark.parametrize("seed", range(3))
def test_bm25_weighs_rare_users_up_and_popular_items_down(seed):
    taken = taken_items(random_dataset(seed).train, 15)
    dense = taken.toarray()
    weighted = weigh_bm25(taken, saturation=1.5, popularity_share=0.6).toarray()
    mean_length = dense.sum() / 15
    for user in range(dense.shape[0]):
        num_items = dense[user].sum()
        rarity = math.log(1 + (15 - num_items + 0.5) / (num_items + 0.5))
        for item in range(15):
            length = 1 - 0.6 + 0.6 * dense[:, item].sum() / mean_length
            expected = rarity * 2.5 / (1.5 * length + 1) if dense[user, item] else 0.0
            assert weighted[user, item] == pytest.approx(expected, rel=1e-5)


def test_bm25_neighbours_are_those_of_the_weighted_product_scaled_to_1():
    dataset = random_dataset(6)
    method = fit_floor("item-knn-bm25", dataset, recency_power=0.0, max_events=1, prior_weight=1e-9)
    weighted = weigh_bm25(
        taken_items(dataset.train, 15), saturation=1.2, popularity_share=0.75
    ).toarray()
    product = weighted.T @ weighted
    np.fill_diagonal(product, 0.0)
    scores = method.score(Histories.from_lists([[item] for item in range(15)])).scores
    np.testing.assert_allclose(scores, product / product.max(), rtol=1e-4, atol=1e-7)


def test_a_setting_that_a_baseline_does_not_have_is_refused_with_those_that_it_has():
    dataset = toy_dataset([[0]], ["a"])
    with pytest.raises(ConfigError, match="alpha: there is no such key; known here: confidence"):
        fit_floor("ials", dataset, alpha=3)
    with pytest.raises(ConfigError, match="regularisation: Input should be greater than 0; got 0"):
        fit_floor("ease", dataset, regularisation=0)

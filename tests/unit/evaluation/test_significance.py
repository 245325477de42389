import numpy as np
import pytest

from reasonrec.evaluation.significance import (
    bootstrap_intervals,
    could_have_seen,
    holm,
    paired_test,
    pairwise_tests,
    resampling_users,
)


def test_holms_correction_of_three_tests_by_hand():
    # sorted .01 .02 .04 -> x3 = .03, x2 = .04, x1 = .04; order of arrival is kept
    np.testing.assert_allclose(holm(np.array([0.02, 0.04, 0.01])), [0.04, 0.04, 0.03])
    # never falls, and never passes 1
    np.testing.assert_allclose(holm(np.array([0.03, 0.02])), [0.04, 0.04])
    np.testing.assert_allclose(holm(np.array([0.9, 0.8])), [1.0, 1.0])
    assert holm(np.zeros(0)).shape == (0,)


def test_values_that_are_all_alike_have_no_spread():
    (interval,) = bootstrap_intervals(np.full((10, 1), 0.25), rng=np.random.default_rng(0))
    assert (interval.mean, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_the_interval_of_a_share_is_close_to_its_normal_approximation():
    # 300 hits in 1,000: standard error sqrt(.3 x .7 / 1,000) = .01449; 1.96 of it is .0284
    values = np.repeat([1.0, 0.0], [300, 700])[:, None]
    (interval,) = bootstrap_intervals(values, rng=np.random.default_rng(0), num_resamples=4000)
    assert interval.mean == 0.3
    # with 4,000 resamples an end moves by about .0006 (one standard deviation)
    assert interval.low == pytest.approx(0.3 - 0.0284, abs=0.0025)
    assert interval.high == pytest.approx(0.3 + 0.0284, abs=0.0025)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    num_covered = 0
    for _ in range(200):
        (interval,) = bootstrap_intervals(rng.random((80, 1)), rng=rng, num_resamples=300)
        num_covered += interval.low <= 0.5 <= interval.high
    # 95 % of 200 is 190, give or take 3.1; the percentile interval is a little narrow at 80 rows
    assert 178 <= num_covered <= 200


def test_several_queries_of_one_user_are_resampled_together():
    # 20 users whose 50 queries are copies: as uncertain as 20 rows, not as 1,000
    per_user = np.random.default_rng(0).random((20, 1))
    copies, users = np.repeat(per_user, 50, axis=0), np.repeat(np.arange(20), 50)
    alone, together, naive = (
        bootstrap_intervals(values, users=who, rng=np.random.default_rng(2))[0]
        for values, who in ((per_user, None), (copies, users), (copies, None))
    )
    assert together.mean == pytest.approx(alone.mean)
    assert together.low == pytest.approx(alone.low)  # the same users were drawn
    assert together.high == pytest.approx(alone.high)
    assert naive.high - naive.low < 0.3 * (alone.high - alone.low)  # sqrt(1 / 50) = .14


def test_queries_of_unknown_users_are_users_of_their_own():
    assert resampling_users(np.array([4, -1, 4, -1])).tolist() == [4, -2, 4, -4]


def test_three_wins_out_of_three_have_a_sign_flip_p_of_one_quarter():
    # 8 sign patterns, 2 of them (+++ and ---) as far from 0 as observed: p = 2/8
    test = paired_test(
        np.array([1.0, 2.0, 3.0]), np.zeros(3), rng=np.random.default_rng(0), num_resamples=20_000
    )
    assert test.difference == 2.0
    assert test.p_permutation == pytest.approx(0.25, abs=0.015)  # 5 x sqrt(.25 x .75 / 20,000)


def test_what_could_have_been_seen_is_2_8_standard_errors():
    # an interval of +-1.96 standard errors, wherever it lies: 1.96 + .84 of them
    assert could_have_seen(-1.96, 1.96) == pytest.approx(2.8)
    assert could_have_seen(10 - 0.0196, 10 + 0.0196) == pytest.approx(0.028)
    assert could_have_seen(0.0, 0.0) == 0.0


def test_a_difference_that_could_have_been_seen_is_seen_in_four_of_five_tries():
    rng = np.random.default_rng(0)
    num_queries, num_tries = 200, 250
    # the standard error of a mean of 200 values that spread by 1 is sqrt(1 / 200)
    true = 2.8 / np.sqrt(num_queries)
    zeros = np.zeros(num_queries)
    tests = [
        paired_test(rng.normal(true, 1, num_queries), zeros, rng=rng, num_resamples=300)
        for _ in range(num_tries)
    ]
    # 80 % of 250 is 200, give or take 6.3; an interval of 300 resamples moves
    assert 181 <= sum(test.p_permutation < 0.05 for test in tests) <= 219
    assert np.mean([test.could_have_seen for test in tests]) == pytest.approx(true, rel=0.03)


def test_equal_methods_differ_by_nothing_with_certainty():
    values = np.array([0.0, 1.0, 0.5])
    test = paired_test(values, values, rng=np.random.default_rng(0), num_resamples=500)
    assert (test.difference, test.low, test.high) == (0.0, 0.0, 0.0)
    assert (test.p_permutation, test.p_bootstrap) == (1.0, 1.0)


def test_a_clear_difference_is_found_and_never_has_a_p_of_zero():
    rng = np.random.default_rng(0)
    reference = rng.random(400)
    test = paired_test(reference + 0.2, reference, rng=rng, num_resamples=999)
    assert test.low > 0
    assert test.p_permutation == test.p_bootstrap / 2 == 0.001  # 1 / (1 + 999)


def test_p_values_are_uniform_when_there_is_no_difference():
    rng = np.random.default_rng(5)
    found = []
    for _ in range(300):
        users = np.repeat(np.arange(30), 2)
        shared = np.repeat(rng.normal(size=30), 2)  # one user's two queries move together
        test = paired_test(
            shared + rng.normal(size=60) * 0.1,
            np.zeros(60),
            users=users,
            rng=rng,
            num_resamples=200,
        )
        found.append((test.p_permutation, test.p_bootstrap))
    permutation, bootstrap = np.array(found).T
    # 300 uniform draws: a share of 5 % is 15 give or take 3.8; the bootstrap is a little eager
    assert 4 <= np.count_nonzero(permutation <= 0.05) <= 27
    assert 4 <= np.count_nonzero(bootstrap <= 0.05) <= 36
    assert abs(permutation.mean() - 0.5) < 4 * 0.29 / np.sqrt(300)


def test_wrong_rows_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="same queries"):
        paired_test(np.zeros(3), np.zeros(4), rng=rng)
    with pytest.raises(ValueError, match="at least one query"):
        bootstrap_intervals(np.zeros((0, 1)), rng=rng)


def test_all_pairs_at_once_agree_with_one_pair_at_a_time():
    rng = np.random.default_rng(3)
    users = rng.integers(0, 40, size=90)
    hard = rng.normal(size=90)
    values = np.stack([hard + rng.normal(0.1 * i, 1.0, size=90) for i in range(4)], axis=1)
    tests = pairwise_tests(values, rng=np.random.default_rng(0), users=users, num_resamples=4000)
    for i in range(4):
        for j in range(4):
            if i == j:
                assert (tests.differences[i, j], tests.p_permutation[i, j]) == (0.0, 1.0)
                continue
            alone = paired_test(
                values[:, i], values[:, j], rng=np.random.default_rng(0), users=users,
                num_resamples=4000,
            )  # fmt: skip
            assert tests.differences[i, j] == pytest.approx(alone.difference)
            # the resamples are the same draws; the signs are drawn otherwise
            assert tests.low[i, j] == pytest.approx(alone.low)
            assert tests.high[i, j] == pytest.approx(alone.high)
            assert tests.p_bootstrap[i, j] == pytest.approx(alone.p_bootstrap, abs=1e-3)
            # standard error of a share of 4,000: below sqrt(.25 / 4000) = .008
            assert tests.p_permutation[i, j] == pytest.approx(alone.p_permutation, abs=0.035)
    by_hand = bootstrap_intervals(
        values, rng=np.random.default_rng(0), users=users, num_resamples=4000
    )
    for one, other in zip(tests.means, by_hand):
        assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))


def test_the_permutation_p_of_a_pair_is_the_share_of_all_sign_patterns():
    # sums of differences 3, 1, 1: |+-3 +-1 +-1| >= 5 for +++ and ---, 2 of 8 patterns
    values = np.array([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    tests = pairwise_tests(values, rng=np.random.default_rng(0), num_resamples=20_000)
    assert tests.p_permutation[0, 1] == pytest.approx(2 / 8, abs=0.015)
    assert tests.p_permutation[1, 0] == tests.p_permutation[0, 1]
    assert (tests.low[1, 0], tests.high[1, 0]) == (-tests.high[0, 1], -tests.low[0, 1])


def test_two_names_of_one_method_do_not_differ():
    values = np.repeat(np.random.default_rng(0).normal(size=(30, 1)), 2, axis=1)
    tests = pairwise_tests(values, rng=np.random.default_rng(0), num_resamples=500)
    assert tests.p_permutation[0, 1] == tests.p_bootstrap[0, 1] == 1.0
    assert (tests.low[0, 1], tests.high[0, 1]) == (0.0, 0.0)

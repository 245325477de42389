from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from reasonrec.data.dataset import Catalogue
from reasonrec.errors import DataError
from reasonrec.evaluation.candidates import (
    Candidates,
    draw_candidates,
    given_candidates,
    parse_protocol,
)
from toys import toy_dataset


def random_dataset(seed, *, num_users=40, num_items=50):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(num_items, size=rng.integers(3, 12)).tolist() for _ in range(num_users)]
    return rows, toy_dataset(rows, [f"item {i}" for i in range(num_items)])


@pytest.mark.parametrize("part", ["valid", "test"])
@pytest.mark.parametrize("seed", range(3))
def test_negatives_are_distinct_and_nothing_that_the_user_touches_anywhere(part, seed):
    rows, dataset = random_dataset(seed)
    queries = dataset.queries(part)
    drawn = draw_candidates(dataset, part, num_candidates=20, seed=seed)
    assert drawn.protocol == "candidates-20"
    assert drawn.num_short == 0
    np.testing.assert_array_equal(drawn.item_index[:, 0], queries.target)
    for user, (_, *negatives) in zip(queries.user_index, drawn.item_index.tolist()):
        assert len(set(negatives)) == 19
        # a row of the toy holds training, both histories and both targets
        assert not set(negatives) & set(rows[user])


def test_the_same_seed_draws_the_same_and_another_seed_others():
    _, dataset = random_dataset(0)
    first, again, other = (
        draw_candidates(dataset, "test", num_candidates=20, seed=seed).item_index
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_querys_negatives_do_not_depend_on_the_other_queries():
    rows, dataset = random_dataset(0)
    few = toy_dataset(rows[:5], dataset.catalogue.titles)
    drawn = draw_candidates(dataset, "test", num_candidates=10, seed=3).item_index
    np.testing.assert_array_equal(
        draw_candidates(few, "test", num_candidates=10, seed=3).item_index, drawn[:5]
    )


def test_negatives_are_uniform_over_the_untouched_items():
    # 3,000 users of items 0, 1, 2; each draws 2 of the 5 others: 0.4 x 3,000 = 1,200 expected
    # for each, with standard deviation sqrt(3,000 x 0.4 x 0.6) = 27; four of them are allowed
    dataset = toy_dataset([[0, 1, 2]] * 3000, [f"item {i}" for i in range(8)])
    drawn = draw_candidates(dataset, "test", num_candidates=3, seed=0)
    counts = np.bincount(drawn.item_index[:, 1:].ravel(), minlength=8)
    assert np.all(counts[:3] == 0)
    assert np.all(np.abs(counts[3:] - 1200) < 4 * 27)


def test_too_small_a_catalogue_gives_what_is_left_and_padding():
    dataset = toy_dataset([[0, 1, 2], [0, 1, 2, 3, 4]], list("abcde"))
    drawn = draw_candidates(dataset, "test", num_candidates=20, seed=0)
    assert sorted(drawn.item_index[0, 1:3].tolist()) == [3, 4]
    assert np.all(drawn.item_index[0, 3:] == -1)
    assert np.all(drawn.item_index[1, 1:] == -1)  # this user touched everything
    assert drawn.num_short == 2


def test_popular_negatives_come_in_proportion_to_training_events():
    # u0..u5 train on item 3 four times, item 4 twice and item 5 once in all; the 3,000 askers train
    # on item 0. One negative each: 3, 4, 5 with 4/7, 2/7, 1/7 of 3,000 = 1714, 857 and 429, with
    # standard deviations of at most sqrt(3,000 x 4/7 x 3/7) = 27; four of them are allowed
    trained = [[3, 3], [3], [3], [4], [4], [5]]
    dataset = toy_dataset([*trained, *[[0, 1, 2]] * 3000], [f"item {i}" for i in range(8)])
    drawn = draw_candidates(dataset, "test", num_candidates=2, seed=0, negatives="popular")
    assert drawn.protocol == "candidates-2-popular"
    counts = np.bincount(drawn.item_index[:, 1], minlength=8)
    assert np.all(counts[[0, 1, 2, 6, 7]] == 0)
    assert np.all(np.abs(counts[3:6] - 3000 * np.array([4, 2, 1]) / 7) < 4 * 27)


def test_popular_negatives_are_not_matched_to_the_popularity_of_the_target():
    # item 3 is trained on once and item 4 four times; half of the askers took item 5, which no
    # training event holds, half item 6, which twenty do. Those of 5 draw 3, 4, 6 with 1, 4 and 20
    # of 25, those of 6 draw 3 and 4 with 1 and 4 of 5; of 2,000 each within four times 20
    trained = [[3], *[[4, 4]] * 2, *[[6, 6]] * 10]
    askers = [[0, 1, 5]] * 2000 + [[0, 1, 6]] * 2000
    dataset = toy_dataset([*trained, *askers], [f"item {i}" for i in range(7)])
    drawn = draw_candidates(dataset, "test", num_candidates=2, seed=0, negatives="popular")
    target, negative = drawn.item_index.T
    of_rare, of_popular = (np.bincount(negative[target == i], minlength=7) for i in (5, 6))
    assert np.all(np.abs(of_rare[[3, 4, 6]] - 2000 * np.array([1, 4, 20]) / 25) < 4 * 20)
    assert np.all(np.abs(of_popular[[3, 4]] - 2000 * np.array([1, 4]) / 5) < 4 * 20)


@pytest.mark.parametrize("seed", range(3))
def test_popular_negatives_are_distinct_untouched_and_fill_up_from_the_unpopular(seed):
    rows, dataset = random_dataset(seed)
    drawn = draw_candidates(dataset, "test", num_candidates=30, seed=seed, negatives="popular")
    assert drawn.num_short == 0
    for user, (_, *negatives) in zip(dataset.test.user_index, drawn.item_index.tolist()):
        assert len(set(negatives)) == 29
        assert not set(negatives) & set(rows[user])
    dataset = toy_dataset([[3], [0, 1, 2]], list("abcde"))
    (few,) = draw_candidates(
        dataset, "test", num_candidates=20, seed=seed, negatives="popular"
    ).item_index.tolist()
    assert few[:3] == [2, 3, 4]  # the trained one first, then the one that nobody took
    assert set(few[3:]) == {-1}


@pytest.mark.parametrize(
    ("word", "meaning"),
    [("candidates-20", (20, "uniform")), ("candidates-5-popular", (5, "popular"))],
)
def test_a_protocols_word_says_how_many_and_which_negatives(word, meaning):
    assert parse_protocol(word) == meaning


@pytest.mark.parametrize("word", ["candidates-1", "candidates-20-rare", "full", "candidates-x"])
def test_another_word_is_refused(word):
    with pytest.raises(ValueError, match="full or candidates-C"):
        parse_protocol(word)


def test_unknown_users_keep_their_own_history_out():
    rows, dataset = random_dataset(1)
    nobody = np.full(len(dataset.test), -1, np.int32)
    test = type(dataset.test)(**{**vars(dataset.test), "user_index": nobody})
    drawn = draw_candidates(
        type(dataset)(**{**vars(dataset), "test": test}), "test", num_candidates=20, seed=0
    )
    for row, (_, *negatives) in zip(rows, drawn.item_index.tolist()):
        assert not set(negatives) & set(row)


def test_stored_candidates_read_back_the_same(tmp_path):
    _, dataset = random_dataset(0)
    drawn = draw_candidates(dataset, "test", num_candidates=20, seed=0)
    drawn.write(tmp_path / "candidates.parquet")
    again = Candidates.read(tmp_path / "candidates.parquet", dataset.test)
    np.testing.assert_array_equal(again.item_index, drawn.item_index)
    assert again.protocol == drawn.protocol


def test_stored_candidates_of_other_queries_are_refused(tmp_path):
    _, dataset = random_dataset(0)
    draw_candidates(dataset, "valid", num_candidates=5, seed=0).write(tmp_path / "c.parquet")
    with pytest.raises(DataError, match="candidates of other queries"):
        Candidates.read(tmp_path / "c.parquet", dataset.test)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="must be readable"):
        Candidates.read(tmp_path / "c.parquet", dataset.test)


def given_lists(folder, users, lists):
    path = folder / "given.parquet"
    pl.DataFrame({"user_id": users, "candidates": lists}).write_parquet(path)
    return path


def test_given_lists_put_the_target_first_and_drop_repeats(tmp_path):
    dataset = toy_dataset([[0, 1, 2], [1, 2, 3]], list("abcde"))  # test targets 2 and 3
    path = given_lists(tmp_path, ["u1", "u0"], [["i4", "i3", "i0"], ["i4", "i4"]])
    chosen = given_candidates(path, dataset, "test")
    assert chosen.protocol == "candidates-given"
    assert chosen.item_index.tolist() == [[2, 4, -1], [3, 4, 0]]


def test_given_lists_must_cover_every_user_and_name_known_items(tmp_path):
    dataset = toy_dataset([[0, 1, 2], [1, 2, 3]], list("abcde"))
    path = given_lists(tmp_path, ["u0"], [["i4"]])
    with pytest.raises(DataError, match="1 have none, 'u1' among them"):
        given_candidates(path, dataset, "test")
    path = given_lists(tmp_path, ["u0", "u1"], [["i4"], ["B0001"]])
    with pytest.raises(DataError, match="1 of 2 entries name others, 'B0001'"):
        given_candidates(path, dataset, "test")
    pl.DataFrame({"user": ["u0"]}).write_parquet(path)
    with pytest.raises(DataError, match="Parquet with user_id and candidates"):
        given_candidates(path, dataset, "test")


def test_given_lists_may_write_ids_as_numbers(tmp_path):
    dataset = toy_dataset([[0, 1, 2], [1, 2, 3]], list("abcde"))
    table = pl.DataFrame({"item_id": [str(i) for i in range(5)], "title": list("abcde")})
    dataset = replace(dataset, user_ids=["7", "8"], catalogue=Catalogue(table))
    path = tmp_path / "lists.parquet"
    pl.DataFrame({"user_id": [8, 7], "candidates": [[4, 3, 0], [4, 4]]}).write_parquet(path)
    assert given_candidates(path, dataset, "test").item_index.tolist() == [[2, 4, -1], [3, 4, 0]]
    pl.DataFrame({"user_id": ["7"], "candidates": ["4"]}).write_parquet(path)
    with pytest.raises(DataError, match="lists of item ids"):
        given_candidates(path, dataset, "test")


def test_somebody_whom_the_set_does_not_know_has_no_given_list(tmp_path):
    dataset = toy_dataset([[0, 1, 2], [1, 2, 3]], list("abcde"))
    asked = replace(dataset.test, user_index=np.array([0, -1], np.int32))
    path = given_lists(tmp_path, ["u1", "u0"], [["i4"], ["i4"]])
    with pytest.raises(DataError, match="1 have none, None among them"):
        given_candidates(path, replace(dataset, test=asked), "test")


def test_a_few_unknown_given_items_are_left_out_aloud(tmp_path, caplog):
    dataset = toy_dataset([[0, 1, 2]], [f"item {i}" for i in range(40)])
    path = given_lists(tmp_path, ["u0"], [[f"i{i}" for i in range(3, 33)] + ["gone"]])
    assert given_candidates(path, dataset, "test").item_index.shape == (1, 31)
    assert "left out 1 candidates" in caplog.text

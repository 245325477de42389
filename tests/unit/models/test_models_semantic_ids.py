"""Semantic IDs: the quantiser by hand, the code that tells items apart, and how IDs are written."""

import numpy as np
import pytest

from reasonrec.data.dataset import InteractionLog
from reasonrec.models.semantic_ids import (
    add_id_tokens,
    frac_shared,
    id_texts,
    k_means,
    log_vectors,
    main_axes,
    residual_codes,
    text_vectors,
    with_last_code,
)
from reasonrec.models.tiny.initialisation import weighted_words
from reasonrec.models.tiny.tokenizer import train_tokenizer
from reasonrec.rng import stream


def test_two_levels_of_codes_worked_by_hand():
    # two clusters a hundred apart, around 0 and 100; what is left is -1 or +1 in both of them, so
    # the second level has the same two codes in either
    points = np.array([[-1.0], [1.0], [99.0], [101.0]])
    codes = residual_codes(points, num_levels=2, codebook_size=2, seed=0)
    assert codes[0, 0] == codes[1, 0] != codes[2, 0] == codes[3, 0]
    assert codes[0, 1] == codes[2, 1] != codes[1, 1] == codes[3, 1]
    assert frac_shared(codes) == 0.0
    assert frac_shared(codes[:, :1]) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_k_means_ends_where_no_point_wants_to_move(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(60, 3))
    centres, label = k_means(points, 7, stream(seed, "test"))
    for n, point in enumerate(points):
        assert label[n] == np.argmin([((point - centre) ** 2).sum() for centre in centres])
    for cluster in range(7):
        np.testing.assert_allclose(centres[cluster], points[label == cluster].mean(0))


def test_there_are_no_more_centres_than_different_points():
    points = np.repeat(np.eye(3), 4, axis=0)
    centres, label = k_means(points, 8, stream(0, "test"))
    assert len(centres) == 3
    np.testing.assert_allclose(centres[label], points)


def test_a_seed_decides_the_codes():
    vectors = np.random.default_rng(0).normal(size=(80, 6))
    codes = [residual_codes(vectors, num_levels=3, codebook_size=4, seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(codes[0], codes[1])
    assert (codes[0] != codes[2]).any()


def test_the_last_code_counts_items_that_share_the_others_in_catalogue_order():
    codes = np.array([[1, 2], [0, 0], [1, 2], [1, 3], [1, 2], [0, 0]])
    numbered = with_last_code(codes)
    np.testing.assert_array_equal(numbered[:, :2], codes)
    assert numbered[:, 2].tolist() == [0, 0, 1, 0, 2, 1]
    assert frac_shared(codes) == 5 / 6


@pytest.mark.parametrize("seed", range(10))
def test_every_item_has_an_id_of_its_own(seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(3, size=(50, 2)).astype(float)  # many the same
    codes = with_last_code(residual_codes(vectors, num_levels=2, codebook_size=3, seed=seed))
    assert len(set(id_texts(codes))) == 50


def test_an_id_is_one_token_a_code_and_reads_as_it_is_written():
    codes = np.array([[0, 11, 0], [10, 1, 1], [1, 0, 2]])
    assert id_texts(codes) == ["a0|b11|c0", "a10|b1|c1", "a1|b0|c2"]
    tokenizer = train_tokenizer([], ["History:"] * 9, vocab_size=300)
    before = len(tokenizer)
    add_id_tokens(tokenizer, codes)
    assert len(tokenizer) == before + 11 + 12 + 3
    for text in id_texts(codes):
        tokens = tokenizer.encode(f" [{text}]", add_special_tokens=False)
        assert len(tokens) == 3
        assert tokenizer.decode(tokens) == f" [{text}]"


def test_items_with_the_same_words_have_the_same_vector():
    vectors = text_vectors(
        ["red boat", "boat red", "blue house", "blue house old", "the end"], width=4, seed=0
    )
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0)
    assert vectors[2] @ vectors[3] > 0.5 > abs(vectors[0] @ vectors[2])


def test_words_weigh_by_how_rare_they_are():
    # "boat" is in two of four texts: log 2; "red" in one: log 4; a repeat counts once
    weighted, _ = weighted_words(["red boat", "boat boat", "", "tree"])
    expected = [[np.log(4), np.log(2), 0], [0, np.log(2), 0], [0, 0, 0], [0, 0, np.log(4)]]
    columns = sorted(weighted.toarray().T.tolist())
    np.testing.assert_allclose(columns, sorted(np.transpose(expected).tolist()))


def test_items_of_one_taste_lie_near_each_other_and_unseen_ones_nowhere():
    rows = [(5 * (user % 2) + np.random.default_rng(user).permutation(5)) for user in range(20)]
    log = InteractionLog(
        np.repeat(np.arange(20), 5).astype(np.int32), np.concatenate(rows).astype(np.int32), 20
    )
    vectors = log_vectors(log, 11, width=4, seed=0)
    alike = vectors @ vectors.T
    assert alike[:5, :5].mean() > 0.8 > 0.2 > abs(alike[:5, 5:10].mean())
    assert not vectors[10].any()


def test_main_axes_keep_what_the_table_holds():
    rng = np.random.default_rng(0)
    table, num_words = weighted_words([" ".join(rng.choice(list("abcdefgh"), 4)) for _ in range(9)])
    dense = table.toarray().astype(np.float64)
    rows = main_axes(table, (9, num_words), width=7, seed=0)  # all but the last of eight axes
    unit = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    np.testing.assert_allclose(rows @ rows.T, unit @ unit.T, atol=0.15)

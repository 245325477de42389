import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reasonrec.models.ranking import MASKS, rank_candidates, rank_targets, top_k
from reasonrec.records import Histories


def scores_of(*rows):
    return np.array(rows, np.float32)


def slow_rank(scores, target, history, mask):
    """The definition, one item at a time."""
    if mask == "none":
        history = []
    elif mask == "history-except-target":
        history = [item for item in history if item != target]
    if target in history:
        return np.inf
    rank = 1.0
    for item, score in enumerate(scores):
        if item == target or item in history:
            continue
        if score > scores[target]:
            rank += 1
        elif score == scores[target]:
            rank += 0.5
    return rank


@st.composite
def questions(draw):
    """Scores with many ties and infinities, targets, and histories with repeats."""
    num_rows, num_items = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    value = st.sampled_from([-np.inf, -1.0, 0.0, 1.0, 2.0, 3.0, np.inf])
    row = st.lists(value, min_size=num_items, max_size=num_items)
    item = st.integers(0, num_items - 1)
    scores = draw(st.lists(row, min_size=num_rows, max_size=num_rows))
    targets = draw(st.lists(item, min_size=num_rows, max_size=num_rows))
    histories = draw(st.lists(st.lists(item, max_size=6), min_size=num_rows, max_size=num_rows))
    return np.array(scores, np.float32), np.array(targets), histories


def test_the_rank_counts_higher_scores_whole_and_ties_half():
    # item 0 has 3; one item is higher (5), two tie: 1 + 1 + 2/2 = 3
    assert rank_targets(scores_of([3, 5, 3, 1, 3]), np.array([0])) == [3.0]


def test_a_constant_score_puts_every_target_in_the_middle():
    assert rank_targets(np.zeros((1, 100), np.float32), np.array([7])) == [50.5]  # 1 + 99 / 2


def test_masking_the_history_takes_its_items_out_of_the_competition():
    scores, histories = scores_of([1, 4, 3, 2]), Histories.from_lists([[1, 2, 1]])
    assert rank_targets(scores, np.array([3])) == [3.0]
    assert rank_targets(scores, np.array([3]), histories=histories, mask="history") == [1.0]


def test_a_repeated_target_is_unreachable_unless_the_mask_spares_it():
    scores, histories = scores_of([1, 4, 3, 2]), Histories.from_lists([[1, 2]])
    assert rank_targets(scores, np.array([2]), histories=histories, mask="history") == [np.inf]
    spared = rank_targets(scores, np.array([2]), histories=histories, mask="history-except-target")
    assert spared == [1.0]  # item 1 alone is higher, and it is masked


def test_candidates_compete_among_themselves_and_padding_does_not():
    scores = scores_of([9, 1, 5, 7], [0, 0, 0, 0])
    candidates = np.array([[2, 0, 1], [3, 1, -1]])
    # row 0: only item 0 beats 5; row 1: one tie, so 1 + 1/2
    np.testing.assert_array_equal(rank_candidates(scores, candidates), [2.0, 1.5])


@given(questions())
def test_ranks_agree_with_the_definition_for_every_mask(question):
    scores, targets, lists = question
    for mask in MASKS:
        fast = rank_targets(scores, targets, histories=Histories.from_lists(lists), mask=mask)
        slow = [slow_rank(*row, mask) for row in zip(scores, targets, lists)]
        np.testing.assert_array_equal(fast, slow)


@given(questions(), st.randoms(use_true_random=False))
def test_renaming_the_items_changes_no_rank(question, random):
    scores, targets, lists = question
    order = list(range(scores.shape[1]))
    random.shuffle(order)  # new item i is old item order[i]
    new_name = np.argsort(order)
    renamed = [[int(new_name[item]) for item in row] for row in lists]
    for mask in MASKS:
        before = rank_targets(scores, targets, histories=Histories.from_lists(lists), mask=mask)
        after = rank_targets(
            scores[:, order],
            new_name[targets],
            histories=Histories.from_lists(renamed),
            mask=mask,
        )
        np.testing.assert_array_equal(before, after)


@given(questions())
def test_any_rising_function_of_the_scores_gives_the_same_ranks(question):
    scores, targets, _ = question
    rising = np.arctan(scores) * np.float32(3) + np.float32(1)
    np.testing.assert_array_equal(rank_targets(scores, targets), rank_targets(rising, targets))


@given(questions())
def test_every_rank_lies_between_one_and_the_number_of_items(question):
    scores, targets, lists = question
    histories = Histories.from_lists(lists)
    for mask in ("none", "history-except-target"):
        rank = rank_targets(scores, targets, histories=histories, mask=mask)
        assert np.all((rank >= 1) & (rank <= scores.shape[1]))


@given(questions(), st.integers(1, 9))
def test_the_list_holds_the_best_allowed_items_with_ties_by_index(question, k):
    scores, _, lists = question
    items, values = top_k(scores, k, Histories.from_lists(lists))
    for b, row in enumerate(scores):
        allowed = [item for item in range(len(row)) if item not in lists[b]]
        expected = sorted(allowed, key=lambda item: (-row[item], item))[:k]
        padding = min(k, len(row)) - len(expected)
        assert items[b].tolist() == expected + [-1] * padding
        assert values[b].tolist() == [row[item] for item in expected] + [-np.inf] * padding


@given(questions())
def test_an_items_place_in_the_list_is_its_rank_up_to_half_of_its_ties(question):
    scores, targets, _ = question
    rank = rank_targets(scores, targets)
    items, _ = top_k(scores, scores.shape[1])
    place = np.argmax(items == targets[:, None], axis=1) + 1
    ties = np.count_nonzero(scores == scores[np.arange(len(scores)), targets][:, None], axis=1) - 1
    assert np.all(np.abs(place - rank) <= ties / 2)


def test_a_list_longer_than_the_catalogue_is_the_whole_catalogue():
    items, _ = top_k(scores_of([1, 3, 2]), 10)
    assert items.tolist() == [[1, 2, 0]]


def test_not_a_number_is_an_error_that_names_the_rows():
    scores = scores_of([1, 2], [np.nan, 0])
    with pytest.raises(ValueError, match=r"must not be NaN; rows \[1\]"):
        rank_targets(scores, np.array([0, 0]))
    with pytest.raises(ValueError, match="must not be NaN"):
        top_k(scores, 1)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64])
def test_only_float32_scores_are_ranked(dtype):
    with pytest.raises(ValueError, match="must be float32"):
        rank_targets(np.ones((1, 3), dtype), np.array([0]))


def test_wrong_arguments_are_named():
    scores = scores_of([1, 2, 3])
    with pytest.raises(ValueError, match="one item for each of the 1 rows"):
        rank_targets(scores, np.array([0, 1]))
    with pytest.raises(ValueError, match="item indices below 3"):
        rank_targets(scores, np.array([3]))
    with pytest.raises(ValueError, match="needs a history for each of the 1 rows"):
        rank_targets(scores, np.array([0]), mask="history")
    with pytest.raises(ValueError, match="k must be 1 or more"):
        top_k(scores, 0)
    with pytest.raises(ValueError, match="excluded must have 1 rows"):
        top_k(scores, 1, Histories.from_lists([[], []]))
    with pytest.raises(ValueError, match="column 0 of candidates"):
        rank_candidates(scores, np.array([[-1, 0]]))

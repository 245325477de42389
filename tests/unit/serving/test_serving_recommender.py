import json
from dataclasses import replace

import numpy as np
import pytest

from reasonrec.errors import ServingError
from reasonrec.records import Recommendation
from reasonrec.serving.recommender import known_histories, recommend, recommend_for_history
from toys import NextInLine, toy_dataset

TITLES = ["Anvil", "Bell", "Clock", "Drum", "Easel", "Flute"]
ROWS = [[0, 1, 2, 3], [3, 4, 5], [1], []]


@pytest.fixture
def dataset():
    return toy_dataset(ROWS, TITLES)


@pytest.fixture
def recommender():
    return NextInLine(len(TITLES))


def test_serving_knows_the_test_target_and_all_before_it(dataset):
    histories = known_histories(dataset, [0, 1, 2, 3])
    assert [histories.row(b).tolist() for b in range(4)] == ROWS
    assert histories.timestamp is not None
    assert histories.timestamp.tolist() == [100, 200, 300, 400, 100, 200, 300, 100]
    # the last event of all is at second 400
    assert histories.asked_at is not None
    assert histories.asked_at.tolist() == [401] * 4


def test_serving_works_without_times():
    histories = known_histories(toy_dataset(ROWS, TITLES, timestamps=False), [1, 3, 0])
    assert [histories.row(b).tolist() for b in range(3)] == [ROWS[1], ROWS[3], ROWS[0]]
    assert histories.timestamp is None
    assert histories.asked_at is None


def test_a_user_with_several_test_queries_is_known_by_the_latest():
    dataset = toy_dataset([[0, 1, 2, 3]], TITLES)
    # a global-time split asks twice: after [0] for 1, and (first in the file) after [0, 1] for 2
    test = replace(
        dataset.test,
        user_index=np.array([0, 0], np.int32),
        target=np.array([2, 1], np.int32),
        history_start=np.array([0, 0]),
        history_stop=np.array([2, 1]),
        timestamp=np.array([300, 200]),
    )
    assert known_histories(replace(dataset, test=test), [0]).row(0).tolist() == [0, 1, 2]


def test_the_ranking_continues_after_everything_known(dataset, recommender):
    # u0 took 0 1 2 3: in line are 4, 5, and then 0 .. 3, which are masked
    answer = recommend(recommender, dataset, ["u0"], k=2)[0]
    assert [(item.rank, item.item_id, item.title) for item in answer.items] == [
        (1, "i4", "Easel"),
        (2, "i5", "Flute"),
    ]
    assert [item.score for item in answer.items] == [6.0, 5.0]
    assert [item.title for item in answer.history] == ["Anvil", "Bell", "Clock", "Drum"]
    assert answer.notes == ()
    assert answer.thought is None
    assert answer.chains == ()


def test_items_that_share_a_title_bear_the_numbers_of_thoughts(recommender):
    titles = ["Anvil", "Bell [new]", "Anvil", "Bell (new)", "Easel", "Anvil"]
    answer = recommend(recommender, toy_dataset(ROWS, titles), ["u0"], k=2)[0]
    # brackets are as the shop writes them; in thoughts both bells read alike, and are told apart
    shown = ["Anvil", "Bell [new]", "Anvil #2", "Bell (new) #2"]
    assert [item.title for item in answer.history] == shown
    assert [item.title for item in answer.items] == ["Easel", "Anvil #3"]


def test_without_a_mask_taken_items_are_offered_too(dataset, recommender):
    answer = recommend(recommender, dataset, ["u0"], k=4, mask="none")[0]
    assert [item.item_id for item in answer.items] == ["i4", "i5", "i0", "i1"]


def test_the_answer_does_not_depend_on_who_else_is_asked_about(dataset, recommender):
    together = recommend(recommender, dataset, ["u2", "u0", "u1", "u0"], k=3, explain=True)
    alone = [recommend(recommender, dataset, [u], k=3, explain=True)[0] for u in ("u2", "u0", "u1")]
    assert together == [*alone, alone[1]]


def test_more_people_than_a_batch_are_all_answered(dataset, recommender):
    answers = recommend(recommender, dataset, ["u0", "u1"] * 300, k=1)
    assert [answer.items[0].item_id for answer in answers] == ["i4", "i0"] * 300


def test_nobody_asked_about_gives_no_answers(dataset, recommender):
    assert recommend(recommender, dataset, []) == []


def test_an_explanation_names_the_thought_and_the_chain(dataset, recommender):
    answer = recommend(recommender, dataset, ["u1"], k=2, explain=True)[0]
    assert answer.thought == "after item 5 comes the next"
    (chain,) = answer.chains
    assert (chain.via_title, chain.neighbour_user_id, chain.title) == ("Flute", "u0", "Anvil")
    assert (chain.num_neighbours, chain.weight, chain.rank) == (2, 1.5, 1)


def test_a_method_that_does_not_think_says_so(dataset):
    answer = recommend(NextInLine(6, thinks=False), dataset, ["u1"], explain=True)[0]
    assert "does not think" in answer.notes[-1]


def test_an_unknown_user_is_an_error_that_names_close_ids(dataset, recommender):
    with pytest.raises(ServingError, match=r"'u22' must be one of the 4 users.*close to it: u2"):
        recommend(recommender, dataset, ["u0", "u22"])
    with pytest.raises(ServingError, match="ids look like 'u0'"):
        recommend(recommender, dataset, ["somebody"])


def test_a_single_text_is_not_taken_for_a_list_of_users(dataset, recommender):
    with pytest.raises(ValueError, match=r"try \['u0'\]"):
        recommend(recommender, dataset, "u0")
    with pytest.raises(ValueError, match=r"try \['i0'\]"):
        recommend_for_history(recommender, dataset, "i0")


def test_a_given_history_answers_for_somebody_new(dataset, recommender):
    answer = recommend_for_history(recommender, dataset, ["i1", "i3"], k=3, user_id="nobody yet")
    # in line after 3: 4, 5, 0
    assert [item.item_id for item in answer.items] == ["i4", "i5", "i0"]
    assert answer.user_id == "nobody yet"
    assert answer.notes == ()


def test_a_user_without_events_gets_the_prior_and_a_note(dataset, recommender):
    answer = recommend(recommender, dataset, ["u3"], k=2)[0]
    assert [item.item_id for item in answer.items] == ["i0", "i1"]
    assert "nothing is known of this person" in answer.notes[0]
    assert recommend_for_history(recommender, dataset, [], k=2).items == answer.items


def test_unknown_history_items_are_named_and_ignored(dataset, recommender):
    answer = recommend_for_history(recommender, dataset, ["x", "i0", "y"], k=1)
    assert answer.items[0].item_id == "i1"
    assert answer.notes == (
        "ignored 2 of 3 history items, which the catalogue does not have: x, y",
    )


def test_a_history_of_unknown_items_alone_is_answered_like_an_empty_one(dataset, recommender):
    answer = recommend_for_history(recommender, dataset, [f"x{n}" for n in range(7)], k=1)
    assert answer.items[0].item_id == "i0"
    assert "x0, x1, x2, x3, x4 and 2 more" in answer.notes[0]
    assert "nothing is known" in answer.notes[1]


def test_a_list_longer_than_the_catalogue_holds_what_can_be_offered(dataset, recommender):
    answer = recommend(recommender, dataset, ["u0"], k=50)[0]
    assert [item.item_id for item in answer.items] == ["i4", "i5"]
    assert answer.notes == ("50 items were asked for; the catalogue has 2 that can be offered",)
    assert len(recommend(recommender, dataset, ["u0"], k=6, mask="none")[0].items) == 6


def test_repeated_history_items_are_counted_once(dataset, recommender):
    answer = recommend_for_history(recommender, dataset, ["i0", "i0", "i0"], k=6)
    assert [item.item_id for item in answer.items] == ["i1", "i2", "i3", "i4", "i5"]


def test_somebody_who_took_everything_is_offered_nothing(dataset, recommender):
    answer = recommend_for_history(recommender, dataset, [f"i{n}" for n in range(6)], k=3)
    assert answer.items == ()
    assert "has 0 that can be offered" in answer.notes[0]


def test_a_list_must_hold_one_item_at_least(dataset, recommender):
    with pytest.raises(ServingError, match="k must be 1 or more; got 0"):
        recommend(recommender, dataset, ["u0"], k=0)
    with pytest.raises(ServingError, match="got -3"):
        recommend_for_history(recommender, dataset, ["i0"], k=-3)


def test_an_unknown_mask_is_refused(dataset, recommender):
    with pytest.raises(ValueError, match="mask must be one of history, none"):
        recommend(recommender, dataset, ["u0"], mask="some")  # type: ignore[arg-type]


def test_a_recommendation_survives_json(dataset, recommender):
    answer = recommend(recommender, dataset, ["u1"], k=9, explain=True)[0]
    assert Recommendation.from_json(json.loads(json.dumps(answer.to_json()))) == answer


def test_a_damaged_recommendation_is_refused():
    with pytest.raises(ValueError, match="must have the fields"):
        Recommendation.from_json({"user_id": "u"})

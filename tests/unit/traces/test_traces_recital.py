"""What a thought recites: worked out by hand on one shop."""

import dataclasses

import numpy as np
from tests.toy_traces import asked_of, builder_of, hand_question
from tests.toys import toy_dataset

from reasonrec.traces.recital import Recital, recitals_of, recited

TOLD = (Recital(" Chain 1:", " a b,"), Recital(" Chain 2:", " c."))


def question_of(event=2, candidates=(2, 3), **evidence):
    """Return a question about an event of a user who took 0, 1 and 3; two others took 0 and 1."""
    rows = [[0, 1, 3, 4, 5], [0, 1, 4, 5], [0, 1, 4, 5], [2, 3, 4, 5]]
    dataset = toy_dataset(rows, [f"Tale {n}" for n in range(6)])
    histories = asked_of(dataset, [event])
    histories = dataclasses.replace(histories, asked_at=np.array([10_000], np.int64))
    return builder_of(dataset, **evidence).build(
        histories, np.array([candidates], np.int32), task="likes", keys=np.array([event]), seed=0
    )[0]


def test_facts_of_two_chains_follow_their_cues_and_judgements_are_left_to_the_student():
    question = question_of(num_chains=2, reading="history-closed")
    assert [chain.closes_on for chain in question.chains] == ["history", "history"]
    first, second, last = recitals_of(question)
    chain = question.chains[0]
    item, other = chain.first.title, chain.second.title
    assert first.cue == "" and second.cue == " Chain 2:" and last.cue == " All in all:"
    assert first.words == (
        f" Chain 1: The user took [{item}]. {chain.neighbour} took it too. "
        f"{chain.neighbour} went on to [{other}]. The user took [{other}] too,"
    )


def test_chains_that_are_no_support_are_not_said_to_lead_nowhere():
    question = hand_question(task="likes")
    comet = question.candidates[1].title
    *_, last = recitals_of(question)
    assert last.words == f" Of the chains 2 [{comet}], 1 [{question.candidates[2].title}]."
    *_, last = recitals_of(dataclasses.replace(question, support=(0, 0, 0)))
    assert last.words == " No chain is a short one."  # though it closes on the second candidate
    others = tuple(one for one in question.candidates if one.title != comet)
    elsewhere = dataclasses.replace(question, support=(0, 0), candidates=others)
    *_, last = recitals_of(elsewhere)
    assert last.words == " No chain leads anywhere."


def test_one_chain_is_recited_at_the_beginning_and_none_not_at_all():
    [chain, last] = recitals_of(question_of(num_chains=1, reading="history-closed"))
    assert chain.cue == "" and last.cue == " All in all:"
    assert recitals_of(question_of(num_chains=0)) == ()


def test_chains_of_candidates_are_recited_whole():
    question = question_of(event=1, candidates=(2, 1), num_chains=1)
    [chain] = question.chains
    assert (chain.closes_on, chain.second.title) == ("candidate", "Tale 1")
    assert recitals_of(question)[0].words == (
        f" The user took [Tale 0]. {chain.neighbour} took it too. "
        f"{chain.neighbour} went on to [Tale 1]. So to [Tale 1]."
    )


def test_a_thought_is_cut_at_its_cues_and_says_nothing_twice():
    thought = "Chain 1: a b, so yes. Chain 2: of my own."
    assert recited(thought, TOLD) == [
        (" Chain 1:", False), (" a b,", True), (" so yes.", False),
        (" Chain 2:", False), (" c.", True), (" of my own.", False),
    ]  # fmt: skip
    assert recited("Nothing here.", TOLD) == [(" Nothing here.", False)]
    assert recited("", TOLD) == []
    assert recited("So.", [Recital("", " a.")]) == [(" a.", True), (" So.", False)]


def test_titles_that_teachers_may_not_read_are_recited_as_the_student_reads_them():
    plain, aliased = (
        question_of(num_chains=2, reading="history-closed", alias_titles=alias)
        for alias in (False, True)
    )
    assert aliased.chains[0].first.shown != aliased.chains[0].first.title
    assert len(recitals_of(plain)) == 3
    assert recitals_of(aliased) == recitals_of(plain)

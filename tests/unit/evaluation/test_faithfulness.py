"""Thoughts taken apart and changed, what that does to the target, and what a thought names."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
import torch
from scipy.special import log_softmax, softmax
from tests.toy_models import TOY_SHAPE, plain_tokenizer, ring_rows, toy_catalogue, toy_model
from tests.toy_models import toy_verbaliser as verbaliser_of
from tests.toys import toy_dataset

from reasonrec import cli
from reasonrec.data.dataset import Catalogue
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.kernels import CAUSES
from reasonrec.data.prepare import prepare_planted
from reasonrec.errors import DataError
from reasonrec.evaluation.faithfulness.config import FaithfulnessConfig
from reasonrec.evaluation.faithfulness.edits import (
    Piece,
    Quoted,
    Thought,
    assemble,
    cut_after,
    filler,
    shuffled_pieces,
    shuffled_tokens,
    take_apart,
    thoughts_of,
    unpointed,
    without_chain,
    without_piece,
)
from reasonrec.evaluation.faithfulness.effects import (
    CONDITIONS,
    cut_curve,
    effects_of,
    partners,
    score_conditions,
)
from reasonrec.evaluation.faithfulness.grounding import Evidence, Named, Names, groundedness
from reasonrec.evaluation.faithfulness.reasons import (
    Reasons,
    agreement,
    num_titles,
    random_lookups,
    true_reasons,
)
from reasonrec.evaluation.faithfulness.report import read_faithfulness
from reasonrec.evaluation.faithfulness.stage import GATE_NOTE, measure_faithfulness
from reasonrec.methods.r2ec import train_stage
from reasonrec.methods.r2ec_config import NoThinkStage, R2ecConfig, SftStage
from reasonrec.models.config import HeadConfig
from reasonrec.models.gate import ThinkingGate
from reasonrec.models.generation import read_prompts
from reasonrec.models.recommenders import (
    GatedThinkingRecommender,
    GivenThought,
    NoThinkRecommender,
    ThinkingRecommender,
    score_given,
)
from reasonrec.records import Found, FoundItems, Link, Lookup
from reasonrec.rng import stream
from reasonrec.traces.prompts import PromptWriter
from reasonrec.training.config import OptimiserConfig

N = 12


def shop(num_users=10, length=8):
    toy = toy_dataset(ring_rows(num_users, N, length), [f"Tale {i}" for i in range(N)])
    return dataclasses.replace(toy, catalogue=toy_catalogue(N))


def thinker(**head):
    """Return a thinking toy whose pointer speaks, and its data set."""
    model, dataset = toy_model(N, **head), shop()
    with torch.no_grad():  # it likes to ask
        model.backbone.get_input_embeddings().weight[model.writer.encode(" After")] *= 2
    if model.pointer is not None:
        with torch.no_grad():
            for weight in model.pointer.parameters():
                weight.fill_(0.3)
            model.pointer.sharpness.fill_(1.0)
            model.pointer.from_popularity.fill_(0.0)
            model.pointer.lift.fill_(0.0)
            model.pointer.amount[2:] = 0.0
    recommender = ThinkingRecommender(
        model, verbaliser_of(model, dataset), max_tokens=60, temperature=1.0, seed=1
    )
    return recommender, dataset


def written_by(recommender, dataset):
    histories = dataset.test.histories()
    return histories, recommender.write(histories)


def words(writer: PromptWriter, *parts: tuple[str, int | None]) -> Piece:
    """Return a piece of texts; a text that comes with an item is a found title."""
    tokens: list[int] = []
    named = []
    for text, item in parts:
        tokens += writer.tokenizer.encode(text, add_special_tokens=False)
        if item is not None:
            named.append(Quoted(len(tokens) - 1, item, 1.0 + item))
    return Piece(tuple(tokens), tuple(named))


# ---- thoughts in pieces ---------------------------------------------------------------------


def test_a_thought_comes_apart_into_its_sentence_and_its_look_ups():
    writer = toy_model(N).writer
    asked = [writer.encode(" After") + writer.item_tokens(i) for i in (1, 4)]
    links = (Link(2, 1.0, 1, 0), Link(3, 0.5, 1, 0))
    found = Lookup(1, links, also=FoundItems.of((Found(5, 0.2, 0), Found(1, 1.0, 3)))), Lookup(4)
    answers = [writer.lookup_tokens(one) for one in found]
    taste = writer.tokenizer.encode(" Mostly Tide.", add_special_tokens=False)
    tokens = [*writer.encode("<think>"), *taste]
    is_written = [False] * len(writer.encode("<think>")) + [True] * len(taste)
    named = []
    for question, (answer, ends) in zip(asked, answers):
        tokens += question
        named += [len(tokens) + end for end in ends]
        tokens += answer
        is_written += [True] * len(question) + [False] * len(answer)
    tokens += writer.encode("<answer>")
    is_written += [True] * len(writer.encode("<answer>"))
    pieces = take_apart(tokens, is_written, named, found, writer)
    assert [writer.tokenizer.decode(piece.tokens) for piece in pieces] == [
        " Mostly Tide.",
        " After [Tale 1]: [Tale 2] [Tale 3];",
        " After [Tale 4]: nothing new;",
    ]
    assert [piece.via_item for piece in pieces] == [None, 1, 4]
    thought = Thought(pieces)
    assert (thought.via_items, thought.found) == ((1, 4), frozenset({2, 3}))
    again = assemble(thought, writer)
    assert again.tokens == tuple(tokens)
    assert list(again.named_at) == named
    assert again.named_item == (2, 3, 5, 1)
    assert again.named_weight == pytest.approx((1.0, 0.5, 0.2, 1.0))
    assert again.named_kind == (0, 0, 0, 3)


@pytest.mark.parametrize("gone", range(4))
def test_an_answer_without_one_title_reads_as_if_it_had_never_held_it(gone):
    writer = toy_model(N).writer
    links = [Link(2, 1.0, 1, 0), Link(3, 0.5, 1, 0)]
    like = [Link(7, 0.4, 0, -1), Link(8, 0.3, 0, -1)]
    also = (Found(5, 0.2, 0),)

    def piece_of(links, like):
        found = Lookup(1, tuple(links), like=tuple(like), also=FoundItems.of(also))
        tokens, ends = writer.lookup_tokens(found)
        named = tuple(Quoted(at, *one) for at, one in zip(ends, found.quoted))
        return Piece(tuple(tokens), named, 1, "after", also)

    for taken in (links, links[:1]), (like, like[:1]):
        few_links, few_like = (taken[1], like) if taken[0] is links else (links, taken[1])
        whole = Thought((piece_of(few_links, few_like),))
        if gone >= len(few_links) + len(few_like):
            continue
        kept = [one for i, one in enumerate([*few_links, *few_like]) if i != gone]
        expected = piece_of([x for x in kept if x in links], [x for x in kept if x in like])
        assert without_chain(whole, 0, gone, writer) == Thought((expected,))


def test_what_the_sampler_wrote_is_put_together_again_as_it_was():
    recommender, dataset = thinker()
    writer = recommender.model.writer
    _, written = written_by(recommender, dataset)
    thoughts = thoughts_of(written, writer)
    assert any(one.found for one in thoughts)
    for row, thought in enumerate(thoughts):
        given = assemble(thought, writer)
        assert list(given.tokens) == written.token_ids[row, : written.lengths[row]].tolist()
        real = written.named_item[row] >= 0
        assert list(given.named_at) == written.named_at[row][real].tolist()
        assert list(given.named_item) == written.named_item[row][real].tolist()


def test_free_text_is_cut_after_every_sentence_but_not_inside_a_title():
    tokenizer = plain_tokenizer()
    writer = PromptWriter(tokenizer, ["Tale. One!", "Tale 2"])
    text = " I like [Tale. One!] best. Or is it new? Yes, 3.8 of 5"
    tokens = [
        *writer.encode("<think>"),
        *tokenizer.encode(text, add_special_tokens=False),
        *writer.encode("<answer>"),
    ]
    pieces = take_apart(tokens, [True] * len(tokens), [], [], writer)
    assert [tokenizer.decode(piece.tokens) for piece in pieces] == [
        " I like [Tale. One!] best.",
        " Or is it new?",
        " Yes, 3.8 of 5",
    ]


def test_a_look_up_cut_off_before_its_answer_is_a_sentence():
    writer = toy_model(N).writer
    think, answer = writer.encode("<think>"), writer.encode("<answer>")
    question = writer.encode(" After") + writer.item_tokens(1)
    tokens = [*think, *question, *answer]
    is_written = [False] * len(think) + [True] * len(question) + [False] * len(answer)
    (piece,) = take_apart(tokens, is_written, [], [Lookup(1, (Link(2, 1.0, 1, 0),))], writer)
    assert (piece.via_item, piece.named) == (None, ())


def test_a_chain_is_left_out_with_its_title_and_the_others_keep_their_places():
    writer = PromptWriter(plain_tokenizer(), ["Tale of one", "Tale 2", "Tale 3"])
    piece = words(writer, (" After [x]:", None), (" [Tale of one]", 0), (" [Tale 2]", 1))
    thought = Thought((words(writer, (" So.", None)), piece))
    less = without_chain(thought, 1, 0, writer)
    assert texts_of(writer, less) == [" So.", " After [x]: [Tale 2]"]
    ((at, item, weight, _),) = less.pieces[1].named
    assert (item, weight) == (1, 2.0)
    assert writer.tokenizer.decode(less.pieces[1].tokens[: at + 1]) == " After [x]: [Tale 2]"
    none = without_chain(less, 1, 0, writer)
    assert texts_of(writer, none) == [" So.", " After [x]: nothing new"]
    assert none.found == frozenset()


def texts_of(writer, thought):
    return [writer.tokenizer.decode(piece.tokens) for piece in thought.pieces]


def test_shuffling_keeps_every_token_and_every_found_title():
    writer = PromptWriter(plain_tokenizer(), ["Tale of one", "Tale 2"])
    piece = words(writer, (" After [x]:", None), (" [Tale of one]", 0), (" [Tale 2]", 1))
    thought = Thought((words(writer, (" Mostly new.", None)), piece))
    before = [token for one in thought.pieces for token in one.tokens]
    mixed = shuffled_tokens(thought, stream(0, "test"), writer)
    (only,) = mixed.pieces
    assert sorted(only.tokens) == sorted(before)
    assert list(only.tokens) != before
    for at, item, weight, _ in only.named:
        assert weight == 1.0 + item
        title = writer.item_tokens(item)
        assert list(only.tokens[at + 1 - len(title) : at + 1]) == title
    assert mixed.found == thought.found
    turned = shuffled_pieces(thought, stream(0, "test"))
    assert turned.pieces == (thought.pieces[1], thought.pieces[0])  # two have one other order


def test_other_edits_do_what_they_are_called():
    a, b = Piece((5, 6), (Found(1, 3, 1.0),), 2), Piece((7,))
    thought = Thought((a, b))
    assert cut_after(thought, 0) == Thought()
    assert cut_after(thought, 1) == Thought((a,))
    assert without_piece(thought, 0) == Thought((b,))
    assert unpointed(thought) == Thought((Piece((5, 6), (), 2), b))
    assert filler(thought, 9) == Thought((Piece((9, 9, 9)),))


# ---- the model on given thoughts ------------------------------------------------------------


def test_a_models_own_thought_gets_the_scores_that_it_had():
    recommender, dataset = thinker()
    histories, written = written_by(recommender, dataset)
    writer = recommender.model.writer
    given = [assemble(one, writer) for one in thoughts_of(written, writer)]
    again = score_given(recommender.model, histories, given, batch_size=3)
    # the sampler adds up one token at a time, this is one pass: float32 sums in another order
    np.testing.assert_allclose(
        log_softmax(again, axis=1),
        log_softmax(recommender.score(histories).scores, axis=1),
        atol=2e-4,
    )


def test_there_must_be_a_thought_for_every_history():
    recommender, dataset = thinker()
    with pytest.raises(ValueError, match="one thought for each of the 10 histories; got 1"):
        score_given(recommender.model, dataset.test.histories(), [GivenThought((1,))])


def test_with_the_gate_shut_words_change_nothing_and_what_is_found_moves_against_all_the_rest():
    recommender, dataset = thinker()
    model = recommender.model
    with torch.no_grad():
        model.readout.gate.fill_(0.0)
    histories, written = written_by(recommender, dataset)
    thoughts = thoughts_of(written, model.writer)
    silent = log_softmax(NoThinkRecommender(model).score(histories).scores, axis=1)
    plain = score_given(model, histories, [assemble(unpointed(t), model.writer) for t in thoughts])
    np.testing.assert_allclose(plain, silent, atol=1e-4)  # another order of float32 sums
    own = score_given(model, histories, [assemble(t, model.writer) for t in thoughts])
    for row, thought in enumerate(thoughts):
        rest = [item for item in range(N) if item not in {*thought.found, *histories.row(row)}]
        change = own[row] - silent[row]
        taken = histories.row(row)
        np.testing.assert_allclose(change[taken], 0, atol=1e-4)  # not a word of what was taken
        change[np.setdiff1d(np.arange(N), taken)] -= change[rest[0]]  # what all new items gain
        moved = set(np.flatnonzero(np.abs(change) > 1e-3).tolist())
        assert moved == thought.found


# ---- effects --------------------------------------------------------------------------------


def conditions_of(**head):
    recommender, dataset = thinker(**head)
    histories, written = written_by(recommender, dataset)
    thoughts = thoughts_of(written, recommender.model.writer)
    targets = dataset.test.target
    cases = score_conditions(recommender.model, histories, targets, thoughts, seed=0)
    return recommender.model, histories, targets, thoughts, cases


def test_every_condition_is_asked_as_often_as_it_can_be_met():
    _, histories, targets, thoughts, cases = conditions_of()
    assert {name for name in cases["condition"] if not name.startswith("cut-")} <= {*CONDITIONS}
    for row, thought in enumerate(thoughts):
        count = dict(cases.filter(pl.col("row") == row)["condition"].value_counts().iter_rows())
        lookups = [piece for piece in thought.pieces if piece.via_item is not None]
        chains = [found.item_index for piece in thought.pieces for found in piece.named]
        assert count["own"] == count["removed"] == count["empty"] == count["swapped"] == 1
        assert count.get("without-look-up", 0) == len(lookups)
        assert count.get("without-chain", 0) == len(chains)
        assert count.get("without-target-chain", 0) == chains.count(targets[row])
        cited = set(thought.via_items)
        assert count.get("without-cited", 0) == len(cited)
        free = len(set(histories.row(row)[-8:].tolist()) - cited)
        assert count.get("without-uncited", 0) == min(len(cited), free)
        assert sum(name.startswith("cut-") for name in count) == max(len(thought.pieces) - 1, 0)


@pytest.mark.parametrize("repeats", [False, True])
def test_the_targets_probability_and_rank_are_those_of_a_slow_count(repeats):
    model, histories, targets, thoughts, cases = conditions_of(repeats=repeats)
    own = cases.filter(pl.col("condition") == "own").sort("row")
    scores = score_given(model, histories, [assemble(t, model.writer) for t in thoughts])
    for row, target in enumerate(targets):
        rivals = [i for i in range(N) if repeats or i == target or i not in histories.row(row)]
        weights = np.exp(scores[row, rivals].astype(np.float64))
        share = weights[rivals.index(target)] / weights.sum()
        assert own["log_prob"][row] == pytest.approx(np.log(share), abs=1e-4)
        higher = sum(scores[row, i] > scores[row, target] for i in rivals)
        assert own["rank"][row] == 1 + higher
        assert own["top10_kept"][row] == 1.0


def test_a_model_without_pointer_is_not_asked_about_it():
    *_, cases = conditions_of(pointer=False)
    assert not {"unpointed", "wordless"} & set(cases["condition"])


def test_without_words_the_state_before_the_thought_meets_what_it_found():
    model, histories, targets, thoughts, cases = conditions_of()
    assert model.readout.gate.abs().max() > 0  # words change the state here
    wordless = cases.filter(pl.col("condition") == "wordless")
    assert len(wordless) > 0
    p = softmax(NoThinkRecommender(model).score(histories).scores.astype(np.float64), axis=1)
    # all weights of the pointer are .3: amount, and the powers of belief, weight and their sum
    for row, log_prob in wordless.select("row", "log_prob").rows():
        found = [one for piece in thoughts[row].pieces for one in piece.named]
        weight = np.array([(p[row, one.item_index] * one.weight) ** 0.3 for one in found])
        state = read_prompts(model, model.writer.prompts(histories.take(np.array([row]))))
        trust = model.pointer.trust(state)[0, 0].item() + 0.3 * np.log(
            sum(one.weight for one in found)
        )
        share = 0.3 / (1 + np.exp(-trust))
        mixed = (1 - share) * p[row]
        for one, part in zip(found, weight / weight.sum(), strict=True):
            mixed[one.item_index] += share * part
        rivals = [i for i in range(N) if i == targets[row] or i not in histories.row(row)]
        expected = np.log(mixed[targets[row]] / mixed[rivals].sum())
        assert log_prob == pytest.approx(expected, abs=1e-3)


def test_effects_are_means_of_differences_on_the_same_queries():
    rows = [
        (0, "own", -1.0, 1.0), (1, "own", -2.0, 4.0), (2, "own", -3.0, 2.0),
        # two ways for query 0: ranks 2 and 8 -> log2 1 and 3, mean 2; query 1 keeps its own rank
        (0, "without-chain", -2.0, 2.0), (0, "without-chain", -4.0, 8.0),
        (1, "without-chain", -2.0, 4.0),
    ]  # fmt: skip
    cases = pl.DataFrame(
        [(row, name, log_prob, rank, 0.5) for row, name, log_prob, rank in rows],
        schema=["row", "condition", "log_prob", "rank", "top10_kept"],
        orient="row",
    )
    found = {
        one.measure: one
        for one in effects_of(cases, np.array([7, 8, 9]))
        if one.condition == "without-chain"
    }
    # log_prob: (-3 - -1 + -2 - -2) / 2 = -1; own over queries 0 and 1 alone: -1.5
    assert found["log_prob"].change == pytest.approx(-1.0)
    assert found["log_prob"].own == pytest.approx(-1.5)
    # log2 of the rank: (2 - 0 + 2 - 2) / 2 = 1
    assert found["log2_rank"].change == pytest.approx(1.0)
    # NDCG@10: rank 1 -> 1; ranks 2 and 8 -> (1 / log2 3 + 1 / log2 9) / 2; query 1 is unchanged
    expected = ((1 / np.log2(3) + 1 / np.log2(9)) / 2 - 1) / 2
    assert found["ndcg@10"].change == pytest.approx(expected)
    assert (found["ndcg@10"].n, found["ndcg@10"].num_cases) == (2, 3)
    # two users with differences -2 and 0: a resample of both may hold either twice
    assert (found["log_prob"].ci_low, found["log_prob"].ci_high) == (-2.0, 0.0)


def test_the_curve_counts_a_thought_that_is_not_cut_with_its_own_values():
    rows = [
        (0, "own", -1.0), (0, "empty", -5.0), (0, "cut-1", -3.0),
        (1, "own", -2.0), (1, "empty", -2.0),
    ]  # fmt: skip
    cases = pl.DataFrame(
        [(row, name, log_prob, 1.0, 1.0) for row, name, log_prob in rows],
        schema=["row", "condition", "log_prob", "rank", "top10_kept"],
        orient="row",
    )
    curve = {
        one.condition: one
        for one in cut_curve(cases, np.array([0, 1]))
        if one.measure == "log_prob"
    }
    assert curve["cut-0"].value == pytest.approx((-5 - 2) / 2)
    assert curve["cut-1"].value == pytest.approx((-3 - 2) / 2)  # query 1 has one piece: whole
    assert [curve[name].num_cases for name in ("cut-0", "cut-1")] == [2, 1]


def test_a_thought_is_lent_by_another_user():
    users = np.array([0, 0, 0, 1, 2, -1, -1])
    partner = partners(users, seed=4)
    for row, other in enumerate(partner):
        assert other != row
        assert users[other] != users[row] or users[row] == -1  # every unknown user is another
    assert partners(np.array([3, 3]), seed=0).tolist() == [-1, -1]


# ---- what a thought names -------------------------------------------------------------------


def names_of():
    catalogue = Catalogue(
        pl.DataFrame(
            {
                "item_id": ["a", "b", "c"],
                "title": ["Mostly Sea", "Ember", "Old Tide"],
                "categories": [["Sea", "Sea War"], ["Fire"], None],
            }
        )
    )
    return Names(catalogue.titles, catalogue, ["u0", "17", "reader-3"])


def test_titles_users_and_categories_are_found_and_inventions_noticed():
    thought = (
        "Mostly Sea War, Sea, Jazz. After [Mostly Sea]: [Ember] [No Such Tale]; reader 17 and "
        "reader-3 liked Fire, user 99 did not; 17 times"
    )
    named = names_of().named(thought)
    assert named.items == (0, 1, None)
    assert sorted(named.attributes, key=str) == ["Fire", None, "Sea", "Sea War"]
    assert sorted(named.users, key=str) == ["17", None, "reader-3"]


@pytest.mark.parametrize(
    ("thought", "attributes"),
    [
        ("Mostly: Sea War, Fire; Alike: [Ember];", ["Sea War", "Fire"]),
        ("Mostly: Jazz, Sea; After [Ember]: nothing new;", ["Sea", None]),
        ("Mostly: nothing new; Alike: nothing new;", []),
    ],
)
def test_taste_is_read_where_it_was_looked_up_too(thought, attributes):
    assert list(names_of().named(thought).attributes) == attributes


def test_evidence_is_history_look_ups_witnesses_and_their_categories():
    lookups = [Lookup(0, (Link(2, 1.0, 1, 2),))]
    found = names_of().evidence(0, np.array([1]), lookups)
    assert found.items == {0, 1, 2}
    assert found.users == {"u0", "reader-3"}
    assert found.attributes == {"Sea", "Sea War", "Fire"}


def test_groundedness_is_a_mean_of_shares_beside_that_of_another_users_evidence():
    named = [Named((0, 1, None, 0), (), ()), Named((2,), (), ()), Named((), (), ("Sea",))]
    evidence = [
        Evidence(frozenset(items), frozenset(), frozenset()) for items in ({0}, {2, 1}, {0, 1, 2})
    ]
    items, users, attributes = groundedness(
        named, evidence, np.array([1, 0, -1]), np.array([0, 1, 2])
    )
    # row 0 names 0, 1, an invention and 0 again: 2 of 4; row 1: 1 of 1
    assert items.value == pytest.approx((0.5 + 1) / 2)
    assert items.chance == pytest.approx((0.25 + 0) / 2)  # 1 alone is in the other's evidence
    assert items.invented == pytest.approx((0.25 + 0) / 2)
    assert items.repeated == pytest.approx((0.25 + 0) / 2)  # 3 different among 4
    assert (items.num_named, items.n) == (pytest.approx(5 / 3), 2)
    assert (users.value, users.n) == (None, 0)
    assert (attributes.value, attributes.chance) == (0.0, None)  # nobody to compare with


# ---- true reasons ---------------------------------------------------------------------------


def test_agreement_is_the_share_of_thoughts_that_point_at_the_cause():
    reasons = Reasons(
        ["circle", "circle", "series", "taste"],
        friend=np.array([5, 6, -1, -1]),
        volume=np.array([-1, -1, 0, -1]),
    )
    targets = np.array([1, 1, 2, 0])
    lookups = [
        [Lookup(0, (Link(1, 1.0, 1, 5),))],  # finds the book through the friend
        [Lookup(0, (Link(2, 1.0, 1, 6), Link(1, 1.0, 1, 3)))],  # both, but apart
        [Lookup(0, (Link(1, 1.0, 1, 3),)), Lookup(1, (Link(2, 1.0, 1, 3),))],
        [],
    ]
    named = [Named((), (), words) for words in ((), (), (), ("Fire", "Sea"))]
    chance = [[[], [], [Lookup(0, (Link(2, 1.0, 1, 3),))], []], [[], [], [], []]]
    found = {
        (one.cause, one.measure): (one.value, one.chance)
        for one in agreement(
            reasons, targets, np.arange(4), lookups, named,
            chance_lookups=chance, partner=np.array([1, 0, 3, 2]), names=names_of(),
        )
    }  # fmt: skip
    assert found == {
        ("circle", "friend-is-witness"): (1.0, 0.0),
        ("circle", "friend-alike"): (0.0, 0.0),
        ("circle", "found-through-friend"): (0.5, 0.0),
        ("circle", "found"): (1.0, 0.0),
        ("circle", "found-by-any"): (1.0, 1.0),  # both thoughts quote item 1
        ("series", "volume-asked"): (1.0, 0.5),  # in one of two draws
        ("series", "found-from-volume"): (0.0, 0.5),
        ("series", "found"): (1.0, 0.5),
        ("series", "found-by-any"): (1.0, 0.0),
        ("taste", "category-named"): (1.0, 0.0),
        ("taste", "found"): (0.0, 0.0),
        ("taste", "found-by-any"): (0.0, 0.0),
    }


def test_look_ups_about_people_and_the_whole_history_count_in_rows_of_their_own():
    circle, series = (
        Reasons(["circle"] * 4, friend=np.array([5, 6, 7, -1]), volume=np.full(4, -1)),
        Reasons(["series"], friend=np.array([-1]), volume=np.array([0])),
    )
    targets, nobody = np.array([1, 1, 2, 2]), [Named((), (), ())] * 4
    lookups = [
        [Lookup(0, (Link(1, 1.0, 1, 5),), kind="alike")],  # the friend, who took the book
        [Lookup(0, (Link(2, 1.0, 1, 5),), kind="alike")],  # somebody else, and another book
        [Lookup(-1, (Link(2, 1.0, 0, -1),), kind="together")],  # the book alone, of nobody
        [Lookup(0, (), like=(Link(2, 0.5, 0, -1),)), Lookup(-1, kind="alike")],
    ]
    found = {
        one.measure: (one.value, one.chance)
        for one in agreement(
            circle, targets, np.arange(4), lookups, nobody,
            chance_lookups=[lookups], partner=np.array([1, 0, 1, -1]), names=names_of(),
        )
    }  # fmt: skip
    assert found == {
        "friend-is-witness": (0.0, 0.0),  # no look-up about a title has a witness
        # row 0 alone. Of the others' look-ups those of row 1 are about 5, for row 0; those of row
        # 0 not about 6, for row 1, and those of row 1 not about 7, for row 2
        "friend-alike": (0.25, 0.25),
        "found-through-friend": (0.0, 0.0),
        "found": (0.0, 0.0),  # row 3 finds what reads alike, not what people took
        # rows 0, 2 and 3. Those of row 1 find 2, for row 2, and those of row 0 find 1, for row 1;
        # those of row 1 do not find 1, for row 0; row 3 has nobody to compare with
        "found-by-any": (0.75, 0.5),
    }
    alike = [[Lookup(0, (Link(1, 1.0, 1, 5),), kind="alike")]]
    rows = agreement(
        series, np.array([1]), np.arange(1), alike, nobody[:1],
        chance_lookups=[alike], partner=np.array([-1]), names=names_of(),
    )  # fmt: skip
    # the person alike shares the volume, but nobody asked what follows it
    assert [(one.measure, one.value) for one in rows] == [
        ("volume-asked", 0.0), ("found-from-volume", 0.0), ("found", 0.0), ("found-by-any", 1.0),
    ]  # fmt: skip


def test_chance_draws_as_many_titles_as_a_thought_asks_about():
    after, alike = Lookup(3), Lookup(3, (Link(1, 1.0, 1, 5),), kind="alike")
    others = [Lookup(-1, kind=kind) for kind in ("together", "maybe", "taste")]
    assert num_titles([alike, *others, after, after]) == 2


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return prepare_planted(tmp_path_factory.mktemp("shop"), PlantedConfig(size="tiny"), seed=2)


def test_reasons_come_from_the_log_of_the_world(planted):
    reasons = true_reasons(planted, planted.test)
    log = pl.read_parquet(planted.folder / "world" / "interactions.parquet")
    last = log.group_by("user_id", maintain_order=True).last()  # leave-one-out: the test target
    by_user = {row["user_id"]: row for row in last.iter_rows(named=True)}
    for row, user in enumerate(planted.test.user_index):
        event = by_user[planted.user_ids[user]]
        assert reasons.cause[row] == event["reason"]
        if event["reason"] == "circle":
            assert planted.user_ids[reasons.friend[row]] == event["reason_source"]
        if event["reason"] == "series":
            volume = planted.catalogue.item_ids[reasons.volume[row]]
            assert volume == event["reason_source"]
    stranger = dataclasses.replace(
        planted.test, target=(planted.test.target + 1) % planted.num_items
    )
    with pytest.raises(DataError, match="one event of the planted log"):
        true_reasons(planted, stranger)


def test_random_questions_are_about_items_of_the_prompt_and_as_many_as_asked():
    recommender, dataset = thinker()
    histories = dataset.test.histories()
    shown = [histories.row(b)[-3:] for b in range(len(histories))]
    draws = random_lookups(recommender.verbaliser, histories, shown, [2, 0, 5] + [1] * 7, seed=0)
    assert len(draws) == 3
    for draw in draws:
        assert [len(one) for one in draw] == [2, 0, 3] + [1] * 7  # a prompt has three items
        for items, found in zip(shown, draw):
            assert {one.via_item_index for one in found} <= {*items.tolist()}
    assert draws[0] != draws[1]


# ---- the command ----------------------------------------------------------------------------


def test_a_model_with_a_gate_is_asked_about_all_its_thoughts():
    recommender, dataset = thinker()
    shut = ThinkingGate(np.zeros(TOY_SHAPE.width), 0.0, np.inf)
    gated = GatedThinkingRecommender(recommender, shut)
    config = FaithfulnessConfig(num_queries=4, num_timed_users=0)
    report, cases, _ = measure_faithfulness(gated, dataset, config)
    plain, same, _ = measure_faithfulness(recommender, dataset, config)
    assert cases.equals(same)  # the gate would write no thought at all
    assert (report.method, plain.method) == ("think/gated", "think")
    assert (report.notes, plain.notes) == ((GATE_NOTE,), ())


def test_the_command_writes_the_whole_report_and_reads_it_when_asked_again(
    planted, tmp_path, capsys
):
    optimiser = OptimiserConfig(batch_size=32, num_validations=1)
    config = R2ecConfig(
        tiny=TOY_SHAPE,
        head=HeadConfig(max_history=8),
        no_think=NoThinkStage(num_epochs=1, optimiser=optimiser),
        sft=SftStage(num_epochs=1, num_branches=1, optimiser=optimiser),
    )
    start = train_stage("no-think", planted, config, out=tmp_path / "no-think", seed=0)
    model = train_stage("sft", planted, config, out=tmp_path / "sft", seed=0, start=start)
    out = tmp_path / "faithful"
    asked = ["faithfulness", str(model), "--out", str(out), "--num-queries", "12"]
    asked += ["--num-timed-users", "2"]
    cli.main(asked)
    assert "swapped" in capsys.readouterr().out
    report = read_faithfulness(out)
    assert (report.method, report.num_queries) == ("think-sft", 12)
    own = {one.measure: one for one in report.effects if one.condition == "own"}
    assert own["ndcg@10"].change == 0.0
    assert own["top10_kept"].value == 1.0
    items = next(one for one in report.groundedness if one.kind == "items")
    # answers are inserted and questions stay in the prompt; few steps of training may ask nothing
    assert items.value in (1.0, None)
    assert {one.cause for one in report.reasons} <= {*CAUSES}
    thinking, silent = report.costs
    assert thinking.tokens > silent.tokens == 0.0
    cases = pl.read_parquet(out / "per_query.parquet")
    assert cases["query"].n_unique() == 12
    assert pl.read_parquet(out / "thoughts.parquet").height == 12
    cli.main([*asked, "--json"])  # finished: the same numbers, latency and all
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(report.to_json()))
    with pytest.raises(SystemExit):
        cli.main(["faithfulness", str(start), "--out", str(tmp_path / "other")])
    assert "must be one that thinks" in capsys.readouterr().err

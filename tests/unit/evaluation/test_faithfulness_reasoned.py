"""What R2Rec's answers owe to thoughts and chains: edits, scores by hand, and the command."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax
from tests.toy_models import TOY_SHAPE, toy_model
from tests.toy_traces import GENRES, TITLES, builder_of, card, hand_question, rated_shop
from tests.toys import toy_dataset

from reasonrec import cli
from reasonrec.data.dataset import Catalogue
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.prepare import prepare_planted
from reasonrec.evaluation.candidates import draw_candidates
from reasonrec.evaluation.faithfulness.config import FaithfulnessConfig
from reasonrec.evaluation.faithfulness.edits import Piece, Thought
from reasonrec.evaluation.faithfulness.effects import partners
from reasonrec.evaluation.faithfulness.grounding import Names
from reasonrec.evaluation.faithfulness.reasoned import (
    CONDITIONS,
    NUM_CANDIDATES,
    Asked,
    answer_all,
    cited_items,
    groundedness_of,
    lenders,
    measure_reasoned,
    reasons_of,
    renamed,
    score_reasoned,
    thought_of,
    without_chain,
    without_item,
)
from reasonrec.evaluation.faithfulness.report import read_faithfulness
from reasonrec.graph.chain_count import ChainCount
from reasonrec.methods.r2ec_config import NoThinkStage, R2ecConfig
from reasonrec.methods.r2rec import load_recommender, train
from reasonrec.methods.r2rec_config import R2recConfig, ReasonedRankingConfig, ReasonedSftStage
from reasonrec.models.answers import CopyingModel, answer_log_probs, next_logp, with_words_of
from reasonrec.models.config import HeadConfig
from reasonrec.models.ranking import rank_candidates
from reasonrec.models.reasoned_ranking import Answered, ReasonedRanker
from reasonrec.traces.interaction_of_thought import student_prompt
from reasonrec.traces.reasoned_config import EvidenceConfig, ReasonedTracesConfig
from reasonrec.training.config import OptimiserConfig

N = 14
WORDS = ["Chain 1: user, @1 (6 shared, usual 3.0). @1 gave it 4. So it is the likeliest."] * 20


def untrained(task="likes"):
    """Return an untrained ranker that writes rubbish, and its shop."""
    dataset = rated_shop(10, length=9, titles=[f"Tale {n}" for n in range(N)])
    model = with_words_of(
        toy_model(N), WORDS, vocab_size=300, dropout=0.0, seed=0, kind=CopyingModel
    )
    ranker = ReasonedRanker(
        model.eval(), builder_of(dataset, num_chains=2),
        ChainCount.fit(dataset), dataset.user_ids, task=task, max_tokens=12,
    )  # fmt: skip
    return ranker, dataset


def cases_of(ranker, dataset):
    """Return the test queries, their candidates, what was thought, and all cases."""
    asked = dataset.test
    drawn = draw_candidates(dataset, "test", num_candidates=NUM_CANDIDATES, seed=0).item_index
    row_of, answered = answer_all(ranker, asked, drawn)
    own = [
        Asked(question, thought_of(reply, ranker.model.writer))
        for question, reply in zip(answered.questions, answered.replies, strict=True)
    ]
    lender = lenders(row_of, asked.user_index, 0)
    cases = score_reasoned(ranker, own, row_of, lender, asked.target, seed=0)
    return asked, drawn, own, cases


def ranks_of(scores, candidates):
    columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return rank_candidates(scores, np.where(candidates >= 0, columns, -1))


def of(cases, condition):
    return cases.filter(pl.col("condition") == condition).sort("row")


# ---- questions and thoughts changed ---------------------------------------------------------


def test_a_prompt_reads_as_if_it_had_never_held_a_chain():
    question = hand_question(num_chains=3)
    less = without_chain(question, 1)
    assert [chain.neighbour for chain in less.chains] == ["@1", "@3"]  # as a thought calls them
    assert student_prompt(renamed(less)) == student_prompt(hand_question(num_chains=2))


def test_a_history_item_leaves_the_prompt_with_the_chains_through_it():
    question = hand_question(num_chains=2)  # [Ember] 2 [Harbour] 5; both chains start at [Harbour]
    assert student_prompt(without_item(question, 0)) == (
        "Rate 1 to 5. History: [Ember] 2. Question: [Comet]"
    )
    left = without_item(question, 2)
    assert student_prompt(left) == student_prompt(question).replace(" [Ember] 2", "")


def test_cited_items_are_those_of_the_history_that_a_thought_names():
    writer = untrained()[0].model.writer
    history = tuple(
        dataclasses.replace(one, item=card(n, f"Tale {n}"))
        for n, one in enumerate(hand_question().history, 3)
    )
    question = dataclasses.replace(hand_question(), history=history)  # Tale 3, Tale 4
    tokens = [t for i in (4, 9, 4) for t in writer.item_tokens(i)]
    assert cited_items(question, Thought((Piece(tuple(tokens)),)), writer) == [4]


def test_a_thought_about_the_same_place_is_lent_by_another_user():
    row_of = np.array([0, 0, 0, 1, 1])  # three candidates, and two
    lent = lenders(row_of, np.array([5, 6]), seed=0)
    # two rows lend to each other; the third thought gets the other's last
    assert lent.tolist() == [3, 4, 4, 0, 1]
    assert lenders(np.arange(2), np.array([5, 5]), seed=0).tolist() == [-1, -1]


# ---- scores ---------------------------------------------------------------------------------


def test_the_own_thought_and_none_get_the_scores_of_ranking_with_and_without_one():
    ranker, dataset = untrained()
    asked, drawn, _, cases = cases_of(ranker, dataset)
    assert (drawn < 0).any()  # fewer than 20 are left in a small shop
    for condition, method in (
        ("own", ranker), ("empty", dataclasses.replace(ranker, thinks=False)),
    ):  # fmt: skip
        scores = method.score_candidates(asked.histories(), drawn).scores
        found = of(cases, condition)
        np.testing.assert_allclose(
            found["log_prob"], log_softmax(scores, axis=1)[:, 0], atol=2e-4
        )  # one pass, beside one token at a time
        assert found["rank"].to_list() == ranks_of(scores, drawn).tolist()
    assert set(of(cases, "own")["top1_kept"]) == {1.0}


def test_without_evidence_it_is_the_model_that_is_shown_no_chains():
    ranker, dataset = untrained()
    asked, drawn, _, cases = cases_of(ranker, dataset)
    bare = builder_of(dataset, num_chains=0)
    scores = dataclasses.replace(ranker, builder=bare).score_candidates(
        asked.histories(), drawn
    ).scores  # fmt: skip
    found = of(cases, "anew-without-evidence")
    np.testing.assert_allclose(found["log_prob"], scores[:, 0], atol=2e-4)


def test_a_filler_is_read_as_that_many_full_stops():
    ranker, dataset = untrained()
    asked, _, own, cases = cases_of(ranker, dataset)
    model = ranker.model
    for row in range(3):
        question, thought = own[row].question, own[row].thought
        text = model.prompt_tokens(student_prompt(question))
        text += model.writer.encode(".") * thought.num_tokens + model.writer.encode("<answer>")
        (logp,) = answer_log_probs(model, [question], [text], next_logp(model, [text]))
        at = [item.item_index for item in question.candidates].index(asked.target[row])
        assert of(cases, "filler")["log_prob"][row] == pytest.approx(logp[at], abs=1e-4)
        assert of(cases, "filler")["rank"][row] == 1 + (logp > logp[at]).sum()


def test_every_condition_is_asked_as_often_as_it_can_be_met():
    ranker, dataset = untrained()
    asked, _, own, cases = cases_of(ranker, dataset)
    assert {name for name in cases["condition"] if not name.startswith("cut-")} <= {*CONDITIONS}
    for row, one in enumerate(own):
        count = dict(cases.filter(pl.col("row") == row)["condition"].value_counts().iter_rows())
        ends = [chain.second.item_index for chain in one.question.chains]
        assert count["own"] == count["empty"] == count["swapped"] == 1
        assert count["without-support"] == count["without-evidence"] == 1
        assert count.get("without-chain", 0) == count.get("anew-without-chain", 0) == len(ends)
        assert count.get("without-target-chain", 0) == ends.count(asked.target[row])
        assert count.get("anew-without-chains", 0) == bool(ends)
        cited = cited_items(one.question, one.thought, ranker.model.writer)
        assert count.get("without-cited", 0) == len(cited)
        cuts = sum(name.startswith("cut-") for name in count)
        assert cuts == max(len(one.thought.pieces) - 1, 0)


def test_where_ratings_rank_the_thoughts_about_all_candidates_are_changed():
    ranker, dataset = untrained("rated")
    asked, drawn, _, cases = cases_of(ranker, dataset)
    scores = dataclasses.replace(ranker, thinks=False).score_candidates(
        asked.histories(), drawn
    ).scores  # fmt: skip
    found = of(cases, "empty")
    np.testing.assert_allclose(found["rating"], scores[:, 0], atol=1e-3)
    assert found["rank"].to_list() == ranks_of(scores, drawn).tolist()
    report, _, table = measure_reasoned(
        ranker, dataset, FaithfulnessConfig(num_queries=2, num_timed_users=0)
    )
    assert {one.measure for one in report.effects} >= {"rating", "ndcg@20"}
    assert table.height == report.habits.num_thoughts > report.num_queries == 2


# ---- what a thought names -------------------------------------------------------------------


def test_what_thoughts_name_is_looked_for_in_prompt_chains_and_ratings():
    questions = [hand_question(num_chains=1), hand_question(num_chains=2)]
    thoughts = [
        # [Ember] is history and of no chain, [Cradle] is nowhere; @2 is nobody here
        "@1 gave [Harbour] 4. @2 gave [Ember] 3. The user gave [Ember] 2. So to [Cradle].",
        "So it is.",
    ]
    titles = ["Harbour", "Falcon", "Ember", "Comet", "Cradle"]
    table = pl.DataFrame({"item_id": list("abcde"), "title": titles})
    names = Names(titles, Catalogue(table), ["u0"])
    answered = Answered(questions, thoughts, [], [])
    found = {
        one.kind: one
        for one in groundedness_of(answered, np.array([1, 0]), np.array([0, 1]), names)
    }
    # named: Harbour, Ember, Ember, Cradle. In the prompt 3 of 4, in chains 1 of 4
    assert (found["items"].value, found["items"].n) == (0.75, 1)
    assert found["items of chains"].value == 0.25
    assert found["people"].value == 0.5  # @1 of @1, @2
    assert found["people"].chance == 1.0  # the other question has both
    assert found["ratings"].value == pytest.approx(2 / 3)  # @2 gave nothing
    assert found["attributes"].n == 0


# ---- true reasons ---------------------------------------------------------------------------


def planted_by_hand(folder, causes):
    """Return users who took [Ember], [Harbour], [Comet], and why they took the last of these."""
    dataset = toy_dataset([[2, 0, 3]] * len(causes), TITLES)
    table = dataset.catalogue.table.with_columns(categories=pl.Series(GENRES))
    rows = [(f"u{n}", "i3", cause, source) for n, (cause, source) in enumerate(causes)]
    (folder / "world").mkdir()
    columns = ["user_id", "item_id", "reason", "reason_source"]
    log = pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row")
    log.write_parquet(folder / "world" / "interactions.parquet")
    return dataclasses.replace(dataset, folder=folder, catalogue=Catalogue(table))


def agreements(dataset, questions, thoughts, row_of):
    names = Names(TITLES, dataset.catalogue, dataset.user_ids)
    answered = Answered(questions, thoughts, [], [])
    found = reasons_of(answered, np.array(row_of), dataset, dataset.test, names, seed=0)
    return {(one.cause, one.measure): (one.value, one.chance, one.n) for one in found}


def test_a_thought_agrees_if_a_chain_that_it_names_goes_over_the_true_reason(tmp_path):
    # chain n goes from [Harbour] over user n to [Comet], which is of the category War
    causes = [("circle", "u2")] * 3 + [("series", "i0"), ("series", "i0"), ("taste", "War")]
    dataset = planted_by_hand(tmp_path, causes)
    thoughts = [
        "@1 gave [Harbour] 4. @2 gave [Comet] 2.",  # both of two chains: no choice, as is chance
        "So to [Comet].",  # names nobody: no chain is the thought's
        "@1 gave [Comet] 2.",  # the only chain, and not that of the friend
        "@1 gave [Comet] 2.",  # it starts at the volume before
        "[Harbour] goes on.",  # a title in brackets is nobody
        "Mostly War.",
    ]
    questions = [hand_question(num_chains=n) for n in (2, 2, 1, 1, 1, 1)]
    assert partners(np.arange(6), 0).tolist() == [4, 5, 3, 0, 1, 2]  # whose chains are chance
    third, two_thirds = pytest.approx(1 / 3), pytest.approx(2 / 3)
    assert agreements(dataset, questions, thoughts, range(6)) == {
        ("circle", "friend-is-witness"): (third, third, 3),
        ("circle", "found-through-friend"): (third, third, 3),
        ("circle", "found"): (two_thirds, two_thirds, 3),
        ("circle", "found-by-any"): (two_thirds, third, 3),  # of rows 4, 5 and 3, the last
        ("series", "volume-asked"): (0.5, 0.5, 2),
        ("series", "found-from-volume"): (0.5, 0.5, 2),
        ("series", "found"): (0.5, 0.5, 2),
        ("series", "found-by-any"): (0.5, 0.5, 2),  # of rows 0 and 1, the first
        ("taste", "category-named"): (1.0, 0.0, 1),  # nobody else names War
        ("taste", "found"): (0.0, 0.0, 1),
        ("taste", "found-by-any"): (0.0, 1.0, 1),  # row 2 finds it
    }


def test_one_chain_of_two_is_chosen_by_chance_in_half_of_the_draws(tmp_path):
    dataset = planted_by_hand(tmp_path, [("circle", "u2")] * 400)
    found = agreements(
        dataset, [hand_question(num_chains=2)] * 400, ["@2 gave [Comet] 2."] * 400, range(400)
    )
    value, chance, _ = found["circle", "friend-is-witness"]
    # three draws for each of 400: a standard deviation of sqrt(.25 / 1200) = .0144, four allowed
    assert value == 1.0 and abs(chance - 0.5) < 4 * 0.0144


def test_where_each_candidate_has_a_thought_the_one_about_the_target_counts(tmp_path):
    dataset = planted_by_hand(tmp_path, [("circle", "u1"), ("circle", "u1")])
    questions = [hand_question(num_chains=1)] * 4
    thoughts = ["So it is.", "@1 gave [Comet] 2.", "@1 gave [Comet] 2.", "So it is."]
    found = agreements(dataset, questions, thoughts, [0, 0, 1, 1])  # the target is asked first
    assert found["circle", "friend-is-witness"] == (0.5, 0.5, 2)
    assert agreements(rated_shop(), [], [], []) == {}  # no planted world


# ---- the command ----------------------------------------------------------------------------


def test_the_command_asks_a_trained_model_and_refuses_one_that_answers_at_once(tmp_path, capsys):
    planted = prepare_planted(tmp_path / "shop", PlantedConfig(size="tiny"), seed=2)
    optimiser = OptimiserConfig(batch_size=8, num_validations=1)
    base = R2ecConfig(
        tiny=TOY_SHAPE,
        head=HeadConfig(max_history=8),
        no_think=NoThinkStage(num_epochs=1, optimiser=optimiser),
    )
    config = R2recConfig(
        stages=("r2rec-sft",),
        traces=ReasonedTracesConfig(num_questions=24, evidence=EvidenceConfig(num_chains=2)),
        vocab_size=700,
        max_tokens=40,
        sft=ReasonedSftStage(num_epochs=1, optimiser=optimiser),
        ranking=ReasonedRankingConfig(num_orders_measured=0),
        num_valid_queries=4,
        blend=True,
    )
    *_, folder = train(planted, config, out=tmp_path / "r2rec", seed=0, base=base)
    out = tmp_path / "faithful"
    asked = ["faithfulness", str(folder), "--out", str(out), "--num-queries", "6"]
    cli.main([*asked, "--num-timed-users", "1"])
    assert "anew-without-chains" in capsys.readouterr().out
    report = read_faithfulness(out)
    assert (report.method, report.num_queries) == ("r2rec-sft", 6)
    assert "6 of 120 queries" in report.notes[0]
    assert sum(one.n for one in report.reasons if one.measure == "found") == 6  # a cause each
    assert "blend" in report.notes[1]
    cases = pl.read_parquet(out / "per_query.parquet")
    rows = cases["query"].unique().sort().to_numpy()
    # without its thought the trained model ranks as one that writes none
    ranker = dataclasses.replace(load_recommender(folder, planted, blend={}), blend=None)
    drawn = draw_candidates(planted, "test", num_candidates=20, seed=0).item_index[rows]
    histories = planted.test.take(rows).histories()
    silent = dataclasses.replace(ranker, thinks=False).score_candidates(histories, drawn).scores
    effects = {(one.condition, one.measure): one for one in report.effects}
    assert effects["empty", "log_prob"].value == pytest.approx(silent[:, 0].mean(), abs=1e-3)
    hits = (ranks_of(silent, drawn) == 1).mean()
    assert effects["empty", "hit@1"].value == pytest.approx(hits)
    page = (out / "faithfulness.md").read_text()
    assert "| condition | HR@1 | NDCG@20 | log_prob | log2_rank | first place kept | n |" in page
    assert "## Is it the true reason?" in page
    assert pl.read_parquet(out / "thoughts.parquet").height == 6
    assert json.loads((out / "faithfulness.json").read_text())["costs"][0]["tokens"] > 0

    direct = config.model_copy(update={"think": False, "blend": False})
    start = tmp_path / "r2rec" / "no-think"
    *_, folder = train(planted, direct, out=tmp_path / "d", seed=0, base=base, start=start)
    with pytest.raises(SystemExit):
        cli.main(["faithfulness", str(folder), "--out", str(tmp_path / "other")])
    assert "must be one that thinks" in capsys.readouterr().err

"""R2Rec from a rated toy shop to ranked candidates with reasons, and the words that people read."""

import dataclasses
import functools
import itertools
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.special import log_softmax
from tests.toy_models import TOY_SHAPE, save_backbone
from tests.toy_traces import card, hand_question, rated_shop
from tests.toys import toy_dataset
from transformers import AutoModelForCausalLM

from reasonrec.baselines.contract import CandidateRecommender
from reasonrec.config import read_toml
from reasonrec.errors import CheckpointError, DataError
from reasonrec.evaluation.candidates import draw_candidates
from reasonrec.evaluation.protocol import evaluate
from reasonrec.graph.sampling import weigh_steps
from reasonrec.manifest import write_manifest
from reasonrec.methods import r2ec
from reasonrec.methods.loading import load_recommender
from reasonrec.methods.r2ec_config import NoThinkStage, R2ecConfig, SftStage
from reasonrec.methods.r2rec import (
    calibrated_blend,
    default_rewards,
    reward_name,
    rl_questions,
    train,
    transferred,
)
from reasonrec.methods.r2rec import load_recommender as load_r2rec
from reasonrec.methods.r2rec_config import (
    GrpoStage,
    R2recConfig,
    ReasonedRankingConfig,
    ReasonedSftStage,
)
from reasonrec.models.answers import AnsweringModel
from reasonrec.models.config import BlendingConfig, HeadConfig, WeightsConfig
from reasonrec.models.ranking import rank_candidates
from reasonrec.models.reasoned_ranking import (
    EXPERTS,
    ReasonedRanker,
    chains_as_evidence,
    order_effect,
    shown_reason,
)
from reasonrec.models.recommenders import ThinkingRecommender
from reasonrec.serving.recommender import recommend
from reasonrec.traces.reasoned_config import EvidenceConfig, ReasonedTracesConfig
from reasonrec.training.config import OptimiserConfig
from reasonrec.training.reasoned_config import GrpoConfig
from reasonrec.training.rl.text_rewards import first_place

TITLES = [f"Tale {n}" for n in range(14)]
OPTIMISER = OptimiserConfig(batch_size=4, num_validations=1)
BASE = R2ecConfig(
    tiny=TOY_SHAPE,
    head=HeadConfig(max_history=8),
    no_think=NoThinkStage(num_epochs=1, optimiser=OPTIMISER),
    sft=SftStage(num_epochs=1, num_branches=2, optimiser=OPTIMISER),
)


def config(task="likes", blend=False, **more) -> R2recConfig:
    return R2recConfig(
        task=task,
        traces=ReasonedTracesConfig(
            num_questions=24, evidence=EvidenceConfig(num_chains=2, num_candidates=5)
        ),
        vocab_size=700,
        max_tokens=40,
        sft=ReasonedSftStage(
            num_epochs=2, tokens_per_row=600,
            optimiser=OptimiserConfig(learning_rate=3e-3, batch_size=4, num_validations=1),
        ),
        rl=GrpoStage(
            num_prompts=4, optimiser=OPTIMISER,
            grpo=GrpoConfig(group_size=2, max_tokens=12),
        ),
        ranking=ReasonedRankingConfig(num_candidates=4, num_orders_measured=2),
        num_valid_queries=4,
        blend=blend,
        **more,
    )  # fmt: skip


def shop():
    return rated_shop(10, length=9, titles=TITLES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("r2rec")
    folders = train(shop(), config(blend=True), out=out, seed=3, base=BASE)
    return {folder.name: folder for folder in folders}


def test_every_stage_leaves_a_finished_folder_that_opens_by_its_name(trained):
    assert list(trained) == ["untuned", "r2rec-sft", "r2rec-rl"]
    for name, folder in trained.items():
        recommender = load_recommender(folder, shop())
        assert recommender.name == name
        assert isinstance(recommender, CandidateRecommender)
    manifest = json.loads((trained["r2rec-rl"] / "manifest.json").read_text())
    assert len(manifest["order_effect"]["hit_at_1"]) == 2
    assert manifest["num_questions_dropped"] == 0
    assert manifest["config"]["rewards"] == [
        [0.1, "well_formed"], [0.3, "first_place"], [0.6, "reciprocal_rank"],
    ]  # fmt: skip


def test_the_same_command_on_finished_folders_trains_nothing(trained):
    weights = trained["r2rec-rl"] / "model" / "rec_head.safetensors"
    before = weights.stat().st_mtime_ns
    out = trained["r2rec-rl"].parent
    train(shop(), config(blend=True), out=out, seed=3, base=BASE)
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="another"):
        train(shop(), config(blend=True, think=False), out=out, seed=3, base=BASE)
    other = dataclasses.replace(shop(), fingerprint="other")
    with pytest.raises(CheckpointError, match="trained on other data"):
        load_recommender(trained["r2rec-rl"], other)


def test_a_blend_is_the_weighed_sum_of_what_its_experts_say(trained):
    recommender = load_recommender(trained["r2rec-sft"], shop())
    assert isinstance(recommender, ReasonedRanker) and recommender.blend is not None
    assert set(recommender.blend) == {*EXPERTS, "ease", "ials"}
    assert all(w >= 0 for name, w in recommender.blend.items() if name != "events")
    histories = shop().test.take(np.arange(3)).histories()
    candidates = draw_candidates(shop(), "test", num_candidates=5, seed=0).item_index[:3]
    candidates[0, 3] = -1  # a shorter list
    answers = dataclasses.replace(recommender, blend=None).score_candidates(histories, candidates)
    first = recommender.first_stage.score(histories).scores
    said = recommender.experts(histories, candidates, answers.scores, first)
    is_real = candidates >= 0
    for name in ("answers", "first"):  # log-probabilities over the real candidates
        total = np.where(is_real, np.exp(said[name]), 0.0).sum(axis=1)
        np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    for other in recommender.others:  # logarithms of shares among the real candidates
        own = np.maximum(other.score(histories).scores, 0.0)
        shares = np.where(is_real, np.take_along_axis(own, np.maximum(candidates, 0), 1), 0.0)
        shares /= shares.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            said[other.name], np.where(is_real, np.log(shares + 0.01), 0.0), rtol=1e-5
        )
    expected = sum(recommender.blend[name] * said[name] for name in recommender.expert_names)
    scores = recommender.score_candidates(histories, candidates).scores
    np.testing.assert_allclose(scores[is_real], np.asarray(expected)[is_real], rtol=1e-4)
    assert np.isneginf(scores[0, 3])


def test_a_blend_makes_validation_likelier_than_any_single_expert(trained):
    ranker = load_recommender(trained["r2rec-sft"], shop())
    assert isinstance(ranker, ReasonedRanker)
    ranker = dataclasses.replace(ranker, blend=None)
    candidates = draw_candidates(shop(), "valid", num_candidates=20, seed=0).item_index
    histories = shop().valid.histories()
    answers = ranker.score_candidates(histories, candidates).scores
    said = ranker.experts(
        histories, candidates, answers, ranker.first_stage.score(histories).scores
    )
    padding = np.where(candidates >= 0, 0.0, -np.inf)

    def loss(weights: Mapping[str, float]) -> float:
        total = sum(w * said[name] for name, w in weights.items()) + padding
        ridge = 1e-3 * sum(w * w for w in weights.values())
        return float(-log_softmax(total, axis=1)[:, 0].mean()) + ridge

    found = calibrated_blend(ranker, shop(), config())
    assert set(found) == set(ranker.expert_names)
    for name in ranker.expert_names:
        assert loss(found) <= loss({name: 1.0}) + 1e-6
    alone = calibrated_blend(
        ranker,
        shop(),
        config(),
        [name for name in ranker.expert_names if name not in ranker.rivals],
    )
    assert all(found[name] >= alone[name] for name in ("steps", "count"))  # held by default
    loose = config().model_copy(update={"blending": BlendingConfig(holds="nothing")})
    assert loss(calibrated_blend(ranker, shop(), loose)) <= loss(found) + 1e-6
    silent = calibrated_blend(ranker, shop(), config(), EXPERTS[1:])
    assert "answers" not in silent
    asleep = dataclasses.replace(ranker, blend=silent).score_candidates(histories, candidates)
    assert asleep.thoughts is None and asleep.num_tokens is None


def test_a_blend_says_what_put_an_item_where_it_is(trained):
    ranker = load_r2rec(trained["r2rec-sft"], shop())
    histories = shop().test.take(np.arange(2)).histories()
    candidates = draw_candidates(shop(), "test", num_candidates=5, seed=0).item_index[:2]
    candidates[0, 4] = -1
    scored = ranker.score_candidates(histories, candidates)
    assert scored.parts is not None and scored.parts.names == tuple(ranker.blend or {})
    total = scored.parts.values.sum(axis=2)  # the score, less the mean of the row's candidates
    for row, size in enumerate((4, 5)):
        scores = scored.scores[row, :size]
        np.testing.assert_allclose(total[row, :size], scores - scores.mean(), atol=1e-4)
    assert not scored.parts.values[0, 4].any()
    answers = recommend(ranker, shop(), shop().user_ids[:2], k=3, explain=True)
    for answer in answers:
        gaps = [a.score - b.score for a, b in itertools.pairwise(answer.items)]
        sums = [sum((item.because or {}).values()) for item in answer.items]
        np.testing.assert_allclose([a - b for a, b in itertools.pairwise(sums)], gaps, atol=1e-4)
    alone = recommend(dataclasses.replace(ranker, blend=None), shop(), shop().user_ids[:1], k=3)
    assert alone[0].items[0].because is None


def test_weights_of_an_earlier_blend_are_refused(trained, tmp_path):
    folder = tmp_path / "earlier"
    shutil.copytree(trained["r2rec-sft"], folder)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["config"]["blending"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CheckpointError, match="weighed by an earlier version"):
        load_r2rec(folder, shop())
    assert load_r2rec(folder, shop(), blend={"answers": 1.0}).blend == {"answers": 1.0}


def test_a_blend_counts_more_chains_than_a_question_shows(trained):
    ranker = load_r2rec(trained["r2rec-sft"], shop())
    histories = shop().test.take(np.arange(3)).histories()
    candidates = draw_candidates(shop(), "test", num_candidates=5, seed=0).item_index[:3]
    first = ranker.first_stage.score(histories).scores
    said = ranker.experts(histories, candidates, np.zeros(candidates.shape), first)["steps"]
    steps = ranker.blending.steps
    assert steps.window > ranker.builder.config.steps.window
    far = weigh_steps(
        ranker.builder.graph, histories, candidates, max_history=ranker.blending.max_history,
        **steps.model_dump(),
    )  # fmt: skip
    share = far / np.maximum(far.sum(axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(said, np.log(share + 0.01), rtol=1e-6)


def test_without_chains_in_the_evidence_no_expert_speaks_of_them(trained):
    bare = config().traces.evidence.model_copy(update={"num_chains": 0})
    ranker = load_r2rec(trained["r2rec-sft"], shop(), evidence=bare)
    histories = shop().test.take(np.arange(3)).histories()
    candidates = draw_candidates(shop(), "test", num_candidates=5, seed=0).item_index[:3]
    first = ranker.first_stage.score(histories).scores
    said = ranker.experts(histories, candidates, np.zeros(candidates.shape), first)
    assert not said["steps"].any() and not said["count"].any()
    scored = ranker.score_candidates(histories, candidates)
    assert scored.evidence == ((), (), ())
    assert scored.thoughts is not None


def test_the_order_of_the_columns_changes_no_score(trained):
    recommender = load_recommender(trained["r2rec-sft"], shop())
    assert isinstance(recommender, CandidateRecommender)
    histories = shop().test.take(np.arange(3)).histories()
    candidates = draw_candidates(shop(), "test", num_candidates=5, seed=0).item_index[:3]
    candidates[1, 4] = -1  # a shorter list
    scores = recommender.score_candidates(histories, candidates).scores
    turned = [3, 0, 4, 2, 1]
    again = recommender.score_candidates(histories, candidates[:, turned]).scores
    is_real = candidates[:, turned] >= 0
    np.testing.assert_allclose(again[is_real], scores[:, turned][is_real], atol=1e-4)
    assert np.isneginf(scores[1, 4])


def test_the_short_list_is_ranked_by_reasoning_and_stands_above_the_rest(trained):
    recommender = load_recommender(trained["r2rec-sft"], shop())
    assert isinstance(recommender, CandidateRecommender)
    histories = shop().test.take(np.arange(4)).histories()
    full = recommender.score(histories)
    assert full.scores.shape == (4, 14)
    for b in range(4):
        order = np.argsort(-full.scores[b], kind="stable")
        short = order[:4]
        assert not set(short.tolist()) & set(histories.row(b).tolist())
        own = recommender.score_candidates(histories.take(np.array([b])), short[None])
        np.testing.assert_allclose(own.scores[0], full.scores[b, short], atol=1e-4)


def test_candidates_are_measured_by_the_code_that_measures_every_method(trained):
    recommender = load_recommender(trained["r2rec-rl"], shop())
    drawn = draw_candidates(shop(), "test", num_candidates=5, seed=0)
    measured = evaluate(
        recommender, shop(), protocols=["candidates-5"], candidates=[drawn], num_timed_users=1
    )
    histories = shop().test.histories()
    assert isinstance(recommender, CandidateRecommender)
    scores = recommender.score_candidates(histories, drawn.item_index).scores
    columns = np.tile(np.arange(5), (len(scores), 1))
    rank = rank_candidates(scores, np.where(drawn.item_index >= 0, columns, -1))
    assert measured.per_query["rank"].to_list() == rank.tolist()
    assert set(measured.per_query["protocol"]) == {"candidates-5"}
    assert measured.thoughts.height == len(rank)


@pytest.mark.parametrize("name", ["r2rec-sft", "r2rec-rl", "untuned"])
def test_every_item_and_person_in_a_shown_reason_stands_in_its_chains(trained, name):
    dataset = shop()
    recommender = load_recommender(trained[name], dataset)
    for answer in recommend(recommender, dataset, dataset.user_ids, k=3, explain=True):
        assert answer.thought is not None
        titles = {title for chain in answer.chains for title in (chain.via_title, chain.title)}
        people = {chain.neighbour_user_id for chain in answer.chains}
        assert set(re.findall(r"\[([^\[\]]*)\]", answer.thought)) <= titles
        assert set(re.findall(r"neighbour (\S+?)\b", answer.thought)) <= people
        assert "@" not in answer.thought


def test_a_shown_reason_keeps_only_sentences_that_the_chains_bear_out():
    question = hand_question()  # [Harbour] 5 - @1 4 - @1 2 [Comet]; [Ember] is history, no chain
    thought = (
        "The user gave [Harbour] 5. @1 gave it 4 as well. @2 gave [Comet] 2. @1 gave [Comet] 5. "
        "The user liked [Ember]. @1 gave [Comet] 2, below their usual 3.0. So [Comet"
    )
    # @2 is nobody here; @1 gave [Comet] 2, not 5; [Ember] is of no chain; the last one is cut off
    assert shown_reason(question, thought, ["u0", "u17"]) == (
        "The user gave [Harbour] 5. neighbour u17 gave it 4 as well. "
        "neighbour u17 gave [Comet] 2, below their usual 3.0."
    )
    loop = (
        "@2 gave [Comet] 2. @1 gave it 4. @1 gave [Comet] 2. @1 gave [Comet] 2. So it</s> [Comet]."
    )
    # "it" is nothing that was said; a sentence is said once; a marker is no word
    assert shown_reason(question, loop, ["u0", "u17"]) == "neighbour u17 gave [Comet] 2."
    cut = "@1 gave [Comet] 2; this is no news. All in all: Chain Chain Chain"
    assert shown_reason(question, cut, ["u0", "u17"]) == (
        "neighbour u17 gave [Comet] 2; this is no news."
    )
    assert shown_reason(question, "@1 gave [Comet] 2; [Comet] is", ["u0", "u17"]) == (
        "neighbour u17 gave [Comet] 2."
    )
    mail = dataclasses.replace(question, candidates=(card(3, "Me @1 you"),))
    assert shown_reason(mail, "It is so.", ["u0"]) == "It is so."


def test_chains_become_evidence_grouped_by_the_item_they_start_from():
    evidence = chains_as_evidence(hand_question(num_chains=2))
    assert [lookup.via_item_index for lookup in evidence] == [0]
    assert [(k.item_index, k.neighbour_index, k.weight) for k in evidence[0].links] == [
        (3, 1, 6.0), (3, 2, 6.0),
    ]  # fmt: skip


def test_the_effect_of_the_order_is_measured(trained):
    recommender = load_recommender(trained["untuned"], shop())
    queries = shop().test
    candidates = draw_candidates(shop(), "test", num_candidates=5, seed=0).item_index
    effect = order_effect(recommender, queries.histories(), candidates, num_orders=3)  # pyright: ignore[reportArgumentType]
    assert len(effect.hit_at_1) == 3
    assert all(0 <= value <= 1 for value in effect.hit_at_1)
    assert 0 <= effect.frac_first_changed <= 1


def test_a_model_ranks_another_catalogue_with_the_titles_that_it_knows(trained):
    other = rated_shop(8, length=7, titles=[*TITLES[:6], *(f"Saga {n}" for n in range(5))], seed=1)
    at_home = load_r2rec(trained["r2rec-sft"], shop())
    ranker = transferred(trained["r2rec-sft"], other)
    embeddings = ranker.model.backbone.get_input_embeddings().weight.detach()
    rows, home_rows = (
        one.model.backbone.get_input_embeddings().weight.detach()[
            torch.from_numpy(one.model.writer.title_token_ids)
        ]
        for one in (ranker, at_home)
    )
    assert len(rows) == 11 and torch.equal(rows[:6], home_rows[:6])
    assert len(embeddings) == len(ranker.model.tokenizer)
    fresh = rows[6:]
    assert len(fresh.unique(dim=0)) == 5  # else titles that it does not know could not be told
    far = (fresh - home_rows.mean(0)) / home_rows.std(0)
    assert far.abs().mean().item() == pytest.approx(0.8, abs=0.2)  # of a normal draw: .798
    thought = "Chain 1: user [Tale 1] 4."  # words are read as they were learned
    assert ranker.model.writer.encode(thought) == at_home.model.writer.encode(thought)
    candidates = draw_candidates(other, "test", num_candidates=5, seed=0).item_index
    scored = ranker.score_candidates(other.test.histories(), candidates)
    assert np.isfinite(scored.scores).all()
    for answer in recommend(ranker, other, other.user_ids[:3], k=3, explain=True):
        titles = {title for chain in answer.chains for title in (chain.via_title, chain.title)}
        assert answer.thought is not None
        assert set(re.findall(r"\[([^\[\]]*)\]", answer.thought)) <= titles


def test_a_model_of_ratings_is_not_taken_to_another_scale(tmp_path):
    folders = train(shop(), config("rated", think=False), out=tmp_path, seed=0, base=BASE)
    assert transferred(folders[1], shop()).task == "rated"
    halves = dataclasses.replace(shop().train, rating=shop().train.rating / 2)
    with pytest.raises(DataError, match=r"\[1.0, 2.0, 3.0, 4.0, 5.0\].*\[0.5, 1.0"):
        transferred(folders[1], dataclasses.replace(shop(), train=halves))


def test_rated_ranks_by_the_expected_rating_after_a_thought_on_each_candidate(tmp_path):
    folders = train(shop(), config("rated", think=False), out=tmp_path, seed=0, base=BASE)
    recommender = load_recommender(folders[1], shop())
    assert isinstance(recommender, CandidateRecommender)
    histories = shop().test.take(np.arange(2)).histories()
    candidates = draw_candidates(shop(), "test", num_candidates=4, seed=0).item_index[:2]
    scored = recommender.score_candidates(histories, candidates)
    assert (scored.scores >= 1).all() and (scored.scores <= 5).all()
    assert scored.num_tokens is not None
    assert scored.num_tokens.tolist() == [4, 4]  # no thought: a marker for each candidate


@pytest.fixture(scope="module")
def rated(trained):
    """The untuned model of the shop, asked for ratings: it writes thoughts, if no good ones."""
    ranker = load_recommender(trained["untuned"], shop())
    assert isinstance(ranker, ReasonedRanker)
    return dataclasses.replace(ranker, task="rated", max_tokens=120)


def test_the_expected_rating_is_the_sum_of_ratings_by_probability_after_a_thought(rated):
    histories = shop().test.take(np.arange(2)).histories()
    candidates = np.array([[3, 7], [5, -1]])
    scored = rated.score_candidates(histories, candidates)
    questions = rated.builder.build(
        histories.take(np.array([0, 0, 1])), np.array([[3], [7], [5]]), task="rated",
        keys=np.arange(3), seed=rated.seed,
    )  # fmt: skip
    answered = rated.answer(questions)
    assert all(thought for thought in answered.thoughts)
    for at, logp in zip(((0, 0), (0, 1), (1, 0)), answered.log_probs, strict=True):
        p = np.exp(logp)
        assert p.sum() == pytest.approx(1.0, abs=1e-5)
        expected = 1 * p[0] + 2 * p[1] + 3 * p[2] + 4 * p[3] + 5 * p[4]
        assert scored.scores[at] == pytest.approx(expected, abs=1e-4)
    assert np.isneginf(scored.scores[1, 1])
    # both thoughts of the first row count
    assert scored.num_tokens.tolist() == [answered.num_tokens[:2].sum(), answered.num_tokens[2]]


def test_the_reason_shown_is_that_of_the_first_place_after_blending(rated):
    histories = shop().test.take(np.arange(4)).histories()
    candidates = draw_candidates(shop(), "test", num_candidates=5, seed=0).item_index[:4]
    alone = dataclasses.replace(rated, blend=None).score_candidates(histories, candidates)
    # the answers count a little, what others took before counts against: another order
    blend = {"answers": 0.01, "events": -5.0, "steps": 3.0}
    scored = dataclasses.replace(rated, blend=blend).score_candidates(histories, candidates)
    first = scored.scores.argmax(1)
    assert (first != alone.scores.argmax(1)).any()
    assert scored.evidence is not None
    for b in range(4):
        (own,) = rated.builder.build(
            histories.take(np.array([b])), candidates[b, first[b]][None, None], task="rated",
            keys=np.array([5 * b + first[b]]), seed=rated.seed,
        )  # fmt: skip
        assert scored.evidence[b] == chains_as_evidence(own)
    np.testing.assert_array_equal(
        alone.scores.argmax(1) == first,
        [one == other for one, other in zip(alone.evidence, scored.evidence, strict=True)],
    )


def test_rl_asks_about_pairs_of_a_taken_and_an_untouched_item():
    grpo = GrpoConfig(pairwise_weight=0.5)
    asked = config("rated")
    asked = asked.model_copy(update={"rl": asked.rl.model_copy(update={"grpo": grpo})})
    questions, num_dropped = rl_questions(shop(), asked, seed=0)
    log = shop().train
    assert num_dropped == 0
    assert len(questions) == 8
    for taken, untouched in zip(questions[::2], questions[1::2], strict=True):
        assert taken.label is not None and untouched.label is None
        assert taken.history == untouched.history
        own = log.item_index[log.user_index == taken.user_index]
        assert untouched.candidates[0].item_index not in own
    assert [reward.__name__ for _, reward in default_rewards(asked)] == [
        "well_formed", "rating_closeness", "exact_hit",
    ]  # fmt: skip


def test_rl_alone_starts_from_the_backbone_and_learns_from_rewards_of_ones_own(tmp_path, trained):
    read = []

    def brevity(rollout):
        read.append(rollout)
        return 1.0 / (1.0 + len(rollout.thought.split()))

    def other(rollout):
        return 0.0

    other.__name__ = "brevity"
    progress, waits = [], []
    start = trained["untuned"].parent / "no-think"

    def run(*rewards):
        return train(
            shop(), config(stages=("r2rec-rl",)), out=tmp_path, seed=0, base=BASE, start=start,
            rewards=rewards, watch_traces=lambda: nullcontext((progress.append, waits.append)),
        )  # fmt: skip

    untuned, rewarded = run((1.0, first_place), (0.5, brevity))
    assert (untuned.name, rewarded.name) == ("untuned", "r2rec-rl")
    assert len(read) == 4 * 2  # prompts times rollouts
    assert progress[-1].num_done == progress[-1].num_questions == 24
    manifest = json.loads((rewarded / "manifest.json").read_text())
    assert manifest["inputs"]["start"] == json.loads(
        (untuned / "manifest.json").read_text()
    )["fingerprint"]  # fmt: skip
    assert manifest["config"]["rewards"] == [[1.0, "first_place"], [0.5, reward_name(brevity)]]
    before, after = (
        AnsweringModel.from_pretrained(folder / "model").state_dict()
        for folder in (untuned, rewarded)
    )
    assert any(not torch.equal(before[name], weight) for name, weight in after.items())
    run((1.0, first_place), (0.5, brevity))  # finished: nobody is asked again
    assert len(read) == 8
    with pytest.raises(CheckpointError, match="another"):
        run((1.0, first_place), (0.5, other))


def test_a_reward_is_named_by_what_it_is():
    def brevity(rollout):
        return 1.0

    first = reward_name(brevity)

    def brevity(rollout):
        return 2.0

    assert first.startswith("brevity-") and reward_name(brevity).startswith("brevity-")
    assert reward_name(brevity) != first
    assert reward_name(first_place) == "first_place"
    assert reward_name(functools.partial(brevity)) == "partial"  # nothing to read


def test_with_adapters_sft_and_rl_move_them_and_leave_the_backbone_as_it_was(tmp_path):
    backbone = save_backbone(tmp_path / "backbone", "qwen2")
    preset = read_toml(Path(__file__).parents[3] / "configs/r2rec/lora.toml")
    weights = WeightsConfig.model_validate(
        preset["weights"] | {"dtype": "float32", "gradient_checkpointing": False}
    )
    assert (weights.lora, weights.lora_rank, weights.lora_alpha) == (True, 16, 32)
    base = BASE.model_copy(update={"backbone": str(backbone), "weights": weights})
    folders = train(shop(), config(), out=tmp_path / "run", seed=0, base=base)
    assert [folder.name for folder in folders] == ["untuned", "r2rec-sft", "r2rec-rl"]
    loaded = AutoModelForCausalLM.from_pretrained(backbone, dtype=torch.float32).state_dict()
    states = [
        AnsweringModel.from_pretrained(folder / "model").backbone.state_dict() for folder in folders
    ]
    for earlier, later in pairwise(states):
        moved = {name for name in later if not torch.equal(earlier[name], later[name])}
        assert any("lora_A" in name for name in moved) and all("lora_" in name for name in moved)
    for name, weight in states[-1].items():
        if "lora_" not in name:
            assert torch.equal(weight, loaded[name.replace(".base_layer", "")]), name
    histories = shop().test.take(np.arange(2)).histories()
    candidates = draw_candidates(shop(), "test", num_candidates=3, seed=0).item_index[:2]
    first, again = (
        load_r2rec(folders[-1], shop()).score_candidates(histories, candidates) for _ in range(2)
    )
    np.testing.assert_array_equal(first.scores, again.scores)
    taught = load_r2rec(folders[1], shop()).score_candidates(histories, candidates)
    assert (taught.scores != first.scores).any()


def test_rl_never_asks_about_an_item_that_the_prompt_shows_already():
    # trained on [0 1 2 0], [3 4 5 6] and [7 8 7 9]: u0 takes item 0 again, so its last event drops
    rows = [[0, 1, 2, 0, 10, 11], [3, 4, 5, 6, 10, 11], [7, 8, 7, 9, 10, 11]]
    asked = config()
    asked = asked.model_copy(
        update={"traces": asked.traces.model_copy(update={"events": "last", "max_rounds": 2})}
    )
    questions, num_dropped = rl_questions(toy_dataset(rows, TITLES), asked, seed=0)
    # 4 events asked about: each user's last one, and one of them again
    assert len(questions) + num_dropped == 4
    assert num_dropped >= 1
    assert {question.user_index for question in questions} <= {1, 2}
    again = toy_dataset([[0, 1, 0, 10, 11], [2, 3, 2, 10, 11]], TITLES)
    with pytest.raises(DataError, match="every item was taken before"):
        rl_questions(again, asked, seed=0)


def test_pairs_are_of_ratings_alone():
    with pytest.raises(ValidationError, match="pairwise_weight asks for ratings"):
        R2recConfig.model_validate({"task": "likes", "rl": {"grpo": {"pairwise_weight": 0.5}}})


def test_ratings_are_not_asked_of_data_without_any(tmp_path):
    unrated = dataclasses.replace(shop(), train=dataclasses.replace(shop().train, rating=None))
    with pytest.raises(DataError, match="use likes instead"):
        train(unrated, config("rated"), out=tmp_path, seed=0, base=BASE)


def test_both_methods_join_where_the_first_stage_thinks_too(tmp_path, trained):
    silent = trained["untuned"].parent / "no-think"
    think = r2ec.train_stage("sft", shop(), BASE, out=tmp_path / "think", seed=0, start=silent)
    asked = config(stages=("r2rec-sft",), blend=True)
    last = train(shop(), asked, out=tmp_path / "joined", seed=0, base=BASE, start=think)[-1]
    joined = load_recommender(last, shop())
    first = r2ec.load_recommender(think, shop())
    assert isinstance(joined, ReasonedRanker) and isinstance(first, ThinkingRecommender)
    histories = shop().test.take(np.arange(3)).histories()
    ranked = joined.first_stage.score(histories)
    np.testing.assert_array_equal(ranked.scores, first.score(histories).scores)
    candidates = draw_candidates(shop(), "test", num_candidates=5, seed=0).item_index[:3]
    blended = joined.score_candidates(histories, candidates)
    alone = dataclasses.replace(joined, blend=None).score_candidates(histories, candidates)
    # the tokens of both thoughts count
    np.testing.assert_array_equal(blended.num_tokens, alone.num_tokens + ranked.num_tokens)


@pytest.mark.parametrize(
    ("open_folder", "method", "wanted"),
    [
        (r2ec.load_recommender, "r2rec-sft", "`reasonrec train r2ec` or of one of its stages"),
        (r2ec.load_recommender, "tiger", "`reasonrec train r2ec` or of one of its stages"),
        (load_r2rec, "think-recpo", "`reasonrec train r2rec`"),
    ],
)
def test_a_folder_of_another_method_is_named_with_what_opens_it(
    tmp_path, open_folder, method, wanted
):
    about = {"method": method, "trained_on": "train"}
    write_manifest(
        tmp_path, stage="train", inputs={"data": shop().fingerprint}, config={}, outputs=[],
        seconds=1.0, extra=about,
    )  # fmt: skip
    told = rf"folder of {wanted}; it holds {method}. `reasonrec recommend` and `evaluate` open it"
    with pytest.raises(CheckpointError, match=told):
        open_folder(tmp_path, shop())


def test_a_start_of_another_method_is_refused(tmp_path, trained):
    with pytest.raises(CheckpointError, match="starts from a folder of `reasonrec train`"):
        train(shop(), config(), out=tmp_path, seed=0, base=BASE, start=trained["r2rec-sft"])
    # nor from a model that learned what the blend is chosen on
    served = tmp_path / "served"
    shutil.copytree(trained["r2rec-sft"].parent / "no-think", served)
    manifest = json.loads((served / "manifest.json").read_text())
    (served / "manifest.json").write_text(json.dumps(manifest | {"trained_on": "train+valid"}))
    with pytest.raises(CheckpointError, match="learned from their targets"):
        train(shop(), config(), out=tmp_path / "out", seed=0, base=BASE, start=served)

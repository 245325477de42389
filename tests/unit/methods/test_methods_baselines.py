"""The language-model baselines: what they learn, the contract of all methods, files and words."""

import dataclasses
import json

import numpy as np
import polars as pl
import pytest
from tests.toy_models import TOY_SHAPE, ring_rows, save_backbone
from tests.toys import toy_dataset

from reasonrec.baselines.contract import Recommender
from reasonrec.baselines.floor import fit_floor
from reasonrec.data.dataset import Catalogue, InteractionLog
from reasonrec.errors import CheckpointError, ConfigError, DataError
from reasonrec.evaluation.protocol import evaluate
from reasonrec.methods.baselines.config import (
    BaselinesConfig,
    BigrecConfig,
    DirectSftConfig,
    TigerConfig,
)
from reasonrec.methods.baselines.train import METHOD_OF, METHODS, item_vectors, train
from reasonrec.methods.loading import load_recommender
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.r2rec import METHODS as R2REC_METHODS
from reasonrec.models.config import HeadConfig, WeightsConfig
from reasonrec.models.likelihood import LikelihoodRecommender
from reasonrec.models.semantic_ids import frac_shared
from reasonrec.records import Histories
from reasonrec.traces.config import PromptConfig
from reasonrec.training.config import OptimiserConfig

N = 24
GENRES = ("Tide", "Ember", "Moss", "Quartz")
BASE = R2ecConfig(
    tiny=TOY_SHAPE.model_copy(update={"width": 32, "feed_forward_width": 64}),
    head=HeadConfig(max_history=6),
)
OPTIMISER = OptimiserConfig(
    learning_rate=1e-2, batch_size=8, num_validations=4, schedule="constant_with_warmup"
)
CONFIG = BaselinesConfig(
    direct_sft=DirectSftConfig(num_epochs=8, dropout=0.0, optimiser=OPTIMISER),
    bigrec=BigrecConfig(
        num_epochs=40, num_branches=4, dropout=0.0, vocab_size=330, max_tokens=12,
        popularity=True, optimiser=OPTIMISER,
    ),
    tiger=TigerConfig(
        num_epochs=28, dropout=0.0, ids_from="text", num_levels=2, codebook_size=4, vector_width=6,
        optimiser=OPTIMISER,
    ),
)  # fmt: skip
TRAINED = ("direct-sft", "bigrec", "tiger")


def shop():
    """Everybody walks along the catalogue: what comes next is certain, and nothing is popular."""
    titles = [f"{GENRES[n // 6]} {'abcdef'[n % 6]}" for n in range(N)]
    toy = toy_dataset(ring_rows(40, N, 12), titles)
    table = toy.catalogue.table.with_columns(
        categories=pl.Series([[GENRES[n // 6]] for n in range(N)])
    )
    return dataclasses.replace(toy, catalogue=Catalogue(table))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    out = tmp_path_factory.mktemp("baselines")
    return {
        what: train(what, shop(), CONFIG, base=BASE, out=out / what, seed=3) for what in METHOD_OF
    }


@pytest.fixture(scope="module")
def opened(folders):
    return {what: load_recommender(folder, shop()) for what, folder in folders.items()}


def ndcg_at_10(recommender):
    measured = evaluate(recommender, shop(), protocols=("full",), num_timed_users=0)
    return next(row.value for row in measured.rows if row.metric == "ndcg@10")


@pytest.mark.parametrize("what", TRAINED)
def test_every_baseline_learns_planted_taste(what, opened):
    # 13 items are left at the test. Popularity knows nothing: one in 13 at each of ten places is
    # (1 + 1/log2(3) + ... + 1/log2(11)) / 13 = 4.54 / 13 = 0.35; who knows the walk has 1
    assert ndcg_at_10(fit_floor("popularity", shop())) < 0.5
    assert ndcg_at_10(opened[what]) > 0.9


def test_a_random_model_that_was_not_trained_is_near_chance(opened):
    assert 0.15 < ndcg_at_10(opened["untuned"]) < 0.55  # chance: 0.35, as above; 40 users


@pytest.mark.parametrize("what", METHOD_OF)
def test_every_baseline_meets_the_contract(what, opened):
    recommender = opened[what]
    assert isinstance(recommender, Recommender)
    assert recommender.name == METHOD_OF[what]
    known = shop().test.histories()
    scores = recommender.score(known).scores
    assert scores.shape == (len(known), N)
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    new_and_empty = Histories.from_lists([[4, 5], [], list(range(N)) * 3])
    assert np.isfinite(recommender.score(new_and_empty).scores).all()
    assert recommender.score(known.take(np.array([], np.int64))).scores.shape == (0, N)


@pytest.mark.parametrize("what", METHOD_OF)
def test_a_rows_answer_does_not_depend_on_the_other_rows(what, opened):
    histories = Histories.from_lists([[4, 5, 6], [], [1], [9, 10, 11, 12, 13, 14, 15, 16, 17]])
    together = opened[what].score(histories).scores
    order = np.array([2, 0, 3, 1])
    again = opened[what].score(histories.take(order)).scores
    np.testing.assert_allclose(again, together[order], atol=1e-4)
    alone = opened[what].score(histories.take(order[:1])).scores
    np.testing.assert_allclose(alone, together[order[:1]], atol=1e-4)


@pytest.mark.parametrize("what", METHOD_OF)
def test_the_same_command_trains_nothing_anew_and_another_seed_is_refused(what, folders):
    weights = folders[what] / "model" / "backbone" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    train(what, shop(), CONFIG, base=BASE, out=folders[what], seed=3)
    assert weights.stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="another seed"):
        train(what, shop(), CONFIG, base=BASE, out=folders[what], seed=4)
    other = dataclasses.replace(shop(), fingerprint="other")
    with pytest.raises(CheckpointError, match="trained on other data"):
        load_recommender(folders[what], other)


@pytest.mark.parametrize("what", TRAINED)
def test_the_same_seed_gives_the_same_model(what, tmp_path):
    short = {"num_epochs": 1, "optimiser": OPTIMISER.model_copy(update={"num_validations": 1})}
    config = BaselinesConfig(
        direct_sft=CONFIG.direct_sft.model_copy(update=short),
        bigrec=CONFIG.bigrec.model_copy(update=short | {"popularity": False}),
        tiger=CONFIG.tiger.model_copy(update=short),
    )
    asked = Histories.from_lists([[2, 3], []])
    scores = []
    for folder in (tmp_path / "once", tmp_path / "again"):
        train(what, shop(), config, base=BASE, out=folder, seed=0)
        scores.append(load_recommender(folder, shop()).score(asked).scores)
    np.testing.assert_array_equal(*scores)


def test_names_keep_full_catalogue_rows_apart_from_those_of_candidates():
    assert not set(METHODS) & set(R2REC_METHODS)
    assert METHOD_OF["untuned"] == "untuned/title"


def test_manifests_say_what_was_learned_and_how(folders):
    manifests = {w: json.loads((f / "manifest.json").read_text()) for w, f in folders.items()}
    assert {w: m["trained_on"] for w, m in manifests.items()} == {
        "untuned": "nothing", "direct-sft": "train", "bigrec": "train", "tiger": "train",
    }  # fmt: skip
    assert manifests["bigrec"]["popularity_power"] == 0.0  # nothing is popular here: the smallest
    assert manifests["tiger"]["frac_shared_codes"] == 1.0  # words say the genre: 24 items, 4 codes
    assert all(manifests[what]["best_score"] > 0.9 for what in TRAINED)


def test_bigrec_writes_titles_in_words_and_never_with_their_own_tokens(opened):
    bigrec = opened["bigrec"]
    histories = Histories.from_lists([list(range(7)), list(range(6, 13))])
    _, texts, _ = bigrec.write(histories)
    assert texts == ["Ember b", "Moss b"]  # items 7 and 13
    best = bigrec.score(histories).scores.max(1)
    np.testing.assert_allclose(best, 0, atol=1e-4)  # word for word: at distance 0, but for rounding
    title_token = bigrec.model.writer.item_tokens(7)
    assert len(title_token) == 1
    assert len(bigrec.model.title_tokens(7, 12)) > 1


def test_tiger_gives_every_item_an_id_of_its_own_that_the_prompt_shows(opened):
    tiger = opened["tiger"]
    assert isinstance(tiger, LikelihoodRecommender)
    titles = tiger.model.titles
    assert len(set(titles)) == N
    assert all(len(tiger.model.writer.item_tokens(n)) == 3 for n in range(N))
    shown = tiger.model.writer.prompts(Histories.from_lists([[7, 2]])).token_ids[0].tolist()
    text = str(tiger.model.tokenizer.decode(shown))
    assert text == f"<s>History: [{titles[7]}] [{titles[2]}]"
    probabilities = np.exp(tiger.score(shop().test.histories()).scores)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-5)


def test_a_beam_can_be_asked_for(tmp_path):
    config = CONFIG.model_copy(
        update={"tiger": CONFIG.tiger.model_copy(update={"beam": 2, "num_epochs": 1})}
    )
    folder = train("tiger", shop(), config, base=BASE, out=tmp_path, seed=0)
    scores = load_recommender(folder, shop()).score(Histories.from_lists([[1, 2]])).scores
    assert 1 <= np.isfinite(scores).sum() < N


def test_vectors_hold_what_was_asked_for_and_nothing_of_the_future():
    dataset = shop()
    wide = {
        source: item_vectors(
            dataset, TigerConfig(ids_from=source, vector_width=5), None, seed=0
        )
        for source in ("text", "log", "text+log")
    }  # fmt: skip
    np.testing.assert_array_equal(wide["text+log"], np.hstack([wide["text"], wide["log"]]))
    planted = [*ring_rows(39, N, 10), [*range(8), 9, 0]]  # what the last two of a row are
    other = dataclasses.replace(dataset, test=toy_dataset(planted, dataset.catalogue.titles).test)
    again = item_vectors(other, TigerConfig(ids_from="log", vector_width=5), None, seed=0)
    np.testing.assert_array_equal(again, wide["log"])


@pytest.mark.parametrize("what", METHOD_OF)
def test_any_causal_model_serves_as_backbone(what, tmp_path):
    base = BASE.model_copy(update={"backbone": str(save_backbone(tmp_path / "lm", "qwen2"))})
    short = {"num_epochs": 1, "optimiser": OPTIMISER.model_copy(update={"num_validations": 1})}
    config = BaselinesConfig(
        direct_sft=CONFIG.direct_sft.model_copy(update=short),
        bigrec=CONFIG.bigrec.model_copy(update=short),
        tiger=CONFIG.tiger.model_copy(update=short | {"ids_from": "states"}),
    )
    folder = train(what, shop(), config, base=base, out=tmp_path / "out", seed=0)
    scores = load_recommender(folder, shop()).score(Histories.from_lists([[1, 2], []])).scores
    assert np.isfinite(scores).all()
    assert len(set(scores[0].tolist())) > N // 2


@pytest.mark.parametrize(
    ("what", "config", "base", "said"),
    [
        ("tiger", {}, {"prompt": PromptConfig(chat=True)}, "chat template"),
        ("direct-sft", {}, {"prompt": PromptConfig(chat=True)}, "chat template"),
        ("tiger", {}, {"weights": WeightsConfig(lora=True)}, "low-rank adapters"),
        ("tiger", {"tiger": TigerConfig(ids_from="states")}, {}, "has learned to read"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(what, config, base, said, tmp_path):
    wanted = BASE.model_copy(update=base)
    with pytest.raises(ConfigError, match=said):
        train(what, shop(), BaselinesConfig(**config), base=wanted, out=tmp_path, seed=0)


def test_data_without_anything_to_learn_from_are_refused(tmp_path):
    lonely = toy_dataset([[0], [1]], ["a", "b"])
    with pytest.raises(DataError, match="2 training events"):
        train("tiger", lonely, CONFIG, base=BASE, out=tmp_path, seed=0)


def test_an_empty_log_has_vectors_too():
    log = InteractionLog(np.empty(0, np.int32), np.empty(0, np.int32), num_users=0)
    dataset = dataclasses.replace(shop(), train=log)
    vectors = item_vectors(dataset, TigerConfig(ids_from="log"), None, seed=0)
    assert not vectors.any()
    assert frac_shared(vectors.astype(np.int64)) == 1.0

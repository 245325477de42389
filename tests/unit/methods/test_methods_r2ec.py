"""The method from Python, as the readme shows it: fit, recommend, continue."""

import dataclasses

import pytest
from tests.toy_models import TOY_SHAPE, ring_rows, toy_catalogue
from tests.toys import toy_dataset

from reasonrec.errors import CheckpointError
from reasonrec.methods.r2ec import METHOD_OF_STAGE, R2ec, load_recommender
from reasonrec.methods.r2ec_config import NoThinkStage, R2ecConfig, RecpoStage, SftStage
from reasonrec.models.config import HeadConfig
from reasonrec.training.config import OptimiserConfig, RecpoConfig

N = 12
OPTIMISER = OptimiserConfig(batch_size=8, num_validations=1)
CONFIG = R2ecConfig(
    tiny=TOY_SHAPE,
    head=HeadConfig(max_history=8),
    no_think=NoThinkStage(num_epochs=2, optimiser=OPTIMISER),
    sft=SftStage(num_epochs=1, num_branches=1, optimiser=OPTIMISER),
    recpo=RecpoStage(
        num_prompts=8, optimiser=OPTIMISER, recpo=RecpoConfig(group_size=2, max_tokens=12)
    ),
)


def shop():
    rows = ring_rows(16, N, 8)
    toy = toy_dataset(rows, [f"Tale {i}" for i in range(N)])
    return dataclasses.replace(toy, catalogue=toy_catalogue(N))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    return R2ec(CONFIG, out=tmp_path_factory.mktemp("r2ec"), seed=3).fit(shop())


def test_fit_leaves_a_finished_folder_for_every_stage(fitted):
    for method in METHOD_OF_STAGE.values():
        assert (fitted.out / method / "manifest.json").exists()
        assert (fitted.out / method / "metrics.jsonl").stat().st_size
    assert fitted.recommender.name == "think-recpo"


def test_recommendations_come_with_thought_and_chains_if_asked(fitted):
    answers = fitted.recommend(["u3", "u0"], k=4, explain=True)
    assert [answer.user_id for answer in answers] == ["u3", "u0"]
    for answer in answers:
        taken = {item.item_id for item in answer.history}
        assert [item.rank for item in answer.items] == [1, 2, 3, 4]
        assert not taken & {item.item_id for item in answer.items}
        assert answer.thought is not None
    assert all(answer.thought is None for answer in fitted.recommend(["u3"], k=4))


def test_a_second_fit_of_the_same_folder_trains_nothing_and_answers_alike(fitted):
    model = fitted.out / "think-recpo" / "model" / "rec_head.safetensors"
    before = model.stat().st_mtime_ns
    again = R2ec(CONFIG, out=fitted.out, seed=3).fit(shop())
    assert model.stat().st_mtime_ns == before
    assert again.recommend(["u5"], k=5) == fitted.recommend(["u5"], k=5)
    with pytest.raises(CheckpointError, match="another"):
        R2ec(CONFIG, out=fitted.out, seed=4).fit(shop())


def test_a_method_that_was_not_trained_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"call fit\(dataset\)"):
        R2ec(CONFIG, out=tmp_path).recommend(["u1"])


def test_a_thinking_model_can_be_asked_to_keep_silent(fitted):
    silent = load_recommender(fitted.out / "think-recpo", shop(), thinks=False)
    assert silent.name == "think-recpo/silent"


def test_a_model_of_other_data_is_refused(fitted):
    other = dataclasses.replace(shop(), fingerprint="other")
    with pytest.raises(CheckpointError, match="trained on other data"):
        load_recommender(fitted.out / "think-recpo", other)

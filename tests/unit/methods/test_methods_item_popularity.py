"""Item texts that tell how many took an item: counted on what was trained on, and saved."""

import dataclasses

import pytest
from tests.toy_models import TOY_SHAPE, toy_catalogue
from tests.toys import toy_dataset

from reasonrec.errors import ConfigError
from reasonrec.methods.r2ec import load_recommender, train, train_stage
from reasonrec.methods.r2ec_config import NoThinkStage, R2ecConfig
from reasonrec.models.config import HeadConfig
from reasonrec.models.recommenders import NoThinkRecommender
from reasonrec.traces.config import PromptConfig
from reasonrec.training.config import OptimiserConfig

N = 8
TOLD = R2ecConfig(
    tiny=TOY_SHAPE,
    stages=("no-think",),
    prompt=PromptConfig(item_popularity=True),
    head=HeadConfig(max_history=8, dropout=0.0, item_rows="text", repeats=True),
    no_think=NoThinkStage(
        num_epochs=1, optimiser=OptimiserConfig(batch_size=8, num_validations=1)
    ),
)  # fmt: skip


def shop(future):
    """Return three people's first three events, rated 1, 2 and 3, and the last two of each."""
    past = [[0, 1, 2], [0, 1, 0], [1, 2, 1]]
    rows = [[*row, *later] for row, later in zip(past, future, strict=True)]
    dataset = toy_dataset(rows, [f"Tale {i}" for i in range(N)], ratings=True)
    return dataclasses.replace(dataset, catalogue=toy_catalogue(N))


def loaded(folder, dataset):
    recommender = load_recommender(folder, dataset)
    assert isinstance(recommender, NoThinkRecommender)
    return recommender.model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    dataset = shop([[3, 4], [5, 6], [7, 0]])
    return dataset, train(dataset, TOLD, out=tmp_path_factory.mktemp("told"), seed=0)[0]


def test_a_saved_model_tells_what_training_knew_whatever_validation_and_test_hold(
    trained, tmp_path
):
    dataset, folder = trained
    # (1 + 1 + 3) / 3 from persons 0 and 1; (2 + 2 + 1 + 3) / 4 from all; (3 + 2) / 2 from 0 and 2
    seen = ["Taken by 2, rated 1.7", "Taken by 3, rated 2.0", "Taken by 2, rated 2.5"]
    genres = ["Tide.", "Ember."] * 4
    texts = [f"Tale {n}. {genre}" for n, genre in enumerate(genres)]
    texts[:3] = [f"{text} {words} on average." for text, words in zip(texts, seen)]
    model = loaded(folder, dataset)
    assert model.item_texts == texts
    assert model.writer.prompt.item_popularity
    other = shop([[0, 0], [0, 1], [0, 1]])  # all of the future takes what is popular already
    (there,) = train(other, TOLD, out=tmp_path, seed=0)
    assert loaded(there, other).item_texts == texts


def test_a_model_that_is_trained_on_validation_too_counts_it(trained, tmp_path):
    dataset, folder = trained
    (both,) = train(dataset, TOLD, out=tmp_path, seed=0, again=folder.parent)
    model = loaded(both, dataset)
    assert model.item_texts[3] == "Tale 3. Ember. Taken by 1."  # a target has no rating
    assert model.item_texts[4] == "Tale 4. Tide."  # taken in the test alone


def test_rows_that_are_read_from_no_text_cannot_tell(tmp_path):
    rows = TOLD.model_copy(update={"head": HeadConfig()})
    with pytest.raises(ConfigError, match=r"head\.item_rows = id none are"):
        train(shop([[3, 4], [5, 6], [7, 0]]), rows, out=tmp_path, seed=0)


def test_a_stage_goes_on_with_the_texts_of_the_one_before(trained, tmp_path):
    dataset, folder = trained
    asked = {"stages": ("no-think", "sft"), "prompt": PromptConfig()}
    silent = TOLD.model_copy(update=asked)
    message = r"prompt\.item_popularity = True, and asked for was False"
    with pytest.raises(ConfigError, match=message):
        train_stage("sft", dataset, silent, out=tmp_path, seed=0, start=folder)

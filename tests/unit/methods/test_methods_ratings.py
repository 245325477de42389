"""Told how each thing was rated: by every stage, of the past alone, and a request may not know."""

import dataclasses

import numpy as np
import pytest
import torch
from tests.toy_models import TOY_SHAPE, ring_rows, toy_catalogue
from tests.toys import toy_dataset

from reasonrec import rated
from reasonrec.errors import ConfigError
from reasonrec.methods.baselines.config import BaselinesConfig
from reasonrec.methods.baselines.train import train as train_baseline
from reasonrec.methods.r2ec import load_recommender, train, train_stage
from reasonrec.methods.r2ec_config import NoThinkStage, R2ecConfig, RecpoStage, SftStage
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig
from reasonrec.rng import stream
from reasonrec.serving.recommender import known_histories, recommend, recommend_for_history
from reasonrec.traces.config import PromptConfig
from reasonrec.training.config import OptimiserConfig, RecpoConfig
from reasonrec.training.examples import UNTOLD, WindowDataset, schedule_windows

N = 8
TITLES = [f"Tale {i}" for i in range(N)]
OPTIMISER = OptimiserConfig(batch_size=8, num_validations=1)
TOLD = R2ecConfig(
    tiny=TOY_SHAPE,
    prompt=PromptConfig(ratings=True),
    head=HeadConfig(max_history=8, dropout=0.0, repeats=True),
    no_think=NoThinkStage(num_epochs=1, optimiser=OPTIMISER),
    sft=SftStage(num_epochs=1, num_branches=1, optimiser=OPTIMISER),
    recpo=RecpoStage(
        num_prompts=8, optimiser=OPTIMISER, recpo=RecpoConfig(group_size=2, max_tokens=12)
    ),
)
SILENT = TOLD.model_copy(update={"prompt": PromptConfig()})


def writer_of(prompt):
    return build_model(
        toy_catalogue(N), backbone="tiny", tiny=TOY_SHAPE, head=HeadConfig(), seed=0, prompt=prompt
    ).writer


def told_windows(log):
    windows = schedule_windows(log, max_history=8, num_epochs=1, batch_size=1, seed=0)
    return WindowDataset(log, windows, writer_of(TOLD.prompt))


def rated_otherwise(log, event, rating):
    changed = log.rating.copy()
    changed[event] = rating
    return dataclasses.replace(log, rating=changed)


def test_a_tiny_model_that_is_told_knows_the_usual_ratings_as_tokens_of_their_own():
    told, silent = writer_of(TOLD.prompt), writer_of(SILENT.prompt)
    assert [len(told.encode(word)) for word in rated.WORDS] == [1] * len(rated.WORDS)
    assert not {*rated.WORDS} & {*silent.tokenizer.get_vocab()}
    assert len(told.tokenizer) == len(silent.tokenizer) + len(rated.WORDS)


def test_a_window_tells_how_what_was_taken_before_was_rated_and_never_its_target():
    log = toy_dataset([[0, 1, 2, 3, 4, 5]], TITLES, ratings=True).train  # 0 1 2 3, rated 1 2 3 4
    data = told_windows(log)
    batch, decode = data[0], data.writer.tokenizer.decode
    tokens = batch["trunk_ids"][0, : batch["trunk_lengths"][0]]
    assert decode(tokens) == "<s>History: [Tale 0] 1 [Tale 1] 2 [Tale 2] 3"
    assert batch["next_item"].tolist() == [[0, 1, 2, 3]]
    read = [decode(tokens[: end + 1]) for end in batch["item_ends"][0]]
    assert read[:2] == ["<s>History:", "<s>History: [Tale 0] 1"]  # before item 0, before item 1
    for event in range(4):  # what the state reads that predicts an event knows not how it is rated
        other = told_windows(rated_otherwise(log, event, 9))[0]
        end = batch["item_ends"][0, event] + 1
        assert torch.equal(other["trunk_ids"][0, :end], tokens[:end])
        assert torch.equal(other["trunk_ids"][0], tokens) == (event == 3)


def test_a_question_never_tells_how_its_target_was_rated():
    dataset = toy_dataset([[0, 1, 2, 3, 4, 5]], TITLES, ratings=True)
    writer, log, queries = writer_of(TOLD.prompt), dataset.train, dataset.test

    def shown(histories):
        return writer.tokenizer.decode(writer.prompts(histories).token_ids[0])

    event = np.array([2])  # as RecPO asks
    assert shown(log.histories_before(event)) == "<s>History: [Tale 0] 1 [Tale 1] 2"
    assert shown(rated_otherwise(log, 2, 9).histories_before(event)) == shown(
        log.histories_before(event)
    )
    text = "<s>History: [Tale 0] 1 [Tale 1] 2 [Tale 2] 3 [Tale 3] 4 [Tale 4] 5"
    assert shown(queries.histories()) == text
    ratings = queries.log_rating.copy()
    ratings[queries.history_stop[0]] = 9
    assert shown(dataclasses.replace(queries, log_rating=ratings).histories()) == text
    # what is known of a user ends in the target, whose rating no data set keeps
    assert shown(known_histories(dataset, [0])) == f"{text} [Tale 5]"


def test_a_twentieth_of_the_windows_is_learned_without_ratings():
    log = toy_dataset(ring_rows(200, N, 5), TITLES, ratings=True).train  # three events each
    data = told_windows(log)
    batch = data.__getitems__(range(len(data)))
    drawn = [stream(0, "told", row).random() < UNTOLD for row in range(len(data))]
    assert (len(data), sum(drawn)) == (200, 9)
    # two titles, and where it is told a rating behind each
    opening = len(data.writer.prefix)
    expected = np.where(drawn, opening + 2, opening + 4)
    assert batch["trunk_lengths"].tolist() == expected.tolist()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    dataset = toy_dataset(ring_rows(8, N, 6), TITLES, ratings=True)
    dataset = dataclasses.replace(dataset, catalogue=toy_catalogue(N))
    return dataset, train(dataset, TOLD, out=tmp_path_factory.mktemp("told"), seed=0)


def test_every_stage_is_told_and_a_request_may_come_without_ratings(trained):
    dataset, folders = trained
    asked = load_recommender(folders[-1], dataset)
    assert asked.model.writer.prompt.ratings  # as it was saved
    assert len(asked.model.writer.encode(" 4.5")) == 1
    known = dataset.test.histories()
    unknown = dataclasses.replace(known, rating=None)
    for histories in (known, unknown):
        scored = asked.score(histories)
        assert np.isfinite(scored.scores).all() and all(scored.thoughts)
    assert (asked.score(known).scores != asked.score(unknown).scores).any()
    assert len(recommend(asked, dataset, ["u1"], k=2)[0].items) == 2
    assert len(recommend_for_history(asked, dataset, ["i1", "i2"], k=2).items) == 2


def test_a_stage_goes_on_with_the_prompts_of_the_one_before(trained, tmp_path):
    dataset, (first, *_) = trained
    with pytest.raises(ConfigError, match=r"prompt\.ratings = True, and asked for was False"):
        train_stage("sft", dataset, SILENT, out=tmp_path, seed=0, start=first)


def test_a_log_without_ratings_is_refused(tmp_path):
    dataset = toy_dataset(ring_rows(4, N, 5), TITLES)
    unrated = dataclasses.replace(dataset.train, rating=np.full(12, np.nan, np.float32))
    message = r"prompt\.ratings needs a log with ratings, and toy has none"
    for data in (dataset, dataclasses.replace(dataset, train=unrated)):
        with pytest.raises(ConfigError, match=message):
            train(data, TOLD, out=tmp_path, seed=0)
        with pytest.raises(ConfigError, match=message):
            train_baseline(
                "untuned", data, BaselinesConfig(), base=TOLD, out=tmp_path / "title", seed=0
            )

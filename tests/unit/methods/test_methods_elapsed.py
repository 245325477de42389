"""Told how long it has been, a model learns what only time tells; and it goes on without times."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tests.toy_models import TOY_SHAPE, toy_catalogue
from tests.toys import toy_dataset

from reasonrec.errors import CheckpointError, ConfigError
from reasonrec.methods.baselines.config import BaselinesConfig
from reasonrec.methods.baselines.train import train as train_baseline
from reasonrec.methods.r2ec import load_recommender, train
from reasonrec.methods.r2ec_config import NoThinkStage, R2ecConfig, RecpoStage, SftStage
from reasonrec.models.config import HeadConfig
from reasonrec.records import Histories
from reasonrec.serving.recommender import recommend, recommend_for_history
from reasonrec.traces.config import OF_R2EC, PromptConfig
from reasonrec.training.config import OptimiserConfig, RecpoConfig

N, DAY = 8, 86_400
OPTIMISER = OptimiserConfig(batch_size=8, num_validations=1)
TOLD = R2ecConfig(
    tiny=TOY_SHAPE,
    stages=("no-think",),
    prompt=PromptConfig(elapsed=True),
    head=HeadConfig(max_history=8, dropout=0.0, repeats=True),
    thought=OF_R2EC.model_copy(update={"same_pace": 3.0}),
    no_think=NoThinkStage(
        num_epochs=160,
        optimiser=OptimiserConfig(learning_rate=1e-2, batch_size=8, num_validations=1),
    ),
    sft=SftStage(num_epochs=1, num_branches=1, optimiser=OPTIMISER),
    recpo=RecpoStage(
        num_prompts=8, optimiser=OPTIMISER, recpo=RecpoConfig(group_size=2, max_tokens=12)
    ),
)


def walks(num_users=48, length=9):
    """Return a log in which people go to the next item at once, or two days later to the third."""
    rng = np.random.default_rng(0)
    is_later = rng.random((num_users, length)) < 0.5
    steps = np.where(is_later, 3, 1)
    steps[:, 0] = rng.integers(0, N, num_users)
    rows = (steps.cumsum(1) % N).tolist()
    times = np.where(is_later, 2 * DAY, 0).cumsum(1)
    toy = toy_dataset(rows, [f"Tale {i}" for i in range(N)])

    def timed(queries):
        at = times.ravel()[queries.history_stop]
        return dataclasses.replace(queries, log_timestamp=times.ravel(), timestamp=at)

    return dataclasses.replace(
        toy,
        catalogue=toy_catalogue(N),
        train=dataclasses.replace(toy.train, timestamp=times[:, :-2].ravel()),
        valid=timed(toy.valid),
        test=timed(toy.test),
    )


def share_right(dataset, config, out):
    folder = train(dataset, config, out=out, seed=0)[-1]
    scores = load_recommender(folder, dataset).score(dataset.test.histories()).scores
    return float((scores.argmax(1) == dataset.test.target).mean())


def test_what_only_time_tells_is_learned_by_who_is_told(tmp_path):
    dataset = walks()
    silent = TOLD.model_copy(update={"prompt": PromptConfig()})
    assert share_right(dataset, TOLD, tmp_path / "told") > 0.9
    assert share_right(dataset, silent, tmp_path / "silent") < 0.8


def test_every_stage_is_told_and_a_request_may_come_without_times(tmp_path):
    dataset = walks()
    config = TOLD.model_copy(
        update={
            "stages": ("no-think", "sft", "recpo"),
            "no_think": NoThinkStage(num_epochs=1, optimiser=OPTIMISER),
        }
    )
    folder = train(dataset, config, out=tmp_path, seed=0)[-1]
    asked = load_recommender(folder, dataset)
    assert asked.model.writer.prompt.elapsed  # as it was saved
    known = dataset.test.histories()
    unknown = Histories(known.user_index, known.item_index, known.offsets)
    for histories in (known, unknown):
        scored = asked.score(histories)
        assert np.isfinite(scored.scores).all() and all(scored.thoughts)
    assert (asked.score(known).scores != asked.score(unknown).scores).any()
    answers = recommend(asked, dataset, ["u1"], k=2)
    assert len(answers[0].items) == 2
    assert len(recommend_for_history(asked, dataset, ["i1", "i2"], k=2).items) == 2


def test_a_folder_holds_either_who_is_told_or_who_is_not(tmp_path: Path):
    dataset = walks(num_users=8)
    few = NoThinkStage(num_epochs=1, optimiser=OPTIMISER)
    told = TOLD.model_copy(update={"no_think": few})
    silent = told.model_copy(update={"prompt": PromptConfig()})
    (folder,) = train(dataset, told, out=tmp_path, seed=0)
    written = (folder / "manifest.json").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"prompt\.elapsed was True, now None"):
        train(dataset, silent, out=tmp_path, seed=0)
    train(dataset, told, out=tmp_path, seed=0)
    assert (folder / "manifest.json").read_text(encoding="utf-8") == written
    baseline = {"config": BaselinesConfig(), "out": tmp_path / "untuned", "seed": 0}
    train_baseline("untuned", dataset, base=silent, **baseline)
    with pytest.raises(CheckpointError, match=r"prompt\.elapsed was None, now True"):
        train_baseline("untuned", dataset, base=told, **baseline)


def test_a_log_without_times_is_refused(tmp_path):
    dataset = toy_dataset([[0, 1, 2, 3]] * 4, [f"Tale {i}" for i in range(N)], timestamps=False)
    with pytest.raises(ConfigError, match=r"prompt\.elapsed needs a log with times, and toy has"):
        train(dataset, TOLD, out=tmp_path, seed=0)

"""Histories as training texts: what has weight, what is read, and an interrupted run."""

import numpy as np
import pytest
import torch
from tests.toy_models import TOY_SHAPE, ring_rows, save_backbone, toy_catalogue
from tests.toys import toy_dataset

from reasonrec.models.answers import HeadlessModel, with_words_of
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig
from reasonrec.models.grounding import TitleWritingModel
from reasonrec.models.text_batch import TextBatch
from reasonrec.training.config import OptimiserConfig
from reasonrec.training.examples import keep_batch, schedule_windows
from reasonrec.training.item_texts import (
    ContinuedHistories,
    WrittenTitles,
    continuation_loss,
    title_loss,
)
from reasonrec.training.loop import fit

N = 12
CONFIG = OptimiserConfig(batch_size=4, learning_rate=5e-3, num_validations=4, averaging=0.9)


def toy_lm(backbone="tiny", *, kind=HeadlessModel, dropout=0.0):
    built = build_model(
        toy_catalogue(N), backbone=str(backbone), tiny=TOY_SHAPE,
        head=HeadConfig(dropout=0.0, max_history=5), seed=0,
    )  # fmt: skip
    return with_words_of(built, [], vocab_size=0, dropout=dropout, seed=0, kind=kind).eval()


def toy_log():
    return toy_dataset([*ring_rows(4, N, 14), [7]], [f"Tale {i}" for i in range(N)]).train


@pytest.mark.parametrize("architecture", ["tiny", "llama"])
def test_every_event_is_an_answer_once_an_epoch_behind_the_prompt_that_serving_sends(
    architecture, tmp_path
):
    model = toy_lm("tiny" if architecture == "tiny" else save_backbone(tmp_path, architecture))
    log = toy_log()
    windows = schedule_windows(log, max_history=5, num_epochs=1, batch_size=3, seed=0)
    data = ContinuedHistories(log, windows, model)
    answered = np.zeros(len(log), int)
    for w in range(len(windows)):
        row = data[w]
        ids, weight = row["token_ids"][0].tolist(), row["weight"][0].tolist()
        start, last = int(windows.start[w]), int(windows.last[w])
        for event in range(start, last + 1):
            here = np.array([event])
            history = log.histories(np.array([start]), here, asked=here)
            prompt = model.writer.prompts(history)
            length = int(prompt.lengths[0])
            answer = model.writer.item_tokens(int(log.item_index[event]))
            assert ids[: length + len(answer)] == [*prompt.token_ids[0, :length].tolist(), *answer]
            own = weight[length : length + len(answer)]
            # in the middle of a user the first item of a window is read, not asked about
            is_asked = event > start or log.user_offsets[log.user_index[event]] == event
            assert own == [float(is_asked)] * len(answer)
            answered[event] += is_asked
        shown = len(model.writer.prefix)
        assert not any(weight[:shown])
        assert sum(weight) <= len(ids) - shown
    assert (answered == 1).all()


def test_the_loss_is_the_mean_over_the_tokens_of_answers():
    model = toy_lm()
    windows = schedule_windows(toy_log(), max_history=5, num_epochs=1, batch_size=3, seed=0)
    batch = ContinuedHistories(toy_log(), windows, model).__getitems__([0, 1, 2])
    loss, parts = continuation_loss(model, batch)
    with torch.no_grad():
        logp, _, _ = model(TextBatch.of_words(**batch))
    slow = [
        float(logp[r, t])
        for r in range(3)
        for t in range(logp.shape[1])
        if batch["weight"][r, t] > 0
    ]
    np.testing.assert_allclose(loss.item(), -np.mean(slow), rtol=1e-5)
    assert parts == {"train/token": loss.item()}


class Unplugged(Exception):
    """Somebody tripped over the cable."""


@pytest.mark.parametrize("kind", [HeadlessModel, TitleWritingModel])
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(kind, tmp_path):
    def run(out, *, stop_at):
        model = toy_lm(kind=kind, dropout=0.2)
        windows = schedule_windows(toy_log(), max_history=5, num_epochs=4, batch_size=4, seed=0)
        data, loss = ContinuedHistories(toy_log(), windows, model), continuation_loss
        if isinstance(model, TitleWritingModel):
            data = WrittenTitles(
                toy_log(), windows, model, num_branches=2, max_tokens=4, seed=0
            )  # fmt: skip
            loss = title_loss
        steps = 0

        def counted(model, batch):
            nonlocal steps
            steps += 1
            if steps == stop_at:
                raise Unplugged
            return loss(model, batch)

        torch.manual_seed(0)
        out.mkdir(exist_ok=True)
        fit(
            model, data, counted, lambda _: {"valid/ndcg": 0.5}, CONFIG,
            out=out, seed=0, label="toy", collate=keep_batch,
        )  # fmt: skip
        return model

    whole = run(tmp_path / "whole", stop_at=None)
    with pytest.raises(Unplugged):
        run(tmp_path / "twice", stop_at=8)
    twice = run(tmp_path / "twice", stop_at=None)
    for (name, one), other in zip(whole.named_parameters(), twice.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)

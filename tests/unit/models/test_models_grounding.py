"""Titles written in words, and the catalogue ranked by distance to them, worked by hand."""

import numpy as np
import pytest
import torch
from tests.toy_models import TOY_SHAPE, ring_rows, toy_catalogue
from tests.toys import toy_dataset

from reasonrec.models.answers import AnsweringModel, with_words_of
from reasonrec.models.backbone import build_model
from reasonrec.models.branches import Batch
from reasonrec.models.config import HeadConfig
from reasonrec.models.grounding import (
    GroundingRecommender,
    TitleWritingModel,
    grounded_scores,
    text_states,
)
from reasonrec.training.examples import schedule_windows
from reasonrec.training.item_texts import WrittenTitles, title_loss

N = 8


@pytest.fixture
def model() -> TitleWritingModel:
    shape = TOY_SHAPE.model_copy(update={"init_std": 0.2})
    head = HeadConfig(dropout=0.0, max_history=6)
    built = build_model(toy_catalogue(N), backbone="tiny", tiny=shape, head=head, seed=0)
    words = [f" {title}" for title in built.titles]
    answering = with_words_of(
        built, words, vocab_size=310, dropout=0.0, seed=0, kind=TitleWritingModel
    )
    assert isinstance(answering, TitleWritingModel)
    return answering.eval()


def test_distances_become_scores():
    titles = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    written = np.array([[0.0, 0.0], [3.0, 1.0]])
    # from (3, 1): to (0, 0) sqrt(10), to (3, 4) 3, to (0, 1) 3
    expected = [[0, -5, -1], [-np.sqrt(10), -3, -3]]
    scores = grounded_scores(written, titles, np.zeros(3), power=0.0)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert scores.dtype == np.float32


def test_popularity_brings_items_nearer():
    titles = np.array([[0.0], [2.0], [3.0], [10.0]])
    popularity = np.array([0.0, 0.0, 1.0, 0.5])
    # scaled to [0, 1]: 0, .2, .3, 1; divided by 2 ** 1 where popularity is 1, and by 1.5 at 1/2
    expected = [[0, -0.2, -0.3 / 2, -1 / 1.5]]
    scores = grounded_scores(np.array([[0.0]]), titles, popularity, power=1.0)
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    plain = grounded_scores(np.array([[0.0]]), titles, popularity, power=0.0)
    assert plain.argsort().tolist() == [[3, 2, 1, 0]]
    assert scores.argsort().tolist() == [[3, 1, 2, 0]]


def test_texts_at_one_distance_from_everything_tie():
    titles = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    scores = grounded_scores(np.zeros((1, 2)), titles, np.array([0, 0.5, 1]), power=2.0)
    np.testing.assert_array_equal(scores, np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("mean", [False, True])
def test_a_text_has_the_state_that_it_has_alone(model, mean):
    texts = [model.title_tokens(2, 9), model.title_tokens(5, 1), []]
    states = text_states(model, texts, mean=mean)
    for row, text in enumerate(texts):
        ids = torch.tensor([[model.tokenizer.bos_token_id, *text]])
        with torch.no_grad():
            hidden = model.run_backbone(model.embed(ids), use_cache=False).last_hidden_state[0]
        own = hidden[1:] if text else hidden  # nothing written: the begin token itself
        torch.testing.assert_close(states[row], own.mean(0) if mean else own[-1])


def test_a_title_written_word_for_word_is_nearest_to_itself(model):
    titles = [model.title_tokens(item, 9) for item in range(N)]
    states = text_states(model, titles, mean=False).numpy()
    scores = grounded_scores(states, states, np.zeros(N), power=0.0)
    assert scores.argmax(1).tolist() == list(range(N))
    assert (np.diag(scores) == 0).all()


def test_the_token_of_a_title_is_never_written(model):
    states = torch.randn(5, TOY_SHAPE.width) * 9
    logits = model.token_logits(states)
    tokens = [model.writer.item_tokens(item)[0] for item in range(N)]
    assert logits.shape == (5, min(tokens)) == (5, len(model.tokenizer) - N)
    # the words have the logits that the backbone's own head gives
    slow = AnsweringModel.token_logits(model, states)[:, : min(tokens)]
    torch.testing.assert_close(logits, slow)
    assert torch.isfinite(logits[:, model.end_token]).all()
    assert torch.isneginf(logits[:, model.tokenizer.bos_token_id]).all()
    recommender = GroundingRecommender(model, np.zeros(N), max_tokens=5)
    histories = toy_dataset(ring_rows(4, N, 6), model.titles).test.histories()
    states, texts, _ = recommender.write(histories)
    assert len(states) == len(texts) == 4
    assert not any("[" in text for text in texts)


def test_every_token_written_is_counted_the_end_among_them(model, monkeypatch):
    histories = toy_dataset(ring_rows(4, N, 6), model.titles).test.histories()
    recommender = GroundingRecommender(model, np.zeros(N), max_tokens=5)
    likeliest = int(TitleWritingModel.token_logits(model, torch.ones(1, TOY_SHAPE.width)).argmax())
    for token, expected in ((likeliest, 6), (model.end_token, 1)):  # never ends; ends at once
        only = torch.zeros(model.num_words).scatter(0, torch.tensor(token), 1.0)
        monkeypatch.setattr(
            TitleWritingModel,
            "token_logits",
            lambda self, states, only=only: only.expand(*states.shape[:-1], -1),
        )
        found = recommender.score(histories).num_tokens
        assert found is not None and found.tolist() == [expected] * 4


@pytest.mark.parametrize("num_branches", [1, 3, 9])
def test_what_is_trained_is_what_is_asked(model, num_branches):
    dataset = toy_dataset([*ring_rows(3, N, 14), [4]], model.titles)
    windows = schedule_windows(dataset.train, max_history=6, num_epochs=1, batch_size=4, seed=0)
    data = WrittenTitles(
        dataset.train, windows, model, num_branches=num_branches, max_tokens=3, seed=0
    )
    batch = Batch(**data.__getitems__(list(range(len(windows)))))
    assert batch.branch_ids is not None and batch.branch_lengths is not None
    assert batch.branch_at is not None and batch.is_written is not None
    with torch.no_grad():
        logp = model(batch)
    asked = set()
    for w in range(len(windows)):
        start, last = int(windows.start[w]), int(windows.last[w])
        places = {}
        for event in range(start, last + 1):
            history = dataset.train.histories(
                np.array([start]), np.array([event]), asked=np.array([event])
            )
            prompt = model.writer.prompts(history)
            places[int(prompt.lengths[0]) - 1] = event
        for g in range(batch.branch_ids.shape[1]):
            length = int(batch.branch_lengths[w, g])
            if not length:
                continue
            at = int(batch.branch_at[w, g])
            event = places[at]
            asked.add(event)
            title = model.title_tokens(int(dataset.train.item_index[event]), 3)
            ids = batch.branch_ids[w, g, :length].tolist()
            assert ids == [*model.opening, *title, model.end_token]
            assert batch.is_written[w, g].sum() == len(title) + 1
            # one text read from start to end gives the same
            text = torch.cat([batch.trunk_ids[w, : at + 1], batch.branch_ids[w, g, :length]])[None]
            with torch.no_grad():
                hidden = model.run_backbone(model.embed(text), use_cache=False).last_hidden_state
                alone = model.token_logits(hidden[0]).log_softmax(-1)
            slow = [
                float(alone[place - 1, text[0, place]])
                for place in range(text.shape[1] - len(title) - 1, text.shape[1])
            ]
            np.testing.assert_allclose(logp[w, g, :length].sum(), sum(slow), rtol=1e-4)
    if num_branches == 9:  # no window has as many: everything is asked once
        assert asked == set(range(len(dataset.train)))
    loss, parts = title_loss(model, vars(batch))
    assert loss.requires_grad
    np.testing.assert_allclose(loss.item(), -float(logp.sum() / batch.is_written.sum()), rtol=1e-5)
    assert parts["train/token"] == loss.item()

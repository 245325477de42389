import dataclasses

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.metrics import ndcg
from reasonrec.models.ranking import rank_targets
from reasonrec.models.rec_head import Evidence
from reasonrec.models.recommenders import ThinkingRecommender
from reasonrec.records import LOOKUP_KINDS
from reasonrec.training.calibration import (
    SHARES,
    _faded,
    _fit,
    _restore,
    _start_afresh,
    _weights,
    calibrate_evidence,
)
from reasonrec.training.config import SftLossConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.losses import sft_loss

ONLY_WORDS = SftLossConfig(next_item=0.0, think=0.0, post=0.0)


def _thinking(dataset, *, pointer=True, num_steps=0):
    """Return a toy that has learned for some steps to write as the verbaliser does."""
    model = toy_model(pointer=pointer)
    verbaliser = toy_verbaliser(model, dataset, num_lookups=1)
    windows = schedule_windows(dataset.train, max_history=8, num_epochs=40, batch_size=8, seed=0)
    data = WindowDataset(
        dataset.train, windows, model.writer, verbaliser=verbaliser, num_branches=2
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for step in range(num_steps):
        loss, _ = sft_loss(model, data.__getitems__(range(step * 8, step * 8 + 8)), ONLY_WORDS)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return ThinkingRecommender(model, verbaliser, max_tokens=30)


def _ndcg(recommender, dataset):
    histories, target = dataset.valid.histories(), dataset.valid.target
    scores = recommender.score(histories).scores
    ranks = rank_targets(scores, target, histories=histories, mask="history-except-target")
    return float(ndcg(ranks, 12).mean())


def test_what_is_chosen_ranks_better_than_what_was_learned_and_than_evidence_left_out():
    dataset = toy_dataset(ring_rows(12, 12, 8), [f"Tale {i}" for i in range(12)])
    recommender = _thinking(dataset, num_steps=40)
    assert any(row for row in recommender.score(dataset.valid.histories()).evidence)
    pointer = recommender.model.pointer
    trust = torch.randn_like(pointer.trust.weight)
    with torch.no_grad():
        pointer.amount[0] = 0.02
        pointer.trust.weight.copy_(trust)
    before = _ndcg(recommender, dataset)
    kept = {name: w.clone() for name, w in recommender.model.named_parameters()}
    chosen = calibrate_evidence(recommender, dataset.valid.histories(), dataset.valid.target)
    assert _ndcg(recommender, dataset) > before  # neighbours walk the same ring: it must help
    assert chosen["amount"] == pointer.amount.tolist()
    for name, weight in recommender.model.named_parameters():
        assert weight.requires_grad
        if not name.startswith("pointer."):
            assert torch.equal(weight, kept[name])


def test_calibration_fits_the_weights_that_likelihood_asks_for():
    dataset = toy_dataset(ring_rows(12, 12, 8), [f"Tale {i}" for i in range(12)])
    model = _thinking(dataset).model
    pointer = model.pointer
    states = torch.randn(64, model.item_rows().shape[1])
    found = Evidence(
        torch.arange(64)[:, None] % 12, torch.ones(64, 1), torch.zeros(64, 1, dtype=torch.long)
    )
    target = (np.arange(64) + (np.arange(64) % 4 == 0)) % 12  # three times of four what was found
    _start_afresh(pointer, found)
    _fit(model, pointer, states, states, found, target)
    with torch.no_grad():
        given = pointer(model.score_states(states), states, found).exp()
    on_found = given[torch.arange(64), found.item_index[:, 0]].mean()
    assert abs(float(on_found) - 0.75) < 0.05
    assert not pointer.trust.weight.any()  # as wide as the state: not fitted


def test_evidence_that_misleads_is_faded_out():
    dataset = toy_dataset(ring_rows(12, 12, 8), [f"Tale {i}" for i in range(12)])
    recommender = _thinking(dataset, num_steps=40)
    histories, target = dataset.valid.histories(), dataset.valid.target
    with torch.no_grad():  # it lowers what is found, and what is found is the truth
        recommender.model.pointer.lift[0] = -3.0
    pointer, learned = recommender.model.pointer, _weights(recommender.model.pointer)
    for share in SHARES:
        _restore(pointer, _faded(learned, share))
        assert pointer.lift[0].item() == pytest.approx(-3.0 * share)
    without = _ndcg(recommender, dataset)  # the last share is nothing
    _restore(pointer, learned)
    assert _ndcg(recommender, dataset) < without
    calibrate_evidence(recommender, histories, target)
    assert _ndcg(recommender, dataset) >= without


def test_what_was_learned_stays_where_nothing_ranks_better():
    dataset = toy_dataset(ring_rows(6, 12, 8), [f"Tale {i}" for i in range(12)])
    recommender = _thinking(dataset)
    recommender = dataclasses.replace(recommender, max_tokens=1)  # too short to find anything
    with torch.no_grad():
        recommender.model.pointer.amount[0] = 0.3
    chosen = calibrate_evidence(recommender, dataset.valid.histories(), dataset.valid.target)
    np.testing.assert_allclose(chosen["amount"], [0.3, *[0.0] * (len(LOOKUP_KINDS) - 1)])
    assert not any(chosen["lift"])
    silent = _thinking(dataset, pointer=False)
    assert calibrate_evidence(silent, dataset.valid.histories(), dataset.valid.target) == {}

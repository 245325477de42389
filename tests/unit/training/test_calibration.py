import dataclasses
import itertools

import numpy as np
import torch
from tests.toy_models import ring_rows, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.metrics import ndcg
from reasonrec.models.ranking import rank_targets
from reasonrec.models.recommenders import ThinkingRecommender
from reasonrec.training.calibration import AMOUNTS, FROM_STATE, calibrate_shares
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


def test_the_setting_is_the_one_with_the_best_ndcg_of_all_that_are_tried():
    dataset = toy_dataset(ring_rows(12, 12, 8), [f"Tale {i}" for i in range(12)])
    recommender = _thinking(dataset, num_steps=40)
    assert any(row for row in recommender.score(dataset.valid.histories()).evidence)
    pointer = recommender.model.pointer
    values = {}
    for amount, from_state in itertools.product((0.3, *AMOUNTS), (1.0, *FROM_STATE)):
        with torch.no_grad():
            pointer.amount[0], pointer.from_state[0] = amount, from_state
        values[amount, from_state] = _ndcg(recommender, dataset)
    assert max(values.values()) > values[0.0, 1.0]  # neighbours walk the same ring: it must help
    with torch.no_grad():
        pointer.amount[0], pointer.from_state[0] = 0.3, 1.0
    chosen = calibrate_shares(recommender, dataset.valid.histories(), dataset.valid.target)
    found = chosen["amount"][0], chosen["from_state"][0]
    assert min(abs(found[0] - a) + abs(found[1] - f) for a, f in values) < 1e-6
    assert _ndcg(recommender, dataset) == max(values.values())
    assert chosen["amount"][1] == 0.0  # nobody was asked about
    assert chosen["from_state"][1] == 1.0


def test_what_was_learned_stays_where_nothing_ranks_better():
    dataset = toy_dataset(ring_rows(6, 12, 8), [f"Tale {i}" for i in range(12)])
    recommender = _thinking(dataset)
    recommender = dataclasses.replace(recommender, max_tokens=1)  # too short to find anything
    with torch.no_grad():
        recommender.model.pointer.amount[0] = 0.3
    chosen = calibrate_shares(recommender, dataset.valid.histories(), dataset.valid.target)
    np.testing.assert_allclose(chosen["amount"], [0.3, 0.0])
    assert chosen["from_state"] == [1.0, 1.0]
    silent = _thinking(dataset, pointer=False)
    assert calibrate_shares(silent, dataset.valid.histories(), dataset.valid.target) == {}

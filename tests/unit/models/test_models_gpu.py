"""On a GPU the same model says the same things; skipped where there is none.

Most of the suite trains, saves, loads and ranks, and does so on the GPU where torch sees one.
"""

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, talking_toy, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec import ranks
from reasonrec.models.generation import think
from reasonrec.models.look_ups import look_up_for
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender
from reasonrec.records import Histories

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
N = 12
DATASET = toy_dataset(ring_rows(8, N, 8), [f"Tale {i}" for i in range(N)])
HISTORIES = Histories.from_lists([[1, 2, 3], [], [4, 5], [7]])


@pytest.fixture(scope="module")
def model():
    return talking_toy(DATASET, num_links=2)


def test_a_loaded_model_is_where_this_process_computes(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = ReasoningRecommender.from_pretrained(tmp_path)
    assert {weight.device.type for weight in loaded.state_dict().values()} == {ranks.device().type}


@needs_gpu
def test_scores_and_thoughts_are_those_of_the_cpu(model, tmp_path):
    model.save_pretrained(tmp_path)
    there = ReasoningRecommender.from_pretrained(tmp_path)
    assert there.device.type == "cuda"
    for thinks in (False, True):
        here, away = (
            (
                ThinkingRecommender(
                    m, toy_verbaliser(m, DATASET, num_links=2), max_tokens=24, temperature=0.0
                )
                if thinks
                else NoThinkRecommender(m)
            ).score(HISTORIES)
            for m in (model, there)
        )  # fmt: skip
        assert np.isfinite(away.scores).all()
        np.testing.assert_allclose(away.scores, here.scores, atol=2e-4)


@needs_gpu
def test_a_generator_of_the_gpu_draws_thoughts_with_the_log_probabilities_of_training(
    model, tmp_path
):
    model.save_pretrained(tmp_path)
    there = ReasoningRecommender.from_pretrained(tmp_path)
    verbaliser = toy_verbaliser(there, DATASET, num_links=2)
    written = think(
        there, there.writer.prompts(HISTORIES), look_up_for(verbaliser, HISTORIES), max_tokens=24,
        group_size=2, generator=torch.Generator(there.device).manual_seed(1),
    )  # fmt: skip
    assert written.token_ids.device.type == "cuda"
    assert torch.isfinite(written.token_logp).all()
    assert (written.token_logp[written.is_written] < 0).any()

"""The next batch is written while this one is learned from: by whose weights, after a resume."""

import json
import threading

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.toy_models import TOY_SHAPE, ring_rows, save_backbone, toy_catalogue, toy_verbaliser
from tests.toy_vllm import ToyVllm
from tests.toys import toy_dataset

from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.r2rec_config import R2recConfig
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig
from reasonrec.records import TokenPolicy
from reasonrec.training import loop
from reasonrec.training.config import EngineConfig, RecpoConfig
from reasonrec.training.rl.engines.ahead import WritesAhead
from reasonrec.training.rl.engines.choice import build_engine
from reasonrec.training.rl.loss import log_prob_of_targets
from reasonrec.training.rl.recpo import PromptSample, Recpo

N = 12
DATASET = toy_dataset(ring_rows(6, N, 8), [f"Tale {i}" for i in range(N)])
SMALL = RecpoConfig(max_tokens=8, group_size=2, next_item_weight=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_backbone(tmp_path_factory.mktemp("backbone"), "qwen3")


@pytest.fixture(scope="module")
def server(folder):
    with ToyVllm(folder) as running:
        yield running


def sample_of(num_batches, *, inner=1):
    eligible = np.array([2, 3, 9, 10, 15, 16, 20, 21])
    return PromptSample(
        eligible, num_prompts=2 * num_batches, batch_size=2, num_inner_epochs=inner, seed=0
    )


def run(
    folder, server, *, num_batches=4, fresh_every=4, inner=1, ahead=True, num_loads=99,
    config=SMALL,
):  # fmt: skip
    """Take all steps; return the model, the weights before each, and what it learned from.

    Only the first ``num_loads`` weights that are handed over reach the server.
    """
    model = build_model(
        toy_catalogue(N), backbone=str(folder), tiny=TOY_SHAPE, seed=0,
        head=HeadConfig(dropout=0.0, max_history=8),
    ).eval()  # fmt: skip
    sample = sample_of(num_batches, inner=inner)
    engine = build_engine(EngineConfig(kind="vllm-server", url=server.url))
    learner = Recpo(
        config, DATASET.train, toy_verbaliser(model, DATASET), seed=0, engine=engine,
        ahead=WritesAhead(sample, batch_size=2, num_inner_epochs=inner, fresh_every=fresh_every)
        if ahead else None,
    )  # fmt: skip
    load, left = engine.completer.load, iter(range(num_loads))
    engine.completer.load = lambda *told: None if next(left, None) is None else load(*told)
    optimiser = torch.optim.SGD(model.parameters(), lr=3.0)
    weights, steps = [], []
    for step in range(num_batches * inner):
        weights.append({n: w.clone() for n, w in model.state_dict().items()})
        loss, logged = learner(model, sample.__getitems__([2 * step, 2 * step + 1]))
        steps.append((learner._rollouts, logged))
        now = dict(model.state_dict())  # as they were, if of so large a step nothing is left
        torch.testing.assert_close(now, weights[-1], rtol=0, atol=0, equal_nan=True)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    engine.close()
    return model, weights, steps


def gap(model, weights, rollouts):
    """Return how far weights are from what the engine said of the thoughts, in nats."""
    model.load_state_dict(weights)
    with torch.no_grad():
        logp = model(rollouts.batch).token_logp
    return (logp - rollouts.sampler_logp_P_G_S).abs()[rollouts.batch.is_written].max().item()


def test_a_batch_is_written_by_the_weights_of_one_step_ago_and_its_ratio_says_so(folder, server):
    model, weights, steps = run(folder, server)
    for number, (rollouts, logged) in enumerate(steps):
        assert gap(model, weights[max(0, number - 1)], rollouts) < 1e-3
        assert logged["rl/sampler_mismatch"] < 1e-3
        assert ("rl/sync_seconds" in logged) == (number == 0)  # the others were not waited for
        if number:
            assert gap(model, weights[number], rollouts) > 0.01  # not those that learn from it
            assert rollouts.old_token_logp_P_G_S is rollouts.sampler_logp_P_G_S
    asked = [rollouts.target_P.tolist() for rollouts, _ in steps]
    _, _, in_turn = run(folder, server, ahead=False)
    assert asked == [rollouts.target_P.tolist() for rollouts, _ in in_turn]


def test_ahead_the_item_ratio_is_against_the_first_pass_on_a_batch_and_not_the_writer(
    folder, server
):
    model, weights, steps = run(folder, server, num_batches=2, inner=2)
    rollouts = steps[2][0]  # written by the weights before step 0, first learned from at step 2
    assert rollouts is steps[3][0]

    def item_logp(of_step):
        model.load_state_dict(weights[of_step])
        with torch.no_grad():
            scores = model(rollouts.batch).think_logits
            return log_prob_of_targets(
                scores, rollouts.target_P, rollouts.masked_P_N, over="catalogue"
            )

    torch.testing.assert_close(rollouts.old_item_logp_P_G, item_logp(2), atol=1e-4, rtol=1e-4)
    for other in (0, 3):
        assert (rollouts.old_item_logp_P_G - item_logp(other)).abs().max() > 0.01
    assert gap(model, weights[0], rollouts) < 1e-3
    assert rollouts.old_token_logp_P_G_S is rollouts.sampler_logp_P_G_S


@pytest.mark.parametrize("top_k", [0, 5])
def test_ahead_and_hot_old_probabilities_are_those_of_the_policy_that_wrote(folder, server, top_k):
    hot = SMALL.model_copy(update={"temperature": 2.0, "top_k": top_k})
    model, weights, steps = run(folder, server, num_batches=2, config=hot)
    rollouts, logged = steps[1]
    assert logged["rl/sampler_mismatch"] < 1e-3
    model.load_state_dict(weights[0])
    with torch.no_grad():
        logp = model(rollouts.batch, token_policy=TokenPolicy(2.0, top_k)).token_logp
    torch.testing.assert_close(rollouts.old_token_logp_P_G_S, logp)
    assert torch.isfinite(logp).all()
    assert (logp - rollouts.sampler_logp_P_G_S).abs().max() > 0.1
    assert gap(model, weights[1], rollouts) > 0.01


def test_what_was_written_ahead_with_weights_that_never_arrived_is_found_out(folder, server):
    # the fresh batch and the one after it are written by the start; the last hand-over is lost
    model, weights, steps = run(folder, server, num_batches=3, num_loads=2)
    told = [logged["rl/sampler_mismatch"] for _, logged in steps]
    assert max(told[:2]) < 1e-3
    # the third should be of the weights before the second step; of its first prompt, all is seen
    model.load_state_dict(weights[1])
    rollouts = steps[2][0]
    with torch.no_grad():
        logp = model(rollouts.batch).token_logp
    gaps = (logp - rollouts.sampler_logp_P_G_S).abs() * rollouts.batch.is_written
    assert told[2] == pytest.approx(gaps[0].max().item(), rel=1e-3)
    assert told[2] > 0.01
    assert gap(model, weights[0], rollouts) < 1e-3


def test_with_inner_epochs_the_next_batch_is_begun_at_the_first_of_them(folder, server):
    model, weights, steps = run(folder, server, inner=2)
    assert steps[2][0] is steps[3][0]
    assert gap(model, weights[0], steps[2][0]) < 1e-3
    assert gap(model, weights[2], steps[4][0]) < 1e-3


def test_after_a_checkpoint_a_batch_is_waited_for(folder, server):
    model, weights, steps = run(folder, server, fresh_every=2)
    assert ["rl/sync_seconds" in logged for _, logged in steps] == [True, False, True, False]
    assert gap(model, weights[2], steps[2][0]) < 1e-3
    assert gap(model, weights[2], steps[3][0]) < 1e-3


def test_thoughts_are_written_in_another_thread_before_anybody_asks_for_them():
    ahead = WritesAhead(sample_of(2), batch_size=2, num_inner_epochs=1, fresh_every=2)
    began, may_end = threading.Event(), threading.Event()

    def write():
        began.set()
        assert may_end.wait(20)
        return threading.current_thread().name

    ahead.start(1, write)
    assert began.wait(20)  # nobody asked yet
    may_end.set()
    assert str(ahead.take(1)).startswith("rollouts")
    assert ahead.take(1) is None
    assert ahead.rows_after(1, torch.tensor([2, 3])) is None  # the last


def test_a_failure_of_the_engine_is_told_where_its_thoughts_are_needed():
    ahead = WritesAhead(sample_of(2), batch_size=2, num_inner_epochs=1, fresh_every=2)

    def fail():
        raise RuntimeError("gone")

    ahead.start(1, fail)
    with pytest.raises(RuntimeError, match="gone"):
        ahead.take(1)


def test_an_interrupted_run_ends_with_the_same_numbers(folder, server, tmp_path, monkeypatch):
    config = R2ecConfig.model_validate(
        {
            "backbone": str(folder), "stages": ["recpo"], "head": {"max_history": 8},
            "recpo": {
                "num_prompts": 24, "recpo": {"max_tokens": 6, "group_size": 2},
                "optimiser": {"batch_size": 4, "num_validations": 3, "learning_rate": 1e-2},
                "engine": {"kind": "vllm-server", "url": server.url, "ahead": True},
            },
        }
    )  # fmt: skip
    (at_once,) = r2ec.train(DATASET, config, out=tmp_path / "at-once", seed=0)
    save, saved = loop._Trainer._save_checkpoint, []

    def stop(self, *rest, **named):
        save(self, *rest, **named)
        saved.append(self.state.global_step)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop._Trainer, "_save_checkpoint", stop)
        with pytest.raises(KeyboardInterrupt):
            r2ec.train(DATASET, config, out=tmp_path / "parts", seed=0)
    assert saved == [2, 4]
    (parts,) = r2ec.train(DATASET, config, out=tmp_path / "parts", seed=0)
    of_runs = [
        [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
        for done in (at_once, parts)
    ]
    told = [
        {(row["step"], k): v for row in rows for k, v in row.items() if "second" not in k}
        for rows in of_runs
    ]
    assert told[0] == told[1]
    waited = [row["step"] for row in of_runs[0] if "rl/sync_seconds" in row]
    assert waited == [1, 3, 5]
    gaps = [row["rl/sampler_mismatch"] for row in of_runs[0] if "rl/reward_mean" in row]
    assert len(gaps) == 6 and max(gaps) < 1e-3
    manifest = json.loads((at_once / "manifest.json").read_text())
    assert manifest["config"]["recpo"]["engine"]["ahead"] is True


def test_where_it_cannot_be_is_said():
    with pytest.raises(ValidationError, match="needs an engine that holds weights of its own"):
        EngineConfig(ahead=True)
    engine = {"kind": "vllm-server", "ahead": True}
    with pytest.raises(ValidationError, match="is for RecPO alone"):
        R2recConfig.model_validate({"rl": {"engine": engine}})

import gc
import json
import shutil
from itertools import chain, repeat

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, toy_model, toy_verbaliser
from tests.toy_traces import hand_question
from tests.toys import toy_dataset

from reasonrec.models.answers import with_words_of
from reasonrec.training.config import OptimiserConfig, RecpoConfig, SftLossConfig
from reasonrec.training.examples import (
    WindowDataset,
    events_with_history,
    keep_batch,
    schedule_windows,
)
from reasonrec.training.loop import fit, last_checkpoint, read_metrics
from reasonrec.training.losses import sft_loss
from reasonrec.training.reasoned_config import GrpoConfig
from reasonrec.training.rl.grpo import Grpo
from reasonrec.training.rl.recpo import PromptSample, Recpo, StartingPoint
from reasonrec.training.rl.text_rewards import well_formed

CONFIG = OptimiserConfig(
    batch_size=4,
    learning_rate=5e-3,
    num_validations=5,
    averaging=0.9,
    head_learning_rate=1e-2,
)
RL = ["recpo", "recpo with kl", "grpo"]
TITLES = [f"Tale {i}" for i in range(12)]


class Unplugged(Exception):
    """Somebody tripped over the cable."""


@pytest.fixture(autouse=True, scope="module")
def _leave_modules_to_themselves():
    # the Trainer collects garbage after every run: most of the time of a toy run, without this
    gc.freeze()
    yield
    gc.unfreeze()


def _sample(events, inner):
    return PromptSample(events, num_prompts=24, batch_size=4, num_inner_epochs=inner, seed=0)


def _parts(stage, model, dataset, inner=2):
    if stage == "grpo":
        config = GrpoConfig(group_size=2, max_tokens=4, max_answer_tokens=3, num_inner_epochs=inner)
        asked = [hand_question(task="rated", label=label) for label in "24135"]
        rewards = [(1.0, lambda one: float(len(one.thought))), (1.0, well_formed)]
        return _sample(np.arange(len(asked)), inner), Grpo(config, asked, rewards, seed=0)
    verbaliser = toy_verbaliser(model, dataset, num_lookups=1)
    if stage in ("recpo", "recpo with kl"):
        kl_weight = 0.5 if stage == "recpo with kl" else 0.0
        config = RecpoConfig(max_tokens=6, num_inner_epochs=inner, kl_weight=kl_weight)
        start = StartingPoint(model) if kl_weight else None
        learner = Recpo(config, dataset.train, verbaliser, seed=0, start=start)
        return _sample(events_with_history(dataset.train), inner), learner
    windows = schedule_windows(dataset.train, max_history=8, num_epochs=8, batch_size=4, seed=0)
    is_sft = stage == "sft"
    data = WindowDataset(
        dataset.train, windows, model.writer, verbaliser=verbaliser if is_sft else None,
        num_branches=2 if is_sft else 0, seed=0,
    )  # fmt: skip
    return data, lambda model, batch: sft_loss(model, batch, SftLossConfig())


def _train(
    stage, out, *, item_rows="id", live_rows=None, stop_at=None, inner=2, config=CONFIG,
    share=None, worth=None, copies=None,
):  # fmt: skip
    """Train a toy stage, unplugged once at step ``stop_at`` if given, and return the model.

    Args:
        copies: Folder that receives what stands in ``out`` at each step: what a kill would leave.
    """
    dataset = toy_dataset(ring_rows(10, 12, 9), TITLES)
    out.mkdir(exist_ok=True)
    for unplug_at in [stop_at, None] if stop_at else [None]:
        # dropout: random states must come back
        model = toy_model(dropout=0.2, item_rows=item_rows, live_rows=live_rows)
        if stage == "grpo":
            model = with_words_of(model, ["So 1 2 3 4 5."] * 9, vocab_size=300, dropout=0.2, seed=0)
        data, loss = _parts(stage, model, dataset, inner)
        steps = iter(range(10_000))

        def step(model, batch, loss=loss, steps=steps, unplug_at=unplug_at):
            if (now := next(steps)) == unplug_at:
                raise Unplugged
            if copies is not None:
                shutil.copytree(out, copies / f"{now}")
            return loss(model, batch)

        def validate(model):
            if worth is not None:
                return {"valid/ndcg": worth(model)}
            # any deterministic number that changes with the weights
            return {"valid/ndcg": float(model.item_rows()[0].sum().detach())}

        torch.manual_seed(0)
        try:
            fitted = fit(
                model, data, step, validate if share is None else None, config,
                out=out, seed=0, label=stage, collate=keep_batch,
                steps_per_batch=inner if stage in RL else 1,
                share=1.0 if share is None else share,
            )  # fmt: skip
        except Unplugged:
            continue
    return model, fitted


@pytest.mark.parametrize("stage", ["no-think", "sft"])
def test_an_interrupted_run_ends_with_the_same_numbers(tmp_path, stage):
    whole = _train(stage, tmp_path / "whole")
    _same_run(tmp_path, whole, _train(stage, tmp_path / "resumed", stop_at=11))


@pytest.mark.parametrize(
    ("stage", "inner", "rows", "num_steps"),
    [
        ("no-think", 1, {}, 8),
        ("sft", 1, {"item_rows": "text+id", "live_rows": 3}, 8),
        ("recpo", 1, {}, 6),
        ("recpo", 2, {"item_rows": "text"}, 12),
    ],
)
def test_a_run_that_is_killed_at_any_step_ends_with_the_same_numbers(
    tmp_path, stage, inner, rows, num_steps
):
    # 8 epochs of 10 users in batches of 10, or 24 prompts in batches of 4; a checkpoint after every
    # fourth step, or third, and rows of text are encoded anew between two of them
    config = CONFIG.model_copy(update={"num_validations": 3, "refresh_items_every": 2})
    if stage in ("no-think", "sft"):
        config = config.model_copy(update={"batch_size": 10, "num_validations": 2})
    if num_steps == 6:
        config = config.model_copy(update={"num_validations": 2})
    asked = {"inner": inner, "config": config, **rows}
    whole = _train(stage, tmp_path / "whole", copies=tmp_path / "left", **asked)
    left = sorted((tmp_path / "left").iterdir(), key=lambda folder: int(folder.name))
    assert len(left) == num_steps == whole[1].num_steps
    for folder in left:
        (tmp_path / "resumed").symlink_to(folder)
        _same_run(tmp_path, whole, _train(stage, tmp_path / "resumed", **asked))
        (tmp_path / "resumed").unlink()
    logged = read_metrics(tmp_path / "whole/metrics.jsonl")
    ages = [row["train/item_table_age"] for row in logged if "train/item_table_age" in row]
    # new rows at every fourth step, when the run is validated, and for the loss two steps later
    assert ages == ([0, 1, 0, 1] * (num_steps // 4) if rows else [])


@pytest.mark.parametrize("stage", ["no-think", "recpo"])
def test_a_run_of_known_length_ends_where_a_validated_one_was_best(tmp_path, stage):
    worth = iter([1.0, 2.0, 9.0, 3.0, 4.0, 5.0])  # best at its third validation
    model, fitted = _train(stage, tmp_path / "chosen", worth=lambda _: next(worth))
    assert fitted.best_score == 9.0 and 0 < fitted.best_step < fitted.num_steps
    known = _train(stage, tmp_path / "whole", share=fitted.share)
    _same_run(tmp_path, known, _train(stage, tmp_path / "resumed", share=fitted.share, stop_at=5))
    again, fitted_again = known
    assert (fitted_again.best_step, fitted_again.best_score) == (fitted.best_step, None)
    assert fitted_again.share == fitted.share
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_run_of_known_length_that_was_killed_at_its_very_end_takes_no_step_more(
    tmp_path, monkeypatch
):
    def killed(*_, **__):
        raise Unplugged

    with monkeypatch.context() as patch:
        patch.setattr("reasonrec.training.loop._load_weights", killed)  # the first thing after it
        with pytest.raises(UnboundLocalError):  # no run ended
            _train("no-think", tmp_path / "killed", share=0.5)
    checkpoint = last_checkpoint(tmp_path / "killed/checkpoints")
    killed_model, fitted = _train("no-think", tmp_path / "killed", share=0.5)
    assert checkpoint is not None and checkpoint.name == f"checkpoint-{fitted.best_step}"
    model, _ = _train("no-think", tmp_path / "whole", share=0.5)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, killed_model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("stage", "inner", "validated"),
    # 12 or 18 steps and four validations: every 3 or 4 steps, which would cut a batch in two
    [("recpo", 2, [4, 8, 12]), ("recpo with kl", 3, [6, 12, 18]), ("grpo", 3, [6, 12, 18])],
)
def test_no_checkpoint_parts_the_steps_on_one_batch_of_rollouts(tmp_path, stage, inner, validated):
    config = CONFIG.model_copy(update={"num_validations": 4})
    whole = _train(stage, tmp_path / "whole", inner=inner, config=config)
    rows = read_metrics(tmp_path / "whole/metrics.jsonl")
    assert [row["step"] for row in rows if "valid/ndcg" in row] == validated
    for stop_at in (2 * inner + 1, 4 * inner + 1):
        resumed = tmp_path / "resumed"
        again = _train(stage, resumed, inner=inner, config=config, stop_at=stop_at)
        _same_run(tmp_path, whole, again)
        shutil.rmtree(resumed)


def _same_run(tmp_path, one, other):
    """Hold that runs in the folders ``whole`` and ``resumed`` gave the same numbers."""
    (whole, fitted), (resumed, fitted_again) = one, other
    assert (fitted.best_step, fitted.best_score) == (
        fitted_again.best_step,
        fitted_again.best_score,
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    rows, rows_again = (
        [{k: v for k, v in row.items() if "seconds" not in k} for row in read_metrics(path)]
        for path in (tmp_path / "whole/metrics.jsonl", tmp_path / "resumed/metrics.jsonl")
    )
    assert [row["step"] for row in rows] == [row["step"] for row in rows_again]
    assert rows == rows_again


def _fitted(tmp_path, config):
    dataset = toy_dataset(ring_rows(10, 12, 9), TITLES)
    model = toy_model()
    model.pointer.count(torch.arange(12))
    data, loss = _parts("sft", model, dataset)
    seen = []

    def step(model, batch):
        seen.append([weight.detach().clone() for weight in model.parameters()])
        return loss(model, batch)

    fit(
        model, data, step, lambda _: {"valid/ndcg": float(len(seen))}, config,
        out=tmp_path, seed=0, label="sft", collate=keep_batch,
    )  # fmt: skip
    return model, seen


def test_averaged_weights_are_the_mean_worked_out_by_hand(tmp_path):
    config = OptimiserConfig(
        learning_rate=1e-2, batch_size=10, num_validations=1, averaging=0.5, warmup_frac=0.0
    )
    model, seen = _fitted(tmp_path / "mean", config)
    last, after = _fitted(tmp_path / "last", config.model_copy(update={"averaging": 0.0}))
    assert len(seen) == len(after) == 8
    weights = [*after[1:], [weight.detach() for weight in last.parameters()]]
    mean = after[0]
    for step, now in enumerate(weights, start=1):
        decay = min(0.5, step / (step + 9))  # step 1: a tenth of the start, 8: 8 / 17
        mean = [decay * m + (1 - decay) * w for m, w in zip(mean, now)]
    for kept, expected in zip(model.parameters(), mean):
        torch.testing.assert_close(kept.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (3, 3)])
def test_a_tiny_model_trains_with_one_thread_unless_more_are_asked_for(
    tmp_path, monkeypatch, asked, given
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _fitted(tmp_path, OptimiserConfig(batch_size=10, num_threads=asked))
        assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(before)


def test_the_head_has_a_learning_rate_of_its_own(tmp_path):
    config = OptimiserConfig(
        learning_rate=1e-12, head_learning_rate=0.1, batch_size=10, weight_decay=0.0
    )
    model, seen = _fitted(tmp_path, config)
    head = {id(weight) for weight in model.head_parameters()}
    for weight, start in zip(model.parameters(), seen[0]):
        moved = (weight.detach() - start).abs().max()
        assert moved > 1e-3 if id(weight) in head else moved < 1e-9


def test_words_can_learn_at_a_rate_of_their_own_while_titles_stay_as_they_are(tmp_path):
    config = OptimiserConfig(learning_rate=1e-12, word_learning_rate=0.1, batch_size=10)
    model, seen = _fitted(tmp_path, config)
    embeddings = model.backbone.get_input_embeddings().weight
    for weight, start in zip(model.parameters(), seen[0]):
        moved = (weight.detach() - start).abs()
        if weight is embeddings:
            assert moved[model.is_title].max() == moved[model.writer.prefix].max() == 0
            assert moved[model.writer.encode(" After")].max() > 1e-3
        else:
            assert moved.max() < 1e-9


def test_the_best_step_is_chosen_by_what_is_left_after_the_price_of_its_thoughts(tmp_path):
    config = OptimiserConfig(batch_size=4, learning_rate=5e-3, num_validations=3)
    data, loss = _parts("sft", model := toy_model(), toy_dataset(ring_rows(10, 12, 9), TITLES))
    values = chain([(0.30, 0.02), (0.35, 0.10)], repeat((0.40, 0.13)))  # left: .28, .25, .27

    def validate(_):
        worth, price = next(values)
        return {"valid/ndcg": worth, "valid/price": price}

    fitted = fit(
        model, data, loss, validate, config,
        out=tmp_path, seed=0, label="sft", collate=keep_batch,
    )  # fmt: skip
    assert fitted.best_step == -(-len(data) // 4) // 3
    assert fitted.best_score == 0.30


def test_a_run_that_no_longer_improves_ends_early_and_stays_ended(tmp_path, monkeypatch):
    config = OptimiserConfig(batch_size=4, learning_rate=5e-3, num_validations=10, patience=3)
    data, loss = _parts("sft", model := toy_model(), toy_dataset(ring_rows(10, 12, 9), TITLES))
    scores = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])

    def go_on(model):
        return fit(
            model, data, loss, lambda _: {"valid/ndcg": next(scores)}, config,
            out=tmp_path, seed=0, label="sft", collate=keep_batch,
        )  # fmt: skip

    def killed(*_):
        raise KeyboardInterrupt

    # cut short after its last checkpoint, before the best weights are loaded
    with monkeypatch.context() as patched:
        patched.setattr("reasonrec.training.loop._load_weights", killed)
        with pytest.raises(KeyboardInterrupt):
            go_on(model)
    fitted = go_on(toy_model())
    every = -(-len(data) // 4) // 10
    # the best is the second; the third, fourth (a tie) and fifth are no better
    assert fitted.best_step == 2 * every
    steps = {row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")}
    assert max(steps) == 5 * every


def test_rows_from_text_are_encoded_anew_by_schedule_and_before_every_validation(tmp_path):
    config = OptimiserConfig(
        batch_size=4, learning_rate=5e-3, num_validations=3, refresh_items_every=2
    )
    model = toy_model(item_rows="text", live_rows=2)
    data, loss = _parts("no-think", model, toy_dataset(ring_rows(10, 12, 9), TITLES))
    ages, stale, num_validated = [], [], 0

    def staleness(model):
        with torch.no_grad():
            fresh = model.encode_items(torch.arange(12))
        return float((model.item_table.encoded - fresh).abs().max())

    def watched(model, inputs):
        ages.append(int(model.item_table.steps_since_refresh))
        stale.append(staleness(model))
        return loss(model, inputs)

    def validate(model):
        nonlocal num_validated
        num_validated += 1
        assert staleness(model) < 1e-5
        return {"valid/ndcg": 0.1}

    fit(
        model, data, watched, validate, config,
        out=tmp_path, seed=0, label="no-think", collate=keep_batch,
    )  # fmt: skip
    assert ages[:4] == [1, 2, 0, 1]
    assert max(one for age, one in zip(ages, stale) if age == 0) < 1e-5
    assert max(stale) > 1e-2
    assert num_validated >= 3


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_the_age_that_is_logged_counts_the_steps_since_the_rows_were_encoded(tmp_path, averaging):
    config = OptimiserConfig(
        batch_size=5, learning_rate=5e-3, num_validations=2, refresh_items_every=2,
        averaging=averaging,
    )  # fmt: skip
    # nobody takes the last item, so that its row changes with the whole table alone
    model = toy_model(13, item_rows="text")
    dataset = toy_dataset(ring_rows(10, 12, 9), [f"Tale {i}" for i in range(13)])
    data, loss = _parts("no-think", model, dataset)
    rows, ages = [], []

    def watched(model, inputs):
        with torch.no_grad():
            rows.append(model.encode_items(torch.tensor([12]))[0])  # of the weights of this step
        held = model.item_table.encoded[12]
        ages.append(min(range(len(rows)), key=lambda age: (rows[-1 - age] - held).abs().max()))
        torch.testing.assert_close(rows[-1 - ages[-1]], held, atol=1e-6, rtol=0)
        return loss(model, inputs)

    fit(
        model, data, watched, lambda model: {"valid/ndcg": 0.1}, config,
        out=tmp_path, seed=0, label="no-think", collate=keep_batch,
    )  # fmt: skip
    # 16 steps, validated after 8; rows older than 2 steps are never read: encoded before step 1, 3,
    # 6 and then 9, after the validation of which it goes on as at the start
    assert ages == [0, 1, 0, 1, 2, 0, 1, 2] * 2
    logged = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["train/item_table_age"] for row in logged if "train/item_table_age" in row] == ages


def test_rows_from_text_are_refreshed_at_the_same_steps_after_a_resume(tmp_path):
    rows = {"item_rows": "text+id", "live_rows": 3}
    whole, _ = _train("no-think", tmp_path / "whole", **rows)
    resumed, _ = _train("no-think", tmp_path / "resumed", **rows, stop_at=11)
    assert torch.equal(whole.item_rows(), resumed.item_rows())


def test_half_written_checkpoints_are_passed_over(tmp_path):
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"1234")
    for step in (5, 15):
        (tmp_path / f"checkpoint-{step}" / "complete").write_text('{"optimizer.pt": 4}')
    (tmp_path / "checkpoint-15" / "optimizer.pt").write_bytes(b"12")  # cut since
    assert last_checkpoint(tmp_path).name == "checkpoint-5"
    assert not (tmp_path / "checkpoint-10").exists()
    assert not (tmp_path / "checkpoint-15").exists()
    assert last_checkpoint(tmp_path / "none") is None


def test_a_metrics_line_cut_short_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + '[]\n{"step": 2, "los')
    assert read_metrics(path) == [{"step": 1}]


def test_training_learns_planted_taste(tmp_path):
    # everybody walks around the ring, so the next item is certain: the dense loss must see it
    dataset = toy_dataset(ring_rows(12, 12, 9), TITLES)
    model = toy_model(dropout=0.0, label_smoothing=0.0)
    windows = schedule_windows(dataset.train, max_history=8, num_epochs=60, batch_size=4, seed=0)
    data = WindowDataset(dataset.train, windows, model.writer)
    fit(
        model, data, lambda m, b: sft_loss(m, b, SftLossConfig()),
        lambda m: {"valid/ndcg": 0.0}, CONFIG,
        out=tmp_path, seed=0, label="toy", collate=keep_batch,
    )  # fmt: skip
    losses = [
        r["train/next_item"]
        for r in read_metrics(tmp_path / "metrics.jsonl")
        if "train/next_item" in r
    ]
    # log 12 = 2.48 knows nothing; the first event of a user stays a guess, 1/7 of all targets
    assert losses[-1] < 0.8 < 2.0 < losses[0]

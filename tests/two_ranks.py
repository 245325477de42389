"""Trains toys for a few steps and writes down every gradient: alone, or one of several processes,
which hold whole weights first and parts of them then.

torchrun --nproc-per-node 2 tests/two_ranks.py FOLDER
"""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors.torch import save_file, save_model
from tests.toy_models import TOY_SHAPE, ring_rows, save_backbone, toy_model, toy_verbaliser
from tests.toy_traces import hand_question
from tests.toy_vllm import ToyVllm
from tests.toys import toy_dataset
from torch.optim.optimizer import register_optimizer_step_pre_hook

from reasonrec import ranks
from reasonrec.errors import ConfigError
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.models.answers import CopyingModel
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig, WeightsConfig
from reasonrec.training.config import EngineConfig, OptimiserConfig, RecpoConfig, SftLossConfig
from reasonrec.training.examples import (
    WindowDataset,
    events_with_history,
    keep_batch,
    schedule_windows,
)
from reasonrec.training.loop import fit
from reasonrec.training.losses import sft_loss
from reasonrec.training.reasoned_config import GrpoConfig
from reasonrec.training.rl.engines.choice import build_engine
from reasonrec.training.rl.grpo import Grpo
from reasonrec.training.rl.recpo import PromptSample, Recpo, StartingPoint
from reasonrec.training.sharding import whole_tensor

TITLES = [f"Tale {i}" for i in range(12)]
# histories of different lengths: no two processes hold equally many tokens or targets
ROWS = [row[: 4 + (7 * user) % 6] for user, row in enumerate(ring_rows(11, 12, 9))]
DATASET = toy_dataset(ROWS, TITLES)
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
"""What `accelerate launch` says to its processes where weights are to be shared out."""
SIZE = 8
STILL = OptimiserConfig(  # weights hardly move, so that every step's gradient can be compared
    batch_size=SIZE, learning_rate=1e-12, weight_decay=0.0, max_grad_norm=1e9, num_validations=1
)
CASES = ("no-think", "sft", "recpo", "recpo-text", "recpo-server", "grpo")


def model_of(case, folder):
    """Return the model of a case, alike on all ranks."""
    if case == "recpo-server":
        return build_model(
            DATASET.catalogue, backbone=str(folder), tiny=TOY_SHAPE, seed=0,
            head=HeadConfig(dropout=0.0, max_history=8),
            weights=WeightsConfig(lora=True, gradient_checkpointing=True),
        )  # fmt: skip
    model = toy_model(item_rows="text" if case == "recpo-text" else "id")
    if case == "grpo":
        torch.manual_seed(0)
        return CopyingModel(model.backbone, model.tokenizer, model.titles, model.head)
    return model


def parts_of(case, model, url="", num_epochs=1):
    verbaliser = toy_verbaliser(model, DATASET, num_lookups=1)
    if case in ("no-think", "sft"):
        windows = schedule_windows(
            DATASET.train, max_history=8, num_epochs=num_epochs, batch_size=SIZE, seed=0
        )
        held_out = DATASET.train.user_offsets[1:4] - 1  # few rows have a target for their thought
        data = WindowDataset(
            DATASET.train, windows, model.writer, seed=0,
            **({"verbaliser": verbaliser, "num_branches": 2, "held_out": held_out}
               if case == "sft" else {}),
        )  # fmt: skip
        return data, lambda model, batch: sft_loss(model, batch, SftLossConfig())
    config = RecpoConfig(
        max_tokens=8, num_inner_epochs=2, entropy_weight=0.01, group_size=2,
        kl_weight=0.5 if case == "recpo" else 0.0,
        item_softmax="batch" if case == "recpo-text" else "catalogue",
    )  # fmt: skip
    if case == "grpo":
        events = np.arange(16)
        questions = [hand_question(task="rated", label=str(1 + n % 5)) for n in events]
        asked = GrpoConfig(
            temperature=1.5, max_tokens=6, max_answer_tokens=3, group_size=2, num_inner_epochs=2
        )
        loss = Grpo(asked, questions, [(1.0, lambda one: float(len(one.thought)))], seed=0)
        eligible = events
    else:
        kind = "vllm-server" if case == "recpo-server" else "sampler"
        engine = build_engine(EngineConfig(kind=kind, url=url))
        start = StartingPoint(model)
        with torch.no_grad():  # no longer what it started as
            model.backbone.get_input_embeddings().weight.mul_(1.1)
        loss = Recpo(config, DATASET.train, verbaliser, seed=0, start=start, engine=engine)
        eligible = events_with_history(DATASET.train)
    sample = PromptSample(
        eligible, num_prompts=2 * SIZE, batch_size=SIZE, num_inner_epochs=2, seed=0
    )
    return sample, loss


class Interruption(Exception):
    """Comes in the middle of a run."""


def learn(out: Path, *, until: int | None = None) -> None:
    """Train ``out/learned.safetensors``: words at a rate of their own, and a mean over steps."""
    model = toy_model()
    data, loss = parts_of("sft", model, num_epochs=4)  # six batches, the last of four
    optimiser = OptimiserConfig(
        batch_size=SIZE, learning_rate=1e-2, word_learning_rate=2e-2, averaging=0.6,
        num_validations=3,
    )  # fmt: skip
    steps = iter(range(100))

    def interrupted(wrapped, batch):
        if next(steps) == until:
            raise Interruption
        return loss(wrapped, batch)

    fit(
        model, data, interrupted, lambda _: {"valid/ndcg": time.monotonic()}, optimiser,
        out=out, seed=0, label="learn", collate=keep_batch,
    )  # fmt: skip
    if ranks.is_first():
        save_model(model, str(out / "learned.safetensors"))


def run(out: Path) -> None:
    """Write ``out/CASE/gradients.safetensors``; several processes train ``out/road`` as well."""
    ranks.join()
    found: dict[str, torch.Tensor] = {}
    steps: list[int] = []
    trained: list[torch.nn.Module] = []

    def watched(loss):
        def call(wrapped, batch):
            trained[:] = [getattr(wrapped, "module", wrapped)]
            return loss(wrapped, batch)

        return call

    def note(*_):
        steps.append(len(steps))
        for name, weight in trained[0].named_parameters():
            if weight.grad is not None:
                found[f"{steps[-1]}/{name}"] = whole_tensor(weight.grad.detach()).clone()

    def validate(model):
        with (out / "validations.txt").open("a") as file:
            file.write(f"{ranks.rank()}\n")
        return {"valid/ndcg": 0.5}

    backbone = ranks.first_alone(lambda: save_backbone(out / "backbone", "qwen3"))
    server = ToyVllm(backbone) if ranks.is_first() else None
    url = ranks.first_alone(lambda: server.__enter__().url)
    hook = register_optimizer_step_pre_hook(note)
    for case in CASES:
        found.clear()
        steps.clear()
        model = model_of(case, backbone)
        data, loss = parts_of(case, model, url)
        folder = out / case
        folder.mkdir(parents=True, exist_ok=True)
        fit(
            model, data, watched(loss), validate, STILL,
            out=folder, seed=0, label=case, collate=keep_batch,
        )  # fmt: skip
        if ranks.is_first():
            save_file(found, folder / "gradients.safetensors")
    hook.remove()
    ranks.first_alone(lambda: server.__exit__())
    learned = out / "learned"
    ranks.first_alone(lambda: learned.mkdir(exist_ok=True))
    if ranks.num_ranks() == 1:
        learn(learned)
        return
    try:
        learn(learned, until=3)
    except Interruption:
        learn(learned)
    optimiser = {"batch_size": 4, "num_validations": 2}
    config = R2ecConfig.model_validate(
        {
            "tiny": TOY_SHAPE.model_dump(), "head": {"max_history": 8},
            "no_think": {"num_epochs": 1, "optimiser": optimiser},
            "sft": {"num_epochs": 1, "optimiser": optimiser},
            "recpo": {"num_prompts": 8, "recpo": {"max_tokens": 6}, "optimiser": optimiser},
        }
    )  # fmt: skip
    folders = r2ec.train(DATASET, config, out=out / "road", seed=0)
    try:
        uneven = STILL.model_copy(update={"batch_size": 7})
        fit(
            model, data, loss, validate, uneven,
            out=out, seed=0, label="uneven", collate=keep_batch,
        )  # fmt: skip
        refused = ""
    except ConfigError as error:
        refused = str(error)
    said = {"road": [str(folder) for folder in folders], "refused": refused}
    (out / f"rank-{ranks.rank()}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]) / "whole weights")
    os.environ |= FSDP2
    run(Path(sys.argv[1]) / "shared weights")

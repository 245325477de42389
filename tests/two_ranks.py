"""Trains toys for a few steps and writes down every gradient: alone, or one of several processes.

torchrun --nproc-per-node 2 tests/two_ranks.py FOLDER
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors.torch import save_file
from tests.toy_models import TOY_SHAPE, ring_rows, save_backbone, toy_model, toy_verbaliser
from tests.toy_traces import hand_question
from tests.toy_vllm import ToyVllm
from tests.toys import toy_dataset
from torch.optim.optimizer import register_optimizer_step_pre_hook

from reasonrec import ranks
from reasonrec.errors import ConfigError
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.models.answers import AnsweringModel
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig
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
from reasonrec.training.rl.recpo import PromptSample, Recpo

TITLES = [f"Tale {i}" for i in range(12)]
# histories of different lengths: no two processes hold equally many tokens or targets
ROWS = [row[: 4 + (7 * user) % 6] for user, row in enumerate(ring_rows(11, 12, 9))]
DATASET = toy_dataset(ROWS, TITLES)
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
        )  # fmt: skip
    model = toy_model(item_rows="text" if case == "recpo-text" else "id")
    if case == "grpo":
        return AnsweringModel(model.backbone, model.tokenizer, model.titles, model.head)
    return model


def parts_of(case, model, url):
    verbaliser = toy_verbaliser(model, DATASET, num_lookups=1)
    if case in ("no-think", "sft"):
        windows = schedule_windows(
            DATASET.train, max_history=8, num_epochs=1, batch_size=SIZE, seed=0
        )
        held_out = DATASET.train.user_offsets[1:4] - 1  # few rows have a target for their thought
        data = WindowDataset(
            DATASET.train, windows, model.writer, seed=0,
            **({"verbaliser": verbaliser, "num_branches": 2, "held_out": held_out}
               if case == "sft" else {}),
        )  # fmt: skip
        return data, lambda model, batch: sft_loss(model, batch, SftLossConfig())
    config = RecpoConfig(
        max_tokens=8, num_inner_epochs=2, kl_weight=0.0, entropy_weight=0.01, group_size=2,
        item_softmax="batch" if case == "recpo-text" else "catalogue",
    )  # fmt: skip
    if case == "grpo":
        events = np.arange(16)
        questions = [hand_question(task="rated", label=str(1 + n % 5)) for n in events]
        asked = GrpoConfig(max_tokens=6, max_answer_tokens=3, group_size=2, num_inner_epochs=2)
        loss = Grpo(asked, questions, [(1.0, lambda one: float(len(one.thought)))], seed=0)
        eligible = events
    else:
        kind = "vllm-server" if case == "recpo-server" else "sampler"
        engine = build_engine(EngineConfig(kind=kind, url=url))
        loss = Recpo(config, DATASET.train, verbaliser, seed=0, engine=engine)
        eligible = events_with_history(DATASET.train)
    sample = PromptSample(
        eligible, num_prompts=2 * SIZE, batch_size=SIZE, num_inner_epochs=2, seed=0
    )
    return sample, loss


def run(out: Path) -> None:
    """Write ``out/CASE/gradients.safetensors``; several processes train ``out/road`` as well."""
    ranks.join()
    found: dict[str, torch.Tensor] = {}
    steps: list[int] = []
    model = None

    def note(*_):
        steps.append(len(steps))
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                found[f"{steps[-1]}/{name}"] = weight.grad.detach().clone()

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
        fit(model, data, loss, validate, STILL, out=folder, seed=0, label=case, collate=keep_batch)
        if ranks.is_first():
            save_file(found, folder / "gradients.safetensors")
    hook.remove()
    ranks.first_alone(lambda: server.__exit__())
    if ranks.num_ranks() == 1:
        return
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
    run(Path(sys.argv[1]))

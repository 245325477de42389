"""A backbone of the papers' size on a GPU: SFT, RecPO and ranking, and TRL's GRPO step beside them.

    python benchmarks/large_backbone.py
    python benchmarks/large_backbone.py --shape toy --sides ours      # does it run? any machine

Writes a Qwen2-shaped model with random weights to a folder (``3b``: the shape of Qwen2.5-3B, 3.1
billion weights) and opens it as the paper does (configs/r2ec/paper.toml): by ``build_model``, in
bfloat16, with adapters of rank 4 on every linear layer, the layers computed again in the backward
pass. The text of every item is encoded by it. Then come one step of SFT, RecPO steps phase by
phase, and the ranking of users after a thought. Weights are random, so nothing is said of quality.
TRL's ``GRPOTrainer`` does the same token work with the same adapters: prompts, G, tokens drawn; it
has no head, no item rows and no item term, and reads each prompt G times in training. Every token
that could end a thought is never drawn, so that thoughts have one length on both sides.

How far a step is from what the device can do: products of a step (as torch counts them, attention
in them) at the rate of one large product here, and for rollouts the bytes that each drawn token
must read (weights once a pass, keys and values of every row) at the rate of one large copy here.

Each side runs in a process of its own. The quickest of ``--repeats`` steps after one to warm up is
kept. Writes ``benchmarks/baselines/large_backbone.json``.
"""

import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from cyclopts import App
from recpo_step import ROOT, Setting, made_up_log, save_tokenizer
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from reasonrec import ranks
from reasonrec.graph.build import InteractionGraph
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig, TinyConfig, WeightsConfig
from reasonrec.models.recommenders import ThinkingRecommender
from reasonrec.traces.config import ThoughtConfig
from reasonrec.traces.verbaliser import Verbaliser
from reasonrec.training.config import RecpoConfig, SftLossConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.losses import sft_loss
from reasonrec.training.rl.recpo import recpo_loss, roll_out

Side = Literal["ours", "trl"]
app = App(help=__doc__)


@dataclass(frozen=True)
class Shape:
    """Sizes of the backbone and of the work."""

    width: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    feed_forward_width: int
    vocab_size: int
    num_prompts: int
    group_size: int
    num_history: int
    new_tokens: int
    num_items: int
    rows_per_pass: int
    """Of TRL, which accumulates gradients over the passes of a step."""

    @property
    def cache_bytes(self) -> int:
        """Keys and values of one token of one row, in bfloat16."""
        return 2 * 2 * self.num_layers * self.num_key_value_heads * self.width // self.num_heads


SHAPES = {
    "3b": Shape(2048, 36, 16, 2, 11008, 151_936, 8, 4, 20, 512, 10_000, 8),
    "1.5b": Shape(1536, 28, 12, 2, 8960, 151_936, 8, 4, 20, 512, 10_000, 8),
    "toy": Shape(32, 2, 4, 2, 64, 1000, 2, 2, 4, 8, 40, 2),
}
WEIGHTS = WeightsConfig(
    dtype="bfloat16", gradient_checkpointing=True, lora=True, lora_rank=4, lora_alpha=128
)
_SIDE = 8192
_COPY_BYTES = 1 << 32


def save_backbone(folder: Path, shape: Shape, texts: list[str]) -> None:
    """Write a randomly initialised model of a shape and a byte-level tokenizer to a folder."""
    save_tokenizer(folder, texts, vocab_size=min(shape.vocab_size, 4000))
    torch.manual_seed(0)
    with ranks.device():
        model = Qwen2ForCausalLM._from_config(
            Qwen2Config(
                vocab_size=shape.vocab_size, hidden_size=shape.width,
                intermediate_size=shape.feed_forward_width, num_hidden_layers=shape.num_layers,
                num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_key_value_heads,
                bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=True,
                max_position_embeddings=32_768,
            ),
            dtype=torch.bfloat16,
        )  # fmt: skip
    model.save_pretrained(folder)


class Work:
    """A model of the shape, a log, and the prompts of one step."""

    def __init__(self, shape: Shape, told: dict[str, Any]) -> None:
        self.shape = shape
        self.catalogue, self.log = made_up_log(
            Setting(
                shape.num_prompts,
                shape.group_size,
                shape.num_history,
                shape.new_tokens,
                shape.num_items,
                shape.width,
                shape.num_layers,
                shape.feed_forward_width,
                shape.vocab_size,
            )
        )
        with tempfile.TemporaryDirectory() as folder:
            titles = [f" [{title}]" for title in self.catalogue.titles]
            save_backbone(Path(folder), shape, ["History: <think>", "<answer>", *titles])
            with seconds(told, "open_s"):
                self.model = build_model(
                    self.catalogue, backbone=folder, seed=0, tiny=TinyConfig(),
                    head=HeadConfig(dropout=0.0, max_history=shape.num_history, item_rows="text"),
                    weights=WEIGHTS,
                ).to(ranks.device()).eval()  # fmt: skip
        graph = InteractionGraph.build(self.log, shape.num_items)
        self.verbaliser = Verbaliser(
            self.model.writer, graph, self.catalogue, ThoughtConfig(num_lookups=0)
        )
        tokenizer: Any = self.model.tokenizer
        ends = {t for t in range(len(tokenizer)) if tokenizer.decode([t]).rstrip().endswith(">")}
        unknown = range(len(tokenizer), shape.vocab_size)
        never = {*self.model.never_written.tolist(), *ends, tokenizer.eos_token_id, *unknown}
        self.model.never_written = torch.tensor(sorted(never), device=self.model.device)
        users = np.arange(shape.num_prompts)
        self.event = self.log.user_offsets[users + 1] - 1  # the last event of each user

    @property
    def prompts(self) -> list[str]:
        histories = self.log.histories_before(self.event)
        return [
            self.model.writer.prompt_text(histories.row(b).tolist()) for b in range(len(histories))
        ]


@contextmanager
def seconds(told: dict[str, Any], name: str) -> Iterator[None]:
    """Write the seconds of a block, whose work on the GPU is then done, into ``told``."""
    wait()
    start = time.perf_counter()
    yield
    wait()
    told[name] = time.perf_counter() - start


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def start_of_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None


def measure_ours(shape: Shape, repeats: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    work = Work(shape, told)
    model = work.model
    told["num_weights"] = sum(weight.numel() for weight in model.backbone.parameters())
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    told["num_trained"] = sum(weight.numel() for weight in trained)
    with seconds(told, "encode_items_s"):
        model.refresh_items()
    optimiser = torch.optim.AdamW(trained, lr=1e-6)
    windows = schedule_windows(
        work.log, max_history=shape.num_history, num_epochs=1, batch_size=shape.num_prompts, seed=0
    )
    data = WindowDataset(
        work.log, windows, model.writer, verbaliser=work.verbaliser, num_branches=2
    )
    for _ in range(2):  # the first warms up
        start_of_peak()
        with seconds(told, "sft_step_s"):
            batch = data.__getitems__(range(shape.num_prompts))
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            loss, _ = sft_loss(model, batch, SftLossConfig())
            update(model, optimiser, loss)
        told["sft_peak_gib"] = peak_gib()
    config = RecpoConfig(
        group_size=shape.group_size, max_tokens=shape.new_tokens, temperature=1.0,
        next_item_weight=0.0, item_softmax="batch",
    )  # fmt: skip
    steps: list[dict[str, Any]] = []
    products: dict[str, float] = {}
    for n in range(1 + repeats):
        step: dict[str, Any] = {}
        counting = products if not n else None  # counts while it warms up
        start_of_peak()
        with phase(step, "rollout", counting):
            rollouts = roll_out(
                model, work.log, work.verbaliser, work.event, config, generator_seed=n
            )
        with phase(step, "forward", counting):
            outputs = model(rollouts.batch)
        with phase(step, "loss", counting):
            loss, _ = recpo_loss(outputs, rollouts, config)
        with phase(step, "backward", counting):
            loss.backward()
        with phase(step, "optimiser", counting):
            update(model, optimiser)
        step["step_s"] = sum(step.values())
        step["peak_gib"] = peak_gib()
        assert rollouts.batch.is_written is not None
        written = outputs.token_logp.detach()[rollouts.batch.is_written]
        sampled = rollouts.sampler_logp_P_G_S[rollouts.batch.is_written]
        step["logp_gap"] = float((written - sampled).abs().mean())
        step["drawn_tokens"] = int(rollouts.batch.is_written.sum())
        step["prompt_tokens"] = int(rollouts.batch.trunk_lengths.sum())
        step["loss"] = float(loss.detach())
        steps.append(step)
    best = min(steps[1:], key=lambda step: step["step_s"])
    best["drawn_tokens_per_s"] = best["drawn_tokens"] / best["step_s"]
    best["rollout_tokens_per_s"] = best["drawn_tokens"] / best["rollout_s"]
    told["recpo"] = best
    weight_bytes = sum(w.numel() * w.element_size() for w in model.backbone.parameters())
    told["limits"] = limits(shape, best, products, weight_bytes)
    histories = work.log.histories_before(work.event)
    thinking = ThinkingRecommender(model, work.verbaliser, max_tokens=shape.new_tokens)
    with seconds(told, "rank_after_thought_s"):
        scored = thinking.score(histories)
    assert np.isfinite(scored.scores).all()
    return told


def limits(
    shape: Shape, step: dict[str, Any], products: dict[str, float], weight_bytes: int
) -> dict[str, Any]:
    """Return the rates of this device, and the seconds that each phase would take at them."""
    rates = measure_rates(small=shape.width < 1024)
    rows = shape.num_prompts * shape.group_size
    prompt = step["prompt_tokens"] / shape.num_prompts
    read = shape.new_tokens * weight_bytes  # and of every row what it has written so far
    read += rows * shape.cache_bytes * shape.new_tokens * (prompt + shape.new_tokens / 2)
    floors = {name: flop / rates["flop_per_s"] for name, flop in products.items()}
    floors["rollout"] = max(floors["rollout"], read / rates["bytes_per_s"])
    of_step = sum(floors.values())
    return rates | {
        "tflop": {name: flop / 1e12 for name, flop in products.items()},
        "rollout_read_gib": read / 2**30,
        "floor_s": floors | {"step": of_step},
        "frac_of_limit": {
            name: floor / step[f"{name}_s"] for name, floor in {**floors, "step": of_step}.items()
        },
    }


def measure_rates(*, small: bool) -> dict[str, float]:
    """Return products in bfloat16 and copies of this device, best of five; ``small``: of any."""
    side, num_bytes = (256, 1 << 20) if small else (_SIDE, _COPY_BYTES)
    device = ranks.device()
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(num_bytes // 2, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    told: dict[str, Any] = {"product_s": np.inf, "copy_s": np.inf}
    for _ in range(6):
        again: dict[str, Any] = {}
        with seconds(again, "product_s"):
            torch.mm(a, b)
        with seconds(again, "copy_s"):
            target.copy_(source)
        told = {name: min(value, again[name]) for name, value in told.items()}
    return {
        "flop_per_s": 2 * side**3 / told["product_s"],
        "bytes_per_s": 2 * num_bytes / told["copy_s"],
    }


@contextmanager
def phase(step: dict[str, Any], name: str, counting: dict[str, float] | None) -> Iterator[None]:
    """Write the seconds of one phase of a step; its floating-point operations, too, if asked."""
    counter = FlopCounterMode(display=False)
    with seconds(step, f"{name}_s"), nullcontext() if counting is None else counter:
        yield
    if counting is not None:
        counting[name] = float(counter.get_total_flops())


def update(model: torch.nn.Module, optimiser: torch.optim.Optimizer, loss: Any = None) -> None:
    if loss is not None:
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    optimiser.zero_grad()


def measure_trl(shape: Shape, repeats: int) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    told: dict[str, Any] = {}
    work = Work(shape, told)
    R = shape.num_prompts * shape.group_size
    steps: list[dict[str, Any]] = []

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        steps[-1]["drawn_tokens"] = sum(len(ids) for ids in completion_ids)
        return [float(ids[0] % 7) for ids in completion_ids]

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            start_of_peak()
            wait()
            steps.append({"start": time.perf_counter()})

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait()
            steps[-1]["step_s"] = time.perf_counter() - steps[-1].pop("start")
            steps[-1]["peak_gib"] = peak_gib()

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder, use_cpu=not torch.cuda.is_available(), bf16=False,
            report_to="none", disable_tqdm=True, gradient_checkpointing=True,
            num_generations=shape.group_size, per_device_train_batch_size=shape.rows_per_pass,
            gradient_accumulation_steps=R // shape.rows_per_pass,
            max_completion_length=shape.new_tokens, temperature=1.0, top_k=0, top_p=1.0, beta=0.0,
            learning_rate=1e-6, max_steps=1 + repeats, save_strategy="no", logging_strategy="no",
            shuffle_dataset=False,
            generation_kwargs={"suppress_tokens": work.model.never_written.tolist()},
        )  # fmt: skip
        trainer = GRPOTrainer(
            model=work.model.backbone, reward_funcs=reward, args=config,
            train_dataset=Dataset.from_list(
                [{"prompt": text} for text in work.prompts] * (1 + repeats)
            ),
            processing_class=work.model.tokenizer, callbacks=[Clock()],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        plain = trainer._generate_single_turn

        def timed(*args: Any, **kwargs: Any) -> Any:
            with seconds(steps[-1], "rollout_s"):
                return plain(*args, **kwargs)

        trainer._generate_single_turn = timed
        trainer.train()
    told["grpo"] = best = min(steps[1:], key=lambda step: step["step_s"])
    best["drawn_tokens_per_s"] = best["drawn_tokens"] / best["step_s"]
    return told


MEASURES = {"ours": measure_ours, "trl": measure_trl}


@app.default
def main(
    *,
    shape: Literal["3b", "1.5b", "toy"] = "3b",
    sides: list[Side] | None = None,
    repeats: int = 2,
    out: Path = ROOT / "benchmarks" / "baselines" / "large_backbone.json",
    in_this_process: bool = False,
) -> None:
    """Measure, print and write.

    Args:
        shape: Of the backbone and of the work.
        sides: Both if left out.
        repeats: Steps of which the quickest counts.
        out: File to write.
        in_this_process: Measure here: what one side leaves in memory is then there for the other.
    """
    rows: dict[str, Any] = {}
    for side in sides or list(MEASURES):
        if in_this_process:
            rows[side] = MEASURES[side](SHAPES[shape], repeats)
        else:
            rows |= in_its_own_process(side, shape, repeats)
            print(json.dumps({side: rows[side]}, indent=1), flush=True)
        record = {
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "torch": torch.__version__,
            "dtype": WEIGHTS.dtype,
            "weights": WEIGHTS.model_dump(),
            "shape": {"name": shape} | asdict(SHAPES[shape]),
            "rows": rows,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def in_its_own_process(side: Side, shape: str, repeats: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "row.json"
        words = ["--shape", shape, "--sides", side, "--repeats", str(repeats)]
        command = [sys.executable, __file__, *words, "--out", str(own), "--in-this-process"]
        subprocess.run(command, check=True)
        return json.loads(own.read_text("utf-8"))["rows"]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    app()

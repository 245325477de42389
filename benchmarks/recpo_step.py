"""Time one RecPO step phase by phase; beside it TRL's GRPO step and `generate` on the same work.

    python benchmarks/recpo_step.py
    python benchmarks/recpo_step.py --settings tiny-plain --sides ours generate

Three settings: ``tiny`` is the tiny backbone as it is used, with look-ups, taught to ask by some
steps of SFT; ``tiny-plain`` and
``foreign`` (Qwen2-shaped, titles of several tokens) think in words alone. There the same work is
done by three sides from the same weights, prompts, G and number of drawn tokens: ours (RecPO, its
item term included), TRL's ``GRPOTrainer`` (token term alone, a reward that costs nothing, float32,
no gradient checkpointing, one micro-batch), and ``generate`` of transformers (rollouts alone).
Thoughts have one length on all sides, because every token that could end one is never drawn: such
tokens join those that our sampler leaves out, and are ``suppress_tokens`` of the others.

Each side runs in a process of its own and is measured ``--repeats`` times after one to warm up; the
quickest by CPU time is kept. A further step under torch's profiler gives the most bytes of tensors
at a time and the share of time outside matrix products (attention counts as one). Writes
``benchmarks/baselines/recpo_step.json``.
"""

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import psutil
import torch
from cyclopts import App
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from reasonrec.data.dataset import Catalogue, Dataset, InteractionLog, Queries
from reasonrec.machine import Speeds, describe_machine, measure_speeds
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig, TinyConfig
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.traces.config import OF_R2EC, ThoughtConfig
from reasonrec.traces.verbaliser import Verbaliser
from reasonrec.training.config import RecpoConfig, SftLossConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.losses import sft_loss
from reasonrec.training.rl.recpo import recpo_loss, roll_out

ROOT = Path(__file__).parents[1]
Side = Literal["ours", "trl", "generate"]
Name = Literal["tiny", "tiny-plain", "foreign"]

PRODUCTS = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product",
)  # fmt: skip
"""Operators that are matrix products; names begin so."""

app = App(help=__doc__)


@dataclass(frozen=True)
class Setting:
    """Shapes of one step."""

    num_prompts: int
    group_size: int
    num_history: int
    """Titles in every prompt."""
    new_tokens: int
    """Of each thought: drawn ones, or with look-ups all."""
    num_items: int
    width: int
    num_layers: int
    feed_forward_width: int
    vocab_size: int
    """Sub-word tokens; a tiny backbone has its titles on top."""


FULL: dict[Name, Setting] = {
    "tiny": Setting(32, 4, 50, 128, 1700, 128, 2, 256, 1024),
    "tiny-plain": Setting(32, 4, 50, 56, 1700, 128, 2, 256, 1024),
    "foreign": Setting(16, 4, 20, 64, 500, 256, 4, 704, 4096),
}
QUICK: dict[Name, Setting] = {
    name: Setting(2, 2, 4, 8, 40, 32, 2, 64, 400) for name in ("tiny", "tiny-plain", "foreign")
}


def made_up_log(setting: Setting) -> tuple[Catalogue, InteractionLog]:
    """Return titles of two words and a number, and users who took one item after the other."""
    rng = np.random.default_rng(0)
    words = ["Amber", "River", "Iron", "Quiet", "Salt", "Glass", "Winter", "Copper"]
    table = pl.DataFrame(
        {
            "item_id": [f"i{i}" for i in range(setting.num_items)],
            "title": [f"{words[i % 8]} {words[i // 8 % 8]} {i}" for i in range(setting.num_items)],
            "categories": [[words[i % 8]] for i in range(setting.num_items)],
        }
    )
    num_users, length = 400, setting.num_history + 1
    first = rng.integers(setting.num_items, size=(num_users, 1))
    steps = rng.geometric(0.2, size=(num_users, length)).cumsum(1)
    log = InteractionLog(
        user_index=np.repeat(np.arange(num_users, dtype=np.int32), length),
        item_index=((first + steps) % setting.num_items).astype(np.int32).ravel(),
        num_users=num_users,
    )
    return Catalogue(table), log


def dataset_of(catalogue: Catalogue, log: InteractionLog) -> Dataset:
    """Return a data set of which all is training."""
    none = np.empty(0, np.int64)
    nothing = Queries(none, none, none, none, log.item_index)
    return Dataset(
        name="made-up", split="leave-one-out", folder=Path(), fingerprint="", catalogue=catalogue,
        user_ids=[f"u{u}" for u in range(log.num_users)], train=log, valid=nothing, test=nothing,
        statistics={},
    )  # fmt: skip


def save_tokenizer(folder: Path, texts: list[str], *, vocab_size: int) -> int:
    """Write a byte-level tokenizer learned from texts to a folder; return its number of tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)  # fmt: skip
    return tokenizer.get_vocab_size()


def save_foreign(folder: Path, setting: Setting, texts: list[str]) -> Path:
    """Write a Qwen2-shaped model with random weights, and a byte-level tokenizer, to a folder."""
    num_tokens = save_tokenizer(folder, texts, vocab_size=setting.vocab_size)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=max(setting.vocab_size, num_tokens),
        hidden_size=setting.width, intermediate_size=setting.feed_forward_width,
        num_hidden_layers=setting.num_layers, num_attention_heads=4, num_key_value_heads=2,
        bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=True,
        max_position_embeddings=4096,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


class Work:
    """A model and the prompts of one step."""

    def __init__(self, name: Name, setting: Setting) -> None:
        self.name, self.setting = name, setting
        catalogue, self.log = made_up_log(setting)
        with tempfile.TemporaryDirectory() as folder:
            backbone = "tiny"
            if name == "foreign":
                titles = [f" [{title}]" for title in catalogue.titles]
                backbone = str(
                    save_foreign(Path(folder), setting, ["History: <think>", "<answer>", *titles])
                )
            self.model = build_model(
                catalogue, backbone=backbone, seed=0,
                tiny=TinyConfig(
                    width=setting.width, num_layers=setting.num_layers,
                    feed_forward_width=setting.feed_forward_width, vocab_size=setting.vocab_size,
                ),
                head=HeadConfig(dropout=0.0, max_history=setting.num_history),
            ).eval()  # fmt: skip
        thought = OF_R2EC if name == "tiny" else ThoughtConfig(num_lookups=0)
        self.verbaliser = Verbaliser.learned_from(
            dataset_of(catalogue, self.log), self.model.writer, thought
        )
        if name == "tiny":
            self.teach(num_steps=4 if setting.num_items < 100 else 60)
        else:
            self.model.never_written = torch.tensor(self._never(self.model))
        users = np.arange(setting.num_prompts)
        self.event = self.log.user_offsets[users + 1] - 1  # the last event of each user
        self.config = RecpoConfig(
            group_size=setting.group_size, max_tokens=setting.new_tokens, temperature=1.0
        )

    def teach(self, num_steps: int) -> None:
        """Take so many steps of SFT, after which thoughts ask as those of a trained model do."""
        windows = schedule_windows(
            self.log, max_history=self.setting.num_history, num_epochs=num_steps, batch_size=16,
            seed=0,
        )  # fmt: skip
        data = WindowDataset(
            self.log, windows, self.model.writer, verbaliser=self.verbaliser, num_branches=2
        )
        optimiser = torch.optim.AdamW(self.model.parameters(), lr=3e-3)
        for step in range(num_steps):
            batch = data.__getitems__(range(16 * step, 16 * step + 16))
            loss, _ = sft_loss(self.model, batch, SftLossConfig())
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()

    @staticmethod
    def _never(model: ReasoningRecommender) -> list[int]:
        """Return all tokens that are not drawn, those that could end a thought among them."""
        tokenizer: Any = model.tokenizer
        ends = {t for t in range(len(tokenizer)) if tokenizer.decode([t]).rstrip().endswith(">")}
        return sorted({*model.never_written.tolist(), *ends, tokenizer.eos_token_id})

    @property
    def prompts(self) -> list[str]:
        histories = self.log.histories_before(self.event)
        return [
            self.model.writer.prompt_text(histories.row(b).tolist()) for b in range(len(histories))
        ]


@dataclass
class Phase:
    """What one part of a step took."""

    wall_s: float
    cpu_s: float


class Clock:
    """Seconds of named phases of one step, watched by a profiler if there is one."""

    def __init__(self, watch: AbstractContextManager[Any] | None = None) -> None:
        self.phases: dict[str, Phase] = {}
        self.watch = watch or nullcontext()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.phases[name] = Phase(time.perf_counter() - wall, time.process_time() - cpu)


Step = Callable[[Clock], dict[str, float]]
"""Does the work once; returns counts of tokens."""


def our_step(work: Work) -> Step:
    model, config = work.model, work.config

    def step(clock: Clock) -> dict[str, float]:
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)
        with clock.watch:
            with clock.phase("rollout"):
                rollouts = roll_out(
                    model, work.log, work.verbaliser, work.event, config, generator_seed=0
                )
            with clock.phase("forward"):
                outputs = model(rollouts.batch)
            with clock.phase("reward and loss"):
                loss, _ = recpo_loss(outputs, rollouts, config)
            with clock.phase("backward"):
                loss.backward()
            with clock.phase("optimiser"):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
                optimiser.zero_grad()
        batch = rollouts.batch
        assert batch.is_written is not None and batch.branch_lengths is not None
        return {
            "prompt_tokens": float(batch.trunk_lengths.sum()),
            "drawn_tokens": float(batch.is_written.sum()),
            "thought_tokens": float(batch.branch_lengths.sum()),
        }

    return step


def trl_step(work: Work) -> Step:
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    setting = work.setting
    R = setting.num_prompts * setting.group_size
    counts: dict[str, float] = {}

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        counts["drawn_tokens"] = float(sum(len(ids) for ids in completion_ids))
        return [float(ids[0] % 7) for ids in completion_ids]

    class StepClock(TrainerCallback):
        clock: Clock
        started: tuple[float, float]

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.clock.watch.__enter__()
            self.started = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wall, cpu = self.started
            self.clock.phases["step"] = Phase(time.perf_counter() - wall, time.process_time() - cpu)
            self.clock.watch.__exit__(None, None, None)

    def step(clock: Clock) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            config = GRPOConfig(
                output_dir=folder, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True,
                gradient_checkpointing=False, num_generations=setting.group_size,
                per_device_train_batch_size=R, max_completion_length=setting.new_tokens,
                temperature=1.0, top_k=0, top_p=1.0, beta=0.0, learning_rate=1e-6, max_steps=1,
                save_strategy="no", logging_strategy="no", shuffle_dataset=False,
                generation_kwargs={"suppress_tokens": work.model.never_written.tolist()},
            )  # fmt: skip
            ours = StepClock()
            ours.clock = clock
            trainer = GRPOTrainer(
                model=work.model.backbone, reward_funcs=reward, args=config,
                train_dataset=Dataset.from_list([{"prompt": text} for text in work.prompts]),
                processing_class=work.model.tokenizer, callbacks=[ours],
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            plain = trainer._generate_single_turn

            def timed(*args: Any, **kwargs: Any) -> Any:
                with clock.phase("rollout"):
                    result = plain(*args, **kwargs)
                return result

            trainer._generate_single_turn = timed
            trainer.train()
        ids: Any = work.model.tokenizer(work.prompts)["input_ids"]
        return {"prompt_tokens": float(sum(map(len, ids)))} | counts

    return step


def generate_step(work: Work) -> Step:
    setting, model = work.setting, work.model
    prompts = model.writer.prompts(work.log.histories_before(work.event))
    before = prompts.token_ids.shape[1] - prompts.lengths[:, None]
    place = np.arange(prompts.token_ids.shape[1])
    ids = np.take_along_axis(prompts.token_ids, np.maximum(place - before, 0), 1)

    @torch.no_grad()
    def step(clock: Clock) -> dict[str, float]:
        with clock.watch, clock.phase("rollout"):
            written = model.backbone.generate(
                input_ids=torch.from_numpy(ids),
                attention_mask=torch.from_numpy((place >= before).astype(np.int64)),
                do_sample=True, top_k=0, num_return_sequences=setting.group_size,
                max_new_tokens=setting.new_tokens, pad_token_id=model.writer.pad_id,
                suppress_tokens=model.never_written.tolist(),
            )  # fmt: skip
        drawn = (written.shape[1] - ids.shape[1]) * len(written)
        return {"prompt_tokens": float(prompts.lengths.sum()), "drawn_tokens": float(drawn)}

    return step


STEPS: dict[Side, Callable[[Work], Step]] = {
    "ours": our_step,
    "trl": trl_step,
    "generate": generate_step,
}


def measure(name: Name, side: Side, setting: Setting, repeats: int) -> dict[str, Any]:
    """Return what one side takes for one setting."""
    work = Work(name, setting)
    step = STEPS[side](work)
    rss_before = psutil.Process().memory_info().rss
    flops = FlopCounterMode(display=False)
    step(Clock(flops))  # warms up, too
    best: dict[str, Phase] = {}
    counts: dict[str, float] = {}
    for _ in range(repeats):
        clock = Clock()
        counts = step(clock)
        if not best or _cpu_of(clock.phases) < _cpu_of(best):
            best = clock.phases
    rss_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    profiled = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    step(Clock(profiled))
    wall, cpu = _wall_of(best), _cpu_of(best)
    drawn = counts["drawn_tokens"]
    return {
        "setting": name,
        "side": side,
        "phases": {phase: asdict(taken) for phase, taken in best.items()},
        "wall_s": wall,
        "cpu_s": cpu,
        "drawn_tokens_per_cpu_s": drawn / cpu,
        "rollout_drawn_tokens_per_cpu_s": drawn / best["rollout"].cpu_s,
        "counts": counts,
        "gflop": flops.get_total_flops() / 1e9,
        "frac_outside_products": _outside_products(profiled),
        "peak_tensor_mib": _peak_bytes(profiled) / 2**20,
        "peak_rss_over_start_mib": max(0, rss_peak - rss_before) / 2**20,
        "num_weights": sum(weight.numel() for weight in work.model.backbone.parameters()),
        "shapes": asdict(setting),
    }


def _cpu_of(phases: dict[str, Phase]) -> float:
    return phases["step"].cpu_s if "step" in phases else sum(p.cpu_s for p in phases.values())


def _wall_of(phases: dict[str, Phase]) -> float:
    return phases["step"].wall_s if "step" in phases else sum(p.wall_s for p in phases.values())


def _outside_products(profiled: Any) -> float:
    taken = {event.key: event.self_cpu_time_total for event in profiled.key_averages()}
    inside = sum(us for key, us in taken.items() if key.startswith(PRODUCTS))
    return 1 - inside / sum(taken.values())


def _peak_bytes(profiled: Any) -> int:
    """Return the most bytes of tensors at a time, above those that were there before."""
    events = profiled.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    sizes = np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])])
    return int(sizes.max(initial=0))


@app.default
def main(
    *,
    settings: list[Name] | None = None,
    sides: list[Side] | None = None,
    repeats: int = 5,
    quick: bool = False,
    out: Path = ROOT / "benchmarks" / "baselines" / "recpo_step.json",
    in_this_process: bool = False,
) -> None:
    """Measure every setting and side, print a table, write JSON.

    Args:
        settings, sides: All if left out; ``tiny`` is measured for ours alone.
        repeats: Steps of which the quickest counts.
        quick: Shapes so small that the numbers mean nothing: does it run?
        out: File to write.
        in_this_process: Measure here: peaks of resident memory are then those of all before.
    """
    shapes = QUICK if quick else FULL
    speeds = None if in_this_process else measure_speeds(ROOT, trial_s=0.25)
    commit = _commit()  # before this writes into the tree
    rows: list[dict[str, Any]] = []
    for name in settings or list(shapes):
        for side in sides or list(STEPS):
            if name == "tiny" and side != "ours":
                continue  # look-ups have no like there
            if in_this_process:
                torch.set_num_threads(1)
                rows.append(measure(name, side, shapes[name], 1 if quick else repeats))
            else:
                rows.append(_in_its_own_process(name, side, repeats, quick))
            row = rows[-1]
            _write(out, rows, speeds, commit)
            print(
                f"{name:11} {side:9} cpu {row['cpu_s']:7.3f} s  wall {row['wall_s']:7.3f} s  "
                f"{row['drawn_tokens_per_cpu_s']:7.0f} drawn tokens per CPU-second",
                flush=True,
            )


def _write(out: Path, rows: list[dict[str, Any]], speeds: Speeds | None, commit: str) -> None:
    machine = describe_machine(ROOT)
    record = {
        "commit": commit,
        "machine": {"cpu": machine.cpu, "num_cores": machine.num_cores, "load": os.getloadavg()[0]},
        "torch": torch.__version__,
        "dtype": "float32",
        "threads": 1,
        "matmul_gflops_one_thread": speeds and speeds.matmul_gflops_one_thread,
        "memory_gib_per_s": speeds and speeds.memory_gib_per_s,
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _commit() -> str:
    """Return the commit, and a mark where files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _in_its_own_process(name: Name, side: Side, repeats: int, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        words = ["--settings", name, "--sides", side, "--repeats", str(repeats), "--out", str(out)]
        words += ["--quick"] if quick else []
        subprocess.run(
            [sys.executable, __file__, *words, "--in-this-process"],
            check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return json.loads(out.read_text(encoding="utf-8"))["rows"][0]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    app()

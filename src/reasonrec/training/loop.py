"""One training loop for every stage: a thin `transformers.Trainer` over a pure loss.

Data order is drawn up before the run, so a checkpoint plus a position is all that resuming needs:
weights, optimiser, schedule, random states and step come back, and the numbers are those of a run
that was never interrupted. Devices, DDP and DeepSpeed come with the Trainer; FSDP2 is
`training.sharding`, which the Trainer takes for a wrapped model like any other.

Several processes (`reasonrec.ranks`) share each batch of that order: each takes a run of its rows,
so that together they do what one process does. The first alone validates and writes files; the
others are told what came out.
"""

import json
import logging
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from reasonrec import ranks
from reasonrec.errors import CheckpointError, ConfigError, ReasonrecError
from reasonrec.machine import keep_freed_memory, settle_threads
from reasonrec.manifest import write_whole
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.rng import stream_seed
from reasonrec.training.config import OptimiserConfig
from reasonrec.training.sharding import (
    hand_out,
    part_of,
    put_together,
    shared_out,
    whole,
    whole_tensor,
    with_gradients_everywhere,
)

LossFunction = Callable[[ReasoningRecommender, dict[str, Tensor]], tuple[Tensor, dict[str, float]]]
"""(model, batch) -> scalar loss and named parts to log."""
Validate = Callable[[ReasoningRecommender], dict[str, float]]
"""model -> named values; ``valid/ndcg``, less ``valid/price`` if given, chooses the best step."""
CHOSEN_BY = "valid/ndcg"
"""NDCG without a cut-off: every rank counts, so it is less noisy than NDCG@10."""
PRICE = "valid/price"
"""What the thoughts cost that led there, if they cost anything, in units of NDCG."""
_COMPLETE = "complete"
"""Written last into a checkpoint: the size of each of its files."""


@dataclass(frozen=True)
class Fitted:
    """How a run of the loop went."""

    best_step: int
    """Whose weights were kept."""
    best_score: float | None
    """None where nothing was validated."""
    num_steps: int
    """That the schedule was laid out for."""
    seconds: float

    @property
    def share(self) -> float:
        """How far through the schedule the best step was."""
        return self.best_step / self.num_steps


def fit(
    model: ReasoningRecommender,
    data: Dataset,
    loss: LossFunction,
    validate: Validate | None,
    config: OptimiserConfig,
    *,
    out: Path,
    seed: int,
    label: str,
    collate: Callable[[Any], Any],
    steps_per_batch: int = 1,
    share: float = 1.0,
) -> Fitted:
    """Train ``model`` in place, from the last checkpoint in ``out`` if there is one.

    The weights of the best validation are in the model at the end. ``out/metrics.jsonl`` receives
    a row for every logged step; ``out/checkpoints`` is removed when the run is done.

    Args:
        validate: None keeps the last weights instead: for a run whose length is known.
        share: Of the steps that the schedule is laid out for, how many are taken.
        steps_per_batch: Steps that stand on each other, as those on one batch of rollouts, of which
            a checkpoint keeps nothing: none is written between them, so that validations are this
            many steps apart or a multiple of it.

    Raises:
        ConfigError: The rows of a step cannot be shared out evenly among the processes.
    """
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    elif model.device.type == "cpu":
        settle_threads(model)
    if model.device.type == "cpu":
        keep_freed_memory()
    W = ranks.num_ranks()
    if config.batch_size % W:
        raise ConfigError(
            f"optimiser.batch_size counts the rows of all processes, so {W} of them need a "
            f"multiple of {W}; got {config.batch_size}"
        )
    batches = RankBatches(len(data), config.batch_size, rank=ranks.rank(), num_ranks=W)  # pyright: ignore[reportArgumentType]
    num_steps = len(batches)
    every = steps_between_checkpoints(num_steps, config, steps_per_batch)
    stop_at = min(num_steps, max(1, round(share * num_steps / steps_per_batch)) * steps_per_batch)
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        per_device_train_batch_size=config.batch_size // W,
        max_steps=num_steps,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=(
            int(config.warmup_frac * num_steps)
            if config.warmup_steps is None
            else config.warmup_steps
        ),
        lr_scheduler_type=config.schedule,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=max(1, min(every, num_steps // 100)),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        # dropout of its own for each process: the rows that they hold are others
        seed=seed if ranks.is_first() else stream_seed(seed, "rank", ranks.rank()),
        data_seed=seed,
        ddp_find_unused_parameters=True,
        ddp_broadcast_buffers=False,
    )
    arguments._n_gpu = min(arguments._n_gpu, 1)  # else one process would drive every GPU
    metrics = MetricsFile(out / "metrics.jsonl")
    trainer = _Trainer(
        model=model, args=arguments, train_dataset=data, eval_dataset=data, data_collator=collate,
        callbacks=[metrics, _Bar(label, stop_at)],
        loss=loss, validate=validate, metrics=metrics, best=out / "best",
        config=config, batches=batches,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    if stop_at < num_steps:
        trainer.add_callback(_StopAt(stop_at))
    last = ranks.first_alone(lambda: _go_back(out))
    if last is None:
        with whole(trainer.trained) as own:
            own.refresh_items()
    for name in ("transformers.trainer", "transformers.trainer_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # the Trainer knows the old name of a setting of DDP alone
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # said of outputs that somebody might write into
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
        if last is None or not _is_over(last, stop_at, config.patience, every):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    score = json.loads((out / "best" / "score.json").read_text())
    if isinstance(trainer.trained, FSDPModule):
        put_together(trainer.trained)
    _load_weights(model, out / "best" / "model.safetensors")
    model.eval()
    ranks.wait()  # a rank that ends later still looks into the folder of checkpoints
    ranks.first_alone(lambda: shutil.rmtree(out / "checkpoints", ignore_errors=True))
    return Fitted(score["step"], score.get(CHOSEN_BY), num_steps, metrics.seconds)


def steps_between_checkpoints(
    num_steps: int, config: OptimiserConfig, steps_per_batch: int = 1
) -> int:
    """Return after how many steps each a run validates and writes a checkpoint; see `fit`."""
    every = max(1, num_steps // config.num_validations)
    return every + -every % steps_per_batch


def _is_over(checkpoint: Path, stop_at: int, patience: int, every: int) -> bool:
    """Return whether a run that was cut short there had no step left, or no patience."""
    step = _step_of(checkpoint)
    best = json.loads((checkpoint / "best" / "score.json").read_text())["step"]
    return step >= stop_at or (patience > 0 and (step - best) // every >= patience)


def _go_back(out: Path) -> Path | None:
    """Return the checkpoint to continue from, if any, and put back the best of its time."""
    last = last_checkpoint(out / "checkpoints")
    if last is not None:
        shutil.copytree(last / "best", out / "best", dirs_exist_ok=True)
    return last


class RankBatches(Sampler[list[int]]):
    """The rows of each step that one process takes: a run of the batch that all of them share.

    A last batch with fewer rows than processes is left out.
    """

    def __init__(self, num_rows: int, batch_size: int, *, rank: int, num_ranks: int) -> None:
        self.num_rows, self.batch_size, self.rank, self.num_ranks = (
            num_rows, batch_size, rank, num_ranks,
        )  # fmt: skip

    def __len__(self) -> int:
        whole, left = divmod(self.num_rows, self.batch_size)
        return whole + (left >= self.num_ranks)

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(len(self)):
            begin = step * self.batch_size
            rows = range(begin, min(begin + self.batch_size, self.num_rows))
            of_rank = len(rows) * self.rank // self.num_ranks
            end = len(rows) * (self.rank + 1) // self.num_ranks
            yield list(rows[of_rank:end])


def _worth(values: dict[str, float]) -> float:
    return values[CHOSEN_BY] - values.get(PRICE, 0.0)


def _save_weights(model: ReasoningRecommender, path: Path) -> None:
    """Write a model's weights to a file; frozen ones are left out."""
    if all(weight.requires_grad for weight in model.parameters()):
        save_model(model, str(path))
    else:
        save_file({k: v.contiguous() for k, v in model.trained_state().items()}, path)


def _load_weights(model: ReasoningRecommender, path: Path) -> None:
    if all(weight.requires_grad for weight in model.parameters()):
        load_model(model, str(path))
        return
    tensors = load_file(path)
    if tensors.keys() != model.trained_state().keys():
        raise CheckpointError(f"{path} must hold the trained weights of this model, and no others")
    model.load_state_dict(tensors, strict=False)


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; half-written and damaged ones are removed."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if _is_whole(path):
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _is_whole(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / _COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(sizes) and sizes == _sizes(checkpoint)


def _sizes(checkpoint: Path) -> dict[str, int]:
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != _COMPLETE)
    return {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}


class MetricsFile(TrainerCallback):
    """Appends one JSON row per logged step; forgets rows that a resumed run will write again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        rows = read_metrics(path)
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self._started = time.perf_counter()
        self._sums: dict[str, list[float]] = {}

    def add(self, parts: dict[str, float]) -> None:
        """Remember the parts of one step; their mean is logged with the next row."""
        for name, value in parts.items():
            self._sums.setdefault(name, []).append(value)

    def write(self, step: int, values: dict[str, float]) -> None:
        if not ranks.is_first():
            return
        elapsed = self.seconds + time.perf_counter() - self._started
        row = {"step": step, "seconds": round(elapsed, 2)} | values
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        rows = read_metrics(self.path)
        kept = [row for row in rows if row["step"] <= state.global_step]
        self.seconds = kept[-1]["seconds"] if kept else 0.0
        self._started = time.perf_counter()
        if not ranks.is_first():
            return
        self.path.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, float] | None = None, **_: Any,
    ) -> None:  # fmt: skip
        if not logs or "loss" not in logs:
            return
        values = {f"train/{k}": float(v) for k, v in logs.items() if k in ("loss", "learning_rate")}
        values |= {name: sum(v) / len(v) for name, v in self._sums.items()}
        self._sums.clear()
        self.write(state.global_step, values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.seconds += time.perf_counter() - self._started
        self._started = time.perf_counter()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


class _StopAt(TrainerCallback):
    """Ends a run early, with a last validation and a checkpoint."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= self._step:
            control.should_evaluate = control.should_save = control.should_training_stop = True


class _Bar(TrainerCallback):
    """A progress bar on standard error, only where someone watches."""

    def __init__(self, label: str, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(),
            TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn(), TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            disable=not (sys.stderr.isatty() and ranks.is_first()),
        )  # fmt: skip
        self._task = self._progress.add_task(label, total=total)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.update(self._task, completed=state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._progress.stop()


def _give_rate(
    optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], **settings: float
) -> None:
    """Move weights into parameter groups that differ from their old ones in ``settings``."""
    moved = {id(weight) for weight in weights}
    for group in list(optimizer.param_groups):
        own = [weight for weight in group["params"] if id(weight) in moved]
        group["params"] = [weight for weight in group["params"] if id(weight) not in moved]
        if own:
            optimizer.add_param_group({**group, "params": own, **settings})


def _share_out_state(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any]
) -> dict[str, Any] | None:
    """Return a saved state with its tensors shared out as the weights are that they belong to."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = {
        i: {
            name: part_of(value, weights[i]) if value.shape == weights[i].shape else value
            for name, value in values.items()
        }
        for i, values in saved["state"].items()
    }
    return {**saved, "state": state}


class _MeanOfWeights(TrainerCallback):
    """An exponential mean of the weights over steps; short-sighted while there are few."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._weights = [w for w in model.parameters() if w.requires_grad] if decay else []
        self._decay = decay
        self._mean = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step
        share = 1 - min(self._decay, step / (step + 9))
        for mean, weight in zip(self._mean, self._weights, strict=True):
            mean.lerp_(weight, share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the mean; a second call takes it back."""
        for mean, weight in zip(self._mean, self._weights, strict=True):
            kept = weight.clone()
            weight.copy_(mean)
            mean.copy_(kept)

    def save(self, folder: Path) -> None:
        if self._mean:
            means = {str(i): whole_tensor(mean) for i, mean in enumerate(self._mean)}
            if ranks.is_first():
                save_file(means, folder / "mean.safetensors")

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        if self._mean:
            saved = load_file(folder / "mean.safetensors")
            for i, mean in enumerate(self._mean):
                mean.copy_(part_of(saved[str(i)], mean))


class _Trainer(Trainer):
    """Hands batches to a pure loss, keeps data in the given order, and saves what is ours."""

    def __init__(
        self,
        *,
        loss: LossFunction,
        validate: Validate | None,
        metrics: MetricsFile,
        best: Path,
        config: OptimiserConfig,
        batches: RankBatches,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._batches = batches
        self._config = config
        self._last: tuple[int, dict[str, float]] | None = None
        self.trained: Any = self._recommender
        """What learns: the model, or the copy of which each process holds a part."""
        if ranks.shares_weights():
            self.trained = shared_out(self._recommender)
        self._fixed_words: Tensor | None = None
        self._encoded_at: int | None = None
        """The step at which all item rows were encoded last; None before the first loss."""
        self._mean = _MeanOfWeights(self.trained, config.averaging)
        if config.averaging:
            self.add_callback(self._mean)
        self._loss, self._validate, self._metrics, self._best = loss, validate, metrics, best
        self.model_accepts_loss_kwargs = False
        ranks.first_alone(lambda: best.mkdir(parents=True, exist_ok=True))

    def get_train_dataloader(self) -> DataLoader:
        if self._batches.num_ranks == 1:
            return super().get_train_dataloader()
        # not through accelerate, which deals out whole batches, and repeats rows to fill the last
        return DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=self._batches,
            collate_fn=self.data_collator,
        )

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)  # pyright: ignore[reportArgumentType]

    def create_accelerator_and_postprocess(self) -> None:
        # accelerate would share out weights in a way of its own, on GPUs only, and leave no model
        told = os.environ.pop("ACCELERATE_USE_FSDP", None)
        super().create_accelerator_and_postprocess()
        if told is not None:
            os.environ["ACCELERATE_USE_FSDP"] = told

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if self.trained is not self.model:
            return self.trained
        return super()._wrap_model(model, *args, **kwargs)

    @property
    def _recommender(self) -> ReasoningRecommender:
        assert isinstance(self.model, ReasoningRecommender)
        return self.model

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(self.trained)
        if not is_new:
            return optimizer
        optimizer.register_load_state_dict_pre_hook(_share_out_state)
        model, config = self.trained, self._config
        if config.head_learning_rate is not None:
            _give_rate(optimizer, model.head_parameters(), lr=config.head_learning_rate)
        if config.word_learning_rate is not None and model.is_title.numel():
            embeddings = model.backbone.get_input_embeddings().weight
            is_fixed = model.is_title.clone()
            is_fixed[model.writer.prefix] = True
            self._fixed_words = is_fixed
            _give_rate(optimizer, [embeddings], lr=config.word_learning_rate, weight_decay=0.0)
        return optimizer

    def compute_loss(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        recommender = self._recommender
        table = recommender.item_table
        if table.is_encoded:
            now = self.state.global_step
            table.steps_since_refresh += 1
            if table.steps_since_refresh > self._config.refresh_items_every:
                with whole(self.trained) as own:
                    own.refresh_items()
                self._encoded_at = now
            if self._encoded_at is None:  # a run begins with new rows, and so does a checkpoint
                self._encoded_at = now
            self._metrics.add({"train/item_table_age": float(now - self._encoded_at)})
        value, parts = self._loss(model, inputs)  # pyright: ignore[reportArgumentType]
        if self._fixed_words is not None:  # after a pass: only then are shared embeddings whole
            fixed, self._fixed_words = self._fixed_words[:, None], None
            embeddings = self.trained.backbone.get_input_embeddings().weight
            embeddings.register_hook(lambda grad: grad.masked_fill(fixed, 0.0))
        if isinstance(self.trained, FSDPModule):
            with_gradients_everywhere(value, self.trained)
        means = ranks.mean_of(parts)
        if not all(map(math.isfinite, means.values())):
            raise ReasonrecError(
                f"training diverged: the loss is not finite at step {self.state.global_step} "
                f"({', '.join(f'{name} {value:g}' for name, value in means.items())}). "
                f"Lower optimiser.learning_rate (now {self.args.learning_rate:g}), and remove "
                f"{self._best.parent}; a part that is inf, and not nan, is of something that the "
                "model gives no probability to and is taught all the same: read its thoughts"
            )
        self._metrics.add(means)
        return (value, {}) if return_outputs else value

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        if self._last is not None and self._last[0] == self.state.global_step:
            return self._last[1]  # the Trainer asks twice where a run ends on a validation
        weights = (getattr(w, "_local_tensor", w) for w in self.trained.parameters())
        is_finite = all(bool(torch.isfinite(weight).all()) for weight in weights)
        if not all(ranks.gathered_objects(is_finite)):
            raise ReasonrecError(
                f"training diverged: weights are not finite at step {self.state.global_step}. "
                f"Lower optimiser.learning_rate (now {self.args.learning_rate:g}), and remove "
                f"{self._best.parent}"
            )
        self._mean.swap()
        with whole(self.trained) as own:
            values = self._measure(own)
        self._mean.swap()
        if self._config.averaging:
            with whole(self.trained) as own:
                own.refresh_items()
        self._encoded_at = self.state.global_step
        self._last = self.state.global_step, values
        return values

    def _measure(self, model: ReasoningRecommender) -> dict[str, float]:
        """Validate the model as it is, and keep it if it is the best so far."""
        model.eval()
        model.refresh_items()
        values, waited = ranks.first_alone(lambda: self._judge(model))
        model.train()
        if self._config.patience:
            self.control.should_training_stop |= waited >= self._config.patience
        return values

    def _judge(self, model: ReasoningRecommender) -> tuple[dict[str, float], int]:
        """Return what validation says, and how many validations ago it was best."""
        values = {} if self._validate is None else self._validate(model)
        step = self.state.global_step
        if values:
            self._metrics.write(step, values)
        path = self._best / "score.json"
        best = json.loads(path.read_text()) if path.exists() else None
        if not values or best is None or best["step"] >= step or _worth(values) > _worth(best):
            _save_weights(model, self._best / "model.safetensors.partial")
            (self._best / "model.safetensors.partial").replace(self._best / "model.safetensors")
            write_whole(path, json.dumps({"step": step} | values))
            return values, 0
        return values, int((step - best["step"]) // self.args.eval_steps)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        assert output_dir is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with whole(self.trained) as own:
            if ranks.is_first():
                _save_weights(own, Path(output_dir) / "model.safetensors")
        self._mean.save(Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        with whole(self.trained) as own:
            _load_weights(own, folder / "model.safetensors")
            if isinstance(self.trained, FSDPModule):
                hand_out(self.trained)
        self._mean.load(folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not isinstance(self.trained, FSDPModule):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        optimizer: Any = self.optimizer
        schedule: Any = self.lr_scheduler
        parts = optimizer.state_dict()
        state = {
            i: {name: whole_tensor(value) for name, value in values.items()}
            for i, values in parts["state"].items()
        }
        if ranks.is_first():
            torch.save({**parts, "state": state}, Path(output_dir) / "optimizer.pt")
            torch.save(schedule.state_dict(), Path(output_dir) / "scheduler.pt")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        ranks.wait()  # each process has written its random state
        ranks.first_alone(lambda: self._complete(folder))

    def _complete(self, folder: Path) -> None:
        # the best so far belongs to the state: a resumed run must not remember later bests
        shutil.copytree(self._best, folder / "best", dirs_exist_ok=True)
        sizes = json.dumps(_sizes(folder))
        partial = folder / f"{_COMPLETE}.partial"
        partial.write_text(sizes, encoding="utf-8")
        partial.replace(folder / _COMPLETE)  # atomic: a kill leaves no such file or a whole one

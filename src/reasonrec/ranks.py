"""The processes that train one model together, each a *rank*, and what they tell each other.

They are started by ``torchrun`` or ``accelerate launch``. In a lone process everything here is the
thing itself: nothing is sent, and no number changes.

What a rank computes is a part of what one process would compute on the whole batch. Distributed
training takes the mean of the ranks' gradients, so a mean over the whole batch is, on each rank,
its own sum over the *mean* of the ranks' counts: `mean_counts`.
"""

import atexit
import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from reasonrec.errors import ConfigError

T = TypeVar("T")

_FSDP = {
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}
"""What ``accelerate launch`` may say of FSDP: the one way that is known here."""


def join() -> None:
    """Meet the other processes of this run, if it was started as several; a second call is free.

    Raises:
        ConfigError: They were started to share out the weights in a way that is not known here.
    """
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "") == "3":
        # rollouts, item rows, validation and files read weights outside of the model's forward,
        # where a process that holds a part of them would wait for the others forever
        raise ConfigError(
            "DeepSpeed must leave whole weights to every process; ZeRO-3 shares them out. Use "
            "configs/accelerate/fsdp2.yaml, which may, or deepspeed-zero2.yaml, which shares out "
            "gradients and optimiser states"
        )
    if _asks_for_fsdp():
        told = {"FSDP_VERSION": "1"} | dict(os.environ)  # what accelerate takes where none is said
        said = {name: told.get(name, known).lower() for name, known in _FSDP.items()}
        if said != _FSDP:
            wrong = ", ".join(f"{k}={v}" for k, v in said.items() if v != _FSDP[k])
            raise ConfigError(
                f"FSDP must be {', '.join(f'{k}={v}' for k, v in _FSDP.items())}; got {wrong}. "
                "Use configs/accelerate/fsdp2.yaml"
            )
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    # one rank validates, or asks a teacher for hours, while the others wait; a rank that dies is
    # noticed by whoever started them all
    dist.init_process_group(backend, timeout=timedelta(days=7))
    if backend == "gloo":  # whose threads may abort a process that ends with them under way
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _asks_for_fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def device() -> torch.device:
    """Return where this process computes: its GPU, the CPU where there is none.

    ``CUDA_VISIBLE_DEVICES=`` (empty) hides the GPUs.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def shares_weights() -> bool:
    """Return whether each process is to hold a part of the weights alone (FSDP2)."""
    return num_ranks() > 1 and _asks_for_fsdp()


def num_ranks() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this is the process that writes files."""
    return rank() == 0


def wait() -> None:
    """Return when every rank has come here."""
    if num_ranks() > 1:
        gathered_objects(None)


def first_alone(work: Callable[[], T]) -> T:
    """Return, on every rank, what ``work`` returns on the first, which alone does it."""
    if num_ranks() == 1:
        return work()
    box = [work() if is_first() else None]
    dist.broadcast_object_list(box, src=0)
    return box[0]  # pyright: ignore[reportReturnType]


def gathered_objects(own: T) -> list[T]:
    """Return what each rank hands in, in the order of the ranks."""
    if num_ranks() == 1:
        return [own]
    found: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(found, own)
    return found  # pyright: ignore[reportReturnType]


def gathered(own: Tensor) -> Tensor:
    """Return the rows of all ranks behind each other, without gradient; made for a few integers."""
    if num_ranks() == 1:
        return own
    return torch.cat(gathered_objects(own.detach().cpu())).to(own.device)


def mean_counts(*counts: float) -> list[float]:
    """Return each count as its mean over ranks: what a rank's own sum is to be divided by.

    Ranks that hold 3 and 1 of 4 tokens divide their sums by 2; the mean of the two quotients, which
    is what distributed training makes of them, is the sum over all tokens divided by 4.
    """
    everyone = gathered_objects(counts)
    return [sum(column) / len(everyone) for column in zip(*everyone, strict=True)]


def shares(*counts: float) -> list[float]:
    """Return what a rank's own mean over each count is to be multiplied by; 1 in a lone process."""
    means = mean_counts(*counts)
    return [own / mean if mean else 0.0 for own, mean in zip(counts, means, strict=True)]


def mean_of(values: dict[str, float]) -> dict[str, float]:
    """Return named values as means over the ranks that have them."""
    everyone = gathered_objects(values)
    if len(everyone) == 1:
        return values
    names = dict.fromkeys(name for one in everyone for name in one)
    found = {name: [one[name] for one in everyone if name in one] for name in names}
    return {name: sum(column) / len(column) for name, column in found.items()}

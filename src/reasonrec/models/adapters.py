"""Low-rank adapters on a backbone from elsewhere: added, found, and merged into a copy.

Departs from the official code, which merges adapters into the weights that are trained on and takes
them out again at every step: the frozen weights drift by rounding, and rollouts were sampled from
the weights without adapters. Here the frozen weights are read and never written.
"""

import warnings
from collections.abc import Iterator

from torch import Tensor, nn
from transformers import PreTrainedModel

from reasonrec.errors import ConfigError
from reasonrec.models.config import WeightsConfig

_ADAPTER = "lora_"
"""In the name of every weight of an adapter, and of no other."""


def add_adapters(backbone: PreTrainedModel, weights: WeightsConfig) -> None:
    """Put adapters that change nothing yet on a backbone, in place, and freeze everything else.

    Raises:
        ConfigError: peft is not installed, or the backbone has no layer of the names asked for.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise ConfigError(
            "weights.lora needs the package peft; install it with: pip install 'reasonrec[lora]'"
        ) from None
    targets = weights.lora_targets
    asked = LoraConfig(
        r=weights.lora_rank,
        lora_alpha=weights.lora_alpha,
        target_modules=targets if targets == "all-linear" else targets.split(","),
    )
    try:
        with warnings.catch_warnings():  # said of layers that hold their weights transposed
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
            backbone.add_adapter(asked)
    except ValueError as error:
        raise ConfigError(
            f"weights.lora_targets must be 'all-linear' or names of layers, with commas between "
            f"them; {targets!r} gave: {str(error).splitlines()[0]}"
        ) from None
    train_adapters_alone(backbone)


def train_adapters_alone(backbone: nn.Module) -> None:
    """Freeze every weight of a backbone but those of its adapters, in place."""
    for name, weight in backbone.named_parameters():
        weight.requires_grad_(_ADAPTER in name)


def merged_weights(backbone: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a backbone with its adapters worked in, one copy after the other.

    Names are those of the backbone without adapters; without adapters the weights themselves are
    yielded. What an engine elsewhere is to sample from is loaded from this.
    """
    for name, weight in backbone.state_dict().items():
        if _ADAPTER in name:
            continue
        owner, is_base, rest = name.rpartition(".base_layer.")
        if not is_base:
            yield name, weight
            continue
        if rest == "weight":
            layer = backbone.get_submodule(owner)
            change = sum(layer.get_delta_weight(one).float() for one in layer.active_adapters)  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]
            weight = (weight.float() + change).to(weight.dtype)
        yield f"{owner}.{rest}", weight

"""The backbone's own language head on states that are handed to it, and what its logits say.

Logits are made by the backbone's own forward, so that capped or scaled ones come out right whatever
its architecture.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast


def backbone_logits(backbone: Any, states: Tensor, tokens: Tensor | None = None) -> Tensor:
    """Return the logits of states (R, D) as the backbone makes them, capped or scaled.

    Of all tokens, (R, V), or of some, (R, C).
    """
    # its forward runs on a copy whose layers are replaced by what they would have returned
    head = copy.copy(backbone)
    modules = {**backbone._modules, head.base_model_prefix: _Given(states[None])}
    if tokens is not None:
        output = backbone.get_output_embeddings()
        name = next((name for name, module in modules.items() if module is output), None)
        if name is None:  # somewhere deeper: make all
            return backbone_logits(backbone, states).index_select(-1, tokens)
        modules[name] = _SomeTokens(output, tokens)
    head.__dict__["_modules"] = modules
    return head(inputs_embeds=states[None], use_cache=False).logits[0]


def logp_and_entropy(
    logits: Tensor, wanted: Tensor, entropy_gradient: bool, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log p (W,) of the wanted columns (W,) of logits (W, C), and the entropy (W,), both of
    softmax(logits / temperature)."""
    logp = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    chosen = logp.gather(-1, wanted[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        # tokens that are never written: e^-80 is 0 beside 1, and `exp` is slow at -inf
        kept = logp.clamp(min=-80.0)
        return chosen, -(kept.exp() * kept).sum(-1)


def num_titles(tokens: Tensor, is_title: Tensor) -> Tensor:
    """Return how many different titles are among tokens (R, T), (R,)."""
    titles = tokens.where(is_title, -1).sort(-1).values
    is_new = F.pad(titles[:, 1:] != titles[:, :-1], (1, 0), value=True)
    return (is_new & (titles >= 0)).sum(-1)


class _GivenOutput(BaseModelOutputWithPast):
    """States alone; whatever else a forward asks of its layers' output is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Given(nn.Module):
    """Stands for the layers of a backbone and returns the states that it was given, (1, R, D)."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return self  # a forward that calls a part of its layers means all of them

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        return _GivenOutput(last_hidden_state=self.states)  # pyright: ignore[reportArgumentType]


class _SomeTokens(nn.Module):
    """Stands for an output embedding and knows some tokens only."""

    def __init__(self, output: nn.Linear, tokens: Tensor) -> None:
        super().__init__()
        self.weight = output.weight.index_select(0, tokens)
        self.bias = None if output.bias is None else output.bias[tokens]

    def forward(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight, self.bias)

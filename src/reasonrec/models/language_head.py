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

from reasonrec.records import TokenPolicy

PLAIN = TokenPolicy()
"""The softmax over all tokens at temperature 1."""


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


def policy_logp(logits: Tensor, policy: TokenPolicy, drawn: Tensor | None = None) -> Tensor:
    """Return what a policy makes of logits (R, C): log-probabilities (R, C), -inf where it never
    draws.

    With ``top_k`` the softmax is over the tokens whose logit is at least the k-th largest of their
    row, all that tie with it among them, and over the token that was drawn there.

    Sampler and training keep tokens by this rule, each by its own logits. Which ones were kept is
    not handed over: that would be k ids a token, which an engine elsewhere does not tell, and the
    least logit that was kept says nothing beside logits of other weights. So a ratio is that of the
    policy as it is now to the one that wrote: it jumps, by about the share of the k-th likeliest
    token, where a token enters or leaves the likeliest between two inner epochs. A drawn token that
    has left them (weights have moved, or another implementation wrote) counts as if it had stayed:
    really its ratio is 0, which has no logarithm and from which nothing is learned. The choice
    itself has no gradient.

    Args:
        drawn: The token that was drawn in each row, which is always kept. (R,). None: no such.
    """
    heated = logits if policy.temperature == 1 else logits / policy.temperature
    if 0 < policy.top_k < logits.shape[-1]:
        least = logits.detach().topk(policy.top_k).values[:, -1:]
        is_left_out = logits < least
        if drawn is not None:
            is_left_out.scatter_(-1, drawn[:, None], False)
        heated = heated.masked_fill(is_left_out, -torch.inf)
    return heated.log_softmax(-1)


def logp_and_entropy(
    logits: Tensor, drawn: Tensor, entropy_gradient: bool, policy: TokenPolicy = PLAIN
) -> tuple[Tensor, Tensor]:
    """Return log p (W,) of the drawn columns (W,) of logits (W, C), and the entropy (W,), both of
    the policy."""
    logp = policy_logp(logits, policy, drawn)
    chosen = logp.gather(-1, drawn[:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        # tokens that are never drawn: e^-80 is 0 beside 1, and `exp` is slow at -inf
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

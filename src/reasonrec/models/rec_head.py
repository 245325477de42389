"""The recommendation head: from the state that a thought reached to a score for every item.

Departs from the paper: plain inner products by default for rows that are learned per item; the
official code's L2-normalised product is ``similarity = "cosine"`` with ``temperature = 0.02``. A
gate mixes in the state before the thought, and items that the thought looked up can be lifted and
take a share of the probability; the paper has neither.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reasonrec.models.config import Similarity
from reasonrec.records import LOOKUP_KINDS

MOST_SCORES = 2**24
"""Item scores that are worked on at a time, in entries: 64 MiB. Where there are more, a few prompts
are taken after the other, so that all that is made on the way to a score exists of these alone."""

LOG_HALF = -4.0
"""Where `EvidencePointer.log_half` starts: weight e^-4 then adds log 2 times the lift."""


def score_catalogue(
    state: Tensor, item_rows: Tensor, *, similarity: Similarity = "dot", temperature: float = 1.0
) -> Tensor:
    """Return a logit for every catalogue item, given the state reached after reasoning.

    Args:
        state: Hidden state at the last token of the prompt or of the answer marker. (..., D), any
            float dtype.
        item_rows: One embedding per item, in ``item_index`` order. (N, D).
        similarity: ``dot``, or ``cosine`` after L2 normalisation of both sides.
        temperature: Divides the logits. No unit, above 0; below 1 sharpens the softmax.

    Returns:
        (..., N), float32. Half precision would merge close scores into ties, and ties move NDCG.

    Raises:
        ValueError: The widths differ, or ``temperature`` is not above 0.

    Source: R²ec, recommendation head (``docs/paper_index.md``, entry *rec head*).
    """
    if state.shape[-1] != item_rows.shape[-1]:
        raise ValueError(
            f"state and item_rows must have the same width; got {state.shape[-1]} and "
            f"{item_rows.shape[-1]}. Was the item table built with another backbone?"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0; got {temperature}")
    with torch.autocast(state.device.type, enabled=False):
        state, item_rows = state.float(), item_rows.float()
        if similarity == "cosine":
            state, item_rows = F.normalize(state, dim=-1), F.normalize(item_rows, dim=-1)
        scores = state @ item_rows.T  # (..., D) @ (D, N) -> (..., N)
        return scores if temperature == 1 else scores.div_(temperature)  # no second (..., N)


def beside_history(after: Tensor, before: Tensor, is_own: Tensor) -> Tensor:
    """Return log-probabilities (..., N) in which a thought has moved new items alone.

    ``p(i) = p_before(i)`` for items of the history, and what they leave is shared by the others as
    the thought says: ``p(i) = p_after(i) * P_before(new) / P_after(new)``. What others took is
    looked up without the history, so that it tells nothing of how likely a repeat is.

    Args:
        after: Scores (..., N) after the thought; those ``before`` it, of the state alone.
        is_own: Which items the history holds. (..., N), bool.
    """
    before, after = before.log_softmax(-1), after.log_softmax(-1)
    left, shared = (x.masked_fill(is_own, -torch.inf).logsumexp(-1, True) for x in (before, after))
    return torch.where(is_own, before, after + (left - shared))


class GatedReadout(nn.Module):
    """Mixes the states before and after the thought: ``pre + gate * (post - pre)``.

    The gate starts at 0 in every dimension, so that thinking starts exactly at the ranking of not
    thinking, and is learned from there. ``gated = False`` reads the state after the thought alone,
    as in the paper.
    """

    def __init__(self, width: int, *, gated: bool = True) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width)) if gated else None

    def forward(self, pre: Tensor, post: Tensor) -> Tensor:
        """Return the state to score with. (..., D) from two (..., D)."""
        return post if self.gate is None else pre + self.gate * (post - pre)


@dataclass
class Evidence:
    """What thoughts looked up: E found titles each."""

    item_index: Tensor
    """(..., E), which item that is; -1 for none."""
    weight: Tensor
    """(..., E), how strongly the graph holds with it, as in ``Link.weight``; 0 for none."""
    kind: Tensor
    """(..., E), the place in ``LOOKUP_KINDS`` of the question that found it."""


class EvidencePointer(nn.Module):
    """Lets what a thought looked up change the ranking: a little for all of it, much for some.

    Every kind of evidence enters twice. It *lifts* the log-odds of what it names,
    ``q(i) ~ exp(s log p_state(i) + u log popularity(i) + sum over kinds of
    lift log(1 + weight(i) / half))`` with the weights of an item that is found again summed up;
    and it takes a *share* of the probability,
    ``p = (1 - sum of shares) q + sum over kinds of share p_found`` with ``p_found`` proportional to
    ``q ** a * weight ** b`` over the titles of a kind and
    ``share = amount * sigmoid(w . h_answer + c log(sum of weights) + d)``. A lift says what
    evidence of a strength is worth wherever it turns up; a share can name the one item that is
    taken next, whatever its place before. Every kind has its own lift, half, amount, a, b, c, d and
    w. All start at nothing, so that thinking starts exactly at the ranking of not thinking.

    The sum of shares is that of pointer-generator networks (See, Liu and Manning, 2017), the lifts
    are a conditional logit (McFadden, 1974). There is a handful of weights on purpose: with a
    learned match between the states of titles and answer beside them, it fitted its few thousand
    examples and ranked worse (``docs/experiments.md``).
    """

    log_popularity: Tensor

    def __init__(self, width: int, num_items: int) -> None:
        super().__init__()
        num_kinds = len(LOOKUP_KINDS)
        self.sharpness = nn.Parameter(torch.ones(1))
        self.from_popularity = nn.Parameter(torch.zeros(1))
        self.lift = nn.Parameter(torch.zeros(num_kinds))
        self.log_half = nn.Parameter(torch.full((num_kinds,), LOG_HALF))
        self.amount = nn.Parameter(torch.zeros(num_kinds))
        self.trust = nn.Linear(width, num_kinds)
        self.trust_in_weight = nn.Parameter(torch.zeros(num_kinds))
        self.from_state = nn.Parameter(torch.ones(num_kinds))
        self.from_weight = nn.Parameter(torch.ones(num_kinds))
        nn.init.zeros_(self.trust.weight)
        nn.init.zeros_(self.trust.bias)
        self.register_buffer("log_popularity", torch.zeros(num_items))

    def count(self, num_events: Tensor) -> None:
        """Take over how many training events each item has, (N,)."""
        smoothed = num_events.float() + 0.3
        self.log_popularity.copy_((smoothed / smoothed.mean()).log())

    def know_all_kinds(self, tensors: dict[str, Tensor], *, prefix: str) -> None:
        """Widen, in place, weights that were saved before the last kinds of evidence were known."""
        num_known = tensors.get(f"{prefix}lift", self.lift).shape[0]
        for name, own in self.named_parameters():
            saved = tensors.get(prefix + name)
            if saved is not None and len(own) == len(self.lift) and len(saved) == num_known:
                tensors[prefix + name] = torch.cat([saved, own.detach()[num_known:].to(saved)])

    def few_parameters(self) -> list[nn.Parameter]:
        """Return the weights that are a handful; ``trust.weight`` is as wide as the state."""
        return [weight for weight in self.parameters() if weight.dim() == 1]

    def forward(self, scores: Tensor, post: Tensor, found: Evidence) -> Tensor:
        """Return log-probabilities (..., N), float32, from scores (..., N) of the state alone.

        Args:
            post: State after the thought. (..., D).
        """
        if found.item_index.shape[-1] == 0:  # a row must not depend on what others found
            columns = (found.item_index, -1), (found.weight, 0.0), (found.kind, 0)
            found = Evidence(*(F.pad(column, (0, 1), value=none) for column, none in columns))
        item = found.item_index.clamp(min=0)
        slot = first_places(found.item_index)  # an item that is found twice counts at its first
        is_first = slot == torch.arange(slot.shape[-1], device=slot.device)
        lifted = (self.sharpness * scores).add_(self.from_popularity * self.log_popularity)
        lifted = lifted.scatter_add_(-1, item, self.lifts(found, slot) * is_first)
        whole = lifted.logsumexp(-1, keepdim=True)
        logp_found = lifted.gather(-1, item) - whole
        total, given = self.shares(logp_found, post, found)
        rest = torch.log1p(-total)
        added = torch.zeros_like(given).scatter_add(-1, slot, given)
        gained = torch.log1p(_over_exp(added, logp_found + rest)) * is_first
        # all but the few found items change by one constant: two (..., N) in all
        return (lifted + (rest - whole)).scatter_add_(-1, item, gained)

    def lifts(self, found: Evidence, slot: Tensor) -> Tensor:
        """Return what evidence adds to the log-odds of its item, (..., E), at its first place.

        Args:
            slot: Place at which each found item is found first. (..., E).
        """
        added = torch.zeros_like(found.weight)
        for kind in range(len(LOOKUP_KINDS)):
            weight = found.weight * ((found.kind == kind) & (found.item_index >= 0))
            summed = torch.zeros_like(weight).scatter_add(-1, slot, weight)
            added = added + self.lift[kind] * torch.log1p(summed * (-self.log_half[kind]).exp())
        return added

    def shares(self, logp: Tensor, post: Tensor, found: Evidence) -> tuple[Tensor, Tensor]:
        """Return the share of all evidence (..., 1), and that of each found title (..., E).

        Args:
            logp: Log-probability of each found item, lifts included. (..., E).
        """
        is_found = found.item_index >= 0
        log_weight = found.weight.clamp(min=1e-6).log()
        kinds = torch.arange(len(LOOKUP_KINDS), device=found.kind.device)
        of_kind = is_found[..., None, :] & (
            found.kind[..., None, :] == kinds[:, None]
        )  # (.., K, E)
        liking = (
            self.from_state[:, None] * logp[..., None, :]
            + self.from_weight[:, None] * log_weight[..., None, :]
        )
        any_found = of_kind.any(-1, keepdim=True)
        pointed = liking.float().masked_fill(~of_kind, -torch.inf)
        pointed = pointed.where(any_found, 0.0).softmax(-1) * of_kind
        weight = (found.weight[..., None, :] * of_kind).sum(-1).clamp(min=1e-6).log()  # (..., K)
        trust = torch.sigmoid(self.trust(post) + self.trust_in_weight * weight)
        # within [0, 0.95], and learned straight through its ends, so that it can leave them again
        amount = self.amount + (self.bounded_amount() - self.amount).detach()
        share = (amount * trust * any_found[..., 0]).float()  # (..., K)
        return share.sum(-1, keepdim=True), (share[..., None] * pointed).sum(-2)

    def bounded_amount(self) -> Tensor:
        """Return the amounts as they count: none below 0, and at most 0.95 together."""
        amount = self.amount.clamp(min=0)
        return amount * (0.95 / amount.sum().clamp(min=0.95))


def first_places(item_index: Tensor) -> Tensor:
    """Return at which place of its row each item stands first, (..., E), int64.

    Sorted, not compared in pairs: a thought can find a thousand items.
    """
    item, order = item_index.sort(dim=-1, stable=True)
    begins = torch.ones_like(item, dtype=torch.bool)
    begins[..., 1:] = item[..., 1:] != item[..., :-1]
    begin = (torch.arange(item.shape[-1], device=item.device) * begins).cummax(-1).values
    return torch.empty_like(order).scatter_(-1, order, order.gather(-1, begin))


def _over_exp(share: Tensor, logp: Tensor) -> Tensor:
    """Return ``share / exp(logp)``, whose gradient is finite for the most unlikely items as well.

    That of a quotient divides by the square of ``exp(logp)``, which is nothing in float32 from
    -44 on.
    """
    likely = share / logp.clamp(min=-30).exp()
    return torch.where(logp >= -30, likely, share * (-logp.clamp(min=-60)).exp())

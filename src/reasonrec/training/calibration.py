"""How far to trust looked-up evidence, fitted to validation once training is over.

Training fits what evidence is worth on a few hundred to two thousand held-out events, a batch at a
time and beside everything else that it moves; a share that was driven to nothing there stays
there. Once all else stands still, a handful of numbers is left, and they are fitted to the
validation queries by themselves, like any other setting that is chosen on validation.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from reasonrec.metrics import ndcg
from reasonrec.models.ranking import DEFAULT_MASK, Mask, rank_targets
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.rec_head import LOG_HALF, Evidence, EvidencePointer
from reasonrec.records import Histories
from reasonrec.rng import stream

NUM_STEPS = 200
BATCH_SIZE = 128
LEARNING_RATE = 0.05
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of evidence, the whole to nothing: at 0 a thought ranks by its state alone."""


class RanksWithEvidence(Protocol):
    """A recommender that gathers evidence, in a thought or without one, and then ranks with it."""

    @property
    def model(self) -> ReasoningRecommender: ...

    @property
    def batch_size(self) -> int: ...

    def write(self, histories: Histories, /) -> Any: ...

    def rank_with(self, written: Any, histories: Histories, /) -> np.ndarray: ...

    def evidence_of(self, written: Any, /) -> tuple[Tensor, Tensor, Evidence]: ...


def calibrate_evidence(
    recommender: RanksWithEvidence,
    histories: Histories,
    target: np.ndarray,
    *,
    mask: Mask = DEFAULT_MASK,
) -> dict[str, list[float]]:
    """Fit what evidence is worth, in place, and return what was chosen.

    The handful of weights of the pointer is fitted by the log-likelihood of the target over the
    whole catalogue, Adam on the same greedy thoughts, once from what training learned and once from
    `_start_afresh`. What is likely need not rank well: of these two and what training learned, each
    in full and faded out by `SHARES`, the best NDCG without cut-off wins.

    Args:
        histories: Validation queries, B of them.
        target: (B,), what was taken next.
        mask: What the ranking leaves out. If the history, ask about no target that it holds.
    """
    pointer = recommender.model.pointer
    if pointer is None or not len(target):
        return {}
    rows = range(0, len(target), recommender.batch_size)
    parts = [np.arange(i, min(i + recommender.batch_size, len(target))) for i in rows]
    histories_of_parts = [histories.take(part) for part in parts]
    thoughts = [recommender.write(asked) for asked in histories_of_parts]

    def worth() -> float:
        ranks = [
            rank_targets(
                recommender.rank_with(thought, asked), target[part], histories=asked, mask=mask
            )
            for part, asked, thought in zip(parts, histories_of_parts, thoughts, strict=True)
        ]
        return float(ndcg(np.concatenate(ranks), recommender.model.num_items).mean())

    states, posts, found = _joined([recommender.evidence_of(one) for one in thoughts])
    learned = _weights(pointer)
    tried: list[tuple[float, dict[str, Tensor]]] = []
    for start in ("kept", "fitted", "afresh"):
        _restore(pointer, learned)
        if start == "afresh":
            _start_afresh(pointer, found)
        if start != "kept":
            _fit(recommender.model, pointer, states, posts, found, target)
        whole = _weights(pointer)
        for share in SHARES:
            _restore(pointer, _faded(whole, share))
            tried.append((worth(), _weights(pointer)))
    best = max(range(len(tried)), key=lambda i: tried[i][0])  # the first of equals
    _restore(pointer, tried[best][1])
    few = {id(weight) for weight in pointer.few_parameters()}
    return {name: w.tolist() for name, w in pointer.named_parameters() if id(w) in few}


@torch.no_grad()
def restore_evidence(model: ReasoningRecommender, chosen: Mapping[str, list[float]]) -> None:
    """Give a model what `calibrate_evidence` chose for another one, in place."""
    for name, values in chosen.items():
        assert model.pointer is not None
        weight = model.pointer.get_parameter(name)
        weight.copy_(torch.tensor(values, dtype=weight.dtype).view_as(weight))


def _fit(
    model: ReasoningRecommender,
    pointer: EvidencePointer,
    states: Tensor,
    posts: Tensor,
    found: Evidence,
    target: np.ndarray,
) -> None:
    """Fit the weights that are a handful, all others fixed."""
    rows_of_items = model.item_rows().detach()
    wanted = torch.tensor(target, dtype=torch.long, device=states.device)
    with _alone(pointer) as weights:
        optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)
        rng = stream(0, "calibration")
        for _ in range(NUM_STEPS):
            drawn = rng.choice(len(target), min(BATCH_SIZE, len(target)), replace=False)
            row = torch.from_numpy(drawn).to(states.device)
            with torch.no_grad():
                scores = model.score_states(states[row], rows_of_items)
            part = Evidence(found.item_index[row], found.weight[row], found.kind[row])
            logp = pointer(scores, posts[row], part)
            loss = -logp.gather(-1, wanted[row, None]).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    with torch.no_grad():
        pointer.amount.copy_(pointer.bounded_amount())


class _alone:
    """Lets the handful of a pointer be trained, and nothing else of it, for a while."""

    def __init__(self, pointer: EvidencePointer) -> None:
        self._weights = list(pointer.parameters())
        self._few = pointer.few_parameters()
        self._was = [weight.requires_grad for weight in self._weights]

    def __enter__(self) -> list[torch.nn.Parameter]:
        chosen = {id(weight) for weight in self._few}
        for weight in self._weights:
            weight.requires_grad_(id(weight) in chosen)
        return self._few

    def __exit__(self, *_: object) -> None:
        for weight, was in zip(self._weights, self._was, strict=True):
            weight.requires_grad_(was)
            weight.grad = None


@torch.no_grad()
def _start_afresh(pointer: EvidencePointer, found: Evidence) -> None:
    """A little of all that was found, so that no weight stands where its gradient is nothing.

    A kind that was never found would keep its amount from the others.
    """
    kinds = torch.arange(len(pointer.amount), device=found.kind.device)
    is_known = torch.isin(kinds, found.kind[found.item_index >= 0])
    pointer.trust.weight.zero_()
    pointer.trust.bias.zero_()
    for weight, value in (
        (pointer.sharpness, 1.0),
        (pointer.from_popularity, 0.0),
        (pointer.lift, 0.1),
        (pointer.log_half, LOG_HALF),
        (pointer.trust_in_weight, 0.0),
        (pointer.from_state, 1.0),
        (pointer.from_weight, 1.0),
    ):
        weight.fill_(value)
    pointer.amount.copy_(0.1 * is_known)


def _faded(weights: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return the weights under which evidence counts for a share of what it did."""
    faded = dict(weights)
    for name in ("from_popularity", "lift", "amount"):
        faded[name] = share * weights[name]
    faded["sharpness"] = 1 + share * (weights["sharpness"] - 1)
    return faded


def _weights(pointer: EvidencePointer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in pointer.named_parameters()}


@torch.no_grad()
def _restore(pointer: EvidencePointer, weights: dict[str, Tensor]) -> None:
    for name, weight in pointer.named_parameters():
        weight.copy_(weights[name])


def _joined(parts: list[tuple[Tensor, Tensor, Evidence]]) -> tuple[Tensor, Tensor, Evidence]:
    """Return the parts one behind the other; evidence is padded to the longest."""
    states = torch.cat([state for state, _, _ in parts])
    posts = torch.cat([post for _, post, _ in parts])
    most = max(found.item_index.shape[-1] for _, _, found in parts)

    def column(name: str, filling: float) -> Tensor:
        columns = [getattr(found, name) for _, _, found in parts]
        return torch.cat([pad(one, (0, most - one.shape[-1]), value=filling) for one in columns])

    return states, posts, Evidence(column("item_index", -1), column("weight", 0), column("kind", 0))

"""Learns when to think: gains measured on training events, a threshold chosen on validation."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import log_softmax

from reasonrec.metrics import ndcg
from reasonrec.models.gate import GateChoice, ThinkingGate, choose_threshold, fit_gain
from reasonrec.models.generation import read_prompts
from reasonrec.models.ranking import distinct_events, rank_targets
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender
from reasonrec.records import Histories
from reasonrec.training.config import GateConfig


@dataclass(frozen=True)
class Measured:
    """Q queries, asked with and without a thought."""

    states: np.ndarray
    """(Q, D), float32, before the thought."""
    think: dict[str, np.ndarray]
    """``log_prob`` and ``ndcg``, (Q,) each."""
    silent: dict[str, np.ndarray]
    num_tokens: np.ndarray
    """(Q,), of each thought."""


def learn_gate(
    thinking: ThinkingRecommender,
    events: tuple[Histories, np.ndarray],
    queries: tuple[Histories, np.ndarray],
    config: GateConfig,
) -> tuple[ThinkingGate, GateChoice]:
    """Return a gate, and what it does on the queries that its threshold was chosen on.

    Args:
        events: Histories and targets (K,) that the gain is learned from: training events.
        queries: Histories and targets (Q,) of validation.
    """
    learned_from = measure_gains(thinking, *events)
    gain = learned_from.think[config.gain] - learned_from.silent[config.gain]
    gate = fit_gain(learned_from.states, gain)
    asked = measure_gains(thinking, *queries)
    choice = choose_threshold(
        gate.predict(asked.states), asked.think["ndcg"], asked.silent["ndcg"], asked.num_tokens,
        max_mean_tokens=config.max_mean_tokens,
    )  # fmt: skip
    return replace(gate, threshold=choice.threshold), choice


def measure_gains(
    thinking: ThinkingRecommender, histories: Histories, targets: np.ndarray
) -> Measured:
    """Return what every query gets from a thought, and what without one."""
    model = thinking.model
    silent = NoThinkRecommender(model)
    states = []
    for start in range(0, len(targets), silent.batch_size):
        rows = np.arange(start, min(start + silent.batch_size, len(targets)))
        with torch.no_grad():
            prompts = model.writer.prompts(histories.take(rows))
            states.append(read_prompts(model, prompts).cpu().numpy())
    thought = thinking.score(histories)
    assert thought.num_tokens is not None
    return Measured(
        np.concatenate(states),
        _values(thought.scores, histories, targets),
        _values(silent.score(histories).scores, histories, targets),
        thought.num_tokens,
    )


def _values(scores: np.ndarray, histories: Histories, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Return the target's log-probability among what competes with it, and its NDCG."""
    rank = rank_targets(scores, targets, histories=histories, mask="history-except-target")
    competing = scores.copy()
    row, taken = distinct_events(histories, scores.shape[1])
    others = taken != targets[row]
    competing[row[others], taken[others]] = -np.inf
    log_prob = log_softmax(competing, axis=1)[np.arange(len(targets)), targets]
    return {"log_prob": log_prob.astype(np.float64), "ndcg": ndcg(rank, scores.shape[1])}

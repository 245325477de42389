"""Learns when to think: gains measured on training events, a threshold chosen on validation."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import log_softmax

from reasonrec.data.dataset import InteractionLog
from reasonrec.metrics import ndcg
from reasonrec.models.gate import GateChoice, ThinkingGate, choose_threshold, fit_gain
from reasonrec.models.generation import read_prompts
from reasonrec.models.ranking import DEFAULT_MASK, Mask, distinct_events, rank_targets
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender
from reasonrec.records import Histories
from reasonrec.rng import stream_seed
from reasonrec.training.config import GateConfig, RecpoConfig
from reasonrec.training.rl.recpo import rewards_of, roll_out

_PROMPTS_AT_ONCE = 32


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
    unknowing: ThinkingRecommender,
    log: InteractionLog,
    events: np.ndarray,
    queries: tuple[Histories, np.ndarray],
    config: GateConfig,
    recpo: RecpoConfig,
    *,
    seed: int,
    repeats: bool = False,
) -> tuple[ThinkingGate, GateChoice]:
    """Return a gate, and what it does on the queries that its threshold was chosen on.

    Args:
        unknowing: The same model, whose evidence learned nothing from ``events``: one that did
            remembers them, and a thought seems to gain what it never gains elsewhere.
        log: Training events.
        events: (K,), places in the log of what the gain is learned from.
        queries: Histories and targets (Q,) of validation.
        recpo: How rollouts are written and rewarded, where the gain is learned from them.
        repeats: Whether items of the history are ranked, too.
    """
    histories = log.histories_before(events)
    if config.source == "rollouts":
        states = states_before(unknowing, histories)
        gain = rollout_gains(unknowing, log, events, recpo, seed=seed, repeats=repeats)
    else:
        learned_from = measure_gains(unknowing, histories, log.item_index[events], repeats=repeats)
        states = learned_from.states
        gain = learned_from.think[config.gain] - learned_from.silent[config.gain]
    gate = fit_gain(states, gain)
    asked = measure_gains(thinking, *queries, repeats=repeats)
    choice = choose_threshold(
        gate.predict(asked.states), asked.think["ndcg"], asked.silent["ndcg"], asked.num_tokens,
        max_mean_tokens=config.max_mean_tokens,
    )  # fmt: skip
    return replace(gate, threshold=choice.threshold), choice


def rollout_gains(
    thinking: ThinkingRecommender,
    log: InteractionLog,
    events: np.ndarray,
    recpo: RecpoConfig,
    *,
    seed: int,
    repeats: bool = False,
) -> np.ndarray:
    """Return the mean reward of sampled thoughts less that of the empty one of their group, (K,).

    Args:
        recpo: Of each group one is the empty thought, whatever ``empty_rollout`` says; thoughts may
            be as long as the model is served with.
    """
    changed = {"empty_rollout": True, "sentence_weight": 0.0, "max_tokens": thinking.max_tokens}
    recpo = recpo.model_copy(update=changed)
    gains = []
    for start in range(0, len(events), _PROMPTS_AT_ONCE):
        rollouts = roll_out(
            thinking.model, log, thinking.verbaliser, events[start : start + _PROMPTS_AT_ONCE],
            recpo, generator_seed=stream_seed(seed, "gate-rollout", start), repeats=repeats,
        )  # fmt: skip
        with torch.no_grad():
            scores = thinking.model(rollouts.batch, with_tokens=False).think_logits
        rewards = rewards_of(rollouts, scores, recpo).double()
        gains.append((rewards[:, :-1].mean(1) - rewards[:, -1]).cpu().numpy())
    return np.concatenate(gains)


def states_before(thinking: ThinkingRecommender, histories: Histories) -> np.ndarray:
    """Return the states before a thought, (Q, D), float32."""
    model, size = thinking.model, thinking.batch_size
    states = []
    for start in range(0, len(histories), size):
        rows = np.arange(start, min(start + size, len(histories)))
        with torch.no_grad():
            prompts = model.writer.prompts(histories.take(rows))
            states.append(read_prompts(model, prompts).cpu().numpy())
    return np.concatenate(states)


def measure_gains(
    thinking: ThinkingRecommender,
    histories: Histories,
    targets: np.ndarray,
    *,
    repeats: bool = False,
) -> Measured:
    """Return what every query gets from a thought, and what without one."""
    silent = NoThinkRecommender(thinking.model).score(histories)
    thought = thinking.score(histories)
    assert thought.num_tokens is not None
    return Measured(
        states_before(thinking, histories),
        _values(thought.scores, histories, targets, repeats=repeats),
        _values(silent.scores, histories, targets, repeats=repeats),
        thought.num_tokens,
    )


def _values(
    scores: np.ndarray, histories: Histories, targets: np.ndarray, *, repeats: bool
) -> dict[str, np.ndarray]:
    """Return the target's log-probability among what competes with it, and its NDCG."""
    mask: Mask = "none" if repeats else DEFAULT_MASK
    rank = rank_targets(scores, targets, histories=histories, mask=mask)
    competing = scores.copy()
    if not repeats:
        row, taken = distinct_events(histories, scores.shape[1])
        others = taken != targets[row]
        competing[row[others], taken[others]] = -np.inf
    log_prob = log_softmax(competing, axis=1)[np.arange(len(targets)), targets]
    return {"log_prob": log_prob.astype(np.float64), "ndcg": ndcg(rank, scores.shape[1])}

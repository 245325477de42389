"""Whether a thought is worth its tokens, said before it is written.

The state before the thought predicts, by ridge regression, what the thought would gain; where the
prediction is above a threshold the model thinks. The threshold is chosen on validation: the best
NDCG that stays within a budget of tokens, and never one below that of not thinking at all.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from reasonrec.errors import CheckpointError

FILE = "gate.safetensors"
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths of the penalty that are tried, for each example and standardised column."""


@dataclass(frozen=True)
class ThinkingGate:
    """A linear prediction of the gain of thinking, and where thinking begins."""

    weight: np.ndarray
    """(D,), float64."""
    bias: float
    threshold: float = -np.inf
    """Thoughts are written where the predicted gain is above it; infinity writes none."""

    def predict(self, states: np.ndarray) -> np.ndarray:
        """Return the predicted gain (B,), float64, from states before the thought (B, D)."""
        return states.astype(np.float64) @ self.weight + self.bias

    def thinks(self, states: np.ndarray) -> np.ndarray:
        """Return who is to be thought about, (B,), bool."""
        return self.predict(states) > self.threshold

    def save(self, folder: Path) -> None:
        """Write the gate to ``gate.safetensors`` in a folder."""
        tensors = {
            "weight": self.weight,
            "bias": np.array([self.bias]),
            "threshold": np.array([self.threshold]),
        }
        save_file(tensors, Path(folder) / FILE)

    @classmethod
    def load(cls, folder: Path) -> "ThinkingGate":
        """Return the gate that `save` wrote.

        Raises:
            CheckpointError: The file is missing or damaged.
        """
        path = Path(folder) / FILE
        try:
            tensors = load_file(path)
            return cls(tensors["weight"], float(tensors["bias"][0]), float(tensors["threshold"][0]))
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} must be a gate of `reasonrec train gate`: {error}"
            ) from None


@dataclass(frozen=True)
class GateChoice:
    """What a threshold does on the queries that it was chosen on."""

    threshold: float
    share_thinking: float
    value: float
    """Mean value of the gated ranking."""
    silent_value: float
    """Of never thinking."""
    think_value: float
    """Of always thinking."""
    tokens: float
    """Mean tokens a query, 0 for those that are not thought about."""
    think_tokens: float
    """Of always thinking."""


def fit_gain(states: np.ndarray, gains: np.ndarray) -> ThinkingGate:
    """Return a gate that predicts gains (K,) from states (K, D), without a threshold yet.

    Ridge regression in closed form on standardised columns, its strength the one of `RIDGES` with
    the least leave-one-out error.

    Raises:
        ValueError: There are fewer than two examples, or lengths differ.
    """
    if len(states) != len(gains) or len(gains) < 2:
        raise ValueError(
            f"a gate needs two or more states, each with its gain; got {len(states)} states and "
            f"{len(gains)} gains"
        )
    states, gains = states.astype(np.float64), gains.astype(np.float64)
    mean, spread = states.mean(0), states.std(0)
    spread[spread < 1e-12] = np.inf  # a column that never varies tells nothing
    X = (states - mean) / spread  # (K, D)
    y = gains - gains.mean()
    U, S, Vt = np.linalg.svd(X, full_matrices=False)
    along = U.T @ y
    errors, weights = [], []
    for ridge in RIDGES:
        shrunk = S**2 / (S**2 + ridge * len(y))
        leverage = (U**2) @ shrunk + 1 / len(y)  # the mean is fitted too
        residual = y - U @ (shrunk * along)
        errors.append(np.mean((residual / np.clip(1 - leverage, 1e-9, None)) ** 2))
        weights.append(Vt.T @ (S / (S**2 + ridge * len(y)) * along))
    weight = weights[int(np.argmin(errors))] / spread
    return ThinkingGate(weight, float(gains.mean() - mean @ weight))


def choose_threshold(
    predicted: np.ndarray,
    think: np.ndarray,
    silent: np.ndarray,
    num_tokens: np.ndarray,
    *,
    max_mean_tokens: float | None = None,
) -> GateChoice:
    """Return the threshold with the best mean value whose mean tokens stay within the budget.

    Never thinking is one of the choices, so the value is never below that of not thinking, on these
    queries. Of equal values the one with fewer thoughts wins. Thresholds lie half-way between
    neighbouring predictions; equal predictions are thought about together.

    Args:
        predicted: Predicted gain. (Q,).
        think, silent: Value with and without a thought, as NDCG. (Q,).
        num_tokens: Of each thought. (Q,).
        max_mean_tokens: Budget, a mean over all Q. None for none.

    Raises:
        ValueError: There are no queries.
    """
    if not len(predicted):
        raise ValueError("a threshold needs at least one query to be chosen on; got none")
    order = np.argsort(-predicted, kind="stable")
    ranked = predicted[order]
    gains = np.concatenate([[0.0], (think - silent)[order].cumsum()])
    tokens = np.concatenate([[0.0], num_tokens[order].cumsum()]) / len(predicted)
    allowed = np.concatenate([[True], ranked[:-1] > ranked[1:], [True]])
    if max_mean_tokens is not None:
        allowed &= tokens <= max_mean_tokens
    # sums of the same terms may differ by rounding: a gain of nothing must not buy a thought
    count = int(np.argmax(np.where(allowed, np.round(gains, 12), -np.inf)))
    if count == 0:
        threshold = np.inf
    elif count == len(ranked):
        threshold = -np.inf
    else:
        threshold = float((ranked[count - 1] + ranked[count]) / 2)
    return GateChoice(
        threshold=threshold,
        share_thinking=count / len(predicted),
        value=float(silent.mean() + gains[count] / len(predicted)),
        silent_value=float(silent.mean()),
        think_value=float(think.mean()),
        tokens=float(tokens[count]),
        think_tokens=float(tokens[-1]),
    )

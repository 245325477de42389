"""How much each expert of a blend counts: a conditional logit over validation's candidates.

Experts agree with each other: what chains lead to, a model without thoughts likes too, and many
weights rank alike. Likelihood alone may then take all weight from what a reason is made of, so that
a ranking rests on nothing that is shown. Held experts keep the weight that they earn by themselves.
"""

from collections.abc import Collection, Mapping

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax


def held_weights(
    said: Mapping[str, np.ndarray],
    candidates: np.ndarray,
    *,
    ridge: float,
    held: Collection[str],
    rivals: Collection[str],
) -> dict[str, float]:
    """Return the likeliest weights of which the ``held`` ones are no less than without ``rivals``.

    Arguments beside these two are those of `likeliest_weights`.
    """
    if not held:
        return likeliest_weights(said, candidates, ridge=ridge)
    few = {name: values for name, values in said.items() if name not in rivals}
    alone = likeliest_weights(few, candidates, ridge=ridge)
    least = {name: weight for name, weight in alone.items() if name in held}
    return likeliest_weights(said, candidates, ridge=ridge, least=least)


def likeliest_weights(
    said: Mapping[str, np.ndarray],
    candidates: np.ndarray,
    *,
    ridge: float,
    may_be_negative: Collection[str] = ("events",),
    least: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return the weights of the experts under which the targets are likeliest.

    Weights are at least 0, or what ``least`` names, but for those in ``may_be_negative``: all
    experts count popular items, too, which may be too much.

    Args:
        said: What each expert says of the candidates. (Q, C) each, 0 at padding.
        candidates: (Q, C), -1 pads shorter rows. Column 0 is the target.
        ridge: What the squares of the weights cost, beside the log-loss of one query.
    """
    columns = np.stack([*said.values()], axis=-1)
    padding = np.where(candidates >= 0, 0.0, -np.inf)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logp = log_softmax(columns @ weights + padding, axis=1)
        expected = (np.exp(logp)[..., None] * columns).sum(axis=1)
        gradient = (expected - columns[:, 0]).mean(axis=0) + 2 * ridge * weights
        return float(-logp[:, 0].mean() + ridge * (weights**2).sum()), gradient

    lowest = dict.fromkeys(said, 0.0) | dict.fromkeys(may_be_negative) | dict(least or {})
    bounds = [(lowest[name], None) for name in said]
    start = np.array([float(name == "answers") for name in said])
    found = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B")
    return {name: float(weight) for name, weight in zip(said, found.x, strict=True)}

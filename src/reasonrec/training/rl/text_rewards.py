"""Rewards of written answers, from labels alone (R2Rec). Plain functions of one rollout.

A reward of one's own is any function of a `Rollout` that gives a float; `methods.r2rec.train` takes
a list of them with their weights. `pairwise_order` looks at two groups at once and stands apart.

Reconstruction: the paper's formula is not public.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from reasonrec.traces.questions import Question


@dataclass(frozen=True)
class Rollout:
    """One thought about one question, with the answer that was drawn behind it."""

    question: Question
    """With its label, unless the question is the untouched half of a pair."""
    thought: str
    answer: str | None
    """One of ``question.answers``; None where what was written is none of them."""
    is_truncated: bool
    """Whether the thought used up its tokens and was cut."""
    probabilities: np.ndarray
    """(A,), of every answer after this thought, in the order of ``question.answers``."""

    @property
    def expected_rating(self) -> float:
        """The mean rating under the probabilities."""
        return float(self.probabilities @ np.array(self.question.scale))

    @property
    def rank_of_label(self) -> float:
        """1 + answers strictly likelier than the label + half of the ties."""
        own = self.probabilities[self.question.answers.index(self.question.label or "")]
        ties = np.count_nonzero(self.probabilities == own) - 1
        return 1.0 + float(np.count_nonzero(self.probabilities > own)) + 0.5 * ties


Reward = Callable[[Rollout], float]


def well_formed(rollout: Rollout) -> float:
    """Return 1 for a thought that ended by itself and an answer that exists, else 0."""
    return float(rollout.answer is not None and not rollout.is_truncated)


def rating_closeness(rollout: Rollout) -> float:
    """Return 1 - |answer - label| / (highest - lowest rating); 0 without an answer or a label."""
    label, scale = rollout.question.label, rollout.question.scale
    if rollout.answer is None or label is None:
        return 0.0
    return 1.0 - abs(float(rollout.answer) - float(label)) / max(scale[-1] - scale[0], 1e-9)


def exact_hit(rollout: Rollout) -> float:
    """Return 1 if the answer is the label, else 0."""
    label = rollout.question.label
    return float(label is not None and rollout.answer == label)


def first_place(rollout: Rollout) -> float:
    """Return 1 if no answer is as likely as the label, else 0: HR@1 of a listwise ranking."""
    return float(rollout.question.label is not None and rollout.rank_of_label == 1.0)


def reciprocal_rank(rollout: Rollout) -> float:
    """Return 1 / rank of the label among all answers by probability; 0 without a label."""
    return 1.0 / rollout.rank_of_label if rollout.question.label is not None else 0.0


def pairwise_order(
    taken: Sequence[Rollout], untouched: Sequence[Rollout]
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each rollout how often its pair is in the right order: taken above untouched.

    Each rollout about the item that a user took is compared with every rollout about an item that
    the same user touches nowhere, by expected rating; a tie counts half.

    Returns:
        (G,) for each side, in [0, 1].
    """
    above = np.array([rollout.expected_rating for rollout in taken])[:, None]
    below = np.array([rollout.expected_rating for rollout in untouched])[None, :]
    right = (above > below) + 0.5 * (above == below)
    return right.mean(1), right.mean(0)

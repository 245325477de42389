"""What ``reasonrec evaluate`` can be told."""

from typing import Any, Literal, Self

from pydantic import (
    NonNegativeInt,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from reasonrec.config import Config
from reasonrec.data.dataset import Part
from reasonrec.evaluation.candidates import parse_protocol
from reasonrec.evaluation.protocol import PROTOCOLS
from reasonrec.models.ranking import DEFAULT_MASK, Mask

TrainedOn = Literal["train", "train+valid"]


class EvaluateConfig(Config):
    """How methods are measured."""

    part: Part = "test"
    """Queries to answer. Choose on valid, report on test."""
    protocols: tuple[str, ...] = PROTOCOLS
    """What a target competes with: full (the catalogue), candidates-C (C - 1 random others) or
    candidates-C-popular (others drawn by popularity)."""
    train_on: TrainedOn = "train"
    """Rows that baselines are fitted on: train, or train+valid for a table of papers that do so.
    Settings, and the epochs of peers, are chosen on train first; rows say which it was."""
    mask: Mask = DEFAULT_MASK
    """What the full protocol keeps out of the ranking."""
    num_queries: PositiveInt | None = None
    """Answer a sample of this many queries, the same for all methods. All if not given."""
    batch_size: PositiveInt = 256
    """Histories scored at once. Changes time and memory only."""
    candidate_seed: NonNegativeInt = 0
    """Draws the negatives, for all methods alike."""
    num_timed_users: NonNegativeInt = 30
    """Users asked one at a time to measure latency."""
    trajectory: bool = False
    """Whether the target's rank after every sentence of each thought is measured too, under the
    mask, for think-sft and think-recpo, which then think twice; other methods have none."""
    tune: NonNegativeInt = 0
    """Settings of each floor method tried on validation first; 0 keeps the defaults."""

    @model_validator(mode="after")
    def check_protocols(self) -> Self:
        for word in self.protocols:
            if word != "full":
                parse_protocol(word)
        if len(set(self.protocols)) != len(self.protocols) or not self.protocols:
            raise ValueError("protocols must name at least one, and none twice")
        return self

    @model_validator(mode="after")
    def check_is_not_asked_what_was_learned(self) -> Self:
        if self.train_on == "train+valid" and self.part == "valid":
            raise ValueError("train_on must be train where part is valid: its targets are learned")
        return self

    @model_serializer(mode="wrap")
    def leave_train_unsaid(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # a folder that was finished before there was a choice is then still the same run
        return {k: v for k, v in write(self).items() if (k, v) != ("train_on", "train")}

"""What reinforcement learning asks of whoever writes its rollouts.

An engine writes with the weights that it was last handed by `sync`, token ids in, token ids out.
The training pass computes probabilities of its own, and how far those of the engine are from them
is logged after every sync (``rl/sampler_mismatch``), which tells when an engine writes with other
weights than it was handed. Both are then of the policy that the engine names (``logp_of``): our
sampler that which drew, vLLM the plain softmax. What it says is not trained on, but where it writes
ahead (`engines.ahead`): by then its weights are gone, a copy for that comparison aside, and ratios
are against what it said, or where it names another policy than is trained, against what the copy
gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from reasonrec.models.answers import Recitals, Written
from reasonrec.models.generation import LookUp, Part
from reasonrec.models.language_head import PLAIN
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.records import TokenPolicy
from reasonrec.traces.prompts import Prompts


@dataclass
class Thoughts:
    """R thoughts, G for each of P prompts, prompt by prompt: `Generated` without its states, which
    the training pass reads for itself."""

    token_ids: Tensor
    """(R, S), from the opening to the end of the answer marker, right-padded."""
    lengths: Tensor
    """(R,)."""
    is_written: Tensor
    """(R, S), True for tokens drawn from the language head; inserted and forced ones are False."""
    token_logp: Tensor
    """(R, S), float32, the engine's own log-probability of each written token under ``logp_of``; 0
    elsewhere."""
    named_at: Tensor
    """(R, E), where in a thought each looked-up item stands, as in `Generated`."""
    named_item: Tensor
    """(R, E), items that were looked up; -1 for none."""
    named_weight: Tensor
    """(R, E), float32, how strongly the graph holds with each; 0 for none."""
    named_kind: Tensor
    """(R, E), the place in ``LOOKUP_KINDS`` of the question that found each."""
    is_truncated: Tensor
    """(R,), True where the marker had to be forced."""
    logp_of: TokenPolicy = field(default=PLAIN, kw_only=True)
    """Which policy ``token_logp`` is of."""


class RolloutEngine(Protocol):
    """Writes rollouts with the weights of the last `sync`."""

    def sync(self, model: ReasoningRecommender) -> None:
        """Take over the model's weights as they are now. Never changes the model."""
        ...

    def think(
        self,
        prompts: Prompts,
        look_up: LookUp | None,
        *,
        max_tokens: int,
        group_size: int,
        temperature: float,
        top_k: int,
        seed: int,
        part: Part | None = None,
    ) -> Thoughts:
        """Return ``group_size`` thoughts for every prompt (R²ec); arguments as in
        `models.generation.think`.

        Args:
            seed: The same seed, prompts and weights give the same thoughts.
            part: Which rows of a larger batch these are, where several processes share it.
        """
        ...

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        group_size: int,
        temperature: float,
        max_answer_tokens: int,
        seed: int,
        recitals: Sequence[Recitals] | None = None,
    ) -> Written:
        """Return ``group_size`` thoughts and answers for every prompt (R2Rec); arguments as in
        `models.answers.write`."""
        ...

    def close(self) -> None:
        """Give back what the engine holds; it is not used again."""
        ...

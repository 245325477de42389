"""Our own sampler as an engine: it reads the very weights that are trained, so syncing is free."""

from collections.abc import Sequence

import torch

from reasonrec.models.answers import AnsweringModel, Recitals, Written, write
from reasonrec.models.generation import LookUp, Part, think
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.traces.prompts import Prompts
from reasonrec.training.rl.engines.contract import Thoughts


class Sampler:
    """Writes in this process, with the model itself: exact log-probabilities, any policy."""

    def __init__(self, model: ReasoningRecommender | None = None) -> None:
        self._model = model

    def sync(self, model: ReasoningRecommender) -> None:
        """Remember the model; its weights are read where they are."""
        self._model = model

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
        """Return thoughts of `models.generation.think`."""
        model = self._synced()
        written = think(
            model, prompts, look_up, max_tokens=max_tokens, group_size=group_size,
            temperature=temperature, top_k=top_k, generator=_seeded(model, seed), part=part,
        )  # fmt: skip
        return Thoughts(
            written.token_ids, written.lengths, written.is_written, written.token_logp,
            written.named_at, written.named_item, written.named_weight, written.named_kind,
            written.is_truncated, logp_of=written.logp_of,
        )  # fmt: skip

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
        """Return thoughts and answers of `models.answers.write`."""
        model = self._synced()
        assert isinstance(model, AnsweringModel)
        return write(
            model, prompts, max_tokens=max_tokens, group_size=group_size, temperature=temperature,
            generator=_seeded(model, seed), max_answer_tokens=max_answer_tokens,
            recitals=recitals,
        )  # fmt: skip

    def close(self) -> None:
        """Forget the model."""
        self._model = None

    def _synced(self) -> ReasoningRecommender:
        if self._model is None:
            raise ValueError("an engine writes with weights that it was handed; call sync first")
        return self._model


def _seeded(model: ReasoningRecommender, seed: int) -> torch.Generator:
    generator = torch.Generator(model.device)
    generator.manual_seed(seed)
    return generator

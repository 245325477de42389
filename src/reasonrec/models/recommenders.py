"""The trained model as a recommender: without a thought, with one, with one where it pays, and with
its evidence alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from reasonrec.models.branches import Batch
from reasonrec.models.gate import ThinkingGate
from reasonrec.models.generation import Generated, read_prompts, think
from reasonrec.models.look_ups import look_up_for
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.rec_head import Evidence
from reasonrec.records import Histories, Lookup, Scored
from reasonrec.rng import stream_seed
from reasonrec.traces.found import evidence_columns
from reasonrec.traces.verbaliser import Verbaliser


@dataclass(frozen=True)
class GivenThought:
    """A thought to rank with, whoever wrote it."""

    tokens: tuple[int, ...]
    """From ``<think>`` to the end of the answer marker."""
    named_at: tuple[int, ...] = ()
    """Where in ``tokens`` the title of each looked-up item ends."""
    named_item: tuple[int, ...] = ()
    """Which items those are."""
    named_weight: tuple[float, ...] = ()
    """How strongly the graph holds with each."""
    named_kind: tuple[int, ...] = ()
    """The place in ``LOOKUP_KINDS`` of the question that found each."""


@dataclass(frozen=True)
class NoThinkRecommender:
    """Ranks with the state after the prompt; meets `reasonrec.baselines.contract.Recommender`."""

    model: ReasoningRecommender
    name: str = "no-think"
    batch_size: int = 256

    def score(self, histories: Histories) -> Scored:
        self.model.eval()
        scores = np.empty((len(histories), self.model.num_items), np.float32)
        for rows in _batches(len(histories), self.batch_size):
            prompts = self.model.writer.prompts(histories.take(rows))
            with torch.no_grad():
                scores[rows] = (
                    self.model.score_states(read_prompts(self.model, prompts)).cpu().numpy()
                )
        return Scored(scores)


@dataclass(frozen=True)
class ThinkingRecommender:
    """Writes a thought, looking things up in the graph, then ranks with the state it reached.

    Meets `reasonrec.baselines.contract.Recommender`.
    """

    model: ReasoningRecommender
    verbaliser: Verbaliser
    """Holds the graph that thoughts look things up in."""
    name: str = "think"
    max_tokens: int = 48
    temperature: float = 0.0
    """0 writes the likeliest thought; above 0 samples."""
    num_samples: int = 1
    """Thoughts per user whose softmax rankings are averaged; the first is shown."""
    seed: int = 0
    batch_size: int = 128

    def score(self, histories: Histories) -> Scored:
        scores = np.empty((len(histories), self.model.num_items), np.float32)
        thoughts: list[str] = []
        num_tokens: list[int] = []
        evidence: list[tuple[Lookup, ...]] = []
        for rows in _batches(len(histories), self.batch_size):
            part = histories.take(rows)
            written = self.write(part)
            scores[rows] = self.rank_with(written, part)
            first = range(0, len(written.evidence), self.num_samples)
            thoughts += [self.text(written, r) for r in first]
            lengths = written.lengths.reshape(len(part), -1).sum(1)
            num_tokens += lengths.tolist()
            evidence += [tuple(written.evidence[r]) for r in first]
        return Scored(scores, tuple(thoughts), np.array(num_tokens, np.int64), tuple(evidence))

    def write(self, histories: Histories) -> Generated:
        """Return ``num_samples`` thoughts for every history."""
        self.model.eval()
        prompts = self.model.writer.prompts(histories)
        generator = torch.Generator(self.model.device)
        generator.manual_seed(stream_seed(self.seed, "think"))
        return think(
            self.model,
            prompts,
            look_up_for(self.verbaliser, histories, self.model),
            max_tokens=self.max_tokens,
            group_size=self.num_samples,
            temperature=self.temperature,
            generator=generator,
        )

    @torch.no_grad()
    def evidence_of(self, written: Generated) -> tuple[torch.Tensor, torch.Tensor, Evidence]:
        """Return the states that thoughts are scored with, those after them, and what was found."""
        found = Evidence(written.named_item, written.named_weight, written.named_kind)
        post = written.post_states
        return self.model.readout(written.pre_states, post), post, found

    def text(self, written: Generated, row: int) -> str:
        """Return one thought without its markers."""
        tokens = written.token_ids[row, : int(written.lengths[row])].tolist()
        return self.model.writer.thought_text(tokens)

    @torch.no_grad()
    def rank_with(
        self, written: Generated, histories: Histories, *, first: int | None = None
    ) -> np.ndarray:
        """Return the scores (B, N) that B histories' thoughts lead to; samples are averaged.

        Args:
            first: How many of each history's samples count; None for all.
        """
        found = Evidence(written.named_item, written.named_weight, written.named_kind)
        scores = self.model.score_thoughts(written.pre_states, written.post_states, found)
        if self.num_samples > 1:
            grouped = scores.log_softmax(-1).reshape(-1, self.num_samples, scores.shape[-1])
            grouped = grouped[:, :first]
            scores = grouped.logsumexp(1) - np.log(grouped.shape[1])
        pre = written.pre_states[:: self.num_samples]
        return self.model.beside_history(scores, pre, histories).cpu().numpy()


@dataclass(frozen=True)
class GatedThinkingRecommender:
    """Thinks where a gate says that it pays, and ranks without a thought elsewhere.

    Meets `reasonrec.baselines.contract.Recommender`.
    """

    thinking: ThinkingRecommender
    gate: ThinkingGate
    batch_size: int = 128

    @property
    def name(self) -> str:
        return f"{self.thinking.name}/gated"

    @property
    def model(self) -> ReasoningRecommender:
        return self.thinking.model

    def score(self, histories: Histories) -> Scored:
        self.model.eval()
        scores = np.empty((len(histories), self.model.num_items), np.float32)
        thoughts = [""] * len(histories)
        num_tokens = np.zeros(len(histories), np.int64)
        evidence: list[tuple[Lookup, ...]] = [()] * len(histories)
        for rows in _batches(len(histories), self.batch_size):
            part = histories.take(rows)
            with torch.no_grad():
                states = read_prompts(self.model, self.model.writer.prompts(part))
                scores[rows] = self.model.score_states(states).cpu().numpy()
            chosen = rows[self.gate.thinks(states.cpu().numpy())]
            if not len(chosen):
                continue
            thought = self.thinking.score(histories.take(chosen))
            assert thought.thoughts is not None and thought.num_tokens is not None
            assert thought.evidence is not None
            scores[chosen], num_tokens[chosen] = thought.scores, thought.num_tokens
            for row, text, found in zip(
                chosen.tolist(), thought.thoughts, thought.evidence, strict=True
            ):
                thoughts[row], evidence[row] = text, found
        return Scored(scores, tuple(thoughts), num_tokens, tuple(evidence))


@dataclass(frozen=True)
class Gathered:
    """What the graph holds about the newest items of B histories, with no thought written."""

    pre_states: torch.Tensor
    """(B, D), after the history."""
    post_states: torch.Tensor
    """(B, D), at the end of the prompt: the same, unless the prompt holds the evidence."""
    named_item: torch.Tensor
    """(B, E), found items; -1 for none."""
    named_weight: torch.Tensor
    """(B, E), float32, how strongly the graph holds with each; 0 for none."""
    named_kind: torch.Tensor
    """(B, E), the place in ``LOOKUP_KINDS`` of the question that found each."""
    evidence: list[list[Lookup]]


@dataclass(frozen=True)
class EvidenceRecommender:
    """Ranks with the evidence that thoughts look up, and with no thought: their control.

    A fixed rule, people alike and newest items, stands for the questions of a thought. What is
    found takes a share of the probability as it does after a thought, and the state is that after
    the prompt. Meets `reasonrec.baselines.contract.Recommender`.
    """

    model: ReasoningRecommender
    verbaliser: Verbaliser
    name: str = "evidence-no-think"
    in_prompt: bool = False
    """Whether the prompt also holds the evidence as text, behind the history, in the words of a
    thought. The states after history and evidence are then mixed as before and after a thought."""
    batch_size: int = 256

    def score(self, histories: Histories) -> Scored:
        scores = np.empty((len(histories), self.model.num_items), np.float32)
        evidence: list[tuple[Lookup, ...]] = []
        for rows in _batches(len(histories), self.batch_size):
            part = histories.take(rows)
            gathered = self.write(part)
            scores[rows] = self.rank_with(gathered, part)
            evidence += [tuple(found) for found in gathered.evidence]
        return Scored(scores, evidence=tuple(evidence))

    @torch.no_grad()
    def write(self, histories: Histories) -> Gathered:
        """Return the states after the prompts and what is found; nothing is written."""
        self.model.eval()
        evidence = self.verbaliser.gather(histories)
        if self.in_prompt:
            batch = _one_branch_each(self.model, histories, self.verbaliser.as_prompt(evidence))
            outputs = self.model(batch.to(self.model.device), with_scores=False)
            pre, post = outputs.pre_states[:, 0], outputs.post_states[:, 0]
        else:
            pre = post = read_prompts(self.model, self.model.writer.prompts(histories))
        item, weight, kind = (
            torch.from_numpy(x).to(pre.device) for x in evidence_columns(evidence)
        )
        return Gathered(pre, post, item, weight, kind, evidence)

    @torch.no_grad()
    def evidence_of(self, gathered: Gathered) -> tuple[torch.Tensor, torch.Tensor, Evidence]:
        """Return the states that are scored, those at the ends of the prompts, and the find."""
        pre, post = gathered.pre_states, gathered.post_states
        found = Evidence(gathered.named_item, gathered.named_weight, gathered.named_kind)
        return self.model.readout(pre, post), post, found

    @torch.no_grad()
    def rank_with(self, gathered: Gathered, histories: Histories) -> np.ndarray:
        """Return the scores (B, N) that the evidence leads to."""
        found = Evidence(gathered.named_item, gathered.named_weight, gathered.named_kind)
        scores = self.model.score_thoughts(gathered.pre_states, gathered.post_states, found)
        return self.model.beside_history(scores, gathered.pre_states, histories).cpu().numpy()


def score_given(
    model: ReasoningRecommender,
    histories: Histories,
    thoughts: Sequence[GivenThought],
    *,
    batch_size: int = 64,
) -> np.ndarray:
    """Return the scores that the model reaches after thoughts that are handed to it.

    Args:
        thoughts: One for every history. A model's own thought gets the scores that it had when it
            was written.

    Returns:
        (B, N), float32.

    Raises:
        ValueError: There is not one thought for every history.
    """
    if len(thoughts) != len(histories):
        raise ValueError(
            f"there must be one thought for each of the {len(histories)} histories; "
            f"got {len(thoughts)}"
        )
    model.eval()
    scores = np.empty((len(histories), model.num_items), np.float32)
    for rows in _batches(len(histories), batch_size):
        part = [thoughts[r] for r in rows]
        asked = histories.take(rows)
        batch = replace(
            _one_branch_each(model, asked, [one.tokens for one in part]),
            named_item=_padded([one.named_item for one in part], -1),
            named_weight=_padded([one.named_weight for one in part], 0.0),
            named_kind=_padded([one.named_kind for one in part], 0),
        )
        with torch.no_grad():
            outputs = model(batch.to(model.device), with_tokens=False)
            reached = outputs.think_logits[:, 0]
            served = model.beside_history(reached, outputs.pre_states[:, 0], asked)
        scores[rows] = served.cpu().numpy()
    return scores


@torch.no_grad()
def score_found(
    model: ReasoningRecommender,
    histories: Histories,
    thoughts: Sequence[GivenThought],
    *,
    batch_size: int = 256,
) -> np.ndarray:
    """Return the scores of what thoughts found beside the state before them: not a word is read.

    Args:
        thoughts: One for every history.

    Returns:
        (B, N), float32.
    """
    model.eval()
    scores = np.empty((len(histories), model.num_items), np.float32)
    for rows in _batches(len(histories), batch_size):
        asked = histories.take(rows)
        states = read_prompts(model, model.writer.prompts(asked))
        part = [thoughts[r] for r in rows]
        found = Evidence(
            _padded([one.named_item for one in part], -1)[:, 0].to(states.device),
            _padded([one.named_weight for one in part], 0.0)[:, 0].to(states.device),
            _padded([one.named_kind for one in part], 0)[:, 0].to(states.device),
        )
        reached = model.score_thoughts(states, states, found)
        scores[rows] = model.beside_history(reached, states, asked).cpu().numpy()
    return scores


def _one_branch_each(
    model: ReasoningRecommender, histories: Histories, tokens: Sequence[Sequence[int]]
) -> Batch:
    """Return prompts, and behind each what it goes on with."""
    prompts = model.writer.prompts(histories)
    lengths = torch.from_numpy(prompts.lengths)
    return Batch(
        torch.from_numpy(prompts.token_ids),
        lengths,
        branch_ids=_padded(tokens, model.writer.pad_id),
        branch_lengths=torch.tensor([[len(row)] for row in tokens]),
        branch_at=(lengths - 1)[:, None],
    )


def _padded(rows: Sequence[Sequence[float]], filling: float) -> torch.Tensor:
    """Return ragged rows as one branch each, (B, 1, S), padded on the right."""
    length = max(len(row) for row in rows)
    dtype = torch.float32 if isinstance(filling, float) else torch.int64
    filled = [[[*row, *[filling] * (length - len(row))]] for row in rows]
    return torch.tensor(filled, dtype=dtype).reshape(len(rows), 1, length)


def _batches(num_rows: int, size: int) -> list[np.ndarray]:
    return [np.arange(i, min(i + size, num_rows)) for i in range(0, num_rows, size)]

"""Ranks given candidates by reasoning over their chains (R2Rec), pointwise or listwise.

*Pointwise* (task ``rated``): one question and one thought for each candidate; candidates are ranked
by the rating that is expected after the thought, from the probabilities of all ratings there.
*Listwise* (task ``likes``): one question with all candidates, ranked by the probability of each as
the answer. Candidates are put into a drawn order, whatever order they came in, so that a place in
the list tells nothing; several orders can be averaged, and `order_effect` says how much they
matter.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import numpy as np
from scipy.special import log_softmax

from reasonrec.baselines.contract import Recommender
from reasonrec.models.answers import (
    AnsweringModel,
    answer_log_probs,
    next_logp,
    prompts_of,
    write,
)
from reasonrec.models.config import BlendingConfig, Holds
from reasonrec.models.ranking import rank_candidates, top_k
from reasonrec.records import Histories, Link, Lookup, Parts, Scored
from reasonrec.rng import stream
from reasonrec.traces.evidence import QuestionBuilder
from reasonrec.traces.filters import named_titles
from reasonrec.traces.prompts import ANSWER
from reasonrec.traces.questions import Question
from reasonrec.traces.reasoned_config import Task
from reasonrec.traces.trace_filters import named_people, wrong_ratings

_SENTENCE = re.compile(r"(?<=[.;])\s+(?![^\[]*\])")  # but not inside of brackets
_MARKER = re.compile(r"<[^<>\s]+>")  # which no text of the catalogue holds


EXPERTS = ("answers", "first", "steps", "count", "events", "words")
"""What every blend weighs: answers after the thought, the first stage, chains of few steps and of
any that close on a candidate, how often it was taken, how alike its words are to the history's."""
HELD: Mapping[Holds, tuple[str, ...]] = {
    "nothing": (),
    "chains": ("steps", "count"),
    "chains-and-answers": ("steps", "count", "answers"),
}
"""Experts that count at least as much as where their rivals are silent."""


@dataclass(frozen=True)
class Answered:
    """Questions with what was thought and how likely each answer is after it."""

    questions: list[Question]
    thoughts: list[str]
    log_probs: list[np.ndarray]
    """(A,) for each question, normalised over its answers."""
    replies: list[list[int]]
    """The tokens of each thought, the answer marker included."""

    @property
    def num_tokens(self) -> np.ndarray:
        """(R,), int64."""
        return np.array([len(reply) for reply in self.replies], np.int64)


@dataclass(frozen=True)
class ReasonedRanker:
    """Meets `reasonrec.baselines.contract.CandidateRecommender`."""

    model: AnsweringModel
    builder: QuestionBuilder
    first_stage: Recommender
    """Chooses what is reasoned about where the whole catalogue is asked for."""
    user_ids: Sequence[str]
    """Names of neighbours in the reasons shown."""
    task: Task = "likes"
    name: str = "r2rec-sft"
    thinks: bool = True
    recites: bool = False
    """Whether what stands on a chain is put behind its cue (`traces.recital`)."""
    max_tokens: int = 256
    num_candidates: int = 20
    """Length of the short list of the first stage."""
    num_orders: int = 1
    """Orders of the candidates whose probabilities are averaged (listwise)."""
    blend: Mapping[str, float] | None = None
    """Weights of the `experts` (ours). None ranks by the answers alone."""
    others: Sequence[Recommender] = ()
    """Baselines that a blend weighs too, each an expert of its own name."""
    blending: BlendingConfig = field(default_factory=BlendingConfig)
    """How the experts are heard."""
    seed: int = 0
    batch_size: int = 64

    def score(self, histories: Histories) -> Scored:
        """Return scores of the catalogue: the short list by reasoning, the rest below it."""
        first = self.first_stage.score(histories).scores
        short, _ = top_k(first, self.num_candidates, histories)
        ranked = self.score_candidates(histories, short)
        below = first - first.max(axis=1, keepdims=True) - 1.0
        row, column = np.nonzero(short >= 0)
        lowest = np.where(short >= 0, ranked.scores, np.inf).min(axis=1)
        scores = below + np.where(np.isfinite(lowest), lowest, 0.0)[:, None]
        scores[row, short[row, column]] = ranked.scores[row, column]
        return replace(ranked, scores=scores.astype(np.float32))

    def score_candidates(self, histories: Histories, candidates: np.ndarray) -> Scored:
        """Return scores of each row's candidates, -inf where it has none (-1), with reasons.

        Where each candidate has a thought of its own, the reason shown is that of the first place,
        of the blended ranking where there is a blend.
        """
        thought: _Thought | None = None
        parts: Parts | None = None
        scores = np.where(candidates >= 0, 0.0, -np.inf).astype(np.float32)
        if self.blend is None or "answers" in self.blend:
            rank = self._pointwise if self.task == "rated" else self._listwise
            thought = rank(histories, candidates)
            scores = thought.scores
        tokens = [] if thought is None else [thought.num_tokens]
        if self.blend is not None:
            first = self.first_stage.score(histories)
            said = self.experts(histories, candidates, scores, first.scores)
            weighed = {name: self.blend[name] * said[name] for name in self.blend}
            blended = sum(weighed.values(), np.zeros(()))
            scores = np.where(candidates >= 0, blended, -np.inf).astype(np.float32)
            parts = _parts(weighed, candidates)
            if first.num_tokens is not None:  # a first stage may think
                tokens.append(first.num_tokens)
        num_tokens = sum(tokens[1:], tokens[0]) if tokens else None
        if thought is None:
            return Scored(scores, num_tokens=num_tokens, parts=parts)
        shown = thought.question[np.arange(len(scores)), scores.argmax(1)]
        texts, evidence = self._reasons(thought.answered, shown.tolist())
        return Scored(scores, texts, num_tokens, evidence, parts=parts)

    @property
    def expert_names(self) -> tuple[str, ...]:
        """What a blend can weigh."""
        return EXPERTS + self._other_names

    @property
    def rivals(self) -> tuple[str, ...]:
        """Experts that know much of what chains and answers say."""
        return ("first", *self._other_names)

    @property
    def _other_names(self) -> tuple[str, ...]:
        return tuple(other.name for other in self.others)

    def experts(
        self,
        histories: Histories,
        candidates: np.ndarray,
        answers: np.ndarray,
        first_scores: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Return what each expert says of the candidates, 0 at padding. (B, C) each.

        ``answers`` and ``first`` are log-probabilities over the row's candidates; ``steps``,
        ``count``, ``events`` and ``others`` logarithms of shares, ``blending.least_share`` added so
        that nothing is impossible; ``words`` is a cosine. An expert that the evidence leaves out
        says nothing.

        Args:
            answers: Scores after the thought. (B, C).
            first_scores: Scores of the first stage. (B, N).
        """
        is_real = candidates >= 0
        first = np.take_along_axis(first_scores, np.where(is_real, candidates, 0), axis=1)
        said = {
            "answers": log_softmax(np.where(is_real, answers, -np.inf), axis=1),
            "first": log_softmax(np.where(is_real, first, -np.inf), axis=1),
        }
        evidence = self.builder.config
        weights = self.builder.weights(
            histories, candidates, steps=self.blending.steps,
            steps_history=self.blending.max_history,
        )  # fmt: skip
        for other in self.others:
            scores = np.take_along_axis(
                other.score(histories).scores, np.where(is_real, candidates, 0), axis=1
            )
            weights[other.name] = np.where(is_real, np.maximum(scores, 0.0), 0.0)
        for name in ("steps", "count", "events", *self._other_names):
            share = weights[name] / np.maximum(weights[name].sum(axis=1, keepdims=True), 1e-9)
            said[name] = np.log(share + self.blending.least_share)
        said["words"] = weights["words"]
        if not evidence.num_chains or evidence.chain_ends == "random":
            said["steps"] = said["count"] = np.zeros(candidates.shape)
        return {name: np.where(is_real, said[name], 0.0) for name in self.expert_names}

    def _pointwise(self, histories: Histories, candidates: np.ndarray) -> "_Thought":
        rows, columns, questions = self.questions_of_each(histories, candidates)
        answered = self.answer(questions)
        scale = np.array(self.builder.scale)
        scores = np.full(candidates.shape, -np.inf, np.float32)
        scores[rows, columns] = [np.exp(logp) @ scale for logp in answered.log_probs]
        question = np.full(candidates.shape, -1)
        question[rows, columns] = np.arange(len(rows))
        num_tokens = np.bincount(rows, answered.num_tokens, minlength=len(histories))
        return _Thought(scores, answered, question, num_tokens.astype(np.int64))

    def questions_of_each(
        self, histories: Histories, candidates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[Question]]:
        """Return a question about the rating of every candidate, its row and its column."""
        rows, columns = np.nonzero(candidates >= 0)
        questions = self.builder.build(
            histories.take(rows), candidates[rows, columns][:, None], task="rated",
            keys=np.arange(len(rows)), seed=self.seed,
        )  # fmt: skip
        return rows, columns, questions

    def _listwise(self, histories: Histories, candidates: np.ndarray) -> "_Thought":
        mixed = np.full(candidates.shape, -np.inf)
        num_tokens = np.zeros(len(histories), np.int64)
        shown: Answered | None = None
        for n in range(self.num_orders):
            answered, scores = self.answer_in_order(histories, candidates, n)
            mixed = np.logaddexp(mixed, scores)
            num_tokens += answered.num_tokens
            shown = shown or answered
        assert shown is not None
        scores = (mixed - np.log(self.num_orders)).astype(np.float32)
        question = np.broadcast_to(np.arange(len(histories))[:, None], candidates.shape)
        return _Thought(scores, shown, question, num_tokens)

    def answer_in_order(
        self, histories: Histories, candidates: np.ndarray, n: int
    ) -> tuple[Answered, np.ndarray]:
        """Return answers and log-probabilities (B, C) with candidates in their n-th drawn order."""
        drawn = np.full(candidates.shape, -1, np.int32)
        column_of = np.zeros(candidates.shape, np.int64)
        for b, row in enumerate(candidates):
            columns = np.flatnonzero(row >= 0)
            columns = columns[np.argsort(row[columns], kind="stable")]
            key = crc32(row[columns].astype(np.int64).tobytes())
            columns = columns[
                stream(self.seed, "candidate-order", n, key).permutation(len(columns))
            ]
            drawn[b, : len(columns)] = row[columns]
            column_of[b, : len(columns)] = columns
        questions = self.builder.build(
            histories, drawn, task="likes", keys=np.arange(len(histories)), seed=self.seed
        )
        answered = self.answer(questions)
        scores = np.full(candidates.shape, -np.inf)
        for b, logp in enumerate(answered.log_probs):
            scores[b, column_of[b, : len(logp)]] = logp
        return answered, scores

    def answer(self, questions: Sequence[Question]) -> Answered:
        """Return the likeliest thought about each question, and how likely each answer then is."""
        self.model.eval()
        log_probs: list[np.ndarray] = []
        replies: list[list[int]] = []
        for start in range(0, len(questions), self.batch_size):
            part = questions[start : start + self.batch_size]
            prompts = prompts_of(self.model, part)
            recitals = [self.model.recital_tokens(one) for one in part] if self.recites else None
            written = write(
                self.model, prompts, max_tokens=self.max_tokens if self.thinks else 0,
                recitals=recitals,
            )  # fmt: skip
            new = [
                written.token_ids[r, :length].tolist()
                for r, length in enumerate(written.lengths.tolist())
            ]
            prefixes = [prompt + reply for prompt, reply in zip(prompts, new, strict=True)]
            log_probs += answer_log_probs(self.model, part, prefixes, written.marker_logp)
            replies += new
        texts = [str(self.model.tokenizer.decode(reply)) for reply in replies]
        thoughts = [text.removesuffix(ANSWER).strip() for text in texts]
        return Answered(list(questions), thoughts, log_probs, replies)

    def answer_after(
        self, questions: Sequence[Question], replies: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Return how likely each answer is after thoughts that are handed in, (A,) a question.

        Args:
            replies: As in `Answered`.
        """
        self.model.eval()
        log_probs: list[np.ndarray] = []
        for start in range(0, len(questions), self.batch_size):
            rows = slice(start, start + self.batch_size)
            part = questions[rows]
            prompts = prompts_of(self.model, part)
            texts = [[*p, *r] for p, r in zip(prompts, replies[rows], strict=True)]
            log_probs += answer_log_probs(self.model, part, texts, next_logp(self.model, texts))
        return log_probs

    def _reasons(
        self, answered: Answered, shown: Sequence[int]
    ) -> tuple[tuple[str, ...], tuple[tuple[Lookup, ...], ...]]:
        """Return the reason and the chains of the question shown for each row, -1 for none."""
        thoughts = [
            ""
            if r < 0
            else shown_reason(answered.questions[r], answered.thoughts[r], self.user_ids)
            for r in shown
        ]
        evidence = [() if r < 0 else chains_as_evidence(answered.questions[r]) for r in shown]
        return tuple(thoughts), tuple(evidence)


def _parts(weighed: Mapping[str, np.ndarray], candidates: np.ndarray) -> Parts | None:
    """Return what each expert adds to each candidate, less its mean over the row's candidates."""
    if not weighed:
        return None
    is_real = (candidates >= 0)[:, :, None]
    values = np.stack([*weighed.values()], axis=-1)
    mean = (values * is_real).sum(axis=1) / np.maximum(is_real.sum(axis=1), 1)
    values = np.where(is_real, values - mean[:, None, :], 0.0)
    return Parts(tuple(weighed), candidates, values.astype(np.float32))


@dataclass(frozen=True)
class _Thought:
    """What was thought about candidates, before any blend."""

    scores: np.ndarray
    """(B, C), float32."""
    answered: Answered
    question: np.ndarray
    """(B, C): which question of ``answered`` is about the candidate, -1 where there is none."""
    num_tokens: np.ndarray
    """(B,), int64."""


def shown_reason(question: Question, thought: str, user_ids: Sequence[str]) -> str:
    """Return the sentences of a thought that rest on the chains alone, neighbours by their ids.

    A sentence that names an item or a person outside the chains, or a rating that nobody gave, is
    left out: what people read can be checked against the chains beside it. So is one that never
    ends, holds a marker, was said before, or names no item and stands behind one that was left
    out, whose "it" nobody could tell.
    """
    items = {item.title for chain in question.chains for item in (chain.first, chain.second)}
    people = {chain.neighbour: chain.neighbour_index for chain in question.chains}
    kept: list[str] = []
    was_kept = True
    for sentence in _SENTENCE.split(thought):
        is_known = set(named_titles(sentence)) <= items
        is_known &= set(named_people(sentence)) <= set(people)
        is_whole = sentence.count("[") == sentence.count("]") and not _MARKER.search(sentence)
        is_whole &= sentence.endswith((".", ";"))
        is_clear = (was_kept or "[" in sentence) and sentence not in kept
        was_kept = is_known and is_whole and is_clear and not wrong_ratings(question, sentence)
        if was_kept:
            kept.append(sentence)
    return re.sub(
        r"@\w+(?![^\[]*\])",
        lambda found: f"neighbour {user_ids[people[found.group()]]}",
        re.sub(r";$", ".", " ".join(kept)),
    )


def chains_as_evidence(question: Question) -> tuple[Lookup, ...]:
    """Return the chains of a question as look-ups, one for each i0; the weight is shared items."""
    links: dict[int, list[Link]] = {}
    for chain in question.chains:
        links.setdefault(chain.first.item_index, []).append(
            Link(
                item_index=chain.second.item_index,
                weight=float(chain.num_shared or 1),
                num_neighbours=1,
                neighbour_index=chain.neighbour_index,
            )
        )
    return tuple(Lookup(via, tuple(found)) for via, found in links.items())


@dataclass(frozen=True)
class OrderEffect:
    """What the order of candidates changes."""

    hit_at_1: tuple[float, ...]
    """Of each order; the candidates' column 0 is the one taken."""
    frac_first_changed: float
    """Share of questions whose first place is not the same in all orders."""


def order_effect(
    ranker: ReasonedRanker, histories: Histories, candidates: np.ndarray, *, num_orders: int
) -> OrderEffect:
    """Return how far a listwise ranking depends on the order that candidates stand in."""
    orders = [
        ranker.answer_in_order(histories, candidates, n)[1].astype(np.float32)
        for n in range(num_orders)
    ]
    columns = np.tile(np.arange(candidates.shape[1]), (len(candidates), 1))
    columns = np.where(candidates >= 0, columns, -1)
    firsts = np.stack([scores.argmax(1) for scores in orders])
    return OrderEffect(
        tuple(float((rank_candidates(scores, columns) <= 1).mean()) for scores in orders),
        float((firsts != firsts[0]).any(0).mean()),
    )

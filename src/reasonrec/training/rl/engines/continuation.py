"""Rollouts by an engine that can do one thing: continue sequences of tokens.

What our own sampler does between two tokens is done here between two requests: a thought is sent
as token ids, and comes back up to the answer marker or the end of a title; whatever the thought
looks up is appended, and it is sent again. Text is never tokenised anew, so what is trained on is
what was written. Where a thought ends is decided here, from the tokens; that the engine stops there
too only saves it work.

Only policies that draw from the plain logits of the backbone can be continued elsewhere. That of
the tiny backbone with title tokens closes, shifts or copies titles; it is refused.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from reasonrec import ranks
from reasonrec.errors import ConfigError
from reasonrec.models.answers import AnsweringModel, Recitals, Written, next_logp
from reasonrec.models.generation import LookUp, Part
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.text_batch import padded
from reasonrec.rng import stream_seed
from reasonrec.traces.found import FoundInThought, found_columns
from reasonrec.traces.prompts import ANSWER, ASKING, Prompts
from reasonrec.training.rl.engines.contract import Thoughts
from reasonrec.training.rl.engines.handover import save_adapter, save_merged

Handover = Literal["merged", "adapter"]


@dataclass(frozen=True)
class Request:
    """One sequence to be continued."""

    token_ids: list[int]
    max_tokens: int
    seed: int
    stop: tuple[str, ...]
    """Text at whose end the continuation may stop."""
    stop_ids: tuple[int, ...]
    """Tokens behind which it may stop. Of itself it stops behind none."""


@dataclass(frozen=True)
class Sampling:
    """How all sequences of a call are continued."""

    temperature: float
    top_k: int
    never: tuple[int, ...]
    """Tokens that are not written; log-probabilities are over all others."""


@dataclass(frozen=True)
class Continuation:
    """What was written behind one sequence: at least one token."""

    token_ids: list[int]
    token_logp: list[float]
    """At temperature 1 among all tokens that may be written, whatever was drawn at."""


class Completer(Protocol):
    """Continues sequences with the weights of the last `load`."""

    def load(self, folder: Path, handover: Handover, dtype: str) -> None:
        """Take over the weights, or the adapters, that lie in ``folder``; it is removed later.

        Args:
            dtype: What the backbone computes in while it is trained.
        """
        ...

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> list[Continuation]:
        """Return what is written behind each sequence, in order."""
        ...

    def close(self) -> None: ...


class ContinuationEngine:
    """A `RolloutEngine` made of whatever continues tokens; hands weights over through a folder."""

    def __init__(
        self, completer: Completer, *, handover: Handover = "merged", folder: Path | None = None
    ) -> None:
        self.completer = completer
        self.handover: Handover = handover
        self._folder = ranks.first_alone(lambda: _make_folder(folder))
        self._count = 0
        self._model: ReasoningRecommender | None = None

    def sync(self, model: ReasoningRecommender) -> None:
        """Hand over a copy of the weights, or the adapters; the model is only read.

        Raises:
            ConfigError: The model's policy is none that can be continued elsewhere, or it writes a
                token that the engine's tokenizer does not have.
        """
        is_plain = isinstance(model, AnsweringModel) and model.copier is None
        if model.is_title.numel() and not is_plain:
            raise ConfigError(
                "engine.kind must be 'sampler' for R²ec and R2Rec with the tiny backbone: their "
                "thoughts close, shift or copy the tokens of titles while they are written, which "
                "no engine elsewhere does. Any other backbone can be written for by vLLM"
            )
        if model.writer.prompt.add_marker:
            raise ConfigError(
                "engine.kind must be 'sampler' with prompt.add_marker: an engine elsewhere reads "
                "with the backbone's own tokenizer, which lacks the new token. Leave "
                "prompt.add_marker off, and the marker is spelled as text"
            )
        folder = self._folder / f"{self.handover}-{self._count}"
        self._count += 1
        save = save_merged if self.handover == "merged" else save_adapter
        ranks.wait()  # nobody still writes with the weights of before
        ranks.first_alone(lambda: save(model, folder))
        self.completer.load(folder, self.handover, model.weights.dtype)
        ranks.first_alone(lambda: _keep_only(folder))
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
        """Return thoughts as `models.generation.think` writes them, look-ups included."""
        model = self._synced()
        writer = model.writer
        first, G, budget = (part or (0, 0))[0], group_size, max_tokens + len(writer.opening)
        rows = [
            _Row(prompts.token_ids[p, : prompts.lengths[p]].tolist(), list(writer.opening))
            for p in range(len(prompts.lengths))
            for _ in range(G)
        ]
        marker = writer.prompt.answer_marker
        stop, stop_ids = (marker,), {*writer.end_ids}
        if look_up is not None:  # words by their last token: a server takes four texts at most
            stop = (marker, "]")
            stop_ids |= {writer.encode(word)[-1] for word, _ in ASKING.values()}

        def read(row: _Row, token: int) -> bool:
            """Return whether the thought pauses behind the token that it has just written."""
            if token in writer.end_ids:
                row.force(writer.answer)
            elif writer.ends_thought(row.tokens):
                row.is_done = True
            elif look_up is not None and token in writer.asking_tokens:
                row.asked = writer.asked_about(str(model.tokenizer.decode(row.tokens)))
            return row.is_done or row.asked is not None

        sampling = Sampling(temperature, top_k, tuple(model.never_written.tolist()))
        round_ = 0
        while active := [r for r, row in enumerate(rows) if not row.is_done]:
            self._continue(
                [(first + r, rows[r], budget) for r in active], sampling, seed, round_, read,
                stop=stop, stop_ids=tuple(sorted(stop_ids)),
            )  # fmt: skip
            round_ += 1
            asking = [r for r in active if rows[r].asked is not None]
            if look_up is not None and asking:
                items = [item for r in asking if (item := rows[r].asked) is not None]
                kinds = [ASKING[item][1] if item in ASKING else "after" for item in items]
                places = [rows[r].kinds.count(k) for r, k in zip(asking, kinds, strict=True)]
                found = look_up([r // G for r in asking], items, places)
                for r, evidence in zip(asking, found, strict=True):
                    rows[r].asked = None
                    if evidence is None:
                        continue
                    tokens, ends = writer.lookup_tokens(evidence)
                    begin = len(rows[r].tokens)
                    rows[r].insert(tokens[: budget - begin])
                    rows[r].kinds.append(evidence.kind)
                    rows[r].named.add(begin + ends, evidence.found)
                    rows[r].named.forget_from(budget)  # what was not read is not found
            for r in active:
                if not rows[r].is_done and len(rows[r].tokens) >= budget:
                    rows[r].force(writer.answer)
        ids, lengths, is_written, logp = _as_tensors(rows, writer.pad_id)
        named = map(torch.from_numpy, found_columns([row.named for row in rows]))
        tensors = ids, lengths, is_written, logp, *named, _truncated(rows)
        return Thoughts(*(tensor.to(model.device) for tensor in tensors))

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
        """Return thoughts and answers as `models.answers.write` writes them.

        Raises:
            ConfigError: Something is to be recited, which a server cannot put into a thought.
        """
        if recitals is not None:
            raise ConfigError(
                "rollouts that recite are written by the engine sampler; choose it, or set "
                'recites = "never"'
            )
        model = self._synced()
        assert isinstance(model, AnsweringModel)
        marker, end = model.writer.encode(ANSWER), model.end_token
        rows = [_Row(list(prompt), []) for prompt in prompts for _ in range(group_size)]

        def ends_thought(row: _Row, _: int) -> bool:
            row.is_done = row.tokens[-len(marker) :] == marker
            return row.is_done

        sampling = Sampling(temperature, 0, tuple(model.never_drawn))
        round_ = 0
        while active := [r for r, row in enumerate(rows) if not row.is_done]:
            self._continue(
                [(r, rows[r], max_tokens) for r in active], sampling, seed, round_, ends_thought,
                stop=(ANSWER,), stop_ids=(),
            )  # fmt: skip
            round_ += 1
            for r in active:
                if not rows[r].is_done and len(rows[r].tokens) >= max_tokens:
                    rows[r].force(marker)
        answer_at = torch.tensor([len(row.tokens) for row in rows])

        def ends_answer(row: _Row, token: int) -> bool:
            row.is_done = token == end
            return row.is_done

        if max_answer_tokens:
            self._continue(
                [(r, row, len(row.tokens) + max_answer_tokens) for r, row in enumerate(rows)],
                sampling, seed, round_, ends_answer, stop=(), stop_ids=(end,),
            )  # fmt: skip
        ids, lengths, is_written, logp = _as_tensors(rows, model.writer.pad_id)
        texts = [[*row.prompt, *row.tokens[:at]] for row, at in zip(rows, answer_at.tolist())]
        device = model.device
        return Written(
            ids.to(device), lengths.to(device), answer_at.to(device), is_written.to(device),
            logp.to(device), next_logp(model, texts), _truncated(rows).to(device),
        )  # fmt: skip

    def close(self) -> None:
        """Let the engine go, and remove what was handed over."""
        self.completer.close()
        ranks.first_alone(lambda: shutil.rmtree(self._folder, ignore_errors=True))

    def _continue(
        self,
        asked: Sequence[tuple[int, "_Row", int]],
        sampling: Sampling,
        seed: int,
        round_: int,
        read: Callable[["_Row", int], bool],
        *,
        stop: tuple[str, ...],
        stop_ids: tuple[int, ...],
    ) -> None:
        """Continue rows (number, row, most tokens) once, up to where ``read`` says to pause."""
        asked = [(n, row, most) for n, row, most in asked if most > len(row.tokens)]
        requests = [
            Request(
                [*row.prompt, *row.tokens], most - len(row.tokens),
                stream_seed(seed, "engine", n, round_), stop, stop_ids,
            )
            for n, row, most in asked
        ]  # fmt: skip
        if not requests:
            return
        for (_, row, most), said in zip(
            asked, self.completer.complete(requests, sampling), strict=True
        ):
            for token, logp in zip(said.token_ids, said.token_logp, strict=True):
                if len(row.tokens) >= most:
                    break
                row.append(token, logp)
                if read(row, token):
                    break

    def _synced(self) -> ReasoningRecommender:
        if self._model is None:
            raise ValueError("an engine writes with weights that it was handed; call sync first")
        return self._model


def _make_folder(within: Path | None) -> Path:
    if within is not None:
        within.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="rollouts-", dir=within))
    folder.chmod(0o755)  # a server is another user's process as often as not, and has to read it
    return folder


def _keep_only(folder: Path) -> None:
    for other in folder.parent.iterdir():
        if other != folder:
            shutil.rmtree(other)


@dataclass
class _Row:
    """One thought while it is written."""

    prompt: list[int]
    tokens: list[int]
    logp: list[float] = field(default_factory=list)
    is_written: list[bool] = field(default_factory=list)
    named: FoundInThought = field(default_factory=FoundInThought)
    kinds: list[str] = field(default_factory=list)
    """What sorts of questions were answered."""
    asked: int | None = None
    """What the thought waits to hear about: an item, `SOMEBODY` or the `CANDIDATES`."""
    is_done: bool = False
    is_truncated: bool = False

    def __post_init__(self) -> None:
        self.logp = [0.0] * len(self.tokens)
        self.is_written = [False] * len(self.tokens)

    def append(self, token: int, logp: float) -> None:
        self.tokens.append(token)
        self.logp.append(logp)
        self.is_written.append(True)

    def insert(self, tokens: Sequence[int]) -> None:
        self.tokens += tokens
        self.logp += [0.0] * len(tokens)
        self.is_written += [False] * len(tokens)

    def force(self, answer: Sequence[int]) -> None:
        self.insert(answer)
        self.is_done = self.is_truncated = True


def _as_tensors(
    rows: Sequence[_Row], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids (R, S), lengths (R,), what was written and log-probabilities (R, S)."""
    ids, lengths = padded([row.tokens for row in rows], pad_id)
    is_written = torch.zeros(ids.shape, dtype=torch.bool)
    logp = torch.zeros(ids.shape)
    for r, row in enumerate(rows):
        is_written[r, : len(row.tokens)] = torch.tensor(row.is_written)
        logp[r, : len(row.tokens)] = torch.tensor(row.logp)
    return ids, lengths, is_written, logp


def _truncated(rows: Sequence[_Row]) -> torch.Tensor:
    return torch.tensor([row.is_truncated for row in rows])

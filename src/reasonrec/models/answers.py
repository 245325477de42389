"""A language model that reads a question, writes a thought, and answers in words.

The same weights as `ReasoningRecommender`, read another way: no state meets an item table, the
language head alone speaks. So a no-think folder, or any causal LM, can be started from. A text is
``<s>question<think> thought<answer> answer</s>``, its pieces encoded one by one, so that what was
trained is, token for token, what serving sends.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedTokenizerBase

from reasonrec.models.branches import read_states
from reasonrec.models.copying import TitleCopier, following, tokens_before
from reasonrec.models.item_table import ItemTable
from reasonrec.models.language_head import backbone_logits
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.text_batch import TextBatch, choice_logp, padded, text_batch
from reasonrec.models.tiny.tokenizer import train_tokenizer
from reasonrec.traces.interaction_of_thought import student_answer, student_prompt
from reasonrec.traces.prompts import ANSWER, THINK
from reasonrec.traces.questions import Question
from reasonrec.traces.recital import Recital, recitals_of, recited

Recitals = Sequence[tuple[list[int], list[int]]]
"""Of one prompt: the tokens of each cue, and of what is recited behind it."""


@dataclass
class Written:
    """R continuations of prompts, G for each, prompt by prompt."""

    token_ids: Tensor
    """(R, S): thought, marker, and the answer where it was asked for. Padded on the right."""
    lengths: Tensor
    """(R,)."""
    answer_at: Tensor
    """(R,), where the answer starts: tokens up to the end of the marker."""
    is_written: Tensor
    """(R, S), True for tokens that were drawn; what was recited, and a marker that had to be
    forced, is False."""
    token_logp: Tensor
    """(R, S), float32 log-probability of each drawn token at temperature 1; 0 elsewhere."""
    marker_logp: Tensor
    """(R, V), float32, at the end of the marker: of the first token of the answer."""
    is_truncated: Tensor
    """(R,), True where the marker had to be forced: the thought used up its tokens, or the model
    ended its turn."""


class AnsweringModel(ReasoningRecommender):
    """A causal LM over text. Its recommendation head travels along and is not used."""

    copier: TitleCopier | None
    """Set for each model, not here: what the class holds would hide a module of that name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.copier = None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, batch: TextBatch, *, token_temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability and entropy of every token with a weight, 0 elsewhere, and the
        log-probability of every choice among what it is chosen from.

        Args:
            token_temperature: What tokens are drawn at; choices are made at 1.

        Returns:
            (R, T), (R, T) and (R, C), float32; the entropy in nats, without gradient.
        """
        hidden = self.run_backbone(
            self.embed(batch.token_ids), position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        wanted = batch.weight > 0
        wanted = wanted.scatter(1, batch.choice_at, True)
        wanted[:, 0] = False  # nothing stands before it
        logp = self.following_logp(batch, hidden, wanted.roll(-1, dims=1))
        drawn = logp if token_temperature == 1 else (logp / token_temperature).log_softmax(-1)
        chosen = drawn.gather(-1, batch.token_ids[wanted][:, None])[:, 0]
        zeros = torch.zeros(wanted.shape, device=logp.device)
        entropy = zeros.clone()
        with torch.no_grad():
            entropy[wanted] = torch.special.entr(drawn.exp()).sum(-1)
        has_weight = batch.weight > 0
        return (
            zeros.masked_scatter(wanted, chosen).masked_fill(~has_weight, 0.0),
            entropy.masked_fill(~has_weight, 0.0),
            choice_logp(batch, wanted, logp),
        )

    def following_logp(self, batch: TextBatch, hidden: Tensor, asked: Tensor) -> Tensor:
        """Return log-probabilities (M, V) of what follows the M places where ``asked`` is True."""
        logits = self.token_logits(hidden[asked])
        if self.copier is None:
            return logits.log_softmax(-1)
        embeddings = self.backbone.get_input_embeddings()
        before = tokens_before(batch.token_ids, batch.position_ids, self.writer.pad_id)
        keys = self.copier.keys(hidden, embeddings(before))
        queries = self.copier.queries(hidden, embeddings(following(before, batch.token_ids)))
        match = (queries @ keys.transpose(1, 2))[asked]  # (R, T, T) -> (M, T)
        row, place = asked.nonzero(as_tuple=True)
        text = (batch.position_ids == 0).cumsum(1)
        is_source = self.is_title[batch.token_ids][row]
        is_source &= torch.arange(asked.shape[1], device=row.device) <= place[:, None]
        is_source &= text[row] == text[row, place][:, None]
        return self.copier.mix(logits, hidden[asked], match, batch.token_ids[row], is_source)

    def token_logits(self, states: Tensor) -> Tensor:
        """Return float32 logits (..., V); padding, begin and think tokens are never written."""
        logits = backbone_logits(self.backbone, states).float()
        never = torch.tensor(self.never_drawn, device=logits.device)
        return logits.index_fill(-1, never, -torch.inf)

    @property
    def never_drawn(self) -> list[int]:
        """The tokens that are never written: padding, begin and think tokens, but not the end."""
        begin: Any = self.tokenizer.bos_token_id
        return sorted({begin, *self.never_written.tolist()} - {None, self.end_token})

    @property
    def end_token(self) -> int:
        """The token after an answer."""
        end: Any = self.tokenizer.eos_token_id
        return end

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Return the tokens of a question, the thinking marker behind it."""
        bos: Any = self.tokenizer.bos_token_id
        start = [] if bos is None else [bos]
        return [*start, *self.writer.encode(prompt), *self.writer.encode(THINK)]

    def reply_tokens(
        self, thought: str, answer: str, recitals: Sequence[Recital] = ()
    ) -> tuple[list[int], int, list[bool]]:
        """Return the tokens of thought, marker, answer and end, where the answer starts, and which
        tokens are recited."""
        tokens: list[int] = []
        is_recited: list[bool] = []
        for words, told in recited(thought, recitals):
            more = self.writer.encode(words)
            tokens += more
            is_recited += [told] * len(more)
        tokens += self.writer.encode(ANSWER)
        at = len(tokens)
        tokens += [*self.writer.encode(answer), self.end_token]
        return tokens, at, is_recited + [False] * (len(tokens) - len(is_recited))

    def recital_tokens(self, question: Question) -> list[tuple[list[int], list[int]]]:
        """Return the tokens of each cue of a question, and of what follows it."""
        encode = self.writer.encode
        return [(encode(one.cue), encode(one.words)) for one in recitals_of(question)]

    def answer_tokens(self, question: Question) -> list[list[int]]:
        """Return the tokens of everything that can be answered, in the order of `answers`."""
        return [self.writer.encode(student_answer(question, a)) for a in question.answers]


class CopyingModel(AnsweringModel):
    """One that can also copy titles from what it read, where titles are single tokens (R2Rec)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width = self.backbone.get_output_embeddings().weight.shape[1]
        self.copier = TitleCopier(width) if self.is_title.numel() else None


class HeadlessModel(AnsweringModel):
    """A causal LM that keeps no item table, for methods that rank by what it writes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.item_table = ItemTable("id", 0, 1)


def with_words_of(
    model: ReasoningRecommender,
    texts: Sequence[str],
    *,
    vocab_size: int,
    dropout: float,
    seed: int,
    kind: type[AnsweringModel] = AnsweringModel,
) -> AnsweringModel:
    """Return the model as one that answers, with sub-word tokens learned from ``texts``.

    A tiny backbone has only ever read titles; its sub-words come from item descriptions, and cut
    the words of a thought to pieces. They are replaced: titles, markers and every piece that both
    tokenizers know keep their vectors, new ones start small. Other backbones keep their tokenizer.

    Args:
        vocab_size: Sub-word tokens, the 256 bytes among them. 0 keeps the tokenizer.
        dropout: Share of input-embedding entries dropped while training.
        kind: What kind of answering model.
    """
    tokenizer = model.tokenizer
    if vocab_size and model.writer.title_token_ids is not None:
        tokenizer = train_tokenizer(model.titles, texts, vocab_size=vocab_size)
        std = torch.tensor(float(model.backbone.config.initializer_range))
        _retokenise(model, tokenizer, torch.zeros(()), std, seed)
    return _answering(
        model, kind, tokenizer, model.titles, model.item_ids, model.item_texts,
        dropout=dropout, seed=seed,
    )  # fmt: skip


def with_titles_of(
    model: AnsweringModel, titles: Sequence[str], item_ids: Sequence[str], *, seed: int
) -> AnsweringModel:
    """Return the model as one that answers about another catalogue, its words kept.

    Where titles are single tokens, those that both catalogues have keep their vectors; others are
    drawn around the mean of all that the model knows, as far apart as those are. Its weights are
    those of ``model``, which is not to be used any more.

    Args:
        titles: Unique titles of the other catalogue, in ``item_index`` order.
    """
    tokenizer, known = copy.deepcopy(model.tokenizer), model.writer.title_token_ids
    if known is not None:
        vectors = model.backbone.get_input_embeddings().weight.detach()[torch.from_numpy(known)]
        named = {f" [{title}]" for title in titles} - set(tokenizer.get_vocab())
        tokenizer.add_tokens([AddedToken(name, normalized=False) for name in sorted(named)])
        _retokenise(model, tokenizer, vectors.mean(0), vectors.std(0), seed)
    other = _answering(
        model, type(model), tokenizer, list(titles), list(item_ids), None,
        dropout=model.head.dropout, seed=seed,
    )  # fmt: skip
    other.copier = model.copier
    return other


def _retokenise(
    model: ReasoningRecommender,
    tokenizer: PreTrainedTokenizerBase,
    mean: Tensor,
    std: Tensor,
    seed: int,
) -> None:
    """Give the backbone another tokenizer, in place: tokens that it knows keep their vectors, new
    ones are drawn with a mean and a standard deviation, (D,) or of all entries alike."""
    backbone, old = model.backbone, model.tokenizer.get_vocab()
    rows = backbone.get_input_embeddings().weight.detach().clone()
    backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    fresh = backbone.get_input_embeddings().weight
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        fresh.copy_(mean + torch.randn(fresh.shape, generator=generator) * std)
        for token, place in tokenizer.get_vocab().items():
            if token in old:
                fresh[place] = rows[old[token]]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(backbone.config, name, getattr(tokenizer, name))
        setattr(backbone.generation_config, name, getattr(tokenizer, name))


def _answering(
    model: ReasoningRecommender,
    kind: type[AnsweringModel],
    tokenizer: PreTrainedTokenizerBase,
    titles: list[str],
    item_ids: list[str],
    item_texts: list[str] | None,
    *,
    dropout: float,
    seed: int,
) -> AnsweringModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for what the kind adds
        return kind(
            model.backbone,
            tokenizer,
            titles,
            model.head.model_copy(update={"dropout": dropout}),
            item_ids,
            item_texts,
            prompt=model.writer.prompt,
            weights=model.weights,
        )


@torch.no_grad()
def write(
    model: AnsweringModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    group_size: int = 1,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    max_answer_tokens: int = 0,
    recitals: Sequence[Recitals] | None = None,
) -> Written:
    """Return ``group_size`` thoughts for every prompt, and answers where they are asked for.

    Args:
        prompts: Of `AnsweringModel.prompt_tokens`.
        max_tokens: Most tokens of a thought; then the answer marker is forced, as it is where the
            model ends its turn in the middle of a thought. 0: no thought.
        temperature: Divides the logits; 0 takes the likeliest token.
        generator: Source of randomness; needed unless ``temperature`` is 0.
        max_answer_tokens: Most tokens drawn behind the marker, the end among them. 0: none.
        recitals: Of each prompt, what follows each cue, once; of `AnsweringModel.recital_tokens`.
            Counts among ``max_tokens``; what would go beyond them ends the thought. None: nothing.
    """
    if temperature > 0 and generator is None:
        raise ValueError("sampling with a temperature above 0 needs a generator")
    device, marker = model.device, torch.tensor(model.writer.encode(ANSWER))
    ids, lengths = padded([list(p) for p in prompts], model.writer.pad_id)
    ids, lengths, marker = ids.to(device), lengths.to(device), marker.to(device)
    T, L, G = ids.shape[1], len(marker), group_size
    out = model.run_backbone(
        model.embed(ids),
        attention_mask=(torch.arange(T, device=device) < lengths[:, None]).long(),
        use_cache=True,
    )
    cache = out.past_key_values
    states = read_states(out.last_hidden_state, (lengths - 1)[:, None])[:, 0]
    R, S = len(states) * G, max_tokens + L + max_answer_tokens
    reader = _Reader.start(model, ids, lengths, out.last_hidden_state, G, S)
    if G > 1:
        states, lengths = states.repeat_interleave(G, 0), lengths.repeat_interleave(G, 0)
        cache.batch_repeat_interleave(G)
    result = Written(
        token_ids=torch.full((R, S), model.writer.pad_id, device=device),
        lengths=torch.zeros(R, dtype=torch.long, device=device),
        answer_at=torch.zeros(R, dtype=torch.long, device=device),
        is_written=torch.zeros((R, S), dtype=torch.bool, device=device),
        token_logp=torch.zeros((R, S), device=device),
        # as wide as what the head says, which may know more or fewer tokens than the tokenizer
        marker_logp=torch.zeros((R, model.token_logits(states[:1]).shape[-1]), device=device),
        is_truncated=torch.zeros(R, dtype=torch.bool, device=device),
    )
    rows = torch.arange(R, device=device)  # those still under way, in the order of the cache
    forced = torch.zeros(R, dtype=torch.long, device=device)  # marker tokens forced so far, plus 1
    is_token = torch.zeros((R, T + S), dtype=torch.long, device=device)
    is_token[:, :T] = torch.arange(T, device=device) < lengths[:, None]
    reciter = None
    if recitals is not None and max_tokens:
        reciter = _Reciter([r for one in recitals for r in [one] * G], max_tokens)
    for step in range(S):
        drawn, logp = _draw(reader.next_logp(states), temperature, generator)
        is_thinking = result.answer_at[rows] == 0
        gives_up = (drawn == model.end_token) | (step >= max_tokens)
        recites, told = torch.zeros_like(is_thinking), drawn
        if reciter is not None:
            told, no_room = (x.to(device) for x in reciter.next(rows.tolist(), step))
            recites = told >= 0
            gives_up = (gives_up & ~recites) | no_room
        starts = is_thinking & (forced[rows] == 0) & gives_up
        # half a marker that was drawn is finished rather than begun anew
        forced[rows[starts]] = 1
        forces = is_thinking & (forced[rows] > 0)
        tokens = torch.where(forces, marker[(forced[rows] - 1).clamp(0, L - 1)], drawn)
        tokens = torch.where(recites, told, tokens)
        forced[rows[forces]] += 1
        result.is_truncated[rows[starts]] = True
        result.token_ids[rows, step] = tokens
        result.is_written[rows, step] = ~(forces | recites)
        result.token_logp[rows, step] = torch.where(forces | recites, 0.0, logp)
        is_token[rows, T + step] = 1
        out = model.run_backbone(
            model.embed(tokens[:, None]),
            attention_mask=is_token[rows, : T + step + 1],
            position_ids=(lengths[rows] + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        states = out.last_hidden_state[:, 0]
        reader.read(tokens, states)
        if reciter is not None:
            reciter.hear(rows.tolist(), tokens.tolist())
        if step + 1 >= L:
            ends = (result.token_ids[rows, step + 1 - L : step + 1] == marker).all(-1) & is_thinking
            result.answer_at[rows[ends]] = step + 1
            if ends.any():
                result.marker_logp[rows[ends]] = reader.next_logp(states)[ends]
        at = result.answer_at[rows]
        is_done = (at > 0) & (step + 1 - at >= max_answer_tokens)
        is_done |= ~is_thinking & (tokens == model.end_token)
        result.lengths[rows[is_done]] = step + 1
        if is_done.all():
            break
        if is_done.any():  # finished rows cost as much as others: leave them behind
            kept = (~is_done).nonzero()[:, 0]
            rows, states = rows[kept], states[kept]
            cache.batch_select_indices(kept)
            reader.keep(kept)
    length = int(result.lengths.max())
    result.token_ids = result.token_ids[:, :length]
    result.is_written = result.is_written[:, :length]
    result.token_logp = result.token_logp[:, :length]
    return result


class _Reciter:
    """Says what each row is to recite next, and listens for cues."""

    def __init__(self, recitals: Sequence[Recitals], max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.left = [list(one) for one in recitals]
        self.said: list[list[int]] = [[] for _ in recitals]
        self.queue: list[list[int]] = [[] for _ in recitals]
        for row in range(len(recitals)):
            self._cue(row)

    def next(self, rows: Sequence[int], step: int) -> tuple[Tensor, Tensor]:
        """Return the token that each row recites now (-1 for none), and whether what it is to
        recite has no room."""
        told, no_room = torch.full((len(rows),), -1), torch.zeros(len(rows), dtype=torch.bool)
        for place, row in enumerate(rows):
            queue = self.queue[row]
            if not queue:
                continue
            if step + len(queue) > self.max_tokens:
                no_room[place] = True
                queue.clear()
                self.left[row].clear()
            else:
                told[place] = queue.pop(0)
        return told, no_room

    def hear(self, rows: Sequence[int], tokens: Sequence[int]) -> None:
        """Take in a token of each row."""
        for row, token in zip(rows, tokens, strict=True):
            if self.left[row]:
                self.said[row].append(token)
                if not self.queue[row]:
                    self._cue(row)

    def _cue(self, row: int) -> None:
        said = self.said[row]
        for n, (cue, words) in enumerate(self.left[row]):
            if said[len(said) - len(cue) :] == cue and (cue or not said):
                self.queue[row] = list(words)
                del self.left[row][n]
                return


@dataclass
class _Reader:
    """What rows under way have read, for copying from it."""

    model: AnsweringModel
    token_ids: Tensor
    """(R, T + S). Columns from T on are what was written."""
    keys: Tensor | None
    """(R, T + S, K)."""
    recent: Tensor
    """(R, LOOKBACK), the last tokens, newest first."""
    num_read: int
    """Columns in use."""

    @classmethod
    def start(
        cls,
        model: AnsweringModel,
        ids: Tensor,
        lengths: Tensor,
        hidden: Tensor,
        group_size: int,
        num_more: int,
    ) -> "_Reader":
        position = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        before = tokens_before(ids, position, model.writer.pad_id)
        rows = torch.arange(len(ids), device=ids.device)
        recent = following(before, ids)[rows, lengths - 1].repeat_interleave(group_size, 0)
        more = torch.full((len(ids), num_more), model.writer.pad_id, device=ids.device)
        token_ids = torch.cat([ids, more], 1).repeat_interleave(group_size, 0)
        keys = None
        if model.copier is not None:
            own = model.copier.keys(hidden, model.backbone.get_input_embeddings()(before))
            keys = torch.zeros((*token_ids.shape, own.shape[-1]), device=ids.device)
            keys[:, : ids.shape[1]] = own.repeat_interleave(group_size, 0)
        return cls(model, token_ids, keys, recent, ids.shape[1])

    def next_logp(self, states: Tensor) -> Tensor:
        """Return log-probabilities of the next token. (R, V)."""
        logits = self.model.token_logits(states)
        if self.model.copier is None or self.keys is None:
            return logits.log_softmax(-1)
        recent = self.model.backbone.get_input_embeddings()(self.recent)
        queries = self.model.copier.queries(states, recent)
        match = (self.keys[:, : self.num_read] @ queries[..., None])[..., 0]
        read = self.token_ids[:, : self.num_read]
        return self.model.copier.mix(logits, states, match, read, self.model.is_title[read])

    def read(self, tokens: Tensor, states: Tensor) -> None:
        """Take in one more token of every row."""
        if self.model.copier is not None and self.keys is not None:
            before = self.model.backbone.get_input_embeddings()(self.recent)
            self.keys[:, self.num_read] = self.model.copier.keys(states, before)
        self.token_ids[:, self.num_read] = tokens
        self.recent = torch.cat([tokens[:, None], self.recent[:, :-1]], dim=1)
        self.num_read += 1

    def keep(self, rows: Tensor) -> None:
        """Leave all other rows behind."""
        self.token_ids, self.recent = self.token_ids[rows], self.recent[rows]
        if self.keys is not None:
            self.keys = self.keys[rows]


def _draw(
    logits: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Return token ids (R,) and their temperature-1 log-probabilities (R,)."""
    logp = logits.log_softmax(-1)
    if temperature == 0:
        best = logp.max(-1)
        return best.indices, best.values
    heated = (logits / temperature).softmax(-1).cumsum(-1)
    uniform = torch.rand((len(logits), 1), generator=generator, device=logits.device)
    drawn = torch.searchsorted(heated, uniform * heated[:, -1:], right=True)
    drawn = drawn.clamp(max=logits.shape[-1] - 1)
    return drawn[:, 0], logp.gather(-1, drawn)[:, 0]


@torch.no_grad()
def answer_log_probs(
    model: AnsweringModel,
    questions: Sequence[Question],
    prefixes: Sequence[Sequence[int]],
    marker_logp: Tensor,
    *,
    batch_size: int = 64,
) -> list[np.ndarray]:
    """Return for every text the log-probability of each possible answer, normalised over them.

    Where each answer is one token, and no two are the same, they are read off the marker; else
    every answer is read behind the text, its end included.

    Args:
        questions: R questions.
        prefixes: R texts up to the end of the answer marker.
        marker_logp: (R, V), of the token that follows.

    Returns:
        R arrays (A,), float32, in the order of ``question.answers``.
    """
    found: list[np.ndarray] = []
    asked = [model.answer_tokens(question) for question in questions]
    if all(_are_single(answers) for answers in asked):
        for r, answers in enumerate(asked):
            row = marker_logp[r, torch.tensor([a[0] for a in answers], device=marker_logp.device)]
            found.append(row.log_softmax(-1).cpu().numpy())
        return found
    texts = [
        ([*prefix, *answer, model.end_token], len(prefix))
        for prefix, answers in zip(prefixes, asked, strict=True)
        for answer in answers
    ]
    sums: list[float] = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        logp, _, _ = model(text_batch(part, model.writer.pad_id).to(model.device))
        sums += logp.sum(1).tolist()
    begin = 0
    for answers in asked:
        row = torch.tensor(sums[begin : begin + len(answers)])
        found.append(row.log_softmax(-1).cpu().numpy())
        begin += len(answers)
    return found


def _are_single(answers: Sequence[Sequence[int]]) -> bool:
    return all(len(a) == 1 for a in answers) and len({a[0] for a in answers}) == len(answers)


@torch.no_grad()
def next_logp(
    model: AnsweringModel, texts: Sequence[Sequence[int]], *, batch_size: int = 64
) -> Tensor:
    """Return the log-probabilities (R, V) of what follows each text, from one pass over it."""
    parts = []
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        batch = text_batch([(text, 0) for text in part], model.writer.pad_id).to(model.device)
        hidden = model.run_backbone(
            model.embed(batch.token_ids), position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        last = torch.tensor([len(text) - 1 for text in part], device=model.device)
        is_last = torch.arange(hidden.shape[1], device=model.device) == last[:, None]
        parts.append(model.following_logp(batch, hidden, is_last))
    return torch.cat(parts)


def prompts_of(model: AnsweringModel, questions: Sequence[Question]) -> list[list[int]]:
    """Return the prompt of every question."""
    return [model.prompt_tokens(student_prompt(question)) for question in questions]

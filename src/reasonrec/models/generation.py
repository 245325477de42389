"""Sampling thoughts: the prompt is read once, each token is drawn from the language head, and
whatever a look-up finds is inserted between the model's own tokens.

The state after every thought falls out of the same passes, so ranking after a thought costs no
further one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicLayer

from reasonrec.models.branches import pooled, read_states
from reasonrec.models.config import Pooling
from reasonrec.models.language_head import PLAIN, policy_logp
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.records import Lookup, TokenPolicy
from reasonrec.traces.found import FoundInThought, found_columns
from reasonrec.traces.prompts import ASKING, Prompts, PromptWriter

LookUp = Callable[[list[int], list[int], list[int]], Sequence[Lookup | None]]
"""(prompt rows, items asked about or one of `ASKING`, how often the thought asked that before) ->
the evidence for each; None where what was written is no question after all."""
Part = tuple[int, int]
"""The first thought of a part, and the number of thoughts in the whole batch."""


@dataclass
class Generated:
    """R thoughts, G for each of P prompts, prompt by prompt (R = P * G)."""

    token_ids: Tensor
    """(R, S), from the opening, ``<think>``, to the end of the answer marker, right-padded."""
    lengths: Tensor
    """(R,)."""
    is_written: Tensor
    """(R, S), True for tokens drawn from the language head; inserted and forced ones are False."""
    token_logp: Tensor
    """(R, S), float32 log-probability of each written token under ``logp_of``; 0 elsewhere."""
    pre_states: Tensor
    """(R, D), at the last token of the prompt."""
    post_states: Tensor
    """(R, D), after the thought: at the last token of the answer marker, or pooled."""
    named_at: Tensor
    """(R, E), where in a thought the title of each looked-up item ends, or the answer, if it only
    weighs; 0 for none."""
    named_item: Tensor
    """(R, E), which items those are; -1 for none."""
    named_weight: Tensor
    """(R, E), float32, how strongly the graph holds with each; 0 for none."""
    named_kind: Tensor
    """(R, E), the place in ``LOOKUP_KINDS`` of the question that found each."""
    is_truncated: Tensor
    """(R,), True where the marker had to be forced: the budget was used up, or the model ended its
    turn without it."""
    evidence: list[list[Lookup]]
    """What each thought looked up, in order."""
    logp_of: TokenPolicy
    """The policy that drew; the plain softmax where the likeliest tokens were taken."""


@torch.no_grad()
def think(
    model: ReasoningRecommender,
    prompts: Prompts,
    look_up: LookUp | None,
    *,
    max_tokens: int,
    group_size: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    generator: torch.Generator | None = None,
    part: Part | None = None,
) -> Generated:
    """Return ``group_size`` thoughts for every prompt.

    Args:
        look_up: Asked whenever a thought has written `` After [Title]`` or a word of `ASKING`; None
            for no look-ups.
        max_tokens: Most tokens of a thought, inserted ones included, the answer marker not.
        temperature: Divides the token logits; 0 takes the likeliest token.
        top_k: Draw among this many likeliest tokens; 0 for all.
        generator: Source of randomness; needed unless ``temperature`` is 0.
        part: Which thoughts of a larger batch these are; each then draws the numbers that it would
            draw in the whole. None: they are the whole.
    """
    if temperature > 0 and generator is None:
        raise ValueError("sampling with a temperature above 0 needs a generator")
    writer, device, G = model.writer, model.device, group_size
    policy = TokenPolicy(temperature, top_k) if temperature else None
    R = len(prompts.lengths) * G
    limit = len(writer.opening) + max_tokens
    S = limit + len(writer.answer)
    thoughts = [_Thought(writer, limit) for _ in range(R)]
    reader = _Reader(model, prompts, G, S)
    seen = torch.from_numpy(prompts.token_ids).to(device)
    own = torch.full((R, S), writer.pad_id, device=device)
    is_written = torch.zeros((R, S), dtype=torch.bool, device=device)
    token_logp = torch.zeros((R, S), device=device)
    # of a row and a place, whenever that place is drawn: rows are not in step
    uniform_S_R = None
    if temperature > 0:
        first, whole = part or (0, R)
        uniform_S_R = torch.cat(
            [torch.rand((1, whole), generator=generator, device=device) for _ in range(S)]
        )[:, first : first + R]
    while reader.rows:
        read, states = reader.read(thoughts)
        going_on = [i for i, r in enumerate(read) if not thoughts[r].is_ended]
        if len(going_on) < len(read):
            reader.leave_behind(thoughts)
            read, states = [read[i] for i in going_on], states[going_on]
        if not read:
            continue
        row = torch.tensor(read, device=device)
        places = [len(thoughts[r].tokens) for r in read]
        place = torch.tensor(places, device=device)
        last = torch.tensor([thoughts[r].tokens[-1] for r in read], device=device)
        proposed = _proposed([thoughts[r] for r in read], model)
        logits = model.language_logits(
            states, seen[row // G], own[row, : max(places)], last, proposed
        )
        uniform = None if uniform_S_R is None else uniform_S_R[place - 1, row]
        drawn, logp = _draw(logits, policy, uniform)
        own[row, place], is_written[row, place], token_logp[row, place] = drawn, True, logp
        _go_on(model, thoughts, read, drawn.tolist(), look_up, G)
    length = max(len(thought.tokens) for thought in thoughts)
    token_ids = pad_sequence(
        [torch.tensor(thought.tokens) for thought in thoughts], True, writer.pad_id
    )
    named = found_columns([thought.named for thought in thoughts])
    named_at, named_item, named_weight, named_kind = (
        torch.from_numpy(column).to(device) for column in named
    )
    lengths = torch.tensor([len(thought.tokens) for thought in thoughts], device=device)
    return Generated(
        token_ids=token_ids.to(device),
        lengths=lengths,
        is_written=is_written[:, :length],
        token_logp=token_logp[:, :length],
        pre_states=reader.pre_states,
        post_states=reader.post_states(lengths),
        named_at=named_at,
        named_item=named_item,
        named_weight=named_weight,
        named_kind=named_kind,
        is_truncated=torch.tensor([thought.is_truncated for thought in thoughts], device=device),
        evidence=[thought.evidence for thought in thoughts],
        logp_of=policy or PLAIN,
    )


class _Thought:
    """One thought while it is written: the tokens that stand firm, and how many were read."""

    __slots__ = (
        "evidence", "is_ended", "is_truncated", "limit", "named", "num_read", "tokens", "writer",
    )  # fmt: skip

    def __init__(self, writer: PromptWriter, limit: int) -> None:
        self.writer, self.limit = writer, limit
        self.tokens: list[int] = []
        self.num_read = 0
        self.evidence: list[Lookup] = []
        self.named = FoundInThought()
        self.is_truncated = self.is_ended = False
        self.extend(writer.opening)

    @property
    def num_unread(self) -> int:
        return len(self.tokens) - self.num_read

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens; close the thought where they use up its budget."""
        left = self.limit - len(self.tokens)
        self.tokens += tokens[:left]  # a look-up that does not fit is cut short
        if self.writer.ends_thought(self.tokens):
            self.is_ended = True
        elif left <= len(tokens):
            self.close()

    def insert(self, evidence: Lookup, tokens: list[int], ends: np.ndarray) -> None:
        self.evidence.append(evidence)
        self.named.add(len(self.tokens) + ends, evidence.found)
        self.extend(tokens)

    def close(self) -> None:
        """Force the answer marker; what it keeps out of the thought is not found."""
        self.named.forget_from(len(self.tokens))
        self.tokens += self.writer.answer
        self.is_truncated = self.is_ended = True


def _go_on(
    model: ReasoningRecommender,
    thoughts: list[_Thought],
    rows: list[int],
    drawn: list[int],
    look_up: LookUp | None,
    group_size: int,
) -> None:
    """Append what was drawn for each of the rows, and the evidence that it asks for."""
    writer = model.writer
    asking, items, places = [], [], []
    for r, token in zip(rows, drawn, strict=True):
        thought = thoughts[r]
        if token in writer.end_ids:
            thought.tokens.append(token)
            thought.close()
            continue
        item = None
        if look_up is not None and token in writer.asking_tokens:
            item = writer.asked_by([*thought.tokens, token])
        if item is None:
            thought.extend([token])
        else:
            thought.tokens.append(token)
            asking.append(r)
            items.append(item)
            kind = ASKING[item][1] if item in ASKING else "after"
            places.append(sum(one.kind == kind for one in thought.evidence))
    if look_up is None or not asking:
        return
    found = look_up([r // group_size for r in asking], items, places)
    for r, evidence in zip(asking, found, strict=True):
        if evidence is None:
            thoughts[r].extend([])
        else:
            thoughts[r].insert(evidence, *writer.lookup_tokens(evidence))


def _proposed(thoughts: list[_Thought], model: ReasoningRecommender) -> Tensor | None:
    """Return the title tokens (R, C) of candidates that R thoughts hold, padded; None for none."""
    titles, pad_id = model.writer.title_token_ids, model.writer.pad_id
    rows = [
        [link.item_index for one in thought.evidence if one.kind == "maybe" for link in one.links]
        for thought in thoughts
    ]
    if titles is None or not any(rows):
        return None
    named = [torch.from_numpy(titles[row]) for row in rows]
    return pad_sequence(named, True, pad_id).to(model.device)


FEW_UNDER_WAY = 0.25
"""Share of thoughts that have one token to be read, below which those that have several, a
question and its answer, wait for them no longer."""

FEW_ENDED = 0.25
"""Share of ended thoughts from which on the cache is copied without them."""


class _Reader:
    """Lets the backbone read thoughts behind their prompts, each at a pace of its own.

    Ends of rows that have no token to be read are filled up with padding that nobody attends to.
    Where layers look back over a window of the cache, padding would use it up: there all thoughts
    are read token by token.
    """

    def __init__(
        self, model: ReasoningRecommender, prompts: Prompts, group_size: int, most_tokens: int
    ) -> None:
        states, self.cache, is_prompt = _read_prompts(model, prompts)
        T = is_prompt.shape[1]
        self.model = model
        self.pre_states = states.repeat_interleave(group_size, 0)
        self._pooling: Pooling = model.head.pooling
        nothing = -torch.inf if self._pooling == "max" else 0.0
        self._read = torch.full_like(self.pre_states, nothing)
        """(R, D), float32, what was read of each thought up to now: pooled, or its last state."""
        self.rows = list(range(len(self.pre_states)))
        """Thoughts under way, in the order of the cache."""
        self._start = prompts.lengths.repeat(group_size)
        self._is_seen = is_prompt.repeat_interleave(group_size, 0)
        layers = self.cache.layers
        self._any_pace = model.takes_own_masks(T + most_tokens) and all(
            type(layer) is DynamicLayer for layer in layers
        )
        for i, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[i] = _ReservedLayer(layer, group_size, T + most_tokens)
            else:
                layer.batch_repeat_interleave(group_size)

    def read(self, thoughts: list[_Thought]) -> tuple[list[int], Tensor]:
        """Read some tokens; return the thoughts that were read up to now, and their states."""
        under_way = [thoughts[r] for r in self.rows]
        unread = np.array([thought.num_unread for thought in under_way])
        counts = self._counts(unread)
        (A, C), device = (len(counts), counts.max()), self.model.device
        ids = np.full((A, C), self.model.writer.pad_id)
        for a, thought in enumerate(under_way):
            begin = thought.num_read
            ids[a, : counts[a]] = thought.tokens[begin : begin + counts[a]]
        step = np.arange(C)
        start = [
            self._start[r] + thought.num_read
            for r, thought in zip(self.rows, under_way, strict=True)
        ]
        is_token = torch.from_numpy(step < counts[:, None]).to(device)
        self._is_seen = torch.cat([self._is_seen, is_token], 1)
        embeddings = self.model.embed(torch.from_numpy(ids).to(device))
        hidden = self.model.run_backbone(
            embeddings,
            attention_mask=self._mask(C, embeddings.dtype),
            position_ids=torch.from_numpy(np.array(start)[:, None] + step).to(device),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
        for thought, count in zip(under_way, counts.tolist(), strict=True):
            thought.num_read += count
        self._remember(hidden, is_token)
        ready = np.flatnonzero((counts > 0) & (counts == unread))
        index = torch.from_numpy(ready).to(device)
        last = torch.from_numpy(counts[ready] - 1).to(device)
        return [self.rows[a] for a in ready.tolist()], hidden[index, last]

    def _remember(self, hidden: Tensor, is_token: Tensor) -> None:
        """Take note of the states (A, C, D) that were just read of the rows under way."""
        rows = torch.tensor(self.rows, device=hidden.device)
        if self._pooling == "mean":
            self._read[rows] += pooled(hidden, is_token, "mean")
        elif self._pooling == "max":
            read = pooled(hidden, is_token, "max")
            self._read[rows] = torch.maximum(self._read[rows], read)
        else:
            count = is_token.sum(1)
            last = read_states(hidden, (count - 1).clamp(min=0)[:, None])[:, 0]
            self._read[rows] = last.where(count[:, None] > 0, self._read[rows])

    def post_states(self, lengths: Tensor) -> Tensor:
        """Return the states after thoughts of so many tokens, (R, D), all of them read."""
        return self._read / lengths[:, None] if self._pooling == "mean" else self._read

    def _counts(self, unread: np.ndarray) -> np.ndarray:
        """Return how many tokens of each row are read next."""
        one = np.minimum(unread, 1)
        if not self._any_pace:
            return one
        single = unread == 1
        return one * single if single.sum() >= max(1, FEW_UNDER_WAY * one.sum()) else unread

    def _mask(self, num_new: int, dtype: torch.dtype) -> Tensor:
        if not self._any_pace:
            return self._is_seen.long()
        may_attend = self._is_seen[:, None, None, :].repeat(1, 1, num_new, 1)
        within = torch.ones((num_new, num_new), dtype=torch.bool, device=may_attend.device)
        may_attend[..., -num_new:] &= within.tril()
        bias = torch.zeros(may_attend.shape, dtype=dtype, device=may_attend.device)
        return bias.masked_fill_(~may_attend, torch.finfo(dtype).min)

    def leave_behind(self, thoughts: list[_Thought]) -> None:
        """Drop the rows of thoughts that have ended, once they are more than a few."""
        kept = [
            a for a, r in enumerate(self.rows)
            if not thoughts[r].is_ended or thoughts[r].num_unread
        ]  # fmt: skip
        if kept and len(self.rows) - len(kept) < FEW_ENDED * len(self.rows):
            return
        self.rows = [self.rows[a] for a in kept]
        if kept:
            index = torch.tensor(kept, device=self.model.device)
            self._is_seen = self._is_seen[index]
            self.cache.batch_select_indices(index)


class _ReservedLayer(DynamicLayer):
    """Keys and values of one layer, with room for those to come, so that none is copied again.

    Args:
        layer: What the prompts left, each of whose rows becomes ``group_size`` rows.
    """

    def __init__(self, layer: DynamicLayer, group_size: int, room: int) -> None:
        super().__init__()
        assert layer.keys is not None and layer.values is not None
        self.lazy_initialization(layer.keys, layer.values)
        self._length = 0
        self._room = torch.empty(0)
        self._reserve(
            torch.stack([layer.keys, layer.values]).repeat_interleave(group_size, 1), room
        )

    def _reserve(self, kept: Tensor, room: int) -> None:
        """Take over keys and values (2, R, heads, T, width) with room for ``room`` tokens."""
        self._length = kept.shape[3]
        self._room = kept.new_empty((*kept.shape[:3], room, kept.shape[4]))
        self._room[..., : self._length, :] = kept
        self.keys, self.values = self._room[..., : self._length, :]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start, stop = self._length, self._length + key_states.shape[2]
        if stop > self._room.shape[3]:
            self._reserve(self._room[..., :start, :], stop + stop // 4)
        self._length = stop
        self._room[0, ..., start:stop, :] = key_states
        self._room[1, ..., start:stop, :] = value_states
        self.keys, self.values = self._room[..., :stop, :]
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        self._reserve(self._room[:, indices, :, : self._length], self._room.shape[3])


def _draw(
    logits: Tensor, policy: TokenPolicy | None, uniform: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return token ids (R,) and their log-probabilities (R,) under the policy that drew them.

    Args:
        policy: None takes the likeliest token, with its log-probability in the plain softmax.
        uniform: (R,), random numbers in [0, 1); needed for a policy.
    """
    logp = policy_logp(logits, policy or PLAIN)
    if policy is None:
        best = logp.max(-1)
        return best.indices, best.values
    assert uniform is not None
    # inverse of the cumulative distribution: one uniform number a row; far cheaper than a
    # multinomial draw over the vocabulary on a CPU
    # `exp` is slow at -inf: those are set to 0 by themselves
    share = logp.clamp(min=-80.0).exp().masked_fill_(logp < -80.0, 0.0)
    cumulative = share.cumsum(-1)
    drawn = torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:], right=True)
    drawn = drawn.clamp(max=logits.shape[-1] - 1)
    return drawn[:, 0], logp.gather(-1, drawn)[:, 0]


def _read_prompts(model: ReasoningRecommender, prompts: Prompts) -> tuple[Tensor, Any, Tensor]:
    """Return states after the prompts (P, D), the cache, and which places of it hold a prompt
    (P, T)."""
    ids = torch.from_numpy(prompts.token_ids).to(model.device)
    lengths = torch.from_numpy(prompts.lengths).to(model.device)
    place = torch.arange(ids.shape[1], device=ids.device)
    if model.writer.title_token_ids is None:
        # padded on the left: backbones whose layers look back over a window of the cache count
        # its places, and padding between a prompt and its thought would use the window up
        before = ids.shape[1] - lengths[:, None]
        position = (place - before).clamp(min=0)
        is_prompt, last = place >= before, torch.full_like(lengths, ids.shape[1] - 1)
        ids = ids.gather(1, position).where(is_prompt, model.writer.pad_id)
    else:
        position, is_prompt, last = place.expand_as(ids), place < lengths[:, None], lengths - 1
    out = model.run_backbone(
        model.embed(ids),
        attention_mask=is_prompt.long(),
        position_ids=position,
        use_cache=True,
    )
    states = read_states(out.last_hidden_state, last[:, None])[:, 0]
    return states, out.past_key_values, is_prompt


@torch.no_grad()
def read_prompts(model: ReasoningRecommender, prompts: Prompts) -> Tensor:
    """Return the states after the prompts, (P, D): where ranking without a thought starts."""
    return _read_prompts(model, prompts)[0]

"""Sampling thoughts: the prompt is read once, each token is drawn from the language head, and
whatever a look-up finds is inserted between the model's own tokens.

The last state of every thought, at the end of the answer marker, falls out of the same pass, so
ranking after a thought costs no further one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reasonrec.models.reasoning_recommender import ReasoningRecommender, read_states
from reasonrec.records import Link, Lookup
from reasonrec.traces.prompts import ANSWER, Prompts, PromptWriter

LookUp = Callable[[list[int], list[int]], Sequence[Lookup]]
"""(prompt rows, item indices asked about) -> the evidence for each."""
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
    """(R, S), float32 log-probability of each written token under the sampler's own temperature-1
    distribution; 0 elsewhere."""
    pre_states: Tensor
    """(R, D), at the last token of the prompt."""
    post_states: Tensor
    """(R, D), at the last token of the answer marker."""
    named_at: Tensor
    """(R, E), where in a thought the title of each looked-up item ends; 0 for none."""
    named_item: Tensor
    """(R, E), which items those are; -1 for none."""
    named_weight: Tensor
    """(R, E), float32, how strongly the graph holds with each; 0 for none."""
    is_truncated: Tensor
    """(R,), True where the marker had to be forced: the budget was used up, or the model ended its
    turn without it."""
    evidence: list[list[Lookup]]
    """What each thought looked up, in order."""


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
        look_up: Asked whenever a thought has written `` After [Title]``; None for no look-ups.
        max_tokens: Most tokens of a thought, inserted ones included, the answer marker not.
        temperature: Divides the token logits; 0 takes the likeliest token. The stored
            log-probabilities are those of temperature 1.
        top_k: Draw among this many likeliest tokens; 0 for all. The stored log-probabilities are
            those among all.
        generator: Source of randomness; needed unless ``temperature`` is 0.
        part: Which thoughts of a larger batch these are; each then draws the numbers that it would
            draw in the whole. None: they are the whole.
    """
    if temperature > 0 and generator is None:
        raise ValueError("sampling with a temperature above 0 needs a generator")
    writer, device = model.writer, model.device
    G = group_size
    R = len(prompts.lengths) * G
    start, answer = writer.opening, writer.encode(ANSWER)
    states, cache, lengths, is_prompt = _read_prompts(model, prompts)
    seen = torch.from_numpy(prompts.token_ids).to(device).repeat_interleave(G, 0)
    pre = states.repeat_interleave(G, 0)
    if G > 1:
        cache.batch_repeat_interleave(G)
    prompt_lengths = lengths.repeat_interleave(G)
    T = prompts.token_ids.shape[1]
    S = max_tokens + len(answer) + len(start)
    tokens = torch.full((R, S), writer.pad_id, device=device)
    is_written = torch.zeros((R, S), dtype=torch.bool, device=device)
    token_logp = torch.zeros((R, S), device=device)
    mask = torch.zeros((R, T + S), dtype=torch.long, device=device)
    mask[:, :T] = is_prompt.repeat_interleave(G, 0)
    post = torch.zeros_like(pre)
    rows = [_Row(start) for _ in range(R)]
    current = torch.full((R,), start[0], device=device)
    ends = torch.zeros(R, dtype=torch.long, device=device)
    active = list(range(R))
    for step in range(S):
        tokens[:, step] = torch.where(ends > 0, writer.pad_id, current)
        mask[:, T + step] = (ends == 0).long()
        out = model.run_backbone(
            model.embed(current[:, None]),
            attention_mask=mask[:, : T + step + 1],
            position_ids=(prompt_lengths + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        state = out.last_hidden_state[:, 0]
        done = [r for r in active if rows[r].is_answered(step, writer)]
        if done:
            index = torch.tensor(done, device=device)
            post[index] = state[index].to(post.dtype)
            ends[index] = step + 1
            active = [r for r in active if rows[r].end is None]
        if not active:
            break
        asked = tokens[:, : step + 1].where(is_written[:, : step + 1], writer.pad_id)
        logits = model.language_logits(state, seen, asked, current)
        drawn, logp = _draw(logits, temperature, top_k, generator, part)
        queued = torch.full((R,), -1, dtype=torch.long)
        for r in active:
            if step + 1 >= max_tokens + len(start) and not rows[r].is_truncated:
                rows[r].force(answer)
            if rows[r].queue:
                queued[r] = rows[r].queue.popleft()
        queued = queued.to(device)
        is_own = (queued < 0) & (ends == 0)
        current = torch.where(queued >= 0, queued, drawn)
        if step + 1 < S:
            is_written[:, step + 1] = is_own
            token_logp[:, step + 1] = torch.where(is_own, logp, 0.0)
        _advance(model, rows, active, current.tolist(), is_own.tolist(), look_up, G)
    length = int(ends.max())
    named_at, named_item, named_weight = _named(rows, device)
    return Generated(
        token_ids=tokens[:, :length],
        lengths=ends,
        is_written=is_written[:, :length],
        token_logp=token_logp[:, :length],
        pre_states=pre,
        post_states=post,
        named_at=named_at,
        named_item=named_item,
        named_weight=named_weight,
        is_truncated=torch.tensor([row.is_truncated for row in rows], device=device),
        evidence=[row.evidence for row in rows],
    )


class _Row:
    """One thought while it is written."""

    __slots__ = ("end", "evidence", "is_truncated", "named", "queue", "tokens")

    def __init__(self, start: list[int]) -> None:
        self.tokens = start[:1]
        self.queue: deque[int] = deque(start[1:])
        self.evidence: list[Lookup] = []
        self.named: dict[int, Link] = {}
        """Position of the end of a title -> the item, as the graph holds it."""
        self.is_truncated = False
        self.end: int | None = None

    def is_answered(self, step: int, writer: PromptWriter) -> bool:
        if not self.queue and writer.ends_thought(self.tokens):
            self.end = step
            return True
        return False

    def insert(self, evidence: Lookup, tokens: list[int], ends: list[int]) -> None:
        self.evidence.append(evidence)
        self.queue.extend(tokens)
        for link, end in zip(evidence.links, ends, strict=True):
            self.named[len(self.tokens) + end] = link

    def force(self, answer: list[int]) -> None:
        self.queue = deque(answer)  # a look-up that does not fit is cut short
        self.is_truncated = True


def _advance(
    model: ReasoningRecommender,
    rows: list[_Row],
    active: list[int],
    current: list[int],
    is_own: list[bool],
    look_up: LookUp | None,
    group_size: int,
) -> None:
    """Append this step's tokens, and queue the evidence that written ones ask for."""
    closing, ending = model.writer.closing_tokens, model.writer.end_ids
    asking, items = [], []
    for r in active:
        row = rows[r]
        row.tokens.append(current[r])
        if is_own[r] and current[r] in ending:
            row.force(model.writer.encode(ANSWER))
            continue
        if look_up is None or not is_own[r] or current[r] not in closing:
            continue
        item = model.writer.asked_item(str(model.tokenizer.decode(row.tokens)))
        if item is not None:
            asking.append(r)
            items.append(item)
    if look_up is None or not asking:
        return
    found = look_up([r // group_size for r in asking], items)
    for r, evidence in zip(asking, found, strict=True):
        rows[r].insert(
            evidence, *model.writer.lookup_tokens([k.item_index for k in evidence.links])
        )


def _named(rows: list[_Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return where each thought names what it looked up, the items, and their weights, padded."""
    # a forced end can cut the last look-up short: what was not read is not found
    read = [[(at, link) for at, link in row.named.items() if at < len(row.tokens)] for row in rows]
    most = max((len(found) for found in read), default=0)
    at = torch.zeros((len(rows), most), dtype=torch.long)
    item = torch.full_like(at, -1)
    weight = torch.zeros(at.shape)
    for r, found in enumerate(read):
        at[r, : len(found)] = torch.tensor([place for place, _ in found])
        item[r, : len(found)] = torch.tensor([link.item_index for _, link in found])
        weight[r, : len(found)] = torch.tensor([link.weight for _, link in found])
    return at.to(device), item.to(device), weight.to(device)


def _draw(
    logits: Tensor,
    temperature: float,
    top_k: int,
    generator: torch.Generator | None,
    part: Part | None = None,
) -> tuple[Tensor, Tensor]:
    """Return token ids (R,) and their temperature-1 log-probabilities (R,)."""
    logp = logits.log_softmax(-1)
    if temperature == 0:
        best = logp.max(-1)
        return best.indices, best.values
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    elif temperature == 1:
        logits = logp
    heated = logits if logits is logp else (logits / temperature).log_softmax(-1)
    # inverse of the cumulative distribution: one uniform number a row; far cheaper than a
    # multinomial draw over the vocabulary on a CPU
    cumulative = heated.exp().cumsum(-1)
    first, whole = part or (0, len(logits))
    uniform = torch.rand((whole, 1), generator=generator, device=logits.device)
    uniform = uniform[first : first + len(logits)]
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    drawn = drawn.clamp(max=logits.shape[-1] - 1)
    return drawn[:, 0], logp.gather(-1, drawn)[:, 0]


def _read_prompts(
    model: ReasoningRecommender, prompts: Prompts
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """Return states after the prompts (P, D), the cache, lengths (P,), and which places of the
    cache hold a prompt (P, T)."""
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
    return states, out.past_key_values, lengths, is_prompt


@torch.no_grad()
def read_prompts(model: ReasoningRecommender, prompts: Prompts) -> Tensor:
    """Return the states after the prompts, (P, D): where ranking without a thought starts."""
    return _read_prompts(model, prompts)[0]

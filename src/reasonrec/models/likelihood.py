"""Ranks the catalogue by how likely a language model is to write each item next.

An item is a sequence of tokens: its title, or a semantic ID. The probability of an item is the
product over its tokens of ``p(token | prompt, tokens before)``, taken over the tokens with which
some item goes on. So it is the exact probability of each item under decoding that is held to the
trie: it sums to 1 over the catalogue, nothing but an existing item has any, and a long title loses
nothing by its length, since a token that must follow costs nothing.

The trie is read level by level behind one pass over the prompt. All beginnings of one length are
one call of the backbone, in which each sees the prompt and its own beginning alone; a beginning
that only one item has need not be read on. A beam keeps the likeliest beginnings of each length
and gives -inf to the items that it lost.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasonrec.models.answers import AnsweringModel
from reasonrec.models.branches import read_states
from reasonrec.models.reasoning_recommender import MOST_LOGITS
from reasonrec.models.trie import TokenTrie
from reasonrec.records import Histories, Scored

MOST_ATTENDED = 2**22
"""Entries of the attention mask of one call, 16 MiB; decides how many prompts share a pass."""
MOST_TOGETHER = 128
"""Beginnings that are read together: each sees its own alone, and the rest is masked in vain."""


@dataclass(frozen=True)
class LikelihoodRecommender:
    """Ranks by the probability that an item continues the history.

    Meets `reasonrec.baselines.contract.Recommender`.
    """

    model: AnsweringModel
    trie: TokenTrie
    name: str
    beam: int = 0
    """Beginnings kept at each length; 0 keeps all, which is exact."""
    batch_size: int = 128

    def score(self, histories: Histories) -> Scored:
        self.model.eval()
        scores = np.empty((len(histories), self.trie.num_items), np.float32)
        size = self.batch_size
        if len(self.trie.levels) > 1:
            shown = np.minimum(histories.lengths, self.model.writer.max_history).max(initial=0)
            longest = int(shown) * len(self.trie.levels) + 2 * MOST_TOGETHER
            size = max(1, min(size, MOST_ATTENDED // (longest * (self.beam or MOST_TOGETHER))))
        for start in range(0, len(histories), size):
            rows = np.arange(start, min(start + size, len(histories)))
            prompts = self.model.writer.prompts(histories.take(rows))
            ids, lengths = torch.from_numpy(prompts.token_ids), torch.from_numpy(prompts.lengths)
            found = score_items(self.model, ids, lengths, self.trie, beam=self.beam)
            scores[rows] = found.cpu().numpy()
        return Scored(scores)


def item_trie(model: AnsweringModel) -> TokenTrie:
    """Return the trie of what the model's prompts call the items."""
    return TokenTrie([model.writer.item_tokens(item) for item in range(model.num_items)])


@torch.no_grad()
def score_items(
    model: AnsweringModel, token_ids: Tensor, lengths: Tensor, trie: TokenTrie, *, beam: int = 0
) -> Tensor:
    """Return the log-probability of every item behind every prompt.

    Args:
        token_ids: Prompts, padded on the right. (B, T).
        lengths: (B,).
        beam: Beginnings kept at each length; 0 keeps all.

    Returns:
        (B, N), float32: exact, their exponentials sum to 1. With a beam, -inf for items that it
        lost; what it found has the exact value.
    """
    reader = _TrieReader(model, token_ids, lengths)
    scores = torch.full((len(lengths), trie.num_items), -torch.inf, device=model.device)
    root = _Begun(torch.zeros(len(lengths), 1, device=model.device))
    firsts = _go_on(model, trie, 0, root, reader.prompt_states, scores, beam)
    if firsts is None:
        return scores
    for group in [None] if beam else trie.groups(MOST_TOGETHER):
        begun = firsts
        if group is not None:
            kept = torch.isin(firsts.node[0], torch.from_numpy(group).to(model.device))
            begun = _Begun(firsts.logp[:, kept], firsts.node[:, kept], firsts.parent[:, kept])
        reader.forget()
        for depth in range(1, len(trie.levels)):
            token = torch.from_numpy(trie.levels[depth - 1].token).to(model.device)[begun.node]
            states = reader.read(token, begun.parent)
            begun = _go_on(model, trie, depth, begun, states, scores, beam)
            if begun is None:
                break
    return scores


@dataclass
class _Begun:
    """W beginnings of one length behind each of B prompts that several items share."""

    logp: Tensor
    """(B, W)."""
    node: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(B, W), their places in the trie's level. Of no meaning for the empty beginning."""
    parent: Tensor = field(default_factory=lambda: torch.zeros(0))
    """(B, W), which of the beginnings one token shorter each continues."""


def _go_on(
    model: AnsweringModel,
    trie: TokenTrie,
    depth: int,
    begun: _Begun,
    states: Tensor,
    scores: Tensor,
    beam: int,
) -> _Begun | None:
    """Return the beginnings that are one token longer; write down items that are alone there.

    Args:
        depth: Length of ``begun``, whose ``states`` are (B, W, D).
        scores: (B, N), changed in place.
    """
    device, level = scores.device, trie.levels[depth]
    item, num_items = (torch.from_numpy(x).to(device) for x in (level.item, level.num_items))
    token = torch.from_numpy(level.token).to(device)
    if depth:
        above = trie.levels[depth - 1]
        first = torch.from_numpy(above.first_child).to(device)[begun.node]
        count = torch.from_numpy(above.num_children).to(device)[begun.node]
    else:
        first = torch.zeros_like(begun.logp, dtype=torch.long)
        count = torch.full_like(first, len(token))
    step = torch.arange(int(count.max()), device=device)
    exists = step < count[..., None]  # (B, W, C)
    node = (first[..., None] + step).where(exists, 0)
    logits = _logits_of(model, states.flatten(0, 1), token[node].flatten(0, 1))
    conditional = logits.reshape(node.shape).masked_fill(~exists, -torch.inf).log_softmax(-1)
    logp = (begun.logp[..., None] + conditional).flatten(1)  # (B, W C)
    node, exists = node.flatten(1), exists.flatten(1)
    parent = torch.arange(node.shape[1], device=device).expand(len(node), -1) // len(step)
    if beam:
        best = logp.topk(min(beam, logp.shape[1]), dim=1)
        logp = best.values
        node, exists, parent = (x.gather(1, best.indices) for x in (node, exists, parent))
        exists &= logp > -torch.inf
    row, column = ((num_items[node] == 1) & exists).nonzero(as_tuple=True)
    scores[row, item[node[row, column]]] = logp[row, column]
    goes_on = (num_items[node] > 1) & exists
    if not goes_on.any():
        return None
    if beam:  # which ones go on differs by row: the others stay, as if they had no chance
        any_shared = int((num_items > 1).nonzero()[0, 0])
        return _Begun(
            logp.masked_fill(~goes_on, -torch.inf), node.where(goes_on, any_shared), parent
        )
    kept = goes_on[0]  # the same for all rows
    return _Begun(logp[:, kept], node[:, kept], parent[:, kept])


def _logits_of(model: AnsweringModel, states: Tensor, tokens: Tensor) -> Tensor:
    """Return the logits (R, C) of tokens (R, C) from states (R, D)."""
    most = max(1, MOST_LOGITS // model.backbone.get_output_embeddings().weight.shape[0])
    parts = [
        model.token_logits(part.to(model.backbone.dtype)).gather(1, wanted)
        for part, wanted in zip(states.split(most), tokens.split(most), strict=True)
    ]
    return torch.cat(parts)


class _TrieReader:
    """Reads W beginnings behind each of B prompts, one token longer at each call."""

    def __init__(self, model: AnsweringModel, token_ids: Tensor, lengths: Tensor) -> None:
        self.model = model
        self.token_ids, self.lengths = token_ids.to(model.device), lengths.to(model.device)
        place = torch.arange(token_ids.shape[1], device=model.device)
        self.is_prompt = place < self.lengths[:, None]
        out = model.run_backbone(
            model.embed(self.token_ids), attention_mask=self.is_prompt.long(), use_cache=True
        )
        self.cache: Any = out.past_key_values
        last = (self.lengths - 1)[:, None]
        self.prompt_states = read_states(out.last_hidden_state, last)
        """(B, 1, D), at the end of each prompt."""
        self.num_read = 0
        self.forget()

    def forget(self) -> None:
        """Go back to the ends of the prompts."""
        B, device = len(self.lengths), self.lengths.device
        if self.num_read:
            self.cache.crop(-self.num_read)
        self.num_read = 0
        self.path = torch.zeros(B, 1, 0, dtype=torch.long, device=device)
        self.sees = torch.zeros(B, 1, 0, dtype=torch.bool, device=device)

    def read(self, token: Tensor, parent: Tensor) -> Tensor:
        """Return the states (B, W, D) of beginnings that end in ``token`` (B, W).

        Args:
            parent: (B, W), which of the beginnings of the last call each continues.
        """
        depth = self.path.shape[-1]
        if depth == 0:
            parent = torch.zeros_like(token)  # the prompt
        rows = torch.arange(len(token), device=token.device)[:, None]
        self.path = torch.cat([self.path[rows, parent], token[..., None]], 2)  # (B, W, depth + 1)
        if depth:
            is_parent = torch.zeros(*token.shape, self.sees.shape[1], device=token.device).bool()
            is_parent.scatter_(2, parent[..., None], True)
            self.sees = torch.cat([self.sees[rows, parent], is_parent], 2)
        else:
            self.sees = self.sees[rows, parent]
        longest = int(self.lengths.max()) + self.sees.shape[2] + token.shape[1]
        return (
            self._together(token, depth) if self.model.takes_own_masks(longest) else self._apart()
        )

    def _together(self, token: Tensor, depth: int) -> Tensor:
        B, W = token.shape
        itself = torch.eye(W, dtype=torch.bool, device=token.device).expand(B, W, W)
        trunk = self.is_prompt[:, None].expand(B, W, -1)
        may_attend = torch.cat([trunk, self.sees, itself], 2)
        embeddings = self.model.embed(token)
        bias = torch.zeros(may_attend.shape, dtype=embeddings.dtype, device=token.device)
        bias.masked_fill_(~may_attend, torch.finfo(bias.dtype).min)
        self.num_read += W
        return self.model.run_backbone(
            embeddings,
            attention_mask=bias[:, None],
            position_ids=(self.lengths[:, None] + depth).expand(B, W),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state

    def _apart(self) -> Tensor:
        """Return the same from one row of prompt and beginning for each, read anew."""
        B, W, depth = self.path.shape
        ids = torch.cat([self.token_ids, self.path.new_zeros(B, depth)], 1)
        ids = ids[:, None].expand(B, W, -1).clone()
        at = (self.lengths[:, None] + torch.arange(depth, device=ids.device))[:, None]
        ids.scatter_(2, at.expand(B, W, depth), self.path)
        lengths = (self.lengths + depth)[:, None].expand(B, W).flatten()
        hidden = [
            read_states(self.model.states_of_rows(part, length), (length - 1)[:, None])[:, 0]
            for part, length in zip(ids.flatten(0, 1).split(64), lengths.split(64), strict=True)
        ]
        return torch.cat(hidden).reshape(B, W, -1)

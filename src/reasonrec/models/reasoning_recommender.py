"""One causal language model with two heads: it writes thoughts, and it scores the catalogue.

A batch is a *trunk*, the prompt, and *branches*, thoughts that continue it. Branches of one row
share the trunk's computation and do not see each other: G rollouts of a prompt, or thoughts after
several positions of one history, cost one pass over the prompt.

Nothing here knows the name of an architecture; whether branches can share a trunk is tried once, on
a few tokens.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from reasonrec import ranks
from reasonrec.errors import CheckpointError
from reasonrec.machine import settle_threads
from reasonrec.models.adapters import train_adapters_alone
from reasonrec.models.added_marker import set_marker
from reasonrec.models.branches import Batch, Outputs, read_states, read_thoughts
from reasonrec.models.branching import BranchingBackbone
from reasonrec.models.config import HeadConfig, WeightsConfig
from reasonrec.models.item_table import ItemTable
from reasonrec.models.language_head import PLAIN, backbone_logits, logp_and_entropy, num_titles
from reasonrec.models.rec_head import (
    MOST_SCORES,
    Evidence,
    EvidencePointer,
    GatedReadout,
    beside_history,
    score_catalogue,
)
from reasonrec.records import LOOKUP_KINDS, Histories, TokenPolicy
from reasonrec.traces.config import PromptConfig
from reasonrec.traces.prompts import AFTER, PROMPT_VERSION, THINK, PromptWriter

FORMAT = 3
MAYBE_KIND = LOOKUP_KINDS.index("maybe")
TINY_SHARPNESS = 4.0
"""Scales the token logits of backbones with title tokens. Their words start as near-zero vectors
beside trained titles; without it a few hundred steps leave the sampler a long tail of nonsense."""

ASK_RECENCY = 0.7
"""Nats by which a thought asks less about a title than about the next newer one, before anything is
learned: about log 2, the recency of the verbaliser. Greedy thoughts of the tiny model otherwise ask
in the order of small differences between titles."""

TEXTS_AT_ONCE = 64
"""Item texts that are encoded side by side."""
MOST_LOGITS = 2**27
"""Token logits, or scores of next items, that are held at a time, in entries: half a GiB. Where
there are more, they are computed in parts, and once more in the backward pass."""


class ReasoningRecommender(BranchingBackbone, ModelHubMixin):
    """Any causal LM of ``transformers`` with a recommendation head beside its language head."""

    never_written: Tensor
    is_title: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        titles: list[str],
        head: HeadConfig,
        item_ids: list[str] | None = None,
        item_texts: list[str] | None = None,
        *,
        prompt: PromptConfig | None = None,
        weights: WeightsConfig | None = None,
    ) -> None:
        writer = PromptWriter(tokenizer, titles, max_history=head.max_history, prompt=prompt)
        tokens = writer.title_token_ids
        can_branch = True if tokens is not None else None  # the tiny backbone does
        super().__init__(backbone, head, weights or WeightsConfig(), can_branch=can_branch)
        self.writer = writer
        self.tokenizer = tokenizer
        self.titles = titles
        self.item_ids = item_ids if item_ids is not None else [str(i) for i in range(len(titles))]
        self.item_texts = item_texts if item_texts is not None else titles
        width = self.backbone.get_output_embeddings().weight.shape[1]
        self.item_table = ItemTable(
            head.item_rows, len(titles), width, dtype=head.table_dtype,
            title_token_ids=None if tokens is None else torch.from_numpy(tokens),
        )  # fmt: skip
        self.readout = GatedReadout(width, gated=head.gated)
        self.pointer = EvidencePointer(width, len(titles)) if head.pointer else None
        self.asks_recent = nn.Parameter(torch.zeros(head.max_history))
        start = self.writer.encode(THINK)
        never: list[Any] = [self.writer.pad_id, tokenizer.bos_token_id]
        never += start if len(start) == 1 else []
        never_written = torch.tensor(sorted({t for t in never if t is not None}))
        self.register_buffer("never_written", never_written, persistent=False)
        is_title = torch.zeros(0 if tokens is None else len(tokenizer), dtype=torch.bool)
        if tokens is not None:
            is_title[torch.from_numpy(tokens)] = True
        self.register_buffer("is_title", is_title, persistent=False)

    # ---- parts -------------------------------------------------------------------------------

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the few weights that start at nothing when thinking begins, the gate aside."""
        if self.pointer is None:
            return [self.asks_recent]
        # but not `trust.weight`: as wide as the state, it would fit the few thoughts at this rate
        return [self.asks_recent, *self.pointer.few_parameters()]

    def ask_no_more_than(self, taught: int) -> None:
        """Let thoughts end once they have asked about as many titles as they are taught to."""
        least = min(self.head.least_asked, taught)
        self.head = self.head.model_copy(update={"least_asked": least})

    def trained_state(self) -> dict[str, Tensor]:
        """Return what training can change: trained weights, and the buffers of the item table."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        trained |= {f"item_table.{name}" for name, _ in self.item_table.named_buffers()}
        return {name: tensor for name, tensor in self.state_dict().items() if name in trained}

    @property
    def num_items(self) -> int:
        return len(self.titles)

    def item_rows(self, live: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the (N, D) item rows as they are now."""
        return self.item_table(self.backbone.get_input_embeddings().weight, live)

    def score_states(self, states: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return float32 scores (..., N) of states (..., D)."""
        rows = self.item_rows() if rows is None else rows
        return score_catalogue(
            states, rows, similarity=self.head.similarity, temperature=self.head.temperature
        )

    def score_thoughts(
        self,
        pre: Tensor,
        post: Tensor,
        found: Evidence | None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Return float32 scores (..., N) after thoughts: training, reward and serving alike.

        Args:
            pre, post: States before and after the thought. (..., D).
            found: What the thoughts looked up, if anything. Past `MOST_SCORES` scores it is added
                to those of a few rows after the other, and once more in the backward pass: kept
                are the scores that come out, and none on the way to them.
        """
        mixed = F.dropout(self.readout(pre, post), self.head.dropout, self.training)
        rows = self.item_rows() if rows is None else rows
        if self.pointer is None or found is None:
            return self.score_states(mixed, rows)
        columns = mixed, post, found.item_index, found.weight, found.kind
        most = max(1, MOST_SCORES // (len(rows) * mixed.shape[1:-1].numel()))
        if len(mixed) <= most:
            return self._scores_with_evidence(rows, *columns)
        parts = zip(*(column.split(most) for column in columns), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([self._scores_with_evidence(rows, *part) for part in parts])
        return torch.cat(
            [
                checkpoint(self._scores_with_evidence, rows, *part, use_reentrant=False)
                for part in parts
            ]
        )

    def _scores_with_evidence(
        self, rows: Tensor, mixed: Tensor, post: Tensor, item: Tensor, weight: Tensor, kind: Tensor
    ) -> Tensor:
        assert self.pointer is not None
        return self.pointer(self.score_states(mixed, rows), post, Evidence(item, weight, kind))

    def beside_history(self, scores: Tensor, pre: Tensor, histories: Histories) -> Tensor:
        """Return scores (B, ..., N) after thoughts as they are served beside a history.

        Among new items nothing changes its place. As they are where items are offered again
        (``head.repeats``), or where thoughts are read by their state alone.

        Args:
            pre: States before the thoughts. (B, D).
        """
        if self.pointer is None or self.head.repeats:
            return scores
        is_own = torch.zeros(len(histories), self.num_items, dtype=torch.bool, device=scores.device)
        row = np.repeat(np.arange(len(histories)), histories.lengths)
        is_own[torch.from_numpy(row), torch.from_numpy(histories.item_index).long()] = True
        wide = (len(histories), *[1] * (scores.dim() - 2), self.num_items)
        before = self.score_states(pre).reshape(wide)
        return beside_history(scores, before, is_own.reshape(wide))

    def language_logits(
        self,
        states: Tensor,
        seen: Tensor,
        asked: Tensor,
        previous: Tensor,
        proposed: Tensor | None = None,
    ) -> Tensor:
        """Return float32 token logits (R, V) of states (R, D).

        Some tokens are -inf, for the sampler and for training alike, so that both mean the same
        policy: padding, the begin token and the opening marker are never written; a title is
        written to ask about it and only then; a thought asks about titles of its own prompt and
        candidates that it holds, about none of them twice, and about ``head.least_asked`` at least
        or all that the prompt has; `` After`` is not written where none is left to ask about. Where
        titles take several tokens only the first rule holds, and questions are read from the text.

        Args:
            seen: (R, T), tokens of the prompt; padded with the padding token.
            asked: (R, K), tokens that the thought has written so far; padded likewise.
            previous: (R,), the token before.
            proposed: (R, C), titles of candidates that stand in the thought; padded likewise. None
                for none.
        """
        if not self.is_title.numel():
            logits = backbone_logits(self.backbone, states).float()
            return logits.index_fill(-1, self.never_written, -torch.inf)
        logits = torch.full((len(states), len(self.is_title)), -torch.inf, device=states.device)
        for row, token, found in self._choices(states, seen, asked, previous, proposed):
            logits[row[:, None], token] = found
        return logits

    def _choices(
        self,
        states: Tensor,
        seen: Tensor,
        asked: Tensor,
        previous: Tensor,
        proposed: Tensor | None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield rows (K,), tokens (C,) and logits (K, C): titles for the rows that are to name one,
        words for all others. What is not yielded is never written."""
        shown, was_asked = self.is_title[seen], self.is_title[asked]
        row = (previous == self.writer.encode(AFTER)[-1]).nonzero()[:, 0]
        open_titles = self.is_title.new_zeros((len(row), len(self.is_title)))
        open_titles = open_titles.scatter(-1, seen[row], shown[row])
        if proposed is not None:
            open_titles |= torch.zeros_like(open_titles).scatter(
                -1, proposed[row], self.is_title[proposed[row]]
            )
        open_titles &= ~torch.zeros_like(open_titles).scatter(-1, asked[row], was_asked[row])
        asks = open_titles.any(-1)
        row, open_titles = row[asks], open_titles[asks]
        if len(row):
            token = self.is_title.nonzero()[:, 0]
            logits = backbone_logits(self.backbone, states[row], token).float() * TINY_SHARPNESS
            recency = self._recency(seen[row], shown[row], len(self.is_title))
            logits = logits + recency.index_select(-1, token)
            is_closed = ~open_titles.index_select(-1, token)
            yield row, token, logits.masked_fill(is_closed, -torch.inf)
        names_none = torch.ones_like(previous, dtype=torch.bool).index_fill(0, row, False)
        row, token = names_none.nonzero()[:, 0], (~self.is_title).nonzero()[:, 0]
        if len(row):
            logits = backbone_logits(self.backbone, states[row], token).float() * TINY_SHARPNESS
            is_closed = torch.isin(token, self.never_written).repeat(len(row), 1)
            num_seen = num_titles(seen[row], shown[row])
            num_asked = num_titles(asked[row], was_asked[row])
            must_ask = num_asked < num_seen.clamp(max=self.head.least_asked)
            is_closed |= must_ask[:, None] & (token == self.writer.answer[0])
            if proposed is not None:
                there = torch.cat([seen, proposed], -1)[row]
                num_seen = num_titles(there, self.is_title[there])
            if len(after := self.writer.encode(AFTER)) == 1:
                has_none_left = num_asked >= num_seen
                is_closed |= has_none_left[:, None] & (token == after[0])
            yield row, token, logits.masked_fill_(is_closed, -torch.inf)

    def _recency(self, seen: Tensor, shown: Tensor, num_tokens: int) -> Tensor:
        """Return what each prompt title's age adds to its logit, (R, V); 0 for other tokens."""
        after = shown.long().flip(-1).cumsum(-1).flip(-1) - 1  # titles behind it: 0 for the newest
        learned = self.asks_recent[after.clamp(0, len(self.asks_recent) - 1)]
        added = (learned - ASK_RECENCY * after).where(shown, 0.0)
        everywhere = added.new_zeros(len(seen), num_tokens)
        # of a title that stands there twice, the larger: positions with one bias are no conflict
        return everywhere.scatter_reduce(-1, seen, added, "amax", include_self=False)

    # ---- the pass ----------------------------------------------------------------------------

    def forward(
        self,
        batch: Batch,
        *,
        with_tokens: bool = True,
        with_scores: bool = True,
        with_post: bool = False,
        entropy_gradient: bool = False,
        token_policy: TokenPolicy = PLAIN,
    ) -> Outputs:
        """Return log-probabilities, states and scores of a batch from one pass of the backbone.

        Args:
            with_tokens: Whether to compute the language head on written tokens.
            with_scores: Whether to score the states after thoughts.
            with_post: Whether to also score the ungated state after the thought.
            entropy_gradient: Whether the entropy of tokens is to be trained.
            token_policy: Whose log-probabilities and entropies of tokens are returned.
        """
        outputs = Outputs()
        hidden_trunk, hidden_branch = self.hidden_states(batch)
        drop = self.head.dropout
        is_trained = torch.is_grad_enabled()
        live = self.encode_labels(batch, self.head.live_rows) if is_trained else None
        rows = self.item_rows(live)
        if live is not None:
            outputs.is_live = torch.zeros(self.num_items, dtype=torch.bool, device=rows.device)
            outputs.is_live[live[0]] = True
        if batch.next_item is not None and batch.item_ends is not None:
            wanted = batch.next_item >= 0
            states = read_states(hidden_trunk, batch.item_ends.clamp(min=0))[wanted]  # (M, D)
            outputs.next_item_logp = self._next_item_logp(
                F.dropout(states, drop, self.training),
                batch.next_item[wanted],
                rows,
                None if live is None else live[0],
            )
        if batch.branch_at is None:
            return outputs
        before = batch.branch_at if batch.pre_at is None else batch.pre_at
        pre = read_states(hidden_trunk, before)  # (B, G, D)
        found = None
        if batch.named_item is not None:
            assert batch.named_weight is not None and batch.named_kind is not None
            found = Evidence(batch.named_item, batch.named_weight, batch.named_kind)
        if hidden_branch is None:  # evidence that no thought asked for
            outputs.pre_states = pre
            if with_scores:
                outputs.think_logits = self.score_thoughts(pre, pre, found, rows)
            return outputs
        post = read_thoughts(batch, hidden_trunk, hidden_branch, self.head.pooling)
        outputs.pre_states, outputs.post_states = pre, post
        if with_scores:
            outputs.think_logits = self.score_thoughts(pre, post, found, rows)
        if with_scores and with_post:
            outputs.post_logits = self.score_states(F.dropout(post, drop, self.training), rows)
        if with_tokens and batch.is_written is not None:
            outputs.token_logp, outputs.token_entropy = self._token_logp(
                batch, hidden_branch, entropy_gradient, token_policy
            )
        return outputs

    def _next_item_logp(
        self, states: Tensor, item: Tensor, rows: Tensor, live: Tensor | None
    ) -> Tensor:
        """Return log p (M,) of items (M,) from states (M, D), smoothed while training.

        Args:
            live: Ascending items (K,) whose rows were just encoded. The softmax is over them, and
                states whose item is none of them are left out: beside rows of older weights, all
                that tells new rows from old ones makes the loss smaller.
        """
        smoothing = self.head.label_smoothing if self.training else 0.0
        if live is not None:
            place = torch.searchsorted(live, item).clamp(max=len(live) - 1)
            is_live = live[place] == item
            states, item, rows = states[is_live], place[is_live], rows[live]

        def of_part(states: Tensor, item: Tensor, rows: Tensor) -> Tensor:
            scores = self.score_states(states, rows)
            return -F.cross_entropy(scores, item, reduction="none", label_smoothing=smoothing)

        most = max(1, MOST_LOGITS // len(rows))
        if len(item) <= most:
            return of_part(states, item, rows)
        parts = zip(states.split(most), item.split(most), strict=True)
        if not torch.is_grad_enabled():
            return torch.cat([of_part(*part, rows) for part in parts])
        return torch.cat([checkpoint(of_part, *part, rows, use_reentrant=False) for part in parts])

    def _token_logp(
        self, batch: Batch, hidden_branch: Tensor, entropy_gradient: bool, policy: TokenPolicy
    ) -> tuple[Tensor, Tensor]:
        assert batch.is_written is not None
        # token s is predicted from the state at s - 1; the first is never written
        wanted = batch.is_written.clone()
        wanted[..., 0] = False
        states = hidden_branch[wanted.roll(-1, dims=-1)]  # (W, D)
        places = wanted.nonzero()  # (W, 3)
        num_tokens = self.backbone.get_output_embeddings().weight.shape[0]
        most = max(1, MOST_LOGITS // num_tokens)
        how = entropy_gradient, policy
        parts = [
            self._logp_of_part(batch, part, at, *how)
            if len(places) <= most or not torch.is_grad_enabled()
            else checkpoint(self._logp_of_part, batch, part, at, *how, use_reentrant=False)
            for part, at in zip(states.split(most), places.split(most), strict=True)
        ]
        token_logp = torch.zeros_like(hidden_branch[..., 0], dtype=torch.float32)
        entropy = torch.zeros_like(token_logp)
        if not parts:
            return token_logp, entropy
        return (
            token_logp.masked_scatter(wanted, torch.cat([part[0] for part in parts])),
            entropy.masked_scatter(wanted, torch.cat([part[1] for part in parts])),
        )

    def _logp_of_part(
        self,
        batch: Batch,
        states: Tensor,
        places: Tensor,
        entropy_gradient: bool,
        policy: TokenPolicy,
    ) -> tuple[Tensor, Tensor]:
        """Return log p and entropy (W,) of the tokens at ``places`` (W, 3) from states (W, D)."""
        assert batch.branch_ids is not None and batch.is_written is not None
        assert batch.branch_at is not None
        b, g, s = places.unbind(1)
        pad = self.writer.pad_id
        step = torch.arange(batch.branch_ids.shape[-1], device=s.device)
        earlier = batch.is_written[b, g] & (step < s[:, None])
        asked = batch.branch_ids[b, g].where(earlier, pad)  # (W, S)
        position = torch.arange(batch.trunk_ids.shape[1], device=s.device)
        seen = batch.trunk_ids[b].where(position <= batch.branch_at[b, g][:, None], pad)  # (W, T)
        previous = batch.branch_ids[b, g, s - 1]
        wanted = batch.branch_ids[b, g, s]
        if not self.is_title.numel():
            logits = self.language_logits(states, seen, asked, previous)
            return logp_and_entropy(logits, wanted, entropy_gradient, policy)
        chosen = torch.full(s.shape, -torch.inf, device=s.device)
        entropy = torch.zeros_like(chosen)
        proposed = self._proposed(batch, places)
        for row, token, logits in self._choices(states, seen, asked, previous, proposed):
            # neither needs a row over the whole vocabulary, of which most is closed to it
            place = torch.searchsorted(token, wanted[row]).clamp(max=len(token) - 1)
            found, spread = logp_and_entropy(logits, place, entropy_gradient, policy)
            is_choice = token[place] == wanted[row]
            chosen = chosen.index_copy(0, row, found.masked_fill(~is_choice, -torch.inf))
            entropy = entropy.index_copy(0, row, spread)
        return chosen, entropy

    def _proposed(self, batch: Batch, places: Tensor) -> Tensor | None:
        """Return the title tokens (W, C) of candidates that stand before ``places`` (W, 3), padded;
        None for none."""
        if batch.named_item is None or batch.named_at is None or batch.named_kind is None:
            return None
        is_candidate = (batch.named_kind == MAYBE_KIND) & (batch.named_item >= 0)
        column = is_candidate.any(0).any(0).nonzero()[:, 0]
        if not len(column):
            return None
        b, g, s = places.unbind(1)
        item = batch.named_item[b, g][:, column]
        stands = is_candidate[b, g][:, column] & (batch.named_at[b, g][:, column] < s[:, None])
        assert self.writer.title_token_ids is not None
        titles = torch.from_numpy(self.writer.title_token_ids).to(item.device)
        return titles[item.clamp(min=0)].where(stands, self.writer.pad_id)

    # ---- item rows from text -----------------------------------------------------------------

    def encode_items(self, item_index: Tensor) -> Tensor:
        """Return the rows (K, D) of items (K,) from their text, with gradient.

        Texts of like length are read together, so that hardly anything is padding. Nothing of them
        is dropped in training either: the table keeps these rows, and is ranked by.
        """
        ids, counts = self.writer.item_prompts([self.item_texts[i] for i in item_index.tolist()])
        order, rows = np.argsort(counts, kind="stable"), []
        for part in np.array_split(order, max(1, -(-len(order) // TEXTS_AT_ONCE))):
            token_ids = torch.from_numpy(ids[part, : counts[part].max(initial=1)]).to(self.device)
            lengths = torch.from_numpy(counts[part]).to(self.device)
            hidden = self.states_of_rows(token_ids, lengths, dropout=False)
            rows.append(read_states(hidden, (lengths - 1)[:, None])[:, 0])
        return torch.cat(rows)[torch.from_numpy(np.argsort(order)).to(self.device)]

    @torch.no_grad()
    def refresh_items(self, *, batch_size: int = 256) -> None:
        """Encode every item's text anew; does nothing where rows are learned per item."""
        if not self.item_table.is_encoded:
            return
        was_training = self.training
        self.eval()
        for start in range(0, self.num_items, batch_size):
            index = torch.arange(start, min(start + batch_size, self.num_items), device=self.device)
            self.item_table.store(index, self.encode_items(index))
        self.item_table.steps_since_refresh.zero_()
        self.train(was_training)

    def encode_labels(self, batch: Batch, most: int | None = None) -> tuple[Tensor, Tensor] | None:
        """Return a batch's labels (K,) and their rows (K, D), which the item table then holds too.

        With gradient, as the loss needs them (R²ec, appendix F). None where no row is encoded. Of
        more than ``most`` labels as many are encoded, ascending: what thoughts should lead to, then
        next items, in turn; the others keep their stored rows.
        """
        if not self.item_table.is_encoded:
            return None
        # those of all ranks: each scores its rows against the targets of the whole batch
        labels = [
            ranks.gathered(x.flatten()).unique()
            for x in (batch.target, batch.next_item)
            if x is not None
        ]
        if not labels:
            return None
        targets, others = (each[each >= 0] for each in (labels[0], labels[-1]))
        others = others[~torch.isin(others, targets)]
        if most is not None and most < len(targets) + len(others):
            # by the step, so that all ranks and a run that goes on take the same
            step = int(self.item_table.steps_since_refresh)
            targets = _in_turn(targets, most, step)
            others = _in_turn(others, most - len(targets), step)
        wanted = torch.cat([targets, others]).sort().values
        rows = self.encode_items(wanted)
        self.item_table.store(wanted, rows.detach())
        return wanted, rows

    # ---- files -------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write backbone, tokenizer, head, item table, catalogue and prompt version to a folder."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        disable_progress_bar()
        self.backbone.save_pretrained(folder / "backbone")
        self.tokenizer.save_pretrained(folder / "backbone")
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.state_dict().items()
            if not name.startswith("backbone.") and tensor.numel()
        }
        save_file(tensors, folder / "rec_head.safetensors")
        catalogue = {"item_ids": self.item_ids, "titles": self.titles, "texts": self.item_texts}
        (folder / "catalogue.json").write_text(json.dumps(catalogue, ensure_ascii=False), "utf-8")
        about = {
            "format": FORMAT,
            "prompt_version": PROMPT_VERSION,
            "head": self.head.model_dump(mode="json"),
            "prompt": self.writer.prompt.model_dump(mode="json"),
            "weights": self.weights.model_dump(mode="json"),
        }
        (folder / "reasonrec.json").write_text(json.dumps(about, indent=2) + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path, **_: Any) -> "ReasoningRecommender":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the model that `save_pretrained` wrote, on the GPU of this process if it has one.

        On the CPU, torch is given the threads that it is worth (`machine.settle_threads`).

        Raises:
            CheckpointError: A file is missing or damaged, or another format or prompt version
                wrote it.
        """
        folder = Path(folder)
        disable_progress_bar()
        try:
            about = json.loads((folder / "reasonrec.json").read_text("utf-8"))
            catalogue = json.loads((folder / "catalogue.json").read_text("utf-8"))
            if (about["format"], about["prompt_version"]) != (FORMAT, PROMPT_VERSION):
                raise CheckpointError(
                    f"{folder} was saved with format {about['format']} and prompt version "
                    f"{about['prompt_version']}; this version reads {FORMAT} and {PROMPT_VERSION}. "
                    "Train again"
                )
            weights = WeightsConfig.model_validate(about.get("weights", {}))
            backbone = AutoModelForCausalLM.from_pretrained(
                folder / "backbone", dtype=getattr(torch, weights.dtype)
            )
            tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
            prompt = PromptConfig.model_validate(about.get("prompt", {}))
            if weights.lora:
                if prompt.add_marker:  # the backbone is read as it came, without it
                    set_marker(backbone, tokenizer, prompt.answer_marker)
                train_adapters_alone(backbone)
            model = cls(
                backbone,
                tokenizer,
                catalogue["titles"],
                HeadConfig.model_validate(about["head"]),
                catalogue["item_ids"],
                catalogue["texts"],
                prompt=prompt,
                weights=weights,
            )
            model.load_head(folder)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"{folder} must be a folder of a saved model: {error}") from error
        except SafetensorError as error:
            raise CheckpointError(f"{folder} holds damaged weights: {error}") from error
        if ranks.device().type == "cpu":
            settle_threads(model)
        return model.to(ranks.device()).eval()

    def load_head(self, folder: str | Path) -> None:
        """Read the tensors of the head and the item table from a folder, in place."""
        tensors = load_file(Path(folder) / "rec_head.safetensors")
        if self.pointer is not None:
            self.pointer.know_all_kinds(tensors, prefix="pointer.")
        missing, unexpected = self.load_state_dict(tensors, strict=False)
        missing = [
            n for n in missing if not n.startswith("backbone.") and self.state_dict()[n].numel()
        ]
        if missing or unexpected:
            raise CheckpointError(
                f"{folder} does not fit this model: missing {missing}, unexpected {unexpected}"
            )


def _in_turn(items: Tensor, most: int, step: int) -> Tensor:
    """Return ``most`` of the items (K,), others at each step until all have had their turn."""
    if most >= len(items):
        return items
    first = step * most
    return items[torch.arange(first, first + most, device=items.device) % len(items)]

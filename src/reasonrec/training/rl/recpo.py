"""One RecPO step: rollouts -> rewards -> advantages -> loss, with its parts handed in."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from reasonrec import ranks
from reasonrec.data.dataset import InteractionLog
from reasonrec.models.branches import Batch, Outputs
from reasonrec.models.generation import Part
from reasonrec.models.language_head import PLAIN
from reasonrec.models.look_ups import look_up_for
from reasonrec.models.ranking import DEFAULT_MASK, Mask
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.records import Histories, TokenPolicy
from reasonrec.rng import stream, stream_seed
from reasonrec.traces.prompts import PromptWriter
from reasonrec.traces.verbaliser import Verbaliser
from reasonrec.training.config import RecpoConfig
from reasonrec.training.rl.advantages import advantages_within_groups, is_flat
from reasonrec.training.rl.engines.ahead import WritesAhead
from reasonrec.training.rl.engines.contract import RolloutEngine, Thoughts
from reasonrec.training.rl.engines.sampler import Sampler
from reasonrec.training.rl.loss import (
    item_objective,
    item_weights,
    kl_to_start,
    log_prob_of_targets,
    token_objective,
)
from reasonrec.training.rl.rewards import (
    fused_reward,
    ndcg_reward,
    ranks_of_targets,
    softmax_reward,
)
from reasonrec.training.rl.sentences import Sentences, measure_sentences
from reasonrec.training.sharding import whole


class PromptSample(TorchDataset):
    """The log positions that RL asks about, in order; each batch repeated per inner epoch.

    Args:
        eligible: (K,), positions in the log to draw from; drawn again once all were asked about.
    """

    def __init__(
        self,
        eligible: np.ndarray,
        *,
        num_prompts: int,
        batch_size: int,
        num_inner_epochs: int,
        seed: int,
    ) -> None:
        rng = stream(seed, "rl-prompts")
        rounds = -(-num_prompts // max(1, len(eligible)))
        order = np.concatenate([rng.permutation(eligible) for _ in range(max(1, rounds))])
        batches = order[: num_prompts - num_prompts % batch_size].reshape(-1, batch_size)
        self.event = np.repeat(batches, num_inner_epochs, axis=0).ravel()
        self.batch = np.arange(len(batches)).repeat(num_inner_epochs * batch_size)

    def __len__(self) -> int:
        return len(self.event)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.__getitems__([index])

    def __getitems__(self, rows: Sequence[int]) -> dict[str, Tensor]:
        index = np.asarray(rows)
        return {
            "event": torch.from_numpy(self.event[index]),
            "key": torch.from_numpy(index),
            "batch": torch.from_numpy(self.batch[index]),
        }


@dataclass
class Rollouts:
    """P x G scored thoughts, kept for the inner epochs."""

    batch: Batch
    target_P: Tensor
    targets: Tensor
    """Of the whole batch: those of all processes that share it."""
    masked_P_N: Tensor
    sampler_logp_P_G_S: Tensor
    """What the engine said, of the policy that it names."""
    is_truncated_P_G: Tensor
    rewards_P_G: Tensor | None = None
    old_token_logp_P_G_S: Tensor | None = None
    """Of the weights that wrote them."""
    writer_token_logp: Tensor | None = None
    """(1, G, S), of the first prompt, to be compared with the engine's; where what is trained gives
    others, since it has moved on or is another policy than the engine's are of."""
    old_item_logp_P_G: Tensor | None = None
    """Of the first pass that learns from them, as rewards are; also where they were written ahead,
    by weights of one step ago. Engines say what tokens were given and no scores of items: those of
    the writer would take a second pass over all thoughts (which tokens have at a temperature other
    than 1; the rule is one for all). So the item ratio is 1 at the first inner epoch, clipping does
    not act there, and its gradient is that of the weights as they are: the target is a label that
    no policy drew, so that nothing is to be weighed anew."""
    start_token_logp_P_G_S: Tensor | None = None
    """Of the model that RL started from; where the distance from it has a weight."""
    sentences: Sentences | None = None
    """What each sentence adds; where that has a weight."""


@torch.no_grad()
def token_logp(model: ReasoningRecommender, batch: Batch, policy: TokenPolicy = PLAIN) -> Tensor:
    """Return (P, G, S), what a model gives to written tokens; no gradient."""
    unlabelled = replace(batch, next_item=None)
    return model(unlabelled, with_scores=False, token_policy=policy).token_logp


class StartingPoint:
    """The model that RL starts from: keeps a copy of what will be trained, and of nothing else."""

    def __init__(self, model: ReasoningRecommender) -> None:
        self._weights = [(w, w.detach().clone()) for w in model.parameters() if w.requires_grad]

    def token_logp(
        self, model: ReasoningRecommender, batch: Batch, policy: TokenPolicy = PLAIN
    ) -> Tensor:
        """Return (P, G, S), what the starting model gives to written tokens; no gradient."""
        with self.in_place():
            return token_logp(model, batch, policy)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model holds the weights of the start for as long as this lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        """Exchange the model's weights and those of the start; a second call takes it back."""
        for i, (weight, kept) in enumerate(self._weights):
            self._weights[i] = weight, weight.data
            weight.data = kept.to(weight.device)


class Recpo:
    """Makes the loss of each optimiser step; holds the rollouts of the batch being learned from."""

    def __init__(
        self,
        config: RecpoConfig,
        log: InteractionLog,
        verbaliser: Verbaliser,
        *,
        seed: int,
        start: StartingPoint | None = None,
        engine: RolloutEngine | None = None,
        repeats: bool = False,
        ahead: WritesAhead | None = None,
    ) -> None:
        """Args:
        engine: Who writes the rollouts; our own sampler unless told otherwise.
        repeats: Whether items of the history are ranked too; see `roll_out`.
        ahead: Has the engine write a batch while the one before is learned from.
        """
        self.config = config
        self.engine = engine or Sampler()
        self.repeats = repeats
        self.start = start
        self.log = log
        self.verbaliser = verbaliser
        self.seed = seed
        self.ahead = ahead
        self._batch: int | None = None
        self._rollouts: Rollouts | None = None
        self._writer: StartingPoint | None = None
        """The weights that the engine writes ahead with."""

    def __call__(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of one step and what there is to log about it."""
        model.eval()  # dropout would make the sampling policy another one than the trained one
        parts: dict[str, float] = {}
        if (number := int(inputs["batch"][0])) != self._batch:
            self._batch = number
            with whole(model) as own:
                self._rollouts, parts = self._roll_out(own, inputs, number)
        rollouts = self._rollouts
        assert rollouts is not None
        outputs = model(
            rollouts.batch,
            entropy_gradient=self.config.entropy_weight > 0,
            token_policy=self.config.token_policy,
        )
        loss, logged = recpo_loss(outputs, rollouts, self.config)
        return loss, parts | logged

    def _roll_out(
        self, own: ReasoningRecommender, inputs: dict[str, Tensor], number: int
    ) -> tuple[Rollouts, dict[str, float]]:
        """Return the rollouts of a batch, and the seconds of syncing and waiting for them."""
        started = time.perf_counter()
        parts: dict[str, float] = {}
        written = self.ahead.take(number) if self.ahead else None
        writer = None if written is None else self._writer
        self._writer = None
        if written is None:
            with self._writing_weights():
                self.engine.sync(own)
                parts["rl/sync_seconds"] = time.perf_counter() - started
                written = self._asking(own, inputs["event"], inputs["key"])()
        parts["rl/rollout_seconds"] = time.perf_counter() - started - sum(parts.values())
        if self.ahead and (later := self.ahead.rows_after(number, inputs["key"])):
            with self._writing_weights():
                self.engine.sync(own)
                self._writer = StartingPoint(own)
                ask = self._asking(own, later["event"], later["key"])
            self.ahead.start(number + 1, ask)
        rollouts = assemble(
            own, self.log, inputs["event"].cpu().numpy(), written, self.config,
            repeats=self.repeats,
        )  # fmt: skip
        batch, policy, said = rollouts.batch, self.config.token_policy, written.logp_of
        if writer is not None:  # of weights that were changed since, the engine says what they gave
            rollouts.old_token_logp_P_G_S = (
                rollouts.sampler_logp_P_G_S
                if said == policy
                else writer.token_logp(own, batch, policy)
            )
            rollouts.writer_token_logp = writer.token_logp(own, batch.first(1), said)
        elif said != policy:
            rollouts.writer_token_logp = token_logp(own, batch.first(1), said)
        if self.start is not None and self.config.kl_weight:
            rollouts.start_token_logp_P_G_S = self.start.token_logp(own, batch, policy)
        return rollouts, parts

    def _asking(
        self, own: ReasoningRecommender, event: Tensor, key: Tensor
    ) -> Callable[[], Thoughts]:
        """Return what has the engine write about the events of this process in a batch."""
        # where processes share a batch, they draw as one would
        keys, G = ranks.gathered(key), num_sampled(self.config)
        first = int(keys[0])
        return asking(
            own, self.log, self.verbaliser, event.cpu().numpy(), self.config,
            generator_seed=stream_seed(self.seed, "rollout", first), engine=self.engine,
            part=((int(key[0]) - first) * G, len(keys) * G),
        )  # fmt: skip

    def _writing_weights(self) -> AbstractContextManager[None]:
        if self.config.rollouts_from == "current":
            return nullcontext()
        if self.start is None:
            raise ValueError("rollouts_from = 'start' needs the StartingPoint; got none")
        return self.start.in_place()


def roll_out(
    model: ReasoningRecommender,
    log: InteractionLog,
    verbaliser: Verbaliser,
    event: np.ndarray,
    config: RecpoConfig,
    *,
    generator_seed: int,
    engine: RolloutEngine | None = None,
    repeats: bool = False,
    part: Part | None = None,
) -> Rollouts:
    """Return G thoughts for the history before each log position, token in, token out.

    Args:
        engine: Who writes them, synced with the model; None: our sampler.
        repeats: Whether items of the history are ranked, too, in the reward and in the softmax of
            the recommendation. If not, ask about no event that repeats one. Counts where
            ``config.mask`` says nothing.
        part: Which rollouts of a larger batch these are, where processes share it.
    """
    ask = asking(
        model, log, verbaliser, event, config, generator_seed=generator_seed, engine=engine,
        part=part,
    )  # fmt: skip
    return assemble(model, log, event, ask(), config, repeats=repeats)


def asking(
    model: ReasoningRecommender,
    log: InteractionLog,
    verbaliser: Verbaliser,
    event: np.ndarray,
    config: RecpoConfig,
    *,
    generator_seed: int,
    engine: RolloutEngine | None = None,
    part: Part | None = None,
) -> Callable[[], Thoughts]:
    """Return what has the engine write the thoughts of `roll_out`, now or in another thread.

    Candidates, which the model is asked for itself, are those of now.
    """
    histories = log.histories_before(event)
    prompts = model.writer.prompts(histories)
    look_up = look_up_for(verbaliser, histories, model)
    engine = engine or Sampler(model)
    return lambda: engine.think(
        prompts, look_up, max_tokens=config.max_tokens, group_size=num_sampled(config),
        temperature=config.temperature, top_k=config.top_k, seed=generator_seed, part=part,
    )  # fmt: skip


def assemble(
    model: ReasoningRecommender,
    log: InteractionLog,
    event: np.ndarray,
    written: Thoughts,
    config: RecpoConfig,
    *,
    repeats: bool = False,
) -> Rollouts:
    """Return written thoughts with what is asked of them; arguments as in `roll_out`."""
    target = torch.from_numpy(log.item_index[event]).long().to(model.device)
    P, G = len(event), num_sampled(config)
    batch = rollout_batch(model, log, event, written, P, G)
    if not config.next_item_weight:  # rows from text would be encoded for every title of a history
        batch = replace(batch, next_item=None)
    histories = log.histories_before(event)
    mask = config.mask or ("none" if repeats else DEFAULT_MASK)
    rollouts = Rollouts(
        batch=batch,
        target_P=target,
        targets=ranks.gathered(target),
        masked_P_N=masked_items(histories, target, model.num_items, mask),
        sampler_logp_P_G_S=written.token_logp.reshape(P, G, -1),
        is_truncated_P_G=written.is_truncated.reshape(P, G),
    )
    if config.empty_rollout:
        rollouts = with_empty_rollout(rollouts, model.writer)
    if config.sentence_weight:
        with torch.no_grad():  # the rows that the reward will see
            model.encode_labels(rollouts.batch)
        rollouts.sentences = measure_sentences(
            model, rollouts.batch, rollouts.target_P, rollouts.masked_P_N
        )
    return rollouts


def num_sampled(config: RecpoConfig) -> int:
    """Return how many rollouts of a group are written: all, or all but the empty thought."""
    return config.group_size - config.empty_rollout


def with_empty_rollout(rollouts: Rollouts, writer: PromptWriter) -> Rollouts:
    """Return groups of one rollout more, the empty thought: opened, and closed by a forced marker.

    None of its tokens is written, so that it teaches its group what silence earns and no words.
    """
    batch = rollouts.batch
    assert batch.branch_ids is not None and batch.branch_at is not None
    empty = torch.tensor(writer.opening + writer.answer, device=batch.branch_ids.device)
    S = batch.branch_ids.shape[-1]

    def widened(values_P_G_S: Tensor, filling: float) -> Tensor:
        return F.pad(values_P_G_S, (0, max(0, len(empty) - S), 0, 1), value=filling)

    branch_ids = widened(batch.branch_ids, writer.pad_id)
    branch_ids[:, -1, : len(empty)] = empty
    grown: dict[str, Tensor] = {
        "branch_ids": branch_ids,
        "branch_lengths": F.pad(_checked(batch.branch_lengths), (0, 1), value=len(empty)),
        "branch_at": torch.cat([batch.branch_at, batch.branch_at[:, :1]], 1),
        "is_written": widened(_checked(batch.is_written), False),
        "named_at": F.pad(_checked(batch.named_at), (0, 0, 0, 1)),
        "named_item": F.pad(_checked(batch.named_item), (0, 0, 0, 1), value=-1),
        "named_weight": F.pad(_checked(batch.named_weight), (0, 0, 0, 1)),
        "named_kind": F.pad(_checked(batch.named_kind), (0, 0, 0, 1)),
        "target": torch.cat([_checked(batch.target), rollouts.target_P[:, None]], 1),
    }
    return replace(
        rollouts,
        batch=replace(batch, **grown),
        sampler_logp_P_G_S=widened(rollouts.sampler_logp_P_G_S, 0.0),
        is_truncated_P_G=F.pad(rollouts.is_truncated_P_G, (0, 1), value=False),
    )


def _checked(values: Tensor | None) -> Tensor:
    assert values is not None
    return values


def rollout_batch(
    model: ReasoningRecommender,
    log: InteractionLog,
    event: np.ndarray,
    written: Thoughts,
    P: int,
    G: int,
) -> Batch:
    """Return rollouts as one trunk per prompt with G branches, next-item labels on the trunk."""
    histories = log.histories_before(event, last=model.head.max_history)
    prompts = model.writer.prompts(histories)
    device = model.device
    column = np.arange(prompts.item_ends.shape[1])
    first = event - prompts.num_items
    is_target = (column <= prompts.num_items[:, None]) & (column > 0)
    position = np.minimum(first[:, None] + column, event[:, None])
    next_item = np.where(is_target, log.item_index[position], -100)
    lengths = torch.from_numpy(prompts.lengths)
    return Batch(
        trunk_ids=torch.from_numpy(prompts.token_ids),
        trunk_lengths=lengths,
        item_ends=torch.from_numpy(prompts.item_ends),
        next_item=torch.from_numpy(next_item).long(),
        branch_ids=written.token_ids.reshape(P, G, -1),
        branch_lengths=written.lengths.reshape(P, G),
        branch_at=(lengths - 1)[:, None].expand(P, G),
        is_written=written.is_written.reshape(P, G, -1),
        named_at=written.named_at.reshape(P, G, -1),
        named_item=written.named_item.reshape(P, G, -1),
        named_weight=written.named_weight.reshape(P, G, -1),
        named_kind=written.named_kind.reshape(P, G, -1),
        target=torch.from_numpy(log.item_index[event]).long()[:, None].expand(P, G),
    ).to(device)


def masked_items(
    histories: Histories,
    target_P: Tensor,
    num_items: int,
    mask: Mask = DEFAULT_MASK,
) -> Tensor:
    """Return what does not compete under a mask, as in ``models/ranking.py``. (P, N), bool."""
    masked = torch.zeros((len(histories), num_items), dtype=torch.bool)
    if mask != "none":
        row = np.repeat(np.arange(len(histories)), histories.lengths)
        masked[torch.from_numpy(row), torch.from_numpy(histories.item_index).long()] = True
    masked = masked.to(target_P.device)
    return masked if mask == "history" else masked.scatter(1, target_P[:, None], False)


@torch.no_grad()
def rewards_of(rollouts: Rollouts, scores_P_G_N: Tensor, config: RecpoConfig) -> Tensor:
    """Return the reward of each rollout, (P, G), from the scores after it."""
    assert rollouts.batch.branch_lengths is not None
    places = ranks_of_targets(scores_P_G_N, rollouts.target_P, rollouts.masked_P_N)
    rewards = fused_reward(
        ndcg_reward(places, config.reward_at),
        softmax_reward(scores_P_G_N, rollouts.target_P, rollouts.masked_P_N),
        beta=config.beta,
    )
    if config.length_weight:
        rewards -= config.length_weight * rollouts.batch.branch_lengths / config.max_tokens
    return rewards


def recpo_loss(
    outputs: Outputs, rollouts: Rollouts, config: RecpoConfig
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss to be minimised and what there is to log.

    Rewards, advantages and old log-probabilities are fixed at the first call for a batch of
    rollouts; later inner epochs use true ratios against them.
    """
    scores, logp = outputs.think_logits, outputs.token_logp
    batch, target = rollouts.batch, rollouts.target_P
    assert scores is not None and logp is not None and batch.is_written is not None
    item_logp = log_prob_of_targets(
        scores, target, rollouts.masked_P_N, over=config.item_softmax, targets=rollouts.targets
    )
    is_written = batch.is_written
    # each mean below is over what this process holds; its share makes it one over the whole batch
    of_tokens, of_rollouts, of_next_items = ranks.shares(
        int(is_written.sum()),
        target.numel() * config.group_size,
        0 if outputs.next_item_logp is None else outputs.next_item_logp.numel(),
    )
    if rollouts.rewards_P_G is None:
        rollouts.rewards_P_G = rewards_of(rollouts, scores, config)
        rollouts.old_item_logp_P_G = item_logp.detach()
    if rollouts.old_token_logp_P_G_S is None:  # written by these very weights
        rollouts.old_token_logp_P_G_S = logp.detach()
    rewards, old_logp = rollouts.rewards_P_G, rollouts.old_token_logp_P_G_S
    assert old_logp is not None and rollouts.old_item_logp_P_G is not None
    clip = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    advantages = advantages_within_groups(rewards, config.advantage)
    flat = is_flat(rewards)
    learned_from = advantages
    if rollouts.sentences is not None:
        thought = config.thought_weight * advantages[..., None]
        learned_from = thought + config.sentence_weight * rollouts.sentences.token_advantages
    elif config.thought_weight != 1:
        learned_from = config.thought_weight * advantages
    tokens = token_objective(
        logp, old_logp, learned_from, is_written, **clip, mean_over=config.token_mean
    ) * (of_tokens if config.token_mean == "tokens" else of_rollouts)
    # a target that may not be recommended (mask `history`) is not taught either
    is_offered_P_1 = ~rollouts.masked_P_N.gather(1, target[:, None])
    weights = item_weights(advantages, config.item_term) * is_offered_P_1
    items = item_objective(item_logp, rollouts.old_item_logp_P_G, weights, **clip) * of_rollouts
    loss = -(tokens + config.item_weight * items)
    learns_anyway = config.item_term == "infonce"
    if config.flat_groups == "cross-entropy" and flat.any() and not learns_anyway:
        learns = flat[:, None] & is_offered_P_1
        loss = loss - config.item_weight * (item_logp * learns).mean() * of_rollouts
    if config.next_item_weight and outputs.next_item_logp is not None:
        known = outputs.next_item_logp.mean() * of_next_items
        loss = loss - config.next_item_weight * known
    logged = _rollout_statistics(outputs, rollouts, advantages, flat, config)
    if config.empty_rollout:
        gain = rewards[:, :-1].mean(1) - rewards[:, -1]
        logged["rl/think_gain"] = gain.mean().item()
        logged["rl/frac_think_wins"] = (gain > 0).float().mean().item()
    if rollouts.sentences is not None:
        logged |= rollouts.sentences.statistics()
    for name in ("rl/entropy", "rl/frac_clipped"):
        logged[name] *= of_tokens
    if rollouts.start_token_logp_P_G_S is not None:
        distance = kl_to_start(logp, rollouts.start_token_logp_P_G_S, is_written) * of_tokens
        loss = loss + config.kl_weight * distance
        logged["rl/kl_to_start"] = distance.item()
    if config.entropy_weight and outputs.token_entropy is not None:
        entropy = outputs.token_entropy.sum() / is_written.sum().clamp(min=1) * of_tokens
        loss = loss - config.entropy_weight * entropy
    return loss, logged


@torch.no_grad()
def _rollout_statistics(
    outputs: Outputs, rollouts: Rollouts, advantages: Tensor, flat: Tensor, config: RecpoConfig
) -> dict[str, float]:
    assert outputs.token_logp is not None and outputs.token_entropy is not None
    assert rollouts.batch.is_written is not None and rollouts.batch.branch_lengths is not None
    assert rollouts.rewards_P_G is not None and rollouts.old_token_logp_P_G_S is not None
    written = rollouts.batch.is_written
    num_written = written.sum().clamp(min=1)
    ratio = (outputs.token_logp - rollouts.old_token_logp_P_G_S).exp()
    outside = ((ratio < 1 - config.clip_low) | (ratio > 1 + config.clip_high)) & written
    passed = rollouts.writer_token_logp
    passed = rollouts.old_token_logp_P_G_S if passed is None else passed
    scored = slice(len(passed))
    gap = (passed - rollouts.sampler_logp_P_G_S[scored]).abs()[written[scored]]
    largest = gap.max().item() if gap.numel() else 0.0
    return {
        "rl/sampler_mismatch": max(ranks.gathered_objects(largest)),
        "rl/reward_mean": rollouts.rewards_P_G.mean().item(),
        "rl/reward_best": rollouts.rewards_P_G.max(1).values.mean().item(),
        "rl/reward_spread": rollouts.rewards_P_G.std(1).mean().item(),
        "rl/advantage_abs": advantages.abs().mean().item(),
        "rl/frac_flat_groups": flat.float().mean().item(),
        "rl/thought_tokens": rollouts.batch.branch_lengths.float().mean().item(),
        "rl/frac_truncated": rollouts.is_truncated_P_G.float().mean().item(),
        "rl/entropy": (outputs.token_entropy.sum() / num_written).item(),
        "rl/frac_clipped": (outside.sum() / num_written).item(),
    }

"""What each stage of R²ec learns from, by which loss, and what chooses its best step."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from scipy.special import log_softmax
from torch.utils.data import Dataset as TorchDataset

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset, InteractionLog, Queries
from reasonrec.errors import DataError
from reasonrec.methods.r2ec_config import TRUNK_STAGES, R2ecConfig, SftStage, Stage
from reasonrec.metrics import hit, ndcg
from reasonrec.models.branches import Batch
from reasonrec.models.look_ups import candidates_of
from reasonrec.models.ranking import DEFAULT_MASK, Mask, rank_targets
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.recommenders import (
    EvidenceRecommender,
    NoThinkRecommender,
    ThinkingRecommender,
)
from reasonrec.records import Histories, Lookup
from reasonrec.rng import stream, stream_seed
from reasonrec.traces.verbaliser import Verbaliser
from reasonrec.training.calibration import RanksWithEvidence, calibrate_evidence
from reasonrec.training.config import OptimiserConfig, SftLossConfig
from reasonrec.training.examples import (
    Propose,
    WindowDataset,
    events_with_history,
    hold_out_last,
    schedule_windows,
)
from reasonrec.training.loop import LossFunction, steps_between_checkpoints
from reasonrec.training.losses import sft_loss
from reasonrec.training.rl.engines.ahead import WritesAhead
from reasonrec.training.rl.engines.contract import RolloutEngine
from reasonrec.training.rl.recpo import PromptSample, Recpo, StartingPoint

logger = logging.getLogger(__name__)

NUM_LOOKED_AT = 256
"""Thoughts whose length is looked at before training, and whose end after it."""
MOST_UNFINISHED = 0.05
"""Share of thoughts without an answer from which on a run says so."""

METHOD_OF_STAGE: dict[Stage, str] = {
    "no-think": "no-think",
    "evidence": "evidence-no-think",
    "sft": "think-sft",
    "recpo": "think-recpo",
    "gate": "think-gated",
}
"""The folder of each stage in a run; its method has the same name, but a gate that of the model
that it stands before, with ``/gated`` behind it."""
IN_PROMPT = "evidence-in-prompt"
"""The method of the stage ``evidence`` where the prompt holds the evidence as text too."""


def method_of(stage: Stage, config: R2ecConfig) -> str:
    """Return the name of what a stage trains."""
    if stage == "evidence" and config.evidence.in_prompt:
        return IN_PROMPT
    return METHOD_OF_STAGE[stage]


@dataclass(frozen=True)
class StageParts:
    """What the stages share."""

    dataset: Dataset
    config: R2ecConfig
    seed: int

    def verbaliser(
        self, model: ReasoningRecommender, *, unknown: np.ndarray | None = None
    ) -> Verbaliser:
        """Return who answers and writes; ``unknown`` events are not learned from for that."""
        return Verbaliser.learned_from(
            self.dataset, model.writer, self.config.thought, unknown=unknown
        )

    def queries(self) -> Queries:
        most, repeats = self.config.num_valid_queries, self.config.head.repeats
        return validation_queries(self.dataset, most, repeats=repeats)

    def calibrate(self, recommender: RanksWithEvidence) -> dict[str, list[float]]:
        """Fit what looked-up evidence is worth to the validation queries."""
        queries = self.queries()
        return calibrate_evidence(
            recommender, queries.histories(), queries.target, mask=ranked_mask(self.config)
        )

    def tell_of_unfinished_thoughts(self, recommender: RanksWithEvidence) -> None:
        """Say how many thoughts about validation queries are cut short, where many are."""
        queries = self.queries()
        if not isinstance(recommender, ThinkingRecommender) or not len(queries):
            return
        some = queries.take(np.arange(min(NUM_LOOKED_AT, len(queries))))
        share = recommender.write(some.histories()).is_truncated.float().mean().item()
        if share > MOST_UNFINISHED:
            logger.warning(
                "%.1f %% of %d thoughts about validation queries came to no answer within %d "
                "tokens (recpo.recpo.max_tokens). Read some of them (reasonrec recommend "
                "--explain); train longer, or let thoughts be longer",
                100 * share, len(some), recommender.max_tokens,
            )  # fmt: skip

    def recommender(
        self, model: ReasoningRecommender, verbaliser: Verbaliser, stage: Stage
    ) -> ThinkingRecommender | EvidenceRecommender:
        """Return the model as it is validated: it thinks greedily, or has its evidence alone."""
        if stage == "evidence":
            in_prompt = self.config.evidence.in_prompt
            return EvidenceRecommender(model, verbaliser, in_prompt=in_prompt)
        return ThinkingRecommender(model, verbaliser, max_tokens=max_tokens(self.config))

    def validate(
        self, model: ReasoningRecommender, stage: Stage
    ) -> Callable[[ReasoningRecommender], dict[str, float]]:
        queries = self.queries()
        histories = queries.histories()
        verbaliser = self.verbaliser(model) if stage != "no-think" else None
        accuracy = partial(
            validation_accuracy, queries=queries, histories=histories,
            mask=ranked_mask(self.config),
        )  # fmt: skip

        def measure(model: ReasoningRecommender) -> dict[str, float]:
            silent = accuracy(NoThinkRecommender(model))
            if verbaliser is None:
                return {f"valid/{name}": value for name, value in silent.items()}
            spoken = accuracy(self.recommender(model, verbaliser, stage))
            if stage == "recpo" and (weight := self.config.recpo.recpo.length_weight):
                spoken["price"] = weight * spoken["tokens"] / max_tokens(self.config)
            return {
                **{f"valid/{name}": value for name, value in spoken.items()},
                **{f"valid/silent/{name}": value for name, value in silent.items()},
            }

        return measure


def held_out_events(log: InteractionLog, config: R2ecConfig) -> np.ndarray:
    """Return the events that no-think leaves out and thoughts are learned on, ascending."""
    return hold_out_last(
        log, max_events=config.held_out.max_events, max_frac=config.held_out.max_frac
    )


def events_to_ask(
    log: InteractionLog, config: R2ecConfig, *, mask: Mask | None = None
) -> np.ndarray:
    """Return the events that rewards are given for: the held-out ones, or where none is held out
    all with a history; without repeats, unless they are offered or there is nothing else.

    Args:
        mask: What becomes of repeats in the reward; where it is said they are asked about too.
    """
    held_out = held_out_events(log, config)
    least = config.recpo.recpo.min_history
    every = held_out if len(held_out) else events_with_history(log, least=least)
    new = every[~log.is_repeat[every]]
    return every if config.head.repeats or mask or not len(new) else new


def ranked_mask(config: R2ecConfig) -> Mask:
    """Return what rankings leave out while a model is trained and chosen."""
    return "none" if config.head.repeats else DEFAULT_MASK


def stage_before(stage: Stage, config: R2ecConfig) -> Stage | None:
    """Return the stage that one starts from, None for the backbone as it is."""
    in_order: tuple[Stage, ...] = get_args(Stage)
    earlier = in_order[: in_order.index(stage)]
    trunk: list[Stage] = [one for one in config.stages if one in earlier and one in TRUNK_STAGES]
    return trunk[-1] if trunk else None


def max_tokens(config: R2ecConfig) -> int:
    """Return the budget of a thought: RecPO's, so that all stages think equally long."""
    return config.recpo.recpo.max_tokens


def learned_from(
    stage: Stage, model: ReasoningRecommender, parts: StageParts, engine: RolloutEngine
) -> tuple[TorchDataset, LossFunction, OptimiserConfig, float]:
    """Return the rows, the loss and the optimiser of a stage that trains a model, and how many
    epochs the rows are: times the log is read, or every event that can be is asked about."""
    dataset, config, seed = parts.dataset, parts.config, parts.seed
    log = dataset.train
    held_out = held_out_events(log, config)
    if stage == "recpo":
        recpo = config.recpo.recpo
        eligible = events_to_ask(log, config, mask=recpo.mask)
        batch_size, epochs = config.recpo.optimiser.batch_size, config.recpo.num_epochs
        asked = config.recpo.num_prompts if epochs is None else round(epochs * len(eligible))
        sample = PromptSample(
            eligible, num_prompts=max(batch_size, asked), batch_size=batch_size,
            num_inner_epochs=recpo.num_inner_epochs, seed=seed,
        )  # fmt: skip
        needs_start = recpo.kl_weight or recpo.rollouts_from == "start"
        start = StartingPoint(model) if needs_start else None
        ahead = None
        if config.recpo.engine.ahead:
            inner = recpo.num_inner_epochs
            num_steps = len(sample) // batch_size
            every = steps_between_checkpoints(num_steps, config.recpo.optimiser, inner)
            ahead = WritesAhead(
                sample, batch_size=batch_size, num_inner_epochs=inner, fresh_every=every // inner
            )
        learner = Recpo(
            recpo, log, parts.verbaliser(model, unknown=eligible), seed=seed, start=start,
            engine=engine, repeats=config.head.repeats, ahead=ahead,
        )  # fmt: skip
        num_asked = len(sample) / recpo.num_inner_epochs
        return sample, learner, config.recpo.optimiser, num_asked / max(1, len(eligible))
    own = {"no-think": config.no_think, "evidence": config.evidence, "sft": config.sft}
    chosen = own[stage]
    is_sft = isinstance(chosen, SftStage)
    log = log if is_sft else log.without(held_out)
    schedule = partial(
        schedule_windows, log, max_history=config.head.max_history,
        batch_size=chosen.optimiser.batch_size, seed=stream_seed(seed, stage),
    )  # fmt: skip
    epochs = chosen.epochs_for(len(schedule(num_epochs=1))) if is_sft else chosen.num_epochs
    asked = schedule(num_epochs=epochs)
    windows = asked.at_most(chosen.max_windows, above_all=held_out if is_sft else None)
    tell_of_windows_left_out(stage, num_epochs=epochs, num_asked=len(asked), num_used=len(windows))
    data = WindowDataset(
        log, windows, model.writer,
        verbaliser=parts.verbaliser(model, unknown=held_out) if is_sft else None,
        num_branches=chosen.num_branches if is_sft else 0,
        held_out=held_out if is_sft and len(held_out) else None,
        writes=stage != "evidence", in_prompt=config.evidence.in_prompt,
        propose=proposer(model, config.thought.num_candidates) if stage == "sft" else None,
        seed=seed,
    )  # fmt: skip
    if data.verbaliser is not None and data.writes:
        tell_of_long_thoughts(data.verbaliser, log, max_tokens=max_tokens(config), seed=seed)
    weights = chosen.loss if is_sft else SftLossConfig()
    seen = epochs * len(windows) / len(asked)
    return data, lambda model, batch: sft_loss(model, batch, weights), chosen.optimiser, seen


def tell_of_windows_left_out(
    stage: Stage, *, num_epochs: int, num_asked: int, num_used: int
) -> None:
    """Say how far ``max_windows`` cuts the epochs of a stage short, where it does."""
    if num_used < num_asked:
        logger.warning(
            "%s: one epoch of this log has %d windows, and %d epochs ask for %d; the first %d are "
            "learned from, %.2f epochs, since %s.max_windows allows no more. Raise it to see more",
            stage, round(num_asked / num_epochs), num_epochs, num_asked, num_used,
            num_epochs * num_used / num_asked, stage.replace("-", "_"),
        )  # fmt: skip


def tell_of_long_thoughts(
    verbaliser: Verbaliser, log: InteractionLog, *, max_tokens: int, seed: int
) -> None:
    """Say how many thoughts are too long to be written as taught, candidates aside, if any are."""
    events = events_with_history(log)
    rng = stream(seed, "long thoughts")
    events = np.sort(rng.choice(events, min(NUM_LOOKED_AT, len(events)), replace=False))
    thoughts = verbaliser.write(log.histories_before(events), seed=seed, keys=events)
    marks = len(verbaliser.writer.opening) + len(verbaliser.writer.answer)
    lengths = np.array([len(tokens) - marks for tokens in thoughts.tokens], int)
    share, longest = (lengths > max_tokens).mean() if len(lengths) else 0.0, lengths.max(initial=0)
    if share:
        logger.warning(
            "%.1f %% of the thoughts that are taught are longer than recpo.recpo.max_tokens, so "
            "that what is written will be cut short: %d tokens, and the longest of %d has %d. Set "
            "recpo.recpo.max_tokens = %d, or ask for less (thought.num_lookups, num_links)",
            100 * share, max_tokens, len(lengths), longest, -(-longest // 16) * 16,
        )  # fmt: skip


def proposer(model: ReasoningRecommender, num_candidates: int) -> Propose | None:
    """Return who names candidates while the model learns thoughts: the model as it is now.

    Later ones have learned what thoughts are ranked for, and would name it too often.
    """
    if not num_candidates:
        return None
    start = StartingPoint(model)

    @torch.no_grad()
    def propose(trunk: Batch, histories: Histories) -> list[Lookup]:
        was_training = model.training
        model.eval()
        with start.in_place():
            states = model(trunk.to(model.device), with_scores=False).pre_states
            candidates = candidates_of(model, states.flatten(0, 1), histories, num_candidates)
        model.train(was_training)
        return candidates

    return propose


def validation_queries(dataset: Dataset, most: int, *, repeats: bool = False) -> Queries:
    """Return the validation queries that choose: all, or a seeded sample of ``most``.

    Args:
        repeats: Whether targets that stand in their own history choose, too. Where there are no
            others they do in any case.
    """
    queries = dataset.valid
    if not repeats and not queries.is_repeat.all():
        queries = queries.take(np.flatnonzero(~queries.is_repeat))
    if len(queries) <= most:
        return queries
    drawn = stream(0, "validation").choice(len(queries), most, replace=False)
    return queries.take(np.sort(drawn))


def validation_accuracy(
    recommender: Recommender, queries: Queries, histories: Histories, mask: Mask = DEFAULT_MASK
) -> dict[str, float]:
    """Return what a run is validated by, for a recommender as it is now: metrics, log-loss, and of
    one that thinks the mean number of ``tokens``."""
    scored = recommender.score(histories)
    values = ranking_accuracy(scored.scores, queries, histories, mask)
    if scored.num_tokens is not None:
        values["tokens"] = float(scored.num_tokens.mean())
    return values


def ranking_accuracy(
    scores: np.ndarray, queries: Queries, histories: Histories, mask: Mask = DEFAULT_MASK
) -> dict[str, float]:
    """Return metrics of scores (Q, N), and the log-loss of their softmax."""
    rank = rank_targets(scores, queries.target, histories=histories, mask=mask)
    logp = log_softmax(scores, axis=1)[np.arange(len(scores)), queries.target]
    return {
        "ndcg@10": float(ndcg(rank, 10).mean()),
        "hit@10": float(hit(rank, 10).mean()),
        "ndcg": float(ndcg(rank, scores.shape[1]).mean()),
        "log_loss": -float(logp.mean()),
    }


def keys_of(stage: Stage, config: R2ecConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides a stage's result."""
    keys: dict[str, Any] = config.model_dump(mode="json")
    if config.recpo.recpo.mask is None:  # folders of before it was a key stay what they are
        del keys["recpo"]["recpo"]["mask"]
    own = stage.replace("-", "_")
    if stage == "gate":  # the rest is that of the model that it stands before
        asked = {key: keys[key] for key in ("method", "held_out", "num_valid_queries", own)}
        rolls_out = config.gate.source == "rollouts"
        return asked | ({"recpo": {"recpo": keys["recpo"]["recpo"]}} if rolls_out else {})
    kept = ["method", "backbone", "tiny", "head", "held_out", "num_valid_queries", own]
    if config.backbone != "tiny":
        kept += ["weights", "prompt"]
    if stage != "no-think":
        kept += ["thought", "inference", "calibrate"]
    asked = {key: keys[key] for key in kept}
    told = config.prompt.model_dump(mode="json", exclude_defaults=True)
    if config.backbone == "tiny" and told:  # as it is, a prompt was never among its keys
        asked["prompt"] = told
    if stage == "recpo":
        del asked["recpo"]["engine"]
        asked["recpo"] |= config.recpo.engine.decides()
    return asked if stage == "no-think" else asked | {"max_tokens": max_tokens(config)}


def tell_of_repeats(dataset: Dataset) -> None:
    """Say how many targets choose nothing, where there are any, and when they should."""
    share = dataset.valid.is_repeat.mean() if len(dataset.valid) else 0.0
    if share:
        logger.warning(
            "%s: %.1f %% of the validation targets were taken before by the same person. Where "
            "there are others they choose nothing and earn no reward, as nothing is offered twice. "
            "If this shop does offer things again, say so (--head.repeats; demo --repeats), and "
            "measure and recommend with --mask none",
            dataset.name, 100 * share,
        )  # fmt: skip


def check_trainable(stage: Stage, dataset: Dataset) -> None:
    """Refuse data that has no position to learn from, or nothing to choose the best step by."""
    needed = 3 if stage in ("recpo", "gate") else 2
    most = int(np.diff(dataset.train.user_offsets).max(initial=0))
    if most < needed or len(dataset.valid) == 0:
        raise DataError(
            f"training {METHOD_OF_STAGE[stage]} needs a user with {needed} training events, and a "
            f"validation query; in {dataset.name} no user has more than {most}, and there are "
            f"{len(dataset.valid)} queries. Under leave-one-out that is a user with {needed + 2} "
            "events"
        )

"""GRPO over written thoughts and answers (R2Rec): the shared core with rewards of text handed in.

Rollouts -> rewards -> advantages -> clipped token objective, as in `training.rl.recpo`; a question
is a prompt in words, and what is rewarded is the answer. Queries need labels and no traces.

Departs from GRPO in three keys of ours: by default advantages are not divided by the group's spread
and nothing holds the model to where it started (``kl_weight``), and ``answer_weight`` adds the
cross-entropy of the true answer after the model's own thoughts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reasonrec import ranks
from reasonrec.models.answers import AnsweringModel, Written, answer_log_probs, prompts_of
from reasonrec.models.text_batch import TextBatch, choices_of, moved, text_batch
from reasonrec.rng import stream_seed
from reasonrec.traces.interaction_of_thought import read_student_text
from reasonrec.traces.questions import Question
from reasonrec.training.reasoned_config import GrpoConfig
from reasonrec.training.rl.advantages import advantages_within_groups, is_flat
from reasonrec.training.rl.engines.contract import RolloutEngine
from reasonrec.training.rl.engines.sampler import Sampler
from reasonrec.training.rl.loss import kl_to_start, token_objective
from reasonrec.training.rl.recpo import StartingPoint
from reasonrec.training.rl.text_rewards import Reward, Rollout, pairwise_order
from reasonrec.training.sharding import whole


@dataclass
class WrittenRollouts:
    """P x G scored texts, kept for the inner epochs."""

    batch: TextBatch
    """R = P * G rows; weight 1 on what was drawn."""
    sampler_logp: Tensor
    """(R, T), float32, what the engine says of each drawn token, at temperature 1; 0 elsewhere."""
    labelled: TextBatch | None
    """Own thoughts with the true answer behind them: its choices, or weight 1 on its tokens."""
    advantages_P_G: Tensor
    statistics: dict[str, float]
    old_logp: Tensor | None = None
    start_logp: Tensor | None = None
    """(R, T), of the model that RL started from; where the distance from it has a weight."""
    writer_logp: Tensor | None = None
    """(R, T), at temperature 1, to be compared with the engine's; where what is trained has another
    temperature."""

    def of_part(self, begin: int, end: int, num_events: int) -> "WrittenRollouts":
        """Return the rollouts about some of the events, which have equally many each."""

        def cut(tensor: Tensor) -> Tensor:
            per_event = len(tensor) // num_events
            return tensor[begin * per_event : end * per_event]

        def cut_batch(batch: TextBatch) -> TextBatch:
            return TextBatch(*(cut(tensor) for tensor in vars(batch).values()))

        return WrittenRollouts(
            cut_batch(self.batch),
            cut(self.sampler_logp),
            None if self.labelled is None else cut_batch(self.labelled),
            cut(self.advantages_P_G),
            self.statistics,
            start_logp=None if self.start_logp is None else cut(self.start_logp),
            writer_logp=None if self.writer_logp is None else cut(self.writer_logp),
        )


class Grpo:
    """Makes the loss of each optimiser step; holds the rollouts of the batch being learned from."""

    def __init__(
        self,
        config: GrpoConfig,
        questions: Sequence[Question],
        rewards: Sequence[tuple[float, Reward]],
        *,
        seed: int,
        start: StartingPoint | None = None,
        engine: RolloutEngine | None = None,
        recites: bool = False,
        chooses: bool = False,
    ) -> None:
        """Args:
        chooses: Whether true answers are learned as choices among those that a question offers.
        recites: Whether thoughts recite what stands on a chain behind its cue (`traces.recital`).
        start: The model that RL starts from; needed where ``config.kl_weight`` is above 0.
        engine: Who writes the rollouts; our own sampler unless told otherwise.
        questions: With pairs (``config.pairwise_weight`` above 0), each question with a label is
            followed by the one about the item that the same user did not touch.
        rewards: Functions and their weights; their weighted sum is the reward.
        """
        self.config, self.questions, self.rewards, self.seed = config, questions, rewards, seed
        self.start, self.engine = start, engine or Sampler()
        self.recites, self.chooses = recites, chooses
        self._batch: int | None = None
        self._rollouts: WrittenRollouts | None = None

    def __call__(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of one step and what there is to log about it."""
        model.eval()  # dropout would make the sampling policy another one than the trained one
        parts: dict[str, float] = {}
        # where processes share a batch, each writes the whole of it, so that all draw as one would,
        # and learns from its own part
        events, keys = ranks.gathered(inputs["event"]), ranks.gathered(inputs["key"])
        number = int(inputs["batch"][0])
        if number != self._batch:
            started = time.perf_counter()
            self._batch = number
            first = int(keys[0])
            with whole(model) as own:
                self.engine.sync(own)
                synced = time.perf_counter()
                self._rollouts = self._roll_out(
                    own, events.tolist(), stream_seed(self.seed, "rollout", first)
                )
            if len(events) > len(inputs["event"]):
                begin = int(inputs["key"][0]) - first
                end = begin + len(inputs["event"])
                self._rollouts = self._rollouts.of_part(begin, end, len(events))
            parts["rl/sync_seconds"] = synced - started
            parts["rl/rollout_seconds"] = time.perf_counter() - synced
        rollouts = self._rollouts
        assert rollouts is not None
        loss, logged = grpo_loss(model, rollouts, self.config)
        return loss, parts | logged

    def _roll_out(
        self, model: AnsweringModel, rows: list[int], generator_seed: int
    ) -> WrittenRollouts:
        size = 2 if self.config.pairwise_weight else 1
        asked = [self.questions[size * r + side] for r in rows for side in range(size)]
        texts, replies, marks, written = _write(
            model, self.engine, asked, self.config, generator_seed, self.recites
        )
        rewards = np.array(
            [sum(w * reward(text) for w, reward in self.rewards) for text in texts]
        ).reshape(len(asked), -1)
        if self.config.pairwise_weight:
            groups = [
                texts[i : i + rewards.shape[1]] for i in range(0, len(texts), rewards.shape[1])
            ]
            for p in range(0, len(groups), 2):
                taken, untouched = pairwise_order(groups[p], groups[p + 1])
                rewards[p] += self.config.pairwise_weight * taken
                rewards[p + 1] += self.config.pairwise_weight * untouched
        rewards_P_G = torch.tensor(rewards, dtype=torch.float32)
        advantages = advantages_within_groups(rewards_P_G, self.config.advantage)
        batch = text_batch([(text, at) for text, at, _ in replies], model.writer.pad_id)
        sampler_logp = torch.zeros_like(batch.weight)
        for r, (_, at, length) in enumerate(replies):
            batch.weight[r, at : at + length] = written.is_written[r, :length].float().cpu()
            sampler_logp[r, at : at + length] = written.token_logp[r, :length].cpu()
        labelled = None
        if self.config.answer_weight:
            ends = [(text[:mark], mark) for (text, _, _), mark in zip(replies, marks, strict=True)]
            labelled = _labelled(model, asked, ends, self.config.group_size, self.chooses)
        batch = batch.to(model.device)
        start_logp = writer_logp = None
        if self.config.kl_weight:
            assert self.start is not None, "kl_weight needs the model that RL starts from"
            with torch.no_grad(), self.start.in_place():
                start_logp, _, _ = model(batch, token_temperature=self.config.temperature)
        if self.config.temperature != 1:
            with torch.no_grad():
                writer_logp, _, _ = model(batch)
        return WrittenRollouts(
            batch,
            sampler_logp.to(model.device),
            labelled,
            advantages.to(model.device),
            _statistics(texts, rewards_P_G, advantages, written.lengths.tolist()),
            start_logp=start_logp,
            writer_logp=writer_logp,
        )


def _labelled(
    model: AnsweringModel,
    asked: Sequence[Question],
    thoughts: Sequence[tuple[list[int], int]],
    group_size: int,
    chooses: bool,
) -> TextBatch:
    """Return own thoughts with the true answer behind them, where it is known.

    Args:
        thoughts: Tokens up to the end of the answer marker, and how many; G for each question.
        chooses: The answer counts as a choice among those offered, else by its tokens.
    """
    texts, choices = [], []
    for r, (tokens, mark) in enumerate(thoughts):
        question = asked[r // group_size]
        if question.label is None:
            continue
        answers = model.answer_tokens(question)
        label = answers[question.answers.index(question.label)]
        text = [*tokens, *label, model.end_token]
        texts.append((text, len(text) if chooses else mark))
        found = choices_of(answers, label, model.end_token) if chooses else ()
        choices.append(moved(found, mark))
    return text_batch(texts, model.writer.pad_id, choices).to(model.device)


def _write(
    model: AnsweringModel,
    engine: RolloutEngine,
    asked: Sequence[Question],
    config: GrpoConfig,
    generator_seed: int,
    recites: bool,
) -> tuple[list[Rollout], list[tuple[list[int], int, int]], list[int], Written]:
    """Return rollouts, their tokens with the lengths of prompt and reply, answer places, and what
    the engine wrote."""
    prompts = prompts_of(model, asked)
    written = engine.write(
        prompts, max_tokens=config.max_tokens, group_size=config.group_size,
        temperature=config.temperature, max_answer_tokens=config.max_answer_tokens,
        seed=generator_seed,
        recitals=[model.recital_tokens(question) for question in asked] if recites else None,
    )  # fmt: skip
    texts: list[tuple[list[int], int, int]] = []
    marks: list[int] = []
    for r, length in enumerate(written.lengths.tolist()):
        prompt = prompts[r // config.group_size]
        reply = written.token_ids[r, :length].tolist()
        texts.append(([*prompt, *reply], len(prompt), length))
        marks.append(len(prompt) + int(written.answer_at[r]))
    questions = [asked[r // config.group_size] for r in range(len(texts))]
    log_probs = answer_log_probs(
        model, questions, [text[:mark] for (text, _, _), mark in zip(texts, marks, strict=True)],
        written.marker_logp,
    )  # fmt: skip
    rollouts = []
    for r, question in enumerate(questions):
        tokens, at, _ = texts[r]
        reply = [t for t in tokens[at:] if t != model.end_token]
        said = read_student_text(question, str(model.tokenizer.decode(reply)))
        rollouts.append(
            Rollout(
                question=question,
                thought=str(model.tokenizer.decode(tokens[at : marks[r]])),
                answer=said[1] if said else None,
                is_truncated=bool(written.is_truncated[r]),
                probabilities=np.exp(log_probs[r].astype(np.float64)),
            )
        )
    return rollouts, texts, marks, written


def grpo_loss(
    model: Any, rollouts: WrittenRollouts, config: GrpoConfig
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss to be minimised and what there is to log.

    Log-probabilities of the first call for a batch of rollouts are the old ones.
    """
    batch = rollouts.batch
    logp, entropy, _ = model(batch, token_temperature=config.temperature)
    old_logp = logp.detach() if rollouts.old_logp is None else rollouts.old_logp
    rollouts.old_logp = old_logp
    shape = (*rollouts.advantages_P_G.shape, -1)
    is_written = batch.weight > 0
    loss = -token_objective(
        logp.reshape(shape), old_logp.reshape(shape), rollouts.advantages_P_G,
        is_written.reshape(shape), clip_low=config.clip_low, clip_high=config.clip_high,
        mean_over=config.token_mean,
    )  # fmt: skip
    # each mean is over what this process holds; its share makes it one over the whole batch
    of_tokens, of_rollouts, of_labels = ranks.shares(
        int(is_written.sum()),
        rollouts.advantages_P_G.numel(),
        0 if rollouts.labelled is None else len(rollouts.labelled.token_ids),
    )
    loss = loss * (of_tokens if config.token_mean == "tokens" else of_rollouts)
    logged = dict(rollouts.statistics)
    logged["rl/entropy"] = float(entropy.sum() / is_written.sum().clamp(min=1)) * of_tokens
    compared = old_logp if rollouts.writer_logp is None else rollouts.writer_logp
    apart = (compared - rollouts.sampler_logp).abs()[is_written]
    logged["rl/sampler_mismatch"] = max(
        ranks.gathered_objects(float(apart.max()) if apart.numel() else 0.0)
    )
    if rollouts.start_logp is not None:
        distance = kl_to_start(logp, rollouts.start_logp, is_written) * of_tokens
        loss = loss + config.kl_weight * distance
        logged["rl/kl_to_start"] = float(distance.detach())
    if rollouts.labelled is not None:
        of_words, _, of_choices = model(rollouts.labelled)
        answers = -(of_words.sum() + of_choices.sum()) / len(of_words) * of_labels
        loss = loss + config.answer_weight * answers
        logged["rl/answer_loss"] = float(answers.detach())
    return loss, logged


def _statistics(
    texts: Sequence[Rollout], rewards_P_G: Tensor, advantages_P_G: Tensor, lengths: Sequence[int]
) -> dict[str, float]:
    return {
        "rl/reward_mean": float(rewards_P_G.mean()),
        "rl/reward_best": float(rewards_P_G.max(1).values.mean()),
        "rl/reward_spread": float(rewards_P_G.std(1).mean()),
        "rl/advantage_abs": float(advantages_P_G.abs().mean()),
        "rl/frac_flat_groups": float(is_flat(rewards_P_G).float().mean()),
        "rl/thought_tokens": float(np.mean(lengths)),
        "rl/frac_truncated": float(np.mean([one.is_truncated for one in texts])),
        "rl/frac_malformed": float(np.mean([one.answer is None for one in texts])),
    }

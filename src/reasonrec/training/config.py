"""What training can be told. Imports no torch, so that ``--help`` stays quick."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reasonrec.config import Config
from reasonrec.models.ranking import Mask
from reasonrec.records import TokenPolicy

Estimator = Literal["grpo", "centred", "leave-one-out"]
Schedule = Literal[
    "cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt", "cosine_with_restarts"
]
TokenMean = Literal["tokens", "rollouts", "sum"]
ItemTerm = Literal["best", "positive", "all", "infonce"]
EngineKind = Literal["sampler", "vllm-colocated", "vllm-server"]


class OptimiserConfig(Config):
    """Optimiser and schedule of one stage."""

    learning_rate: PositiveFloat = 2e-3
    head_learning_rate: PositiveFloat | None = None
    """Of the evidence pointer and the few other weights that start at nothing when thinking
    begins; None: the same."""
    word_learning_rate: PositiveFloat | None = None
    """Of the embeddings of words, where titles have tokens of their own; all that a prompt is made
    of, titles and its first words, then stays as it is. None: all learn at ``learning_rate``."""
    weight_decay: NonNegativeFloat = 0.1
    warmup_frac: float = Field(default=0.05, ge=0, le=1)
    """Share of all steps over which the learning rate rises to its peak."""
    warmup_steps: NonNegativeInt | None = None
    """Steps over which it rises, in place of a share of them."""
    schedule: Schedule = "cosine"
    """How the learning rate goes on after it; names are those of transformers."""
    max_grad_norm: PositiveFloat = 1.0
    batch_size: PositiveInt = 64
    """Rows per step, over all processes together: windows, or prompts in reinforcement learning."""
    num_validations: PositiveInt = 10
    """How often in a run the model is validated and a checkpoint is written."""
    refresh_items_every: PositiveInt = 100
    """Steps by which rows that are encoded from text are at most behind the weights when a loss
    reads them (T_refresh). All are encoded before the first step and at every validation; then anew
    for the loss this many steps later, and from there on for the loss one step later than that."""
    patience: NonNegativeInt = 0
    """Validations without a better one after which a run ends early; 0 never."""
    averaging: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential mean of the weights over steps, which is validated and kept in their
    stead. 0 keeps the weights themselves."""
    num_threads: NonNegativeInt = 0
    """Threads of torch. 0 takes OMP_NUM_THREADS; where that is not set, one for a model of less
    than ten million parameters and torch's own number for a larger one."""


class EngineConfig(Config):
    """Who writes the rollouts of reinforcement learning. ``docs/scaling.md`` says what each needs.

    With ``sampler``, the default, the other keys say nothing.
    """

    kind: EngineKind = "sampler"
    """Our own sampler, vLLM inside this process, or a vLLM server."""
    handover: Literal["merged", "adapter"] = "merged"
    """What vLLM is handed after every step: all weights, adapters worked into a copy of them, or
    the adapters alone (needs ``weights.lora``)."""
    ahead: bool = False
    """Have the next batch written while this one is learned from (RecPO with vLLM). Its thoughts
    are then those of one step ago, and ratios of tokens are against the probabilities they had, as
    the engine says; that of the recommendation is against the first pass that learns from them, as
    the reward is of its scores. A copy of the trained weights is kept meanwhile, to compare the
    engine with. After a checkpoint a batch is waited for, so that a resumed run is the same."""
    url: str = "http://127.0.0.1:8000"
    """Of the server."""
    folder: Path | None = None
    """Folder through which weights are handed over, which the server must see under the same path;
    one in memory, as ``/dev/shm/rollouts``, is the quickest. None: a temporary folder."""
    concurrency: PositiveInt = 64
    """Requests that wait at the server at a time."""
    timeout_s: PositiveFloat = 600.0
    """How long one request to the server may take."""
    memory_frac: float = Field(default=0.4, gt=0, le=1)
    """Colocated: share of the GPU's memory that vLLM may take beside training."""
    max_length: PositiveInt = 2048
    """Colocated: tokens of a prompt and its thought together."""
    eager: bool = False
    """Colocated: start without capturing graphs of the GPU; slower to write, quicker to start."""

    def decides(self) -> dict[str, Any]:
        """Return what a manifest says of the engine: what can move a number, nothing by default."""
        if self.kind == "sampler":
            return {}
        said = {"kind": self.kind, "handover": self.handover}
        return {"engine": said | ({"ahead": True} if self.ahead else {})}

    @model_validator(mode="after")
    def check_ahead_is_elsewhere(self) -> Self:
        if self.ahead and self.kind == "sampler":
            raise ValueError(
                "engine.ahead needs an engine that holds weights of its own; 'sampler' reads those "
                "that are being changed. Use engine.kind = 'vllm-server', or leave ahead off"
            )
        return self


class SftLossConfig(Config):
    """Weights of the parts of the supervised loss."""

    next_item: NonNegativeFloat = 1.0
    """Next item after every history position, without thought."""
    think: NonNegativeFloat = 1.0
    """Target after the thought, from the gated state."""
    post: NonNegativeFloat = 0.5
    """Target after the thought, from the ungated state, which teaches the state while the gate is
    still closed."""
    tokens: NonNegativeFloat = 2.0
    """Written tokens of the thought."""


class GateConfig(Config):
    """When to think: a gate on the state before the thought. Ours; the paper always thinks."""

    source: Literal["thoughts", "rollouts"] = "thoughts"
    """What the gain is measured on: one thought as the model is served, against none (``gain``); or
    rollouts of RecPO, the mean reward of sampled thoughts less that of the empty one."""
    gain: Literal["log_prob", "ndcg"] = "log_prob"
    """With ``thoughts``, what is predicted: what a thought adds to the target's log-probability, or
    to its NDCG without cut-off. The threshold is chosen by NDCG in any case."""
    max_mean_tokens: NonNegativeFloat | None = None
    """Most tokens of thought a query, a mean over validation; None for no budget."""
    max_events: PositiveInt = 2000
    """Held-out training events that the gain is measured on: all, or a seeded sample of them."""


class RecpoConfig(Config):
    """RecPO. Defaults without a remark are the paper's (R²ec, appendix D)."""

    group_size: int = Field(default=4, ge=2)
    """Rollouts per prompt, G. One alone has nothing to be compared with."""
    temperature: PositiveFloat = 1.0
    """Of sampling. The paper: 1.5."""
    top_k: NonNegativeInt = 0
    """Likeliest tokens that a sampled one is among; 0 for all. The paper: 200."""
    likelihood_at: Literal["sampling", "one"] = "sampling"
    """Whose log-probabilities of tokens ratios, gradients, entropy and the distance from the start
    are made of: of the policy that wrote the rollouts, at their temperature and among their
    ``top_k``; or at temperature 1 among all tokens, whatever was sampled, as in the official
    code."""
    max_tokens: PositiveInt = 128
    """Of a thought, looked-up evidence included. The paper's 512 is for plain text."""
    min_history: PositiveInt = 2
    """Events of a user before one that is asked about, where none is held out. The paper: 1."""
    mask: Mask | None = None
    """What the history may not do in the reward and in the softmax of the recommendation: compete,
    with (``history-except-target``) or without (``history``) a target that repeats an item of it,
    or nothing (``none``). Where one is named, events that repeat an item are asked about too; under
    ``history`` such a target earns nothing and trains no recommendation. None: as ``head.repeats``
    says. The official code rewards by ``history``, and lets the history compete in the softmax."""
    beta: float = Field(default=0.05, ge=0, le=1)
    """Share of the softmax reward R_c beside NDCG, R_d."""
    reward_at: PositiveInt = 1000
    """Cut-off k of the NDCG reward."""
    length_weight: NonNegativeFloat = 0.0
    """Taken off the reward of a thought of ``max_tokens`` tokens, of a shorter one in proportion;
    looked-up evidence counts as it does for who waits and reads. Validation charges as much when
    the best step is chosen. The paper has none."""
    advantage: Estimator = "grpo"
    clip_low: PositiveFloat = 0.2
    clip_high: PositiveFloat = 0.2
    num_inner_epochs: PositiveInt = 1
    """Optimiser steps on each batch of rollouts."""
    token_mean: TokenMean = "tokens"
    """What the token term is a mean over; not stated in the paper."""
    item_term: ItemTerm = "best"
    """Which rollouts train the recommendation: by their advantages the best one, those above
    nothing, or all; or (``infonce``) all alike with weight 1, whatever they earned: an ablation."""
    item_softmax: Literal["batch", "catalogue"] = "catalogue"
    """Items that the recommendation's probability is taken over. The paper: the batch's targets.
    Where rows come from text (``head.item_rows``), the targets' are new and those of the rest of
    the catalogue as old as the table (``refresh_items_every``): take ``batch`` there."""
    item_weight: NonNegativeFloat = 1.0
    """Weight of the recommendation term beside the token term. The paper: 1."""
    flat_groups: Literal["skip", "cross-entropy"] = "cross-entropy"
    """What groups without spread in reward do: nothing, as in the paper, or train the
    recommendation of all their rollouts with weight 1 / G, since their label is known."""
    rollouts_from: Literal["current", "start"] = "current"
    """Whose weights write the rollouts: those that are trained, or those that RL started from,
    which is a control and no RecPO: with ``thought_weight`` 0 it is what the official code does in
    effect, best of G on thoughts of a frozen model."""
    thought_weight: NonNegativeFloat = 1.0
    """Weight of the whole thought's advantage for its tokens. The paper: 1."""
    sentence_weight: NonNegativeFloat = 0.0
    """Weight of an advantage of their own for the tokens of each sentence and look-up: how much it
    adds to the target's log-probability, above what the group's sentences of the same place add.
    Ours; the paper rewards whole thoughts alone."""
    empty_rollout: bool = False
    """Whether the last rollout of each group is the empty thought, which nothing wrote and which
    carries no token loss: the others are compared with silence too. Ours."""
    kl_weight: NonNegativeFloat = 0.0
    """Weight of the distance of written tokens from the model that RL started from, both as
    ``likelihood_at`` says: with ``top_k`` each is over its own likeliest tokens, the written one
    among them, so that it is finite. The paper has none."""
    entropy_weight: NonNegativeFloat = 0.0
    """Weight of a reward for uncertainty at written tokens, of the policy that is trained: with
    ``top_k`` it evens out the likeliest tokens and brings in no other. The paper has none."""
    next_item_weight: NonNegativeFloat = 0.5
    """Weight of the no-think loss on the prompts, ours; it keeps ranking without thought intact."""

    @property
    def token_policy(self) -> TokenPolicy:
        """The policy that is trained."""
        is_writer = self.likelihood_at == "sampling"
        return TokenPolicy(self.temperature, self.top_k) if is_writer else TokenPolicy()

"""Everything that training R2Rec can be told. Imports no torch, so that ``--help`` stays quick.

The paper's text is not public to us. Its abstract states two stages, SFT on reasoning traces and
then RL with rewards; that the student writes thought and answer, that RL is GRPO, and that
candidates are ranked is known at second hand. Every value below is ours.
"""

from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reasonrec.config import Config
from reasonrec.models.config import BlendingConfig
from reasonrec.traces.reasoned_config import ReasonedTracesConfig, Task
from reasonrec.training.config import EngineConfig, OptimiserConfig
from reasonrec.training.reasoned_config import GrpoConfig

R2recStage = Literal["r2rec-sft", "r2rec-rl"]


class ReasonedSftStage(Config):
    """Thought and answer, given the question.

    That there is SFT on traces is stated by the paper's abstract; the loss on thought and answer,
    and LoRA, are known at second hand. Every value here is ours.
    """

    num_epochs: PositiveInt = 2
    tokens_per_row: PositiveInt = 512
    """Texts are packed into rows of this length. Long rows suit a GPU; on a CPU rows of one text,
    which need no mask, are the quicker ones."""
    answer_weight: PositiveFloat = 20.0
    """Weight of an answer beside 1 for a token of the thought, which has hundreds: of its choice
    (``chooses``), else of each of its tokens."""
    optimiser: OptimiserConfig = OptimiserConfig(
        learning_rate=1e-3,
        word_learning_rate=5e-3,
        weight_decay=0.01,
        batch_size=16,
        num_validations=2,
    )
    """``batch_size`` counts rows. Words learn faster than the rest; titles stay as no-think left
    them."""


class GrpoStage(Config):
    """Rewards of answers, from labels alone.

    RL after SFT is stated by the abstract, GRPO is known at second hand. Which events are asked
    about, how many, and every other value here is ours.
    """

    num_prompts: PositiveInt = 160
    """Training events asked about; they need no trace."""
    grpo: GrpoConfig = GrpoConfig()
    engine: EngineConfig = EngineConfig()
    """Who writes the rollouts."""
    optimiser: OptimiserConfig = OptimiserConfig(
        learning_rate=1e-4, weight_decay=0.0, batch_size=16, num_validations=1, schedule="linear"
    )

    @model_validator(mode="after")
    def check_stage(self) -> Self:
        if self.num_prompts < self.optimiser.batch_size:
            raise ValueError(
                f"num_prompts must fill one batch of {self.optimiser.batch_size} "
                f"(optimiser.batch_size); got {self.num_prompts}"
            )
        if self.engine.ahead:
            raise ValueError(
                "engine.ahead is for RecPO alone: R2Rec learns from what its own weights wrote; "
                "leave it off"
            )
        return self


class ReasonedRankingConfig(Config):
    """How a trained model ranks.

    That candidates are ranked is known at second hand; the expected rating, the drawn orders and
    the first stage before the whole catalogue are ours.
    """

    num_candidates: int = Field(default=20, ge=2)
    """Items that are reasoned about where the whole catalogue is asked for; the first stage
    chooses them."""
    num_orders: PositiveInt = 1
    """Likes: drawn orders of the candidates whose probabilities are averaged. Time grows with it;
    the reason shown is that of the first."""
    num_orders_measured: NonNegativeInt = 2
    """Likes: orders on which `train` measures how much the order matters; 0 leaves it out."""


class R2recConfig(Config):
    """Everything that training R2Rec can be told."""

    method: Literal["r2rec"] = "r2rec"
    stages: tuple[R2recStage, ...] = ("r2rec-sft", "r2rec-rl")
    """Which stages are trained, each from the one before, the first from the backbone as it is. One
    alone is the ablation without the other."""
    task: Task = "likes"
    """likes ranks by one question with all candidates (listwise), is ours, and the default. rated
    ranks by one question and one expected rating for each (pointwise); at second hand the query of
    the paper asks for the user's rating, so rated is the nearer to it."""
    think: bool = True
    """Whether a thought is written before the answer. Without, training is direct-answer SFT, a
    control of ours."""
    traces: ReasonedTracesConfig = ReasonedTracesConfig(
        num_questions=1600, events="last", max_rounds=4
    )
    """Questions, evidence, teacher and filter of the traces that SFT learns from; RL asks about
    the same kind of events. Of the last event of each user, which no-think leaves out."""
    vocab_size: NonNegativeInt = 1024
    """Sub-word tokens that the tiny backbone learns from the traces; 0 keeps its own."""
    copies: bool = False
    """Whether the tiny backbone may copy titles from what it read (ours). It then names its
    evidence sooner than it learns to write sentences; others need no help."""
    recites: Literal["never", "tiny", "always"] = "tiny"
    """Whose thoughts recite: what stands on a chain follows by itself, without loss, where the
    thought names the chain, as look-ups do in R²ec (ours). What a thought says of its evidence is
    then true; the model says which chains, whether people agree on them, and when it has thought
    enough. tiny: those of a backbone with title tokens; others can copy, and a server that writes
    rollouts cannot recite."""
    chooses: bool = True
    """Whether the answer is learned as the choice that ranking reads (ours): its likelihood among
    the answers that the question offers, besides its words as any others. False: its words alone,
    among everything that could be written."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of input-embedding entries dropped in SFT."""
    max_tokens: PositiveInt = 140
    """Of a thought, when ranking; then the answer marker is forced."""
    sft: ReasonedSftStage = ReasonedSftStage()
    rl: GrpoStage = GrpoStage()
    ranking: ReasonedRankingConfig = ReasonedRankingConfig()
    blend: bool = True
    """Whether the ranking weighs the answers together with the first stage, the support of chains,
    the number of events, the likeness of words, and ``blending.others`` (ours). R2Rec ranks by the
    answer alone: False."""
    blending: BlendingConfig = BlendingConfig()
    num_valid_candidates: int = Field(default=20, ge=2)
    """Candidates of a validation query, the one taken included."""
    num_valid_queries: PositiveInt = 200
    """Validation queries that choose the best step: all, or a seeded sample of this many."""

    @model_validator(mode="after")
    def check_pairs(self) -> Self:
        """Refuse pairs of likes, whose question holds the untouched items already."""
        if self.rl.grpo.pairwise_weight and self.task != "rated":
            raise ValueError(
                f"rl.grpo.pairwise_weight asks for ratings (task rated); the task is {self.task}. "
                "Set it to 0"
            )
        return self

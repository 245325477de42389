"""Everything that training R²ec can be told. Imports no torch, so that ``--help`` stays quick."""

from operator import attrgetter
from typing import Literal, Self, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reasonrec.config import Config
from reasonrec.models.config import HeadConfig, TinyConfig, WeightsConfig
from reasonrec.traces.config import OF_R2EC, PromptConfig, ThoughtConfig
from reasonrec.training.config import (
    EngineConfig,
    GateConfig,
    OptimiserConfig,
    RecpoConfig,
    SftLossConfig,
)

Stage = Literal["no-think", "evidence", "sft", "recpo", "gate"]
TRUNK_STAGES: tuple[Stage, ...] = ("no-think", "sft", "recpo")
"""Stages that later ones start from."""


class NoThinkStage(Config):
    """The next item after every history position, without thought."""

    num_epochs: PositiveInt = 36
    max_windows: PositiveInt = 400_000
    """Most windows, of ``head.max_history`` events of a user, in all epochs: a bound for long logs,
    whose epochs are long. It goes before ``num_epochs``: the last ones are left out, and the run
    says how many epochs are left (``epochs`` in its manifest)."""
    optimiser: OptimiserConfig = OptimiserConfig(
        batch_size=32,
        schedule="constant_with_warmup",
        warmup_frac=0.02,
        averaging=0.998,
        num_validations=12,
        patience=3,
    )


class SftStage(Config):
    """Thoughts of the verbaliser, learned beside the next item."""

    num_epochs: PositiveInt | None = None
    """Times that the log is read, as far as ``max_windows`` allows. None: four, or on a short log
    as many as make ``min_windows``."""
    min_windows: PositiveInt = 4_000
    """What it takes to learn how a thought is written. Counts where ``num_epochs`` is not set."""
    max_windows: PositiveInt = 16_000
    """Most windows in all epochs; those that end in a held-out event are kept before others. It
    goes before ``num_epochs`` and ``min_windows``: on a long log it may be less than one epoch. The
    run then says so, and its manifest how many epochs were laid out (``epochs``)."""
    num_branches: PositiveInt = 3
    """Thoughts per window, each after another position."""
    loss: SftLossConfig = SftLossConfig()
    optimiser: OptimiserConfig = OptimiserConfig(
        learning_rate=5e-5,
        head_learning_rate=1e-2,
        word_learning_rate=5e-3,
        batch_size=32,
        num_validations=2,
    )

    def epochs_for(self, windows_in_one: int) -> int:
        """Return how often a log is read that holds so many windows."""
        return self.num_epochs or max(4, -(-self.min_windows // max(1, windows_in_one)))


class EvidenceStage(SftStage):
    """The control of thinking, ours: the evidence of thoughts, and no thought.

    Defaults are those of SFT, so that both learn from the same positions in as many steps; the
    weights of words (``loss.tokens``, ``loss.post``) have nothing to weigh here.
    """

    in_prompt: bool = False
    """Whether the prompt also ends with the evidence as text, in the words of a thought. The state
    at its end is then weighed by ``loss.post`` as that after a thought."""


class RecpoStage(Config):
    """RecPO from recommendation labels alone."""

    num_prompts: PositiveInt = 1600
    """Training positions asked about, each once where the log has as many."""
    num_epochs: PositiveFloat | None = None
    """Times that every position is asked about, in place of ``num_prompts``."""
    recpo: RecpoConfig = RecpoConfig(advantage="leave-one-out")
    """Without division by the spread, unlike the paper: it blows up the small differences of
    groups that never find the item, and those say: look up less."""
    engine: EngineConfig = EngineConfig()
    """Who writes the rollouts."""
    optimiser: OptimiserConfig = OptimiserConfig(
        learning_rate=3e-5,
        head_learning_rate=3e-3,
        batch_size=32,
        num_validations=2,
        schedule="linear",
    )

    @model_validator(mode="after")
    def check_fills_a_batch(self) -> Self:
        if self.num_prompts < self.optimiser.batch_size:
            raise ValueError(
                f"num_prompts must fill one batch of {self.optimiser.batch_size} "
                f"(optimiser.batch_size); got {self.num_prompts}"
            )
        return self


class HeldOutConfig(Config):
    """Training events that no-think leaves out and that thoughts are ranked for, in SFT and RL.

    Each is the last one of a user. Ours. On events that the state before the thought remembers,
    evidence looks useless.
    """

    max_events: NonNegativeInt = 2000
    """0 holds out none: thoughts are then ranked for events that no-think was trained on."""
    max_frac: float = Field(default=0.05, ge=0, lt=1)
    """Most held-out events as a share of all training events."""


class InferenceConfig(Config):
    """How a trained model thinks when it is asked."""

    temperature: NonNegativeFloat = 0.0
    """0 writes the likeliest thought."""
    num_samples: PositiveInt = 1
    """Sampled thoughts whose rankings are averaged; more than 1 needs a temperature above 0."""

    @model_validator(mode="after")
    def check_samples_differ(self) -> Self:
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"num_samples above 1 needs a temperature above 0, else all {self.num_samples} are "
                "the same"
            )
        return self


class R2ecConfig(Config):
    """Everything that training R²ec can be told."""

    method: Literal["r2ec"] = "r2ec"
    stages: tuple[Stage, ...] = ("no-think", "sft", "recpo")
    """Which stages are trained, each from the one before; the first starts from the backbone as it
    is. A backbone that follows instructions can do RecPO alone, as in the paper. ``evidence``,
    ours, is a branch from no-think that no other stage starts from: the control of thinking.
    ``gate``, ours, learns for whom the last of them is worth thinking about."""
    backbone: str = "tiny"
    """``tiny``, or a folder or hub name of any causal LM."""
    tiny: TinyConfig = TinyConfig()
    weights: WeightsConfig = WeightsConfig()
    prompt: PromptConfig = PromptConfig()
    head: HeadConfig = HeadConfig()
    thought: ThoughtConfig = OF_R2EC
    no_think: NoThinkStage = NoThinkStage()
    evidence: EvidenceStage = EvidenceStage()
    sft: SftStage = SftStage()
    recpo: RecpoStage = RecpoStage()
    gate: GateConfig = GateConfig()
    inference: InferenceConfig = InferenceConfig()
    held_out: HeldOutConfig = HeldOutConfig()
    calibrate: bool = True
    """Whether what each kind of evidence is worth is fitted to the validation queries after SFT and
    after RecPO, and kept where validation ranks better with it. Ours."""
    num_valid_queries: PositiveInt = 1000
    """Validation queries that choose the best step: all, or a seeded sample of this many."""

    @model_validator(mode="after")
    def check_stages_are_in_order(self) -> Self:
        in_order = tuple(stage for stage in get_args(Stage) if stage in self.stages)
        if not self.stages or self.stages != in_order:
            raise ValueError(
                f"stages must be of {', '.join(get_args(Stage))}, once each and in this order; "
                f"got {list(self.stages)}"
            )
        return self

    def left_as_for_tiny(self) -> list[str]:
        """Return the settings that a backbone from elsewhere would share with the tiny one.

        Empty for ``tiny``. Each was chosen for a small model that starts from nothing.
        """
        if self.backbone == "tiny":
            return []
        trained = [
            name for name in ("no_think", "sft", "recpo") if name.replace("_", "-") in self.stages
        ]
        names = [f"{name}.optimiser.learning_rate" for name in trained]
        names += ["head.item_rows", "head.dropout"]
        own, tiny = (
            {name: attrgetter(name)(one) for name in names} for one in (self, R2ecConfig())
        )
        return [f"{name} {own[name]}" for name in names if own[name] == tiny[name]]

    @model_validator(mode="after")
    def check_tiny_is_as_it_is(self) -> Self:
        told = self.prompt.model_dump(
            include={"elapsed", "until_asked", "ratings", "item_popularity"}
        )
        as_is = {"weights": WeightsConfig(), "prompt": PromptConfig.model_validate(told)}
        for name, needed in as_is.items():
            if self.backbone == "tiny" and getattr(self, name) != needed:
                raise ValueError(
                    f"{name} is for backbones from elsewhere, and backbone is 'tiny'; give "
                    f"backbone a folder or hub name, or leave {name} as it is"
                )
        return self

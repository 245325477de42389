"""What models can be told. Imports no torch, so that ``--help`` stays quick."""

from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reasonrec.config import Config
from reasonrec.traces.config import Together
from reasonrec.traces.reasoned_config import StepsConfig

ItemRows = Literal["text", "id", "text+id"]
Similarity = Literal["dot", "cosine"]
Pooling = Literal["last", "mean", "max"]
Dtype = Literal["float32", "bfloat16"]
Holds = Literal["nothing", "chains", "chains-and-answers"]


class TinyConfig(Config):
    """Shape of the tiny backbone."""

    shape: Literal["qwen3", "llama"] = "qwen3"
    """Whose architecture is built small."""
    width: PositiveInt = 128
    """Hidden size."""
    num_layers: PositiveInt = 2
    num_heads: PositiveInt = 4
    feed_forward_width: PositiveInt = 256
    vocab_size: int = Field(default=1024, ge=300)
    """Sub-word tokens, the 256 bytes among them; the title tokens come on top."""
    init_std: NonNegativeFloat = 0.02
    """Standard deviation of the initial weights."""
    text_share: float = Field(default=0.5, ge=0, le=1)
    """Share of a title embedding's initial variance that comes from the words of the item's title
    and categories; the rest is noise of its own."""

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        # positions are rotations of pairs of a head's dimensions
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"width must be a multiple of 2 x num_heads = {2 * self.num_heads}; "
                f"got {self.width}"
            )
        return self


class HeadConfig(Config):
    """The recommendation head and how states are read for it."""

    item_rows: ItemRows = "id"
    """Where item rows come from: ``text``, ``id`` or ``text+id``."""
    text_words: NonNegativeInt = 100
    """Words of an item's description that such rows are encoded from, beside title and
    categories."""
    live_rows: PositiveInt | None = None
    """Targets of a step whose rows are encoded anew with gradient, in turn where there are more;
    all if null, as in the paper. Windows of histories hold hundreds, each a text to be read."""
    table_dtype: Dtype = "float32"
    """How rows that are encoded from text are kept: ``bfloat16`` halves the table and rounds it to
    three digits; scores stay float32."""
    similarity: Similarity = "dot"
    """Inner product, or cosine."""
    temperature: PositiveFloat = 1.0
    """Divides the scores."""
    pooling: Pooling = "last"
    """The state after a thought: that of its last token, the end of the answer marker, or in every
    dimension the mean or the largest of all its tokens. SFT decides, or RecPO where it comes
    first."""
    gated: bool = True
    """Mix the state before the thought into the state after it, starting at no thought."""
    pointer: bool = True
    """Let items that a look-up found in the thought add to their own scores, starting at nothing.
    Ours; the paper scores with the last state alone."""
    least_asked: NonNegativeInt = 7
    """Titles of its prompt that a thought asks about at least; as many as it is taught to ask about
    (``thought.num_lookups``) or as the prompt has, where those are fewer. For backbones with a
    token for every title. Ours: left to itself the tiny model soon stops."""
    dropout: float = Field(default=0.4, ge=0, lt=1)
    """Share of input-embedding and state entries dropped while training."""
    token_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of input tokens blanked out whole while training, so that no single event of a history
    is relied on."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of the next-item target spread evenly over the catalogue while training."""
    max_history: PositiveInt = 50
    """Most recent history items that a prompt shows."""
    repeats: bool = False
    """Whether what a person took before is offered again. If not, thoughts rank what is new beside
    it, and no reward, weight of evidence or best step rests on events that repeat an item, where
    there are others: whoever puts the history first would find them for nothing. If so, all
    competes and all counts; measure and serve with ``--mask none`` then. Ours."""


class WeightsConfig(Config):
    """How the weights of a backbone from elsewhere are held and trained."""

    dtype: Dtype = "float32"
    """Of the backbone. Head, learned item rows, scores and adapters are float32 in any case."""
    gradient_checkpointing: bool = False
    """Compute each layer a second time in the backward pass rather than keep what it computed."""
    lora: bool = False
    """Train low-rank adapters, the head and the item table alone, as in the paper, and keep the
    backbone as it is. False trains everything."""
    lora_rank: PositiveInt = 4
    lora_alpha: PositiveInt = 8
    """Adapters count lora_alpha / lora_rank times."""
    lora_targets: str = "all-linear"
    """Which layers get an adapter: all, or names with commas between them, as ``q_proj,v_proj``."""


class BlendingConfig(Config):
    """How the experts of a blend are heard and weighed: so that validation's targets are likeliest.

    All of it ours.
    """

    others: tuple[Together, ...] = ("auto", "ials")
    """Baselines that are weighed too: what goes with the whole history. They learn from training
    alone. As for ``thought.together`` of R²ec, ``auto`` is EASE up to 10,000 items, item-knn-bm25
    above."""
    recency_power: NonNegativeFloat = 0.5
    """For them the s-th last item of the history counts s ** -recency_power."""
    steps: StepsConfig = StepsConfig(window=20, total_power=0.7)
    """Which chains count, and how much: more of them than the support that a question shows."""
    max_history: PositiveInt = 50
    """Last items of the history that those chains may start from."""
    holds: Holds = "chains"
    """What counts at least as much as where first stage and ``others`` are silent. They know much
    of what chains and answers say, and what is likeliest may leave these nothing: then a ranking
    does not rest on the reasons that are shown for it."""
    least_share: PositiveFloat = 0.01
    """Added to every share of chains, events and baselines before its logarithm is taken, so that
    nothing is impossible."""
    ridge: NonNegativeFloat = 1e-3
    """What the squares of the weights cost, beside the log-loss of one query."""
    num_queries: PositiveInt = 600
    """Validation queries that choose the weights: all, or a seeded sample of this many."""

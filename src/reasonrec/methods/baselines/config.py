"""Everything that the language-model baselines can be told. Imports no torch.

Backbone, its shape and weights, prompt, ``max_history`` and ``num_valid_queries`` are those of
`R2ecConfig`, the same for all methods; what only one baseline knows stands here.
"""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from reasonrec.config import Config
from reasonrec.training.config import OptimiserConfig

Baseline = Literal["untuned", "direct-sft", "bigrec", "tiger"]
IdSource = Literal["text", "log", "text+log", "states"]


def _no_think_optimiser() -> OptimiserConfig:
    # as for our own model without thoughts: a baseline that is trained less proves nothing
    return OptimiserConfig(
        batch_size=32,
        schedule="constant_with_warmup",
        warmup_frac=0.02,
        averaging=0.998,
        num_validations=12,
        patience=3,
    )


class DirectSftConfig(Config):
    """The title that comes next, as the continuation of the history."""

    num_epochs: PositiveInt = 36
    dropout: float = Field(default=0.4, ge=0, lt=1)
    """Share of input-embedding entries dropped while training."""
    beam: NonNegativeInt = 0
    """Beginnings of titles kept at each length when ranking; 0 ranks exactly. Without effect where
    titles have tokens of their own."""
    optimiser: OptimiserConfig = _no_think_optimiser()


class BigrecConfig(Config):
    """A title in ordinary words, grounded to the items by distance between states."""

    num_epochs: PositiveInt = 36
    num_branches: PositiveInt = 8
    """Positions of a window that are asked about in one epoch."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of the entries of input embeddings and states dropped while training."""
    vocab_size: NonNegativeInt = 1024
    """Sub-word tokens that a tiny backbone learns from the titles; 0 keeps its own."""
    max_tokens: PositiveInt = 24
    """Tokens to which titles are cut, in training, when writing and when comparing: the titles of a
    shop run on for a hundred."""
    state: Literal["last", "mean"] = "last"
    """Which state stands for a text: that of its last token, as published, or the mean."""
    popularity: bool = False
    """Whether distances are divided by ``(1 + popularity) ** power``, with the power that ranks
    validation best. The published variant; off, as there, unless asked for."""
    optimiser: OptimiserConfig = _no_think_optimiser()


class TigerConfig(Config):
    """Semantic IDs, written code by code, held to those that exist."""

    num_epochs: PositiveInt = 36
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Share of input-embedding entries dropped while training."""
    ids_from: IdSource = "text+log"
    """What vectors are quantised: of the item's words (TF-IDF), of who follows whom in training,
    both side by side, or the states that the backbone, as it comes, has for the item's text."""
    vector_width: PositiveInt = 64
    """Main axes that are kept of words and of the log, each."""
    num_levels: int = Field(default=3, ge=1, le=24)
    """Codes of an ID; one more tells apart items that share them."""
    codebook_size: int = Field(default=32, ge=2)
    """Codes of a level. The paper's 256 would leave a small catalogue one item a code."""
    beam: NonNegativeInt = 0
    """Beginnings of IDs kept at each length when ranking; 0 ranks exactly. The paper has a beam."""
    optimiser: OptimiserConfig = _no_think_optimiser()


class BaselinesConfig(Config):
    """The language-model baselines, a table for each."""

    direct_sft: DirectSftConfig = DirectSftConfig()
    bigrec: BigrecConfig = BigrecConfig()
    tiger: TigerConfig = TigerConfig()

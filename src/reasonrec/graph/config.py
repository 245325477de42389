"""What can be set about chains. Apart from the code, so that help needs no compiler."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from reasonrec.config import Config

Reading = Literal["candidate-closed", "history-closed"]
READINGS: tuple[Reading, ...] = ("candidate-closed", "history-closed")
Negatives = Literal["uniform", "popularity"]
NEGATIVES: tuple[Negatives, ...] = ("uniform", "popularity")


class ChainConfig(Config):
    """How chains are drawn from the training graph. The paper does not say; all values are ours."""

    reading: Reading = "candidate-closed"
    """What a chain closes on: the candidate (its last edge hidden), or the user's own history."""
    num_chains: PositiveInt = 3
    """Chains drawn for each query at most, all through different neighbours."""
    max_history: PositiveInt = 50
    """Last events of a history that a chain may start from."""
    max_neighbours: PositiveInt = 500
    """Events of one item that are followed; an item with more is thinned evenly in time."""
    overlap_weight: bool = True
    """Whether neighbours with more shared items are drawn more often."""
    degree_weight: bool = True
    """Whether popular items are drawn less often."""
    negatives: Negatives = "uniform"
    """Where the one negative of each query comes from: the catalogue, or the events of training."""
    train_queries_per_user: NonNegativeInt = 5
    """Last events of each training user that become queries."""

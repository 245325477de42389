"""What can be set about chains. Apart from the code, so that help needs no compiler."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from reasonrec.config import Config

Reading = Literal["candidate-closed", "history-closed"]
READINGS: tuple[Reading, ...] = ("candidate-closed", "history-closed")
Negatives = Literal["uniform", "popularity", "degree"]
NEGATIVES: tuple[Negatives, ...] = ("uniform", "popularity", "degree")


class ChainConfig(Config):
    """How chains are drawn from the training graph. The paper does not say; all values are ours."""

    reading: Reading = "candidate-closed"
    """What a chain closes on: the candidate (its last edge hidden), or the user's own history."""
    num_chains: PositiveInt = 3
    """Chains drawn for each query at most, all through different neighbours."""
    num_neighbours: PositiveInt = 1
    """Neighbours on a chain: 1 is u0, i0, u1, i1 as in the paper; 2 goes on to u2 and i2."""
    max_history: PositiveInt = 50
    """Last events of a history that a chain may start from."""
    overlap_weight: bool = True
    """Whether neighbours who share more items are drawn more often. Chains over one neighbour."""
    degree_weight: bool = True
    """Whether popular items are drawn less often, and neighbours who share only such items."""
    open_from: NonNegativeInt = 3
    """Last items of a history from which, one after the other, an open chain is sought where none
    closes. 0 goes straight to the history alone."""
    num_walks: PositiveInt = 64
    """Walks tried for each chain wanted, of chains over several neighbours."""
    negatives: Negatives = "uniform"
    """Where the stored negative of each query comes from: the catalogue evenly, the events of
    training, or items with about as many events as the positive."""
    train_queries_per_user: NonNegativeInt = 5
    """Last events of each training user that become queries."""

"""What ``reasonrec faithfulness`` can be told; a module of its own, so that ``--help`` is quick."""

from pydantic import NonNegativeInt, PositiveInt

from reasonrec.config import Config
from reasonrec.data.dataset import Part


class FaithfulnessConfig(Config):
    """What is asked about the thoughts of a model."""

    part: Part = "test"
    """Queries to think about."""
    num_queries: PositiveInt | None = 500
    """A sample of so many, the same for all models. None takes all."""
    num_timed_users: NonNegativeInt = 30
    """Users asked one at a time to measure latency."""

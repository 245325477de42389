"""A generated shop whose truth is known: see ``docs/planted.md``."""

from reasonrec.data.planted.config import CauseWeights, PlantedConfig
from reasonrec.data.planted.kernels import CAUSES
from reasonrec.data.planted.oracle import OracleRecommender
from reasonrec.data.planted.truth import ExpectedMetrics, WorldTruth
from reasonrec.data.planted.world import write_world

__all__ = [
    "CAUSES",
    "CauseWeights",
    "ExpectedMetrics",
    "OracleRecommender",
    "PlantedConfig",
    "WorldTruth",
    "write_world",
]

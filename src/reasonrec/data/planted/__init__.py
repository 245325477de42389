"""A generated shop whose truth is known."""

from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.world import write_world

__all__ = ["PlantedConfig", "write_world"]

"""Worlds that several planted tests share, written once a session."""

from pathlib import Path

import pytest

from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.truth import WorldTruth
from reasonrec.data.planted.world import write_world

SEED = 11


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny world: 120 readers in three blocks, 60 books."""
    folder = tmp_path_factory.mktemp("tiny-world")
    write_world(folder, PlantedConfig(size="tiny"), SEED)
    return folder


@pytest.fixture(scope="session")
def tiny_truth(tiny_world: Path) -> WorldTruth:
    return WorldTruth.load(tiny_world)


@pytest.fixture(scope="session")
def small_truth(tmp_path_factory: pytest.TempPathFactory) -> WorldTruth:
    """The truth of a world of 1,000 readers and 200 books."""
    folder = tmp_path_factory.mktemp("small-world")
    write_world(folder, PlantedConfig(size="small"), SEED)
    return WorldTruth.load(folder)

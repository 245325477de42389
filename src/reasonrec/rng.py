"""Random streams named by what they are for, so that order and worker count change nothing."""

from zlib import crc32

import numpy as np


def stream(seed: int, stage: str, *indices: int) -> np.random.Generator:
    """Return the generator of one (seed, stage, indices), for example one user of one stage.

    A stage gives the same number of indices everywhere: numpy reads a missing index as 0.
    """
    return np.random.default_rng([seed, crc32(stage.encode()), *indices])


def stream_seed(seed: int, stage: str, *indices: int) -> int:
    """Return a 31-bit seed of the same stream, for libraries that take an integer."""
    return int(stream(seed, stage, *indices).integers(2**31 - 1))

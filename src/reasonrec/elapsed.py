"""How long it was from one event to the next: seconds in seven classes, and a word for each."""

import numpy as np

LIMITS = np.array([1, 60, 3600, 86_400, 30 * 86_400, 365 * 86_400], np.int64)
"""Seconds at which a class ends: below a second, a minute, an hour, a day, a month, a year."""
WORDS = (" at once", " seconds", " minutes", " hours", " days", " months", " years")
"""What a class is called, the shortest first. Logs of whole days know no seconds to hours."""
UNKNOWN = -1
"""The class of what nobody knows."""


def elapsed_class(seconds: np.ndarray) -> np.ndarray:
    """Return the class of each duration, of any shape, int64: the place of its name in `WORDS`."""
    return np.searchsorted(LIMITS, seconds, side="right")

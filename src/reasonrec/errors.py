"""The failures that a user can cause and mend. A wrong argument in code is a ``ValueError``."""

import errno
import re

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the operating system says where a disk, or what a user may fill of it, is full."""
FREE_SPACE = "Free space and run the same command again; it goes on where it stopped"
_IN_WORDS = re.compile(r"\(os error (\d+)\)")


class ReasonrecError(Exception):
    """A stated failure: the command line prints the message alone and exits with 1."""


class ConfigError(ReasonrecError):
    """A configuration file or override cannot be used."""


class DataError(ReasonrecError):
    """An input file, a prepared folder or a split cannot be used."""


class TraceError(ReasonrecError):
    """Thoughts are missing, malformed or ungrounded beyond the configured limit."""


class CheckpointError(ReasonrecError):
    """A saved model or a run folder cannot be used."""


class ServingError(ReasonrecError):
    """A request for recommendations cannot be answered."""


def system_failure(error: Exception) -> OSError | None:
    """Return what the operating system refused, None where an error tells of something else.

    polars, safetensors and tokenizers say it in words, torch that a file is shorter than written.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return error
    if found := _IN_WORDS.search(text):
        return OSError(int(found[1]), text)
    if (
        isinstance(error, RuntimeError)
        and "inline_container.cc" in text
        and "unexpected pos" in text
    ):
        return OSError(errno.ENOSPC, text)
    return error if isinstance(error, OSError) else None

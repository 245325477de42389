"""The failures that a user can cause and mend. A wrong argument in code is a ``ValueError``."""


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

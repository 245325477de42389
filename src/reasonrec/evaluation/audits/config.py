"""What ``reasonrec audit`` can be told; a module of its own, so that ``--help`` is quick."""

from datetime import date
from typing import Literal

from pydantic import PositiveInt

from reasonrec.config import Config

Disguise = Literal["renamed", "hashed"]


class AuditConfig(Config):
    """How hard is looked, and for what."""

    num_probes: PositiveInt = 200
    """Users into whose events something is planted that must not be found again."""
    num_queries: PositiveInt = 2000
    """Test queries that chains, evidence and ties are read from, the same for all audits."""
    num_candidates: PositiveInt = 20
    """Size of the candidate sets that popularity alone is measured on."""
    first_seen_after: date | None = None
    """Items whose first event is on this day (UTC) or later are reported apart. None takes the
    moment at which nine tenths of the training events have happened."""
    disguise: tuple[Disguise, ...] = ()
    """Also write copies of the data set with other titles: renamed (every word replaced by a
    made-up one, the same everywhere) or hashed (a title says nothing at all)."""

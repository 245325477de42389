"""What a faithfulness report holds, whichever model it is about."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Queries
from reasonrec.errors import DataError
from reasonrec.evaluation.faithfulness.effects import Effect
from reasonrec.evaluation.faithfulness.grounding import Grounded
from reasonrec.evaluation.faithfulness.reasons import Agreement
from reasonrec.evaluation.protocol import spread_rows, time_single_users


@dataclass(frozen=True)
class Cost:
    """What thinking costs, beside the same model without a thought."""

    method: str
    tokens: float
    """Mean tokens a thought, looked-up ones included."""
    users_per_second: float
    latency_p50_ms: float | None
    """One user asked alone; None if none was timed."""
    latency_p95_ms: float | None
    num_timed: int


@dataclass(frozen=True)
class Habits:
    """What the thoughts look like, before asking what they do."""

    num_thoughts: int
    num_distinct: int
    """Different texts among them."""
    mean_pieces: float
    mean_lookups: float
    """Look-ups of a thought, or chains of its question."""
    mean_found: float
    """Items that look-ups found, or that chains end on, a thought."""
    share_truncated: float
    """Thoughts that the budget of tokens cut short."""
    share_target_found: float
    """Queries for which look-ups found the target, or a chain ends on it."""
    share_without_evidence: float
    """Thoughts whose look-ups found nothing, or that asked nothing; or questions without chains."""


@dataclass(frozen=True)
class Faithfulness:
    """The whole report."""

    dataset: str
    split: str
    part: str
    method: str
    seed: int
    num_queries: int
    effects: tuple[Effect, ...]
    curve: tuple[Effect, ...]
    """Keeping 0, 1, 2, ... sentences and look-ups, over all queries."""
    groundedness: tuple[Grounded, ...]
    reasons: tuple[Agreement, ...]
    """Empty where the true reasons are not known."""
    costs: tuple[Cost, ...]
    habits: Habits
    notes: tuple[str, ...] = ()
    """Sentences on what was asked of this kind of model."""

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, dicts and numbers."""
        return asdict(self)


def read_faithfulness(folder: Path) -> Faithfulness:
    """Return the report of a finished folder.

    Raises:
        DataError: The file is missing, damaged or of another layout.
    """
    path = Path(folder) / "faithfulness.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return Faithfulness(
            **fields
            | {
                "effects": tuple(Effect(**row) for row in fields["effects"]),
                "curve": tuple(Effect(**row) for row in fields["curve"]),
                "groundedness": tuple(Grounded(**row) for row in fields["groundedness"]),
                "reasons": tuple(Agreement(**row) for row in fields["reasons"]),
                "costs": tuple(Cost(**row) for row in fields["costs"]),
                "habits": Habits(**fields["habits"]),
                "notes": tuple(fields.get("notes", ())),
            }
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} must be a report of `reasonrec faithfulness`; {error}") from None


def measured_cost(
    method: Recommender, asked: Queries, *, tokens: float, seconds: float, num_timed: int
) -> Cost:
    """Return what a method cost that answered all of ``asked`` in ``seconds``.

    Args:
        num_timed: Users asked one at a time here, for the latency.
    """
    latency = np.empty(0)
    if num_timed:
        latency = time_single_users(method, asked.take(spread_rows(len(asked), num_timed)))
    p50, p95 = np.percentile(latency, [50, 95]).tolist() if num_timed else (None, None)
    return Cost(
        method=method.name,
        tokens=tokens,
        users_per_second=len(asked) / max(seconds, 1e-9),
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        num_timed=len(latency),
    )

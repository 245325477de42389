"""The four stages of progressive masked prompting: what is visible at each, and what is masked.

Masking happens here and nowhere else: a `View` holds what one call may see, hidden facts replaced
by `HIDDEN`, and prompts are rendered from views alone. So no wording of a prompt can show what its
stage hides, and a teacher without a model sees exactly what a model would.

The paper names the strategy and not its steps; stages and readings are ours.
"""

from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Literal, TypeAlias

from reasonrec.traces.questions import ChainFacts, ClosesOn, ItemCard, Question, Taken, mean_rating
from reasonrec.traces.reasoned_config import Masking, Support, Task

Stage = Literal["taste", "agreement", "suggestion", "closure", "together", "whole", "rewrite"]
CHAIN_STAGES: tuple[Stage, ...] = ("taste", "agreement", "suggestion", "closure")


class Hidden(Enum):
    """The mask."""

    HIDDEN = "[?]"


HIDDEN = Hidden.HIDDEN
Rating: TypeAlias = float | Hidden | None

_PATH = ("first", "own_first", "neighbour", "neighbour_first", "second", "neighbour_second")
_NEVER = 9
"""Later than any stage."""
SHOWN_FROM: dict[Masking, dict[str, int]] = {
    "evidence": dict(zip(_PATH, (1, 1, 2, 2, 3, 3))),
    "ratings": dict(zip(_PATH, (1, 2, 1, 3, 1, 4))),
    "target": dict(zip(_PATH, (1, 1, 2, 2, 4, 3))),
    "answer": dict(zip(_PATH, (1, 1, 1, 1, 1, 1))),
}
"""The stage (1..4) from which each fact of a chain is visible, for every reading of *masked*."""


@dataclass(frozen=True)
class ChainView:
    """One chain as one stage shows it. Fields as in `ChainFacts`."""

    number: int
    """1 for the first chain of a question."""
    closes_on: ClosesOn
    first: ItemCard | Hidden
    own_first: Rating
    neighbour: str | Hidden
    neighbour_first: Rating
    second: ItemCard | Hidden
    neighbour_second: Rating
    own_second: Rating
    """Hidden to the end where it is the question."""
    neighbour_usual: Rating = None
    num_shared: int | Hidden | None = None


@dataclass(frozen=True)
class View:
    """All that one call may see."""

    stage: Stage
    task: Task
    scale: tuple[float, ...]
    history: tuple[Taken, ...]
    usual: float | None
    chains: tuple[ChainView, ...] = ()
    """The chain of this stage; all of them where thoughts are drawn together."""
    candidates: tuple[ItemCard, ...] | Hidden = HIDDEN
    support: tuple[int, ...] | None = None
    support_kind: Support = "count"
    likeness: tuple[int, ...] | None = None
    likeness_grades: int = 9
    nearest: tuple[ItemCard | None, ...] = ()
    thoughts: tuple[str, ...] = ()
    """What was thought before: of this chain, or of every chain."""
    asks_answer: bool = False
    told: str | None = None
    """The true answer, in a guided run; for the teacher alone."""
    attempt: int = 0

    @property
    def answers(self) -> tuple[str, ...]:
        """Everything that can be answered."""
        if self.task == "rated":
            return tuple(f"{rating:g}" for rating in self.scale)
        return () if self.candidates is HIDDEN else tuple(item.title for item in self.candidates)


def look(
    question: Question, number: int, stage: Stage, masking: Masking, thoughts: tuple[str, ...] = ()
) -> View:
    """Return what one stage of one chain may see.

    Args:
        number: 1 for the first chain.
        stage: One of the four, or ``together``.
        thoughts: What the earlier stages of this chain said.
    """
    facts, step = question.chains[number - 1], CHAIN_STAGES.index(stage) + 1
    chain = mask(facts, number, step, masking)
    ends_on_candidate = facts.closes_on == "candidate"
    is_named = chain.second is not HIDDEN and question.task == "rated" and ends_on_candidate
    masked = {
        card.item_index
        for card, rating in ((facts.first, chain.own_first), (facts.second, chain.own_second))
        if rating is HIDDEN
    }  # the history would tell what the chain hides
    history = tuple(taken for taken in question.history if taken.item.item_index not in masked)
    return View(
        stage=stage,
        task=question.task,
        scale=question.scale,
        history=history,
        usual=mean_rating([taken.rating for taken in history]),
        chains=(chain,),
        candidates=question.candidates if is_named else HIDDEN,
        thoughts=thoughts,
        asks_answer=stage == "closure" and is_named,
    )


def look_at_all(question: Question, stage: Stage, thoughts: tuple[str, ...] = ()) -> View:
    """Return what a call may see that sees every chain: all but the answer."""
    return View(
        stage=stage,
        task=question.task,
        scale=question.scale,
        history=question.history,
        usual=question.usual,
        chains=tuple(mask(facts, n + 1, 4, "answer") for n, facts in enumerate(question.chains)),
        candidates=question.candidates,
        support=question.support,
        support_kind=question.support_kind,
        likeness=question.likeness,
        likeness_grades=question.likeness_grades,
        nearest=question.nearest,
        thoughts=thoughts,
        asks_answer=True,
    )


def look_at_nothing(question: Question) -> View:
    """Return what the first stage of a question without chains sees: the history."""
    return replace(
        look_at_all(question, "taste"), candidates=HIDDEN, support=None, likeness=None,
        nearest=(), asks_answer=False,
    )  # fmt: skip


def mask(facts: ChainFacts, number: int, step: int, masking: Masking) -> ChainView:
    """Return a chain at stage ``step`` (1..4), everything that comes later hidden."""
    from_step = SHOWN_FROM[masking]
    # what is known of the neighbour comes with the neighbour, unless every rating is masked
    about = max(from_step["neighbour"], 2 if masking == "ratings" else 1)
    owner = {
        "own_second": 4 if facts.closes_on == "history" else _NEVER,
        "neighbour_usual": about,
        "num_shared": about,
    }
    shown = {
        field.name: getattr(facts, field.name)
        if step >= (from_step | owner)[field.name]
        else HIDDEN
        for field in fields(ChainView)
        if field.name not in ("number", "closes_on")
    }
    return ChainView(number=number, closes_on=facts.closes_on, **shown)

"""What a thought recites rather than writes: where the student names a chain, its facts follow.

A small model that is taught to copy titles, ratings and names from its prompt mostly miscopies
them, and a reason that is wrong about its evidence is none. So, where the student writes
``Chain 2:`` or ``All in all:`` (a *cue*), what the evidence says there is put behind it, without
loss, and the student goes on: whether two people agree, which chain comes next, when to answer. All
of it is ours; look-ups of R²ec work alike (`traces.verbaliser`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reasonrec.traces.questions import ChainFacts, Question, with_titles
from reasonrec.traces.reasoned_config import TeacherConfig
from reasonrec.traces.stages import CHAIN_STAGES, look_at_all
from reasonrec.traces.teachers.verbaliser import brief_step, leaders

_VOICE = TeacherConfig(style="brief")
_JUDGED = ", so "
"""What follows it in the sentence about two ratings of one item is the student's to say."""


@dataclass(frozen=True)
class Recital:
    """A cue and what follows it."""

    cue: str
    """Empty at the beginning of a thought."""
    words: str


def recitals_of(question: Question) -> tuple[Recital, ...]:
    """Return what a thought about a question recites, in the order of a thought."""
    if not question.chains:
        return ()
    told = [" " + _facts(question, n) for n in range(1, len(question.chains) + 1)]
    start = " Chain 1:" if len(told) > 1 else ""  # a thought has nothing else to begin with
    found = [Recital("", start + told[0])]
    found += [Recital(f" Chain {n}:", words) for n, words in enumerate(told[1:], 2)]
    if question.task == "likes":
        view = look_at_all(question, "together")
        found.append(Recital(" All in all:", " " + leaders(view, _VOICE)))
    # the verbaliser speaks as teachers do, with numbers for titles that could give orders
    return tuple(Recital(one.cue, with_titles(one.words, question.items)) for one in found)


def _facts(question: Question, number: int) -> str:
    view = look_at_all(question, "together")
    chain, facts = view.chains[number - 1], question.chains[number - 1]
    told = [brief_step(view, chain, stage, _VOICE)[0] for stage in CHAIN_STAGES]
    return " ".join([*told[:-1], *_closing(facts, question, told[-1])])


def _closing(facts: ChainFacts, question: Question, sentence: str) -> list[str]:
    if facts.closes_on == "history":
        return [sentence.rpartition(_JUDGED)[0] + ","]
    return [sentence] if question.task == "likes" else []  # a rating is the student's to say


def recited(thought: str, recitals: Sequence[Recital]) -> list[tuple[str, bool]]:
    """Return a thought in pieces, each with whether it is recited.

    Words that follow a cue in the thought and are those of the recital are not said twice; a cue
    that the thought has not is left out.
    """
    text, at, pieces = f" {thought}" if thought else "", 0, []
    for recital in recitals:
        begin = text.find(recital.cue, at)
        if begin < 0:
            continue
        end = begin + len(recital.cue)
        pieces += [(text[at:begin], False), (recital.cue, False), (recital.words, True)]
        at = end + len(recital.words) if text.startswith(recital.words, end) else end
    pieces.append((text[at:], False))
    return [(words, is_recited) for words, is_recited in pieces if words]

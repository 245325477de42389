"""What the student reads and writes: a question with its chains, a thought a step, an answer.

A prompt is ``Rate 1 to 5. History: [Title] 4 [Title] 5. Chain 1: user [Title] 5, @1 (12 shared,
usual 3.6) [Title] 4 [Title] 5, user [Title] ?. Question: [Title]``, and what follows it is
``<think> ...<answer> 4``. Titles are written as everywhere, `` [Title]``, so that a tokenizer with
title tokens reads each as one. The label is never rendered; `student_prompt` does not read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reasonrec.traces.prompts import ANSWER, THINK, as_data
from reasonrec.traces.questions import ChainFacts, Question
from reasonrec.traces.reasoned_config import Task

PROMPT_VERSION = "r2rec-2"
"""Changes whenever a text of this module or of `teacher_prompts` changes; kept with every trace."""


@dataclass(frozen=True)
class ChainThought:
    """The interaction-of-thought of one chain: a thought for each stage."""

    parts: tuple[str, ...]
    """Taste, agreement, suggestion, closure."""
    answer: str | None = None
    """What this chain alone says, where its last stage fills the mask."""


@dataclass(frozen=True)
class InteractionOfThought:
    """A whole thought: one part for each chain, what they say together, and the answer."""

    chains: tuple[ChainThought, ...]
    together: str
    """Empty where a single chain ends on the answer."""
    answer: str

    @property
    def text(self) -> str:
        """The thought as the student writes it between the markers."""
        many = len(self.chains) > 1
        parts = [
            (f"Chain {n}: " if many else "") + " ".join(part for part in chain.parts if part)
            for n, chain in enumerate(self.chains, 1)
        ]
        if self.together:
            parts.append(("All in all: " if self.chains else "") + self.together)
        return " ".join(parts)


def student_prompt(question: Question) -> str:
    """Return all that the student knows when it starts to think."""
    lines = []
    if question.scale and question.task == "rated":
        lines.append(f"Rate {question.scale[0]:g} to {question.scale[-1]:g}.")
    shown = "".join(f" [{t.item.title}]{_after(t.rating)}" for t in question.history)
    lines.append(f"History:{shown or ' nothing'}.")
    lines += [_chain_line(n, chain) for n, chain in enumerate(question.chains, 1)]
    if question.task == "rated":
        lines.append(f"Question: [{question.candidates[0].title}]")
    else:
        columns = [column for column in (question.support, question.likeness) if column is not None]
        offered = "".join(
            "".join(f" {column[c]}" for column in columns) + f" [{item.title}]"
            for c, item in enumerate(question.candidates)
        )
        lines.append(f"Question{_legend(question)}: which of{offered}")
    return " ".join(lines)


def student_answer(question: Question, answer: str) -> str:
    """Return the answer as the student writes it after the marker."""
    return written_answer(question.task, answer)


def written_answer(task: Task, answer: str) -> str:
    """Return an answer to a question of a task as the student writes it."""
    return f" {answer}" if task == "rated" else f" [{answer}]"


def student_text(question: Question, thought: InteractionOfThought) -> str:
    """Return what follows the prompt: marker, thought, marker, answer."""
    return f"{THINK} {thought.text}{ANSWER}{student_answer(question, thought.answer)}"


def read_student_text(question: Question, text: str) -> tuple[str, str] | None:
    """Return thought and answer of a continuation of the prompt, None if it has not this shape."""
    thought, found, rest = text.removeprefix(THINK).partition(ANSWER)
    words = rest.strip()
    if question.task == "likes":
        words = words[1 : words.find("]")] if words.startswith("[") else ""
    else:
        words = words.split()[0] if words else ""
    if not found or words not in question.answers:
        return None
    return " ".join(thought.split()), words


def label_is_hidden(question: Question) -> bool:
    """Return whether no edge of the evidence is the one that is asked about.

    Where a rating is asked, neither the history nor a chain may hold the user's rating of the
    candidate; where likes are asked, no candidate may stand in the history.
    """
    asked = {item.item_index for item in question.candidates}
    if any(taken.item.item_index in asked for taken in question.history):
        return False
    return all(
        chain.first.item_index not in asked
        and (chain.second.item_index not in asked or chain.own_second is None)
        for chain in question.chains
    )


def _legend(question: Question) -> str:
    """Return what the numbers behind a candidate are, where likeness is among them."""
    if question.likeness is None:
        return ""
    support = "" if question.support is None else "chains, "
    return f" ({support}likeness)"


def _chain_line(number: int, chain: ChainFacts) -> str:
    first, second = f"[{chain.first.title}]", f"[{chain.second.title}]"
    last = {"candidate": " ?", "history": _after(chain.own_second), "nothing": ""}[chain.closes_on]
    closing = f", user {second}{last}" if chain.closes_on != "nothing" else ""
    return (
        f"Chain {number}: user {first}{_after(chain.own_first)}, {as_data(chain.neighbour)}"
        f"{_about(chain)} {first}{_after(chain.neighbour_first)} "
        f"{second}{_after(chain.neighbour_second)}{closing}."
    )


def _about(chain: ChainFacts) -> str:
    known: Sequence[str | None] = (
        None if chain.num_shared is None else f"{chain.num_shared} shared",
        None if chain.neighbour_usual is None else f"usual {chain.neighbour_usual:.1f}",
    )
    words = ", ".join(word for word in known if word)
    return f" ({words})" if words else ""


def _after(rating: float | None) -> str:
    return "" if rating is None else f" {rating:g}"

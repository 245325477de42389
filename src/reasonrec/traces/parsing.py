"""Replies of teachers -> thoughts, or the reason why a reply is set aside.

Reasons: ``failed``, ``refused``, ``empty``, ``truncated``, ``malformed``, ``off-scale``,
``other-language``, ``repeats-item-text``.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from reasonrec.traces.questions import ItemCard, reads_as_instruction, words_of
from reasonrec.traces.reasoned_config import KeepConfig
from reasonrec.traces.stages import CHAIN_STAGES, HIDDEN, View
from reasonrec.traces.teachers.contract import Reply

REPLY_PROBLEMS = (
    "failed", "refused", "empty", "truncated", "malformed", "off-scale", "other-language",
    "repeats-item-text",
)  # fmt: skip
_TITLE = re.compile(r"\[[^\[\]]*\]")
_ENGLISH = re.compile(
    r"\b(?:a|an|and|are|as|at|be|because|but|by|for|from|gave|gives?|has|have|his|her|in|is|its?|likes?"
    r"|more|not|of|on|or|so|than|that|the|their|them|they|this|to|user|was|what|which|who|with|would)\b"
)


@dataclass(frozen=True)
class Said:
    """What a usable reply says."""

    parts: tuple[str, ...]
    """The text of each tag that was asked for, in order."""
    answer: str | None = None


def parse_reply(
    reply: Reply, view: View, items: Sequence[ItemCard], keep: KeepConfig
) -> Said | str:
    """Return what a reply says, or the reason why it cannot be used.

    Args:
        view: What was asked.
        items: Everything that the evidence names. Names stay as the teacher wrote them: a reply
            may be sent to it again (`with_titles` turns numbers back into titles, at the end).
        keep: What words of a teacher must be.
    """
    if reply.problem is not None:
        return reply.problem
    if not reply.text.strip():
        return "empty"
    if not reply.is_complete:
        return "truncated"
    tags = _tags(view)
    pattern = r"\s*".join(rf"<{tag}>([^<>]*)</{tag}>" for tag in tags)
    found = re.search(pattern, reply.text)
    if found is None:
        return "malformed"
    parts = tuple(" ".join(part.split()) for part in found.groups())
    answer = None
    if tags[-1] == "answer":
        *words, given = parts
        parts = tuple(words)
        answer = _answer(given, view)
        if answer is None:
            return "off-scale"
    if not all(parts):
        return "empty"
    problem = text_problem(" ".join(parts), items, keep)
    if problem is not None:
        return problem
    return Said(tuple(part.replace(HIDDEN.value, "what is hidden") for part in parts), answer)


def text_problem(text: str, items: Sequence[ItemCard], keep: KeepConfig) -> str | None:
    """Return why words of a teacher cannot be a thought, None if they can."""
    if keep.check_language and not reads_as_english(text, keep):
        return "other-language"
    if repeats_item_text(text, items, keep):
        return "repeats-item-text"
    return None


def reads_as_english(text: str, keep: KeepConfig) -> bool:
    """Return whether the words outside brackets look English: by their letters, and from eight
    words on by how many are among the commonest English ones. Titles may be of any language.
    """
    plain = _TITLE.sub(" ", text)
    letters = [c for c in plain if c.isalpha()]
    if letters and sum(c.isascii() for c in letters) < keep.least_latin * len(letters):
        return False
    words = words_of(plain)
    num_common = sum(bool(_ENGLISH.fullmatch(word)) for word in words)
    return len(words) < 8 or num_common >= keep.least_common * len(words)


def repeats_item_text(text: str, items: Sequence[ItemCard], keep: KeepConfig) -> bool:
    """Return whether words outside brackets copy text of an item, or an order hidden in it."""
    said = _TITLE.sub(" ", text)
    for source in (source for item in items for source in (item.title, item.text) if source):
        length = keep.order_words if reads_as_instruction(source) else keep.copied_words
        if not _runs(said, length).isdisjoint(_runs(source, length)):
            return True
    return False


@lru_cache(maxsize=2**16)
def _runs(text: str, length: int) -> frozenset[tuple[str, ...]]:
    """Return all runs of ``length`` words of a text."""
    words = words_of(text)
    return frozenset(tuple(words[i : i + length]) for i in range(len(words) - length + 1))


def _tags(view: View) -> list[str]:
    if view.stage == "whole":
        return [*CHAIN_STAGES * len(view.chains), "together", "answer"]
    return [view.stage, *(["answer"] if view.asks_answer else [])]


def _answer(given: str, view: View) -> str | None:
    """Return the answer that a teacher gave, None if there is no such answer."""
    given = given.strip().rstrip(".")
    if view.task == "likes":
        number = given.lstrip("#")
        if number.isascii() and number.isdigit():
            return view.answers[int(number) - 1] if 0 < int(number) <= len(view.answers) else None
        return given[1:-1] if given[1:-1] in view.answers and given[:1] == "[" else None
    number = given.partition("/")[0].strip()
    try:
        text = f"{float(number):g}"
    except ValueError:
        return None
    return text if text in view.answers else None

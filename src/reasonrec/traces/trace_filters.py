"""Which traces may be learned from, and why the others may not (R2Rec, the trace filter).

Every trace ends with one reason, or none: those of `parsing` where there was no thought, else the
first that applies of ``wrong-answer``, ``shows-the-answer``, ``label-in-prompt``, ``ungrounded``,
``wrong-rating``, ``too-short``, ``too-long``; and over the whole run ``duplicate`` and ``balance``.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from reasonrec.rng import stream
from reasonrec.traces.filters import named_titles
from reasonrec.traces.interaction_of_thought import label_is_hidden
from reasonrec.traces.leaks import leak_phrases
from reasonrec.traces.parsing import REPLY_PROBLEMS
from reasonrec.traces.progressive import Draft
from reasonrec.traces.questions import Question
from reasonrec.traces.reasoned_config import KeepConfig

REASONS = (
    *REPLY_PROBLEMS, "wrong-answer", "shows-the-answer", "label-in-prompt", "ungrounded",
    "wrong-rating", "too-short", "too-long", "duplicate", "balance",
)  # fmt: skip
_PERSON = re.compile(r"@\w+")
_CLAIM = re.compile(
    r"(?P<who>@\w+|\b[Tt]he user) (?:gave|rated) \[(?P<title>[^\[\]]*)\](?: with| a)? "
    r"(?P<rating>\d+(?:\.\d+)?)"
)


class TitleFinder:
    """Finds titles of the catalogue that a thought names without brackets."""

    def __init__(self, titles: Sequence[str], *, least_words: int) -> None:
        """Args:
        least_words: Titles of fewer words are not looked for.
        """
        self._titles = {}
        for title in titles:
            words = _plain_words(title)
            if len(words) >= least_words:
                self._titles.setdefault(tuple(words), title)
        self._lengths = sorted({len(words) for words in self._titles if len(words) <= 12})

    def find(self, text: str) -> list[str]:
        """Return the titles that stand in ``text`` outside brackets."""
        words = _plain_words(re.sub(r"\[[^\[\]]*\]", " | ", text))
        return [
            self._titles[run]
            for length in self._lengths
            for i in range(len(words) - length + 1)
            if (run := tuple(words[i : i + length])) in self._titles
        ]


def reason_against(draft: Draft, config: KeepConfig, finder: TitleFinder) -> str | None:
    """Return why one trace is not kept, looked at by itself; None if nothing speaks against it."""
    question, thought = draft.question, draft.thought
    if thought is None:
        return draft.problem
    if not is_right(question, thought.answer, tolerance=config.tolerance):
        return "wrong-answer"
    if draft.run == "guided" and leak_phrases(thought.text):
        return "shows-the-answer"
    if not label_is_hidden(question):
        return "label-in-prompt"
    if ungrounded_names(question, thought.text, finder):
        return "ungrounded"
    if wrong_ratings(question, thought.text):
        return "wrong-rating"
    num_words = len(thought.text.split())
    if num_words < config.min_words:
        return "too-short"
    return "too-long" if num_words > config.max_words else None


def is_right(question: Question, answer: str, *, tolerance: float) -> bool:
    """Return whether an answer is the label, a rating within ``tolerance`` steps of the scale."""
    if question.label is None or answer == question.label:
        return True
    if question.task == "likes":
        return False
    places = {text: place for place, text in enumerate(question.answers)}
    return abs(places[answer] - places[question.label]) <= tolerance


def ungrounded_names(question: Question, text: str, finder: TitleFinder) -> list[str]:
    """Return items and people that a thought names and the evidence does not."""
    known = {item.title for item in question.items}
    people = {chain.neighbour for chain in question.chains}
    named = [*named_titles(text), *finder.find(text)]
    return [title for title in named if title not in known] + [
        who for who in named_people(text) if who not in people
    ]


def named_people(text: str) -> list[str]:
    """Return the people that a thought names outside brackets, as ``@1``, repeats included."""
    return _PERSON.findall(re.sub(r"\[[^\[\]]*\]", " ", text))


def wrong_ratings(question: Question, text: str) -> list[str]:
    """Return claims such as ``@1 gave [Heat] 5`` that the evidence contradicts.

    Claims about what the evidence does not hold (the candidate's rating by the user) count too.
    """
    known = shown_ratings(question)
    return [
        claim.group()
        for claim in _CLAIM.finditer(text)
        if known.get((claim["who"].lower(), claim["title"])) != float(claim["rating"])
    ]


def claimed_ratings(text: str) -> list[tuple[str, str, float]]:
    """Return who gave which title what, for every such claim of a text."""
    return [
        (claim["who"].lower(), claim["title"], float(claim["rating"]))
        for claim in _CLAIM.finditer(text)
    ]


def shown_ratings(question: Question) -> dict[tuple[str, str], float | None]:
    """Return who gave which title what, as the evidence says."""
    known: dict[tuple[str, str], float | None] = {
        ("the user", taken.item.title): taken.rating for taken in question.history
    }
    for chain in question.chains:
        known[(chain.neighbour, chain.first.title)] = chain.neighbour_first
        known[(chain.neighbour, chain.second.title)] = chain.neighbour_second
        known[("the user", chain.first.title)] = chain.own_first
        if chain.closes_on == "history":
            known[("the user", chain.second.title)] = chain.own_second
    return known


def duplicates(texts: Sequence[str]) -> Iterator[bool]:
    """Yield for each text whether one with the same words, case and marks aside, came before."""
    seen: set[tuple[str, ...]] = set()
    for text in texts:
        words = tuple(re.findall(r"[^\W_]+", text.lower()))
        yield words in seen
        seen.add(words)


def beyond_balance(labels: Sequence[str], *, max_ratio: float, seed: int) -> np.ndarray:
    """Return which traces of over-represented labels are left out. (M,), bool.

    A label keeps at most ``max_ratio`` times the mean count over the labels that occur; which of
    its traces stay is drawn.
    """
    names, of = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    left_out = np.zeros(len(labels), bool)
    if not len(names):
        return left_out
    most = max(1, int(max_ratio * len(labels) / len(names)))
    for n in range(len(names)):
        rows = np.flatnonzero(of == n)
        left_out[stream(seed, "traces/balance", n).permutation(rows)[most:]] = True
    return left_out


def _plain_words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+|\|", text.lower())

"""The one writer of everything that the model reads: training, reward, evaluation and serving.

A prompt is ``<s>History: [Title] [Title]``. Where it is to say how long it was until the next one
and until the question, it is ``<s>History: [Title] minutes [Title] days``; where it is to say how
each was rated, ``<s>History: [Title] 4.5 [Title] 3``; the rating goes first where it says both. A
thought, in the thinking part, is ``<think> Mostly: Drama; Alike: [Title]; After [Title]: [Title]
[Title] like [Title];<answer>``. What follows a colon is looked up, not written by the model: the
commonest categories, what people took, then what reads alike. `` Mostly Drama.`` without a colon is
the model's own.
`` Maybe: [Title] [Title];`` names candidates of the model itself, in thoughts that are to have any.
With a chat template, the prompt is the user's turn, and a thought begins with what the template
puts between that turn and the answer.

Text is assembled from pieces that are encoded one by one, so that a training prefix equals, token
for token, the prompt that serving sends. Titles, categories and descriptions are data: `as_data`
breaks up whatever in them reads like a marker.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from transformers import PreTrainedTokenizerBase

from reasonrec import elapsed, rated
from reasonrec.errors import ConfigError
from reasonrec.records import Histories, Lookup, QuestionKind
from reasonrec.traces.config import PromptConfig

PROMPT_VERSION = "3"
"""Changes whenever any text below changes; saved with every model."""
HISTORY, THINK, MOSTLY, AFTER, ALIKE, MAYBE, TOGETHER, FOUND, NOTHING, LIKE, NEXT = (
    "History:",
    "<think>",
    " Mostly",
    " After",
    " Alike",
    " Maybe",
    " Together",
    ":",
    " nothing new",
    " like",
    ";",
)
WORDS = (HISTORY, MOSTLY, AFTER, ALIKE, MAYBE, TOGETHER, NOTHING, LIKE)
"""What a tokenizer that is trained here holds whole; markers and punctuation are tokens anyway."""
ANSWER = "<answer>"
SOMEBODY = -1
"""Stands for a person alike where a question is asked about an item or a person."""
CANDIDATES = -2
"""Stands for the candidates there, which a thought asks for with `` Maybe``."""
EVERYTHING = -3
"""Stands for all of the history there, which a thought asks about with `` Together``."""
TASTE = -4
"""Stands for what the history is mostly of, which thoughts may ask with `` Mostly``."""
ASKING: dict[int, tuple[str, QuestionKind]] = {
    SOMEBODY: (ALIKE, "alike"),
    CANDIDATES: (MAYBE, "maybe"),
    EVERYTHING: (TOGETHER, "together"),
    TASTE: (MOSTLY, "taste"),
}
"""Questions without a title: what each asks about, its word, and the kind of its answer."""
_SLOT = "(here)"
"""Stands for the history while a chat template is filled in."""
_MARKER = re.compile(r"<([^<>\s]+)>")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ROUND = str.maketrans("[]", "()")


def as_data(text: str) -> str:
    """Return text of the catalogue on one line, with nothing that could be read as a marker.

    Square brackets, which delimit titles, become round ones, and so do the angle brackets of
    ``<word>``, the shape of special tokens. Control characters become spaces.
    """
    text = _MARKER.sub(r"(\1)", text.translate(_ROUND))
    return " ".join(_CONTROL.sub(" ", text).split())


@dataclass(frozen=True)
class Prompts:
    """B prompts, padded on the right."""

    token_ids: np.ndarray
    """(B, T), int64."""
    lengths: np.ndarray
    """(B,), int64. Real tokens; the state at ``lengths - 1`` has read the whole prompt."""
    num_items: np.ndarray
    """(B,), int64. History items that the prompt shows (the last ``max_history``)."""
    item_ends: np.ndarray
    """(B, H + 1), int64. Column 0 is the last token before the history; column j the last one of
    its j-th item, oldest first, of its rating where it has one that is told, or of the time until
    the next where the question's time is told.
    -1 where a row has fewer items."""


class PromptWriter:
    """Encodes histories and thoughts for one tokenizer and catalogue."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        titles: Sequence[str],
        *,
        max_history: int = 50,
        prompt: PromptConfig | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.prompt = prompt or PromptConfig()
        self.titles = list(titles)
        self.max_history = max_history
        self.pad_id: int = _id(tokenizer.pad_token_id if tokenizer.pad_token_id is not None
                               else tokenizer.eos_token_id)  # fmt: skip
        pieces = tokenizer([f" [{t}]" for t in self.titles], add_special_tokens=False)["input_ids"]
        self._items = _Pieces.of(pieces)
        # no word, the last of these, stands for times that nobody knows
        self._words = _Pieces.of([*(self.encode(word) for word in elapsed.WORDS), []])

    @cached_property
    def title_token_ids(self) -> np.ndarray | None:
        """(N,), the token of each title, or None if some title takes more than one token."""
        return self._items.tokens if (self._items.lengths == 1).all() else None

    @cached_property
    def prefix(self) -> list[int]:
        """The tokens that every prompt starts with."""
        return self._before(self.prompt.instruction) + self.encode(HISTORY)

    @cached_property
    def opening(self) -> list[int]:
        """The tokens that every thought starts with, none of them written by the model."""
        return self._after(self.prompt.instruction) + self.encode(THINK)

    @cached_property
    def closing(self) -> list[int]:
        """The tokens that end a prompt which is ranked from as it is, without a thought."""
        return self._after(self.prompt.instruction) + self.answer

    @cached_property
    def answer(self) -> list[int]:
        """The tokens of the answer marker, which every thought ends with."""
        return self.encode(self.prompt.answer_marker)

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens with which a language model from elsewhere ends its turn."""
        if self.title_token_ids is not None:
            return frozenset()
        return frozenset({_id(self.tokenizer.eos_token_id)} - {self.pad_id})

    def _before(self, instruction: str) -> list[int]:
        """Return what a prompt starts with: the begin token, or the opening of a user's turn."""
        bos = self.tokenizer.bos_token_id
        if not self.prompt.chat:
            return [_id(bos)] if bos is not None else []
        return self.encode(self._turn(instruction)[0])

    def _after(self, instruction: str) -> list[int]:
        return self.encode(self._turn(instruction)[1]) if self.prompt.chat else []

    def _turn(self, instruction: str) -> tuple[str, str]:
        """Return a user's turn in the chat template, before and after what it is about."""
        if self.tokenizer.chat_template is None:
            raise ConfigError(
                "prompt.chat needs a tokenizer with a chat template, and this one has none. Leave "
                "prompt.chat off, or take a backbone that was tuned to follow instructions"
            )
        instruction = instruction.replace(ANSWER, self.prompt.answer_marker)
        turn = [{"role": "user", "content": f"{instruction}\n{_SLOT}"}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        before, _, after = str(text).partition(_SLOT)
        return before, after

    @cached_property
    def index_of_title(self) -> dict[str, int]:
        return {title: index for index, title in enumerate(self.titles)}

    @cached_property
    def asking_tokens(self) -> frozenset[int]:
        """Tokens that can end a question: the only ones to look at."""
        closing = self._items.tokens[self._items.starts[1:] - 1].tolist()
        return frozenset([*closing, *(self.encode(word)[-1] for word, _ in ASKING.values())])

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a fixed piece of text. Do not change the list: it is cached."""
        return self._encode(text)

    @lru_cache(maxsize=65_536)  # noqa: B019 - one writer lives as long as its model
    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _rating_tokens(self, rating: float) -> list[int]:
        """Return the tokens of `` 4.5``; none for NaN."""
        word = rated.rating_word(rating)
        return self.encode(word) if word else []

    def item_tokens(self, item_index: int) -> list[int]:
        """Return the tokens of `` [Title]``."""
        start = self._items.starts[item_index]
        return self._items.tokens[start : start + self._items.lengths[item_index]].tolist()

    def prompts(self, histories: Histories, *, is_told: np.ndarray | None = None) -> Prompts:
        """Return the prompt of every history, cut to its last ``max_history`` items.

        Args:
            is_told: (B,), for ``prompt.elapsed`` and ``prompt.ratings``: the rows whose times and
                ratings are told. None tells all that are known.
        """
        prefix = self.prefix
        num_items = np.minimum(histories.lengths, self.max_history)
        start = histories.offsets[1:] - num_items
        B, H = len(num_items), int(num_items.max(initial=0))
        is_item = np.arange(H) < num_items[:, None]  # (B, H)
        event = (start[:, None] + np.arange(H))[is_item]
        item = histories.item_index[event]
        row = np.nonzero(is_item)[0]
        is_told_of = None if is_told is None else is_told[row]
        pieces = [(self._items, item)]
        if self.prompt.ratings and histories.rating is not None:
            rating = histories.rating[event]
            if is_told_of is not None:
                rating = np.where(is_told_of, rating, np.nan)
            value, entry = np.unique(rating, return_inverse=True)
            pieces.append((_Pieces.of([self._rating_tokens(one) for one in value.tolist()]), entry))
        seconds = _seconds_after(histories) if self.prompt.elapsed else None
        unread = 0  # tokens behind a title that come with the next one
        if seconds is not None:
            word = elapsed.elapsed_class(seconds[event])
            if is_told_of is not None:
                word = np.where(is_told_of, word, elapsed.UNKNOWN)
            if not self.prompt.until_asked:
                word[num_items[num_items > 0].cumsum() - 1] = elapsed.UNKNOWN
                unread = self._words.lengths[word]
            pieces.append((self._words, word))
        lengths = np.zeros((B, H), np.int64)
        lengths[is_item] = sum(table.lengths[entry] for table, entry in pieces)
        ends = len(prefix) - 1 + np.concatenate([np.zeros((B, 1), np.int64), lengths.cumsum(1)], 1)
        total = ends[:, -1] + 1
        token_ids = np.full((B, int(total.max(initial=len(prefix)))), self.pad_id, np.int64)
        token_ids[:, : len(prefix)] = prefix
        column = (ends[:, :-1] + 1)[is_item]
        for table, entry in pieces:
            starts, counts = table.starts[entry], table.lengths[entry]
            # every token of these pieces: which row, which column, and which entry of the table
            within = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts)
            place = np.repeat(column, counts) + within
            found = table.tokens[np.repeat(starts, counts) + within]
            token_ids[np.repeat(row, counts), place] = found
            column = column + counts
        ends[:, 1:][is_item] -= unread
        is_end = np.concatenate([np.ones((B, 1), bool), is_item], 1)
        return Prompts(token_ids, total, num_items, np.where(is_end, ends, -1))

    def item_prompts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the prompts that item rows are read from: ids (K, T), right-padded, lengths (K,).

        Each ends in the answer marker, where the row is read.
        """
        instruction = self.prompt.item_instruction
        before = self._before(instruction)
        after = self._after(instruction) + self.answer
        rows = [[*before, *self.encode(f"Item: {text}"), *after] for text in texts]
        lengths = np.array([len(row) for row in rows], np.int64)
        ids = np.full((len(rows), lengths.max(initial=1)), self.pad_id, np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = [token for row in rows for token in row]
        return ids, lengths

    def prompt_text(
        self,
        history: Sequence[int],
        seconds_after: Sequence[int] = (),
        ratings: Sequence[float] = (),
    ) -> str:
        """Return one prompt as text, for people and for tests.

        Args:
            seconds_after: How long it was from each event to the next, and from the last to the
                question; read where ``prompt.elapsed`` is set.
            ratings: Of each event, NaN where it has none; read where ``prompt.ratings`` is set.
        """
        titles = [f" [{self.titles[i]}]" for i in history]
        if self.prompt.ratings and len(ratings):
            words = [rated.rating_word(rating) for rating in ratings]
            titles = [title + word for title, word in zip(titles, words, strict=True)]
        if self.prompt.elapsed:
            words = [elapsed.WORDS[k] for k in elapsed.elapsed_class(np.asarray(seconds_after))]
            words[len(titles) - (not self.prompt.until_asked) :] = [""]
            titles = [title + word for title, word in zip(titles, words)]
        shown = "".join(titles[-self.max_history :])
        before = self.tokenizer.bos_token or ""
        if self.prompt.chat:
            before = self._turn(self.prompt.instruction)[0]
        return f"{before}{HISTORY}{shown}"

    def thought_text(self, tokens: Sequence[int]) -> str:
        """Return one thought as text, from its opening to its answer marker, without either."""
        inside = list(tokens)[len(self.opening) :]
        return str(self.tokenizer.decode(inside)).removesuffix(self.prompt.answer_marker).strip()

    def ends_thought(self, tokens: Sequence[int]) -> bool:
        """Return whether a thought, written so far, ends in the answer marker.

        A tokenizer that knows no such marker may spell it in several ways.
        """
        answer, marker = self.answer, self.prompt.answer_marker
        if list(tokens[-len(answer) :]) == answer:
            return True
        if len(answer) == 1 or not self._closes_marker(tokens[-1]):
            return False
        tail = str(self.tokenizer.decode(list(tokens[-len(marker) - 1 :])))
        return tail.rstrip().endswith(marker)

    @lru_cache(maxsize=65_536)  # noqa: B019 - one writer lives as long as its model
    def _closes_marker(self, token_id: int) -> bool:
        return str(self.tokenizer.decode([token_id])).rstrip().endswith(">")

    def question_tokens(self, found: Lookup) -> list[int]:
        """Return what asks for an answer: `` After [Title]``, or a word of `ASKING`."""
        if found.kind == "after":
            return [*self.encode(AFTER), *self.item_tokens(found.via_item_index)]
        return self.encode(next(word for word, kind in ASKING.values() if kind == found.kind))

    def lookup_tokens(self, found: Lookup) -> tuple[list[int], np.ndarray]:
        """Return what is answered after a question.

        Returns:
            Its tokens, and where among them each title of ``found.quoted`` ends, then for all of
            ``found.also`` where the answer does.
        """
        tokens, ends = list(self.encode(FOUND)), []
        if found.words:
            tokens += self.encode(f" {', '.join(found.words)}")
        elif not found.links:
            tokens += self.encode(NOTHING)
        for place, (link, _) in enumerate(found.named):
            if place == len(found.links):
                tokens += self.encode(LIKE)
            tokens += self.item_tokens(link.item_index)
            ends.append(len(tokens) - 1)
        tokens += self.encode(NEXT)
        return tokens, np.array(ends + [len(tokens) - 1] * len(found.also), np.int64)

    def asked_by(self, tokens: Sequence[int]) -> int | None:
        """Return what a thought, written so far and ending in an asking token, asks about."""
        if self.title_token_ids is not None:
            # a title is the last token, and the word before it has at most six
            tokens = tokens[-1 - len(AFTER) :]
        return self.asked_about(str(self.tokenizer.decode(list(tokens))))

    def asked_about(self, thought: str) -> int | None:
        """Return what a thought, written so far, asks about, if it does.

        That is an item, or one of `ASKING`, which are asked for where a sentence begins: a
        category may have that name too, and a title may hold it behind a point.
        """
        for asked, (word, _) in ASKING.items():
            if thought.endswith(word):
                before = thought.removesuffix(word)
                is_in_title = before.rfind("[") > before.rfind("]")
                begins = before.endswith((THINK, ".", NEXT)) and not is_in_title
                return asked if begins else None
        _, after, title = thought.rpartition(f"{AFTER} [")
        if not after or not title.endswith("]"):
            return None
        return self.index_of_title.get(title[:-1])


@dataclass(frozen=True)
class _Pieces:
    """Encoded texts behind one another."""

    tokens: np.ndarray
    """(T,), int64."""
    starts: np.ndarray
    """(P + 1,), int64. Text p is ``tokens[starts[p]:starts[p + 1]]``."""

    @staticmethod
    def of(pieces: Sequence[Sequence[int]]) -> "_Pieces":
        starts = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces], dtype=np.int64)])
        return _Pieces(np.array([token for piece in pieces for token in piece], np.int64), starts)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(P,), int64."""
        return np.diff(self.starts)


def _seconds_after(histories: Histories) -> np.ndarray | None:
    """Return how long it was from each event to the next, or to the question. (M,), seconds.

    None where nobody knows.
    """
    if histories.timestamp is None or histories.asked_at is None:
        return None
    following = np.append(histories.timestamp[1:], 0)
    is_some = histories.lengths > 0
    following[histories.offsets[1:][is_some] - 1] = histories.asked_at[is_some]
    return following - histories.timestamp


def _id(token_id: object) -> int:
    if not isinstance(token_id, int):
        raise ValueError(
            f"the tokenizer must define its special tokens as single ids; got {token_id!r}"
        )
    return token_id

"""What thoughts can be made of."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    field_validator,
    model_validator,
)

from reasonrec.config import Config

Together = Literal["auto", "ease", "ials", "item-knn-bm25"]


class ThoughtConfig(Config):
    """What a thought may contain."""

    num_lookups: NonNegativeInt = 7
    """Items that the verbaliser looks up in one thought. 0 leaves out the graph."""
    min_lookups: NonNegativeInt | None = None
    """The verbaliser draws for each thought how many it looks up, evenly from this many to
    ``num_lookups``, and a thought may end after as many: RecPO can then learn where looking further
    pays. None: always ``num_lookups``."""
    num_links: PositiveInt = 2
    """Items that the graph answers with, at most, for one look-up."""
    lookup_window: PositiveInt = 10
    """The verbaliser looks up items among this many most recent ones, each counted once."""
    recency: float = Field(default=0.5, gt=0, le=1)
    """Weight of an item relative to the one after it when drawing what to look up. In (0, 1]."""
    name_taste: bool = True
    """Whether a thought starts with the user's main categories."""
    look_up_taste: bool = False
    """Whether those are looked up, as all else behind a colon; else the model writes them, as it
    believes them to be."""
    steps_after: PositiveInt = 5
    """How many steps after the shared item a neighbour's events count as evidence."""
    reverse_share: NonNegativeFloat = 1.0
    """Weight of a neighbour's step before the shared item, beside 1 for the step after it."""
    total_power: float = Field(default=0.5, ge=0, le=1)
    """Evidence is divided by how often the item that is asked about was taken, to this power, so
    that what follows from a popular item does not shout down the rest."""
    asked_power: NonNegativeFloat = 0.0
    """What an answer says of the s-th last item of the history counts s ** -asked_power. 0 weighs
    all answers alike; the follow counter, tuned, takes up to 2 where tastes move on."""
    same_pace: NonNegativeFloat = 0.0
    """A neighbour's step counts 1 + same_pace times where it took about as long as it has been
    since the user took the item that is asked about: at once, seconds, minutes, hours, days,
    months, or years. 0 leaves time out, and so does a log without times."""
    max_neighbours: PositiveInt = 200
    """Neighbours read per look-up; a seeded sample of them where there are more."""
    num_like: NonNegativeInt = 2
    """Items that read like the one that is looked up, at most, that the answer goes on with: the
    largest cosines of the words of title, categories and description. 0 leaves them out."""
    like_from: float = Field(default=0.0, ge=0, le=1)
    """The cosine from which an item is quoted as one that reads like it. What is less alike weighs
    as what is beyond ``num_like`` does: of short titles, one common word makes the most alike."""
    num_weighed: NonNegativeInt = 20
    """Items of each kind, what people took and what reads alike, that an answer about an item holds
    at most. The strongest are quoted, as ``num_links``, ``num_like`` and ``like_from`` say; the
    rest, and the item itself once more, count for the ranking alone. 0 lets only what is quoted
    count."""
    num_people: NonNegativeInt = 4
    """People alike that the verbaliser asks about in one thought, before the items. 0 leaves them
    out, and the graph then answers nothing about people."""
    num_taken: PositiveInt = 3
    """Items that a person alike is quoted with, at most: the latest that the user has not taken."""
    likeness_degree_power: float = Field(default=0.5, ge=0, le=2)
    """A shared item makes alike by one over its number of takers to this power."""
    likeness_length_power: float = Field(default=0.5, ge=0, le=1)
    """Likeness is divided by the number of a person's events to this power."""
    likeness_gap_decay: float = Field(default=1.0, gt=0, le=1)
    """A shared item counts less for every event that whoever took it first had before the other
    took it too: who takes things soon after one another follows one another. 1 leaves it out."""
    likeness_gap_floor: float = Field(default=0.05, ge=0, le=1)
    """What a shared item counts that was taken very long before or after, beside 1."""
    taken_decay: float = Field(default=0.7, gt=0, le=1)
    """Weight of what a person took, relative to what they took next. In (0, 1]."""
    together: Together | None = None
    """The item-to-item model, a baseline, that says what goes with the whole history taken
    together, quoted with ``num_links`` titles. It learns from training alone, without the events
    that are held out, but from events after the query too, as it does as a baseline. ``auto`` is
    EASE up to 10,000 items, item-knn-bm25 above. None, or "none", leaves it out."""
    together_power: NonNegativeFloat = 0.0
    """What the s-th last item of the history counts there: s ** -together_power. All else about
    that model is its default."""
    num_together: NonNegativeInt = 20
    """Items that this answer holds at most; those beyond ``num_links`` count for the ranking alone,
    as with ``num_weighed``."""
    num_candidates: NonNegativeInt = 0
    """Items that the state before the thought scores highest, history left out, which a thought
    holds as candidates where it writes `` Maybe``. 0 leaves them out."""
    num_candidates_asked: NonNegativeInt = 0
    """Candidates that the verbaliser looks up, the highest first, before the user's own items."""

    @property
    def most_looked_up(self) -> int:
        """How many items of its own a history is asked about at most."""
        return min(self.num_lookups, self.lookup_window)

    @property
    def least_looked_up(self) -> int:
        """How many it is asked about at least, where it has as many."""
        return self.most_looked_up if self.min_lookups is None else self.min_lookups

    def counting_like(self, counter: Mapping[str, float]) -> Self:
        """Return such thoughts whose look-ups count as a follow counter of these settings does.

        Args:
            counter: Of `FollowCounterConfig`; ``reasonrec tune follow-counter`` finds them.
        """
        told = {
            "steps_after": counter["num_steps"],
            "reverse_share": counter["reverse_share"],
            "total_power": counter["total_power"],
            "asked_power": counter["recency_power"],
        }
        return type(self).model_validate(self.model_dump() | told)

    @field_validator("together", mode="before")
    @classmethod
    def read_none(cls, given: Any) -> Any:
        """Return None for the word, since TOML has no such value."""
        return None if given == "none" else given

    @model_validator(mode="after")
    def check_looks_up_no_fewer_than_none(self) -> Self:
        if self.min_lookups is not None and self.min_lookups > self.most_looked_up:
            raise ValueError(
                f"min_lookups must be at most {self.most_looked_up}, the most that is looked up "
                f"(num_lookups, lookup_window); got {self.min_lookups}"
            )
        return self

    @model_validator(mode="after")
    def check_asks_about_candidates_it_names(self) -> Self:
        if self.num_candidates_asked > self.num_candidates:
            raise ValueError(
                "num_candidates_asked must be at most num_candidates, which are named first; got "
                f"{self.num_candidates_asked} and {self.num_candidates}"
            )
        return self


class PromptConfig(Config):
    """What prompts tell, and how they are put to a language model from elsewhere."""

    elapsed: bool = False
    """Whether a word behind each title says how long it was until the next one: `` at once``,
    `` seconds``, `` minutes``, `` hours``, `` days``, `` months`` or `` years``. Ours. Needs a log
    with times; a twentieth of the windows is learned without, for histories that come without."""
    until_asked: bool = True
    """Whether such a word stands behind the last title too, for how long it was until the question.
    In an evaluation that is when the target was taken."""
    ratings: bool = False
    """Whether each title is followed by the rating that the person gave it, to the nearest half:
    `` 4``, `` 4.5``; R²ec, fig. 5. An event without one gets no word. Needs a log with ratings; a
    twentieth of the windows is learned without, for histories that come without."""
    item_popularity: bool = False
    """Whether the text that an item's row is read from says how many people took it in training,
    and how they rated it there on average: ``Taken by 37, rated 4.2 on average.``; R²ec, fig. 5,
    where both know the future. Nothing is said of an item that training never saw. Needs
    ``head.item_rows`` text or text+id."""
    chat: bool = False
    """Whether prompts are a user's turn in the chat template of the tokenizer, each after its
    instruction. False is bare text without instruction."""
    answer_marker: str = Field(default="<answer>", pattern=r"^<[^<>\s]+>$")
    """Text that ends a thought and stands before an item's row: ``<word>``, which nothing in the
    catalogue can spell. One token where the tokenizer has it as such, several where not."""
    add_marker: bool = False
    """Give a tokenizer that spells the marker in several tokens one token for it. Its vectors start
    as the means of those of ``<``, ``word`` and ``>``; with adapters they stay so."""
    instruction: str = (
        "Below is what one person took, oldest first. Think about what it says of their taste and "
        "needs and of what they will want next. End your thoughts with <answer>."
    )
    """Stands before the history, in chat only; ``<answer>`` in it becomes the marker."""
    item_instruction: str = "Sum up what this item is and whom it suits. Begin with <answer>."
    """Stands before the text of an item, in chat only, likewise."""

    @model_validator(mode="after")
    def check_marker(self) -> Self:
        if self.answer_marker == "<think>":
            raise ValueError("answer_marker must not be <think>, with which thoughts begin")
        return self


OF_R2EC = ThoughtConfig(
    together="auto", together_power=0.5, num_together=200, asked_power=0.5,
    likeness_gap_decay=0.85, likeness_gap_floor=0.1, look_up_taste=True, like_from=0.25,
)  # fmt: skip
"""Thoughts of R²ec by default: they also ask what goes with all of a history, its older titles
count less, and alike is above all who takes things soon before or after. They say nothing that is
not so: taste is looked up, and what hardly reads alike is not quoted."""


class TracesConfig(Config):
    """Which thoughts the traces stage writes."""

    num_thoughts: PositiveInt = 10_000
    """Training positions, sampled without replacement; all where the log has fewer. Where thoughts
    ask what goes with all of a history, they are last events of users, which what answers has then
    not learned from."""
    thought: ThoughtConfig = OF_R2EC

    @model_validator(mode="after")
    def check_needs_no_model(self) -> Self:
        if self.thought.num_candidates:
            raise ValueError(
                "thought.num_candidates must be 0 here: candidates are those of a model, and this "
                f"stage has none; got {self.thought.num_candidates}. Training names them itself"
            )
        return self

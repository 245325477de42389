"""The deterministic teacher: thoughts from history and graph evidence, never from the label.

A thought names the user's main categories, then what people alike took lately, then what goes with
the whole history and the candidates of the model itself, if it is to have any, then looks up some
of the user's recent items: what neighbours took after them, and what reads like them. Which items
are looked up is drawn by recency alone: a choice that saw the target would teach the model to trust
evidence more than it deserves at test time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Catalogue, Dataset
from reasonrec.graph.alike import AlikeTable, people_alike
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.lookup import look_up
from reasonrec.records import LOOKUP_KINDS, FoundItems, Histories, Link, Lookup
from reasonrec.rng import stream
from reasonrec.traces.config import ThoughtConfig
from reasonrec.traces.found import FoundInThought
from reasonrec.traces.likeness import Likeness
from reasonrec.traces.prompts import MOSTLY, PromptWriter, as_data
from reasonrec.traces.together import fit_together


@dataclass(frozen=True)
class Thoughts:
    """R thoughts as token lists, each from the opening, ``<think>``, to ``<answer>``."""

    tokens: list[list[int]]
    is_written: list[list[bool]]
    """True for tokens that the thinker writes, False for ``<think>``, evidence and markers."""
    named: list[FoundInThought]
    """What each thought found, and where in it that stands."""
    via_item: np.ndarray
    """(R, num_candidates_asked + num_lookups), int32. What each thought looks up; -1 where there is
    no such candidate, or the history is shorter."""
    person: np.ndarray
    """(R, num_people), int32. Users alike that each thought asks about; -1 for nobody."""


_AFTER, _LIKE, _AGAIN, _TOGETHER = (
    LOOKUP_KINDS.index(kind) for kind in ("after", "like", "again", "together")
)


class Verbaliser:
    """Writes thoughts for histories; holds the graph and the category words."""

    def __init__(
        self,
        writer: PromptWriter,
        graph: InteractionGraph,
        catalogue: Catalogue,
        config: ThoughtConfig,
        goes_with: Recommender | None = None,
    ) -> None:
        """Args:
        goes_with: Says what goes with a whole history, where ``config.together`` is set.
        """
        if (goes_with is None) != (config.together is None):
            raise ValueError(
                f"thought.together = {config.together!r} must come with the fitted model that it "
                f"names; got {goes_with}"
            )
        self._goes_with = goes_with
        self.writer = writer
        self.graph = graph
        self.config = config
        self._categories, self._category_of_item = _category_matrix(catalogue)
        self._likeness = Likeness(catalogue) if config.num_like else None

    @classmethod
    def learned_from(
        cls,
        dataset: Dataset,
        writer: PromptWriter,
        config: ThoughtConfig,
        *,
        unknown: np.ndarray | None = None,
    ) -> "Verbaliser":
        """Return one who knows the training log of a data set.

        Args:
            unknown: Positions of that log that ``fit_together`` must not learn from.
        """
        graph = InteractionGraph.build(dataset.train, dataset.num_items)
        goes_with = fit_together(dataset, config, unknown=unknown)
        return cls(writer, graph, dataset.catalogue, config, goes_with)

    def look_up(self, histories: Histories, via_item: np.ndarray) -> list[Lookup]:
        """Return what neighbours took after ``via_item`` (B,) and what reads like it.

        One look-up for every history, without what the history holds. -1 finds nothing. Only an
        item of the history counts once more itself. Weights are times ``s ** -asked_power``, where
        the item is the s-th last of its history.
        """
        last = self._last_place(histories, via_item)
        table = look_up(
            self.graph,
            user_index=histories.user_index,
            via_item=via_item,
            exclude_items=(histories.item_index, histories.offsets),
            asked_at=histories.asked_at,
            num_links=max(self.config.num_links, self.config.num_weighed),
            window=self.config.steps_after,
            max_neighbours=self.config.max_neighbours,
            reverse_share=self.config.reverse_share,
            total_power=self.config.total_power,
            same_pace=self.config.same_pace,
            seconds_since=self._seconds_since(histories, last),
            seed=0,
        )
        like, cosine = np.full((len(histories), 0), -1), np.zeros((len(histories), 0))
        if self._likeness is not None:
            most = max(self.config.num_like, self.config.num_weighed)
            like, cosine = self._likeness.nearest(via_item, histories, num_items=most)
        is_quoted = (np.arange(like.shape[1]) < self.config.num_like) & (
            cosine >= self.config.like_from
        )
        share = np.maximum(last, 1.0) ** -self.config.asked_power
        table = replace(table, weight=table.weight * share[:, None].astype(np.float32))
        cosine = cosine * share[:, None]
        quoted = self.config.num_links
        weighs = self.config.num_weighed > 0
        again = np.where((last > 0) & weighs, via_item, -1)
        parts = (
            (table.item_index[:, quoted:], table.weight[:, quoted:], _AFTER),
            (np.where(weighs & ~is_quoted, like, -1), cosine, _LIKE),
            (again[:, None], share[:, None], _AGAIN),
        )
        item = np.concatenate([item for item, _, _ in parts], 1).astype(np.int64)
        weight = np.concatenate([weight for _, weight, _ in parts], 1).astype(np.float32)
        kind = np.repeat([kind for *_, kind in parts], [item.shape[1] for item, _, _ in parts])
        answers = []
        reads_alike = np.where(is_quoted, like, -1)[:, : self.config.num_like]
        rows = zip(via_item.tolist(), reads_alike.tolist(), cosine.tolist())
        for b, (via, near, close) in enumerate(rows):
            is_there = item[b] >= 0
            answers.append(
                Lookup(
                    via,
                    table.links(b, quoted),
                    like=tuple(Link(i, c, 0, -1) for i, c in zip(near, close) if i >= 0),
                    also=FoundItems(item[b, is_there], weight[b, is_there], kind[is_there]),
                )
            )
        return answers

    @staticmethod
    def _last_place(histories: Histories, item: np.ndarray) -> np.ndarray:
        """Return how many events from its end each history took the item, 0 for never. (B,)."""
        owner = np.repeat(np.arange(len(histories)), histories.lengths)
        taken = np.flatnonzero(histories.item_index == item[owner])
        place = np.zeros(len(histories), np.int64)
        place[owner[taken]] = histories.offsets[owner[taken] + 1] - taken  # the last one stays
        return place

    @staticmethod
    def _seconds_since(histories: Histories, last_place: np.ndarray) -> np.ndarray | None:
        """Return how long before each question the event in that place was. (B,), -1 unknown."""
        if histories.timestamp is None or histories.asked_at is None:
            return None
        event = np.maximum(histories.offsets[1:] - last_place, 0)
        is_known = last_place > 0
        seconds = np.full(len(histories), -1, np.int64)
        seconds[is_known] = histories.asked_at[is_known] - histories.timestamp[event[is_known]]
        return seconds

    def people_alike(self, histories: Histories) -> AlikeTable | None:
        """Return the people that a thought about each history may ask about; None for nobody."""
        if self.config.num_people == 0:
            return None
        return people_alike(
            self.graph,
            user_index=histories.user_index,
            history=(histories.item_index, histories.offsets),
            asked_at=histories.asked_at,
            num_people=self.config.num_people,
            num_links=self.config.num_taken,
            taken_at=histories.timestamp,
            degree_power=self.config.likeness_degree_power,
            length_power=self.config.likeness_length_power,
            gap_decay=self.config.likeness_gap_decay,
            gap_floor=self.config.likeness_gap_floor,
            decay=self.config.taken_decay,
        )

    def together(self, histories: Histories) -> list[Lookup]:
        """Return what goes with each whole history, without what it holds; nothing if not asked."""
        if self._goes_with is None or not len(histories):
            return []
        quoted = self.config.num_links
        scores = self._goes_with.score(histories).scores
        owner = np.repeat(np.arange(len(histories)), histories.lengths)
        scores[owner, histories.item_index] = 0.0
        most = min(max(quoted, self.config.num_together), scores.shape[1])
        best = np.argpartition(-scores, most - 1, axis=1)[:, :most]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        items = np.take_along_axis(best, order, 1)
        weights = np.take_along_axis(scores, items, 1)
        kind = np.full(most, _TOGETHER)
        answers = []
        for item, weight, count in zip(items, weights, (weights > 0).sum(1)):  # the best are first
            links = zip(item[: min(quoted, count)].tolist(), weight.tolist())
            rest = slice(quoted, count)
            answers.append(
                Lookup(
                    -1,
                    tuple(Link(*one, 0, -1) for one in links),
                    kind="together",
                    also=FoundItems(item[rest], weight[rest].astype(np.float32), kind[rest]),
                )
            )
        return answers

    def write(
        self,
        histories: Histories,
        *,
        seed: int,
        keys: np.ndarray,
        num_visible: np.ndarray | None = None,
        candidates: Sequence[Lookup] | None = None,
    ) -> Thoughts:
        """Return one thought for every history.

        Args:
            candidates: What the thoughts name as candidates, one answer each; None for nothing.
            num_visible: (B,), most recent items that the prompt shows; only they are looked up.
                None stands for as many as a prompt can show.
            seed: Run seed.
            keys: (B,), integers that name the queries, so that a thought does not depend on the
                batch it is written in.
        """
        if num_visible is None:
            num_visible = np.minimum(histories.lengths, self.writer.max_history)
        least, most = self.config.least_looked_up, self.config.most_looked_up
        streams = [stream(seed, "verbaliser", int(key)) for key in keys]
        noise = np.stack([rng.gumbel(size=self.config.lookup_window) for rng in streams])
        count = np.full(len(histories), most)
        if least < most:
            count = np.array([rng.integers(least, most + 1) for rng in streams])
        via_item = self._choose(histories, num_visible, noise, count)
        if candidates is not None:
            asked = np.full((len(histories), self.config.num_candidates_asked), -1, np.int32)
            for b, named in enumerate(candidates):
                links = named.links[: asked.shape[1]]
                asked[b, : len(links)] = [link.item_index for link in links]
            via_item = np.concatenate([asked, via_item], 1)
        found = [self.look_up(histories, via_item[:, j]) for j in range(via_item.shape[1])]
        people = self.people_alike(histories)
        person = np.zeros((len(histories), 0), np.int32) if people is None else people.user_index
        mostly, together = self.commonest(histories), self.together(histories)
        drafts = []
        for b in range(len(histories)):
            draft = _Draft(self.writer)
            if mostly[b] and self.config.look_up_taste:
                draft.ask(_taste(mostly[b]))
            elif mostly[b]:
                text = f"{MOSTLY} {', '.join(mostly[b])}."
                draft.add(self.writer.encode(text), is_written=True)
            for one in [] if people is None else people.records(b):
                draft.ask(one)
            for one in together[b : b + 1]:
                draft.ask(one)
            if candidates is not None:
                draft.ask(candidates[b])
            for column in found:
                if column[b].via_item_index >= 0:
                    draft.ask(column[b])
            draft.add(self.writer.answer, is_written=True)
            drafts.append(draft)
        return Thoughts(
            tokens=[draft.tokens for draft in drafts],
            is_written=[draft.is_written for draft in drafts],
            named=[draft.named for draft in drafts],
            via_item=via_item,
            person=person,
        )

    def gather(
        self, histories: Histories, *, num_visible: np.ndarray | None = None
    ) -> list[list[Lookup]]:
        """Return for every history what a fixed rule asks the graph, and what it answers.

        The people most alike, what goes with all, then the newest items: what `write` asks about,
        without a draw.

        Args:
            num_visible: As for `write`.
        """
        if num_visible is None:
            num_visible = np.minimum(histories.lengths, self.writer.max_history)
        no_noise = np.zeros((len(histories), self.config.lookup_window))
        count = np.full(len(histories), self.config.most_looked_up)
        via_item = self._choose(histories, num_visible, no_noise, count)
        tables = [self.look_up(histories, column) for column in via_item.T]
        people, together = self.people_alike(histories), self.together(histories)
        gathered: list[list[Lookup]] = []
        for b, row in enumerate(via_item.tolist()):
            found = [] if people is None else people.records(b)
            found += together[b : b + 1]
            found += [column[b] for via, column in zip(row, tables) if via >= 0]
            gathered.append(found)
        return gathered

    def as_prompt(self, gathered: Sequence[Sequence[Lookup]]) -> list[list[int]]:
        """Return the tokens with which prompts that hold evidence go on behind their histories.

        Those are every question with its answer, as in a thought, and what closes a prompt.
        """
        rows = []
        for found in gathered:
            pieces = [
                [*self.writer.question_tokens(one), *self.writer.lookup_tokens(one)[0]]
                for one in found
            ]
            rows.append([token for piece in [*pieces, self.writer.closing] for token in piece])
        return rows

    def taste(self, histories: Histories) -> list[Lookup]:
        """Return what each history is mostly of, as an answer; nothing if the model writes that."""
        if not self.config.look_up_taste:
            return []
        return [_taste(words) for words in self.commonest(histories)]

    def commonest(self, histories: Histories, *, last: int = 10) -> list[tuple[str, ...]]:
        """Return the two commonest categories of each history's last events, fewer if there are.

        Of equally common ones, the first in the catalogue. Empty where no taste is to be named.
        """
        if not self.config.name_taste or not self._categories:
            return [()] * len(histories)
        num_events = np.minimum(histories.lengths, last)
        row = np.repeat(np.arange(len(histories)), num_events)
        event = np.repeat(histories.offsets[1:] - num_events.cumsum(), num_events) + np.arange(
            num_events.sum()
        )
        category = self._category_of_item[histories.item_index[event]]  # (E, 3), -1 padded
        counts = np.zeros((len(histories), len(self._categories)), np.int32)
        np.add.at(counts, (np.broadcast_to(row[:, None], category.shape)[category >= 0],
                           category[category >= 0]), 1)  # fmt: skip
        best = np.argsort(-counts, axis=1, kind="stable")[:, :2]
        times = np.take_along_axis(counts, best, 1)
        return [
            tuple(self._categories[i] for i, count in zip(two, often) if count)
            for two, often in zip(best.tolist(), times.tolist())
        ]

    def _choose(
        self, histories: Histories, num_visible: np.ndarray, noise: np.ndarray, count: np.ndarray
    ) -> np.ndarray:
        """Draw distinct recent items, weight ``recency ** age``; newest first, -1 for none.

        Args:
            noise: (B, lookup_window), Gumbel; zeros take the newest items.
            count: (B,), how many at most.
        """
        B, W, L = len(histories), self.config.lookup_window, self.config.num_lookups
        item = self._newest(histories, num_visible)
        preference = noise + np.arange(W) * np.log(self.config.recency)
        preference[item < 0] = -np.inf
        chosen = np.argsort(-preference, axis=1, kind="stable")[:, :L]  # Gumbel top-k: no repeats
        missing = ~np.isfinite(np.take_along_axis(preference, chosen, 1))
        missing |= np.arange(chosen.shape[1]) >= count[:, None]
        chosen = np.sort(np.where(missing, W, chosen), axis=1)  # newest first, absent ones last
        padded = np.concatenate([item, np.full((B, 1), -1, np.int32)], 1)
        return np.take_along_axis(padded, chosen, 1)

    def _newest(self, histories: Histories, num_visible: np.ndarray) -> np.ndarray:
        """Return the last items of each history, each once, -1 for none. (B, lookup_window)."""
        B, W = len(histories), self.config.lookup_window
        age = np.arange(int(num_visible.max(initial=0)))
        visible = age < num_visible[:, None]
        item = np.full(visible.shape, -1, np.int32)
        item[visible] = histories.item_index[(histories.offsets[1:, None] - 1 - age)[visible]]
        # an item taken twice stands at its newer place alone: no thought asks about it twice
        is_repeat = np.tril(item[:, :, None] == item[:, None, :], -1).any(2)
        place = (visible & ~is_repeat).cumsum(1) - 1
        row, column = np.nonzero(visible & ~is_repeat & (place < W))
        newest = np.full((B, W), -1, np.int32)
        newest[row, place[row, column]] = item[row, column]
        return newest


def _taste(words: tuple[str, ...]) -> Lookup:
    return Lookup(-1, kind="taste", words=words)


class _Draft:
    """One thought while it is put together."""

    def __init__(self, writer: PromptWriter) -> None:
        self._writer = writer
        self.tokens = [*writer.opening]
        self.is_written = [False] * len(self.tokens)
        self.named = FoundInThought()

    def add(self, tokens: list[int], *, is_written: bool) -> None:
        self.tokens += tokens
        self.is_written += [is_written] * len(tokens)

    def ask(self, found: Lookup) -> None:
        self.add(self._writer.question_tokens(found), is_written=True)
        answer, ends = self._writer.lookup_tokens(found)
        self.named.add(len(self.tokens) + ends, found.found)
        self.add(answer, is_written=False)


def _category_matrix(catalogue: Catalogue) -> tuple[list[str], np.ndarray]:
    """Return the category names and (N, 3) indices of each item's first three, -1 padded."""
    names: dict[str, int] = {}
    table = np.full((len(catalogue), 3), -1, np.int32)
    if "categories" in catalogue.table.columns:
        for index, categories in enumerate(catalogue.table["categories"].to_list()):
            for place, category in enumerate((categories or [])[:3]):
                table[index, place] = names.setdefault(as_data(str(category)), len(names))
    return list(names), table

"""Builds questions: chains, ratings and likenesses that speak to what a user is asked (R2Rec)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from reasonrec.data.dataset import Catalogue, InteractionLog
from reasonrec.errors import DataError
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.sampling import (
    OPEN,
    ChainTable,
    count_closable,
    count_older,
    sample_chains,
    weigh_steps,
)
from reasonrec.records import Histories
from reasonrec.rng import stream
from reasonrec.traces.likeness import Likeness
from reasonrec.traces.prompts import as_data
from reasonrec.traces.questions import (
    ChainFacts,
    ItemCard,
    Question,
    Taken,
    mean_rating,
    reads_as_instruction,
)
from reasonrec.traces.reasoned_config import EvidenceConfig, StepsConfig, Support, Task


def rating_scale(log: InteractionLog, *, most: int) -> tuple[float, ...]:
    """Return the ratings that training knows, ascending; empty without ratings.

    Args:
        most: Different ratings that count as a scale, at most.

    Raises:
        DataError: There are too many different ones for a scale.
    """
    if log.rating is None:
        return ()
    found = np.unique(log.rating[~np.isnan(log.rating)])
    if len(found) > most:
        raise DataError(
            f"a rating that a thought ends on must be of a scale of at most {most} values; "
            f"training has {len(found)} different ratings. Round them, ask for likes, or raise "
            "max_ratings of the evidence"
        )
    return tuple(float(rating) for rating in found)


class Ratings:
    """What anybody had rated an item before some time; holds an index over the training log."""

    def __init__(self, log: InteractionLog, num_items: int) -> None:
        self.log, self.num_items = log, num_items
        keys = log.user_index.astype(np.int64) * num_items + log.item_index
        self._order = np.argsort(keys, kind="stable")  # of one key: in the order of time
        self._keys = keys[self._order]

    def before(self, users: np.ndarray, items: np.ndarray, asked_at: np.ndarray) -> np.ndarray:
        """Return each user's newest rating of an item before ``asked_at``, NaN where there is none.

        Args:
            users, items: (M,). -1 gives NaN.
            asked_at: (M,), UTC seconds. Not read where the log has no times.
        """
        result = np.full(len(users), np.nan, np.float32)
        if self.log.rating is None:
            return result
        wanted = users.astype(np.int64) * self.num_items + items
        place = np.searchsorted(self._keys, wanted, side="right") - 1
        for m in np.flatnonzero((users >= 0) & (items >= 0) & (place >= 0)):
            at = int(place[m])
            while at >= 0 and self._keys[at] == wanted[m]:
                event = self._order[at]
                if self.log.timestamp is None or self.log.timestamp[event] < asked_at[m]:
                    result[m] = self.log.rating[event]
                    break
                at -= 1
        return result

    def past(self, user: int, asked_at: int) -> slice:
        """Return the events of a user before ``asked_at``."""
        begin, end = (int(x) for x in self.log.user_offsets[user : user + 2])
        if self.log.timestamp is not None:
            end = begin + int(np.searchsorted(self.log.timestamp[begin:end], asked_at))
        return slice(begin, end)


class QuestionBuilder:
    """Turns histories and candidates into questions; holds graph, ratings and item texts."""

    def __init__(
        self,
        catalogue: Catalogue,
        titles: Sequence[str],
        log: InteractionLog,
        config: EvidenceConfig,
        *,
        graph: InteractionGraph | None = None,
    ) -> None:
        """Args:
        titles: Unique title of every item, as the student reads them.
        log: The training log.
        graph: Of the same log; built where it is not given.
        """
        self.config = config
        self.scale = rating_scale(log, most=config.max_ratings)
        self.graph = graph or InteractionGraph.build(log, len(catalogue))
        self.ratings = Ratings(log, len(catalogue))
        self._titles = titles
        columns = catalogue.table.columns
        self._categories = catalogue.table["categories"] if "categories" in columns else None
        self._texts = catalogue.table["description"] if "description" in columns else None
        self._kind_of = _numbered(self._categories) if config.alias_titles else {}
        self._cards: dict[int, ItemCard] = {}
        self._likeness = Likeness(catalogue, max_share=config.max_word_share)

    def card(self, item_index: int) -> ItemCard:
        """Return what may be said of an item."""
        if item_index not in self._cards:
            words = self._categories[item_index] if self._categories is not None else None
            text = self._texts[item_index] if self._texts is not None else None
            text = as_data(" ".join((text or "").split()[: self.config.max_text_words]))
            words = list([] if words is None else words)[: self.config.num_categories]
            named = tuple(as_data(str(word)) for word in words)
            named = tuple(word for word in named if not reads_as_instruction(word))
            is_aliased = bool(self.config.alias_titles)
            self._cards[item_index] = ItemCard(
                item_index,
                self._titles[item_index],
                tuple(f"kind {self._kind_of[word]}" for word in named) if is_aliased else named,
                "" if is_aliased or reads_as_instruction(text) else text,
                is_aliased=is_aliased,
                category_names=named if is_aliased else (),
            )
        return self._cards[item_index]

    def build(
        self,
        histories: Histories,
        candidates: np.ndarray,
        *,
        task: Task,
        keys: np.ndarray,
        seed: int,
        labels: Sequence[str | None] | None = None,
    ) -> list[Question]:
        """Return one question for every history.

        Args:
            candidates: (R, C) item indices, -1 pads shorter rows; one column where a rating is
            asked. keys: (R,), integers that name the questions. seed: Draws the chains. labels:
            True answers, where they are known.

        Raises:
            DataError: Ratings are asked of a set that has none.
        """
        if task == "rated" and not self.scale:
            raise DataError("the data set has no ratings to predict; ask for likes instead")
        chains, support = self._chains(histories, candidates, task, seed)
        likeness, nearest = self._alike(histories, candidates, task)
        asked_at = self.graph.asked_at(histories.asked_at, len(histories))
        newest = replace(histories, asked_at=asked_at)
        return [
            Question(
                key=int(keys[r]),
                task=task,
                user_index=int(histories.user_index[r]),
                scale=self.scale,
                history=history,
                usual=mean_rating([taken.rating for taken in history]),
                chains=facts,
                candidates=tuple(self.card(int(c)) for c in candidates[r] if c >= 0),
                support=support[r] if support is not None else None,
                support_kind=self.config.support,
                likeness=likeness[r] if likeness is not None else None,
                likeness_grades=self.config.likeness_grades,
                nearest=nearest[r] if nearest is not None else (),
                label=labels[r] if labels is not None else None,
            )
            for r, (history, facts) in enumerate(self._facts(newest, chains))
        ]

    def weights(
        self,
        histories: Histories,
        candidates: np.ndarray,
        *,
        steps: StepsConfig | None = None,
        steps_history: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Return what graph and words say of each candidate, by kind. (R, C) each, float64.

        ``steps`` and ``count`` are those of `EvidenceConfig.support`, ``events`` how many others
        took it before the question, ``words`` the largest cosine to an item of the history shown.

        Args:
            steps: How steps count, in place of the evidence's own way.
            steps_history: Last items of the history that steps may start from, likewise.
        """
        asked, items, rows, columns = _asked(histories, candidates)
        counts = np.zeros(candidates.shape)
        counts[rows, columns] = count_closable(
            self.graph, asked, items, max_history=self.config.max_history
        )
        return {
            "steps": weigh_steps(
                self.graph,
                histories,
                candidates,
                max_history=steps_history or self.config.max_history,
                **(steps or self.config.steps).model_dump(),
            ),
            "count": counts,
            "events": count_older(self.graph, histories.asked_at, candidates).astype(float),
            "words": self._likeness.to_history(
                histories, candidates, max_history=self.config.max_history
            )[0],
        }

    def _chains(
        self, histories: Histories, candidates: np.ndarray, task: Task, seed: int
    ) -> tuple[ChainTable | None, list[tuple[int, ...]] | None]:
        """Return the chains of every question, and how far they close on each candidate."""
        if not self.config.num_chains:
            return None, None
        settings = {
            "seed": seed,
            "reading": self.config.reading,
            "num_chains": self.config.num_chains,
            "max_history": self.config.max_history,
            "overlap_weight": self.config.overlap_weight,
            "degree_weight": self.config.degree_weight,
            "open_from": self.config.open_from,
        }
        support = None
        if settings["reading"] == "history-closed":
            chains = sample_chains(self.graph, histories, None, **settings)
        elif task == "rated":
            chains = sample_chains(self.graph, histories, candidates[:, 0], **settings)
        else:
            asked, items, rows, columns = _asked(histories, candidates)
            wide = sample_chains(self.graph, asked, items, **settings)
            weight = self.weights(histories, candidates)[self.config.support]
            chains = _of_the_likeliest(wide, rows, weight[rows, columns], self.config.num_chains)
            if self.config.show_support and self.config.chain_ends == "closed":
                support = _support(weight, candidates, self.config.support)
        if self.config.chain_ends == "random":
            chains = self._with_random_ends(chains, histories, candidates, seed)
        return chains, support

    def _with_random_ends(
        self, chains: ChainTable, histories: Histories, candidates: np.ndarray, seed: int
    ) -> ChainTable:
        """Return chains whose i1 is a random older item of u1, no candidate and not of u0's."""
        asked_at = self.graph.asked_at(histories.asked_at, len(histories))
        items, fallback = chains.items.copy(), chains.fallback.copy()
        for m in np.flatnonzero(chains.neighbour >= 0):
            query = int(chains.query[m])
            past = self.ratings.past(int(chains.neighbour[m]), int(asked_at[query]))
            known = np.concatenate([histories.row(query), candidates[query]])
            left = np.setdiff1d(self.ratings.log.item_index[past], known)
            if len(left):
                user = int(histories.user_index[query])
                rng = stream(seed, "evidence/random-ends", user + 1, int(chains.neighbour[m]))
                items[m, 1] = rng.choice(left)
                fallback[m] = OPEN
        return replace(chains, items=items, fallback=fallback)

    def _alike(
        self, histories: Histories, candidates: np.ndarray, task: Task
    ) -> tuple[list[tuple[int, ...]] | None, list[tuple[ItemCard | None, ...]] | None]:
        """Return grades of likeness, and the history item that each candidate is most like."""
        if task == "rated" or not self.config.show_likeness:
            return None, None
        cosine, nearest = self._likeness.to_history(
            histories, candidates, max_history=self.config.max_history
        )
        grades = np.rint(cosine * self.config.likeness_grades).astype(int)
        is_real = candidates >= 0
        return (
            [tuple(grades[r][is_real[r]].tolist()) for r in range(len(candidates))],
            [
                tuple(self.card(int(i)) if i >= 0 else None for i in nearest[r][is_real[r]])
                for r in range(len(candidates))
            ],
        )

    def _facts(
        self, histories: Histories, chains: ChainTable | None
    ) -> list[tuple[tuple[Taken, ...], tuple[ChainFacts, ...]]]:
        """Return history and chains of every question, with the ratings on their edges."""
        assert histories.asked_at is not None
        if chains is None:
            return [(self._history(histories, r), ()) for r in range(len(histories))]
        at = histories.asked_at[chains.query]
        on_first = self.ratings.before(chains.neighbour, chains.first_item, at)
        on_second = self.ratings.before(chains.neighbour, chains.second_item, at)
        begin = np.searchsorted(chains.query, np.arange(len(histories) + 1))
        told = []
        for r in range(len(histories)):
            history = self._history(histories, r)
            own = {taken.item.item_index: taken.rating for taken in history}
            facts = []
            for m in range(begin[r], begin[r + 1]):
                if chains.neighbour[m] < 0:
                    continue
                second = int(chains.second_item[m])
                on_history = bool(chains.is_closed[m]) and second in own
                usual, shared = self._about(int(chains.neighbour[m]), int(at[m]), own)
                facts.append(
                    ChainFacts(
                        first=self.card(int(chains.first_item[m])),
                        own_first=own.get(int(chains.first_item[m])),
                        neighbour=f"@{len(facts) + 1}",
                        neighbour_index=int(chains.neighbour[m]),
                        neighbour_first=_number(on_first[m]),
                        second=self.card(second),
                        neighbour_second=_number(on_second[m]),
                        own_second=own[second] if on_history else None,
                        closes_on="nothing"
                        if not chains.is_closed[m]
                        else ("history" if on_history else "candidate"),
                        neighbour_usual=usual,
                        num_shared=shared,
                    )
                )
            told.append((history, tuple(facts)))
        return told

    def _history(self, histories: Histories, r: int) -> tuple[Taken, ...]:
        items = histories.row(r)
        begin = max(0, len(items) - self.config.max_history)
        ratings: list[float | None] = [None] * len(items)
        if histories.rating is not None:
            row = histories.rating[histories.offsets[r] : histories.offsets[r + 1]]
            ratings = [_number(rating) for rating in row]
        return tuple(Taken(self.card(int(items[p])), ratings[p]) for p in range(begin, len(items)))

    def _about(
        self, neighbour: int, asked_at: int, own: dict[int, float | None]
    ) -> tuple[float | None, int | None]:
        if not self.config.neighbour_facts:
            return None, None
        past = self.ratings.past(neighbour, asked_at)
        log = self.ratings.log
        rated = [] if log.rating is None else log.rating[past].tolist()
        shared = len(set(log.item_index[past].tolist()) & set(own))
        return mean_rating([_number(rating) for rating in rated]), shared


def _numbered(categories: pl.Series | None) -> dict[str, int]:
    """Return a number for each category of a catalogue, in the order of first mention."""
    if categories is None:
        return {}
    words = categories.explode().drop_nulls().unique(maintain_order=True)
    names = dict.fromkeys(as_data(str(word)) for word in words)
    return {name: n for n, name in enumerate(names, 1)}


def _asked(
    histories: Histories, candidates: np.ndarray
) -> tuple[Histories, np.ndarray, np.ndarray, np.ndarray]:
    """Return a history and an item for each real candidate, with its row and column."""
    rows, columns = np.nonzero(candidates >= 0)
    return histories.take(rows), candidates[rows, columns], rows, columns


def _support(weight: np.ndarray, candidates: np.ndarray, kind: Support) -> list[tuple[int, ...]]:
    """Return what is shown of each candidate's weight: the count, or percent of the row's sum."""
    if kind == "steps":
        weight = 100.0 * weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-9)
    shown = np.rint(weight).astype(int)
    return [tuple(n[items >= 0].tolist()) for n, items in zip(shown, candidates)]


def _of_the_likeliest(
    wide: ChainTable, rows: np.ndarray, closable: np.ndarray, num_chains: int
) -> ChainTable:
    """Return the chains of each question that lead to its candidates with the most chains.

    First one chain of each such candidate, then a second one. By weight alone, which divides by
    popularity, they would all lead to what hardly anybody took.
    """
    owner = rows[wide.query]
    begin = np.searchsorted(wide.query, wide.query)
    place = np.arange(len(wide)) - begin  # which chain of its candidate
    order = np.lexsort((-closable[wide.query], place, wide.fallback, owner))
    kept = []
    taken: dict[int, list[int]] = {}
    for m in order:
        mine = taken.setdefault(int(owner[m]), [])
        is_new = wide.neighbour[m] not in {wide.neighbour[other] for other in mine}
        # an open chain stands in for closed ones, and one is enough
        is_alike = not mine or (wide.is_closed[m] and wide.is_closed[mine[0]])
        if len(mine) < num_chains and is_new and is_alike:
            mine.append(int(m))
            kept.append(int(m))
    chosen = np.array(kept, np.int64)
    return wide.take(chosen, query=owner[chosen])


def _number(rating: float) -> float | None:
    return None if np.isnan(rating) else float(rating)

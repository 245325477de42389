"""Answers to what thoughts ask while they are written, each question of a history once."""

from collections.abc import Sequence

import numpy as np
import torch

from reasonrec.models.generation import LookUp, read_prompts
from reasonrec.models.ranking import top_k
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.records import Histories, Link, Lookup
from reasonrec.traces.prompts import ASKING, CANDIDATES, EVERYTHING, SOMEBODY, TASTE
from reasonrec.traces.verbaliser import Verbaliser


def look_up_for(
    verbaliser: Verbaliser, histories: Histories, model: ReasoningRecommender | None = None
) -> LookUp | None:
    """Return the function that answers the look-ups of thoughts about these histories, if any.

    Args:
        model: Whose candidates the thoughts name; needed where they are to name any.
    """
    config = verbaliser.config
    asks = (config.num_lookups, config.num_people, config.num_candidates, config.together)
    if not any((*asks, config.name_taste and config.look_up_taste)):
        return None
    candidates: list[Lookup] = []
    if config.num_candidates:
        if model is None:
            raise ValueError(
                "thoughts that name candidates (thought.num_candidates) need the model whose they "
                "are; got none"
            )
        states = read_prompts(model, model.writer.prompts(histories))
        candidates = candidates_of(model, states, histories, config.num_candidates)
    return _Answers(verbaliser, histories, candidates)


class _Answers:
    """Keeps what was found: the next person alike, and a title that another thought about the same
    history asks for, too, need no second search of the graph."""

    def __init__(
        self, verbaliser: Verbaliser, histories: Histories, candidates: list[Lookup]
    ) -> None:
        self._verbaliser = verbaliser
        self._histories = histories
        self._found: dict[tuple[int, int], list[Lookup]] = {
            (row, CANDIDATES): [one] for row, one in enumerate(candidates)
        }
        """Row and item, or one of `ASKING`, to the answers in the order of asking."""

    def __call__(
        self, rows: list[int], items: list[int], places: list[int]
    ) -> Sequence[Lookup | None]:
        asked = list(zip(rows, items, strict=True))
        self._find(sorted({one for one in asked if one not in self._found}))
        return [self._answer(one, place) for one, place in zip(asked, places, strict=True)]

    def _answer(self, asked: tuple[int, int], place: int) -> Lookup | None:
        found, (_, item) = self._found[asked], asked
        if item not in ASKING:
            return found[0]
        if item != SOMEBODY and not found:  # nobody answers: no question after all
            return None
        return found[place] if place < len(found) else Lookup(-1, kind=ASKING[item][1])

    def _find(self, asked: list[tuple[int, int]]) -> None:
        """Search what was not asked before, a kind of question at a time."""

        def of(items: set[int]) -> tuple[list[tuple[int, int]], Histories]:
            chosen = [one for one in asked if one[1] in items]
            return chosen, self._histories.take(np.array([row for row, _ in chosen], int))

        self._found |= {one: [] for one in asked if one[1] == CANDIDATES}
        titles, histories = of({item for _, item in asked} - ASKING.keys())
        if titles:
            via = np.array([item for _, item in titles], np.int32)
            answers = self._verbaliser.look_up(histories, via)
            self._found |= {one: [answer] for one, answer in zip(titles, answers, strict=True)}
        alike, histories = of({SOMEBODY})
        people = self._verbaliser.people_alike(histories) if alike else None
        for j, one in enumerate(alike):
            self._found[one] = people.records(j) if people else []
        whole, histories = of({EVERYTHING})
        together = self._verbaliser.together(histories)
        for j, one in enumerate(whole):
            self._found[one] = together[j : j + 1]
        mostly, histories = of({TASTE})
        taste = self._verbaliser.taste(histories)
        for j, one in enumerate(mostly):
            self._found[one] = taste[j : j + 1]


@torch.no_grad()
def candidates_of(
    model: ReasoningRecommender, states: torch.Tensor, histories: Histories, num_candidates: int
) -> list[Lookup]:
    """Return what the states (B, D) score highest beside the histories, an answer for each.

    The weight of a candidate is its probability among all that the history does not hold.
    """
    scores = model.score_states(states)
    row = np.repeat(np.arange(len(histories)), histories.lengths)
    taken = torch.from_numpy(np.stack([row, histories.item_index])).to(scores.device)
    scores[taken[0], taken[1]] = -torch.inf
    shares = scores.softmax(-1).cpu().numpy()
    items, _ = top_k(scores.cpu().numpy(), num_candidates, histories)
    return [
        Lookup(-1, tuple(Link(i, float(share[i]), 0, -1) for i in row if i >= 0), kind="maybe")
        for row, share in zip(items.tolist(), shares, strict=True)
    ]

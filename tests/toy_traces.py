"""A rated shop, small enough to work out by hand, for tests of interaction-of-thought traces."""

import dataclasses

import numpy as np
import polars as pl
from tests.toys import toy_dataset

from reasonrec.data.dataset import Catalogue, Dataset
from reasonrec.records import Histories
from reasonrec.traces.evidence import QuestionBuilder
from reasonrec.traces.questions import ChainFacts, ItemCard, Question, Taken
from reasonrec.traces.reasoned_config import EvidenceConfig, Task

TITLES = ["Harbour", "Falcon", "Ember", "Comet", "Cradle", "Ledger", "Grimoire", "Compass"]
GENRES = [["Sea"], ["Sea", "War"], ["Fire"], ["War"], ["Sea"], ["Fire", "Sea"], ["Sea"], ["War"]]


def rated_shop(
    num_users: int = 8,
    *,
    length: int = 7,
    titles: list[str] | None = None,
    texts: list[str] | None = None,
    kinds: list[list[str]] | None = None,
    seed: int = 0,
) -> Dataset:
    """Return users who take the items in orders of their own and rate them 1 to 5."""
    titles = titles or TITLES
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(len(titles))[:length].tolist() for _ in range(num_users)]
    dataset = toy_dataset(rows, titles)
    num_events = len(dataset.train)
    columns = {"item_id": [f"i{n}" for n in range(len(titles))], "title": titles}
    columns["categories"] = kinds or [GENRES[n % len(GENRES)] for n in range(len(titles))]
    if texts is not None:
        columns["description"] = texts
    return dataclasses.replace(
        dataset,
        catalogue=Catalogue(pl.DataFrame(columns)),
        train=dataclasses.replace(
            dataset.train, rating=rng.integers(1, 6, num_events).astype(np.float32)
        ),
    )


def builder_of(dataset: Dataset, **evidence: object) -> QuestionBuilder:
    """Return a builder of questions over the training log of a shop."""
    return QuestionBuilder(
        dataset.catalogue,
        dataset.catalogue.titles,
        dataset.train,
        EvidenceConfig.model_validate(evidence),
    )


def asked_of(dataset: Dataset, events: list[int], last: int | None = None) -> Histories:
    """Return the histories of training events."""
    return dataset.train.histories_before(np.array(events), last=last)


def card(index: int, title: str | None = None, text: str = "") -> ItemCard:
    """Return an item of the toy shop."""
    return ItemCard(index, title or TITLES[index], tuple(GENRES[index]), text)


def hand_question(
    *,
    task: Task = "rated",
    num_chains: int = 1,
    closes_on: str = "candidate",
    label: str | None = None,
    candidate: ItemCard | None = None,
) -> Question:
    """Return a question worked out by hand: is [Comet] for a user who gave [Harbour] 5?

    Chain n goes from [Harbour] over @n, who gave it 4, to [Comet], which @n gave 2.
    """
    harbour, ember, comet = card(0), card(2), candidate or card(3)
    second = card(1) if closes_on == "history" else comet
    chains = tuple(
        ChainFacts(
            first=harbour, own_first=5.0, neighbour=f"@{n}", neighbour_index=n,
            neighbour_first=4.0, second=second, neighbour_second=2.0,
            own_second=3.0 if closes_on == "history" else None,
            closes_on=closes_on,  # pyright: ignore[reportArgumentType]
            neighbour_usual=3.0, num_shared=6,
        )
        for n in range(1, num_chains + 1)
    )  # fmt: skip
    history = [Taken(ember, 2.0), Taken(harbour, 5.0)]
    if closes_on == "history":
        history.insert(0, Taken(card(1), 3.0))
    rated = task == "rated"
    return Question(
        key=7, task=task, user_index=0, scale=(1.0, 2.0, 3.0, 4.0, 5.0), history=tuple(history),
        usual=3.5, chains=chains, candidates=(comet,) if rated else (card(4), comet, card(5)),
        support=None if rated else (0, 2, 1), label=label,
    )  # fmt: skip

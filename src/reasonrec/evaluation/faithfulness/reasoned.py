"""The same questions to R2Rec: what its answers owe to thoughts, to chains, and to numbers.

A changed thought is put behind the prompt and the answer read after it. What a prompt lacks is
taken out of its text alone: the other chains, and the numbers before candidates, stay as they were.
Where a rating is asked, a query has a question and a thought for each candidate; all are changed
alike. The answers alone rank; a blend is left out.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset, Queries
from reasonrec.evaluation.candidates import draw_candidates
from reasonrec.evaluation.faithfulness.config import FaithfulnessConfig
from reasonrec.evaluation.faithfulness.edits import (
    Thought,
    cut_after,
    filler,
    shuffled_pieces,
    shuffled_tokens,
    take_apart,
)
from reasonrec.evaluation.faithfulness.effects import (
    FILLER,
    OWN,
    cut_curve,
    effects_of,
    nearest_others,
    partners,
)
from reasonrec.evaluation.faithfulness.grounding import Grounded, Names, grounded
from reasonrec.evaluation.faithfulness.reasons import (
    NUM_DRAWS,
    Agreement,
    agreement,
    has_reasons,
    true_reasons,
)
from reasonrec.evaluation.faithfulness.report import Faithfulness, Habits, measured_cost
from reasonrec.evaluation.protocol import chosen_queries
from reasonrec.models.ranking import rank_candidates
from reasonrec.models.reasoned_ranking import Answered, ReasonedRanker
from reasonrec.records import Link, Lookup
from reasonrec.rng import stream
from reasonrec.traces.filters import named_titles
from reasonrec.traces.prompts import ANSWER, PromptWriter
from reasonrec.traces.questions import ChainFacts, Question
from reasonrec.traces.reasoned_config import Task
from reasonrec.traces.trace_filters import claimed_ratings, named_people, shown_ratings

CONDITIONS = {
    OWN: "the thought that the model wrote",
    "empty": "no thought: the answer right behind the question",
    "filler": "a full stop over and over, as long as the thought",
    "swapped": "the thought of another user",
    "shuffled-pieces": "the same sentences in another order",
    "shuffled-tokens": "all tokens in a random order",
    "without-chain": "each chain left out of the prompt once, the thought kept",
    "without-target-chain": "the chain that ends on the target, where there is one",
    "without-cited": "each history item that the thought names, with the chains through it",
    "without-uncited": "the nearest history item that it does not name, once for each",
    "without-chains": "all chains left out of the prompt, the thought kept",
    "without-support": "the share of chains that stands before each candidate left out",
    "without-evidence": "chains and their shares left out, the thought kept",
    "anew-without-chain": "each chain left out once, and a new thought written",
    "anew-without-chains": "all chains left out, and a new thought written",
    "anew-without-evidence": "chains and their shares left out, and a new thought written",
}
"""What the model is handed, in the order of the report; ``cut-K`` keeps the first K sentences."""
NUM_CANDIDATES = 20
"""The target and the negatives that ``reasonrec evaluate`` draws for ``candidates-20``."""
_BLOCK = 32


@dataclass(frozen=True)
class Asked:
    """A question, and the thought that its answer is read after."""

    question: Question
    thought: Thought | None
    """None: the model writes one."""


def measures_of(task: Task) -> tuple[str, ...]:
    """Return what is measured: of the target first what the model says of it, then its rank."""
    said = "log_prob" if task == "likes" else "rating"
    return (said, "log2_rank", "hit@1", f"ndcg@{NUM_CANDIDATES}", "top1_kept")


def measure_reasoned(
    ranker: ReasonedRanker,
    dataset: Dataset,
    config: FaithfulnessConfig,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Faithfulness, pl.DataFrame, pl.DataFrame]:
    """Return the report, a row for every question to the model, and a row for every thought.

    A model that averages orders of the candidates is asked in the first.
    """
    blended, ranker = ranker.blend is not None, replace(ranker, blend=None, num_orders=1)
    queries = dataset.queries(config.part)
    rows = chosen_queries(queries, None, config.num_queries, config.part)
    asked = queries.take(rows)
    drawn = draw_candidates(dataset, config.part, num_candidates=NUM_CANDIDATES, seed=0)
    candidates = drawn.item_index[rows]
    clock = time.perf_counter()
    row_of, answered = answer_all(ranker, asked, candidates)
    seconds = time.perf_counter() - clock
    lender = lenders(row_of, asked.user_index, seed)
    writer = ranker.model.writer
    thoughts = [thought_of(reply, writer) for reply in answered.replies]
    own = [Asked(question, one) for question, one in zip(answered.questions, thoughts, strict=True)]
    cases = score_reasoned(ranker, own, row_of, lender, asked.target, seed=seed, progress=progress)
    silent = replace(ranker, thinks=False, name=f"{ranker.name}/silent")
    clock = time.perf_counter()
    silent.score_candidates(asked.histories(), candidates)
    silent_seconds = time.perf_counter() - clock
    tokens = answered.num_tokens.sum() / len(rows)
    measures = measures_of(ranker.task)
    names = Names(ranker.model.titles, dataset.catalogue, dataset.user_ids)
    report = Faithfulness(
        dataset=dataset.name,
        split=dataset.split,
        part=config.part,
        method=ranker.name,
        seed=ranker.seed,
        num_queries=len(rows),
        effects=tuple(effects_of(cases, asked.user_index, measures)),
        curve=tuple(cut_curve(cases, asked.user_index, measures)),
        groundedness=tuple(groundedness_of(answered, lender, asked.user_index[row_of], names)),
        reasons=tuple(reasons_of(answered, row_of, dataset, asked, names, seed=seed)),
        costs=tuple(
            measured_cost(
                method, asked, tokens=float(spent), seconds=s, num_timed=config.num_timed_users
            )
            for method, spent, s in ((ranker, tokens, seconds), (silent, 0.0, silent_seconds))
        ),
        habits=_habits(ranker, answered, thoughts, row_of, asked.target),
        notes=(
            f"{len(rows):,} of {len(queries):,} queries, the target among {NUM_CANDIDATES} "
            "candidates as `reasonrec evaluate` draws them.",
            "Ranked by the answers alone"
            + ("; the blend that this model ranks with is left out." if blended else "."),
        ),
    )
    query = pl.DataFrame(
        {
            "row": np.arange(len(rows), dtype=np.int64),
            "query": rows.astype(np.int64),
            "user_index": asked.user_index,
            "target": asked.target,
        }
    )
    table = _thoughts_table(dataset, rows, row_of, asked, answered, thoughts)
    return report, query.join(cases, on="row", maintain_order="right").drop("row"), table


def answer_all(
    ranker: ReasonedRanker, asked: Queries, candidates: np.ndarray
) -> tuple[np.ndarray, Answered]:
    """Return the row of every question, ascending, and what the model thought and answered.

    Args:
        candidates: (B, C), the target first.
    """
    histories = asked.histories()
    if ranker.task == "likes":
        return np.arange(len(asked)), ranker.answer_in_order(histories, candidates, 0)[0]
    rows, _, questions = ranker.questions_of_each(histories, candidates)
    return rows, ranker.answer(questions)


def thought_of(reply: Sequence[int], writer: PromptWriter) -> Thought:
    """Return the sentences of what the model wrote, the marker left out."""
    tokens = [*writer.opening, *reply]
    return Thought(take_apart(tokens, [True] * len(tokens), (), (), writer))


def lenders(row_of: np.ndarray, user_index: np.ndarray, seed: int) -> np.ndarray:
    """Return for every thought another user's, about a candidate of the same place; -1 for none.

    Args:
        row_of: Row of every thought, ascending.
        user_index: Of every row.
    """
    partner = partners(user_index, seed)[row_of]
    start, stop = (np.searchsorted(row_of, partner, side=side) for side in ("left", "right"))
    place = np.arange(len(row_of)) - np.searchsorted(row_of, row_of)
    return np.where(partner >= 0, np.minimum(start + place, stop - 1), -1)


def score_reasoned(
    ranker: ReasonedRanker,
    own: Sequence[Asked],
    row_of: np.ndarray,
    lender: np.ndarray,
    targets: np.ndarray,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Return one row for every condition, query and way to meet it.

    Args:
        own: The model's own thoughts, one a question.
        row_of: Row of every question, ascending.
        lender: Of `lenders`.
        targets: (B,).
        seed: Draws the shuffles.

    Returns:
        ``row``, ``condition``, ``log_prob`` of the target as the answer (natural logarithm), or its
        expected ``rating``, ``rank`` among the candidates, ``top1_kept`` (1.0 where the first place
        is the same as with the own thought).
    """
    writer = ranker.model.writer
    begin = np.searchsorted(row_of, np.arange(len(targets) + 1))
    tables = []
    for first in range(0, len(targets), _BLOCK):
        block = range(first, min(first + _BLOCK, len(targets)))
        cases = []
        for row in block:
            mine = range(begin[row], begin[row + 1])
            lent = [own[lender[i]].thought if lender[i] >= 0 else None for i in mine]
            rng = stream(seed, "faithfulness/shuffle", row)
            changes = _cases([own[i] for i in mine], lent, int(targets[row]), rng, writer)
            cases += [(row, condition, changed) for condition, changed in changes]
        tables.append(_answers(ranker, cases, targets))
        if progress:
            progress(block.stop, len(targets))
    return pl.concat(tables)


def _cases(
    own: Sequence[Asked],
    lent: Sequence[Thought | None],
    target: int,
    rng: np.random.Generator,
    writer: PromptWriter,
) -> Iterator[tuple[str, list[Asked]]]:
    """Yield every way to ask about one query, its own thoughts first."""
    yield OWN, list(own)
    ways: list[dict[str, list[Asked]]] = []
    for one, other in zip(own, lent, strict=True):
        ways.append({})
        for condition, changed in _changes(one, other, target, rng, writer):
            ways[-1].setdefault(condition, []).append(changed)
    for condition in dict.fromkeys(name for found in ways for name in found):
        for way in range(max(len(found.get(condition, ())) for found in ways)):
            yield (
                condition,
                [
                    found[condition][way] if way < len(found.get(condition, ())) else one
                    for one, found in zip(own, ways, strict=True)
                ],
            )


def _changes(
    own: Asked,
    lent: Thought | None,
    target: int,
    rng: np.random.Generator,
    writer: PromptWriter,
) -> Iterator[tuple[str, Asked]]:
    """Yield every way to change one question or its thought."""
    question, thought = own.question, own.thought
    assert thought is not None
    yield "empty", Asked(question, Thought())
    yield "filler", Asked(question, filler(thought, writer.encode(FILLER)[0]))
    if lent is not None:
        yield "swapped", Asked(question, lent)
    if len(thought.pieces) > 1:
        yield "shuffled-pieces", Asked(question, shuffled_pieces(thought, rng))
    if thought.num_tokens > 1:
        yield "shuffled-tokens", Asked(question, shuffled_tokens(thought, rng, writer))
    for kept in range(1, len(thought.pieces)):
        yield f"cut-{kept}", Asked(question, cut_after(thought, kept))
    for place, chain in enumerate(question.chains):
        less = without_chain(question, place)
        yield "without-chain", Asked(less, thought)
        if chain.second.item_index == target:
            yield "without-target-chain", Asked(less, thought)
        yield "anew-without-chain", Asked(renamed(less), None)
    bare = replace(question, chains=())
    if question.chains:
        yield "without-chains", Asked(bare, thought)
        yield "anew-without-chains", Asked(bare, None)
    if question.support is not None:
        yield "without-support", Asked(replace(question, support=None), thought)
        yield "without-evidence", Asked(replace(bare, support=None), thought)
        yield "anew-without-evidence", Asked(replace(bare, support=None), None)
    shown = np.array([taken.item.item_index for taken in question.history], np.int64)
    cited = cited_items(question, thought, writer)
    for item in cited:
        yield "without-cited", Asked(without_item(question, item), thought)
    for item in nearest_others(shown, cited):
        yield "without-uncited", Asked(without_item(question, item), thought)


def without_chain(question: Question, place: int) -> Question:
    """Return the question without one chain; people keep the names that a thought calls them."""
    return replace(question, chains=question.chains[:place] + question.chains[place + 1 :])


def renamed(question: Question) -> Question:
    """Return the question with its people numbered from 1, as where it never held other chains."""
    return replace(
        question,
        chains=tuple(replace(c, neighbour=f"@{n}") for n, c in enumerate(question.chains, 1)),
    )


def without_item(question: Question, item_index: int) -> Question:
    """Return the question without one history item and the chains through it."""
    return replace(
        question,
        history=tuple(one for one in question.history if one.item.item_index != item_index),
        chains=tuple(
            chain
            for chain in question.chains
            if item_index not in (chain.first.item_index, chain.second.item_index)
        ),
    )


def cited_items(question: Question, thought: Thought, writer: PromptWriter) -> list[int]:
    """Return the history items that a thought names, in order, each once."""
    index_of = {one.item.title: one.item.item_index for one in question.history}
    named = named_titles(_text(thought, writer))
    return list(dict.fromkeys(index_of[title] for title in named if title in index_of))


def _text(thought: Thought, writer: PromptWriter) -> str:
    return str(writer.tokenizer.decode([t for piece in thought.pieces for t in piece.tokens]))


def _answers(
    ranker: ReasonedRanker,
    cases: Sequence[tuple[int, str, list[Asked]]],
    targets: np.ndarray,
) -> pl.DataFrame:
    """Ask the model every question of a block and measure its answers."""
    flat = [one for _, _, changed in cases for one in changed]
    given = [i for i, one in enumerate(flat) if one.thought is not None]
    anew = [i for i, one in enumerate(flat) if one.thought is None]
    marker = ranker.model.writer.encode(ANSWER)
    replies = [
        [*(t for piece in one.thought.pieces for t in piece.tokens), *marker]
        for one in flat
        if one.thought is not None
    ]
    after = ranker.answer_after([flat[i].question for i in given], replies)
    new = ranker.answer([flat[i].question for i in anew]).log_probs
    said = dict(zip([*given, *anew], [*after, *new], strict=True))
    scores = np.full((len(cases), NUM_CANDIDATES), -np.inf, np.float32)
    columns = np.full(scores.shape, -1)
    at = 0
    for case, (row, _, changed) in enumerate(cases):
        log_probs = [said[i] for i in range(at, at + len(changed))]
        found = scores_of(ranker, changed[0].question, log_probs, int(targets[row]))
        scores[case, : len(found)] = found
        columns[case, : len(found)] = np.arange(len(found))
        at += len(changed)
    best = scores.argmax(1)
    own = {row: best[i] for i, (row, condition, _) in enumerate(cases) if condition == OWN}
    return pl.DataFrame(
        {
            "row": np.array([row for row, _, _ in cases], np.int64),
            "condition": [condition for _, condition, _ in cases],
            measures_of(ranker.task)[0]: scores[:, 0].astype(np.float64),
            "rank": rank_candidates(scores, columns),
            "top1_kept": [float(best[i] == own[row]) for i, (row, _, _) in enumerate(cases)],
        }
    )


def scores_of(
    ranker: ReasonedRanker, question: Question, log_probs: Sequence[np.ndarray], target: int
) -> np.ndarray:
    """Return the scores of one query's candidates, the target first. (C,).

    Args:
        question: The first of the query.
        log_probs: Of all its questions: one about all candidates, or one about each.
    """
    if ranker.task == "rated":  # the target's question comes first
        return np.exp(np.stack(log_probs)) @ np.array(ranker.builder.scale)
    at = [item.item_index for item in question.candidates].index(target)
    return np.concatenate([log_probs[0][at : at + 1], np.delete(log_probs[0], at)])


def groundedness_of(
    answered: Answered, lender: np.ndarray, user_index: np.ndarray, names: Names
) -> list[Grounded]:
    """Return how much of what thoughts name stands in their questions, kind by kind.

    Items of the whole prompt, items of the chains alone, people, categories of the prompt's items,
    and claims of who gave what which rating.

    Args:
        lender: Of `lenders`: whose question chance is read from.
        user_index: Of every thought.
    """
    questions, texts = answered.questions, answered.thoughts
    named = [names.named(text) for text in texts]
    items = [frozenset(item.item_index for item in q.items) for q in questions]
    linked = [
        frozenset(item.item_index for chain in q.chains for item in (chain.first, chain.second))
        for q in questions
    ]
    kinds: dict[str, tuple[list[Any], list[frozenset[Any]]]] = {
        "items": ([one.items for one in named], items),
        "items of chains": ([one.items for one in named], linked),
        "people": (
            [named_people(text) for text in texts],
            [frozenset(chain.neighbour for chain in q.chains) for q in questions],
        ),
        "attributes": (
            [one.attributes for one in named],
            [
                frozenset(word for item in one for word in names.attributes_of[item])
                for one in items
            ],
        ),
        "ratings": (
            [claimed_ratings(text) for text in texts],
            [
                frozenset((*who, rating) for who, rating in shown_ratings(q).items())
                for q in questions
            ],
        ),
    }
    return [
        grounded(kind, said, known, lender, user_index) for kind, (said, known) in kinds.items()
    ]


def reasons_of(
    answered: Answered,
    row_of: np.ndarray,
    dataset: Dataset,
    asked: Queries,
    names: Names,
    *,
    seed: int,
) -> list[Agreement]:
    """Return how often thoughts point at the true reasons; nothing where no world recorded them.

    A thought points along the chains whose people it names, and chance along as many chains of the
    same question, drawn evenly. Where each candidate has a thought, it is the one about the target.

    Args:
        row_of: Row of every thought, ascending.
        seed: Draws the chains of chance.
    """
    if not has_reasons(dataset):
        return []
    first = np.searchsorted(row_of, np.arange(len(asked)))
    chains = [answered.questions[i].chains for i in first]
    texts = [answered.thoughts[i] for i in first]
    called = [{*named_people(text)} for text in texts]
    own = [
        [chain for chain in shown if chain.neighbour in people]
        for shown, people in zip(chains, called, strict=True)
    ]
    draws: list[list[list[Lookup]]] = [[] for _ in range(NUM_DRAWS)]
    for draw, drawn in enumerate(draws):
        for row, shown in enumerate(chains):
            rng = stream(seed, "faithfulness/random-chains", draw, row)
            picked = rng.permutation(len(shown))[: len(own[row])]
            drawn.append(as_lookups([shown[i] for i in picked]))
    found = agreement(
        true_reasons(dataset, asked), asked.target, asked.user_index,
        [as_lookups(one) for one in own], [names.named(text) for text in texts],
        chance_lookups=draws, partner=partners(asked.user_index, seed), names=names,
    )  # fmt: skip
    return [one for one in found if one.measure != "friend-alike"]  # chains ask for nobody alike


def as_lookups(chains: Sequence[ChainFacts]) -> list[Lookup]:
    """Return chains as look-ups about their first items, each with one witness and one find."""
    return [
        Lookup(
            chain.first.item_index,
            (Link(chain.second.item_index, 1.0, 1, chain.neighbour_index),),
        )
        for chain in chains
    ]


def _habits(
    ranker: ReasonedRanker,
    answered: Answered,
    thoughts: Sequence[Thought],
    row_of: np.ndarray,
    targets: np.ndarray,
) -> Habits:
    chains = [question.chains for question in answered.questions]
    ends = [{chain.second.item_index for chain in one} for one in chains]
    found = np.array([targets[row] in one for row, one in zip(row_of, ends, strict=True)])
    # the budget is used up, and the marker forced behind it
    full = ranker.max_tokens + len(ranker.model.writer.encode(ANSWER))
    return Habits(
        num_thoughts=len(thoughts),
        num_distinct=len(set(answered.thoughts)),
        mean_pieces=float(np.mean([len(one.pieces) for one in thoughts])),
        mean_lookups=float(np.mean([len(one) for one in chains])),
        mean_found=float(np.mean([len(one) for one in ends])),
        share_truncated=float(np.mean(answered.num_tokens == full)),
        share_target_found=float((np.bincount(row_of, found, len(targets)) > 0).mean()),
        share_without_evidence=float(np.mean([not one for one in chains])),
    )


def _thoughts_table(
    dataset: Dataset,
    rows: np.ndarray,
    row_of: np.ndarray,
    asked: Queries,
    answered: Answered,
    thoughts: Sequence[Thought],
) -> pl.DataFrame:
    titles, target = dataset.catalogue.titles, asked.target[row_of]
    return pl.DataFrame(
        {
            "query": rows[row_of].astype(np.int64),
            "user_id": [dataset.user_ids[u] if u >= 0 else None for u in asked.user_index[row_of]],
            "target_title": [titles[t] for t in target],
            "candidates": [[c.title for c in q.candidates] for q in answered.questions],
            "thought": answered.thoughts,
            "num_tokens": answered.num_tokens,
            "num_pieces": [len(one.pieces) for one in thoughts],
            "chain_starts": [[c.first.title for c in q.chains] for q in answered.questions],
            "chain_ends": [[c.second.title for c in q.chains] for q in answered.questions],
            "target_found": [
                any(chain.second.item_index == t for chain in q.chains)
                for q, t in zip(answered.questions, target, strict=True)
            ],
        },
        schema_overrides={
            "user_id": pl.String, "candidates": pl.List(pl.String),
            "chain_starts": pl.List(pl.String), "chain_ends": pl.List(pl.String),
        },
    )  # fmt: skip

"""Measures one method: every query is scored once, ranked under each protocol, then averaged.

Protocols: ``full`` ranks the target among the whole catalogue (less what the mask keeps out),
``candidates-C`` among itself and C - 1 negatives (``-popular`` draws them by popularity). A mask
other than the default is part of the protocol's word (``full-mask-none``), so that rows of
different meaning never share a name.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reasonrec.baselines.contract import AnsweredElsewhere, CandidateRecommender, Recommender
from reasonrec.data.dataset import Dataset, Part, Queries
from reasonrec.errors import CheckpointError
from reasonrec.evaluation.candidates import Candidates, draw_candidates, parse_protocol
from reasonrec.evaluation.significance import Interval, bootstrap_intervals, resampling_users
from reasonrec.metrics import METRICS, metric_values
from reasonrec.models.ranking import (
    DEFAULT_MASK,
    Mask,
    count_above,
    masked_items,
    rank_candidates,
    top_k,
)
from reasonrec.records import Histories, Scored
from reasonrec.rng import stream

FULL = "full"
PROTOCOLS = (FULL, "candidates-20")
COST = "cost"
"""The protocol word of rows that do not depend on what is ranked."""
FILES = ("metrics.json", "per_query.parquet", "thoughts.parquet")
LISTS = "lists.parquet"
LATENCIES = "latencies.parquet"
NUM_LISTED = 20
"""Items of each stored list: as many as the largest cutoff of a metric."""
_LISTED = {
    "query": pl.Int64,
    "target": pl.Int32,
    "items": pl.List(pl.Int32),
    "scores": pl.List(pl.Float32),
    "target_score": pl.Float32,
    "num_tied": pl.Int64,
    "rank": pl.Float64,
}
_LISTS = {"method": pl.String, "seed": pl.Int64, **_LISTED}
_LATENCIES = {
    "method": pl.String,
    "seed": pl.Int64,
    "query": pl.Int64,
    "user_id": pl.String,
    "milliseconds": pl.Float64,
}
_THOUGHTS = {
    "method": pl.String,
    "seed": pl.Int64,
    "query": pl.Int64,
    "user_id": pl.String,
    "thought": pl.String,
    "num_tokens": pl.Int64,
    "rank": pl.Float64,
}


@dataclass(frozen=True)
class MetricRow:
    """One number of ``metrics.json``; every method and command writes the same fields."""

    dataset: str
    split: str
    """``leave-one-out``, ``global-time`` or ``given``; ``/valid`` follows on validation."""
    protocol: str
    method: str
    metric: str
    value: float
    ci_low: float | None
    """Lower end of the 95 % bootstrap interval over users. None for costs."""
    ci_high: float | None
    n: int
    """Queries, or users timed, that the value is a mean over."""
    seed: int
    trained_on: str
    """The rows that the method learned from, ``train`` unless it says otherwise."""
    seconds: float
    """Wall-clock seconds of scoring all queries."""


@dataclass(frozen=True)
class Evaluation:
    """What measuring one method gave."""

    rows: tuple[MetricRow, ...]
    per_query: pl.DataFrame
    """One row per protocol and query: ``method``, ``seed``, ``protocol``, ``query`` (its row in
    the part), ``user_index``, ``target``, ``history_length``, ``rank`` (infinity: masked),
    ``num_tokens``, ``seconds`` (its share of its batch)."""
    thoughts: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_THOUGHTS))
    """One row per query of a method that thinks: ``method``, ``seed``, ``query``, ``user_id``,
    ``thought``, ``num_tokens``, ``rank`` (under the first protocol)."""
    lists: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_LISTS))
    """One row per query, where lists were kept, of what ``full`` ranked: ``method``, ``seed``,
    ``query``, ``target``, ``items`` (the first ``NUM_LISTED`` item indices, ties in their order)
    with their ``scores``, ``target_score``, ``num_tied`` (others that score as the target does)
    and ``rank``."""
    latencies: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=_LATENCIES))
    """One row per user that was asked alone: ``method``, ``seed``, ``query``, ``user_id`` (null of
    somebody new, and both where another process answered), ``milliseconds``."""


def evaluate(
    recommender: Recommender,
    dataset: Dataset,
    *,
    part: Part = "test",
    protocols: Sequence[str] = PROTOCOLS,
    mask: Mask = DEFAULT_MASK,
    seed: int = 0,
    batch_size: int = 256,
    queries: np.ndarray | None = None,
    num_queries: int | None = None,
    candidates: Sequence[Candidates] = (),
    trained_on: str = "train",
    candidate_seed: int = 0,
    num_timed_users: int = 30,
    fit_seconds: float | None = None,
    keep_lists: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Return metrics, per-query ranks, thoughts and costs of one recommender.

    Args:
        recommender: Scores histories; what it learned from is the caller's to state.
        dataset: Holds the catalogue and the queries.
        part: ``test``, or ``valid`` for anything that is chosen.
        protocols: ``full``, ``candidates-C``, ``candidates-C-popular``, in the report's order.
        mask: What ``full`` keeps out. Candidates never hold touched items, so it is not applied.
        seed: The seed that the method was trained with; it names the rows.
        batch_size: Histories scored at once. Changes no rank.
        queries: Row numbers of the part to measure, or None for all.
        num_queries: Measure a sample of this many instead, the same for every method and seed.
        candidates: Stored or given candidate sets over the whole part; a protocol with a set
            of its name uses it, and any other set is measured as a protocol more.
        candidate_seed: Draws the negatives. One for all methods, so that they are comparable.
        num_timed_users: Users asked one at a time for the latency. 0 leaves it out.
        fit_seconds: Seconds that fitting took, reported as a cost. What was answered elsewhere
            knows its own.
        keep_lists: Keep what ``full`` ranked first, so that anybody can measure it again.
        progress: Called with (queries done, queries in all) after every batch.

    Raises:
        ValueError: A protocol is unknown, there are no queries, or scores cannot be ranked.

    Source: ``docs/conventions.md``, *Protocols*.
    """
    rows = chosen_queries(dataset.queries(part), queries, num_queries, part)
    asked = dataset.queries(part).take(rows)
    sets = _candidate_sets(protocols, candidates, dataset, part, candidate_seed)
    words = [*protocols, *(word for word in sets if word not in protocols)]
    answers = _ask(recommender, asked, rows, words, sets, mask, batch_size, keep_lists, progress)
    full_word = FULL if mask == DEFAULT_MASK else f"{FULL}-mask-{mask}"
    ranks = [(full_word if w == FULL else w, answers.ranks[w]) for w in words]

    measured: list[tuple[str, str, Interval, int]] = []
    for word, rank in ranks:
        intervals = metric_intervals(rank, asked.user_index)
        measured += [(word, m, interval, len(rows)) for m, interval in intervals.items()]
    costs = [
        ("tokens", answers.num_tokens.mean(), len(rows)),
        ("users-per-second", len(rows) / max(answers.seconds.sum(), 1e-9), len(rows)),
    ]
    latency_ms, timed = np.zeros(0), np.zeros(0, np.int64)
    if isinstance(recommender, AnsweredElsewhere):
        latency_ms, fit_seconds = recommender.latency_ms, recommender.fit_seconds
    elif num_timed_users:
        timed = spread_rows(len(asked), num_timed_users)
        latency_ms = time_single_users(recommender, asked.take(timed))
    if len(latency_ms):
        costs += [
            (f"latency-p{q}-ms", np.percentile(latency_ms, q), len(latency_ms)) for q in (50, 95)
        ]
    if fit_seconds is not None:
        costs.append(("fit-seconds", fit_seconds, 1))
    measured += [(COST, m, Interval(float(value), None, None), n) for m, value, n in costs]

    metric_rows = tuple(
        MetricRow(
            dataset=dataset.name,
            split=dataset.split if part == "test" else f"{dataset.split}/{part}",
            protocol=protocol,
            method=recommender.name,
            metric=metric,
            value=interval.mean,
            ci_low=interval.low,
            ci_high=interval.high,
            n=n,
            seed=seed,
            trained_on=trained_on,
            seconds=round(float(answers.seconds.sum()), 6),
        )
        for protocol, metric, interval, n in measured
    )
    per_query = pl.concat(
        pl.DataFrame(
            {
                "method": [recommender.name] * len(rows),
                "seed": [seed] * len(rows),
                "protocol": [word] * len(rows),
                "query": rows.astype(np.int64),
                "user_index": asked.user_index,
                "target": asked.target,
                "history_length": (asked.history_stop - asked.history_start).astype(np.int64),
                "rank": rank,
                "num_tokens": answers.num_tokens,
                "seconds": answers.seconds,
            }
        )
        for word, rank in ranks
    )
    thinking = slice(0, len(answers.thoughts))  # all rows, or none of a method that does not think
    users = asked.user_index[thinking]
    thoughts = pl.DataFrame(
        {
            "method": [recommender.name] * len(users),
            "seed": [seed] * len(users),
            "query": rows[thinking],
            "user_id": [dataset.user_ids[u] if u >= 0 else None for u in users],
            "thought": answers.thoughts,
            "num_tokens": answers.num_tokens[thinking],
            "rank": ranks[0][1][thinking],
        },
        schema=_THOUGHTS,
    )
    lists = pl.concat([pl.DataFrame(schema=_LISTED), *answers.lists]).select(
        pl.lit(recommender.name).alias("method"), pl.lit(seed, pl.Int64).alias("seed"), pl.all()
    )
    users = asked.user_index[timed]
    ids = [dataset.user_ids[u] if u >= 0 else None for u in users]
    nobody = [None] * (len(latency_ms) - len(timed))  # whom another process timed is not told
    latencies = pl.DataFrame(
        {
            "method": [recommender.name] * len(latency_ms),
            "seed": [seed] * len(latency_ms),
            "query": [*rows[timed].tolist(), *nobody],
            "user_id": [*ids, *nobody],
            "milliseconds": latency_ms,
        },
        schema=_LATENCIES,
    )
    return Evaluation(metric_rows, per_query, thoughts, lists, latencies)


def metric_intervals(rank: np.ndarray, user_index: np.ndarray) -> dict[str, Interval]:
    """Return the mean of every metric over queries, with its interval over users.

    Args:
        rank: Of the targets of Q queries, (Q,), float64.
        user_index: Whose query each is, (Q,), integer; -1 is unknown.
    """
    values = np.stack([metric_values(metric, rank) for metric in METRICS], axis=1)
    users = resampling_users(user_index)
    return dict(zip(METRICS, bootstrap_intervals(values, rng=stream(0, "bootstrap"), users=users)))


@dataclass(frozen=True)
class _Answers:
    """What a recommender said of Q queries."""

    ranks: dict[str, np.ndarray]
    """Protocol -> (Q,), float64."""
    num_tokens: np.ndarray
    """(Q,), int64; 0 for a method that does not think."""
    seconds: np.ndarray
    """(Q,), float64. Each query's share of its batch."""
    thoughts: list[str]
    """Q thoughts, or none."""
    lists: list[pl.DataFrame]
    """Of each batch, if they were asked for."""


def _ask(
    recommender: Recommender,
    asked: Queries,
    rows: np.ndarray,
    words: Sequence[str],
    sets: dict[str, Candidates],
    mask: Mask,
    batch_size: int,
    keep_lists: bool,
    progress: Callable[[int, int], None] | None,
) -> _Answers:
    """Score every query once and rank its target under every protocol."""
    ranks = {word: np.empty(len(rows)) for word in words}
    num_tokens = np.zeros(len(rows), np.int64)
    seconds = np.empty(len(rows))
    thoughts: list[str] = []
    lists: list[pl.DataFrame] = []
    for start in range(0, len(rows), batch_size):
        batch = slice(start, min(start + batch_size, len(rows)))
        histories = asked.take(np.arange(batch.start, batch.stop)).histories()
        chosen = {word: one.item_index[rows[batch]] for word, one in sets.items()}
        clock = time.perf_counter()
        answers = _scores(recommender, histories, words, chosen)
        seconds[batch] = (time.perf_counter() - clock) / len(histories)
        for word in words:
            scores = answers[word].scores
            if word == FULL:
                target = asked.target[batch]
                higher, tied = count_above(scores, target, histories=histories, mask=mask)
                ranks[word][batch] = 1.0 + higher + 0.5 * tied
                if keep_lists:
                    lists.append(_list(scores, target, histories, mask, rows[batch], higher, tied))
            elif isinstance(recommender, CandidateRecommender):
                columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
                ranks[word][batch] = rank_candidates(
                    scores, np.where(chosen[word] >= 0, columns, -1)
                )
            else:
                ranks[word][batch] = rank_candidates(scores, chosen[word])
        scored = answers[words[0]]
        if scored.seconds is not None:
            seconds[batch] = scored.seconds
        if scored.num_tokens is not None:
            num_tokens[batch] = scored.num_tokens
        thoughts.extend(scored.thoughts or ())
        if progress:
            progress(batch.stop, len(rows))
    return _Answers(ranks, num_tokens, seconds, thoughts, lists)


def _list(
    scores: np.ndarray,
    target: np.ndarray,
    histories: Histories,
    mask: Mask,
    rows: np.ndarray,
    higher: np.ndarray,
    tied: np.ndarray,
) -> pl.DataFrame:
    """Return the first items of each row under ``full``, in the columns of ``Evaluation.lists``."""
    items, best = top_k(scores, NUM_LISTED, masked_items(histories, target, mask))
    is_real = items >= 0
    return pl.DataFrame(
        {
            "query": rows,
            "target": target,
            "items": [row[real].tolist() for row, real in zip(items, is_real)],
            "scores": [row[real].tolist() for row, real in zip(best, is_real)],
            "target_score": scores[np.arange(len(rows)), target],
            "num_tied": tied.astype(np.int64),
            "rank": 1.0 + higher + 0.5 * tied,
        },
        schema=_LISTED,
    )


def _scores(
    recommender: Recommender,
    histories: Histories,
    words: Sequence[str],
    chosen: dict[str, np.ndarray],
) -> dict[str, Scored]:
    """Return what a recommender says under each protocol; one that scores all is asked once."""
    if isinstance(recommender, CandidateRecommender):
        return {
            word: recommender.score(histories)
            if word == FULL
            else recommender.score_candidates(histories, chosen[word])
            for word in words
        }
    return dict.fromkeys(words, recommender.score(histories))


def write_evaluation(folder: Path, evaluations: Sequence[Evaluation]) -> list[str]:
    """Write ``FILES``, ``LISTS`` and ``LATENCIES`` over some evaluations and return their names; no
    manifest."""
    folder = Path(folder)
    write_rows(folder / "metrics.json", [row for one in evaluations for row in one.rows])
    pl.concat([one.per_query for one in evaluations]).write_parquet(folder / "per_query.parquet")
    pl.concat([one.thoughts for one in evaluations]).write_parquet(folder / "thoughts.parquet")
    pl.concat([one.lists for one in evaluations]).write_parquet(folder / LISTS)
    pl.concat([one.latencies for one in evaluations]).write_parquet(folder / LATENCIES)
    return [*FILES, LISTS, LATENCIES]


def read_evaluation(folder: Path) -> Evaluation:
    """Return what ``write_evaluation`` wrote, as one evaluation.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    folder = Path(folder)

    def kept(name: str, schema: dict[str, Any]) -> pl.DataFrame:
        if not (folder / name).exists():  # in an older evaluation
            return pl.DataFrame(schema=schema)
        return pl.read_parquet(folder / name, glob=False)

    try:
        return Evaluation(
            rows=tuple(read_rows(folder / "metrics.json")),
            per_query=pl.read_parquet(folder / "per_query.parquet", glob=False),
            thoughts=pl.read_parquet(folder / "thoughts.parquet", glob=False),
            lists=kept(LISTS, _LISTS),
            latencies=kept(LATENCIES, _LATENCIES),
        )
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CheckpointError(
            f"{folder} must hold {', '.join(FILES)} of an evaluation; {error}"
        ) from None


def write_rows(path: Path, rows: Sequence[MetricRow]) -> None:
    """Write ``metrics.json``: one list, one row a line."""
    lines = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in rows)
    Path(path).write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def read_rows(path: Path) -> list[MetricRow]:
    """Return the rows of a ``metrics.json``.

    Raises:
        CheckpointError: The file is missing, damaged or of another layout.
    """
    try:
        return [MetricRow(**row) for row in json.loads(Path(path).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} must be a list of metric rows; {error}") from None


def full_word_in(words: Iterable[str]) -> str:
    """Return the word that rankings of the whole catalogue have among these protocols.

    ``full``, unless another mask was asked for and nothing else was measured.
    """
    other = sorted({word for word in words if word.startswith(f"{FULL}-mask-")})
    return FULL if FULL in words or not other else other[0]


def full_ranks(per_query: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of rankings of the whole catalogue, whatever their mask."""
    word = full_word_in(per_query["protocol"].unique().to_list())
    return per_query.filter(pl.col("protocol") == word)


def chosen_queries(
    queries: Queries, named: np.ndarray | None, num_sampled: int | None, part: Part
) -> np.ndarray:
    """Return the sorted row numbers to measure: those named, or a sample of them.

    Raises:
        ValueError: There are none.
    """
    rows = np.arange(len(queries)) if named is None else np.unique(named)
    if num_sampled is not None and num_sampled < len(rows):
        # the data set and nothing else decides the sample: every method answers the same queries
        rows = np.sort(stream(0, f"query-sample-{part}").permutation(rows)[:num_sampled])
    if len(rows) == 0:
        raise ValueError(
            f"an evaluation needs at least one query; the {part} part gave none. "
            "Users with fewer than three events have no query under leave-one-out"
        )
    return rows


def _candidate_sets(
    protocols: Sequence[str],
    given: Sequence[Candidates],
    dataset: Dataset,
    part: Part,
    seed: int,
) -> dict[str, Candidates]:
    """Return the candidates of every candidate protocol, drawing what was not handed in."""
    sets = {one.protocol: one for one in given}
    for word in protocols:
        if word == FULL or word in sets:
            continue
        count, negatives = parse_protocol(word)
        sets[word] = draw_candidates(
            dataset, part, num_candidates=count, seed=seed, negatives=negatives
        )
    return sets


def spread_rows(num_rows: int, count: int) -> np.ndarray:
    """Return ``count`` rows, or all, spread evenly over ``num_rows``."""
    return np.linspace(0, num_rows - 1, min(count, num_rows)).astype(np.int64)


def time_single_users(recommender: Recommender, queries: Queries) -> np.ndarray:
    """Return the milliseconds of asking for one user at a time, after one call to warm up."""
    recommender.score(queries.take(np.zeros(1, np.int64)).histories())
    latency_ms = np.empty(len(queries))
    for i in range(len(queries)):
        histories = queries.take(np.arange(i, i + 1)).histories()
        clock = time.perf_counter()
        recommender.score(histories)
        latency_ms[i] = 1000.0 * (time.perf_counter() - clock)
    return latency_ms

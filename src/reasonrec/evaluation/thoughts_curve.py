"""What more thoughts buy: accuracy against the number of sampled thoughts, and their tokens.

At each temperature the most thoughts are sampled once; the ranking of K of them is the average of
the first K, so that all points speak of the same draws. Beside them stand the greedy thought, which
each point is tested against, and no thought.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reasonrec.data.dataset import Queries
from reasonrec.evaluation.significance import (
    POWER,
    bootstrap_intervals,
    holm,
    paired_test,
    resampling_users,
)
from reasonrec.metrics import ndcg
from reasonrec.models.ranking import rank_targets
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender
from reasonrec.rng import stream

CUT_OFF = 10


@dataclass(frozen=True)
class CurvePoint:
    """NDCG@10 of one way to think, beside that of the greedy thought on the same queries."""

    way: str
    """``silent``, ``greedy`` or ``sampled``."""
    temperature: float
    num_thoughts: int
    ndcg: float
    ci_low: float
    """95 % bootstrap interval over users."""
    ci_high: float
    tokens: float
    """Mean tokens a query, over all of its thoughts, looked-up ones included."""
    cpu_ms: float | None
    """Processor time a query where thoughts are as many as this; None if none was timed."""
    difference: float
    """From greedy, paired."""
    difference_low: float
    difference_high: float
    p: float
    """Of a permutation test against greedy, with Holm's correction over all points; greedy: 1."""
    detectable: float
    """Smallest difference from greedy that these queries would show with a power of .8 at p < .05,
    one test alone."""
    num_queries: int


@dataclass(frozen=True)
class _Asked:
    """What one way to think did on Q queries."""

    way: str
    recommender: ThinkingRecommender | NoThinkRecommender
    temperature: float
    num_thoughts: int
    values: np.ndarray
    """(Q,), NDCG@10."""
    tokens: float


def thoughts_curve(
    recommender: ThinkingRecommender,
    queries: Queries,
    *,
    temperatures: Sequence[float] = (1.0,),
    counts: Sequence[int] = (1, 2, 4, 8),
    num_timed: int = 100,
    progress: Callable[[str], None] = lambda _: None,
) -> list[CurvePoint]:
    """Return silent, greedy, and for each temperature one point for every count of thoughts.

    Args:
        counts: Numbers of thoughts, each 1 or more.
        num_timed: Queries that are asked once more for the processor time. 0 leaves it out.

    Raises:
        ValueError: A temperature is 0, at which all samples are the same, or a count is below 1.
    """
    if min(temperatures, default=1.0) <= 0 or min(counts, default=0) < 1:
        raise ValueError(
            "a curve needs temperatures above 0 and counts of 1 or more; got "
            f"{list(temperatures)} and {list(counts)}"
        )
    progress("silent and greedy")
    silent = NoThinkRecommender(recommender.model, name=f"{recommender.name}/silent")
    greedy = replace(recommender, temperature=0.0, num_samples=1)
    unmoved = _values(silent.score(queries.histories()).scores, queries)
    asked = [
        _Asked("silent", silent, 0.0, 0, unmoved, 0.0),
        *_sampled(greedy, queries, [1], way="greedy"),
    ]  # fmt: skip
    for temperature in temperatures:
        progress(f"{max(counts)} thoughts at temperature {temperature:g}")
        sampler = replace(recommender, temperature=temperature, num_samples=max(counts))
        asked += _sampled(sampler, queries, counts, way="sampled")
    progress("processor time")
    return _points(asked, queries, num_timed)


def _sampled(
    sampler: ThinkingRecommender, queries: Queries, counts: Sequence[int], *, way: str
) -> list[_Asked]:
    """Sample the thoughts of every query once, and rank with the first K for every K."""
    values = {count: np.empty(len(queries)) for count in counts}
    tokens = np.empty((len(queries), sampler.num_samples))
    size = max(1, sampler.batch_size // sampler.num_samples)
    for start in range(0, len(queries), size):
        rows = np.arange(start, min(start + size, len(queries)))
        part = queries.take(rows)
        # a stream of its own for every batch: one seed for all would repeat the draws of the first
        written = replace(sampler, seed=sampler.seed + start).write(part.histories())
        tokens[rows] = written.lengths.reshape(len(rows), -1).cpu().numpy().cumsum(1)
        histories = part.histories()
        for count in counts:
            scores = sampler.rank_with(written, histories, first=count)
            values[count][rows] = _values(scores, part)
    return [
        _Asked(
            way, replace(sampler, num_samples=count), sampler.temperature, count,
            values[count], float(tokens[:, count - 1].mean()),
        )
        for count in counts
    ]  # fmt: skip


def _values(scores: np.ndarray, queries: Queries) -> np.ndarray:
    rank = rank_targets(
        scores, queries.target, histories=queries.histories(), mask="history-except-target"
    )
    return ndcg(rank, CUT_OFF)


def _points(asked: Sequence[_Asked], queries: Queries, num_timed: int) -> list[CurvePoint]:
    users = resampling_users(queries.user_index)
    greedy = next(one for one in asked if one.way == "greedy")
    intervals = bootstrap_intervals(
        np.stack([one.values for one in asked], 1), rng=stream(0, "thoughts-curve"), users=users
    )
    tests = [
        paired_test(one.values, greedy.values, rng=stream(0, "thoughts-curve/test"), users=users)
        for one in asked
    ]
    others = [i for i, one in enumerate(asked) if one is not greedy]
    p = np.ones(len(asked))
    p[others] = holm(np.array([tests[i].p_permutation for i in others]))
    timed = queries.take(np.arange(min(num_timed, len(queries))))
    points = []
    for i, (one, interval, test) in enumerate(zip(asked, intervals, tests, strict=True)):
        spread = float((one.values - greedy.values).std(ddof=1)) if len(queries) > 1 else 0.0
        points.append(
            CurvePoint(
                way=one.way,
                temperature=one.temperature,
                num_thoughts=one.num_thoughts,
                ndcg=interval.mean,
                ci_low=float(interval.low or 0.0),
                ci_high=float(interval.high or 0.0),
                tokens=one.tokens,
                cpu_ms=_cpu_ms(one, timed) if num_timed else None,
                difference=test.difference,
                difference_low=test.low,
                difference_high=test.high,
                p=float(p[i]),
                detectable=POWER * spread / len(queries) ** 0.5,
                num_queries=len(queries),
            )
        )
    return points


def _cpu_ms(asked: _Asked, timed: Queries) -> float:
    histories = timed.histories()
    clock = time.process_time()
    asked.recommender.score(histories)
    return 1000.0 * (time.process_time() - clock) / len(timed)


def curve_markdown(points: Sequence[CurvePoint]) -> str:
    """Return the curve as a table, for ``docs/`` and people."""
    lines = [
        "| thoughts | temperature | NDCG@10 | tokens | CPU ms | over greedy | p (Holm) |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for one in points:
        name = one.way if one.way != "sampled" else str(one.num_thoughts)
        heat = f"{one.temperature:g}" if one.way == "sampled" else "-"
        cpu = "-" if one.cpu_ms is None else f"{one.cpu_ms:.1f}"
        change = "-" if one.way == "greedy" else (
            f"{one.difference:+.4f} [{one.difference_low:+.4f}, {one.difference_high:+.4f}]"
        )  # fmt: skip
        p = "-" if one.way == "greedy" else f"{one.p:.3f}"
        lines.append(
            f"| {name} | {heat} | {one.ndcg:.4f} [{one.ci_low:.4f}, {one.ci_high:.4f}] | "
            f"{one.tokens:.1f} | {cpu} | {change} | {p} |"
        )
    seen = max((one.detectable for one in points if one.way == "sampled"), default=0.0)
    lines += ["", f"{points[0].num_queries:,} queries; a difference of {seen:.4f} would be seen "
              "(power .8, p < .05, one test alone) in every sampled row."]  # fmt: skip
    return "\n".join(lines) + "\n"

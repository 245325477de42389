"""What happens to the target when a thought, or what it rests on, is taken away or changed.

Every condition is scored by the model that wrote the thoughts, on the same queries, and compared
with its own thought query by query. Where a condition can be met in several ways (each look-up left
out once), a query's value is the mean over them. Intervals resample users.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy.special import log_softmax

from reasonrec.evaluation.faithfulness.edits import (
    Thought,
    assemble,
    cut_after,
    filler,
    shuffled_pieces,
    shuffled_tokens,
    unpointed,
    without_chain,
    without_piece,
)
from reasonrec.evaluation.significance import bootstrap_intervals, resampling_users
from reasonrec.metrics import metric_values
from reasonrec.models.ranking import DEFAULT_MASK, Mask, distinct_events, rank_targets, top_k
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.recommenders import NoThinkRecommender, score_found, score_given
from reasonrec.records import Histories
from reasonrec.rng import stream

OWN = "own"
CONDITIONS = {
    OWN: "the thought that the model wrote",
    "removed": "no thought at all: ranking with the state after the prompt",
    "empty": "a thought of no words",
    "filler": "a full stop over and over, as long as the thought",
    "swapped": "the thought of another user, look-ups and all",
    "shuffled-pieces": "the same sentences and look-ups in another order",
    "shuffled-tokens": "all tokens in a random order; found titles stay whole",
    "unpointed": "the same words, but found items add nothing to their own scores",
    "wordless": "what the thought found, beside the state before it: no words",
    "without-look-up": "each look-up left out once",
    "without-chain": "each found item left out once",
    "without-target-chain": "the found item that is the target left out, where there is one",
    "without-cited": "each history item that the thought asks about left out of the prompt once",
    "without-uncited": "the nearest history item that it does not ask about, once for each",
}
"""What the model is handed, in the order of the report; ``cut-K`` keeps the first K pieces."""
MEASURES = ("log_prob", "log2_rank", "ndcg@10", "hit@10", "top10_kept")
FILLER = "."
_BLOCK = 32


@dataclass(frozen=True)
class Effect:
    """One measure under one condition, beside the same queries with the model's own thought."""

    condition: str
    measure: str
    value: float
    """Mean over queries under the condition."""
    own: float
    """Mean over the same queries with the model's own thought."""
    change: float
    """``value - own``, paired."""
    ci_low: float
    """95 % bootstrap interval of the change over users."""
    ci_high: float
    n: int
    """Queries in which the condition could be met."""
    num_cases: int
    """Times that the model was asked."""


@dataclass(frozen=True)
class _Case:
    """One question to the model."""

    row: int
    """Which of the sampled queries."""
    condition: str
    thought: Thought | None
    """None ranks without a thought."""
    left_out: int = -1
    """History item that the prompt lacks; -1 for none."""
    is_wordless: bool = False
    """Rank with what the thought found and the state before it."""


def score_conditions(
    model: ReasoningRecommender,
    histories: Histories,
    targets: np.ndarray,
    thoughts: Sequence[Thought],
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Return one row for every condition, query and way to meet it.

    Args:
        histories: Whole histories: they are what does not compete with the target, unless the
            model learned repeats (``head.repeats``).
        targets: (B,).
        thoughts: The model's own, one a query.
        seed: Draws orders and other users' thoughts.

    Returns:
        ``row``, ``condition``, ``log_prob`` (natural logarithm of the target's share of the softmax
        over the items that compete), ``rank``, ``top10_kept`` (share of the ten best items that
        are also among the ten best with the own thought).
    """
    shown = _last_items(histories, model.head.max_history)
    partner = partners(histories.user_index, seed)
    full_stop = model.writer.encode(FILLER)[0]
    tables = []
    for start in range(0, len(targets), _BLOCK):
        rows = range(start, min(start + _BLOCK, len(targets)))
        cases = [
            case
            for row in rows
            for case in _cases(
                row, thoughts, int(targets[row]), shown.row(row), partner[row],
                full_stop, model, seed,
            )
        ]  # fmt: skip
        tables.append(_answers(model, histories, shown, targets, cases))
        if progress:
            progress(rows.stop, len(targets))
    return pl.concat(tables)


def effects_of(
    cases: pl.DataFrame, user_index: np.ndarray, measures: Sequence[str] = MEASURES
) -> list[Effect]:
    """Return every measure of every condition, paired with the own thought of the same queries.

    Args:
        cases: As `score_conditions` returns them.
        user_index: Of every query, (B,); queries of one user are resampled together.
        measures: Columns of ``cases``, and what follows from the rank: ``log2_rank`` and metrics.
    """
    per_query = _per_query(cases, measures)
    own = per_query.filter(pl.col("condition") == OWN).sort("row")
    effects = []
    for condition in per_query["condition"].unique(maintain_order=True):
        found = per_query.filter(pl.col("condition") == condition).sort("row")
        effects += _paired(condition, found, own, user_index, measures)
    return effects


def cut_curve(
    cases: pl.DataFrame, user_index: np.ndarray, measures: Sequence[str] = MEASURES
) -> list[Effect]:
    """Return the effects of keeping 0, 1, 2, ... pieces, over all queries.

    A thought with no more pieces than are kept counts with its own values, so that all points of
    the curve speak of the same queries; ``num_cases`` says how many were really cut.
    """
    per_query = _per_query(cases, measures)
    own = per_query.filter(pl.col("condition") == OWN).sort("row")
    effects = []
    for kept in range(_most_cut(cases) + 1):
        cut = per_query.filter(pl.col("condition") == (f"cut-{kept}" if kept else "empty"))
        rest = own.filter(~pl.col("row").is_in(cut["row"].implode())).with_columns(
            num_cases=pl.lit(0, pl.Int64)
        )
        whole = pl.concat([cut, rest]).sort("row")
        effects += _paired(f"cut-{kept}", whole, own, user_index, measures)
    return effects


def partners(user_index: np.ndarray, seed: int) -> np.ndarray:
    """Return for every row another row of another user, -1 where there is none.

    A row lends its thought to about one other: the next of another user in a random order.
    """
    num_rows = len(user_index)
    order = stream(seed, "faithfulness/partners").permutation(num_rows)
    users = resampling_users(user_index)
    partner = np.full(num_rows, -1)
    for place, row in enumerate(order):
        for step in range(1, num_rows):
            other = order[(place + step) % num_rows]
            if users[other] != users[row]:
                partner[row] = other
                break
    return partner


def _cases(
    row: int,
    thoughts: Sequence[Thought],
    target: int,
    shown: np.ndarray,
    partner: int,
    full_stop: int,
    model: ReasoningRecommender,
    seed: int,
) -> Iterator[_Case]:
    """Yield every question about one query, its own thought first."""
    own, writer = thoughts[row], model.writer
    rng = stream(seed, "faithfulness/shuffle", row)
    yield _Case(row, OWN, own)
    yield _Case(row, "removed", None)
    yield _Case(row, "empty", Thought())
    yield _Case(row, "filler", filler(own, full_stop))
    if partner >= 0:
        yield _Case(row, "swapped", thoughts[partner])
    if len(own.pieces) > 1:
        yield _Case(row, "shuffled-pieces", shuffled_pieces(own, rng))
    if own.num_tokens > 1:
        yield _Case(row, "shuffled-tokens", shuffled_tokens(own, rng, writer))
    if model.pointer is not None and own.found:
        yield _Case(row, "unpointed", unpointed(own))
        yield _Case(row, "wordless", own, is_wordless=True)
    for kept in range(1, len(own.pieces)):
        yield _Case(row, f"cut-{kept}", cut_after(own, kept))
    for place, piece in enumerate(own.pieces):
        if piece.kind is not None:
            yield _Case(row, "without-look-up", without_piece(own, place))
        for chain, found in enumerate(piece.named):
            less = without_chain(own, place, chain, writer)
            yield _Case(row, "without-chain", less)
            if found.item_index == target:
                yield _Case(row, "without-target-chain", less)
    cited = [item for item in dict.fromkeys(own.via_items) if item in shown]
    for item in cited:
        yield _Case(row, "without-cited", own, item)
    for item in nearest_others(shown, cited):
        yield _Case(row, "without-uncited", own, item)


def nearest_others(shown: np.ndarray, cited: Sequence[int]) -> list[int]:
    """Return for every cited item the nearest one that is not cited, each once, older first."""
    others = {int(item): place for place, item in enumerate(shown) if int(item) not in set(cited)}
    chosen = []
    for item in cited:
        if not others:
            break
        place = int(np.flatnonzero(shown == item)[-1])
        nearest = min(others, key=lambda other: (abs(others[other] - place), others[other]))
        del others[nearest]
        chosen.append(nearest)
    return chosen


def _answers(
    model: ReasoningRecommender,
    histories: Histories,
    shown: Histories,
    targets: np.ndarray,
    cases: Sequence[_Case],
) -> pl.DataFrame:
    """Ask the model every question of a block and measure its answers."""
    row = np.array([case.row for case in cases])
    scores = np.empty((len(cases), model.num_items), np.float32)
    silent = np.array([case.thought is None for case in cases])
    scores[silent] = NoThinkRecommender(model).score(shown.take(row[silent])).scores
    wordless = np.array([case.is_wordless for case in cases])
    left_out = np.array([case.left_out for case in cases])
    for asked, score in ((wordless, score_found), (~silent & ~wordless, score_given)):
        thoughts = [one.thought for one, is_asked in zip(cases, asked, strict=True) if is_asked]
        given = [assemble(one, model.writer) for one in thoughts if one is not None]
        prompts = _without_items(shown.take(row[asked]), left_out[asked])
        scores[asked] = score(model, prompts, given)

    competing = histories.take(row)
    target = targets[row]
    mask: Mask = "none" if model.head.repeats else DEFAULT_MASK
    masked = scores.copy()
    if mask != "none":
        taken_by, taken = distinct_events(competing, model.num_items)
        keep = taken != target[taken_by]
        masked[taken_by[keep], taken[keep]] = -np.inf
    log_prob = log_softmax(masked, axis=1)[np.arange(len(cases)), target]
    rank = rank_targets(scores, target, histories=competing, mask=mask)
    best, _ = top_k(masked, 10)
    own = {case.row: set(best[i].tolist()) for i, case in enumerate(cases) if case.condition == OWN}
    kept = [
        len(own[case.row] & set(best[i].tolist())) / best.shape[1] for i, case in enumerate(cases)
    ]
    return pl.DataFrame(
        {
            "row": row.astype(np.int64),
            "condition": [case.condition for case in cases],
            "log_prob": log_prob.astype(np.float64),
            "rank": rank,
            "top10_kept": kept,
        }
    )


def _per_query(cases: pl.DataFrame, measures: Sequence[str]) -> pl.DataFrame:
    """Return the mean of every measure over the ways to meet a condition."""
    rank = cases["rank"].to_numpy()
    measured = cases.with_columns(
        pl.Series("log2_rank", np.log2(rank)),
        *(pl.Series(name, metric_values(name, rank)) for name in measures if "@" in name),
    )
    return measured.group_by("condition", "row", maintain_order=True).agg(
        *(pl.col(name).mean() for name in measures), pl.len().cast(pl.Int64).alias("num_cases")
    )


def _paired(
    condition: str,
    found: pl.DataFrame,
    own: pl.DataFrame,
    user_index: np.ndarray,
    measures: Sequence[str],
) -> list[Effect]:
    rows = found["row"].to_numpy()
    beside = own.filter(pl.col("row").is_in(found["row"].implode())).sort("row")
    values = found.select(measures).to_numpy()
    reference = beside.select(measures).to_numpy()
    intervals = bootstrap_intervals(
        values - reference,
        rng=stream(0, "faithfulness/bootstrap"),
        users=resampling_users(user_index[rows]),
    )
    return [
        Effect(
            condition=condition,
            measure=measure,
            value=float(values[:, m].mean()),
            own=float(reference[:, m].mean()),
            change=interval.mean,
            ci_low=float(interval.low or 0.0),
            ci_high=float(interval.high or 0.0),
            n=len(rows),
            num_cases=int(found["num_cases"].sum()),
        )
        for m, (measure, interval) in enumerate(zip(measures, intervals))
    ]


def _most_cut(cases: pl.DataFrame) -> int:
    cut = cases.filter(pl.col("condition").str.starts_with("cut-"))["condition"]
    return int(cut.str.strip_prefix("cut-").cast(pl.Int64).max() or 0)  # pyright: ignore[reportArgumentType]


def _last_items(histories: Histories, count: int) -> Histories:
    """Return what a prompt shows of every history: its last ``count`` items."""
    keep = np.arange(histories.offsets[-1]) >= np.repeat(
        histories.offsets[1:] - count, histories.lengths
    )
    return _kept(histories, keep)


def _without_items(histories: Histories, left_out: np.ndarray) -> Histories:
    """Return every history without one item, wherever it stands; -1 leaves out nothing."""
    return _kept(histories, histories.item_index != np.repeat(left_out, histories.lengths))


def _kept(histories: Histories, keep: np.ndarray) -> Histories:
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    lengths = np.bincount(owner[keep], minlength=len(histories))
    return replace(
        histories,
        item_index=histories.item_index[keep],
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rating=None if histories.rating is None else histories.rating[keep],
        timestamp=None if histories.timestamp is None else histories.timestamp[keep],
    )

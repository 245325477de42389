"""Leaks, found by planting: something is put where nothing may see it, and everything is searched.

A *canary* is an item that nobody else ever took. Each probe also has a control, the same canary
where it must be found: a probe that finds nothing anywhere would prove nothing.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reasonrec.data.dataset import Catalogue, Dataset, InteractionLog, Queries
from reasonrec.data.prepare import prepare
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.errors import DataError
from reasonrec.evaluation.audits.records import Audit, judged, share
from reasonrec.evaluation.candidates import draw_candidates
from reasonrec.graph.alike import people_alike
from reasonrec.graph.audit import draw_negatives, touched_keys
from reasonrec.graph.build import InteractionGraph
from reasonrec.graph.lookup import look_up
from reasonrec.graph.sampling import count_closable
from reasonrec.models.backbone import build_writer, catalogue_titles
from reasonrec.models.config import TinyConfig
from reasonrec.records import Histories
from reasonrec.rng import stream
from reasonrec.traces.config import OF_R2EC, ThoughtConfig, Together
from reasonrec.traces.evidence import QuestionBuilder
from reasonrec.traces.interaction_of_thought import label_is_hidden, student_prompt
from reasonrec.traces.questions import Question
from reasonrec.traces.reasoned_config import EvidenceConfig
from reasonrec.traces.together import fit_named, named_for
from reasonrec.traces.verbaliser import Verbaliser
from reasonrec.training.examples import WindowDataset, Windows

NUM_VIA = 10
"""Last items of a history that are looked up."""
_MOST_LINKS = 20_000
_EVERYBODY = 1 << 30
_MOST_PEOPLE = 50
_SHOWN = 50
"""Items that a prompt shows, as in ``HeadConfig``."""
UNTIMED = "The log has no times, so evidence can be kept out of training by the split alone."
CANARY = "Canary{}"  # a word of its own, so that no thought names it for reading like another


def leak_audits(
    dataset: Dataset, rows: np.ndarray, *, num_probes: int, seed: int, config: Mapping[str, Any]
) -> list[Audit]:
    """Return everything that planting and looking finds.

    Args:
        rows: Test queries whose prompts and evidence are read.
        config: Of the prepared data set, from its manifest: how it was split.
    """
    return [
        *future_edge_audits(dataset, num_probes=num_probes, seed=seed),
        together_edge_audit(dataset, num_probes=num_probes, seed=seed),
        *own_edge_audits(dataset, num_probes=num_probes, seed=seed),
        *planted_event_audits(dataset, config, num_probes=num_probes, seed=seed),
        *evidence_audits(dataset, rows, seed=seed),
        label_audit(dataset, rows[:num_probes], seed=seed),
    ]


# ---- an edge from the future ------------------------------------------------------------------


def future_edge_audits(dataset: Dataset, *, num_probes: int, seed: int) -> list[Audit]:
    """Return whether look-ups or chains see an edge that is not older than the question.

    For every probed query a new neighbour is added to the training log, who took the query's last
    history item and right after it the canary: once at the second of the question, which no
    evidence may see, and once a second before, which it must.
    """
    asked = _probed(dataset, num_probes=num_probes, seed=seed)
    if asked is None:
        return [judged("future-edge", None, UNTIMED, n=0)]
    found = {late: _sees_canary(dataset, asked, late=late) for late in (True, False)}
    return [
        judged(
            "future-edge", share(found[True]),
            "Share of the probed questions whose look-ups or chains follow an edge planted at the "
            "second of the question.",
            n=len(asked), fail_above=0.0,
        ),
        judged(
            "future-edge-control", share(found[False]),
            "The same with the edge one second before the question: it must be followed, else the "
            "probe shows nothing.",
            n=len(asked), fail_below=0.95,
        ),
    ]  # fmt: skip


def together_edge_audit(dataset: Dataset, *, num_probes: int, seed: int) -> Audit:
    """Return how often what goes with a whole history has learned from an edge of the future.

    Thoughts of R²ec ask it by default (``Together``). It is fitted on the whole training log, as
    the baseline of its name is, so a neighbour's edge counts whenever it was made. Questions and
    neighbours are those of `future_edge_audits`. A question that is not older than any training
    event has no future in the log, and counts as one that nothing was learned from.
    """
    name = "future-edge-together"
    asked = _probed(dataset, num_probes=num_probes, seed=seed)
    if asked is None:
        return judged(name, None, UNTIMED, n=0)
    train = dataset.train
    assert asked.timestamp is not None and train.timestamp is not None
    assert OF_R2EC.together is not None
    has_future = asked.timestamp < train.timestamp.max(initial=np.iinfo(np.int64).min)
    model = named_for(OF_R2EC.together, dataset.num_items)
    learned = np.zeros(len(asked), bool)
    if has_future.any():
        log = with_neighbours(dataset, asked, seconds_before=0)
        try:
            learned = has_future & weighs_canary(dataset, log, asked, model)
        except DataError as error:
            return judged(name, None, f"{model} cannot be fitted here: {error}", n=0)
    return judged(
        name, share(learned),
        "Share of the probed questions that are older than a training event and for which what "
        f"goes with the whole history ({model}, fitted on all of training, as the baseline is) "
        "weighs an item higher for an edge planted at the second of the question.",
        n=len(asked), warn_above=0.0,
    )  # fmt: skip


def weighs_canary(
    dataset: Dataset, log: InteractionLog, asked: Queries, model: Together
) -> np.ndarray:
    """Return for which questions the model weighs their canary above a lone item. (P,), bool.

    The lone item is taken by somebody who took nothing else. It is as popular as a canary and goes
    with nothing, so whatever a canary is weighed above it comes from what the neighbour took.

    Args:
        log: Of `with_neighbours`; one fit serves all questions.
    """
    P, N = len(asked), dataset.num_items
    lone = N + P
    log = InteractionLog(
        user_index=np.append(log.user_index, np.int32(log.num_users)),
        item_index=np.append(log.item_index, np.int32(lone)),
        num_users=log.num_users + 1,
    )
    catalogue = Catalogue(with_canaries(dataset.catalogue.table, P + 1))
    planted = replace(dataset, catalogue=catalogue, train=log)
    fitted = fit_named(model, planted, recency_power=OF_R2EC.together_power)
    scores = fitted.score(asked.histories()).scores
    return scores[np.arange(P), N + np.arange(P)] > scores[:, lone]


def _probed(dataset: Dataset, *, num_probes: int, seed: int) -> Queries | None:
    """Return the test queries that an edge is planted beside; None where the log has no times."""
    queries = dataset.test
    if queries.timestamp is None or dataset.train.timestamp is None:
        return None
    begun = np.flatnonzero(queries.history_stop > queries.history_start)
    rows = np.sort(stream(seed, "audit/future-edge").permutation(begun)[:num_probes])
    return queries.take(rows)


def with_neighbours(dataset: Dataset, asked: Queries, *, seconds_before: int) -> InteractionLog:
    """Return the training log with a new neighbour for each of P questions.

    The p-th, user ``num_users + p``, took the question's last history item and then item
    ``num_items + p``, so many seconds before the question.
    """
    train = dataset.train
    assert asked.timestamp is not None and train.timestamp is not None
    P, N, U = len(asked), dataset.num_items, dataset.num_users
    via = asked.log_item_index[asked.history_stop - 1]
    canary = (N + np.arange(P)).astype(np.int32)
    at = asked.timestamp - seconds_before
    return InteractionLog(
        user_index=np.concatenate(
            [train.user_index, np.repeat(np.arange(U, U + P), 2).astype(np.int32)]
        ),
        item_index=np.concatenate(
            [train.item_index, np.stack([via, canary], 1).ravel().astype(np.int32)]
        ),
        num_users=U + P,
        timestamp=np.concatenate([train.timestamp, np.stack([at - 1, at], 1).ravel()]),
    )


def _sees_canary(dataset: Dataset, asked: Queries, *, late: bool) -> np.ndarray:
    """Return which questions reach their own canary by look-ups or chains. (P,), bool."""
    P, N = len(asked), dataset.num_items
    log = with_neighbours(dataset, asked, seconds_before=0 if late else 1)
    graph = InteractionGraph.build(log, N + P)
    histories, canary = asked.histories(), (N + np.arange(P)).astype(np.int32)
    return _looked_up(graph, histories, canary) | (count_closable(graph, histories, canary) > 0)


def _looked_up(graph: InteractionGraph, histories: Histories, wanted: np.ndarray) -> np.ndarray:
    """Return which rows find their wanted item after one of their last items or at people alike."""
    found = np.zeros(len(histories), bool)
    for age in range(NUM_VIA):
        place = histories.offsets[1:] - 1 - age
        exists = place >= histories.offsets[:-1]
        via = np.full(len(histories), -1, np.int32)
        via[exists] = histories.item_index[place[exists]]
        table = look_up(
            graph,
            user_index=histories.user_index,
            via_item=via,
            exclude_items=(histories.item_index, histories.offsets),
            asked_at=histories.asked_at,
            seed=0,
            num_links=min(graph.num_items, _MOST_LINKS),
            max_neighbours=_EVERYBODY,
            reverse_share=1.0,
        )
        found |= (table.item_index == wanted[:, None]).any(axis=1)
    people = people_alike(
        graph,
        user_index=histories.user_index,
        history=(histories.item_index, histories.offsets),
        asked_at=histories.asked_at,
        num_people=_MOST_PEOPLE,
        num_links=_MOST_PEOPLE,
    )
    return found | (people.item_index == wanted[:, None, None]).any(axis=(1, 2))


# ---- the question's own edge ------------------------------------------------------------------


def own_edge_audits(dataset: Dataset, *, num_probes: int, seed: int) -> list[Audit]:
    """Return whether the evidence about a training event is made from that very event.

    The item of each probed training event becomes a canary. Nobody but the user has an edge to it,
    so look-ups and chains from the history before the event must not find it.
    """
    train = dataset.train
    position = np.arange(len(train)) - train.user_offsets[train.user_index]
    events = np.flatnonzero(position >= 1)
    events = np.sort(stream(seed, "audit/own-edge").permutation(events)[:num_probes])
    if not len(events):
        return [judged("own-edge", None, "No training event has another before it.", n=0)]
    canary = (dataset.num_items + np.arange(len(events))).astype(np.int32)
    items = train.item_index.copy()
    items[events] = canary
    planted = replace(train, item_index=items)
    graph = InteractionGraph.build(planted, dataset.num_items + len(events))
    histories = planted.histories_before(events)
    found = _looked_up(graph, histories, canary) | (count_closable(graph, histories, canary) > 0)
    return [
        judged(
            "own-edge", share(found),
            "Share of the probed training events whose evidence follows the edge that is to be "
            "predicted.",
            n=len(events), fail_above=0.0,
        )
    ]  # fmt: skip


# ---- a held-out event, followed through the whole road ----------------------------------------


@dataclass(frozen=True)
class Sightings:
    """Where held-out canaries turned up; every number must be 0 but the last."""

    in_train: int
    """Events of the training log, and so counts, graph and every baseline."""
    in_windows: int
    """Tokens and labels of training examples: prompts, thoughts, targets."""
    in_prompts: int
    """Items of test prompts, of validation prompts and labels, and what their thoughts found."""
    as_targets: int
    """Test queries that ask for one: where they belong."""


def planted_event_audits(
    dataset: Dataset, config: Mapping[str, Any], *, num_probes: int, seed: int
) -> list[Audit]:
    """Return whether a held-out event reaches anything that training or prompts are made of.

    The last test target of each probed user becomes a canary, the log is prepared anew, and the
    split, the training examples (prompts, thoughts, labels) and all prompts are searched. A given
    split is published, not made here: there the canaries take the targets' places in the queries.
    """
    last = last_queries(dataset.test)
    last = np.sort(stream(seed, "audit/held-out").permutation(last)[:num_probes])
    if not len(last):
        return [judged("held-out-event", None, "There is no test query to plant in.", n=0)]
    found = sightings(planted_dataset(dataset, last, config, seed=seed), dataset.num_items)
    places = (found.in_train, found.in_windows, found.in_prompts)
    return [
        judged(
            "held-out-event", float(sum(places)),
            "Places where planted held-out events were seen: {} in the training log, {} in "
            "training examples, {} in prompts and thoughts of validation and test.".format(*places),
            n=len(last), fail_above=0.0,
        ),
        judged(
            "held-out-event-control", found.as_targets / len(last),
            "Share of the planted events that are test targets, as they must be.",
            n=len(last), fail_below=1.0,
        ),
    ]  # fmt: skip


def last_queries(queries: Queries) -> np.ndarray:
    """Return the rows that ask for the last event of each known user."""
    known = np.flatnonzero(queries.user_index >= 0)
    order = known[np.lexsort((queries.history_stop[known], queries.user_index[known]))]
    users = queries.user_index[order]
    return np.sort(order[np.append(users[1:] != users[:-1], True)]) if len(order) else order


def planted_dataset(
    dataset: Dataset, rows: np.ndarray, config: Mapping[str, Any], *, seed: int
) -> Dataset:
    """Return the data set with a canary as target of the named test queries.

    Canaries are the last ``len(rows)`` items of the catalogue.
    """
    N = dataset.num_items
    table = with_canaries(dataset.catalogue.table, len(rows))
    target = dataset.test.target.copy()
    target[rows] = N + np.arange(len(rows))
    if dataset.split == "given":
        test = replace(dataset.test, target=target)
        return replace(dataset, catalogue=Catalogue(table), test=test)
    log = whole_log(dataset, target)
    kept = {key: config[key] for key in ("valid_frac", "test_frac", "min_history") if key in config}
    settings = PrepareConfig(
        name=dataset.name, split=config["split"], keep_duplicates=True, keep_unseen_items=True,
        **kept,
    )  # fmt: skip
    ids, users = table["item_id"], pl.Series(dataset.user_ids, dtype=pl.String)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        raw.mkdir()
        log.select(
            users.gather(log["user_index"]).alias("user_id"),
            ids.gather(log["item_index"]).alias("item_id"),
            *(name for name in ("timestamp", "position") if name in log.columns),
        ).write_parquet(raw / "interactions.parquet")
        table.select(
            "item_id", "title", *(c for c in ("categories", "description") if c in table.columns)
        ).write_parquet(raw / "items.parquet")
        return prepare(raw, Path(folder) / "data", settings, seed)


def with_canaries(items: pl.DataFrame, num_canaries: int) -> pl.DataFrame:
    """Return the item table with so many canaries behind it."""
    canaries = pl.DataFrame(
        {
            "item_id": [f"canary-{i}" for i in range(num_canaries)],
            "title": [CANARY.format(i) for i in range(num_canaries)],
        }
    )
    return pl.concat([items, canaries], how="diagonal")


def whole_log(dataset: Dataset, test_target: np.ndarray) -> pl.DataFrame:
    """Return all events of a data set that was split here, user by user, with other test targets.

    Columns ``user_index``, ``item_index``, and ``timestamp``, or ``position`` without times.
    """
    train, parts = dataset.train, []
    sequence: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    for queries, target in (
        (dataset.valid, dataset.valid.target),
        (dataset.test, test_target),
    ):
        for row in last_queries(queries):
            span = slice(queries.history_start[row], queries.history_stop[row])
            items = np.append(queries.log_item_index[span], target[row])
            times = None
            if queries.timestamp is not None and queries.log_timestamp is not None:
                times = np.append(queries.log_timestamp[span], queries.timestamp[row])
            sequence[int(queries.user_index[row])] = items, times
    for user in range(dataset.num_users):
        span = slice(train.user_offsets[user], train.user_offsets[user + 1])
        times = None if train.timestamp is None else train.timestamp[span]
        items, times = sequence.get(user, (train.item_index[span], times))
        order = (
            {"position": np.arange(len(items), dtype=np.int64)}
            if times is None
            else {"timestamp": times.astype(np.int64)}
        )
        parts.append(
            pl.DataFrame(
                {
                    "user_index": np.full(len(items), user, np.int64),
                    "item_index": items.astype(np.int64),
                    **order,
                }
            )
        )
    return pl.concat(parts)


def sightings(dataset: Dataset, num_real: int) -> Sightings:
    """Return where items from ``num_real`` on turn up in everything that is read or trained on."""
    train = dataset.train
    writer = build_writer(dataset.catalogue, TinyConfig())
    graph = InteractionGraph.build(train, dataset.num_items)
    verbaliser = Verbaliser(writer, graph, dataset.catalogue, ThoughtConfig())
    is_target = dataset.test.target >= num_real
    users = np.unique(dataset.test.user_index[is_target])
    begin, end = train.user_offsets[users], train.user_offsets[users + 1]
    begin, end = begin[end > begin], end[end > begin]
    windows = Windows(np.maximum(begin, end - 1 - _SHOWN), end - 1)
    examples = WindowDataset(train, windows, writer, verbaliser=verbaliser, num_branches=2, seed=0)
    tokens = writer.title_token_ids
    assert tokens is not None  # the tiny tokenizer gives every title a token of its own
    hidden = tokens[num_real:]
    in_windows = 0
    for start in range(0, len(windows), 64):
        batch = examples.__getitems__(range(start, min(start + 64, len(windows))))
        in_windows += sum(
            int(np.isin(batch[name].numpy(), hidden).sum()) for name in ("trunk_ids", "branch_ids")
        )
        in_windows += sum(
            int((batch[name].numpy() >= num_real).sum())
            for name in ("next_item", "named_item", "target")
        )
    in_prompts = int((dataset.valid.target >= num_real).sum())
    for queries in (dataset.valid, dataset.test):
        asked = queries.take(np.flatnonzero(np.isin(queries.user_index, users)))
        histories = asked.histories()
        in_prompts += int((histories.item_index >= num_real).sum())
        thoughts = verbaliser.write(histories, seed=0, keys=np.arange(len(histories)))
        in_prompts += sum(int(np.isin(row, hidden).sum()) for row in thoughts.tokens)
    return Sightings(
        in_train=int((train.item_index >= num_real).sum()),
        in_windows=in_windows,
        in_prompts=in_prompts,
        as_targets=int(is_target.sum()),
    )


# ---- what prompts and evidence say of the target ----------------------------------------------


def evidence_audits(dataset: Dataset, rows: np.ndarray, *, seed: int) -> list[Audit]:
    """Return how often prompt and evidence name the target, beside an item as popular.

    Args:
        rows: Test queries to read.
    """
    queries = dataset.test.take(rows)
    histories = queries.histories(last=_SHOWN)
    owner = np.repeat(np.arange(len(rows)), histories.lengths)
    shown = np.zeros(len(rows), bool)
    shown[owner[histories.item_index == queries.target[owner]]] = True
    graph = InteractionGraph.build(dataset.train, dataset.num_items)
    whole = queries.histories()
    other = draw_negatives(dataset, queries, touched_keys(dataset), kind="popularity", seed=seed)
    found = {}
    for name, wanted in (("target", queries.target), ("other", np.where(other < 0, -2, other))):
        found[name] = np.zeros(len(rows), bool)
        for start in range(0, len(rows), 256):
            part = np.arange(start, min(start + 256, len(rows)))
            found[name][part] = _answered(graph, whole.take(part), wanted[part])
    return [
        judged(
            "target-in-prompt", share(shown),
            "Share of the test prompts that name their target: the user took it before.",
            n=len(rows), warn_above=0.05,
        ),
        judged(
            "target-in-evidence", share(found["target"]),
            f"Share of the test questions whose target is among the answers to look-ups of their "
            f"last {NUM_VIA} items: what a thought can find.",
            n=len(rows),
        ),
        judged(
            "other-in-evidence", share(found["other"][other >= 0]),
            "The same for an untouched item drawn by popularity: near the row above, evidence says "
            "no more than popularity.",
            n=int((other >= 0).sum()),
        ),
    ]  # fmt: skip


def _answered(graph: InteractionGraph, histories: Histories, wanted: np.ndarray) -> np.ndarray:
    """Return which rows find their wanted item among the links that a thought would be shown."""
    settings = ThoughtConfig()
    found = np.zeros(len(histories), bool)
    for age in range(NUM_VIA):
        place = histories.offsets[1:] - 1 - age
        exists = place >= histories.offsets[:-1]
        via = np.full(len(histories), -1, np.int32)
        via[exists] = histories.item_index[place[exists]]
        table = look_up(
            graph, user_index=histories.user_index, via_item=via,
            exclude_items=(histories.item_index, histories.offsets), asked_at=histories.asked_at,
            seed=0, num_links=settings.num_links, window=settings.steps_after,
            max_neighbours=settings.max_neighbours, reverse_share=settings.reverse_share,
        )  # fmt: skip
        found |= (table.item_index == wanted[:, None]).any(axis=1)
    return found


# ---- R2Rec's questions ------------------------------------------------------------------------


def label_audit(dataset: Dataset, rows: np.ndarray, *, seed: int) -> Audit:
    """Return how often R2Rec's questions about test queries show what is asked.

    Args:
        rows: Test queries to ask about. Targets that the user took before are left out: the
            history holds those by right.
    """
    asked = dataset.test.take(rows)
    histories = asked.histories()
    owner = np.repeat(np.arange(len(rows)), histories.lengths)
    is_new = np.ones(len(rows), bool)
    is_new[owner[histories.item_index == asked.target[owner]]] = False
    asked = asked.take(np.flatnonzero(is_new))
    titles, config = catalogue_titles(dataset.catalogue), EvidenceConfig()
    try:
        builder = QuestionBuilder(dataset.catalogue, titles, dataset.train, config)
    except DataError as error:
        return judged("label-in-question", None, f"R2Rec cannot ask here: {error}", n=0)
    drawn = draw_candidates(
        replace(dataset, test=asked), "test", num_candidates=config.num_candidates, seed=seed
    )
    histories, keys = asked.histories(), np.arange(len(asked))
    labels = [titles[item] for item in asked.target]
    questions = builder.build(
        histories, drawn.item_index, task="likes", keys=keys, labels=labels, seed=seed
    )
    if builder.scale:
        labels = [f"{builder.scale[-1]:g}"] * len(asked)
        questions += builder.build(
            histories, asked.target[:, None], task="rated", keys=keys, labels=labels, seed=seed
        )
    return shown_labels(questions)


def shown_labels(questions: Sequence[Question]) -> Audit:
    """Return how often the evidence of a question is its answer, or its prompt depends on it."""
    told = [
        not label_is_hidden(one) or student_prompt(one) != student_prompt(replace(one, label=None))
        for one in questions
    ]
    return judged(
        "label-in-question", share(np.array(told, bool)),
        "Share of R2Rec's questions about test queries (which of 20, and where there are ratings "
        "which rating) whose history or chains hold the edge that is asked, or whose prompt "
        "changes with the answer. Targets taken before are left out.",
        n=len(told), fail_above=0.0,
    )  # fmt: skip

"""The faithfulness stage: one thinking model in, a report on its thoughts out.

The folder holds ``faithfulness.json`` (all numbers), ``per_query.parquet`` (every question to the
model), ``thoughts.parquet`` (every thought, what it named and found), ``faithfulness.md``, and last
``manifest.json``.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset, Queries
from reasonrec.errors import DataError
from reasonrec.evaluation.faithfulness.config import FaithfulnessConfig
from reasonrec.evaluation.faithfulness.edits import Thought, thoughts_of
from reasonrec.evaluation.faithfulness.effects import (
    cut_curve,
    effects_of,
    partners,
    score_conditions,
)
from reasonrec.evaluation.faithfulness.grounding import Named, Names, groundedness
from reasonrec.evaluation.faithfulness.reasoned import measure_reasoned
from reasonrec.evaluation.faithfulness.reasons import (
    Agreement,
    agreement,
    has_reasons,
    num_titles,
    random_lookups,
    true_reasons,
)
from reasonrec.evaluation.faithfulness.report import (
    Faithfulness,
    Habits,
    measured_cost,
    read_faithfulness,
)
from reasonrec.evaluation.protocol import chosen_queries
from reasonrec.manifest import is_finished, make_folder, stopwatch, write_manifest, writes_alone
from reasonrec.models.reasoned_ranking import ReasonedRanker
from reasonrec.models.recommenders import (
    GatedThinkingRecommender,
    NoThinkRecommender,
    ThinkingRecommender,
)
from reasonrec.records import Histories, Lookup

Thinker = ThinkingRecommender | GatedThinkingRecommender | ReasonedRanker
"""Models whose thoughts can be asked about."""
STAGE = "faithfulness"
FILES = ("faithfulness.json", "per_query.parquet", "thoughts.parquet", "faithfulness.md")
GATE_NOTE = (
    "The gate stood open: every query was thought about, also those for which the model would "
    "write no thought."
)
_BATCH = 128


@writes_alone
def write_faithfulness(
    recommender: Thinker,
    dataset: Dataset,
    out: Path,
    config: FaithfulnessConfig,
    *,
    source: str,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Faithfulness:
    """Return and write the report on one thinking model; a finished folder is only read.

    Args:
        source: Fingerprint of the model, for the manifest.
        seed: Draws the shuffles, the swaps and the random questions.

    Raises:
        DataError: The part has no queries.
        CheckpointError: ``out`` holds another run.
    """
    out = make_folder(out)
    inputs = {"data": dataset.fingerprint, "model": source}
    settings = config.model_dump(mode="json")
    if is_finished(out, stage=STAGE, inputs=inputs, config=settings, seed=seed):
        return read_faithfulness(out)
    if len(dataset.queries(config.part)) == 0:
        raise DataError(
            f"{dataset.name} must hold {config.part} queries to think about; it has none"
        )
    with stopwatch() as spent:
        if isinstance(recommender, ReasonedRanker):
            measured = measure_reasoned(recommender, dataset, config, seed=seed, progress=progress)
        else:
            measured = measure_faithfulness(
                recommender, dataset, config, seed=seed, progress=progress
            )
        report, cases, thoughts = measured
        text = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        (out / "faithfulness.json").write_text(text + "\n", encoding="utf-8")
        cases.write_parquet(out / "per_query.parquet")
        thoughts.write_parquet(out / "thoughts.parquet")
        from reasonrec.evaluation.faithfulness.table import faithfulness_markdown

        (out / "faithfulness.md").write_text(faithfulness_markdown(report), encoding="utf-8")
    write_manifest(
        out, stage=STAGE, inputs=inputs, config=settings, outputs=list(FILES), seconds=spent[0],
        seed=seed,
    )  # fmt: skip
    return report


def measure_faithfulness(
    recommender: ThinkingRecommender | GatedThinkingRecommender,
    dataset: Dataset,
    config: FaithfulnessConfig,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Faithfulness, pl.DataFrame, pl.DataFrame]:
    """Return the report, a row for every question to the model, and a row for every thought.

    A model that averages several thoughts is asked about its first, one with a gate about the
    thoughts that it would write with the gate open.
    """
    name, notes = recommender.name, ()
    if isinstance(recommender, GatedThinkingRecommender):
        notes = (GATE_NOTE,)
        recommender = recommender.thinking
    recommender = replace(recommender, num_samples=1)
    queries = dataset.queries(config.part)
    rows = chosen_queries(queries, None, config.num_queries, config.part)
    asked = queries.take(rows)
    histories, model = asked.histories(), recommender.model
    written = _write(recommender, histories)
    cases = score_conditions(
        model, histories, asked.target, written.thoughts, seed=seed, progress=progress
    )
    names = Names(model.titles, dataset.catalogue, dataset.user_ids)
    named = [names.named(text) for text in written.texts]
    shown = [histories.row(b)[-model.head.max_history :] for b in range(len(histories))]
    partner = partners(asked.user_index, seed)
    evidence = [
        names.evidence(int(asked.user_index[b]), shown[b], written.lookups[b])
        for b in range(len(histories))
    ]
    reasons: list[Agreement] = []
    if has_reasons(dataset):
        reasons = agreement(
            true_reasons(dataset, asked), asked.target, asked.user_index, written.lookups, named,
            chance_lookups=random_lookups(
                recommender.verbaliser, histories, shown,
                [num_titles(one) for one in written.lookups], seed=seed,
            ),
            partner=partner, names=names,
        )  # fmt: skip
    silent = NoThinkRecommender(model, name=f"{recommender.name}/silent")
    clock = time.perf_counter()
    silent.score(histories)
    silent_seconds = time.perf_counter() - clock
    costs = tuple(
        measured_cost(
            method, asked, tokens=tokens, seconds=seconds, num_timed=config.num_timed_users
        )
        for method, tokens, seconds in (
            (recommender, _mean(written.num_tokens), written.seconds),
            (silent, 0.0, silent_seconds),
        )
    )
    report = Faithfulness(
        dataset=dataset.name,
        split=dataset.split,
        part=config.part,
        method=name,
        seed=recommender.seed,
        num_queries=len(rows),
        effects=tuple(effects_of(cases, asked.user_index)),
        curve=tuple(cut_curve(cases, asked.user_index)),
        groundedness=tuple(groundedness(named, evidence, partner, asked.user_index)),
        reasons=tuple(reasons),
        costs=costs,
        habits=_habits(written, asked.target),
        notes=notes,
    )
    table = _thoughts_table(dataset, rows, asked, written, named)
    of_query = pl.DataFrame(
        {
            "row": np.arange(len(rows), dtype=np.int64),
            "query": rows.astype(np.int64),
            "user_index": asked.user_index,
            "target": asked.target,
        }
    )
    return report, of_query.join(cases, on="row", maintain_order="right").drop("row"), table


@dataclass(frozen=True)
class _Written:
    """B thoughts as the model wrote them."""

    thoughts: list[Thought]
    texts: list[str]
    lookups: list[list[Lookup]]
    is_truncated: list[bool]
    num_tokens: list[int]
    seconds: float


def _write(recommender: ThinkingRecommender, histories: Histories) -> _Written:
    thoughts: list[Thought] = []
    texts: list[str] = []
    lookups: list[list[Lookup]] = []
    is_truncated: list[bool] = []
    num_tokens: list[int] = []
    clock = time.perf_counter()
    for start in range(0, len(histories), _BATCH):
        part = histories.take(np.arange(start, min(start + _BATCH, len(histories))))
        written = recommender.write(part)
        thoughts += thoughts_of(written, recommender.model.writer)
        texts += [recommender.text(written, row) for row in range(len(part))]
        lookups += written.evidence
        is_truncated += written.is_truncated.tolist()
        num_tokens += written.lengths.tolist()
    seconds = time.perf_counter() - clock
    return _Written(thoughts, texts, lookups, is_truncated, num_tokens, seconds)


def _habits(written: _Written, targets: np.ndarray) -> Habits:
    found = [len(one.found) for one in written.thoughts]
    return Habits(
        num_thoughts=len(written.texts),
        num_distinct=len(set(written.texts)),
        mean_pieces=_mean([len(one.pieces) for one in written.thoughts]),
        mean_lookups=_mean([one.num_lookups for one in written.thoughts]),
        mean_found=_mean(found),
        share_truncated=_mean(written.is_truncated),
        share_target_found=_mean(
            [int(target) in one.found for target, one in zip(targets, written.thoughts)]
        ),
        share_without_evidence=_mean([count == 0 for count in found]),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _thoughts_table(
    dataset: Dataset, rows: np.ndarray, asked: Queries, written: _Written, named: Sequence[Named]
) -> pl.DataFrame:
    titles = dataset.catalogue.titles
    return pl.DataFrame(
        {
            "query": rows.astype(np.int64),
            "user_id": [dataset.user_ids[u] if u >= 0 else None for u in asked.user_index],
            "target_title": [titles[t] for t in asked.target],
            "thought": written.texts,
            "num_tokens": written.num_tokens,
            "num_pieces": [len(one.pieces) for one in written.thoughts],
            "asked": [[titles[i] for i in one.via_items] for one in written.thoughts],
            "found": [sorted(titles[i] for i in one.found) for one in written.thoughts],
            "target_found": [
                int(target) in one.found for target, one in zip(asked.target, written.thoughts)
            ],
            "attributes": [[word or "?" for word in one.attributes] for one in named],
        },
        schema_overrides={
            "user_id": pl.String, "asked": pl.List(pl.String), "found": pl.List(pl.String),
            "attributes": pl.List(pl.String),
        },
    )  # fmt: skip

"""Reasoned traces on disk: ``traces.parquet``, a row a question, kept or not, with provenance.

Columns: ``key`` (row of the training log), ``task``, ``user_id``, ``candidates`` (item ids),
``label``, ``prompt`` (the student's), ``thought``, ``answer`` (as the student writes it), ``steps``
(the stages of each chain), ``together``, ``chains`` (ids and ratings on their edges), ``recitals``
(what follows which cue by itself), ``run`` (free or guided), ``first_answer``,
``num_free_misses``, ``cure``, ``kept``, ``reason``, ``reply_problems``, ``has_hostile_item``,
``teacher``, ``masking``, ``voice``, ``prompt_version``, ``seed``, ``prompt_hashes`` and
``call_seeds`` (one a call), ``prompt_tokens``, ``reply_tokens``, ``cost``.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from reasonrec.data.dataset import Dataset
from reasonrec.errors import TraceError
from reasonrec.manifest import check_outputs, read_manifest
from reasonrec.traces.interaction_of_thought import (
    PROMPT_VERSION,
    student_answer,
    student_prompt,
)
from reasonrec.traces.progressive import Draft
from reasonrec.traces.questions import ChainFacts
from reasonrec.traces.reasoned_config import ReasonedTracesConfig, Task
from reasonrec.traces.recital import recitals_of

TRACES, STATISTICS = "traces.parquet", "statistics.json"
_CHAIN = pl.Struct(
    {
        "first_id": pl.String, "first": pl.String, "own_first": pl.Float32,
        "neighbour": pl.String, "neighbour_id": pl.String, "neighbour_first": pl.Float32,
        "second_id": pl.String, "second": pl.String, "neighbour_second": pl.Float32,
        "own_second": pl.Float32, "closes_on": pl.String,
    }
)  # fmt: skip
SCHEMA = {
    "key": pl.Int64, "task": pl.String, "user_id": pl.String, "candidates": pl.List(pl.String),
    "label": pl.String, "prompt": pl.String, "thought": pl.String, "answer": pl.String,
    "steps": pl.List(pl.List(pl.String)), "together": pl.String, "chains": pl.List(_CHAIN),
    "recitals": pl.List(pl.Struct({"cue": pl.String, "words": pl.String})),
    "run": pl.String, "first_answer": pl.String, "num_free_misses": pl.Int32, "cure": pl.String,
    "kept": pl.Boolean, "reason": pl.String, "reply_problems": pl.List(pl.String),
    "has_hostile_item": pl.Boolean, "teacher": pl.String, "masking": pl.String,
    "voice": pl.String, "prompt_version": pl.String, "seed": pl.Int64,
    "prompt_hashes": pl.List(pl.String), "call_seeds": pl.List(pl.Int64),
    "prompt_tokens": pl.Int64, "reply_tokens": pl.Int64, "cost": pl.Float64,
}  # fmt: skip


def table_of(
    drafts: Sequence[Draft],
    reasons: Sequence[str | None],
    dataset: Dataset,
    config: ReasonedTracesConfig,
    *,
    teacher_name: str,
    task: Task,
    seed: int,
) -> pl.DataFrame:
    """Return the table of all traces, in the order of the questions."""
    asking = config.asking
    voice = "own-words" if asking.own_words else ("one-call" if asking.one_call else "stages")
    rows = []
    for draft, reason in zip(drafts, reasons):
        question, thought = draft.question, draft.thought
        rows.append(
            {
                "key": question.key,
                "task": task,
                "user_id": dataset.user_ids[question.user_index],
                "candidates": [_id(dataset, item.item_index) for item in question.candidates],
                "label": question.label,
                "prompt": student_prompt(question),
                "thought": thought.text if thought else None,
                "answer": student_answer(question, thought.answer) if thought else None,
                "steps": [list(chain.parts) for chain in thought.chains] if thought else [],
                "together": thought.together if thought else None,
                "chains": [_chain(dataset, chain) for chain in question.chains],
                "recitals": [asdict(one) for one in recitals_of(question)],
                "run": draft.run,
                "first_answer": draft.first_answer,
                "num_free_misses": draft.num_free_misses,
                "cure": draft.cure,
                "kept": reason is None,
                "reason": reason,
                "reply_problems": draft.reply_problems,
                "has_hostile_item": any(item.is_hostile for item in question.items),
                "teacher": teacher_name,
                "masking": asking.masking,
                "voice": voice,
                "prompt_version": PROMPT_VERSION,
                "seed": seed,
                "prompt_hashes": [request.key(teacher_name) for request in draft.requests],
                "call_seeds": [request.seed for request in draft.requests],
                "prompt_tokens": sum(reply.prompt_tokens for reply in draft.replies),
                "reply_tokens": sum(reply.reply_tokens for reply in draft.replies),
                "cost": sum(reply.cost for reply in draft.replies),
            }
        )
    return pl.DataFrame(rows, schema=SCHEMA)


def statistics_of(table: pl.DataFrame) -> dict[str, Any]:
    """Return counts for people: what was kept of each run, why not the rest, and what it cost."""
    runs = {}
    for run in ("free", "guided"):
        part = table.filter(pl.col("run") == run)
        runs[run] = {
            "num_traces": part.height,
            "num_kept": int(part["kept"].sum()),
            "keep_rate": _share(int(part["kept"].sum()), part.height),
            "reasons": _counts(part["reason"].drop_nulls().to_list()),
        }
    answered = table.filter(pl.col("first_answer").is_not_null())
    right = int((answered["first_answer"] == answered["label"]).sum())
    is_rated = table.height > 0 and table["task"][0] == "rated"
    return {
        "num_questions": table.height,
        "num_kept": int(table["kept"].sum()),
        "keep_rate": _share(int(table["kept"].sum()), table.height),
        "runs": runs,
        "first_free_answer_right": _share(right, answered.height),
        "reply_problems": _counts(table["reply_problems"].explode().drop_nulls().to_list()),
        "cures": _counts(table["cure"].drop_nulls().to_list()),
        "num_with_hostile_item": int(table["has_hostile_item"].sum()),
        "chains_per_question": float(table["chains"].list.len().mean() or 0)  # pyright: ignore[reportArgumentType]
        if table.height
        else 0.0,
        "labels": _counts(table["label"].to_list()) if is_rated else {},
        "labels_kept": _counts(table.filter("kept")["label"].to_list()) if is_rated else {},
        "prompt_tokens": int(table["prompt_tokens"].sum()),
        "reply_tokens": int(table["reply_tokens"].sum()),
        "cost": float(table["cost"].sum()),
    }


def read_traces(folder: Path, *, kept: bool = False) -> pl.DataFrame:
    """Return the traces of a finished folder, all of them or those that may be learned from.

    Raises:
        CheckpointError: The folder is unfinished or was changed.
        TraceError: Another command wrote it.
    """
    manifest = read_manifest(folder)
    if manifest["stage"] != "reasoned-traces":
        raise TraceError(
            f"{folder} must be written by `reasonrec traces rated` or `likes`; it was written by "
            f"stage {manifest['stage']!r}"
        )
    check_outputs(folder)
    table = pl.read_parquet(Path(folder) / TRACES, glob=False)
    return table.filter("kept") if kept else table


def page_of(table: pl.DataFrame, page: int, *, page_size: int) -> pl.DataFrame:
    """Return one page, counted from 1.

    Raises:
        TraceError: There is no such page.
    """
    num_pages = max(1, -(-table.height // page_size))
    if not 1 <= page <= num_pages:
        raise TraceError(f"pages go from 1 to {num_pages}; got {page}")
    return table.slice((page - 1) * page_size, page_size)


def _chain(dataset: Dataset, chain: ChainFacts) -> dict[str, Any]:
    return {
        "first_id": _id(dataset, chain.first.item_index),
        "first": chain.first.title,
        "own_first": chain.own_first,
        "neighbour": chain.neighbour,
        "neighbour_id": dataset.user_ids[chain.neighbour_index],
        "neighbour_first": chain.neighbour_first,
        "second_id": _id(dataset, chain.second.item_index),
        "second": chain.second.title,
        "neighbour_second": chain.neighbour_second,
        "own_second": chain.own_second,
        "closes_on": chain.closes_on,
    }


def _id(dataset: Dataset, item_index: int) -> str:
    return dataset.catalogue.item_ids[item_index]


def _counts(values: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=lambda entry: (-entry[1], entry[0])))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

"""The stage that writes interaction-of-thought traces: training log in, traces out, kept or not.

Questions are training events; evidence is older than its event; negatives of likes are items that
the user touches nowhere in training. Whatever a teacher was asked and answered is on disk before it
is used, so an interrupted run continues and ends with the same table.
"""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset
from reasonrec.errors import TraceError
from reasonrec.manifest import (
    is_finished,
    make_folder,
    start_stage,
    stopwatch,
    write_manifest,
    writes_alone,
)
from reasonrec.rng import stream, stream_seed
from reasonrec.traces import store
from reasonrec.traces.evidence import QuestionBuilder
from reasonrec.traces.progressive import Draft, think_through
from reasonrec.traces.questions import Question
from reasonrec.traces.reasoned_config import KeepConfig, ReasonedTracesConfig, Task
from reasonrec.traces.teachers.contract import Stopped, Teacher
from reasonrec.traces.trace_filters import (
    TitleFinder,
    beyond_balance,
    duplicates,
    reason_against,
)

STAGE = "reasoned-traces"


@dataclass(frozen=True)
class Progress:
    """How far a run is, for a progress bar."""

    num_done: int
    num_questions: int
    num_calls: int
    num_bought_before: int
    tokens: int
    cost: float
    """Of the calls of this run; what earlier runs bought is free."""


@writes_alone
def write_reasoned_traces(
    dataset: Dataset,
    titles: Sequence[str],
    out: Path,
    config: ReasonedTracesConfig,
    build_teacher: Callable[[], Teacher],
    *,
    task: Task,
    seed: int,
    on_progress: Callable[[Progress], None] | None = None,
) -> pl.DataFrame:
    """Write and return one trace for each sampled training event, kept or not, with the reason.

    Args:
        titles: Unique title of every item, as the student reads them.
        build_teacher: Called only if there is something to ask.
        on_progress: Told after every question.

    Raises:
        TraceError: The teacher cannot be asked any more, or too few of its replies can be used.
            Everything bought stays; the same command continues.
        KeyboardInterrupt: The run was interrupted; calls under way were waited for.
    """
    out = make_folder(out)
    settings = _settings(config, task)
    asked = {
        "stage": STAGE, "inputs": {"data": dataset.fingerprint}, "config": settings, "seed": seed,
    }  # fmt: skip
    if is_finished(out, **asked):
        return store.read_traces(out)
    start_stage(out, **asked)
    with stopwatch() as spent:
        questions = training_questions(dataset, titles, config, task=task, seed=seed)
        drafts = [Draft(question) for question in questions]
        teacher = build_teacher()
        progress = asyncio.run(
            think_all(drafts, teacher, config, seed=seed, on_progress=on_progress)
        )
        reasons = keep(drafts, titles, config.keep, task=task, seed=seed)
        table = store.table_of(
            drafts, reasons, dataset, config, teacher_name=teacher.name, task=task, seed=seed
        )
        table.write_parquet(out / store.TRACES)
        text = json.dumps(store.statistics_of(table), indent=2) + "\n"
        (out / store.STATISTICS).write_text(text, encoding="utf-8")
    write_manifest(
        out,
        outputs=[store.TRACES, store.STATISTICS],
        seconds=spent[0],
        extra={
            "num_calls": progress.num_calls,
            "num_bought_before": progress.num_bought_before,
            "limits": config.limits.model_dump(mode="json"),
        },
        **asked,
    )
    return table


def training_questions(
    dataset: Dataset, titles: Sequence[str], config: ReasonedTracesConfig, *, task: Task, seed: int
) -> list[Question]:
    """Return questions about a sample of training events, with their labels.

    Events without a history are left out, and where ratings are asked those without one. Candidates
    of likes stand in a drawn order, the one taken among them. An event that is asked about again
    keeps its key.
    """
    log = dataset.train
    builder = QuestionBuilder(dataset.catalogue, titles, log, config.shown)
    eligible = np.arange(len(log)) > log.user_offsets[log.user_index]
    if task == "rated" and log.rating is not None:
        eligible &= ~np.isnan(log.rating)
    if config.events == "last":
        eligible &= np.arange(len(log)) == log.user_offsets[log.user_index + 1] - 1
    all_events = np.flatnonzero(eligible)
    questions: list[Question] = []
    for n in range(config.max_rounds):
        count = min(config.num_questions - len(questions), len(all_events))
        if not count:
            break
        drawn = stream(seed, "traces/questions", n).choice(all_events, count, replace=False)
        events = np.sort(drawn)
        labels: list[str | None] = [str(titles[item]) for item in log.item_index[events]]
        if task == "rated":
            candidates = log.item_index[events][:, None]
            labels = [None if log.rating is None else f"{log.rating[event]:g}" for event in events]
        else:
            candidates = _candidates(dataset, events, config.evidence.num_candidates, seed, n)
        questions += builder.build(
            log.histories_before(events), candidates, task=task, keys=events, labels=labels,
            seed=seed if n == 0 else stream_seed(seed, "traces/round", n),
        )  # fmt: skip
    return questions


async def think_all(
    drafts: Sequence[Draft],
    teacher: Teacher,
    config: ReasonedTracesConfig,
    *,
    seed: int,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Fill in all drafts, many at a time, and close the teacher.

    The first interrupt (or error) sends nothing more and waits for the calls under way, since they
    are paid; a second one ends at once.
    """
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()

    def interrupt() -> None:
        interrupted.set()
        teacher.stop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)

    handled = _handle_signals(loop, interrupt)
    done: list[Draft] = []
    totals = Counter[str]()
    cost = 0.0

    async def work(waiting: Iterator[Draft]) -> None:
        nonlocal cost
        for draft in waiting:
            asking = think_through(draft, config.asking, seed=seed, keep=config.keep)
            try:
                request = next(asking)
                while True:
                    reply = await teacher.ask(request)
                    totals["cached" if reply.is_cached else "calls"] += 1
                    if not reply.is_cached:
                        totals["tokens"] += reply.prompt_tokens + reply.reply_tokens
                        cost += reply.cost
                    request = asking.send(reply)
            except StopIteration:
                done.append(draft)
            if on_progress is not None:
                on_progress(progress())
            _check_failures(done, config.keep)

    def progress() -> Progress:
        return Progress(
            len(done), len(drafts), totals["calls"], totals["cached"], totals["tokens"], cost
        )

    waiting = iter(drafts)
    num_open = 4 * max(config.limits.concurrency, config.teacher.batch_size)
    workers = [asyncio.create_task(work(waiting)) for _ in range(min(num_open, len(drafts)))]
    try:
        if workers:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        teacher.stop()  # nothing is left to send, or nothing more may be
        ended = await asyncio.gather(*workers, return_exceptions=True)
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
        await teacher.close()
    errors = [e for e in ended if isinstance(e, BaseException) and not isinstance(e, Stopped)]
    if errors:
        raise errors[0]
    if interrupted.is_set():
        raise KeyboardInterrupt
    return progress()


def keep(
    drafts: Sequence[Draft], titles: Sequence[str], config: KeepConfig, *, task: Task, seed: int
) -> list[str | None]:
    """Return for every draft why its trace is not kept, None where it is."""
    finder = TitleFinder(titles, least_words=config.title_words)
    reasons = [reason_against(draft, config, finder) for draft in drafts]
    if config.drop_duplicates:
        kept = [n for n, reason in enumerate(reasons) if reason is None]
        texts = [_text(drafts[n]) for n in kept]
        for n, is_repeat in zip(kept, duplicates(texts)):
            reasons[n] = "duplicate" if is_repeat else None
    if task == "rated" and config.max_label_ratio is not None:
        kept = [n for n, reason in enumerate(reasons) if reason is None]
        labels = [drafts[n].question.label or "" for n in kept]
        left_out = beyond_balance(labels, max_ratio=config.max_label_ratio, seed=seed)
        for n, is_out in zip(kept, left_out):
            reasons[n] = "balance" if is_out else None
    return reasons


def _text(draft: Draft) -> str:
    assert draft.thought is not None
    return f"{draft.thought.text} {draft.thought.answer}"


def _settings(config: ReasonedTracesConfig, task: Task) -> dict[str, Any]:
    """Return what decides the traces: not where the teacher is, nor what it may cost."""
    elsewhere = {"base_url", "api_key_env", "batch_size", "device"}
    dumped = config.model_dump(mode="json", exclude={"limits": True, "teacher": elsewhere})
    return {"task": task, **dumped}


def _candidates(
    dataset: Dataset, events: np.ndarray, num_candidates: int, seed: int, round_number: int
) -> np.ndarray:
    """Return for every event its item among items that the user never touches in training."""
    log = dataset.train
    table = np.full((len(events), num_candidates), -1, np.int32)
    for r, event in enumerate(events):
        user = int(log.user_index[event])
        own = log.item_index[log.user_offsets[user] : log.user_offsets[user + 1]]
        rng = stream(seed, "traces/candidates", int(event), round_number)
        left = np.setdiff1d(np.arange(dataset.num_items), own)
        others = rng.choice(left, min(num_candidates - 1, len(left)), replace=False)
        row = rng.permutation(np.append(others, log.item_index[event]))
        table[r, : len(row)] = row
    return table


def _check_failures(done: Sequence[Draft], config: KeepConfig) -> None:
    """Stop a run whose teacher cannot be used, before it costs more."""
    if not done or len(done) % config.check_every:
        return
    failed = Counter(draft.problem for draft in done if draft.problem is not None)
    if failed.total() > config.max_failed_frac * len(done):
        reasons = ", ".join(f"{name} {count}" for name, count in failed.most_common())
        raise TraceError(
            f"at most {config.max_failed_frac:.0%} of the traces may be without a usable reply; of "
            f"the first {len(done)} there were {failed.total()} ({reasons}). Try another model, or "
            "--keep.max-failed-frac"
        )


def _handle_signals(
    loop: asyncio.AbstractEventLoop, interrupt: Callable[[], None]
) -> tuple[signal.Signals, ...]:
    """Return the signals that now stop the run gently; none outside the main thread."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
    except (NotImplementedError, RuntimeError, ValueError):  # not every system or thread can
        return ()
    return (signal.SIGINT, signal.SIGTERM)

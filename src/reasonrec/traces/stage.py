"""The traces stage: thoughts of the verbaliser for training positions, as a table people can read.

SFT writes the same thoughts itself, batch by batch, from the same function; this stage is for
reading them, for filtering statistics, and for training elsewhere.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl

from reasonrec.data.dataset import Dataset
from reasonrec.manifest import is_finished, make_folder, stopwatch, write_manifest, writes_alone
from reasonrec.rng import stream
from reasonrec.traces.config import TracesConfig
from reasonrec.traces.filters import ungrounded_titles
from reasonrec.traces.prompts import PromptWriter
from reasonrec.traces.verbaliser import Verbaliser

FILES = ["traces.parquet", "statistics.json"]
_SCHEMA = {
    "event": pl.Int64,
    "user_id": pl.String,
    "target": pl.Int32,
    "target_title": pl.String,
    "thought": pl.String,
    "num_tokens": pl.Int64,
    "people": pl.List(pl.String),
    "looked_up": pl.List(pl.String),
    "found": pl.List(pl.String),
    "kept": pl.Boolean,
    "reason": pl.String,
}


@writes_alone
def write_traces(
    dataset: Dataset, out: Path, config: TracesConfig, writer: PromptWriter, *, seed: int
) -> pl.DataFrame:
    """Write and return one thought for each sampled training position.

    Columns: ``event`` (row of the training log), ``user_id``, ``target``, ``target_title`` (never
    shown to the verbaliser), ``thought``, ``num_tokens``, ``people`` (users alike who were asked
    about), ``looked_up`` (titles), ``found`` (titles), ``kept`` and ``reason`` why not. Empty
    histories are left out.
    """
    out = make_folder(out)
    inputs, settings = {"data": dataset.fingerprint}, config.model_dump(mode="json")
    if is_finished(out, stage="traces", inputs=inputs, config=settings, seed=seed):
        return pl.read_parquet(out / "traces.parquet", glob=False)
    with stopwatch() as spent:
        log = dataset.train
        eligible = np.flatnonzero(np.arange(len(log)) > log.user_offsets[log.user_index])
        if config.thought.together is not None:  # it knows what came later in the whole log
            eligible = np.intersect1d(eligible, log.user_offsets[1:] - 1)
        count = min(config.num_thoughts, len(eligible))
        events = np.sort(stream(seed, "traces").choice(eligible, count, replace=False))
        verbaliser = Verbaliser.learned_from(dataset, writer, config.thought, unknown=events)
        parts = [
            _write_part(dataset, verbaliser, events[i : i + 4096], seed)
            for i in range(0, len(events), 4096)
        ]
        table = pl.concat([pl.DataFrame(schema=_SCHEMA), *parts])
        table.write_parquet(out / "traces.parquet")
        statistics = {
            "num_thoughts": table.height,
            "num_kept": int(table["kept"].sum()) if table.height else 0,
            "mean_tokens": float(np.mean(table["num_tokens"].to_numpy())) if table.height else 0.0,
            "share_with_target_found": _share_found(table),
        }
        (out / "statistics.json").write_text(json.dumps(statistics, indent=2) + "\n", "utf-8")
    write_manifest(
        out,
        stage="traces",
        inputs=inputs,
        config=settings,
        outputs=FILES,
        seconds=spent[0],
        seed=seed,
    )
    return table


def _write_part(
    dataset: Dataset, verbaliser: Verbaliser, events: np.ndarray, seed: int
) -> pl.DataFrame:
    log, writer = dataset.train, verbaliser.writer
    histories = log.histories_before(events)
    thoughts = verbaliser.write(histories, seed=seed, keys=events)
    text = [writer.thought_text(tokens) for tokens in thoughts.tokens]
    titles = writer.titles
    found = [named.items.item_index.tolist() for named in thoughts.named]
    outside = []
    for b, thought in enumerate(text):
        allowed = {*histories.row(b).tolist(), *found[b]}
        outside.append(ungrounded_titles(thought, titles, allowed, ()))
    target = log.item_index[events]
    return pl.DataFrame(
        {
            "event": events,
            "user_id": [dataset.user_ids[u] for u in histories.user_index],
            "target": target,
            "target_title": [titles[t] for t in target],
            "thought": text,
            "num_tokens": [len(tokens) for tokens in thoughts.tokens],
            "people": [[dataset.user_ids[u] for u in row if u >= 0] for row in thoughts.person],
            "looked_up": [[titles[i] for i in row if i >= 0] for row in thoughts.via_item],
            "found": [[titles[i] for i in row] for row in found],
            "kept": [not names for names in outside],
            "reason": [
                f"names {names[0]!r} without evidence" if names else None for names in outside
            ],
        },
        schema=_SCHEMA,
    )


def _share_found(table: pl.DataFrame) -> float:
    if not table.height:
        return 0.0
    return float(table.select(pl.col("found").list.contains(pl.col("target_title")).mean()).item())

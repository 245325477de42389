"""Raw files -> a prepared folder: read, validate, filter, split, number, write.

The files of the folder are described in ``dataset.py``. Reading, in this order: rows that are
unusable are set aside with a reason (``validation.py``), rows that are unwanted are filtered
(``filters.py``), what is left is split (``splits.py``, ``given.py``).
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from reasonrec.data.dataset import UNASKED, Dataset
from reasonrec.data.filters import WantedItems, apply_filters, items_with, start_of_window
from reasonrec.data.given import (
    GivenQueries,
    choose_files,
    from_histories,
    from_log,
    read_queries,
)
from reasonrec.data.planted.config import PlantedConfig
from reasonrec.data.planted.world import write_world
from reasonrec.data.prepare_config import PrepareConfig
from reasonrec.data.raw import ROW, RawTables, Table
from reasonrec.data.sources.files import read_parquet
from reasonrec.data.sources.locate import locate, opened
from reasonrec.data.splits import (
    Events,
    Questions,
    Split,
    global_time,
    leave_one_out,
    part_by_history,
    sort_events,
)
from reasonrec.data.statistics import (
    describe_items,
    describe_log,
    describe_queries,
    describe_train,
    notes,
)
from reasonrec.data.timestamps import SECOND_US
from reasonrec.data.validation import (
    CleanItems,
    CleanLog,
    as_id,
    check_share,
    clean_items,
    clean_log,
    count_reasons,
    no_rejects,
    require,
)
from reasonrec.errors import DataError, ReasonrecError
from reasonrec.manifest import (
    fingerprint,
    is_finished,
    make_folder,
    read_manifest,
    sole_writer,
    write_manifest,
    writes_alone,
)


def prepare(
    source: str | Path,
    out: Path,
    config: PrepareConfig | None = None,
    seed: int = 0,
    *,
    extra_config: Mapping[str, Any] | None = None,
    now_s: float | None = None,
    may_hold_source: bool = False,
) -> Dataset:
    """Return the data set made of a raw log, written to ``out``; a finished one is only loaded.

    Args:
        source: A folder, an archive or an interactions file in a known layout; or the name of a
            set in the folder ``REASONREC_DATA``, or of one that its publisher offers.
        seed: Draws ``sample_users``; nothing else is random.
        extra_config: Further keys for the manifest: how the source itself was made.
        now_s: UTC seconds; events later than a day after it are broken. None is the present.
        may_hold_source: The source was made for ``out`` and may lie in it.

    Raises:
        DataError: The source cannot be found, read or used, lies in ``out``, or changed since
            that was written.
        CheckpointError: ``out`` holds another run.
        ReasonrecError: ``out`` cannot be written.
    """
    config = config or PrepareConfig()
    start = time.perf_counter()
    out = Path(out)
    path = locate(source)
    name = config.name or _name_of(path)
    config = config.model_copy(update={"name": name})
    if not may_hold_source:
        _refuse_source_in(out, [path])
    with opened(path, config.items) as raw:
        if not may_hold_source:
            _refuse_source_in(out, raw.files.values())
        is_given = config.split == "given" and not raw.queries
        splits = choose_files(raw.splits, config.given_split) if is_given else {}
        files = {**raw.files, **{file.name: file for file in splits.values()}}
        inputs = {key: fingerprint(files[key]) for key in sorted(files)}
        # the item table is named by its fingerprint, wherever it lies
        resolved = config.model_dump(mode="json", exclude={"items"}) | dict(extra_config or {})
        _refuse_changed_data(out, inputs)
        if is_finished(out, stage="prepare", inputs=inputs, config=resolved, seed=seed):
            return Dataset.load(out)
        with sole_writer(out):
            queries = raw.queries if config.split == "given" else {}
            raw = replace(raw, queries=queries or {k: read_parquet(f) for k, f in splits.items()})
            tables, statistics = _build(raw, config, seed, time.time() if now_s is None else now_s)
            _write(out, tables, {"name": name, "split": config.split} | statistics)
            write_manifest(
                out,
                stage="prepare",
                inputs=inputs,
                config=resolved,
                outputs=[*tables, "statistics.json"],
                seconds=time.perf_counter() - start,
                seed=seed,
                extra={"source": str(source)},  # however it is spelled, the data are the same
            )
    return Dataset.load(out)


@writes_alone
def prepare_planted(
    out: Path, world: PlantedConfig, config: PrepareConfig | None = None, seed: int = 0
) -> Dataset:
    """Return the data set made of a planted world, which is written to ``out/world`` first.

    Raises:
        CheckpointError: ``out`` holds another world or another preparation of it.
    """
    folder = Path(out) / "world"
    if not (Path(out) / "manifest.json").exists():
        make_folder(folder)
        write_world(folder, world, seed)
    config = config or PrepareConfig()
    config = config.model_copy(update={"name": config.name or "planted"})
    extra = {"planted": world.model_dump(mode="json")}
    return prepare(folder, out, config, seed, extra_config=extra, may_hold_source=True)


def _build(
    raw: RawTables, config: PrepareConfig, seed: int, now_s: float
) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Return the tables of the prepared folder by file name, and the statistics."""
    items, sound = _validated(raw, config, now_s)
    since, wanted = config.since, None
    if config.require_columns:
        wanted = items_with(items.table, config.require_columns)
    others: dict[str, Any] = {
        "wanted": wanted, "until": config.until, "min_rating": config.min_rating,
        "sample_users": config.sample_users, "k_core": config.k_core, "seed": seed,
    }  # fmt: skip
    if since is not None and config.least_items is not None:
        since = start_of_window(sound.events, since, least_items=config.least_items, **others)
    rows, steps = apply_filters(sound.events, since=since, **others)
    catalogue, rows, num_unseen = _catalogue(items.table, rows, config, wanted)
    given, bad_queries = _given_queries(raw, catalogue["item_id"], config)
    users = _all_users(rows, given)
    events = sort_events(rows, users)
    split = _split(events, users, given, config)
    valid, short_valid = part_by_history(split.valid, config.min_history)
    test, short_test = part_by_history(split.test, config.min_history)
    rejected = {"items": items.rejected, "interactions": sound.rejected, "queries": bad_queries}
    log = describe_log(events, sound.num_rows)
    statistics = {
        "layout": raw.layout,
        "log": log,
        "catalogue": describe_items(items, catalogue.height, num_unseen),
        "rejected": {name: count_reasons(table) for name, table in rejected.items()},
        "filters": [asdict(step) for step in steps],
        "train": describe_train(split.train),
        "valid": describe_queries(split.valid, valid, split),
        "test": describe_queries(split.test, test, split),
        "notes": [*raw.notes, *notes(sound, log), *split.notes],
    }
    tables = {
        "items.parquet": catalogue,
        "users.parquet": users.to_frame("user_id"),
        "train.parquet": _events_table(split.train, with_user=True),
        "histories.parquet": _events_table(split.histories, with_user=False),
        "valid.parquet": _queries_table(valid),
        "test.parquet": _queries_table(test),
        "rejected.parquet": pl.concat(rejected.values()),
    }
    if len(short_valid) + len(short_test):
        short = {"valid": short_valid, "test": short_test}
        parts = [_queries_table(q).with_columns(part=pl.lit(part)) for part, q in short.items()]
        tables[UNASKED] = pl.concat(parts, how="diagonal")
    return tables, statistics


def _validated(raw: RawTables, config: PrepareConfig, now_s: float) -> tuple[CleanItems, CleanLog]:
    if raw.items is None and not config.titles_from_ids:
        raise DataError(
            f"{raw.log.file} needs an item table with item_id and title beside it; there is none. "
            "Add items.csv, name one with --items, or call items by their ids with "
            "--titles-from-ids (in a demo --prepare.titles-from-ids)"
        )
    items = clean_items(
        raw.items or _items_of(raw.log),
        max_title_chars=config.max_title_chars,
        max_description_chars=config.max_description_chars,
    )
    limit = config.max_rejected_frac
    check_share(items.rejected, items.num_rows, what="items", max_frac=limit)
    sound = clean_log(
        raw.log,
        items.table["item_id"],
        now_s=now_s,
        rating_scale=config.rating_scale or raw.rating_scale,
        keep_duplicates=config.keep_duplicates,
    )
    if not sound.num_rows:
        raise DataError(f"{raw.log.file} must hold interactions; it has none")
    check_share(sound.rejected, sound.num_rows, what="interactions", max_frac=limit)
    if sound.events.is_empty():
        raise DataError(f"{raw.log.file} must hold a usable interaction; none is left")
    return items, sound


def _catalogue(
    items: pl.DataFrame, rows: pl.DataFrame, config: PrepareConfig, wanted: WantedItems | None
) -> tuple[pl.DataFrame, pl.DataFrame, int]:
    """Return the items that can be recommended, the events with their numbers, and how many items
    no event names."""
    seen = np.zeros(items.height, bool)
    seen[rows["item"].to_numpy()] = True
    keep = config.k_core is None if config.keep_unseen_items is None else config.keep_unseen_items
    if keep and wanted is None:
        return items, rows, int((~seen).sum())
    kept = wanted.is_wanted if keep and wanted is not None else seen
    renumbered = (np.cumsum(kept) - 1).astype(np.int32)[rows["item"].to_numpy()]
    rows = rows.with_columns(item=pl.Series(renumbered))
    return items.filter(pl.Series(kept)), rows, int((kept & ~seen).sum())


def _given_queries(
    raw: RawTables, item_ids: pl.Series, config: PrepareConfig
) -> tuple[dict[str, GivenQueries], pl.DataFrame]:
    given, bad = {}, [no_rejects()]
    for part, table in raw.queries.items():
        file = f"{part} split"
        given[part], rejected = read_queries(table, item_ids, file=file)
        check_share(
            rejected, table.height, what=f"queries of the {file}", max_frac=config.max_rejected_frac
        )
        bad.append(rejected)
    return given, pl.concat(bad)


def _split(
    events: Events, users: pl.Series, given: dict[str, GivenQueries], config: PrepareConfig
) -> Split:
    if config.split == "leave-one-out":
        return leave_one_out(events)
    if config.split == "global-time":
        return global_time(events, valid_frac=config.valid_frac, test_frac=config.test_frac)
    if "valid" not in given:
        return from_histories(given["test"], users)
    return from_log(events, given["valid"], given["test"], users)


def _all_users(rows: pl.DataFrame, given: dict[str, GivenQueries]) -> pl.Series:
    parts = [rows["user_id"].unique(), *(queries.user_id for queries in given.values())]
    return pl.concat([part.rename("user_id") for part in parts]).unique().sort()


def _items_of(log: Table) -> Table:
    require(log, ("item_id",))
    ids = as_id(log.frame["item_id"]).drop_nulls().unique(maintain_order=True).to_frame()
    number = pl.int_range(1, pl.len() + 1, dtype=pl.Int64)
    return Table(log.file, ids.with_columns(number.alias(ROW), title="item_id"))


def _events_table(events: Events, *, with_user: bool) -> pl.DataFrame:
    columns = {"user_index": events.user} if with_user else {}
    columns["item_index"] = events.item
    if events.rating is not None:
        columns["rating"] = events.rating
    if events.micros is not None:
        columns["timestamp"] = events.micros // SECOND_US
    return pl.DataFrame(columns)


def _queries_table(questions: Questions) -> pl.DataFrame:
    columns = {
        "user_index": questions.user.astype(np.int32),
        "target": questions.target.astype(np.int32),
        "history_start": questions.start.astype(np.int64),
        "history_stop": questions.stop.astype(np.int64),
    }
    if questions.micros is not None:
        columns["timestamp"] = questions.micros // SECOND_US
    return pl.DataFrame(columns)


def _write(out: Path, tables: dict[str, pl.DataFrame], statistics: dict[str, Any]) -> None:
    try:
        for name, table in tables.items():
            table.write_parquet(out / name)
        text = json.dumps(statistics, indent=2, ensure_ascii=False)
        (out / "statistics.json").write_text(text + "\n", encoding="utf-8")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ReasonrecError(f"the output folder must be writable; {out}: {error}") from None


def _refuse_changed_data(out: Path, inputs: dict[str, str]) -> None:
    if not (out / "manifest.json").exists():
        return
    found = read_manifest(out)
    changed = [
        name for name, digest in inputs.items() if found["inputs"].get(name, digest) != digest
    ]
    if found["stage"] == "prepare" and changed:
        raise DataError(
            f"{', '.join(changed)} changed since {out} was prepared from it. Prepare into another "
            "folder, or remove this one and all that was trained on it"
        )


def _refuse_source_in(out: Path, places: Iterable[Path]) -> None:
    """Refuse an output folder that would mix with the raw files, or be removed with them."""
    folder = out.resolve()
    for place in places:
        if folder in (place.resolve(), *place.resolve().parents):
            raise DataError(
                f"the output folder must hold nothing but the prepared data; {out} is or holds its "
                f"source {place}. Name another one with --out"
            )


def _name_of(path: Path) -> str:
    inner = path.resolve()
    return inner.stem if inner.is_file() else inner.name

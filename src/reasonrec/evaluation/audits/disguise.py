"""A data set under other names: what is left of a result when titles cannot be recognised.

A language model may have read about the items, or about the data set itself. A copy whose items
have other names holds the same events, so whatever a method loses on it came from the names.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path

import polars as pl

from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.audits.config import Disguise
from reasonrec.evaluation.commands import source_of
from reasonrec.manifest import (
    is_finished,
    make_folder,
    read_manifest,
    stopwatch,
    write_manifest,
    writes_alone,
)

_WORD = re.compile(r"[^\W\d_]+")
_ONSETS = (
    "b",
    "d",
    "f",
    "g",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "br",
    "dr",
    "kl",
    "st",
)
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ei", "ou")


@writes_alone
def write_disguised(dataset: Dataset, out: Path, kind: Disguise, *, seed: int = 0) -> Dataset:
    """Return a copy of a prepared data set whose items have other names, written to ``out``.

    Ids, events, splits and queries stay as they are, so results are comparable query by query.
    ``renamed`` replaces every word of titles and categories by a made-up one, the same everywhere,
    and keeps numbers and punctuation; ``hashed`` calls an item by a hash, and so each category.
    Both drop every other text of the item table, description included.

    Raises:
        CheckpointError: ``out`` holds another run.
    """
    out = make_folder(out)
    manifest = read_manifest(dataset.folder)
    config = manifest["config"] | {"name": f"{dataset.name}-{kind}", "titles": kind}
    inputs = {"dataset": dataset.fingerprint}
    if is_finished(out, stage="prepare", inputs=inputs, config=config, seed=seed):
        return Dataset.load(out)
    with stopwatch() as spent:
        for name in manifest["outputs"]:
            shutil.copyfile(dataset.folder / name, out / name)
        disguised_items(dataset.catalogue.table, kind, seed=seed).write_parquet(
            out / "items.parquet"
        )
        statistics = dataset.statistics | {"name": config["name"]}
        text = json.dumps(statistics, indent=2, ensure_ascii=False)
        (out / "statistics.json").write_text(text + "\n", encoding="utf-8")
    write_manifest(
        out, stage="prepare", inputs=inputs, config=config, outputs=list(manifest["outputs"]),
        seconds=spent[0], seed=seed, extra={"source": source_of(manifest, dataset.statistics)},
    )  # fmt: skip
    return Dataset.load(out)


def disguised_items(items: pl.DataFrame, kind: Disguise, *, seed: int) -> pl.DataFrame:
    """Return the item table with other titles and categories, and no further text."""
    titles = [title or "" for title in items["title"].to_list()]
    groups = items["categories"].to_list() if "categories" in items.columns else None
    if kind == "renamed":
        words = {word.lower() for title in titles for word in _WORD.findall(title)}
        for group in groups or []:
            words |= {word.lower() for name in group or [] for word in _WORD.findall(str(name))}
        made_up = _made_up(sorted(words), seed)

        def rename(text: str) -> str:
            return _WORD.sub(lambda found: _like(found[0], made_up[found[0].lower()]), text)

        new_titles = [rename(title) for title in titles]
    else:

        def rename(text: str) -> str:
            return f"Group {_digest(seed, 'group', text)[:8]}"

        new_titles = [f"Item {_digest(seed, 'item', i)[:10]}" for i in items["item_id"].to_list()]

    columns = [
        name for name, dtype in items.schema.items()
        if name in ("item_id", "title", "categories") or dtype.is_numeric()
    ]  # fmt: skip
    table = items.select(columns).with_columns(pl.Series("title", new_titles, dtype=pl.String))
    if groups is not None:
        new = [None if g is None else [rename(str(name)) for name in g] for g in groups]
        table = table.with_columns(pl.Series("categories", new, dtype=pl.List(pl.String)))
    if "description" in items.columns:
        table = table.with_columns(pl.lit(None, pl.String).alias("description"))
    return table


def _made_up(words: list[str], seed: int) -> dict[str, str]:
    """Return a pronounceable new word for every word, all different and none an old one."""
    taken, made = set(words), {}
    for word in words:
        attempt = 0
        while True:
            code = bytes.fromhex(_digest(seed, f"word-{attempt}", word))
            length = max(2, min(4, len(word) // 2)) + attempt // 20
            new = "".join(
                _ONSETS[code[2 * i] % len(_ONSETS)] + _VOWELS[code[2 * i + 1] % len(_VOWELS)]
                for i in range(length)
            )
            if new not in taken:
                break
            attempt += 1
        taken.add(new)
        made[word] = new
    return made


def _like(old: str, new: str) -> str:
    """Return the new word with the capitals of the old one."""
    if old.isupper() and len(old) > 1:
        return new.upper()
    return new.capitalize() if old[0].isupper() else new


def _digest(seed: int, what: str, text: str) -> str:
    return hashlib.sha256(f"{seed}/{what}/{text}".encode()).hexdigest()

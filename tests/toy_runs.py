"""A small finished run folder as a demo leaves it, written in a second. Its numbers are drawn."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from reasonrec.evaluation.protocol import Evaluation, MetricRow, write_evaluation, write_rows
from reasonrec.evaluation.significance import bootstrap_intervals
from reasonrec.manifest import write_manifest
from reasonrec.metrics import METRICS, metric_values
from reasonrec.records import (
    EvidenceChain,
    HistoryItem,
    Recommendation,
    RecommendedItem,
)

MIDDLE_RANK = {
    "oracle": 9.0,
    "popularity": 90.0,
    "item-knn": 35.0,
    "follow-counter": 26.0,
    "no-think": 20.0,
    "think-sft": 20.5,
    "think-recpo": 17.5,
}
"""Median rank of the target over the whole catalogue, by method."""
COSTS = {"item-knn": 0.9, "follow-counter": 0.7, "popularity": 0.05, "no-think": 2.4}
MARKUP = "<script>alert('title')</script> & \"Sons\""
NUM_ITEMS, NUM_USERS = 110, 300


def write_toy_run(folder: Path, *, extra_title: str = MARKUP) -> Path:
    """Return ``folder`` with every part that a report reads; item 7 is called ``extra_title``."""
    rng = np.random.default_rng(5)
    titles = toy_titles()
    titles[7] = extra_title
    lengths = rng.integers(3, 30, NUM_USERS)
    _write_data(folder / "data", titles, lengths, rng)
    targets = _targets(lengths, rng)
    evaluations = [_evaluation(method, targets, lengths - 1, titles, rng) for method in MIDDLE_RANK]
    (folder / "evaluation").mkdir()
    write_evaluation(folder / "evaluation", evaluations)
    write_rows(folder / "metrics.json", [row for one in evaluations for row in one.rows])
    _write_curves(folder, rng)
    answers = [recommendation(titles, user, rng).to_json() for user in ("u4", "u11", "u42")]
    _write_json(folder / "recommendations.json", answers)
    config = {"seed": 0, "model": {"width": 128, "num_layers": 2}, "think": {"num_lookups": 3}}
    _write_json(folder / "config.json", config)
    return folder


def toy_titles() -> list[str]:
    """Return ``NUM_ITEMS`` different titles."""
    makes = [
        "Glass",
        "Hollow",
        "Amber",
        "Quiet",
        "Northern",
        "Paper",
        "Salt",
        "Winter",
        "Brass",
        "Last",
    ]
    things = (
        "Harbour Orchard Lantern Atlas River Archive Garden Station Kingdom Mirror Cartographer"
    )
    pairs = [(n, make, thing) for n, make in enumerate(makes) for thing in things.split()]
    return [f"The {make} {thing}, Vol. {1 + n % 3}" for n, make, thing in pairs]


def recommendation(titles: list[str], user_id: str, rng: np.random.Generator) -> Recommendation:
    """Return an explained answer with chains that share items and neighbours."""
    picked = rng.permutation(len(titles))[:18].tolist()
    taken, offered = picked[:8], picked[8:]
    chains = tuple(
        EvidenceChain(
            via_item_id=f"i{taken[-1 - n // 2]}",
            via_title=titles[taken[-1 - n // 2]],
            neighbour_user_id=f"u{100 + n % 3}",
            item_id=f"i{offered[n]}",
            title=titles[offered[n]],
            num_neighbours=4 - n % 3,
            weight=3.0 / (1 + n),
            rank=n + 1 if n < 4 else None,
        )
        for n in range(5)
    )
    return Recommendation(
        user_id=user_id,
        method="think-recpo",
        history=tuple(HistoryItem(f"i{item}", titles[item]) for item in taken),
        items=tuple(
            RecommendedItem(rank, f"i{item}", titles[item], 9.0 - 0.4 * rank)
            for rank, item in enumerate(offered, start=1)
        ),
        thought=f"You lately took {titles[taken[-1]]}. People who took it went on to "
        f"{titles[offered[0]]} and {titles[offered[1]]}, so I look there first.",
        chains=chains,
        notes=("the neighbours' later events are older than this question",),
    )


def _write_data(
    folder: Path, titles: list[str], lengths: np.ndarray, rng: np.random.Generator
) -> None:
    folder.mkdir(parents=True)
    users = np.repeat(np.arange(NUM_USERS, dtype=np.int32), lengths)
    weights = 1.0 / np.arange(1, NUM_ITEMS + 1)
    items = rng.choice(NUM_ITEMS, len(users), p=weights / weights.sum()).astype(np.int32)
    stops = np.cumsum(lengths)
    starts = stops - lengths
    from_end = np.repeat(stops, lengths) - np.arange(len(users))
    log = pl.DataFrame({"user_index": users, "item_index": items})
    log.filter(pl.Series(from_end > 2)).write_parquet(folder / "train.parquet")
    log.select("item_index").write_parquet(folder / "histories.parquet")
    for name, back in (("valid", 2), ("test", 1)):
        pl.DataFrame(
            {
                "user_index": np.arange(NUM_USERS, dtype=np.int32),
                "target": items[stops - back],
                "history_start": starts.astype(np.int64),
                "history_stop": (stops - back).astype(np.int64),
            }
        ).write_parquet(folder / f"{name}.parquet")
    ids = [f"i{n}" for n in range(NUM_ITEMS)]
    pl.DataFrame({"item_id": ids, "title": titles}).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user_id": [f"u{n}" for n in range(NUM_USERS)]}).write_parquet(
        folder / "users.parquet"
    )
    reasons = ["duplicate event"] * 14 + ["unknown item"] * 5 + ["rating out of scale"]
    pl.DataFrame({"reason": reasons}).write_parquet(folder / "rejected.parquet")
    statistics = {
        "source": "toy-shop",
        "log": {"events": len(users), "frac_tied_in_time": 0.031, "frac_repeats": 0.012},
        "filters": [{"name": "k-core 3", "rows_before": 5100, "rows_after": len(users)}],
        "train": {"events": int((from_end > 2).sum()), "users": NUM_USERS},
        "test": {"queries": NUM_USERS, "history_median": float(np.median(lengths - 1))},
        "notes": ["3.1% of the events share the time of the one before"],
    }
    _write_json(folder / "statistics.json", statistics)
    files = [path.name for path in folder.iterdir()]
    write_manifest(
        folder,
        stage="prepare",
        inputs={},
        config={"name": "toy-shop", "split": "leave-one-out"},
        outputs=files,
        seconds=0.1,
    )


def _targets(lengths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, NUM_ITEMS, len(lengths))


def _evaluation(
    method: str,
    targets: np.ndarray,
    history_lengths: np.ndarray,
    titles: list[str],
    rng: np.random.Generator,
) -> Evaluation:
    thinks = method.startswith("think")
    hardness = np.random.default_rng(1).normal(size=len(targets))  # shared by all methods
    spread = 1.3 * hardness + 0.5 * rng.normal(size=len(targets))
    full = np.clip(np.round(MIDDLE_RANK[method] * np.exp(spread)), 1, NUM_ITEMS)
    ranks = {"full": full, "candidates-20": np.ceil(full * 20 / NUM_ITEMS)}
    tokens = np.full(len(targets), 14 if thinks else 0)
    common = {
        "dataset": "toy-shop",
        "split": "leave-one-out",
        "method": method,
        "seed": 0,
        "trained_on": "train",
        "seconds": COSTS.get(method, 5.0) / 10,
    }
    rows = [
        MetricRow(
            protocol=protocol,
            metric=metric,
            value=found.mean,
            ci_low=found.low,
            ci_high=found.high,
            n=len(targets),
            **common,
        )
        for protocol, rank in ranks.items()
        for metric, found in zip(
            METRICS,
            bootstrap_intervals(
                np.stack([metric_values(m, rank) for m in METRICS], 1), rng=rng, num_resamples=200
            ),
        )
    ]
    costs = {"tokens": float(tokens.mean()), "latency-p50-ms": COSTS.get(method, 4.9)}
    rows += [
        MetricRow(
            protocol="cost", metric=name, value=value, ci_low=None, ci_high=None, n=30, **common
        )
        for name, value in costs.items()
    ]
    per_query = pl.concat(
        pl.DataFrame(
            {
                "method": method,
                "seed": np.zeros(len(targets), np.int64),
                "protocol": protocol,
                "query": np.arange(len(targets)),
                "user_index": np.arange(len(targets), dtype=np.int32),
                "target": targets.astype(np.int32),
                "history_length": history_lengths.astype(np.int64),
                "rank": rank,
                "num_tokens": tokens,
                "seconds": 0.001,
            }
        )
        for protocol, rank in ranks.items()
    )
    said = [
        f"The last thing you took points to {titles[n % NUM_ITEMS]}; two people like you went on "
        f"to {titles[(n * 7) % NUM_ITEMS]}."
        for n in range(len(targets) if thinks else 0)
    ]
    thoughts = pl.DataFrame(
        {
            "method": [method] * len(said),
            "seed": [0] * len(said),
            "query": list(range(len(said))),
            "user_id": [f"u{n}" for n in range(len(said))],
            "thought": said,
            "num_tokens": [14] * len(said),
            "rank": full[: len(said)],
        },
        schema_overrides={
            "method": pl.String, "seed": pl.Int64, "query": pl.Int64, "user_id": pl.String,
            "thought": pl.String, "num_tokens": pl.Int64, "rank": pl.Float64,
        },
    )  # fmt: skip
    return Evaluation(tuple(rows), per_query, thoughts)


def _write_curves(folder: Path, rng: np.random.Generator) -> None:
    for name, start in (("no-think", 5.2), ("think-sft", 3.4), ("think-recpo", 3.1)):
        (folder / name).mkdir()
        rows = []
        for n in range(60):
            row = {
                "step": 10 * n,
                "seconds": 1.5 * n,
                "train/loss": start * (0.55 + 0.45 * np.exp(-n / 15)) + 0.05 * rng.normal(),
            }
            if n % 6 == 0:
                row["valid/ndcg@10"] = 0.12 * (1 - np.exp(-(n + 2) / 12)) + 0.002 * rng.normal()
            if name == "think-recpo":
                row["rl/reward_mean"] = 0.2 + 0.05 * n / 60 + 0.01 * rng.normal()
                row["rl/frac_flat_groups"] = 0.5 - 0.3 * n / 60 + 0.03 * rng.normal()
            rows.append(json.dumps(row))
        (folder / name / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 60', "utf-8")


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

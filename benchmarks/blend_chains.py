"""Measure what chains do in R2Rec's blend, and ideas to make it rest on them.

    for s in 0 1 2; do
        reasonrec train no-think --data runs/ml-100k/data --out runs/ml-100k-$s/no-think --seed $s
        reasonrec train r2rec --start runs/ml-100k-$s/no-think --data runs/ml-100k/data \
            --out runs/ml-100k-$s/r2rec --seed $s
    done
    python benchmarks/blend_chains.py runs/ ml-100k office-2018 ml-latest-small --seeds 0 1 2

Writes docs/results/blend-chains.md. Each idea changes what a blend weighs, its weights are found on
validation with the chains in sight, and then it ranks the same test candidates twice: as it is, and
with chains and their support taken out of the prompt and out of the blend, weights kept. What was
asked of a model is kept in ``runs/<set>-<seed>/blend/``, so that ideas cost no thought.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from over_all import heading, over_all
from r2rec_rows import NUM_QUERIES
from running import ROOT, say

from reasonrec.data.dataset import Dataset, Part
from reasonrec.evaluation.candidates import Negatives, draw_candidates
from reasonrec.evaluation.protocol import chosen_queries
from reasonrec.evaluation.significance import paired_test
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2rec
from reasonrec.methods.r2rec_config import R2recConfig
from reasonrec.metrics import hit
from reasonrec.models.config import Holds
from reasonrec.models.ranking import rank_candidates
from reasonrec.models.reasoned_ranking import HELD, ReasonedRanker
from reasonrec.training.blending import held_weights

LAST = Path("r2rec") / "r2rec-rl"
PARTS: tuple[Part, ...] = ("valid", "test")
BARE = "/no-chains"
APART = ("likeliest", "popular", "popular-held")
"""Ideas that are not compared with the first one: itself, and those with other candidates."""
CHAINS = ("steps", "near", "count")
"""Experts that speak of chains, and fall silent where these are taken out."""
Said = dict[str, np.ndarray]
"""What each expert says of the candidates. (Q, C) each."""


@dataclass(frozen=True)
class Idea:
    """What a blend weighs, beside the default."""

    told: str
    left_out: tuple[str, ...] = ("near",)
    """Experts that are not weighed; ``histories`` stands for EASE and iALS."""
    holds: Holds = "nothing"
    negatives: Negatives = "uniform"


IDEAS = {
    "likeliest": Idea("all experts; chains of 5 steps from the last 20 items", ("steps",)),
    "far": Idea("chains of up to 20 steps from the last 50 items instead"),
    "no-histories": Idea("`likeliest`, less EASE and iALS", ("steps", "histories")),
    "far-no-histories": Idea("`far`, less EASE and iALS", ("near", "histories")),
    "far-no-first": Idea("less the first stage, too", ("near", "histories", "first")),
    "far-no-events": Idea("`far`, less how often an item was taken", ("near", "events")),
    "held": Idea("`likeliest`, chains held", ("steps",), "chains"),
    "held-answers": Idea("`likeliest`, chains and answers held", ("steps",), "chains-and-answers"),
    "far-held": Idea("`far`, chains held: the default", holds="chains"),
    "far-held-answers": Idea("`far`, chains and answers held", holds="chains-and-answers"),
    "popular": Idea("`far`; candidates are drawn by popularity", negatives="popular"),
    "popular-held": Idea("`far-held`, likewise", holds="chains", negatives="popular"),
}
"""Held experts count at least as much as where the first stage, EASE and iALS are silent."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, <set>-<seed> and <set>/data")
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    asked = parser.parse_args()
    found: list[tuple[str, Said]] = []
    sections: list[str] = []
    for name in asked.sets:
        trained = [asked.runs / f"{name}-{seed}" for seed in asked.seeds]
        trained = [one for one in trained if (one / LAST / "manifest.json").exists()]
        each = [ranked(asked.runs / name / "data", one) for one in trained]
        hits = {row: np.mean([one[row] for one in each], axis=0) for row in each[0]}
        found.append((name, {row: hits[f"test/{row}"] for row in rows_on_test()}))
        sections.append(section(name, hits, trained))
        write_page(found, sections)


def ranked(data: Path, folder: Path) -> Said:
    """Return HR@1 of every idea on each query, validation and test, with chains and without."""
    say(f"{folder}")
    dataset, config = Dataset.load(data), R2recConfig()
    ranker = replace(r2rec.load_recommender(folder / LAST, dataset, blend={}), blend=None)
    evidence = ranker.builder.config.model_copy(update={"num_chains": 0})
    bare = r2rec.load_recommender(folder / LAST, dataset, evidence=evidence, blend={})
    rankers = ranker, replace(bare, blend=None)
    histories = tuple(other.name for other in ranker.others)
    rows: Said = {}
    for word, idea in IDEAS.items():
        silent = {*idea.left_out, *(histories if "histories" in idea.left_out else ())}
        held = () if idea.holds == "nothing" else (*HELD[idea.holds], "near")
        candidates, said, _ = heard(rankers, dataset, "valid", idea.negatives, folder)
        weights = held_weights(
            {name: said[name] for name in said if name not in silent}, candidates,
            ridge=config.blending.ridge, held=held, rivals=ranker.rivals,
        )  # fmt: skip
        for part in PARTS:
            candidates, *both = heard(rankers, dataset, part, idea.negatives, folder)
            for end, said in zip(("", BARE), both, strict=True):
                scores = sum((weights[name] * said[name] for name in weights), np.zeros(()))
                scores = np.where(candidates >= 0, scores, -np.inf).astype(np.float32)
                columns = np.where(candidates >= 0, np.arange(candidates.shape[1]), -1)
                rows[f"{part}/{word}{end}"] = hit(rank_candidates(scores, columns), 1)
    return rows


def heard(
    rankers: tuple[ReasonedRanker, ReasonedRanker],
    dataset: Dataset,
    part: Part,
    negatives: Negatives,
    folder: Path,
) -> tuple[np.ndarray, Said, Said]:
    """Return candidates and what each expert says of them, with chains and without.

    Asked once and kept beside the run.
    """
    kept = folder / "blend" / f"{part}-{negatives}.npz"
    if not kept.exists():
        queries = dataset.test if part == "test" else dataset.valid
        limit = NUM_QUERIES if part == "test" else R2recConfig().blending.num_queries
        rows = chosen_queries(queries, None, limit, part)
        candidates = draw_candidates(
            dataset, part, num_candidates=20, seed=0, negatives=negatives
        ).item_index[rows]
        histories = queries.take(rows).histories()
        first = rankers[0].first_stage.score(histories).scores
        arrays: dict[str, Any] = {"candidates": candidates}
        near = rankers[0].builder.weights(histories, candidates)["steps"]
        share = near / np.maximum(near.sum(axis=1, keepdims=True), 1e-9)
        near = np.where(candidates >= 0, np.log(share + rankers[0].blending.least_share), 0.0)
        for end, ranker in zip(("", BARE), rankers, strict=True):
            answers = ranker.score_candidates(histories, candidates).scores
            said = ranker.experts(histories, candidates, answers, first)
            said["near"] = near
            silent = CHAINS if end else ()
            arrays |= {name + end: said[name] * (name not in silent) for name in said}
        kept.parent.mkdir(exist_ok=True)
        np.savez_compressed(kept, **arrays)
    arrays = dict(np.load(kept))
    candidates = arrays.pop("candidates")
    with_chains = {name: values for name, values in arrays.items() if not name.endswith(BARE)}
    return candidates, with_chains, {name: arrays[name + BARE] for name in with_chains}


def section(name: str, hits: Said, trained: list[Path]) -> str:
    """Return the table of one set."""
    manifests = [read_manifest(one / LAST) for one in trained]
    commits = ", ".join(sorted({str(one["commit"])[:10] for one in manifests}))
    seeds = ", ".join(str(one["seed"]) for one in manifests)
    lines = [
        f"## {name}",
        "",
        f"Seeds {seeds}; commit {commits}; {len(hits['test/likeliest']):,} test queries.",
        "",
        "| idea | HR@1, validation | HR@1, test | without chains | relative | 95 % interval | p | "
        "could have seen |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for word in IDEAS:
        valid, own, bare = (
            hits[row] for row in (f"valid/{word}", f"test/{word}", f"test/{word}{BARE}")
        )
        test = paired_test(bare, own, rng=np.random.default_rng(0))
        mean = own.mean()
        lines.append(
            f"| {word} | {valid.mean():.4f} | {mean:.4f} | {bare.mean():.4f} | "
            f"{test.difference / mean:+.1%} | {test.low / mean:+.1%} to {test.high / mean:+.1%} | "
            f"{test.p_permutation:.4f} | {test.could_have_seen / mean:.1%} |"
        )
    return "\n".join(lines) + "\n"


def rows_on_test() -> list[str]:
    return [word + end for word in IDEAS for end in ("", BARE)]


def write_page(found: list[tuple[str, Said]], sections: list[str]) -> None:
    """Write docs/results/blend-chains.md from the sets that are finished."""
    lines = [
        "# What chains do in R2Rec's blend",
        "",
        "Every number comes from `python benchmarks/blend_chains.py`: HR@1 of 20 candidates, on "
        f"all test queries or a fixed sample of {NUM_QUERIES:,}, of blends whose weights are found "
        "on validation. *Without chains* they, and their support, are taken out of prompt and "
        "blend, weights kept. Means over seeds; tests are paired over queries; the sets together "
        "as in [r2rec.md](r2rec.md), but that signs of queries are flipped, not of users. *Could "
        "have seen* is the smallest difference that a test at 5 % would have found in 80 of 100 "
        "tries.",
        "",
        "*Held* experts count at least as much as where the first stage, EASE and iALS are silent.",
        "",
        "| idea | what is weighed |",
        "| --- | --- |",
        *(f"| {word} | {idea.told} |" for word, idea in IDEAS.items()),
        "",
        "## All sets together",
        "",
        *heading("HR@1"),
        *(over_all(found, word + BARE, word) for word in IDEAS),
        *(over_all(found, word, "likeliest") for word in IDEAS if word not in APART),
        "",
    ]
    page = ROOT / "docs" / "results" / "blend-chains.md"
    page.write_text("\n".join([*lines, *sections]), encoding="utf-8")


if __name__ == "__main__":
    main()

"""How well does silence rank once it has learned all that thinking is trained on?

    REASONREC_DATA=... python benchmarks/silence.py runs/silence office-2018 ml-100k --demos runs
    python benchmarks/silence.py runs/silence --demos runs

Thoughts are ranked, in SFT and in RL, for events that no-think leaves out (`held_out`), so that a
model that thinks has been taught by a few more events than one that does not. Here no-think learns
from all of them, as `reasonrec train no-think --held-out.max-events 0` does. All goes on where it
stopped. Every line writes docs/results/silence.md from what is finished, beside the runs of
`reasonrec demo` that benchmarks/results.py reads.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import polars as pl
from floor import PREPARE, SEEDS
from other_titles import PRESETS
from running import ROOT, merged, reasonrec, say, write_sections
from stages import contestant, heading, method_table, paired_tests

from reasonrec.config import read_toml
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.measure import measure
from reasonrec.evaluation.runs import find_runs
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig

NAME = "no-think-all"
MOST_QUERIES = {"games-2018": 10_000}
"""Test queries of the demos that are not asked all of them."""
DEMOS = ("no-think", "think-sft", "think-recpo")
AGAINST = ((NAME, DEMOS[0]), *((one, NAME) for one in DEMOS[1:]))
HEAD = """# Silence that has learned all that thinking is trained on

Written by `python benchmarks/silence.py`. Thoughts are ranked, in SFT and in RL, for the last
events of some users, at most 2,000 and a twentieth of all, which `no-think` leaves out: on events
that it remembers, evidence looks useless. `no-think-all` is the same model without thoughts, and
learns from these events too. The other rows are those of the page of each set. Test queries, means
over seeds (± their standard deviation). p: sign-flip permutation test over users, means over seeds
on each query, not corrected. *Could have seen* is the smallest difference that the test would have
found in 80 of 100 tries.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*SEEDS])
    parser.add_argument("--demos", type=Path, required=True, help="holds <set>-<seed> demos")
    asked = parser.parse_args()
    for name in asked.sets:
        for seed in asked.seeds:
            run(name, asked.runs, seed)
    sections = {}
    for name in PREPARE:
        done = sorted(asked.runs.glob(f"{name}/{NAME}-[0-9]/manifest.json"))
        if done:
            own = [path.parent for path in done]
            sections[name] = section(name, own, sorted(asked.demos.glob(f"{name}-[0-9]")))
    write_sections(ROOT / "docs" / "results" / "silence.md", HEAD, sections, PREPARE)


def run(name: str, runs: Path, seed: int) -> None:
    """Train and measure one seed on one set."""
    data = runs / name / "data"
    reasonrec("prepare", name, "--out", data, *PREPARE[name])
    dataset = Dataset.load(data)
    base = R2ecConfig().model_dump()
    if name in PRESETS:
        base = merged(base, read_toml(Path(PRESETS[name][1])))
    config = R2ecConfig.model_validate(merged(base, {"held_out": {"max_events": 0}}))
    trained = runs / "trained" / f"{name}-{seed}" / NAME
    say(f"{name}, seed {seed}: {NAME}")
    r2ec.train_stage("no-think", dataset, config, out=trained, seed=seed)
    measure(
        [contestant(NAME, trained, seed, dataset)],
        dataset,
        runs / name / f"{NAME}-{seed}",
        EvaluateConfig(num_queries=MOST_QUERIES.get(name)),
        seed=seed,
        has_passport=True,
    )


def section(name: str, own: list[Path], demos: list[Path]) -> str:
    """Return the tables of one set, and their tests."""
    joined = join_runs(find_runs([*demos, *own]))
    asked = (*DEMOS, NAME)
    found = replace(
        joined,
        rows=tuple(row for row in joined.rows if row.method in asked),
        per_query=joined.per_query.filter(pl.col("method").is_in(asked)),
    )
    text = heading(name, found, own)
    return "\n".join([*text, *method_table(found), "", *paired_tests(found, AGAINST), ""])


if __name__ == "__main__":
    main()

"""How well does silence rank once it has learned all that thinking is trained on?

    REASONREC_DATA=... python benchmarks/silence.py runs/control office-2018 ml-100k --seeds 0 1 2
    python benchmarks/results.py runs/ --beside runs/paper runs/control

Thoughts are ranked, in SFT and in RL, for events that no-think leaves out (`held_out`), so that a
model that thinks has been taught by a few more events than one that does not. Here no-think learns
from all of them, as `reasonrec train no-think --held-out.max-events 0` does, and stands beside the
demos of its set as `no-think-all`. All goes on where it stopped.
"""

import argparse
from pathlib import Path

from floor import PREPARE, SEEDS
from other_titles import PRESETS
from running import merged, reasonrec, say
from stages import contestant

from reasonrec.config import read_toml
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.measure import measure
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig

NAME = "no-think-all"
MOST_QUERIES = {"games-2018": 10_000}
"""Test queries of the demos that are not asked all of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of controls, one folder a set")
    parser.add_argument("sets", nargs="+", choices=PREPARE)
    parser.add_argument("--seeds", nargs="+", type=int, default=[*SEEDS])
    asked = parser.parse_args()
    for name in asked.sets:
        for seed in asked.seeds:
            run(name, asked.runs, seed)


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


if __name__ == "__main__":
    main()

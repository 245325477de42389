"""Train the paper's preset on the tiny backbone and measure it beside ours.

    python benchmarks/papers_preset.py runs/paper ml-100k office-2018 --data runs --seeds 0 1 2

Takes the data of `reasonrec demo` in ``--data``, folders `<set>-<seed>` as benchmarks/results.py
names them, trains configs/r2ec/paper-tiny.toml and leaves `<set>/papers-preset-<seed>`, which
benchmarks/results.py (``--beside``) and benchmarks/comparison.py (``--peers``) read. Goes on where
it stopped.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from floor import PREPARE
from running import ROOT, say, source

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.measure import Contestant, measure
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig

NAME = "papers-preset"
PRESET = ROOT / "configs" / "r2ec" / "paper-tiny.toml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="+", choices=list(PREPARE))
    parser.add_argument("--data", type=Path, required=True, help="folder of <set>-<seed> runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    asked = parser.parse_args()
    for name in asked.sets:
        for seed in asked.seeds:
            run(asked.runs / name, asked.data / f"{name}-{seed}", seed)


def run(folder: Path, ours: Path, seed: int) -> None:
    """Train one seed on the data of a finished demo, and measure it on the queries of that."""
    dataset = Dataset.load(ours / "data")
    trained = folder / "trained" / str(seed)
    last = r2ec.train(dataset, R2ecConfig.load(PRESET), out=trained, seed=seed, announce=say)[-1]
    told = read_manifest(ours / "evaluation")["config"]
    evaluation = EvaluateConfig(num_queries=told["num_queries"])

    def opening(_: Path) -> Recommender:
        return replace(r2ec.load_recommender(last, dataset), name=NAME)  # pyright: ignore[reportArgumentType, reportReturnType]

    row = Contestant(NAME, seed, source(last), opening)
    measure([row], dataset, folder / f"{NAME}-{seed}", evaluation, seed=seed)


if __name__ == "__main__":
    main()

"""What does RL add to SFT, by which loss? RecPO by several losses from one SFT a seed.

    REASONREC_DATA=... python benchmarks/recpo_losses.py runs/losses office-2018 --seeds 0 1 2
    python benchmarks/recpo_losses.py runs/losses

For each set and seed: `reasonrec train r2ec` up to SFT, then RecPO by every loss of `LOSSES` from
there, as `reasonrec train recpo --start FOLDER/think-sft` does with those keys; each of them on
validation queries, by which one may choose, and on test queries. All goes on where it stopped.
Every line writes docs/results/recpo-losses.md from what is finished.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import polars as pl
from floor import PREPARE
from other_titles import PRESETS
from running import ROOT, merged, reasonrec, say
from stages import contestant, fill_page, heading, method_table, paired_tests

from reasonrec.config import read_toml
from reasonrec.data.dataset import Dataset, Part
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.measure import measure
from reasonrec.evaluation.runs import find_runs
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.training.loop import read_metrics

SETS = {"planted": ("--planted.num-users", "20000"), **PREPARE}


@dataclass(frozen=True)
class Loss:
    """One way to do RL."""

    what: str
    """Said to the reader."""
    changes: Mapping[str, object]
    """Keys of ``recpo.recpo``, whatever their defaults."""


PAPERS_LOSS = read_toml(ROOT / "configs" / "r2ec" / "paper-tiny.toml")["recpo"]["recpo"]
LOSSES = {
    "cool": Loss(
        "leave-one-out, drawn at temperature 1, mean over tokens: our default",
        {"advantage": "leave-one-out", "temperature": 1.0, "top_k": 0, "token_mean": "tokens"},
    ),
    "hot": Loss(
        "GRPO, drawn at temperature 1.5 among the likeliest 200, mean over rollouts",
        {"advantage": "grpo", "temperature": 1.5, "top_k": 200, "token_mean": "rollouts"},
    ),
    "papers-loss-catalogue": Loss(
        "the paper's, over the catalogue: as `hot`, without a loss of silence and without groups "
        "that have no spread (`configs/r2ec/shorter.toml`)",
        read_toml(ROOT / "configs" / "r2ec" / "shorter.toml")["recpo"]["recpo"],
    ),
}
EVALUATION = "evaluation"
MOST_QUERIES: Mapping[Part, int] = {"valid": 5_000, "test": 20_000}
TRUNK = ("no-think", "think-sft")
AGAINST = (*((one, TRUNK[-1]) for one in LOSSES), *combinations(tuple(LOSSES)[::-1], 2))
HEAD = """# What RL adds to SFT, by which loss

Written by `python benchmarks/recpo_losses.py`, whose head says what is trained: RecPO for as many
prompts by each of the losses below, from the same SFT of a seed. Up to 5,000 validation queries, by
which one may choose, and up to 20,000 test queries; means over seeds (± their standard deviation).
p: sign-flip permutation test over users, means over seeds on each query, not corrected. *Could have
seen* is the smallest difference that the test would have found in 80 of 100 tries. Commits before
109ac5c drew among the likeliest 200 as well, and took log-probabilities among all tokens.

"""
HEAD += "\n".join(f"- `{name}`: {loss.what}" for name, loss in LOSSES.items()) + "\n"


def run(name: str, folder: Path, seed: int) -> None:
    """Train and measure one seed on one set by every loss."""
    data = folder / "data"
    reasonrec("prepare", name, "--out", data, *SETS[name])
    preset = PRESETS.get(name, ())
    reasonrec(
        "train", "r2ec", "--data", data, "--out", folder, "--seed", seed, *preset,
        "--stages", "no-think", "--stages", "sft",
    )  # fmt: skip
    dataset = Dataset.load(data)
    base = R2ecConfig().model_dump()
    if preset:
        base = merged(base, read_toml(Path(preset[1])))
    measured(TRUNK, dataset, folder, seed)
    for loss, asked in LOSSES.items():
        say(f"{name}, seed {seed}: {loss}")
        config = R2ecConfig.model_validate(merged(base, {"recpo": {"recpo": asked.changes}}))
        out, start = folder / loss, folder / "think-sft"
        r2ec.train_stage("recpo", dataset, config, out=out, seed=seed, start=start)
        measured([loss], dataset, folder, seed)


def measured(methods: Sequence[str], dataset: Dataset, folder: Path, seed: int) -> None:
    """Measure trained folders, called as they are, on either part."""
    rows = [contestant(one, folder / one, seed, dataset) for one in methods]
    for part, most in MOST_QUERIES.items():
        out = folder / (EVALUATION if part == "test" else part)
        if len(methods) == 1:
            out = out.with_name(f"{out.name}-{methods[0]}")
        asked = EvaluateConfig(part=part, num_queries=most)
        measure(rows, dataset, out, asked, seed=seed, has_passport=True)


def section(name: str, evaluations: Sequence[Path]) -> str:
    """Return the tables of one set, and their tests."""
    seeds = [folder.parent for folder in evaluations]
    test, valid = (
        join_runs(find_runs([run for seed in seeds for run in finished(seed, stem)]))
        for stem in (EVALUATION, "valid")
    )
    text = heading(name, test, evaluations, SETS)
    for part, found in (("Validation", valid), ("Test", test)):
        text += [f"{part}:", "", *method_table(found), "", *paired_tests(found, AGAINST), ""]
    return "\n".join([*text, *chosen_from(seeds), ""])


def chosen_from(seeds: Sequence[Path]) -> list[str]:
    """Return a table of what the thoughts of a group left each loss to choose from."""
    lines = [
        "Rollouts, means over steps and seeds: by how much the reward of the best thought of a "
        "group is above the mean, and the share of groups whose thoughts all earned the same.",
        "",
        "| loss | best of a group | groups without spread |",
        "| --- | --: | --: |",
    ]
    for loss in LOSSES:
        done = [seed / loss for seed in seeds if (seed / loss / "manifest.json").exists()]
        if not done:
            continue
        steps = pl.concat(
            pl.DataFrame(read_metrics(run / "metrics.jsonl"), infer_schema_length=None).select(
                "rl/reward_mean", "rl/reward_best", "rl/frac_flat_groups"
            )
            for run in done
        ).drop_nulls()
        mean, best, flat = steps.mean().row(0)
        lines.append(f"| {loss} | {best / mean - 1:+.1%} | {flat:.0%} |")
    return lines


def finished(folder: Path, stem: str) -> list[Path]:
    """Return the measurements of one seed on one part, without those of losses that are gone."""
    found = [folder / stem, *(folder / f"{stem}-{loss}" for loss in LOSSES)]
    return [one for one in found if (one / "manifest.json").exists()]


if __name__ == "__main__":
    fill_page(__doc__ or "", "recpo-losses.md", HEAD, run, section, SETS)

"""What does RL add to SFT, by which loss? RecPO by several losses from one SFT a seed.

    REASONREC_DATA=... python benchmarks/recpo_losses.py runs/losses office-2018 --seeds 0 1 2
    python benchmarks/recpo_losses.py runs/losses

For each set and seed: `reasonrec train r2ec`, then RecPO again by every other loss of `LOSSES` from
the same SFT, as `reasonrec train recpo --start FOLDER/think-sft` does with those keys; all of them
on validation queries, by which one may choose, and on test queries. Each goes on where it
stopped. Every line writes docs/results/recpo-losses.md from what is finished.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ablations import PAPERS_LOSS
from floor import PREPARE
from other_titles import PRESETS
from running import merged, reasonrec, say
from stages import contestant, fill_page, heading, method_table, paired_tests

from reasonrec.config import read_toml
from reasonrec.data.dataset import Dataset, Part
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.measure import measure
from reasonrec.evaluation.runs import find_runs
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig

SETS = {"planted": ("--planted.num-users", "20000"), **PREPARE}
LOSSES: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "papers-loss-catalogue": (
        "loss, sampling and advantage of the paper, with the softmax over the catalogue",
        {**PAPERS_LOSS, "item_softmax": "catalogue"},
    ),
}  # fmt: skip
"""What each changes of the defaults of ``recpo.recpo``."""
MOST_QUERIES: Mapping[Part, int] = {"valid": 5_000, "test": 20_000}
TRUNK = ("no-think", "think-sft", "think-recpo")
AGAINST = tuple((one, "think-sft") for one in ("think-recpo", *LOSSES)) + tuple(
    (one, "think-recpo") for one in LOSSES
)
HEAD = """# What RL adds to SFT, by which loss

Written by `python benchmarks/recpo_losses.py`, whose head says what is trained: `think-recpo` is
ours, the others change what is said below, all from the same SFT of a seed and for as many prompts.
Up to 5,000 validation queries, by which one may choose, and up to 20,000 test queries; means over
seeds (± their standard deviation). p: sign-flip permutation test over users, means over seeds on
each query, not corrected. *Could have seen* is the smallest difference that the test would have
found in 80 of 100 tries.

"""
HEAD += "\n".join(f"- `{name}`: {what}" for name, (what, _) in LOSSES.items()) + "\n"


def run(name: str, folder: Path, seed: int) -> None:
    """Train and measure one seed on one set by every loss."""
    data = folder / "data"
    reasonrec("prepare", name, "--out", data, *SETS[name])
    preset = PRESETS.get(name, ())
    reasonrec("train", "r2ec", "--data", data, "--out", folder, "--seed", seed, *preset)
    dataset = Dataset.load(data)
    base = R2ecConfig().model_dump()
    if preset:
        base = merged(base, read_toml(Path(preset[1])))
    rows = [contestant(stage, folder / stage, seed, dataset) for stage in TRUNK]
    for loss, (_, changes) in LOSSES.items():
        say(f"{name}, seed {seed}: {loss}")
        config = R2ecConfig.model_validate(merged(base, {"recpo": {"recpo": changes}}))
        out, start = folder / loss, folder / "think-sft"
        r2ec.train_stage("recpo", dataset, config, out=out, seed=seed, start=start)
        rows.append(contestant(loss, out, seed, dataset))
    parts: tuple[tuple[Part, str], ...] = (("valid", "validation"), ("test", "evaluation"))
    for part, out in parts:
        asked = EvaluateConfig(part=part, num_queries=MOST_QUERIES[part])
        measure(rows, dataset, folder / out, asked, seed=seed, has_passport=True)


def section(name: str, evaluations: Sequence[Path]) -> str:
    """Return the tables of one set, and their tests."""
    joined = join_runs(find_runs(evaluations))
    text = heading(name, joined, evaluations, SETS)
    validation = [folder.parent / "validation" for folder in evaluations]
    for part, found in (
        ("Validation", join_runs(find_runs(validation))),
        ("Test", joined),
    ):
        text += [f"{part}:", "", *method_table(found), "", *paired_tests(found, AGAINST), ""]
    return "\n".join(text)


if __name__ == "__main__":
    fill_page(__doc__ or "", "recpo-losses.md", HEAD, run, section, SETS)

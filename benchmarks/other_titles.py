"""What is left of a result when no title can be recognised? The road on renamed and hashed items.

    REASONREC_DATA=... python benchmarks/other_titles.py runs/other-titles office-2018 --seeds 0 1 2
    python benchmarks/other_titles.py runs/other-titles

For each set and seed: the data prepared, and copies of it by `reasonrec audit --disguise`, in which
every word is another one, or every title a hash (docs/audits.md); on each of the three `reasonrec
train r2ec`, from nothing. All nine models then answer the same test queries. Every command that
runs is one that anybody can type; each goes on where it stopped. Every line writes
docs/results/other-titles.md from what is finished.
"""

from collections.abc import Sequence
from pathlib import Path

from floor import PREPARE
from running import reasonrec
from stages import contestant, fill_page, heading, method_table, paired_tests

from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.measure import measure
from reasonrec.evaluation.runs import find_runs

PRESETS = {"ml-1m": ("--config", "configs/r2ec/ml-1m.toml")}
STAGES = ("no-think", "think-sft", "think-recpo")
TITLES = ("own", "renamed", "hashed")
AGAINST = tuple(
    (f"{stage}, {titles}", f"{stage}, own") for titles in TITLES[1:] for stage in STAGES
) + tuple((f"think-recpo, {titles}", f"no-think, {titles}") for titles in TITLES)
HEAD = """# What the names of items are worth

Written by `python benchmarks/other_titles.py`, whose head says what is trained: the same events,
ids and queries under each item's own title, with every word of titles and categories replaced by
one made-up word (*renamed*), and with a hash for each title and category (*hashed*); descriptions
are dropped from both copies. A model that had read about these items, or about the data set, would
lose on the copies. The tiny backbone has read nothing but the training split. Test queries, means
over seeds (± their standard deviation). p: sign-flip permutation test over users, means over seeds
on each query, not corrected.
"""


def run(name: str, folder: Path, seed: int) -> None:
    """Train and measure one seed on one set under all titles."""
    own = folder / "data"
    reasonrec("prepare", name, "--out", own, *PREPARE[name])
    asked = [word for titles in TITLES[1:] for word in ("--disguise", titles)]
    reasonrec("audit", own, "--out", folder / "audits", *asked)
    data = {"own": own} | {one: folder / "audits" / f"data-{one}" for one in TITLES[1:]}
    rows = []
    for titles in TITLES:
        reasonrec(
            "train", "r2ec", "--data", data[titles], "--out", folder / titles, "--seed", seed,
            *PRESETS.get(name, ()),
        )  # fmt: skip
        dataset = Dataset.load(data[titles])
        rows += [
            contestant(f"{stage}, {titles}", folder / titles / stage, seed, dataset)
            for stage in STAGES
        ]
    measure(
        rows,
        Dataset.load(own),
        folder / "evaluation",
        EvaluateConfig(),
        seed=seed,
        has_passport=True,
    )


def section(name: str, evaluations: Sequence[Path]) -> str:
    """Return the table of one set, and its tests."""
    joined = join_runs(find_runs(evaluations))
    text = [
        *heading(name, joined, evaluations),
        *method_table(joined, "method, titles"),
    ]
    return "\n".join([*text, "", *paired_tests(joined, AGAINST)]) + "\n"


if __name__ == "__main__":
    fill_page(__doc__ or "", "other-titles.md", HEAD, run, section)

"""Does RecPO learn how far to look? Thoughts of drawn numbers of look-ups, and a price on tokens.

    REASONREC_DATA=... python benchmarks/look_ups.py runs/look-ups office-2018 --seeds 0 1 2
    python benchmarks/look_ups.py runs/look-ups

For each set and seed: one model without thoughts; SFT on thoughts that look up seven titles each
(our default), three each, and a number drawn from none to seven; from the last RecPO, free and
with a price on written tokens (``length_weight``). RecPO learns ten times as fast as by default,
so that fifty steps can change what is asked. Every command that runs is one that anybody can type;
each goes on where it stopped. Every line writes docs/results/look-ups.md from what is finished:
means over seeds on the test queries, and tests paired over queries.
"""

from collections.abc import Sequence
from pathlib import Path

from floor import PREPARE
from running import reasonrec
from stages import contestant, fill_page, heading, paired_tests

from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.measure import measure
from reasonrec.evaluation.protocol import COST, FULL
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.table import MethodLine, short, summarise

FAST = ("--recpo.optimiser.learning-rate", "3e-4")
DRAWN = ("--thought.min-lookups", "0")
PRICE = "0.1"
STAGES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "no-think": ("no-think", "", ()),
    "sft-7": ("sft", "no-think", ()),
    "sft-3": ("sft", "no-think", ("--thought.num-lookups", "3")),
    "sft-drawn": ("sft", "no-think", DRAWN),
    "recpo": ("recpo", "sft-drawn", (*DRAWN, *FAST)),
    "recpo-priced": ("recpo", "sft-drawn", (*DRAWN, *FAST, "--recpo.recpo.length-weight", PRICE)),
}
"""What each folder is: stage, the folder it starts from, and what it is told besides."""
WHAT = {
    "no-think": "ranks in silence",
    "sft-7": "SFT, seven look-ups a thought: our default",
    "sft-3": "SFT, three look-ups a thought",
    "sft-drawn": "SFT, none to seven, drawn evenly",
    "recpo": "RecPO from sft-drawn, rewarded for the ranking alone",
    "recpo-priced": f"the same, `length_weight` {PRICE}",
}
COLUMNS = ((FULL, "hit@10"), (FULL, "ndcg@10"), (COST, "tokens"), (COST, "latency-p50-ms"))
AGAINST = (
    ("recpo", "sft-drawn"), ("recpo-priced", "sft-drawn"), ("recpo-priced", "sft-3"),
    ("recpo-priced", "sft-7"), ("recpo", "sft-7"),
)  # fmt: skip
HEAD = """# Does RecPO learn how far to look?

Written by `python benchmarks/look_ups.py`, whose head says what is trained. Test queries, trained
on `train` alone, means over seeds (± their standard deviation); tokens are those of a thought,
looked-up ones included. p: sign-flip permutation test over users, means over seeds on each query,
not corrected. RecPO here learns at 3e-4, ten times our default.
"""


def run(name: str, folder: Path, seed: int) -> None:
    data = folder / "data"
    reasonrec("prepare", name, "--out", data, *PREPARE[name])
    for own, (stage, start, told) in STAGES.items():
        begins = ["--start", folder / start] if start else []
        reasonrec(
            "train", stage, *begins, "--data", data, "--out", folder / own, "--seed", seed, *told
        )
    dataset = Dataset.load(data)
    rows = [contestant(own, folder / own, seed, dataset) for own in STAGES]
    measure(rows, dataset, folder / "evaluation", EvaluateConfig(), seed=seed, has_passport=True)


def section(name: str, evaluations: Sequence[Path]) -> str:
    """Return the table of one set, and its tests."""
    joined = join_runs(find_runs(evaluations))
    lines = {line.method: line for line in summarise(joined.rows, COLUMNS)}
    text = [
        *heading(name, joined, evaluations),
        "| method | what it is | seeds | HR@10 | NDCG@10 | tokens | ms / user |",
        "| --- | --- | --: | --: | --: | --: | --: |",
        *(row(lines[method]) for method in STAGES if method in lines),
        "",
        *paired_tests(joined, AGAINST),
    ]
    return "\n".join(text) + "\n"


def row(line: MethodLine) -> str:
    cells = []
    for (_, metric), cell in zip(COLUMNS, line.cells, strict=True):
        assert cell is not None
        spread = "" if cell.seed_sd is None else f" ± {short(cell.seed_sd)}"
        is_cost = metric not in ("hit@10", "ndcg@10")
        cells.append(f"{cell.value:.0f}" if is_cost else short(cell.value) + spread)
    return "| " + " | ".join([line.method, WHAT[line.method], str(line.num_seeds), *cells]) + " |"


if __name__ == "__main__":
    fill_page(__doc__ or "", "look-ups.md", HEAD, run, section)

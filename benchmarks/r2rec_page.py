"""Writes docs/results/r2rec.md from what benchmarks/r2rec.py finished."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from over_all import heading, over_all
from r2rec_rows import (
    ABLATIONS,
    BASELINES,
    BLENDED,
    BUDGET,
    EVIDENCE,
    JOINED,
    ONE_SCALE,
    PREPARE,
    PROTOCOL,
    TRANSFERRED,
)
from running import ROOT, processors

from reasonrec.evaluation.comparison import Comparison, compare
from reasonrec.evaluation.joined import Joined, join_runs, on_common_queries, values_of
from reasonrec.evaluation.protocol import COST
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.table import MethodLine, short, summarise
from reasonrec.manifest import read_manifest

COLUMNS = ((PROTOCOL, "hit@1"), (PROTOCOL, "hit@3"), (PROTOCOL, "hit@5"), (PROTOCOL, "ndcg@20"))
HEADINGS = ("method", "seeds", "HR@1", "HR@3", "HR@5", "NDCG", "tokens / user", "ms / user")
HEAD = """# R2Rec

Every number comes from `python benchmarks/r2rec.py`. Twenty candidates, the one taken and 19 that
the user touches nowhere, the same for all methods; all test queries, or a fixed sample of 2,000.
Baselines were tuned by NDCG@10 on validation: simple ones with {budget} settings each, those of
other libraries as [peers.md](peers.md) says. A tie for the first place is no hit. ± is the standard
deviation over seeds; tests are paired over queries. *Could have seen* is the smallest difference
that a test at 5 % would have found in 80 of 100 tries.

| row | what it is |
| --- | --- |
| `chain-count` | how many chains close on a candidate, nothing else |
| `no-think` | the backbone before R2Rec, without a thought: what R2Rec starts from |
| `untuned` | the same weights, asked the questions of R2Rec in words |
| `direct-sft` | SFT on answers without thoughts; chains stand in the prompt |
| `history-closed-sft` | as `r2rec-sft`, with chains that close on the history, no support |
| `no-chains-sft` | SFT on thoughts from history and likeness of words alone |
| `r2rec-sft`, `r2rec-rl` | thoughts along chains: SFT, then GRPO; ranked by the answer alone |
| `.../blend` | the answer weighed with no-think, chains, popularity, words, EASE and iALS{since} |
| `{evidence}` | the same blend without the model's answer: what thinking has to add to |
| `think-recpo` | R²ec after RecPO: scores every item after a thought, and is asked about these |
| `joined-sft...` | R2Rec that starts from `think-recpo`: both methods joined |
| `.../no-chains` | chains and their support taken out of the prompt, and of the blend |
"""


SINCE = (
    "; by likelihood alone up to commit 1ee2a18, chains held since "
    "([blend-chains.md](blend-chains.md))"
)
OVER_ALL = (
    (BLENDED, "best baseline"), (BLENDED, EVIDENCE), ("r2rec-rl", "r2rec-sft"),
    ("r2rec-sft", "direct-sft"), ("r2rec-rl", "untuned"), ("r2rec-rl/no-chains", "r2rec-rl"),
    ("r2rec-sft", "no-chains-sft"), ("r2rec-sft", "history-closed-sft"),
)  # fmt: skip
"""Pairs that are compared over all sets together."""


def write_page(runs: Path, beside: Sequence[Path] = ()) -> None:
    """Write docs/results/r2rec.md from what is finished.

    ``beside`` are folders of benchmarks/floor.py and benchmarks/peers.py, which hold the same sets.
    """
    sections: list[str] = []
    found: list[tuple[str, dict[str, np.ndarray]]] = []
    users: dict[str, np.ndarray] = {}
    for name in PREPARE:
        folder = runs / name
        if (folder / "floor" / "manifest.json").exists():
            section, users[name], hits = set_section(name, folder, beside)
            sections.append(section)
            found.append((name, hits))
    head = HEAD.format(budget=BUDGET, evidence=EVIDENCE, since=SINCE)
    head += "\n".join(
        [
            "",
            "Over all sets together: the mean over sets of the difference in HR@1 relative to the "
            "reference, means over seeds on each query, signs of users flipped. The best baseline "
            "is that of each set, by HR@1 on test; no-think is not counted among the baselines.",
            "",
            *heading("HR@1"),
            *(over_all(found, *pair, users=users) for pair in OVER_ALL),
            "",
        ]
    )
    page = ROOT / "docs" / "results" / "r2rec.md"
    page.write_text("\n".join([head, *sections]), encoding="utf-8")


def set_section(
    name: str, folder: Path, beside: Sequence[Path]
) -> tuple[str, np.ndarray, dict[str, np.ndarray]]:
    """Return the section of one set, whose query each is, and HR@1 of its methods on each."""
    done = sorted(folder.glob("seed-*/measured/*/manifest.json"))
    runs = [folder / "floor", *(path.parent for path in done)]
    others = [
        path.parent
        for root in beside
        for path in sorted(root.glob(f"{name}/*-[0-9]/manifest.json"))
    ]
    joined, baselines = with_others(join_runs(find_runs(runs)), others)
    lines = summarise(joined.rows, COLUMNS)
    hits = {line.method: line.cells[0].value for line in lines if line.cells[0]}
    best = max(baselines, key=lambda method: hits[method])
    commits = sorted({str(read_manifest(run)["commit"])[:10] for run in [*runs, *others]})
    test = joined.rows[0]
    text = [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {test.split}, {test.n:,} test "
        f"queries; commit {', '.join(commits)}; {processors(runs)}, one thread beside "
        "other work, so milliseconds say an order of magnitude.",
        "",
        *table(lines),
    ]
    if any(method.startswith(("r2rec", "joined")) for method in hits):
        pairs = [
            (BLENDED, best), (BLENDED, "no-think"), (BLENDED, EVIDENCE), ("r2rec-rl", best),
            ("r2rec-sft/blend", best), ("r2rec-sft/blend", "no-think"), ("r2rec-sft", best),
            ("r2rec-rl", "untuned"), ("r2rec-rl", "r2rec-sft"), ("r2rec-sft", "direct-sft"),
            ("r2rec-sft", "history-closed-sft"), ("history-closed-sft", "direct-sft"),
            ("r2rec-sft", "no-chains-sft"), ("r2rec-rl/no-chains", "r2rec-rl"),
            (f"{BLENDED}/no-chains", BLENDED),
            (JOINED, best), (JOINED, "think-recpo"), (JOINED, "joined/no-answers"),
            ("joined-sft", best),
        ]  # fmt: skip
        compared = compare(joined, best, COLUMNS[:1])
        found = [one for a, b in pairs for one in compared.against.get(b, ()) if one.method == a]
        text += ["", *tests(found, hits)]
    ablations = sorted(folder.glob("seed-*/ablations/*/manifest.json"))
    if ablations:
        heading = f"{name}: ablations of r2rec-sft"
        controls = ("r2rec-sft", "history-closed-sft", "no-chains-sft", "direct-sft")
        text += more_rows(heading, runs, ablations, "r2rec-sft", [*ABLATIONS, *controls])
    if rated := sorted(folder.glob("seed-*/by-rating/*/manifest.json")):
        words = [f"rated{word}" for word in ("-sft", "-rl", "-direct-sft")]
        own = max((one for one in BASELINES if one in hits), key=lambda method: hits[method])
        shown = [*words, "r2rec-sft", "direct-sft", "untuned", own]
        text += more_rows(f"{name}: ranked by ratings", runs, rated, "r2rec-sft", shown)
    transfers = sorted(folder.glob("seed-*/transfer/*/manifest.json"))
    if transfers:
        rows = [f"{row} of {one}" for one in ONE_SCALE for row in TRANSFERRED]
        shown = [*rows, "untuned", "chain-count", *TRANSFERRED]
        text += more_rows(f"{name}: trained on other sets", runs, transfers, "chain-count", shown)
    each = values_of(joined.per_query, *COLUMNS[0])
    assert each is not None
    values = dict(zip(each.methods, each.table.T, strict=True))
    return "\n".join(text) + "\n", each.users, {**values, "best baseline": values[best]}


def with_others(joined: Joined, folders: Sequence[Path]) -> tuple[Joined, list[str]]:
    """Return the rows with baselines measured elsewhere, on the same queries, and all baselines.

    What both have, such as the follow counter, is taken from the runs themselves.
    """
    if not folders:
        return joined, [*BASELINES]
    others = join_runs(find_runs(folders))
    own = {row.method for row in joined.rows}
    added = [
        row for row in others.rows if row.method not in own and row.protocol in (PROTOCOL, COST)
    ]
    ranks = others.per_query.filter(~pl.col("method").is_in(own), pl.col("protocol") == PROTOCOL)
    both = replace(
        joined,
        rows=(*joined.rows, *added),
        per_query=pl.concat([joined.per_query, ranks]),
    )
    return on_common_queries(both), [*BASELINES, *dict.fromkeys(row.method for row in added)]


def more_rows(
    heading: str, runs: Sequence[Path], more: Sequence[Path], reference: str, shown: Sequence[str]
) -> list[str]:
    """Return a part of a set's section: rows beside a reference, those in ``more`` tested.

    All of them on the queries that ``more`` answered.
    """
    joined = on_common_queries(join_runs(find_runs([*runs, *(path.parent for path in more)])))
    lines = [line for line in summarise(joined.rows, COLUMNS) if line.method in shown]
    added = join_runs(find_runs([path.parent for path in more]))
    tested = {row.method for row in added.rows}
    compared = compare(joined, reference, COLUMNS[:1])
    found = [one for one in compared.comparisons if one.method in tested]
    heading = f"{heading}, {joined.rows[0].n:,} queries"
    return ["", f"### {heading}", "", *table(lines), "", *tests(found, {})]


def table(lines: Sequence[MethodLine]) -> list[str]:
    text = ["| " + " | ".join(HEADINGS) + " |", "| ---" + " | --:" * (len(HEADINGS) - 1) + " |"]
    for line in lines:
        cells = []
        for cell in line.cells:
            spread = "" if cell is None or cell.seed_sd is None else f" ± {short(cell.seed_sd)}"
            cells.append("-" if cell is None else short(cell.value) + spread)
        tokens = "-" if not line.tokens else f"{line.tokens:.0f}"
        words = [line.method, str(line.num_seeds), *cells, tokens, f"{line.latency_ms or 0:.1f}"]
        text.append("| " + " | ".join(words) + " |")
    return text


def tests(found: Sequence[Comparison], hits: Mapping[str, float]) -> list[str]:
    text = [
        "| HR@1 of | against | difference | 95 % interval | relative | p | could have seen |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for one in found:
        relative = f"{one.difference / hits[one.reference]:+.1%}" if hits else "-"
        text.append(
            f"| {one.method} | {one.reference} | {one.difference:+.4f} | {one.ci_low:+.4f} to "
            f"{one.ci_high:+.4f} | {relative} | {one.p_permutation:.4f} | "
            f"{one.could_have_seen:.4f} |"
        )
    return text

"""What do the thoughts do? Changed, cut, checked, sampled many times, and left to a gate.

    REASONREC_DATA=... python benchmarks/thoughts.py runs/thoughts runs/office-2018-[012]
    python benchmarks/thoughts.py runs/thoughts runs/planted-0 --num-queries 2000
    python benchmarks/thoughts.py runs/thoughts

For each run of `reasonrec demo`, whose folder is named after its set and seed, `think-recpo` is
asked by `reasonrec faithfulness` about a fixed sample of test queries, by `thoughts_curve.py` about
one of validation queries, and learns two gates, which answer all test queries beside it: one from
what thoughts gained, and one from RecPO's groups of thoughts and silence, which may spend about
half of the tokens. Every command that runs is one that anybody can type; each goes on where it
stopped. Every line writes docs/results/thoughts.md from what is finished; sets that are not at hand
keep their section.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from running import ROOT, processors, reasonrec, say, write_sections
from stages import paired_tests

from reasonrec.evaluation.faithfulness.effects import CONDITIONS, OWN
from reasonrec.evaluation.faithfulness.report import Faithfulness, read_faithfulness
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.protocol import COST, FULL
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.significance import paired_test
from reasonrec.evaluation.table import short, summarise
from reasonrec.manifest import read_manifest
from reasonrec.metrics import metric_values

SETS = ("planted", "ml-100k", "office-2018", "ml-1m", "games-2018")
METHOD = "think-recpo"
NUM_QUERIES = 1000
"""Of each sample unless told; the gate is measured on all that the demo was measured on."""
COUNTS, TEMPERATURES = (1, 2, 4, 8), (0.5, 1.0)
HEAD = f"""# What the thoughts do

Written by `python benchmarks/thoughts.py`, whose head says what is asked. `{METHOD}` of the runs of
`reasonrec demo`, means over their seeds. What each condition and share means stands in
[../audits.md](../audits.md). Differences are paired over queries, means over seeds on each; 95 %
intervals from resampled users; p: sign-flip permutation test, not corrected; *could have seen*: the
smallest difference that the test would have found in 80 of 100 tries, which is .71 of the width of
the interval. Queries are a sample where a set has more than a section says, the same for all seeds;
the gate answers all. planted is the world of 20,000 readers of [ablations.md](ablations.md), whose
default was laid out as a demo.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of what is found, one folder a run")
    parser.add_argument("runs", type=Path, nargs="*", help="demos, folders called SET-SEED")
    parser.add_argument("--num-queries", type=int, default=NUM_QUERIES, help="of each sample")
    asked = parser.parse_args()
    for run in asked.runs:
        ask(run, asked.out / run.name, asked.num_queries)
    sections = {}
    for name in SETS:
        folders = sorted(asked.out.glob(f"{name}-[0-9]*"))
        folders = [one for one in folders if (one / "gated" / "manifest.json").exists()]
        if folders:
            sections[name] = section(name, folders)
    write_sections(ROOT / "docs" / "results" / "thoughts.md", HEAD, sections, SETS)


def ask(run: Path, out: Path, num_queries: int) -> None:
    """Ask one run everything that the page tells, of samples of so many queries."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    seed, model, data = config["seed"], run / METHOD, run / "data"
    reasonrec(
        "faithfulness", model, "--data", data, "--out", out / "changed", "--seed", seed,
        "--num-queries", num_queries,
    )  # fmt: skip
    if not (out / "curve" / "curve.json").exists():
        script = ROOT / "benchmarks" / "thoughts_curve.py"
        words = ["--data", data, "--out", out / "curve", "--num-queries", num_queries]
        say(f"python benchmarks/{script.name} {' '.join(map(str, [model, *words]))}")
        command = [sys.executable, script, model, *words]
        subprocess.run([str(word) for word in command], check=True)
    reasonrec(
        "train", "gate", "--start", model, "--data", data, "--out", out / "gate", "--seed", seed
    )
    half = 5 * round(mean_tokens(run / "evaluation") / 10)  # the same for all seeds of a set
    reasonrec(
        "train", "gate", "--start", model, "--data", data, "--out", out / "gate-half",
        "--gate.source", "rollouts", "--gate.max-mean-tokens", half, "--seed", seed,
    )  # fmt: skip
    most = config["evaluation"]["num_queries"]
    for gate, measured in (("gate", "gated"), ("gate-half", "gated-half")):
        reasonrec(
            "evaluate", run / "no-think", model, out / gate, "--data", data, "--seed", seed,
            "--out", out / measured, *([] if most is None else ["--num-queries", most]),
        )  # fmt: skip


def mean_tokens(evaluation: Path) -> float:
    """Return the mean number of tokens of a thought of the model, as measured."""
    (line,) = [
        line
        for line in summarise(join_runs(find_runs([evaluation])).rows, ((FULL, "ndcg@10"),))
        if line.method == METHOD
    ]
    assert line.tokens is not None
    return line.tokens


def section(name: str, folders: Sequence[Path]) -> str:
    """Return what is told of one set."""
    reports = [read_faithfulness(folder / "changed") for folder in folders]
    commits = {str(read_manifest(folder / "changed")["commit"])[:10] for folder in folders}
    first = reports[0]
    text = [
        f"## {name}",
        "",
        f"{first.split}, {first.num_queries:,} test queries; {len(folders)} "
        f"seed{'s' if len(folders) > 1 else ''}; commit {', '.join(sorted(commits))}; "
        f"{processors(folder / 'gated' for folder in folders)}, one thread beside other work.",
        "",
        *changed([folder / "changed" for folder in folders]),
        "",
        *along(reports),
        "",
        *named(reports),
        *reasons(reports),
        "",
        *sampled([folder / "curve" / "curve.json" for folder in folders]),
        "",
        "All test queries, with a gate that learned from what thoughts gained and spends what it "
        "likes:",
        "",
        *gated([folder / "gated" for folder in folders]),
    ]
    halved = [folder / "gated-half" for folder in folders]
    halved = [folder for folder in halved if (folder / "manifest.json").exists()]
    if halved:
        text += [
            "", "With one that learned from RecPO's groups of thoughts and silence, and may spend "
            "about half of the tokens:", "", *gated(halved),
        ]  # fmt: skip
    return "\n".join(text) + "\n"


def changed(folders: Sequence[Path]) -> list[str]:
    """Return the table of thoughts that are taken away, replaced or changed."""
    tables = [measured(folder / "per_query.parquet") for folder in folders]
    users = dict(pl.concat(tables).select("query", "user_index").unique().iter_rows())
    lines = [
        "| the thought | NDCG@10 | change | 95 % interval | p | could have seen | "
        "log p of the target, change | n |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for condition, meaning in CONDITIONS.items():
        each = pl.concat(table.filter(pl.col("condition") == condition) for table in tables)
        if not each.height:
            continue
        found = each.drop("condition").group_by("query").mean().sort("query")
        value, own = found["ndcg@10"].to_numpy(), found["own_ndcg@10"].to_numpy()
        cells = ["", "", "", ""]
        moved = ""
        if condition != OWN:
            of_users = np.array([users[query] for query in found["query"].to_list()])
            of_users = np.unique(of_users, return_inverse=True)[1]
            test = paired_test(value, own, rng=np.random.default_rng(0), users=of_users)
            cells = [
                f"{test.difference:+.4f}", f"{test.low:+.4f} to {test.high:+.4f}",
                f"{test.p_permutation:.4f}", f"{test.could_have_seen:.4f}",
            ]  # fmt: skip
            moved = f"{(found['log_prob'] - found['own_log_prob']).mean():+.3f}"
        row = [f"{condition}: {meaning}", short(float(value.mean())), *cells, moved]
        lines.append("| " + " | ".join([*row, f"{len(value):,}"]) + " |")
    return lines


def measured(path: Path) -> pl.DataFrame:
    """Return query, condition and, for each, the measures beside those of the own thought."""
    cases = pl.read_parquet(path)
    cases = cases.with_columns(
        pl.Series("ndcg@10", metric_values("ndcg@10", cases["rank"].to_numpy()))
    )
    names = ["ndcg@10", "log_prob"]
    each = cases.group_by("query", "condition").agg(
        pl.col("user_index").first(), *(pl.col(name).mean() for name in names)
    )
    own = each.filter(pl.col("condition") == OWN).select(
        "query", *(pl.col(name).alias(f"own_{name}") for name in names)
    )
    return each.join(own, on="query").with_columns(pl.col("user_index").cast(pl.Int64))


def along(reports: Sequence[Faithfulness]) -> list[str]:
    """Return NDCG@10 after each sentence or look-up, the thought cut there."""
    values: dict[int, list[float]] = {}
    for report in reports:
        for one in report.curve:
            if one.measure == "ndcg@10":
                values.setdefault(int(one.condition.removeprefix("cut-")), []).append(one.value)
    kept = [place for place, each in sorted(values.items()) if len(each) == len(reports)]
    return [
        "NDCG@10 after so many sentences and look-ups, the answer marker put there:",
        "",
        "| " + " | ".join(map(str, kept)) + " |",
        "|" + " --: |" * len(kept),
        "| " + " | ".join(short(float(np.mean(values[place]))) for place in kept) + " |",
    ]


def named(reports: Sequence[Faithfulness]) -> list[str]:
    """Return the table of what is named, and whether it stands in the evidence."""
    lines = [
        "| named | in the evidence | in another user's | invented | a thought |",
        "| --- | --: | --: | --: | --: |",
    ]
    for kind in dict.fromkeys(one.kind for report in reports for one in report.groundedness):
        rows = [one for report in reports for one in report.groundedness if one.kind == kind]
        cells = [
            mean_of([getattr(one, field) for one in rows])
            for field in ("value", "chance", "invented", "num_named")
        ]
        shown = ["-" if cell is None else f"{cell:.3f}" for cell in cells]
        lines.append("| " + " | ".join([kind, *shown]) + " |")
    return lines


def reasons(reports: Sequence[Faithfulness]) -> list[str]:
    """Return the table of true reasons, where they are known."""
    keys = dict.fromkeys((one.cause, one.measure) for report in reports for one in report.reasons)
    if not keys:
        return []
    lines = ["", "| cause | the thought names it | by chance |", "| --- | --: | --: |"]
    for key in keys:
        rows = [one for r in reports for one in r.reasons if (one.cause, one.measure) == key]
        value, chance = (float(np.mean([getattr(r, f) for r in rows])) for f in ("value", "chance"))
        lines.append(f"| {key[0]} ({key[1]}) | {value:.3f} | {chance:.3f} |")
    return lines


def sampled(paths: Sequence[Path]) -> list[str]:
    """Return the curve of NDCG@10 against the number of thoughts, on validation."""
    curves = [json.loads(path.read_text(encoding="utf-8"))["points"] for path in paths]
    lines = [
        "Validation queries, sampled thoughts averaged (*detectable*: what one seed could have "
        "seen):",
        "",
        "| thoughts | NDCG@10 | less greedy | tokens | CPU ms | detectable |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    for points in zip(*curves, strict=True):
        one = points[0]
        way = one["way"]
        if way == "sampled":
            way = f"{one['num_thoughts']} at temperature {one['temperature']:g}"
        means = {
            name: mean_of([point[name] for point in points])
            for name in ("ndcg", "difference", "tokens", "cpu_ms", "detectable")
        }
        cells = [
            short(means["ndcg"] or 0.0), f"{means['difference']:+.4f}", f"{means['tokens']:.0f}",
            "-" if means["cpu_ms"] is None else f"{means['cpu_ms']:.1f}",
            short(means["detectable"] or 0.0),
        ]  # fmt: skip
        lines.append("| " + " | ".join([way, *cells]) + " |")
    return lines


def gated(folders: Sequence[Path]) -> list[str]:
    """Return the table of the gate beside always and never thinking, on all test queries."""
    joined = join_runs(find_runs(folders))
    lines = ["| method | NDCG@10 | tokens | users/s |", "| --- | --: | --: | --: |"]
    columns = ((FULL, "ndcg@10"), (COST, "tokens"), (COST, "users-per-second"))
    methods = []
    for line in summarise(joined.rows, columns):
        methods.append(line.method)
        accuracy, *costs = line.cells
        assert accuracy is not None
        spread = "" if accuracy.seed_sd is None else f" ± {short(accuracy.seed_sd)}"
        shown = ["-" if cost is None else f"{cost.value:,.0f}" for cost in costs]
        row = [line.method, short(accuracy.value) + spread, *shown]
        lines.append("| " + " | ".join(row) + " |")
    gates = [method for method in methods if method not in ("no-think", METHOD)]
    pairs = [(gate, other) for gate in gates for other in (METHOD, "no-think")]
    return [*lines, "", *paired_tests(joined, pairs)]


def mean_of(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if found else None


if __name__ == "__main__":
    main()

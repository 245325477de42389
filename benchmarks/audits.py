"""Audit the tuned baselines' evaluation of each real data set; write docs/results/audits.md.

    REASONREC_DATA=... python benchmarks/audits.py runs/floor ml-100k office-2018 \
        --beside runs/peers runs/llm
    python benchmarks/audits.py runs/floor --beside runs/peers runs/llm --only-write

The folder is that of benchmarks/floor.py, whose runs the first line audits where they have not been
audited, and with them the first seed of each method of benchmarks/peers.py and llm_baselines.py;
the second writes the sections of what is finished there, and leaves the others. Nothing is typed in
by hand.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from floor import PREPARE
from results import parts_of_queries, parts_table
from running import ROOT, reasonrec, write_sections

from reasonrec.evaluation.audits.records import Audit, read_audits
from reasonrec.evaluation.table import short
from reasonrec.manifest import read_manifest

TIES = "tied-scores-"
FULL = "-full"
HEAD = """# Audits of the data sets

Every number comes from `python benchmarks/audits.py`, through `reasonrec audit` of the evaluation
of the tuned baselines ([floor.md](floor.md)), seed 0; what each audit asks stands in
[../audits.md](../audits.md). Ties and parts of the queries are also those of the peers
([peers.md](peers.md)) and of the language models ([llm-baselines.md](llm-baselines.md)), seed 0,
where their runs were at hand. *pass*, *warn* and *fail* follow from the limit beside them. A
warning is about the data set or the protocol, and what it does to the tables is said there: under
leave-one-out, for one, others' later events are in everybody's training log. The audits of our own
methods stand in the `audits/` of each run and on its report.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of benchmarks/floor.py")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--beside", nargs="*", type=Path, default=[], help="folders of other runs")
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    for name in [] if asked.only_write else asked.sets:
        for run in evaluated(name, asked.runs, asked.beside):
            reasonrec("audit", run, "--out", run / "audits")
            write_page(asked.runs, asked.beside)
    write_page(asked.runs, asked.beside)


def evaluated(name: str, runs: Path, beside: Sequence[Path]) -> list[Path]:
    """Return the evaluations of seed 0 of a set: that of all tuned baselines, then the others'."""
    others = (path for folder in beside for path in sorted((folder / name).glob("*-0")))
    return [
        runs / name / "test-0",
        *(one for one in others if (one / "per_query.parquet").exists()),
    ]


def write_page(runs: Path, beside: Sequence[Path]) -> None:
    """Write the sections of the sets that are audited."""
    audited = {
        name: [
            run
            for run in evaluated(name, runs, beside)
            if (run / "audits" / "manifest.json").exists()
        ]
        for name in PREPARE
    }
    sections = {name: set_section(name, folders) for name, folders in audited.items() if folders}
    write_sections(ROOT / "docs" / "results" / "audits.md", HEAD, sections, PREPARE)


def set_section(name: str, folders: Sequence[Path]) -> str:
    """Return the section of one set: the audits of the first evaluation, ties by method and results
    on parts of the queries of all."""
    run = folders[0]
    audits = read_audits(run / "audits")
    found = [row for one in folders for row in read_audits(one / "audits").rows]
    ties = [row for row in found if row.audit.startswith(TIES)]
    lines = [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {audits.split}; commit "
        f"{str(read_manifest(run / 'audits')['commit'])[:10]}.",
        "",
        "| audit | value | of | limit | verdict |",
        "| --- | --: | --: | --- | --- |",
        *(audit_row(row) for row in audits.rows if not row.audit.startswith(TIES)),
        "",
        "Share of the targets whose score is another item's too, in the whole catalogue: "
        + ", ".join(
            f"{row.audit.removeprefix(TIES).removesuffix(FULL)} {bound(row)}{worth(row)}"
            for row in ties
            if row.audit.endswith(FULL)
        )
        + ". Such a target has the middle of the ranks that it shares. *At least*: of a run whose "
        "lists are not at hand any more, ties of an odd number alone.",
        "",
        "NDCG@10 on parts of the queries:",
        "",
        *parts_table(parts_of_queries(list(folders))),
    ]
    return "\n".join(lines) + "\n"


def audit_row(row: Audit) -> str:
    limit = row.meaning if row.value is None else row.limit  # why it cannot be asked
    return f"| {row.audit} | {worth(row)} | {row.n:,} | {limit} | {row.verdict} |"


def bound(row: Audit) -> str:
    """Return "at least " where ranks alone told of ties, as the audit itself says."""
    return "at least " if row.meaning.startswith("At least") else ""


def worth(row: Audit) -> str:
    return "-" if row.value is None else short(row.value)


if __name__ == "__main__":
    main()

"""Audit the tuned baselines' evaluation of each real data set; write docs/results/audits.md.

    REASONREC_DATA=... python benchmarks/audits.py runs/floor ml-100k office-2018
    python benchmarks/audits.py runs/floor --only-write

The folder is that of benchmarks/floor.py, whose runs the first line audits where they have not been
audited; the second writes the sections of what is finished there, and leaves the others. Nothing is
typed in by hand.
"""

import argparse
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
[../audits.md](../audits.md). *pass*, *warn* and *fail* follow from the limit beside them. A warning
is about the data set or the protocol, and what it does to the tables is said there: under
leave-one-out, for one, others' later events are in everybody's training log. The audits of our own
methods stand in the `audits/` of each run and on its report.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of benchmarks/floor.py")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    for name in [] if asked.only_write else asked.sets:
        run = asked.runs / name / "test-0"
        reasonrec("audit", run, "--out", run / "audits")
        write_page(asked.runs)
    write_page(asked.runs)


def write_page(runs: Path) -> None:
    """Write the sections of the sets that are audited."""
    evaluated = {name: runs / name / "test-0" for name in PREPARE}
    sections = {
        name: set_section(name, run)
        for name, run in evaluated.items()
        if (run / "audits" / "manifest.json").exists()
    }
    write_sections(ROOT / "docs" / "results" / "audits.md", HEAD, sections, PREPARE)


def set_section(name: str, run: Path) -> str:
    """Return the section of one set: audits, ties by method, results on parts of the queries."""
    audits = read_audits(run / "audits")
    ties = [row for row in audits.rows if row.audit.startswith(TIES)]
    lines = [
        f"## {name}",
        "",
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {audits.split}; commit "
        f"{str(read_manifest(run / 'audits')['commit'])[:10]}.",
        "",
        "| audit | value | of | limit | verdict |",
        "| --- | --: | --: | --- | --- |",
        *(audit_row(row) for row in audits.rows if row not in ties),
        "",
        "Share of the targets whose score is another item's too, in the whole catalogue: "
        + ", ".join(
            f"{row.audit.removeprefix(TIES).removesuffix(FULL)} {worth(row)}"
            for row in ties
            if row.audit.endswith(FULL)
        )
        + ". Such a target has the middle of the ranks that it shares.",
        "",
        "NDCG@10 on parts of the queries:",
        "",
        *parts_table(parts_of_queries([run])),
    ]
    return "\n".join(lines) + "\n"


def audit_row(row: Audit) -> str:
    limit = row.meaning if row.value is None else row.limit  # why it cannot be asked
    return f"| {row.audit} | {worth(row)} | {row.n:,} | {limit} | {row.verdict} |"


def worth(row: Audit) -> str:
    return "-" if row.value is None else short(row.value)


if __name__ == "__main__":
    main()

"""Take R²ec apart, one change at a time; write docs/results/ablations.md.

    python benchmarks/ablations.py runs/ablations planted
    REASONREC_DATA=... python benchmarks/ablations.py runs/ablations ml-100k --only no-R_d no-R_c
    python benchmarks/ablations.py runs/ablations --only-write

The first line writes a world of 20,000 readers, trains the three stages with one seed, then every
ablation from the last stage that it leaves as it is, and measures each on all test queries. It goes
on where it stopped and writes the page after every row; ``--only`` names the ablations to run. The
second does some of them on a real log. Rows of the page whose runs are not in the folder stay as
they were written. Nothing is chosen here, and nothing is typed in by hand.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recpo_losses import PAPERS_LOSS
from running import ROOT, merged, processors, reasonrec, say, write_sections
from stages import contestant

from reasonrec.config import read_toml
from reasonrec.data.dataset import Dataset
from reasonrec.evaluation.comparison import Comparison, compare
from reasonrec.evaluation.config import EvaluateConfig
from reasonrec.evaluation.joined import join_runs
from reasonrec.evaluation.measure import Contestant, floor_contestant, measure
from reasonrec.evaluation.runs import find_runs
from reasonrec.evaluation.table import MethodLine, short, summarise
from reasonrec.manifest import read_manifest
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import R2ecConfig, Stage

PREPARE = {"planted": ["--planted.num-users", "20000"], "ml-100k": []}
"""The sets of the page, and what `reasonrec prepare` is told."""
TRUNK: tuple[Stage, ...] = ("no-think", "sft", "recpo")
DEFAULT = "think-recpo"
COLUMNS = (("full", "hit@10"), ("full", "ndcg@10"), ("candidates-20", "hit@1"))
HEADINGS = (
    "row", "HR@10", "NDCG@10", "HR@1 of 20", "tokens / user", "train s",
    "NDCG@10 less the default", "95 % interval", "p", "could have seen",
)  # fmt: skip


@dataclass(frozen=True)
class Ablation:
    """One change from the default."""

    what: str
    """Said to the reader."""
    since: Stage
    """The first stage that is trained anew; those before it are the default's."""
    changes: Mapping[str, object]
    last: Stage = "recpo"
    """The stage that is measured."""
    thinks: bool = True


PLAIN = {
    "num_lookups": 0, "num_people": 0, "num_like": 0, "together": None, "look_up_taste": False,
}  # fmt: skip
PAPERS_PRESET = read_toml(ROOT / "configs" / "r2ec" / "paper-tiny.toml")
NEXT_ITEM_ALONE = {"loss": {"think": 0.0, "post": 0.0, "tokens": 0.0}}
LONGER = {"num_epochs": 5, "max_windows": 20_000}
"""A quarter more windows than SFT has: for its four epochs, and for the most it takes of them."""


def recpo(what: str, **changes: object) -> Ablation:
    return Ablation(what, "recpo", {"recpo": {"recpo": changes}})


ABLATIONS = {
    # what RL is worth, at equal budget
    "no-think-longer": Ablation(
        "no thoughts: a quarter more windows than SFT has, for the next item alone, ranked in "
        "silence",
        "sft", {"sft": NEXT_ITEM_ALONE | LONGER, "calibrate": False}, "sft",
        thinks=False,
    ),
    "sft-longer": Ablation(
        "no RL: a quarter more windows of SFT in its stead", "sft", {"sft": LONGER}, "sft"
    ),
    "evidence-no-think": Ablation("the evidence of thoughts, and no words", "sft", {}, "evidence"),
    "best-of-G": recpo(
        "thoughts get no gradient, the best of G trains the ranking", thought_weight=0.0
    ),
    "best-of-G-frozen": recpo(
        "the official code in effect: as above, the thoughts are the starting model's, drawn at "
        "temperature 1.5 among the likeliest 200",
        thought_weight=0.0, rollouts_from="start", flat_groups="skip", advantage="grpo",
        item_softmax="batch", temperature=1.5, top_k=200, next_item_weight=0.0,
    ),
    "papers-loss": recpo("loss, sampling and advantage of the paper", **PAPERS_LOSS),
    "papers-loss-at-one": recpo(
        "the same, log-probabilities at temperature 1", **PAPERS_LOSS, likelihood_at="one"
    ),
    # the paper's ablations
    "no-R_c": recpo("reward of NDCG alone", beta=0.0),
    "no-R_d": recpo("reward of the softmax alone", beta=1.0),
    "no-item-term": recpo("thoughts alone are trained", item_weight=0.0),
    "grpo": recpo("advantages divided by the spread", advantage="grpo"),
    "centred": recpo("advantages without the spread, own reward in the mean", advantage="centred"),
    "G-2": recpo("two rollouts a prompt", group_size=2),
    "G-8": recpo("eight rollouts a prompt", group_size=8),
    "temperature-0.7": recpo(
        "cooler rollouts, log-probabilities at temperature 1", temperature=0.7, likelihood_at="one"
    ),
    "temperature-1.5": recpo(
        "hotter rollouts, top 200, log-probabilities at temperature 1",
        temperature=1.5, top_k=200, likelihood_at="one",
    ),
    "temperature-1.5-corrected": recpo(
        "hotter rollouts, top 200, log-probabilities at their temperature",
        temperature=1.5, top_k=200,
    ),
    "item-term-all": recpo("every rollout trains the ranking by its advantage", item_term="all"),
    "softmax-batch": recpo("softmax over the targets of the batch", item_softmax="batch"),
    "flat-skip": recpo("groups without spread teach nothing", flat_groups="skip"),
    "no-next-item": recpo("no loss of the silent ranking", next_item_weight=0.0),
    # ours, off by default
    "sentence-reward": recpo(
        "each sentence by what it adds", sentence_weight=1.0, thought_weight=0.0
    ),
    "empty-rollout": recpo("the last rollout of a group is silent", empty_rollout=True),
    "kl": recpo("held near the start", kl_weight=0.05),
    "entropy": recpo("rewarded for uncertainty", entropy_weight=0.01),
    "infonce": recpo("every rollout trains the ranking alike", item_term="infonce"),
    "length-price": recpo("tokens cost", length_weight=0.05),
    # what a thought holds, and how it is read
    "evidence-in-prompt": Ablation(
        "the evidence as the end of the prompt, and nothing written",
        "sft", {"evidence": {"in_prompt": True}}, "evidence",
    ),
    "no-together": Ablation(
        "thoughts do not ask what goes with all", "sft", {"thought": {"together": None}}
    ),
    "candidates": Ablation(
        "thoughts name what the model believes before them", "sft",
        {"thought": {"num_candidates": 3}, "recpo": {"recpo": {"max_tokens": 144}}},
    ),
    "candidates-asked": Ablation(
        "as candidates, and two of the three are asked about as titles of the history are",
        "sft",
        {
            "thought": {"num_candidates": 3, "num_candidates_asked": 2},
            "recpo": {"recpo": {"max_tokens": 192}},
        },
    ),
    "no-likeness": Ablation("nothing that reads alike", "sft", {"thought": {"num_like": 0}}),
    "no-people": Ablation("nobody is asked about", "sft", {"thought": {"num_people": 0}}),
    "alike-at-any-time": Ablation(
        "a shared item makes alike, however long before or after it was taken",
        "sft",
        {"thought": {"likeness_gap_decay": 1.0}},
    ),
    "quoted-alone": Ablation(
        "only what is quoted counts", "sft", {"thought": {"num_weighed": 0, "num_together": 0}}
    ),
    "taste-alone": Ablation(
        "no look-ups: a summary of taste, in own words", "sft", {"thought": PLAIN}
    ),
    "no-pointer": Ablation(
        "what is found may not add to its score", "no-think", {"head": {"pointer": False}}
    ),
    "last-state": Ablation(
        "read from the last state alone, no gate", "no-think", {"head": {"gated": False}}
    ),
    "mean-state": Ablation(
        "a thought's state is the mean of those of its tokens", "sft",
        {"head": {"pooling": "mean"}},
    ),
    "max-state": Ablation(
        "a thought's state is the largest of those of its tokens", "sft",
        {"head": {"pooling": "max"}},
    ),
    "text-id-rows": Ablation(
        "item rows of text and id", "no-think",
        {"head": {"item_rows": "text+id", "text_words": 0, "live_rows": 256}},
    ),
    "papers-preset": Ablation(
        "the paper's head, thoughts and loss, after no-think and SFT: rows of text, cosine, "
        "the last state, no look-ups",
        "no-think", PAPERS_PRESET,
    ),
    "papers-classifier": Ablation(
        "the paper's preset with a learned row for each item in place of its text", "no-think",
        merged(PAPERS_PRESET, {"head": {"item_rows": "id"}}),
    ),
}  # fmt: skip
"""Rows of the page beside no-think, think-sft and think-recpo themselves."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of the runs, one folder a set")
    parser.add_argument("sets", nargs="*", choices=[*PREPARE, []])
    parser.add_argument("--only", nargs="*", choices=[*ABLATIONS, []], default=list(ABLATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-write", action="store_true")
    asked = parser.parse_args()
    for name in [] if asked.only_write else asked.sets:
        run_default(asked.runs / name, name, asked.seed)
        write_page(asked.runs)
        for ablation in asked.only:
            run_ablation(asked.runs / name, ablation, asked.seed)
            write_page(asked.runs)
    write_page(asked.runs)


def run_default(folder: Path, name: str, seed: int) -> None:
    """Prepare one set; train and measure the default's three stages, and what stands beside."""
    reasonrec("prepare", name, "--out", folder / "data", *PREPARE[name])
    dataset = Dataset.load(folder / "data")
    trained = r2ec.train(dataset, R2ecConfig(), out=folder / "default", seed=seed, announce=say)
    beside = [floor_contestant("follow-counter", dataset, seed=0)]
    rows = [contestant(stage.name, stage, seed, dataset) for stage in trained]
    measured([*beside, *rows], dataset, folder / "measured" / "default", seed)


def run_ablation(folder: Path, name: str, seed: int) -> None:
    """Train one ablation from the default's last unchanged stage, and measure it."""
    dataset, asked = Dataset.load(folder / "data"), ABLATIONS[name]
    config = R2ecConfig.model_validate(merged(R2ecConfig().model_dump(), asked.changes))
    stages: list[Stage] = [
        *TRUNK[: TRUNK.index("recpo" if asked.last == "recpo" else "sft")],
        asked.last,
    ]
    before: Path | None = None
    for stage in stages:
        kept = stage in TRUNK and TRUNK.index(stage) < TRUNK.index(asked.since)
        out = folder / ("default" if kept else name) / r2ec.method_of(stage, config)
        if not kept:
            say(f"{name}: {stage}")
            r2ec.train_stage(stage, dataset, config, out=out, seed=seed, start=before)
        before = out
    assert before is not None
    row = contestant(name, before, seed, dataset, thinks=asked.thinks)
    measured([row], dataset, folder / "measured" / name, seed)


def measured(contestants: Sequence[Contestant], dataset: Dataset, out: Path, seed: int) -> None:
    say(f"measure {', '.join(one.label for one in contestants)}")
    timing = EvaluateConfig(num_timed_users=10)
    measure(contestants, dataset, out, timing, seed=seed, has_passport=True)


HEAD = f"""# Ablations of R²ec

Every number comes from `python benchmarks/ablations.py`: the tiny backbone, seed 0, our defaults at
the commit that is named (`{DEFAULT}`) and one change each, trained anew from the first stage that
the change touches. All test queries. *Could have seen* is the smallest difference from the default
that the paired test would have found in 80 of 100 tries (2.8 standard errors of the difference
between queries); one seed says nothing of the difference between trainings, so that a significant
row may still be luck of one training. p is of the permutation test, not corrected for the number of
rows. *Train s* is wall-clock of the stages that the row trained anew, beside other work. Where the
default was trained again, on another machine or by another commit, and came out otherwise, a set
has a table for each training: a row is compared with the default that it was trained from. Rows of
the paper's loss and preset that stand in a first table are of commits before 947d52b and sampled at
temperature 1.5, but took log-probabilities at 1; those in a second table took them at 1.5, and
before 109ac5c among all tokens, where 200 were drawn from. `sft-longer`, `no-think-longer` and
`best-of-G-frozen` of a first table are older than bf07536: on planted the first two had no more
windows than SFT has (`max_windows`), and the third drew at temperature 1 from all tokens.
"""
PAGE = ROOT / "docs" / "results" / "ablations.md"


def write_page(runs: Path) -> None:
    """Write the page from what is finished, and from what it already says."""
    sections = {
        name: set_section(name, runs / name, section_of(PAGE, name))
        for name in PREPARE
        if (runs / name / "measured" / "default" / "manifest.json").exists()
    }
    write_sections(PAGE, HEAD, sections, PREPARE)


def section_of(page: Path, name: str) -> str:
    """Return what a page says of one set, "" if nothing."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    return next((one for one in text.split("\n## ") if one.startswith(f"{name}\n")), "")


@dataclass(frozen=True)
class Table:
    """The rows that were trained from one training of the default."""

    about: str
    """Data, commits and processors."""
    rows: dict[str, str]
    """A line of the page for each method."""

    def numbers(self) -> list[str]:
        """Return the metrics of the default."""
        return self.rows[DEFAULT].split(" | ")[1 : 1 + len(COLUMNS)]

    def lines(self) -> list[str]:
        """Return it as on the page: the default's stages, then the ablations in their order."""
        trunk = [r2ec.METHOD_OF_STAGE[stage] for stage in TRUNK]
        head = ["| " + " | ".join(HEADINGS) + " |", "| ---" + " | --:" * (len(HEADINGS) - 1) + " |"]
        order = ["follow-counter", *trunk, *ABLATIONS]
        return [self.about, "", *head, *(self.rows[word] for word in order if word in self.rows)]


def set_section(name: str, folder: Path, earlier: str = "") -> str:
    """Return the section of one set: its tables, and what each row changes.

    Args:
        name: Of the set.
        folder: Its runs.
        earlier: The section so far. The table of the runs joins the one whose default came out the
            same, else it is the last.
    """
    tables = with_table(tables_of(earlier), table_of(name, folder))
    text = [f"## {name}"]
    for table in tables:
        text += ["", *table.lines()]
    rows = set().union(*(table.rows for table in tables))
    text += ["", *(f"- `{word}`: {one.what}" for word, one in ABLATIONS.items() if word in rows)]
    return "\n".join(text) + "\n"


def with_table(tables: Sequence[Table], new: Table) -> list[Table]:
    """Return tables with one more, which joins the one of the same default if there is one."""
    joined = list(tables)
    for at, one in enumerate(tables):
        if one.numbers() == new.numbers():
            commits = sorted({*COMMIT.findall(one.about), *COMMIT.findall(new.about)})
            about = re.sub(r"commit [^;]*;", f"commit {', '.join(commits)};", new.about)
            joined[at] = Table(about, one.rows | new.rows)
            return joined
    return [*joined, new]


COMMIT = re.compile(r"\b[0-9a-f]{10}\b")


def tables_of(section: str) -> list[Table]:
    """Return the tables of a section of the page."""
    tables: list[Table] = []
    for block in section.split("\n`reasonrec prepare ")[1:]:
        about, *below = block.split("\n")
        rows = [line for line in below if line.startswith("| ")][2:]
        named = {row.split(" | ")[0].removeprefix("| "): row for row in rows}
        tables.append(Table(f"`reasonrec prepare {about}", named))
    return tables


def table_of(name: str, folder: Path) -> Table:
    """Return the table of the runs of a set."""
    at = folder / "measured"
    ablated = [word for word in ABLATIONS if (at / word / "manifest.json").exists()]
    runs = [at / word for word in ("default", *ablated)]
    joined = join_runs(find_runs(runs))
    against = {one.method: one for one in compare(joined, DEFAULT, COLUMNS[1:2]).comparisons}
    commits = sorted({str(read_manifest(run)["commit"])[:10] for run in runs})
    test = joined.rows[0]
    about = (
        f"`reasonrec prepare {' '.join([name, *PREPARE[name]])}`: {test.split}, {test.n:,} test "
        f"queries; commit {', '.join(commits)}; {processors(runs)}."
    )
    rows = {
        line.method: row_of(line, against.get(line.method), seconds(folder, line.method))
        for line in summarise(joined.rows, COLUMNS)
    }
    return Table(about, rows)


def row_of(line: MethodLine, test: Comparison | None, spent: float | None) -> str:
    cells = ["-" if cell is None else short(cell.value) for cell in line.cells]
    tokens = "-" if not line.tokens else f"{line.tokens:.0f}"
    trained = "-" if spent is None else f"{spent:.0f}"
    words = [line.method, *cells, tokens, trained]
    if test is None:
        return "| " + " | ".join([*words, "", "", "", ""]) + " |"
    words += [
        f"{test.difference:+.4f}", f"{test.ci_low:+.4f} to {test.ci_high:+.4f}",
        f"{test.p_permutation:.4f}", f"{test.could_have_seen:.4f}",
    ]  # fmt: skip
    return "| " + " | ".join(words) + " |"


def seconds(folder: Path, method: str) -> float | None:
    """Return the seconds of the stages that a row trained for itself, None for a baseline."""
    own = folder / ("default" if method in r2ec.METHOD_OF_STAGE.values() else method)
    stages = [own / method] if own.name == "default" else sorted(own.glob("*"))
    if method == "evidence-no-think":  # a stage of R²ec, and no stage of the default
        stages = [folder / method / method]
    finished = [stage for stage in stages if (stage / "manifest.json").exists()]
    return sum(float(read_manifest(stage)["seconds"]) for stage in finished) if finished else None


if __name__ == "__main__":
    main()

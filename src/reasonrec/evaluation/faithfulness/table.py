"""The faithfulness report as a terminal table and as Markdown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reasonrec.evaluation.faithfulness.effects import CONDITIONS, OWN, Effect
from reasonrec.evaluation.faithfulness.reasons import MEANINGS
from reasonrec.evaluation.faithfulness.stage import Faithfulness

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = ("ndcg@10", "log_prob", "log2_rank")
"""Measures of the table; ``faithfulness.json`` holds all."""


def faithfulness_markdown(report: Faithfulness) -> str:
    """Return the whole report as Markdown."""
    habits = report.habits
    lines = [
        f"# Faithfulness of {report.method} on {report.dataset}",
        "",
        f"{report.split}, {report.part}, {report.num_queries:,} queries, seed {report.seed}. "
        f"{habits.num_distinct:,} different thoughts, {habits.mean_lookups:.2f} look-ups and "
        f"{habits.mean_found:.1f} found items each; {habits.share_truncated:.1%} cut short, "
        f"{habits.share_without_evidence:.1%} without evidence; the target among the found items "
        f"in {habits.share_target_found:.1%}.",
        "",
        "## When the thought is changed",
        "",
        "Change from the model's own thought, same queries, 95 % interval over users. `log_prob`: "
        "natural logarithm of the target's probability; `log2_rank`: 1 is a doubled rank; `top 10 "
        "kept`: share of the ten best items that stay.",
        "",
        "| condition | NDCG@10 | log_prob | log2_rank | top 10 kept | n |",
        "| --- | --: | --: | --: | --: | --: |",
        *(_effect_line(name, rows) for name, rows in by_condition(report.effects).items()),
        "",
        "## When the thought is cut",
        "",
        "The first K sentences and look-ups are kept; a shorter thought counts whole.",
        "",
        "| kept | NDCG@10 | log_prob | log2_rank | top 10 kept | really cut |",
        "| --- | --: | --: | --: | --: | --: |",
        *(
            _effect_line(name.removeprefix("cut-"), rows, cases=True)
            for name, rows in by_condition(report.curve).items()
        ),
        "",
        "## What it names",
        "",
        "| named | in the evidence | in another user's | invented | repeated | a thought | n |",
        "| --- | --: | --: | --: | --: | --: | --: |",
    ]
    for one in report.groundedness:
        interval = "" if one.ci_low is None else f" ({one.ci_low:.3f} to {one.ci_high:.3f})"
        lines.append(
            f"| {one.kind} | {_share(one.value)}{interval} | {_share(one.chance)} "
            f"| {_share(one.invented)} | {_share(one.repeated)} | {one.num_named:.2f} | {one.n} |"
        )
    if report.reasons:
        lines += [
            "",
            "## Is it the true reason?",
            "",
            "| cause | the thought | share | 95 % interval | chance | n |",
            "| --- | --- | --: | --: | --: | --: |",
            *(
                f"| {one.cause} | {MEANINGS[one.measure]} | {one.value:.3f} "
                f"| {one.ci_low:.3f} to {one.ci_high:.3f} | {one.chance:.3f} | {one.n} |"
                for one in report.reasons
            ),
        ]
    lines += [
        "",
        "## What it costs",
        "",
        "| method | tokens | p50 ms | p95 ms | users a second |",
        "| --- | --: | --: | --: | --: |",
        *(
            f"| {one.method} | {one.tokens:.1f} | {_number(one.latency_p50_ms)} "
            f"| {_number(one.latency_p95_ms)} | {one.users_per_second:.1f} |"
            for one in report.costs
        ),
    ]
    return "\n".join(lines) + "\n"


def faithfulness_table(report: Faithfulness) -> "Table":
    """Return the changes of every condition as a rich table; bold where the interval misses 0."""
    from rich.table import Table

    title = f"{report.method} on {report.dataset}: change from the own thought"
    table = Table(
        title=title, box=None, padding=(0, 1, 0, 0), header_style="bold dim", title_justify="left"
    )
    table.add_column("condition", no_wrap=True)
    for heading in ("NDCG@10", "95 % interval", "log_prob", "top 10 kept", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, rows in by_condition(report.effects).items():
        main = rows["ndcg@10"]
        sure = name != OWN and (main.ci_low > 0 or main.ci_high < 0)
        table.add_row(
            name,
            f"{main.value:.4f}" if name == OWN else f"{main.change:+.4f}",
            "" if name == OWN else f"{main.ci_low:+.4f} to {main.ci_high:+.4f}",
            f"{rows['log_prob'].value:.3f}" if name == OWN else f"{rows['log_prob'].change:+.3f}",
            f"{rows['top10_kept'].value:.2f}",
            str(main.n),
            style="bold" if sure else "",
        )
    return table


def by_condition(effects: Sequence[Effect]) -> dict[str, dict[str, Effect]]:
    """Return the effects by condition and measure, in the order of ``CONDITIONS``; cuts last."""
    groups: dict[str, dict[str, Effect]] = {}
    for one in effects:
        groups.setdefault(one.condition, {})[one.measure] = one
    known = [name for name in CONDITIONS if name in groups]
    return {name: groups[name] for name in known + [n for n in groups if n not in known]}


def _effect_line(name: str, rows: dict[str, Effect], *, cases: bool = False) -> str:
    main, is_own = rows["ndcg@10"], name == OWN
    cells = [
        f"{rows[m].value:.4f}"
        if is_own
        else f"{rows[m].change:+.4f} ({rows[m].ci_low:+.4f} to {rows[m].ci_high:+.4f})"
        for m in SHOWN
    ]
    last = main.num_cases if cases else main.n
    return (
        f"| {name} | " + " | ".join([*cells, f"{rows['top10_kept'].value:.3f}", str(last)]) + " |"
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

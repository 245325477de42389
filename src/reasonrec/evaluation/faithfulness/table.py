"""The faithfulness report as a terminal table and as Markdown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from reasonrec.evaluation.faithfulness import reasoned
from reasonrec.evaluation.faithfulness.effects import CONDITIONS, OWN, Effect
from reasonrec.evaluation.faithfulness.reasons import MEANINGS
from reasonrec.evaluation.faithfulness.report import Faithfulness

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = {
    "hit@1": "HR@1", "ndcg@10": "NDCG@10", "ndcg@20": "NDCG@20", "log_prob": "log_prob",
    "rating": "rating", "log2_rank": "log2_rank",
}  # fmt: skip
"""Measures of the table where a report has them, with headings; ``faithfulness.json`` holds all."""
KEPT = {"top10_kept": "top 10 kept", "top1_kept": "first place kept"}
"""What stays of the best items, shown as a share and not as a change."""


def faithfulness_markdown(report: Faithfulness) -> str:
    """Return the whole report as Markdown."""
    habits, shown = report.habits, _shown(report)
    kept = next(heading for name, heading in KEPT.items() if name in shown)
    heads = [SHOWN[name] for name in shown if name in SHOWN]
    columns = f"{' | '.join(heads)} | {kept}"
    rule = f"| --- |{' --: |' * (len(heads) + 2)}"
    lines = [
        f"# Faithfulness of {report.method} on {report.dataset}",
        "",
        f"{report.split}, {report.part}, {report.num_queries:,} queries, seed {report.seed}. "
        f"{habits.num_distinct:,} different thoughts, {habits.mean_lookups:.2f} look-ups or "
        f"chains and {habits.mean_found:.1f} items found by them each; "
        f"{habits.share_truncated:.1%} cut short, {habits.share_without_evidence:.1%} without "
        f"evidence; the target among the found items in {habits.share_target_found:.1%}.",
        "",
        *(line for note in report.notes for line in (note, "")),
        "## When the thought is changed",
        "",
        "Change from the model's own thought, same queries, 95 % interval over users. `log_prob`: "
        "natural logarithm of the target's probability; `rating`: its expected rating; "
        "`log2_rank`: 1 is a doubled rank; `top 10 kept`, `first place kept`: share of the best "
        "items that stay.",
        "",
        f"| condition | {columns} | n |",
        rule,
        *(_effect_line(name, rows) for name, rows in by_condition(report.effects).items()),
        "",
        "## When the thought is cut",
        "",
        "The first K sentences and look-ups are kept; a shorter thought counts whole.",
        "",
        f"| kept | {columns} | really cut |",
        rule,
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
    shown = _shown(report)
    ranked, said, kept = (
        next(name for name in shown if name.startswith(start))
        for start in ("ndcg", ("log_prob", "rating"), "top")
    )
    table.add_column("condition", no_wrap=True)
    for heading in (SHOWN[ranked], "95 % interval", said, KEPT[kept], "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, rows in by_condition(report.effects).items():
        main = rows[ranked]
        sure = name != OWN and (main.ci_low > 0 or main.ci_high < 0)
        table.add_row(
            name,
            f"{main.value:.4f}" if name == OWN else f"{main.change:+.4f}",
            "" if name == OWN else f"{main.ci_low:+.4f} to {main.ci_high:+.4f}",
            f"{rows[said].value:.3f}" if name == OWN else f"{rows[said].change:+.3f}",
            f"{rows[kept].value:.2f}",
            str(main.n),
            style="bold" if sure else "",
        )
    return table


def by_condition(effects: Sequence[Effect]) -> dict[str, dict[str, Effect]]:
    """Return the effects by condition and measure, in the order of ``CONDITIONS``; cuts last."""
    groups: dict[str, dict[str, Effect]] = {}
    for one in effects:
        groups.setdefault(one.condition, {})[one.measure] = one
    known = [name for name in {**CONDITIONS, **reasoned.CONDITIONS} if name in groups]
    return {name: groups[name] for name in known + [n for n in groups if n not in known]}


def _shown(report: Faithfulness) -> list[str]:
    """Return the measures of a report's tables, in order."""
    known = {one.measure for one in report.effects}
    return [name for name in (*SHOWN, *KEPT) if name in known]


def _effect_line(name: str, rows: dict[str, Effect], *, cases: bool = False) -> str:
    cells = [
        f"{rows[m].value:.4f}"
        if name == OWN
        else f"{rows[m].change:+.4f} ({rows[m].ci_low:+.4f} to {rows[m].ci_high:+.4f})"
        for m in SHOWN
        if m in rows
    ]
    cells += [f"{rows[m].value:.3f}" for m in KEPT if m in rows]
    any_row = next(iter(rows.values()))
    return f"| {name} | {' | '.join(cells)} | {any_row.num_cases if cases else any_row.n} |"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

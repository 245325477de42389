"""Chains and their statistics as people read them: text for a terminal, SVG for a report."""

from collections.abc import Sequence
from html import escape
from typing import Any

from reasonrec.records import Lookup

_ROW_HEIGHT = 54
_COLUMNS = (20, 190, 420, 650)  # left edges of user, via item, neighbours, item
_BOX_WIDTHS = (90, 160, 150, 190)


def render_statistics(statistics: dict[str, Any]) -> str:
    """Return the numbers of ``statistics.json`` as an aligned table of text."""
    lines = [f"{statistics['num_chains']:,} chains, {statistics['reading']}", ""]
    lines.append(f"{'split':<7}{'label':<12}{'queries':>9}{'closed':>8}{'open':>8}{'none':>8}")
    for split, part in statistics["splits"].items():
        for label, row in part["labels"].items():
            rates = (row["closed_rate"], row["open_rate"], row["history_only_rate"])
            lines.append(
                f"{split:<7}{label:<12}{row['num_queries']:>9,}"
                + "".join(f"{'-' if rate is None else f'{rate:.1%}':>8}" for rate in rates)
            )
    for split, part in statistics["splits"].items():
        found = {
            kind: auc for kind, auc in part["chain_existence_audit"].items() if auc is not None
        }
        if found:
            words = ", ".join(
                f"{auc:.3f} against {kind.removeprefix('auc_against_').replace('_', ' ')}"
                for kind, auc in found.items()
            )
            lines.append(f"{split}: the number of chains alone reaches AUC {words}")
    return "\n".join(lines)


def render_chain_text(user: str, via: str, neighbour: str, item: str, *, num_more: int = 0) -> str:
    """Return one chain as a line; ``num_more`` other neighbours went the same way."""
    others = f" (+{num_more})" if num_more else ""
    return f"{user} → {via} → {neighbour}{others} → {item} ⇢ {user}?"


def render_lookup_svg(lookup: Lookup, *, user: str, titles: Sequence[str]) -> str:
    """Return an SVG of user → via → neighbours → items; the edge to be predicted is dashed.

    Wider strokes carry more of the weight. Stands alone: no scripts, no outside fonts or links.

    Args:
        user: Name of the user who asks.
        titles: Title of every item, in ``item_index`` order. Long ones are cut, whole in a tooltip.
    """
    rows = max(len(lookup.links), 1)
    height = rows * _ROW_HEIGHT + 46
    middle = rows * _ROW_HEIGHT / 2
    most = max((link.weight for link in lookup.links), default=1.0)
    parts = [_edge(0, middle, 1, middle, 2.0)]
    boxes = [_box(0, middle, user, "user"), _box(1, middle, titles[lookup.via_item_index], "item")]
    for row, link in enumerate(lookup.links):
        y = (row + 0.5) * _ROW_HEIGHT
        width = 1 + 4 * link.weight / most
        who = "1 neighbour" if link.num_neighbours == 1 else f"{link.num_neighbours} neighbours"
        parts += [_edge(1, middle, 2, y, width), _edge(2, y, 3, y, width)]
        boxes += [_box(2, y, who, "user"), _box(3, y, titles[link.item_index], "item")]
    if not lookup.links:
        boxes.append(_box(2, middle, "nobody yet", "user"))
    else:
        left, right = _COLUMNS[0] + _BOX_WIDTHS[0] / 2, _COLUMNS[3] + _BOX_WIDTHS[3] / 2
        floor = rows * _ROW_HEIGHT + 26
        parts.append(
            f'<path class="asked" d="M{right} {(rows - 0.5) * _ROW_HEIGHT + 17} V{floor} '
            f'H{left} V{middle + 17}"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" role="img" '
        f'aria-label="{escape(_in_words(lookup, user, titles))}">'
        "<style>rect.user{fill:#dbe9f6;stroke:#4a7ba6}rect.item{fill:#fdf0d5;stroke:#b98a2e}"
        "path{fill:none;stroke:#7a869a;stroke-linecap:round}"
        "path.asked{stroke:#b0413e;stroke-width:1.5;stroke-dasharray:5 5}"
        "text{font:13px system-ui,sans-serif;fill:#1d2733;text-anchor:middle}</style>"
        + "".join(parts + boxes)
        + "</svg>"
    )


def _in_words(lookup: Lookup, user: str, titles: Sequence[str]) -> str:
    via = titles[lookup.via_item_index]
    if not lookup.links:
        return f"{user}: no neighbour of {via} leads further"
    return f"{user}, over {via}, to " + ", ".join(titles[link.item_index] for link in lookup.links)


def _edge(column: int, y: float, to_column: int, to_y: float, width: float) -> str:
    x, to_x = _COLUMNS[column] + _BOX_WIDTHS[column], _COLUMNS[to_column]
    bend = (x + to_x) / 2
    curve = f"M{x} {y:g} C{bend:g} {y:g} {bend:g} {to_y:g} {to_x} {to_y:g}"
    return f'<path d="{curve}" stroke-width="{width:.2f}"/>'


def _box(column: int, y: float, label: str, kind: str) -> str:
    x, width = _COLUMNS[column], _BOX_WIDTHS[column]
    most = width // 8  # about 8 px a letter at 13 px
    short = label if len(label) <= most else label[: most - 1].rstrip() + "…"
    return (
        f'<g><title>{escape(label)}</title><rect class="{kind}" x="{x}" y="{y - 17:g}" '
        f'width="{width}" height="34" rx="8"/>'
        f'<text x="{x + width / 2:g}" y="{y + 5:g}">{escape(short)}</text></g>'
    )

"""Chains and their statistics as people read them: text for a terminal, SVG for a report."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from reasonrec.records import Lookup
from reasonrec.rng import stream

if TYPE_CHECKING:
    from reasonrec.data.dataset import Dataset
    from reasonrec.graph.chains import StoredChains

_ROW_HEIGHT = 54
_COLUMNS = (20, 190, 420, 650)  # left edges of user, via item, neighbours, item
_BOX_WIDTHS = (90, 160, 150, 190)
_STYLE = """<style>
:root{color-scheme:light dark;--ink:#1d2733;--dim:#5b6676;--ground:#fff;--card:#f5f7fa;
--user:#dbe9f6;--user-line:#3f7099;--item:#fdf0d5;--item-line:#96701f;--asked:#b0413e}
@media(prefers-color-scheme:dark){:root{--ink:#e8edf3;--dim:#a5b0bf;--ground:#14181d;
--card:#1d232b;--user:#1f3a52;--user-line:#7fb2dc;--item:#4a3a17;--item-line:#dcb55c;
--asked:#f08a86}}
body{margin:0 auto;max-width:980px;padding:24px 16px;font:15px/1.5 system-ui,sans-serif;
color:var(--ink);background:var(--ground)}
h1{font-size:22px}h2{font-size:16px;margin:0 0 4px}p{margin:4px 0;color:var(--dim)}
section{background:var(--card);border-radius:12px;padding:14px 16px;margin:16px 0;overflow-x:auto}
svg{display:block;margin-top:8px}text{font:13px system-ui,sans-serif;fill:var(--ink);
text-anchor:middle}text.rating{font-size:12px;fill:var(--dim)}
rect.user{fill:var(--user);stroke:var(--user-line)}rect.item{fill:var(--item);
stroke:var(--item-line)}path{fill:none;stroke:var(--dim);stroke-width:2}
path.asked{stroke:var(--asked);stroke-width:1.5;stroke-dasharray:5 5}text.asked{fill:var(--asked)}
</style>"""


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


def render_chains_page(
    stored: "StoredChains", dataset: "Dataset", *, num_queries: int, seed: int = 0
) -> str:
    """Return an HTML page that draws the chains of some questions, drawn evenly from all.

    Stands alone: no scripts, no outside fonts or links; titles and names are escaped.
    """
    keys = np.stack([stored.chains.query, stored.candidate], axis=1)
    starts = np.flatnonzero((np.diff(keys, axis=0, prepend=-2) != 0).any(axis=1))
    stops = np.append(starts[1:], len(stored))
    chosen = stream(seed, "graph/drawing").permutation(len(starts))[:num_queries]
    parts = [_section(stored, dataset, range(starts[n], stops[n])) for n in np.sort(chosen)]
    name = escape(dataset.name)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Chains of {name}</title>{_STYLE}</head><body><h1>Chains of {name}</h1>"
        f"<p>{len(parts):,} of {len(starts):,} questions, {escape(stored.reading)}. Numbers "
        "on edges are ratings. The dashed edge closes the chain; where it ends at a candidate, it "
        "is what is to be predicted.</p>" + "".join(parts) + "</body></html>\n"
    )


def _section(stored: "StoredChains", dataset: "Dataset", rows: range) -> str:
    """Return the card of one question with all of its chains."""
    row, chains = rows[0], stored.chains
    user = dataset.user_ids[stored.user_index[row]]
    question = f"{stored.split[row]} query {chains.query[row]}"
    if stored.candidate[row] >= 0:
        title = dataset.catalogue.titles[stored.candidate[row]]
        fate = "was taken" if stored.label[row] == 1 else "drawn at random, not taken"
        question = f"{title} ({fate}), {question}"
    kinds = {0: "closed", 1: "no chain closes: an open one", 2: "no chain: the history alone"}
    note = (
        f"{stored.num_closable[row]:,} chains could be drawn; {kinds[int(chains.fallback[row])]}."
    )
    drawn = [_chain_svg(stored, dataset, m) for m in rows if chains.users[m, 0] >= 0]
    return (
        f"<section><h2>{escape(user)}: {escape(question)}</h2><p>{note}</p>"
        + "".join(drawn)
        + "</section>"
    )


def _chain_svg(stored: "StoredChains", dataset: "Dataset", m: int) -> str:
    """Return one chain from left to right, its closing edge dashed below."""
    chains, titles = stored.chains, dataset.catalogue.titles
    nodes = [("user", dataset.user_ids[stored.user_index[m]])]
    ratings = [None if chains.user_rating is None else chains.user_rating[m]]
    nodes.append(("item", titles[chains.items[m, 0]]))
    for j, user in enumerate(chains.users[m]):
        if user < 0:
            break
        nodes += [("user", dataset.user_ids[user]), ("item", titles[chains.items[m, j + 1]])]
        edges = [None, None]
        if chains.edge_rating is not None:
            edges = list(chains.edge_rating[m, 2 * j : 2 * j + 2])
        ratings += edges
    widths = [110 if kind == "user" else 250 for kind, _ in nodes]
    lefts = [int(np.sum(widths[:n])) + 44 * n + 4 for n in range(len(nodes))]
    total = lefts[-1] + widths[-1] + 4
    parts = []
    for n, rating in enumerate(ratings):
        x, to_x = lefts[n] + widths[n], lefts[n + 1]
        parts.append(f'<path d="M{x} 30 H{to_x}"/>')
        if rating is not None and not np.isnan(rating):
            parts.append(f'<text class="rating" x="{(x + to_x) / 2:g}" y="23">{rating:g}</text>')
    for (kind, label), x, width in zip(nodes, lefts, widths):
        parts.append(_box_at(x, width, 30, label, kind))
    left, right = lefts[0] + widths[0] / 2, lefts[-1] + widths[-1] / 2
    if chains.fallback[m] == 0:
        closing = None if chains.closing_rating is None else chains.closing_rating[m]
        known = closing is not None and not np.isnan(closing)
        said = f"{closing:g}" if known else ("known" if stored.candidate[m] < 0 else "?")
        parts.append(f'<path class="asked" d="M{right:g} 48 V68 H{left:g} V48"/>')
        parts.append(f'<text class="asked" x="{(left + right) / 2:g}" y="64">{said}</text>')
    words = " – ".join(label for _, label in nodes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} 76" width="{total}" '
        f'height="76" role="img" aria-label="{escape(words)}">' + "".join(parts) + "</svg>"
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
    return _box_at(_COLUMNS[column], _BOX_WIDTHS[column], y, label, kind)


def _box_at(x: int, width: int, y: float, label: str, kind: str) -> str:
    most = width // 8  # about 8 px a letter at 13 px
    short = label if len(label) <= most else label[: most - 1].rstrip() + "…"
    return (
        f'<g><title>{escape(label)}</title><rect class="{kind}" x="{x}" y="{y - 17:g}" '
        f'width="{width}" height="34" rx="8"/>'
        f'<text x="{x + width / 2:g}" y="{y + 5:g}">{escape(short)}</text></g>'
    )

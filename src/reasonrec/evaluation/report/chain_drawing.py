"""Where the nodes and edges of chains stand: you, your items, neighbours, their items."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from reasonrec.records import EvidenceChain
from reasonrec.serving.explanations import in_order

WIDTH = 860
ROW_HEIGHT = 52
MAX_CHAINS = 6
_X = {"you": 34.0, "via": 192.0, "neighbour": 440.0, "item": 714.0}
_HALF_WIDTH = {"you": 24.0, "via": 112.0, "neighbour": 72.0, "item": 134.0}


@dataclass(frozen=True)
class Node:
    kind: str
    """``you``, ``via``, ``neighbour`` or ``item``."""
    label: str
    """Cut to the width of the node."""
    full_label: str
    x: float
    y: float
    half_width: float
    note: str = ""


@dataclass(frozen=True)
class Edge:
    path: str
    width: float
    """In pixels; grows with the weight of the chain."""
    tone: int
    """Which of your items it starts from, counted from 0: one colour for each."""


@dataclass(frozen=True)
class ChainDrawing:
    """Coordinates in pixels of a drawing ``WIDTH`` wide."""

    width: int
    height: int
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    description: str
    num_left_out: int


def draw_chains(chains: Sequence[EvidenceChain]) -> ChainDrawing | None:
    """Return chains as a layered graph, those that lead to the top of the ranking first of all."""
    if not chains:
        return None
    shown = in_order(chains)[:MAX_CHAINS]
    layers: dict[str, dict[str, tuple[str, str]]] = {
        "you": {"you": ("you", "")},
        "via": {c.via_item_id: (c.via_title, "") for c in shown},
        "neighbour": {name: (name, "") for c in shown if (name := c.neighbour_user_id) is not None},
        "item": {c.item_id: (c.title, f"#{c.rank}" if c.rank else "") for c in shown},
    }
    height = ROW_HEIGHT * max(len(layer) for layer in layers.values()) + 12
    nodes: dict[tuple[str, str], Node] = {}
    for kind, layer in layers.items():
        for n, (key, (label, note)) in enumerate(layer.items()):
            half = _HALF_WIDTH[kind]
            room = int((2 * half - (44 if note else 20)) / 7.2)
            y = height * (n + 0.5) / len(layer)
            nodes[kind, key] = Node(kind, shorten(label, room), label, _X[kind], y, half, note)
    top = max(chain.weight for chain in shown) or 1.0
    tones = {item_id: tone for tone, item_id in enumerate(layers["via"])}
    # a neighbour shared by two of your items keeps an edge of each colour
    edges: dict[tuple[str, str, str, str, int], float] = {}
    for chain in shown:
        width = 1.2 + 2.8 * chain.weight / top
        stops = [("you", "you"), ("via", chain.via_item_id)]
        if chain.neighbour_user_id is not None:  # else words lead straight from item to item
            stops.append(("neighbour", chain.neighbour_user_id))
        stops.append(("item", chain.item_id))
        for start, stop in pairwise(stops):
            key = (*start, *stop, tones[chain.via_item_id])
            edges[key] = max(width, edges.get(key, 0.0))
    said = "; ".join(
        f"you took {c.via_title}, which reads like {c.title}"
        if c.neighbour_user_id is None
        else f"you took {c.via_title}, so did neighbour {c.neighbour_user_id}, who went on to "
        f"{c.title}"
        for c in shown
    )
    return ChainDrawing(
        width=WIDTH,
        height=height,
        nodes=tuple(nodes.values()),
        edges=tuple(
            Edge(_curve(nodes[kind, key], nodes[next_kind, next_key]), round(width, 2), tone)
            for (kind, key, next_kind, next_key, tone), width in edges.items()
        ),
        description=said,
        num_left_out=len(chains) - len(shown),
    )


def shorten(text: str, max_width: int) -> str:
    """Return ``text`` on one line of at most ``max_width`` columns; wide characters count twice."""
    text = " ".join(text.split())
    used = 0
    for n, character in enumerate(text):
        used += 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if used > max_width:
            return text[: max(1, n - 1)].rstrip(" ,.;:") + "…"
    return text


def _curve(start: Node, stop: Node) -> str:
    x0, x1 = start.x + start.half_width, stop.x - stop.half_width
    middle = (x0 + x1) / 2
    return (
        f"M{x0:.1f},{start.y:.1f} C{middle:.1f},{start.y:.1f} "
        f"{middle:.1f},{stop.y:.1f} {x1:.1f},{stop.y:.1f}"
    )

"""Explanations as text for a terminal. The HTML report draws the same chains as SVG."""

import re
from collections.abc import Mapping, Sequence

from reasonrec.records import EvidenceChain

KINDS = {
    "answers": "the answer after the thought",
    "first": "the first stage",
    "steps": "chains",
    "count": "chains",
    "events": "how often it is taken",
    "words": "words like those of the history",
}
"""What kinds of evidence are called; others go by the name of their baseline."""
MOST_TITLE = 60
"""Characters of a title between others; some shops put a whole description into one."""


def in_order(chains: Sequence[EvidenceChain]) -> list[EvidenceChain]:
    """Return chains as they are shown: by the place of what they lead to, then the strong ones.

    Two look-ups may find the same chain; the stronger one stands for both.
    """
    strongest: dict[tuple[str | None, ...], EvidenceChain] = {}
    for chain in sorted(chains, key=lambda c: (c.rank is None, c.rank or 0, -c.weight)):
        path = chain.via_item_id, chain.neighbour_user_id, chain.item_id
        strongest.setdefault(path, chain)
    return list(strongest.values())


def in_short(title: str) -> str:
    """Return a title, cut where it is too long to stand in a line with others."""
    return title if len(title) <= MOST_TITLE else title[: MOST_TITLE - 4].rstrip() + " ..."


def render_thought(thought: str) -> str:
    """Return a thought with its ``[titles]`` in short."""
    return re.sub(r"\[([^\[\]]+)\]", lambda found: f"[{in_short(found[1])}]", thought)


def render_chain(chain: EvidenceChain) -> str:
    """Return ``you ── [A] ── neighbour u12 (+3) ── [C]``, with the place of C where it has one.

    Where words lead, ``you ── [A] ── reads like ── [C]``. Titles are in short.
    """
    others = f" (+{chain.num_neighbours - 1})" if chain.num_neighbours > 1 else ""
    place = f"  #{chain.rank}" if chain.rank is not None else ""
    named = chain.neighbour_user_id
    between = "reads like" if named is None else f"neighbour {named}{others}"
    return f"you ── [{in_short(chain.via_title)}] ── {between} ── [{in_short(chain.title)}]{place}"


def render_because(because: Mapping[str, float]) -> str:
    """Return ``chains +1.20, the first stage -0.31``, what weighs most first, trifles left out."""
    sums: dict[str, float] = {}
    for name, part in because.items():
        kind = KINDS.get(name, name)
        sums[kind] = sums.get(kind, 0.0) + part
    told = sorted(sums.items(), key=lambda pair: -abs(pair[1]))
    return ", ".join(f"{kind} {part:+.2f}" for kind, part in told if abs(part) >= 0.005)

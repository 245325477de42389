"""Explanations as text for a terminal. The HTML report draws the same chains as SVG."""

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


def in_order(chains: Sequence[EvidenceChain]) -> list[EvidenceChain]:
    """Return chains as they are shown: by the place of what they lead to, then the strong ones."""
    return sorted(chains, key=lambda c: (c.rank is None, c.rank or 0, -c.weight))


def render_chain(chain: EvidenceChain) -> str:
    """Return ``you ── [A] ── neighbour u12 (+3) ── [C]``, with the place of C where it has one.

    Where words lead, ``you ── [A] ── reads like ── [C]``.
    """
    others = f" (+{chain.num_neighbours - 1})" if chain.num_neighbours > 1 else ""
    place = f"  #{chain.rank}" if chain.rank is not None else ""
    named = chain.neighbour_user_id
    between = "reads like" if named is None else f"neighbour {named}{others}"
    return f"you ── [{chain.via_title}] ── {between} ── [{chain.title}]{place}"


def render_because(because: Mapping[str, float]) -> str:
    """Return ``chains +1.20, the first stage -0.31``, what weighs most first, trifles left out."""
    sums: dict[str, float] = {}
    for name, part in because.items():
        kind = KINDS.get(name, name)
        sums[kind] = sums.get(kind, 0.0) + part
    told = sorted(sums.items(), key=lambda pair: -abs(pair[1]))
    return ", ".join(f"{kind} {part:+.2f}" for kind, part in told if abs(part) >= 0.005)

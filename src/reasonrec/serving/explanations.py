"""Explanations as text for a terminal. The HTML report draws the same chains as SVG."""

from reasonrec.records import EvidenceChain


def render_chain(chain: EvidenceChain) -> str:
    """Return ``you ── [A] ── neighbour u12 (+3) ── [C]``, with the place of C where it has one.

    Where words lead, ``you ── [A] ── reads like ── [C]``.
    """
    others = f" (+{chain.num_neighbours - 1})" if chain.num_neighbours > 1 else ""
    place = f"  #{chain.rank}" if chain.rank is not None else ""
    named = chain.neighbour_user_id
    between = "reads like" if named is None else f"neighbour {named}{others}"
    return f"you ── [{chain.via_title}] ── {between} ── [{chain.title}]{place}"

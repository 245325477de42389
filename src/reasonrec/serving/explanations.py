"""Explanations as text for a terminal. The HTML report draws the same chains as SVG."""

from reasonrec.records import EvidenceChain


def render_chain(chain: EvidenceChain) -> str:
    """Return ``you ── [A] ── neighbour u12 (+3) ── [C]``, with the place of C where it has one."""
    others = f" (+{chain.num_neighbours - 1})" if chain.num_neighbours > 1 else ""
    place = f"  #{chain.rank}" if chain.rank is not None else ""
    return (
        f"you ── [{chain.via_title}] ── neighbour {chain.neighbour_user_id}{others} ── "
        f"[{chain.title}]{place}"
    )

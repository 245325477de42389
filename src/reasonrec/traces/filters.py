"""Which thoughts may be learned from or shown: those that name nothing outside their evidence."""

import re
from collections.abc import Iterable, Sequence

from reasonrec.records import Lookup

_TITLE = re.compile(r"\[([^\[\]]*)\]")


def named_titles(thought: str) -> list[str]:
    """Return the titles that a thought names in brackets, in order, repeats included."""
    return _TITLE.findall(thought)


def ungrounded_titles(
    thought: str, titles: Sequence[str], history: Iterable[int], evidence: Iterable[Lookup]
) -> list[str]:
    """Return the named titles that stand neither in the history nor in the looked-up evidence.

    Args:
        titles: Unique item titles, in ``item_index`` order.
        history: Item indices that the user has touched.
        evidence: What the graph answered during the thought.
    """
    allowed = {titles[item] for item in history}
    for lookup in evidence:
        if lookup.via_item_index >= 0:
            allowed.add(titles[lookup.via_item_index])
        allowed.update(titles[link.item_index] for link, _ in lookup.named)
    return [title for title in named_titles(thought) if title not in allowed]

"""Words by which a thought shows that its answer was told (guided runs), and how to cut them."""

import re

_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\[@])")
_TITLE = re.compile(r"\[[^\[\]]*\]")
_LEAK = re.compile(
    r"\b(?:I|we) (?:was|were|am|are|have been|had been) (?:told|given|informed|asked to)\b"
    r"|\b(?:was|is|been|being) (?:told|revealed|disclosed)\b"
    r"|\b(?:the|this|that|its|your|their)?\s*"
    r"(?:actual|true|correct|right|real|known|given|provided|stated|expected|target"
    r"|ground[- ]truth)"
    r" (?:answer|rating|label|score|choice|item|value|result|outcome)\b"
    r"|\b(?:answer|rating|label|outcome) (?:is|was) "
    r"(?:given|known|provided|told|stated|revealed|already)\b"
    r"|\bground[- ]truth\b|\bhint(?:s|ed)?\b|\bhindsight\b|\bthe label\b|\bfor me alone\b"
    r"|\bas (?:instructed|told|provided|given)\b|\b(?:since|because|as|given that) (?:we|I) know\b"
    r"|\blead(?:s|ing)? to (?:it|the answer)\b",
    re.IGNORECASE,
)


def leak_phrases(text: str) -> list[str]:
    """Return the phrases that show the answer was told; words inside titles do not count."""
    return [found.group().strip() for found in _LEAK.finditer(_TITLE.sub("[]", text))]


def cut_leaks(text: str) -> str:
    """Return a text without the sentences that show it; empty if none is left."""
    return " ".join(s for s in _SENTENCE.split(text) if not leak_phrases(s)).strip()

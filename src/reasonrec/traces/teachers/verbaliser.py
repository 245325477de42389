"""The teacher without a model: says in plain words what the evidence of a view says. Deterministic.

It looks at the view alone, so that what a stage masks is masked for it too. Free, it answers with
the user's usual rating moved by what the neighbours' ratings say, each weighed by how far they
agreed on the first item; or, where likes are asked, with the candidate on which most chains close,
else with the one whose categories the user liked best. Guided, it names the chains that point to
the answer.
"""

from collections import Counter
from collections.abc import Sequence

from reasonrec.traces.questions import ItemCard, Taken
from reasonrec.traces.reasoned_config import TeacherConfig
from reasonrec.traces.stages import CHAIN_STAGES, HIDDEN, ChainView, Rating, Stage, View
from reasonrec.traces.teachers.contract import Reply, Request


class VerbaliserTeacher:
    """Writes each stage from its view."""

    name = "verbaliser"

    def __init__(self, voice: TeacherConfig | None = None) -> None:
        self.voice = voice or TeacherConfig()

    async def ask(self, request: Request) -> Reply:
        """Return the thought of one stage in its tags."""
        view = request.view
        if view.stage == "whole":
            text = _whole(view, self.voice)
        elif view.stage == "together":
            text = _tagged("together", *_together(view, self.voice))
        elif view.stage == "rewrite":
            text = _tagged("rewrite", view.thoughts[0])
        elif not view.chains:
            text = _tagged("taste", _general_taste(view.history, view.usual))
        else:
            text = _tagged(view.stage, *_step(view, view.chains[0], view.stage, self.voice))
        return Reply(text, reply_tokens=0)

    def stop(self) -> None:
        """Nothing is ever under way."""

    async def close(self) -> None:
        """Nothing to give back."""


def _whole(view: View, voice: TeacherConfig) -> str:
    parts = []
    for chain in view.chains:
        for stage in CHAIN_STAGES:
            words, _ = _step(view, chain, stage, voice)
            parts.append(_tagged(stage, words))
    return "".join([*parts, _tagged("together", *_together(view, voice))])


def _step(
    view: View, chain: ChainView, stage: Stage, voice: TeacherConfig
) -> tuple[str, str | None]:
    if voice.style == "brief":
        return brief_step(view, chain, stage, voice)
    if stage == "taste":
        return _taste(view, chain), None
    if stage == "agreement":
        return _agreement(view, chain), None
    if stage == "suggestion":
        return _suggestion(chain), None
    return _closure(view, chain, voice)


def brief_step(
    view: View, chain: ChainView, stage: Stage, voice: TeacherConfig
) -> tuple[str, str | None]:
    """Return what stands on one hop of a chain, and no more."""
    who, first, second = _who(chain), _name(chain.first), _name(chain.second)
    if stage == "taste":
        return _did("The user", "took", first, chain.own_first), None
    if stage == "agreement":
        if isinstance(chain.neighbour_first, float):
            return f"{who} gave it {chain.neighbour_first:g}.", None
        return f"{who} took it too.", None
    if stage == "suggestion":
        return _did(who, "went on to", second, chain.neighbour_second), None
    if view.task == "likes" and chain.closes_on == "candidate":
        return f"So to {second}.", None
    if chain.closes_on == "nothing":
        return "It leads no further.", None
    return _closure(view, chain, voice)


def _did(who: str, verb: str, item: str, rating: Rating) -> str:
    if isinstance(rating, float):
        return f"{who} gave {item} {rating:g}."
    return f"{who} {verb} {item}."


def _taste(view: View, chain: ChainView) -> str:
    first, rating = _name(chain.first), chain.own_first
    kinds = _kinds(chain.first)
    if rating is HIDDEN:
        guess = f" about {_nearest(view, view.usual)}" if view.usual is not None else ""
        return f"The user may have given {first}{guess}, as they mostly do{_of(kinds)}."
    if not isinstance(rating, float):
        return f"The user took {first}{', drawn by ' + kinds if kinds else ''}."
    side = _side(rating, view.usual)
    words = {
        1: f", above their usual {_usual(view)}: they like its {kinds or 'kind'}",
        0: f", about their usual {_usual(view)}: its {kinds or 'kind'} neither won nor lost them",
        -1: f", below their usual {_usual(view)}: its {kinds or 'kind'} did not win them",
    }[side]
    alike = _alike(view.history, chain.first, side, view.usual)
    more = f", as with [{alike.item.shown}] {alike.rating:g}" if alike is not None else ""
    return f"The user gave {first} {rating:g}{words}{more}."


def _agreement(view: View, chain: ChainView) -> str:
    who, own, theirs = _who(chain), chain.own_first, chain.neighbour_first
    shared = chain.num_shared if isinstance(chain.num_shared, int) else None
    common = f", and they share {shared} items" if shared is not None and shared > 2 else ""
    if theirs is HIDDEN:
        return f"{who} may well have rated it as the user did{common}."
    if not isinstance(theirs, float) or not isinstance(own, float):
        return f"{who} took it too{common}."
    gap, near = abs(theirs - own), abs(theirs - own) <= _span(view) / 4
    more = "liked it more" if theirs > own else "liked it less"
    how = "as well" if gap == 0 else ("and nearly agrees" if near else f"and {more}")
    worth = "a good guide here" if gap == 0 else ("a fair guide" if near else "a weak guide")
    if shared is not None and shared <= 2:
        worth = "yet they share hardly anything, so it is little to go by"
    return f"{who} gave it {theirs:g} {how}{common}: {worth}."


def _suggestion(chain: ChainView) -> str:
    who, theirs = _who(chain), chain.neighbour_second
    item = _name(chain.second) if isinstance(chain.second, ItemCard) else "what is hidden"
    if theirs is HIDDEN:
        return f"{who} went on to {item}, and may have liked it as usual."
    if not isinstance(theirs, float):
        return f"{who} went on to {item}{_of(_kinds(chain.second), ', of the kind ')}."
    usual = chain.neighbour_usual if isinstance(chain.neighbour_usual, float) else None
    side = _side(theirs, usual)
    of_usual = f" usual {usual:.1f}" if usual is not None else " usual"
    return (
        f"{who} gave {item} {theirs:g}"
        + {
            1: f", above their{of_usual}: that speaks for it.",
            0: f", about their{of_usual}: that says little.",
            -1: f", below their{of_usual}: that speaks against it.",
        }[side]
    )


def _closure(view: View, chain: ChainView, voice: TeacherConfig) -> tuple[str, str | None]:
    item, who = _name(chain.second), _who(chain)
    if chain.closes_on == "history":
        if isinstance(chain.own_second, float) and isinstance(chain.neighbour_second, float):
            gap = abs(chain.own_second - chain.neighbour_second)
            worth = "they agree" if gap <= _span(view) / 4 else "they differ"
            return f"The user gave {item} {chain.own_second:g}, so here {worth}.", None
        return f"The user took {item} too, so they walk alike.", None
    if chain.closes_on == "nothing":
        return f"This leads to {item} and no further: it shows where people alike go next.", None
    if view.task == "likes":
        return f"So {who} leads from {_name(chain.first)} to {item}.", None
    answer = _rate(view, [chain], voice)
    if view.told is not None:
        answer = view.told
    return f"Beside the usual {_usual(view)} this comes to {answer}.", answer


def _together(view: View, voice: TeacherConfig) -> tuple[str, str]:
    return _rate_together(view, voice) if view.task == "rated" else _choose_together(view, voice)


def _rate_together(view: View, voice: TeacherConfig) -> tuple[str, str]:
    assert isinstance(view.candidates, tuple)
    answer = view.told if view.told is not None else _rate(view, view.chains, voice)
    item = view.candidates[0]
    reaching = [chain for chain in view.chains if chain.closes_on == "candidate"]
    sides = {
        side: [_who(chain) for chain in reaching if _opinion(chain) == side] for side in (1, 0, -1)
    }
    # a guided thought names first what points to the answer
    wanted = _side(float(answer), view.usual)
    words = {1: "speaks for it", 0: "says little", -1: "speaks against it"}
    order = sorted((1, -1, 0), key=lambda side: side != wanted) if view.told else (1, -1, 0)
    parts = [
        f"{_and(sides[side])} {_plural(words[side], sides[side])}" for side in order if sides[side]
    ]
    kin = _kin(view.history, item, view.usual)
    if kin is not None:
        parts.append(f"the user gave [{kin.item.shown}], of the same kind, {kin.rating:g}")
    parts.append(f"the user mostly gives {_usual(view)}")
    points = bool(sides[wanted]) or (kin is not None and _side(kin.rating, view.usual) == wanted)
    if view.told is not None and not points:
        parts.append("yet none of this is firm")
    return f"{_sentence('; '.join(parts))} For [{item.shown}] that comes to {answer}.", answer


def _choose_together(view: View, voice: TeacherConfig) -> tuple[str, str]:
    assert isinstance(view.candidates, tuple)
    scores = _candidate_scores(view, view.candidates, voice)
    order = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
    chosen = order[min(view.attempt, len(order) - 1)]
    if view.told is not None:
        chosen = view.answers.index(view.told)
    item = view.candidates[chosen]
    number = str(chosen + 1)
    if voice.style == "brief":
        return leaders(view, voice), number
    parts = []
    if view.support is not None and view.support[chosen]:
        ways = "% of the chains lead to" if view.support_kind == "steps" else " chains close on"
        parts.append(f"{view.support[chosen]}{ways} [{item.shown}]")
    reaching = [
        f"{_who(chain)} leads there from {_name(chain.first)}"
        for chain in view.chains
        if chain.second == item
    ]
    parts += reaching
    liked = _liked_kinds(view.history, view.usual)
    shared = [kind for kind in item.categories if liked[kind] > 0]
    if shared:
        parts.append(f"the user likes {_and(shared[:2])}, and [{item.shown}] is of that kind")
    if not parts:
        parts.append("nothing in the evidence points anywhere else")
    return f"{_sentence('; '.join(parts))} So [{item.shown}] is the likeliest.", number


def leaders(view: View, voice: TeacherConfig) -> str:
    """Return which candidates lead, by chains and by words. Names no choice: that is the answer.

    A thought that named it would leave nothing open at the answer, where candidates are ranked.
    """
    assert isinstance(view.candidates, tuple)
    names = [f"[{item.shown}]" for item in view.candidates]
    parts = []
    if view.support is not None:
        order = sorted(range(len(names)), key=lambda c, found=view.support: (-found[c], c))
        leading = [c for c in order[: voice.judgement.num_leading] if view.support[c]]
        told = [f"{view.support[c]} {names[c]}" for c in leading]
        # chains of more than five steps lead to an item, and are no support
        closes = any(chain.second in view.candidates for chain in view.chains)
        nothing = "no chain is a short one" if closes else "no chain leads anywhere"
        parts.append(f"of the chains {', '.join(told)}" if told else nothing)
    if view.likeness is not None and any(view.likeness):
        best = max(range(len(names)), key=lambda c, found=view.likeness: (found[c], -c))
        near = view.nearest[best]
        if near is not None:
            parts.append(f"{names[best]} is {view.likeness[best]} like [{near.shown}]")
    return _sentence("; ".join(parts or ["nothing in the evidence points anywhere"]))


def _rate(view: View, chains: Sequence[ChainView], voice: TeacherConfig) -> str:
    """Return the rating nearest to the usual one moved by the neighbours; retries take the next."""
    middle = (view.scale[0] + view.scale[-1]) / 2
    usual = view.usual if view.usual is not None else middle
    judgement = voice.judgement
    moved, weight = 0.0, judgement.prior_weight
    for chain in chains:
        theirs, first, own = chain.neighbour_second, chain.neighbour_first, chain.own_first
        if chain.closes_on != "candidate" or not isinstance(theirs, float):
            continue
        of_them = chain.neighbour_usual if isinstance(chain.neighbour_usual, float) else middle
        agrees = 0.5
        if isinstance(first, float) and isinstance(own, float):
            agrees = 1 - abs(first - own) / max(_span(view), 1e-9)
        moved += agrees * judgement.trust * (theirs - of_them)
        weight += agrees
    return _nearest(view, usual + moved / weight)


def _nearest(view: View, value: float | None) -> str:
    assert value is not None
    order = sorted(view.scale, key=lambda rating: (abs(rating - value), rating))
    return f"{order[min(view.attempt, len(order) - 1)]:g}"


def _candidate_scores(
    view: View, candidates: Sequence[ItemCard], voice: TeacherConfig
) -> list[float]:
    """Return what speaks for each candidate: chains that close on it first, then its categories."""
    judgement = voice.judgement
    liked = _liked_kinds(view.history, view.usual)
    most = max((abs(count) for count in liked.values()), default=1.0)
    scores = []
    for c, item in enumerate(candidates):
        kinds = sum(liked[kind] for kind in item.categories) / max(1, len(item.categories)) / most
        support = view.support[c] if view.support is not None else 0
        alike = view.likeness[c] if view.likeness is not None else 0
        alike, kinds = alike * judgement.likeness_worth, kinds * judgement.kinds_worth
        scores.append(support + alike + kinds)
    return scores


def _liked_kinds(history: Sequence[Taken], usual: float | None) -> Counter[str]:
    """Return how much the user likes each category; taking without rating counts as liking."""
    liked: Counter[str] = Counter()
    for taken in history:
        weight = 1.0
        if taken.rating is not None and usual is not None:
            weight = 0.25 + taken.rating - usual
        for kind in taken.item.categories:
            liked[kind] += weight  # pyright: ignore[reportArgumentType]
    return liked


def _alike(
    history: Sequence[Taken], item: ItemCard | object, side: int, usual: float | None
) -> Taken | None:
    """Return the newest other event with a category in common and a rating on the same side."""
    if not isinstance(item, ItemCard):
        return None
    for taken in reversed(history):
        is_other = taken.item.item_index != item.item_index and taken.rating is not None
        is_alike = set(taken.item.categories) & set(item.categories)
        if is_other and is_alike and side != 0 and _side(taken.rating, usual) == side:
            return taken
    return None


def _kin(history: Sequence[Taken], item: ItemCard, usual: float | None) -> Taken | None:
    """Return the event whose categories are most like the item's; the newest of equals."""
    wanted = set(item.categories)
    best, most = None, 0.5
    for taken in reversed(history):
        kinds = set(taken.item.categories)
        if taken.rating is None or not kinds | wanted:
            continue
        overlap = len(kinds & wanted) / len(kinds | wanted)
        if overlap > most:
            best, most = taken, overlap
    return best


def _general_taste(history: Sequence[Taken], usual: float | None) -> str:
    liked = [kind for kind, weight in _liked_kinds(history, usual).most_common(2) if weight > 0]
    if not history:
        return "Nothing is known of the user yet."
    if not liked:
        return f"The user took [{history[-1].item.shown}] last, and shows no clear taste."
    return f"The user likes {_and(liked)}, and took [{history[-1].item.shown}] last."


def _opinion(chain: ChainView) -> int:
    usual = chain.neighbour_usual if isinstance(chain.neighbour_usual, float) else None
    return _side(chain.neighbour_second, usual)


def _side(rating: Rating, usual: float | None) -> int:
    """Return 1 above the usual rating, -1 below, 0 within half a star of it or where unknown."""
    if not isinstance(rating, float) or usual is None:
        return 0
    return 0 if abs(rating - usual) < 0.5 else (1 if rating > usual else -1)


def _usual(view: View) -> str:
    return "unknown" if view.usual is None else f"{view.usual:.1f}"


def _span(view: View) -> float:
    return view.scale[-1] - view.scale[0] if view.scale else 1.0


def _name(item: ItemCard | object) -> str:
    return f"[{item.shown}]" if isinstance(item, ItemCard) else "[?]"


def _who(chain: ChainView) -> str:
    return chain.neighbour if isinstance(chain.neighbour, str) else "[?]"


def _kinds(item: ItemCard | object) -> str:
    return _and(list(item.categories[:2])) if isinstance(item, ItemCard) else ""


def _of(kinds: str, before: str = " with ") -> str:
    return f"{before}{kinds}" if kinds else ""


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _plural(words: str, who: Sequence[str]) -> str:
    if len(who) == 1:
        return words
    return words.replace("speaks", "speak").replace("says", "say")


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _tagged(tag: str, words: str, answer: str | None = None) -> str:
    given = f"<answer>{answer}</answer>" if answer is not None else ""
    return f"<{tag}>{words}</{tag}>{given}"

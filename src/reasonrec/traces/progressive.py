"""Progressive masked prompting: one question, asked of a teacher stage by stage (R2Rec, fact 4).

`think_through` is a generator: it yields requests and is sent replies, so that the order of stages
is plain code, whoever answers and however many questions are under way. For every chain it asks the
four stages, each with the thoughts before it; then, unless one chain ends on the answer, what the
chains say together. A free run comes first. If its answer misses the label it is tried again, and
then once *guided*: the last step is asked with the answer in the teacher's view. A guided thought
that shows it is rewritten, cut, or dropped. Titles that a teacher may not read stay numbers in
every turn (`ItemCard.shown`) and become titles again when the thought is finished.

Reconstruction: the paper's stages, retries and cure are not public; each is a configuration key.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from reasonrec.rng import stream_seed
from reasonrec.traces import teacher_prompts
from reasonrec.traces.interaction_of_thought import (
    ChainThought,
    InteractionOfThought,
    read_student_text,
    student_answer,
    student_prompt,
)
from reasonrec.traces.leaks import cut_leaks, leak_phrases
from reasonrec.traces.parsing import Said, parse_reply, text_problem
from reasonrec.traces.prompts import THINK
from reasonrec.traces.questions import Question, as_shown, with_titles
from reasonrec.traces.reasoned_config import KeepConfig, ProgressiveConfig
from reasonrec.traces.stages import (
    CHAIN_STAGES,
    Stage,
    View,
    look,
    look_at_all,
    look_at_nothing,
)
from reasonrec.traces.teachers.contract import Message, Reply, Request


@dataclass
class Draft:
    """What one question came to."""

    question: Question
    thought: InteractionOfThought | None = None
    run: str = "free"
    """``free`` or ``guided``."""
    problem: str | None = None
    """Why there is no thought: a reason of `parsing`, or ``shows-the-answer``."""
    cure: str | None = None
    """``rewrite`` or ``cut`` where the guided thought had to be cured."""
    num_free_misses: int = 0
    """Free runs whose answer was not the label."""
    first_answer: str | None = None
    """What the first free run answered."""
    reply_problems: list[str] = field(default_factory=list)
    """Reasons of all replies that could not be used, repaired ones included."""
    requests: list[Request] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)


Asking = Generator[Request, Reply, None]


class _SetAside(Exception):
    """The trace cannot be finished; carries the reason."""


def think_through(
    draft: Draft, config: ProgressiveConfig, *, seed: int, keep: KeepConfig
) -> Asking:
    """Fill in a draft: yields a request, is sent its reply, until there is a thought or a reason.

    Args:
        draft: Of a question whose label is known, unless ``runs`` is ``free``.
        seed: Of the run; with the question's key and the step it seeds every call.
        keep: What the words of a reply must be.
    """
    asker = _Asker(draft, config, seed, keep)
    try:
        if config.own_words:
            yield from _in_own_words(asker)
        elif config.one_call:
            yield from _at_once(asker)
        else:
            yield from _in_stages(asker)
    except _SetAside as reason:
        draft.problem, draft.thought = str(reason), None


class _Asker:
    """Sends the calls of one question, asks again where a reply cannot be used, keeps account."""

    def __init__(
        self, draft: Draft, config: ProgressiveConfig, seed: int, keep: KeepConfig
    ) -> None:
        self.draft, self.question, self.config = draft, draft.question, config
        self.seed, self.keep = seed, keep
        self.items = draft.question.items

    def say(self, messages: Sequence[Message], view: View) -> Generator[Request, Reply, Said]:
        """Return what a usable reply says.

        Raises:
            _SetAside: There was none.
        """
        problem = ""
        for repair in range(self.config.max_repairs + 1):
            reply = yield from self.send(messages, view, repair)
            said = parse_reply(reply, view, self.items, self.keep)
            if isinstance(said, Said):
                return said
            problem = said
            self.draft.reply_problems.append(problem)
            if problem in ("failed", "refused"):
                break  # the endpoint has tried as often as it may, or will not
        raise _SetAside(problem)

    def send(
        self, messages: Sequence[Message], view: View, repair: int
    ) -> Generator[Request, Reply, Reply]:
        many = 4 * max(1, len(self.question.chains)) + 1 if view.stage == "whole" else 1
        request = Request(
            messages=tuple(messages),
            view=view,
            max_new_tokens=self.config.max_new_tokens * many,
            temperature=self.config.temperature,
            seed=stream_seed(
                self.seed, "traces/ask", self.question.key, len(self.draft.requests), repair
            ),
        )
        self.draft.requests.append(request)
        reply = yield request
        self.draft.replies.append(reply)
        return reply

    def is_right(self, answer: str | None) -> bool:
        return self.question.label is None or answer == self.question.label


def _in_stages(asker: _Asker) -> Asking:
    question = asker.question
    stages: list[list[str]] = []
    answers: list[str | None] = []
    last: tuple[list[Message], View] | None = None
    for n in range(1, len(question.chains) + 1):
        turns, thoughts = [Message("system", teacher_prompts.rules())], []
        answer = None
        for stage in CHAIN_STAGES:
            view = look(question, n, stage, asker.config.masking, tuple(thoughts))
            turns.append(Message("user", teacher_prompts.render(view)))
            if len(question.chains) == 1 and view.asks_answer:
                last = (turns, view)
                break
            said = yield from asker.say(turns, view)
            thoughts.append(said.parts[0])
            answer = said.answer
            turns.append(Message("assistant", _as_reply(stage, said)))
        stages.append(thoughts)
        answers.append(answer)
    if not question.chains:
        view = look_at_nothing(question)
        turns = [Message("system", teacher_prompts.rules())]
        turns.append(Message("user", teacher_prompts.render(view)))
        said = yield from asker.say(turns, view)
        stages.append([said.parts[0]])
        answers.append(None)
    if last is None:
        thoughts = tuple(" ".join(parts) for parts in stages)
        view = look_at_all(question, "together", thoughts)
        turns = [Message("system", teacher_prompts.rules())]
        last = ([*turns, Message("user", teacher_prompts.render(view))], view)
    said = yield from _answer(asker, *last)
    chains = [ChainThought(tuple(parts), answer) for parts, answer in zip(stages, answers)]
    assert said.answer is not None
    together = said.parts[0]
    if last[1].stage == "closure":
        parts = (*chains[0].parts, together)
        chains, together = [ChainThought(parts, said.answer)], ""
    yield from _finish(asker, InteractionOfThought(tuple(chains), together, said.answer))


def _at_once(asker: _Asker) -> Asking:
    view = look_at_all(asker.question, "whole")
    turns = [Message("system", teacher_prompts.rules())]
    turns.append(Message("user", teacher_prompts.render(view)))
    said = yield from _answer(asker, turns, view)
    *steps, together = said.parts
    chains = tuple(ChainThought(tuple(steps[i : i + 4])) for i in range(0, len(steps), 4))
    assert said.answer is not None
    yield from _finish(asker, InteractionOfThought(chains, together, said.answer))


def _answer(asker: _Asker, turns: list[Message], view: View) -> Generator[Request, Reply, Said]:
    """Return the last step: free, free again while it misses, then guided."""
    draft, config, label = asker.draft, asker.config, asker.question.label
    said = None
    if config.runs != "guided":
        for attempt in range(config.max_retries + 1):
            said = yield from asker.say(turns, replace(view, attempt=attempt))
            draft.first_answer = draft.first_answer or said.answer
            if asker.is_right(said.answer):
                return said
            draft.num_free_misses += 1
        if config.runs == "free":
            assert said is not None
            return said
    assert label is not None, "a guided run needs the label"
    draft.run = "guided"
    view = replace(view, told=label, attempt=0)
    turns = [*turns[:-1], Message("user", teacher_prompts.render(view))]
    return (yield from asker.say(turns, view))


def _in_own_words(asker: _Asker) -> Asking:
    """The student's own prompt, continued; a guided run puts the answer before the thought."""
    draft, config, question = asker.draft, asker.config, asker.question
    shown = as_shown(question)
    prompt = student_prompt(shown)
    view = replace(look_at_all(question, "whole"), told=None)
    tries: list[tuple[str, View]] = []
    if config.runs != "guided":
        tries += [(prompt, replace(view, attempt=n)) for n in range(config.max_retries + 1)]
    if config.runs != "free":
        assert question.label is not None, "a guided run needs the label"
        told = shown.answers[question.answers.index(question.label)]
        hint = f"{prompt} Hint:{student_answer(shown, told)}"
        tries.append((hint, replace(view, told=question.label)))
    problem = ""
    for text, asked in tries:
        messages = [Message("prompt", f"{text}{THINK}")]
        reply = yield from asker.send(messages, asked, 0)
        said = _read_own_words(asker, shown, reply)
        if isinstance(said, str):
            problem = said
            draft.reply_problems.append(said)
            continue
        thought, given = said
        answer = question.answers[shown.answers.index(given)]
        draft.run = "guided" if asked.told else "free"
        draft.thought = InteractionOfThought((), thought, answer)
        draft.first_answer = draft.first_answer or answer
        if asker.is_right(answer):
            break
        draft.num_free_misses += 1
    if draft.thought is None:
        raise _SetAside(problem)
    yield from _finish(asker, draft.thought)


def _read_own_words(asker: _Asker, shown: Question, reply: Reply) -> tuple[str, str] | str:
    if reply.problem is not None:
        return reply.problem
    if not reply.text.strip():
        return "empty"
    found = read_student_text(shown, reply.text)
    if found is None:
        return "malformed" if reply.is_complete else "truncated"
    problem = text_problem(found[0], asker.items, asker.keep)
    return problem or found


def _finish(asker: _Asker, thought: InteractionOfThought) -> Asking:
    """Keep the thought, its numbers titles again; first cure one that shows the answer was told."""
    yield from _cure(asker, thought)
    cured, items = asker.draft.thought, asker.items
    assert cured is not None
    asker.draft.thought = replace(
        cured,
        chains=tuple(
            replace(chain, parts=tuple(with_titles(part, items) for part in chain.parts))
            for chain in cured.chains
        ),
        together=with_titles(cured.together, items),
    )


def _cure(asker: _Asker, thought: InteractionOfThought) -> Asking:
    """Fill in the draft's thought, without the words by which a guided one shows it was told."""
    draft, cure = asker.draft, asker.config.leak_cure
    if cure == "rewrite" and asker.config.own_words:
        cure = "cut"  # who knows only the student's prompt cannot be asked to rewrite
    draft.thought = thought
    if draft.run != "guided" or not leak_phrases(thought.text):
        return
    # what was told was told at the last step: that is where it shows, and what is cured
    *_, last = [*(part for chain in thought.chains for part in chain.parts), thought.together]
    text = last or thought.chains[-1].parts[-1]
    if cure == "rewrite":
        view = View("rewrite", asker.question.task, (), (), None, thoughts=(text,))
        turns = [Message("system", teacher_prompts.rules())]
        turns.append(Message("user", teacher_prompts.render_rewrite(text)))
        said = yield from asker.say(turns, view)
        cured = said.parts[0]
    else:
        cured = cut_leaks(text) if cure == "cut" else text
    draft.cure = cure
    draft.thought = _with_last(thought, cured)
    if not cured or leak_phrases(draft.thought.text):
        raise _SetAside("shows-the-answer")


def _with_last(thought: InteractionOfThought, text: str) -> InteractionOfThought:
    if thought.together:
        return replace(thought, together=text)
    *before, last = thought.chains
    return replace(thought, chains=(*before, replace(last, parts=(*last.parts[:-1], text))))


def _as_reply(stage: Stage, said: Said) -> str:
    answer = f"<answer>{said.answer}</answer>" if said.answer is not None else ""
    return f"<{stage}>{said.parts[0]}</{stage}>{answer}"

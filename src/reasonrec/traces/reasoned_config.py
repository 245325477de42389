"""What can be set about interaction-of-thought traces (R2Rec). Imports nothing heavy.

The paper's text is not public: every value here is ours, and so is every switch. What is known is
in ``docs/paper_index.md``.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from reasonrec.config import Config
from reasonrec.graph.config import Reading

Task = Literal["rated", "likes"]
Masking = Literal["evidence", "ratings", "target", "answer"]
Runs = Literal["free-then-guided", "free", "guided"]
LeakCure = Literal["rewrite", "cut", "drop"]
Support = Literal["steps", "count"]
ChainEnds = Literal["closed", "random"]
Style = Literal["full", "brief"]
TeacherKind = Literal["verbaliser", "endpoint", "local", "self"]


class StepsConfig(Config):
    """How a chain of few steps counts as support: as in the follow counter. All of it ours."""

    window: PositiveInt = 5
    """Most steps from the first item to the candidate, in the order of the neighbour's events."""
    reverse_share: NonNegativeFloat = 0.5
    """What a step back counts, beside 1 for a step on."""
    recency_power: NonNegativeFloat = 1.0
    """The first item weighs s ** -recency_power as the s-th last of the history."""
    total_power: NonNegativeFloat = 0.5
    """... and over its number of events to this power. 0: popular ones weigh alike."""


class EvidenceConfig(Config):
    """What a question shows: history, chains, candidates. All of it ours."""

    reading: Reading = "candidate-closed"
    """What chains close on: candidates, or the user's own history, which says little of them and
    does better where histories are long."""
    num_chains: NonNegativeInt = 3
    """Chains of one question at most (K). 0: thoughts from the history alone, no support shown."""
    chain_ends: ChainEnds = "closed"
    """random is the control: each chain ends on a random item of its neighbour, nothing closes, and
    no support is shown."""
    max_history: PositiveInt = 20
    """Last events of the history that a question shows, and that chains may start from."""
    overlap_weight: bool = True
    """Whether neighbours with more shared items are drawn more often."""
    degree_weight: bool = True
    """Whether popular items are drawn less often."""
    open_from: NonNegativeInt = 3
    """Last items of the history that an open chain may lead out of, where none closes."""
    num_candidates: int = Field(default=20, ge=2)
    """Items to choose among where likes are asked, the one taken included."""
    neighbour_facts: bool = True
    """Whether a chain says what its neighbour usually rates, and how many items are shared."""
    show_support: bool = True
    """Whether likes say how far chains close on each candidate (candidate-closed)."""
    support: Support = "steps"
    """What that is. steps: the candidate's share of all chains to candidates, in percent, each
    weighed by how few steps lie between both items at the neighbour and by how new the first one is
    to the user. count: the number of chains."""
    steps: StepsConfig = StepsConfig()
    """What few steps are, for support."""
    show_likeness: bool = True
    """Whether likes say how alike each candidate's words are to the history's, in grades."""
    likeness_grades: PositiveInt = 9
    """The highest of these grades, of words that are the same; the lowest is 0."""
    max_ratings: PositiveInt = 21
    """Most different ratings that count as a scale. Sets with more are refused where ratings are
    asked."""
    max_word_share: float = Field(default=0.3, gt=0, le=1)
    """Words that stand in a larger share of the items say nothing of likeness."""
    num_categories: NonNegativeInt = 3
    """First categories of an item that a teacher reads, at most."""
    max_text_words: NonNegativeInt = 30
    """Words of an item's description that a teacher reads. 0: titles and categories alone."""
    alias_titles: bool | None = None
    """Whether a teacher reads ``[item 17]`` for every title, ``kind 3`` for every category and no
    description, so that no text of the catalogue can act as an instruction to it. None: teachers do
    that are asked in words, endpoint and local. A model that knows the titles may think better with
    False, where strangers cannot write to the catalogue: then only what reads like common English
    orders is replaced, and other orders pass. Thoughts name titles and categories either way."""


class ProgressiveConfig(Config):
    """How a teacher is led from stage to stage. All of it ours."""

    masking: Masking = "evidence"
    """What is hidden. evidence: every stage adds one hop and later hops stay masked. ratings: the
    path is shown, its ratings are masked and filled in one by one. target: the last item's identity
    is masked until the last stage. answer: nothing but the answer is ever masked."""
    one_call: bool = False
    """Whether all stages are asked in one structured prompt: cheaper, and nothing but the answer
    can stay masked."""
    runs: Runs = "free-then-guided"
    """Whether the answer is told to the teacher: only after free runs missed it, never, always."""
    max_retries: NonNegativeInt = 1
    """Free runs of the last step after the first one missed the answer (M)."""
    max_repairs: NonNegativeInt = 1
    """Times that a reply which cannot be used is asked for again before the trace is set aside."""
    leak_cure: LeakCure = "rewrite"
    """What happens to a guided thought that shows it was told: the teacher rewrites it without the
    answer in sight, the sentences are cut, or it is dropped. What still shows it is dropped."""
    own_words: bool = False
    """Whether the teacher continues the student's own prompt instead of answering in stages: the
    way of a model that was trained on such traces and knows no chat. Always so for `self`."""
    max_new_tokens: PositiveInt = 200
    """Longest reply, in the teacher's tokens; a one-call reply may take as many for each step."""
    temperature: NonNegativeFloat = 0.7
    """Of sampling. 0 takes the likeliest token; retries then differ by their seed alone."""


class KeepConfig(Config):
    """Which traces are kept for training. All of it ours."""

    tolerance: NonNegativeFloat = 0.0
    """Rating steps that the answer may miss the label by: 1 suits scales of ten points."""
    min_words: NonNegativeInt = 4
    """Fewest words of a whole thought."""
    max_words: PositiveInt = 400
    """Most words of a whole thought."""
    drop_duplicates: bool = True
    """Whether of traces with the same words the first alone is kept."""
    max_label_ratio: PositiveFloat | None = 2.0
    """Most kept traces of one rating, as a multiple of the mean over ratings. None: no balance."""
    check_language: bool = True
    """Whether replies that are not in English are set aside."""
    least_latin: float = Field(default=0.9, ge=0, le=1)
    """Share of letters that must be plain Latin ones for that, outside brackets."""
    least_common: float = Field(default=0.1, ge=0, le=1)
    """Share of words that must be among the commonest English ones, from eight words on."""
    copied_words: PositiveInt = 10
    """So many words in a row of an item's title or description, outside brackets, are copied and
    not thought: the reply is set aside."""
    order_words: PositiveInt = 4
    """The same where that text reads like an order to a language model."""
    title_words: PositiveInt = 3
    """Titles of so many words or more are looked for outside brackets too; shorter ones are
    ordinary speech."""
    max_failed_frac: float = Field(default=0.5, gt=0, le=1)
    """Share of traces without usable replies above which the run stops."""
    check_every: PositiveInt = 50
    """Traces after which that share is looked at, first and again."""


class JudgementConfig(Config):
    """How the verbaliser, which is no model, comes to an answer of its own. All of it ours."""

    prior_weight: PositiveFloat = 1.0
    """Weight of the user's usual rating beside 1 for a neighbour who agreed fully."""
    trust: NonNegativeFloat = 0.6
    """Share of a neighbour's deviation that the user is taken to follow."""
    likeness_worth: NonNegativeFloat = 5.0
    """Likes: what a grade of likeness counts beside one percent of the chains."""
    kinds_worth: NonNegativeFloat = 0.5
    """Likes: what the best liked categories count beside one percent of the chains."""
    num_leading: PositiveInt = 3
    """Likes: candidates that the end of a brief thought names by their share of the chains."""


class TeacherConfig(Config):
    """Who writes the thoughts. That traces are annotated is stated; by whom is not known: ours."""

    kind: TeacherKind = "verbaliser"
    """verbaliser: a deterministic writer, no model. endpoint: any OpenAI-compatible server. local:
    a chat model of a folder or the hub. self: the trained model itself."""
    style: Style = "brief"
    """Of the verbaliser; both are ours. brief: what stands on the chain and where it leads, some
    100 tokens. full: with reasons for each step, three times as long. brief names no choice, so
    with likes a free and a guided thought are the same words: their answers alone differ, and a
    guided one says nothing of why."""
    judgement: JudgementConfig = JudgementConfig()
    """Of the verbaliser."""
    model: str | None = None
    """Name at the endpoint, or folder or hub name of a local model. All but verbaliser need it."""
    base_url: str | None = None
    """Address of the endpoint, ending in /v1. None is the default of the `openai` package."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. The key itself is never written anywhere."""
    batch_size: PositiveInt = 8
    """Prompts that a local model reads at once."""
    device: str = "cpu"
    """Where a local model runs."""

    @model_validator(mode="after")
    def check_model(self) -> Self:
        """Refuse a teacher without a name: guessing one could cost money."""
        if self.kind != "verbaliser" and not self.model:
            raise ValueError(f"a teacher of kind {self.kind} needs a model; name one")
        if self.kind != "endpoint" and self.base_url is not None:
            raise ValueError(f"only an endpoint has a base_url; the kind is {self.kind}")
        return self


class LimitsConfig(Config):
    """Traffic and spending. Changing these continues the same run; they move no trace. All of it
    ours."""

    concurrency: PositiveInt = 8
    """Calls under way at once."""
    requests_per_minute: PositiveFloat | None = None
    """Most calls started in a minute, evenly spaced. None: no limit."""
    tokens_per_minute: PositiveFloat | None = None
    """Most tokens, prompt and longest reply, asked for in a minute. None: no limit."""
    timeout_s: PositiveFloat = 120.0
    """Longest wait for one reply."""
    max_attempts: PositiveInt = 6
    """Times that one call is sent before it counts as failed."""
    backoff_s: PositiveFloat = 1.0
    """First wait after an overloaded or broken reply; doubles each time, with jitter."""
    max_backoff_s: PositiveFloat = 60.0
    """Longest such wait, and the longest that a server's Retry-After is obeyed."""
    max_tokens: PositiveInt | None = None
    """Budget of tokens, prompts included, over all runs with these replies. None: none."""
    max_cost: PositiveFloat | None = None
    """Budget of money, in the currency of the prices, over all runs with these replies."""
    price_prompt: NonNegativeFloat = 0.0
    """Price of a million prompt tokens."""
    price_reply: NonNegativeFloat = 0.0
    """Price of a million reply tokens."""
    cache: Path | None = None
    """File of bought replies, which runs may share. None: replies.sqlite beside the traces."""


class ReasonedTracesConfig(Config):
    """How interaction-of-thought traces are asked for, kept and paid.

    That chains become thoughts by progressive, masked prompting is stated by the paper's abstract,
    and that the true answer guides them is known at second hand; how many questions, about which
    events, and all that the parts below say, is ours.
    """

    num_questions: PositiveInt = 1000
    """Training events that become questions, drawn without replacement."""
    events: Literal["any", "last"] = "any"
    """Which training events: any, or the last one of each user. The no-think stage leaves out
    last events, so a model that starts from it does not know their answers by heart."""
    max_rounds: PositiveInt = 1
    """Times that an event may be asked about where ``num_questions`` is above the number of
    events, each time with chains, and for likes other candidates, drawn anew."""
    evidence: EvidenceConfig = EvidenceConfig()
    progressive: ProgressiveConfig = ProgressiveConfig()
    keep: KeepConfig = KeepConfig()
    teacher: TeacherConfig = TeacherConfig()
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def check_voice(self) -> Self:
        """Refuse a way of asking that the teacher cannot answer."""
        if self.progressive.own_words and self.teacher.kind in ("verbaliser", "endpoint"):
            raise ValueError(
                f"own_words continues the student's prompt, which a {self.teacher.kind} cannot do; "
                "choose the kind local or self"
            )
        return self

    @property
    def shown(self) -> EvidenceConfig:
        """What is shown to this teacher."""
        alias = self.evidence.alias_titles
        if alias is None:
            is_told = self.teacher.kind in ("endpoint", "local")
            alias = is_told and not self.progressive.own_words
        return self.evidence.model_copy(update={"alias_titles": alias})

    @property
    def asking(self) -> ProgressiveConfig:
        """How this teacher is asked: the model itself always in its own words."""
        own_words = self.progressive.own_words or self.teacher.kind == "self"
        return self.progressive.model_copy(update={"own_words": own_words})

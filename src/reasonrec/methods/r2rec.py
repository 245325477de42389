"""R2Rec on the road: chains -> traces -> supervised fine-tuning -> GRPO -> ranking with reasons.

Source: Reason-to-Recommend, arXiv 2506.05069, of which only abstracts and summaries are public to
us. Stated by the abstract: chains from the user-item graph, progressive masked prompting, SFT on
traces, then RL with rewards. Known at second hand: the student reads a question for a rating and
writes thought and answer, RL is GRPO, candidates are ranked. Everything else is our reconstruction,
each choice a key of `R2recConfig`; ``docs/paper_index.md`` marks which is which.

Folders of a run: ``untuned`` (the backbone as it comes), ``traces``, ``r2rec-sft``, ``r2rec-rl``;
``no-think`` before them where the tiny backbone has to be trained first.
"""

import hashlib
import inspect
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from pydantic import ValidationError

from reasonrec import ranks
from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset, Queries
from reasonrec.errors import CheckpointError, DataError
from reasonrec.evaluation.candidates import draw_candidates
from reasonrec.evaluation.recipe import recipe_of
from reasonrec.graph.chain_count import ChainCount
from reasonrec.manifest import (
    check_outputs,
    fingerprint,
    is_finished,
    make_folder,
    read_manifest,
    start_stage,
    write_manifest,
    writes_alone,
)
from reasonrec.methods import r2ec
from reasonrec.methods.r2ec_config import TRUNK_STAGES, R2ecConfig
from reasonrec.methods.r2ec_stages import METHOD_OF_STAGE
from reasonrec.methods.r2rec_config import R2recConfig
from reasonrec.metrics import hit, ndcg
from reasonrec.models.answers import (
    AnsweringModel,
    CopyingModel,
    with_titles_of,
    with_words_of,
)
from reasonrec.models.backbone import build_model, catalogue_titles
from reasonrec.models.ranking import rank_candidates
from reasonrec.models.reasoned_ranking import HELD, ReasonedRanker, order_effect
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.rng import stream, stream_seed
from reasonrec.traces.evidence import QuestionBuilder, rating_scale
from reasonrec.traces.interaction_of_thought import label_is_hidden, written_answer
from reasonrec.traces.questions import Question
from reasonrec.traces.reasoned import Progress, training_questions, write_reasoned_traces
from reasonrec.traces.reasoned_config import EvidenceConfig
from reasonrec.traces.store import read_traces
from reasonrec.traces.teachers.choice import build_teacher
from reasonrec.traces.together import fit_named
from reasonrec.training.blending import held_weights
from reasonrec.training.config import EngineConfig
from reasonrec.training.examples import keep_batch
from reasonrec.training.loop import Validate, fit
from reasonrec.training.reasoned import PackedTexts, reasoned_loss, texts_of
from reasonrec.training.rl.engines.choice import build_engine
from reasonrec.training.rl.grpo import Grpo
from reasonrec.training.rl.recpo import PromptSample, StartingPoint
from reasonrec.training.rl.text_rewards import (
    Reward,
    exact_hit,
    first_place,
    rating_closeness,
    reciprocal_rank,
    well_formed,
)

Stage = Literal["untuned", "r2rec-sft", "r2rec-rl"]
METHODS: tuple[Stage, ...] = ("untuned", "r2rec-sft", "r2rec-rl")
STARTS = tuple(METHOD_OF_STAGE[stage] for stage in TRUNK_STAGES)
"""Methods whose folders R2Rec can start from."""
TraceWatch: TypeAlias = tuple[Callable[[Progress], None] | None, Callable[[str], None] | None]
"""What is told how far the traces are, and what is told why their teacher waits."""


@writes_alone
def train(
    dataset: Dataset,
    config: R2recConfig,
    *,
    out: Path,
    seed: int,
    base: R2ecConfig | None = None,
    start: Path | None = None,
    rewards: Sequence[tuple[float, Reward]] | None = None,
    announce: Callable[[str], None] = lambda _: None,
    watch_traces: Callable[[], AbstractContextManager[TraceWatch]] = lambda: nullcontext(
        (None, None)
    ),
) -> list[Path]:
    """Write traces, train SFT and GRPO into folders of ``out``, and return the models' folders.

    Args:
        base: Backbone, its shape, and how it is trained without thoughts.
        start: A folder of R²ec over the same data, whose ranking is the first stage: no-think, or
            one that thinks. None: the backbone of ``base``; the tiny one is trained without
            thoughts first.
        rewards: Functions and weights in place of those of the configuration.
        announce: Told the name of each stage before it starts.
        watch_traces: Opened while traces are written; its functions are told how far they are, and
            why a teacher waits.

    Raises:
        DataError: The data set has nothing to train or validate on, or no ratings to ask for.
        CheckpointError: ``start`` was trained on other data, or ``out`` holds another run.
        TraceError: There is no trace to learn from.
    """
    ranks.join()
    base, out = base or R2ecConfig(), ranks.first_alone(lambda: make_folder(out))
    _check_trainable(dataset, config)
    announce("traces")
    titles = catalogue_titles(dataset.catalogue)

    def write_traces() -> None:
        with watch_traces() as (on_progress, on_wait):
            write_reasoned_traces(
                dataset, titles, out / "traces", config.traces,
                lambda: build_teacher(config.traces, out / "traces", seed=seed, on_wait=on_wait),
                task=config.task, seed=seed, on_progress=on_progress,
            )  # fmt: skip

    ranks.first_alone(write_traces)
    if start is None and base.backbone == "tiny":
        announce("no-think")
        start = r2ec.train_stage("no-think", dataset, base, out=out / "no-think", seed=seed)
    announce("untuned")
    folders = [ranks.first_alone(lambda: _write_untuned(dataset, config, base, out, start, seed))]
    for stage in config.stages:
        announce(stage)
        folders.append(
            train_stage(
                stage, dataset, config, out=out / stage, seed=seed, start=folders[-1],
                traces=out / "traces", rewards=rewards,
            )
        )  # fmt: skip
    return folders


@writes_alone
def train_stage(
    stage: Stage,
    dataset: Dataset,
    config: R2recConfig,
    *,
    out: Path,
    seed: int,
    start: Path,
    traces: Path,
    rewards: Sequence[tuple[float, Reward]] | None = None,
) -> Path:
    """Train one stage from the folder of an earlier one; a finished folder is left as it is.

    Args:
        start: ``untuned`` or ``r2rec-sft``: RL alone starts from ``untuned`` too.
        traces: Of `reasonrec traces rated` or ``likes``; RL reads none of them.
    """
    ranks.join()
    out = ranks.first_alone(lambda: make_folder(out))
    before = checked_manifest(start, dataset)
    inputs = {"data": dataset.fingerprint, "start": before["fingerprint"]}
    asked = _keys_of(stage, config)
    has_own_rewards = rewards is not None
    if stage == "r2rec-sft":
        inputs["traces"] = fingerprint(traces)
    else:
        rewards = list(rewards) if rewards is not None else default_rewards(config)
        asked["rewards"] = [[weight, reward_name(reward)] for weight, reward in rewards]
    if is_finished(out, stage="train", inputs=inputs, config=asked, seed=seed):
        return out
    model = _kind(config).from_pretrained(start / "model")
    assert isinstance(model, AnsweringModel)
    model.head = model.head.model_copy(update={"dropout": config.dropout})
    first = _first_stage(start, dataset)
    engine = build_engine(config.rl.engine if stage == "r2rec-rl" else EngineConfig())
    told: dict[str, Any] = {}
    if stage == "r2rec-sft":
        data = PackedTexts(
            texts_of(
                model, read_traces(traces, kept=True), think=config.think,
                recites=_recites(model, config), offers=_offers(dataset, config),
            ),
            num_epochs=config.sft.num_epochs, tokens_per_row=config.sft.tokens_per_row,
            batch_size=config.sft.optimiser.batch_size, answer_weight=config.sft.answer_weight,
            pad_id=model.writer.pad_id, seed=seed,
        )  # fmt: skip
        loss, optimiser = reasoned_loss, config.sft.optimiser
    else:
        assert rewards is not None
        questions, told["num_questions_dropped"] = rl_questions(dataset, config, seed=seed)
        optimiser = config.rl.optimiser
        size = 2 if config.rl.grpo.pairwise_weight else 1
        data = PromptSample(
            np.arange(len(questions) // size), num_prompts=config.rl.num_prompts,
            batch_size=optimiser.batch_size, num_inner_epochs=config.rl.grpo.num_inner_epochs,
            seed=seed,
        )  # fmt: skip
        starting = StartingPoint(model) if config.rl.grpo.kl_weight else None
        loss = Grpo(
            config.rl.grpo, questions, rewards, seed=seed, start=starting, engine=engine,
            recites=_recites(model, config), chooses=config.chooses,
        )  # fmt: skip
    ranks.first_alone(
        lambda: start_stage(out, stage="train", inputs=inputs, config=asked, seed=seed)
    )
    torch.manual_seed(seed)
    ranker = _ranker(model, dataset, config, stage, seed, first)
    with closing(engine):
        fitted = fit(
            model, data, loss, _validate(ranker, dataset, config), optimiser,  # pyright: ignore[reportArgumentType]
            out=out, seed=seed, label=stage, collate=keep_batch,
            steps_per_batch=config.rl.grpo.num_inner_epochs if stage == "r2rec-rl" else 1,
        )  # fmt: skip

    def finish() -> None:
        extra: dict[str, Any] = {
            "best_step": fitted.best_step,
            "best_score": fitted.best_score,
            "blend": calibrated_blend(ranker, dataset, config) if config.blend else None,
            "order_effect": _measured_order(ranker, dataset, config),
            "rating_scale": _scale(dataset, config),
        } | told
        if not has_own_rewards:  # functions of the caller cannot be written down
            extra |= recipe_of(stage, config, seed=seed, start=start)
        folder = start / "first" if (start / "first").is_dir() else None
        _finish(out, stage, dataset, model, folder, inputs, asked, fitted.seconds, seed, extra)

    ranks.first_alone(finish)
    return out


def load_recommender(
    folder: Path,
    dataset: Dataset,
    *,
    evidence: EvidenceConfig | None = None,
    blend: Mapping[str, float] | None = None,
) -> ReasonedRanker:
    """Return the model of a stage folder as a recommender over ``dataset``.

    Args:
        evidence: What questions show, in place of what the model was trained with.
        blend: Weights of the experts, in place of those found on validation.

    Raises:
        CheckpointError: The folder is no finished model of R2Rec, was trained on other data, or
            has weights of a blend that this version does not know.
    """
    folder = Path(folder)
    manifest = checked_manifest(folder, dataset)
    model, config = _opened(folder, manifest)
    if blend is None:
        blend = manifest["blend"]
        if blend is not None and "blending" not in manifest["config"]:
            raise CheckpointError(
                f"{folder} was weighed by an earlier version, whose blend counted other chains; "
                "train again"
            )
    first = _first_stage(folder, dataset)
    ranker = _ranker(model, dataset, config, manifest["method"], manifest["seed"], first)
    if evidence is not None:
        ranker.builder.config = evidence
    return replace(ranker, blend=blend)


def transferred(folder: Path, dataset: Dataset) -> ReasonedRanker:
    """Return the model of a stage folder over another data set than it was trained on.

    What it knows of answers, thoughts and titles goes with it (`models.answers.with_titles_of`);
    histories, chains and support are those of ``dataset``. Its short list is that of chains alone,
    and there is no blend: both would be of the other catalogue.

    Raises:
        CheckpointError: The folder is no finished model of R2Rec.
        DataError: The model predicts ratings, and those of ``dataset`` are of another scale.
    """
    folder = Path(folder)
    manifest = _own_manifest(folder)
    model, config = _opened(folder, manifest)
    scale, found = manifest.get("rating_scale"), _scale(dataset, config)
    if scale != found:
        raise DataError(
            f"{folder} answers with ratings of {scale}, and those of {dataset.name} are {found}; "
            "take a model of the same scale, or of likes"
        )
    model = with_titles_of(
        model, catalogue_titles(dataset.catalogue), dataset.catalogue.item_ids,
        seed=manifest["seed"],
    )  # fmt: skip
    chains, alone = ChainCount.fit(dataset), config.model_copy(update={"blend": False})
    return _ranker(model, dataset, alone, manifest["method"], manifest["seed"], chains)


def _opened(folder: Path, manifest: Mapping[str, Any]) -> tuple[AnsweringModel, R2recConfig]:
    """Return the model of a stage folder, and what it was trained with."""
    try:
        config = R2recConfig.model_validate(
            {k: v for k, v in manifest["config"].items() if k in R2recConfig.model_fields}
        )
    except ValidationError as error:
        raise CheckpointError(
            f"{folder} was trained with settings that this version does not know ({error}); "
            "train again"
        ) from None
    model = _kind(config).from_pretrained(folder / "model")
    assert isinstance(model, AnsweringModel)
    return model, config


def default_rewards(config: R2recConfig) -> list[tuple[float, Reward]]:
    """Return the rewards that the configuration weighs, those without weight left out."""
    grpo = config.rl.grpo
    rewards: list[tuple[float, Reward]] = [(grpo.format_weight, well_formed)]
    if config.task == "rated":
        rewards += [(grpo.closeness_weight, rating_closeness), (grpo.hit_weight, exact_hit)]
    else:
        rewards += [(grpo.hit_weight, first_place), (grpo.reciprocal_weight, reciprocal_rank)]
    return [(weight, reward) for weight, reward in rewards if weight]


def reward_name(reward: Reward) -> str:
    """Return what tells a reward from another one: its name, with a hash of its source if not ours.

    So a run whose reward was edited does not pass for finished. Where there is no source to read
    (a function typed into a prompt, a partial), the name alone tells; what a closure holds, and
    what the function calls, is in neither.
    """
    name = getattr(reward, "__name__", type(reward).__name__)
    if getattr(reward, "__module__", "").partition(".")[0] == "reasonrec":
        return name
    try:
        source = inspect.getsource(reward)
    except (OSError, TypeError):
        return name
    return f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def rl_questions(dataset: Dataset, config: R2recConfig, *, seed: int) -> tuple[list[Question], int]:
    """Return questions about training events, with labels, and how many had to be dropped.

    Their evidence is older than they are. A question whose prompt shows its own label (the item was
    taken before) would reward reading it off, and is dropped. With pairs, each question is followed
    by the same one about an item that its user never touches in training, which has no label.

    Raises:
        DataError: None is left.
    """
    titles = catalogue_titles(dataset.catalogue)
    asked = config.traces.model_copy(update={"num_questions": config.rl.num_prompts})
    drawn = stream_seed(seed, "rl-questions")
    every = training_questions(dataset, titles, asked, task=config.task, seed=drawn)
    questions = [question for question in every if label_is_hidden(question)]
    num_dropped = len(every) - len(questions)
    if not questions:
        raise DataError(
            "RL needs a question whose prompt does not show its label; of the "
            f"{len(every)} training events asked about, every item was taken before by its user. "
            "Ask about any event (--r2rec.traces.events any), or keep an item's first event alone"
        )
    if not config.rl.grpo.pairwise_weight:
        return questions, num_dropped
    log = dataset.train
    events = np.array([question.key for question in questions])
    others = []
    for event in events:
        user = log.user_index[event]
        own = log.item_index[log.user_offsets[user] : log.user_offsets[user + 1]]
        left = np.setdiff1d(np.arange(dataset.num_items), own)
        others.append(stream(drawn, "rl-untouched", int(event)).choice(left))
    builder = QuestionBuilder(dataset.catalogue, titles, log, config.traces.evidence)
    untouched = builder.build(
        log.histories_before(events), np.array(others)[:, None], task="rated", keys=events,
        seed=drawn,
    )  # fmt: skip
    return [one for pair in zip(questions, untouched, strict=True) for one in pair], num_dropped


def checked_manifest(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Return the manifest of a stage folder of R2Rec over this data."""
    manifest = _own_manifest(folder)
    if manifest["inputs"].get("data") != dataset.fingerprint:
        raise CheckpointError(
            f"{folder} was trained on other data than {dataset.folder} holds now: the data set was "
            "changed or is another one. Prepare it as it was, or train again"
        )
    return manifest


def _own_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a stage folder of R2Rec, whatever it was trained on."""
    manifest = read_manifest(folder)
    if manifest["stage"] != "train" or manifest.get("method") not in METHODS:
        held = manifest.get("method", manifest["stage"])
        opens = (
            ". `reasonrec recommend` and `evaluate` open it, and from Python "
            "reasonrec.methods.loading.load_recommender"
        )
        raise CheckpointError(
            f"{folder} must be a folder of `reasonrec train r2rec`; it holds {held}"
            + (opens if "method" in manifest else "")
        )
    check_outputs(folder)
    return manifest


def _write_untuned(
    dataset: Dataset,
    config: R2recConfig,
    base: R2ecConfig,
    out: Path,
    start: Path | None,
    seed: int,
) -> Path:
    """Write the model that training starts from, its words learned from the traces' texts."""
    folder = make_folder(out / "untuned")
    inputs = {"data": dataset.fingerprint, "traces": fingerprint(out / "traces")}
    asked = _keys_of("untuned", config)
    if start is not None:
        before = read_manifest(start)
        if (
            before.get("method") not in STARTS
            or before["inputs"].get("data") != dataset.fingerprint
        ):
            raise CheckpointError(
                f"r2rec starts from a folder of `reasonrec train` over the same data, of "
                f"{', '.join(STARTS)}; {start} holds {before.get('method', before['stage'])}"
            )
        if before["trained_on"] != "train":
            raise CheckpointError(
                f"r2rec chooses on validation queries, and {start} learned from their targets; "
                "start from a model of train alone"
            )
        inputs["start"] = before["fingerprint"]
    else:
        asked |= {"backbone": base.backbone, "weights": base.weights.model_dump(mode="json")}
    if is_finished(folder, stage="train", inputs=inputs, config=asked, seed=seed):
        return folder
    if start is not None:
        model = ReasoningRecommender.from_pretrained(start / "model")
    else:
        model = build_model(
            dataset.catalogue, backbone=base.backbone, tiny=base.tiny, head=base.head, seed=seed,
            prompt=base.prompt, weights=base.weights, train=dataset.train,
        )  # fmt: skip
    table = read_traces(out / "traces", kept=True)
    texts = [*table["prompt"].to_list(), *table["thought"].to_list()]
    answering = with_words_of(
        model, texts, vocab_size=config.vocab_size, dropout=config.dropout, seed=seed,
        kind=_kind(config),
    )  # fmt: skip
    _finish(
        folder, "untuned", dataset, answering, start, inputs, asked, 0.0, seed,
        {"blend": None, "best_step": 0, "best_score": None, "rating_scale": _scale(dataset, config)}
        | recipe_of("untuned", config, seed=seed, start=start, base=base),
    )  # fmt: skip
    return folder


def _finish(
    out: Path,
    method: Stage,
    dataset: Dataset,
    model: AnsweringModel,
    first: Path | None,
    inputs: dict[str, str],
    asked: dict[str, Any],
    seconds: float,
    seed: int,
    extra: dict[str, Any],
) -> None:
    """Save the model, and beside it the folder of its first stage, if it has one; manifest last."""
    model.save_pretrained(out / "model")
    shutil.rmtree(out / "first", ignore_errors=True)
    if first is not None:
        shutil.copytree(first / "model", out / "first" / "model")
        shutil.copyfile(first / "manifest.json", out / "first" / "manifest.json")
    parts = [out / "model", out / "first"]
    files = sorted(
        str(p.relative_to(out)) for part in parts for p in part.rglob("*") if p.is_file()
    )
    write_manifest(
        out, stage="train", inputs=inputs, config=asked, outputs=files, seconds=seconds, seed=seed,
        extra={
            "method": method,
            "trained_on": "train",
            "data_folder": dataset.seen_from(out),
        } | extra,
    )  # fmt: skip


def _first_stage(folder: Path, dataset: Dataset) -> Recommender:
    """Return what makes the short list: the model of R²ec that was started from, or chains."""
    if (folder / "first").is_dir():
        return r2ec.load_recommender(folder / "first", dataset)
    return ChainCount.fit(dataset)


def _ranker(
    model: AnsweringModel,
    dataset: Dataset,
    config: R2recConfig,
    method: str,
    seed: int,
    first: Recommender,
) -> ReasonedRanker:
    titles = catalogue_titles(dataset.catalogue)
    return ReasonedRanker(
        model,
        QuestionBuilder(dataset.catalogue, titles, dataset.train, config.traces.evidence),
        first,
        dataset.user_ids,
        task=config.task,
        name=method,
        thinks=config.think,
        recites=_recites(model, config),
        max_tokens=config.max_tokens,
        num_candidates=config.ranking.num_candidates,
        num_orders=config.ranking.num_orders,
        others=_others(dataset, config),
        blending=config.blending,
        seed=seed,
    )


def _others(dataset: Dataset, config: R2recConfig) -> list[Recommender]:
    """Return the baselines that a blend weighs too."""
    power = config.blending.recency_power
    names = config.blending.others if config.blend else ()
    return [fit_named(name, dataset, recency_power=power) for name in names]


def _validation(
    dataset: Dataset, config: R2recConfig, num_queries: int | None = None
) -> tuple[Queries, np.ndarray]:
    """Return the validation queries that choose, and their candidates (Q, C), the target first."""
    num_queries = num_queries or config.num_valid_queries
    drawn = draw_candidates(dataset, "valid", num_candidates=config.num_valid_candidates, seed=0)
    rows = np.arange(len(dataset.valid))
    if len(rows) > num_queries:
        rows = stream(0, "validation").choice(len(rows), num_queries, replace=False)
        rows = np.sort(rows)
    return dataset.valid.take(rows), drawn.item_index[rows]


def _validate(ranker: ReasonedRanker, dataset: Dataset, config: R2recConfig) -> Validate:
    queries, candidates = _validation(dataset, config)
    histories = queries.histories()

    def measure(_: ReasoningRecommender) -> dict[str, float]:
        scored = ranker.score_candidates(histories, candidates)
        rank = _ranks(scored.scores, candidates)
        assert scored.num_tokens is not None
        return {
            "valid/ndcg": float(ndcg(rank, candidates.shape[1]).mean()),
            "valid/hit@1": float(hit(rank, 1).mean()),
            "valid/tokens": float(scored.num_tokens.mean()),
        }

    return measure


def _ranks(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    columns = np.broadcast_to(np.arange(candidates.shape[1]), candidates.shape)
    return rank_candidates(scores, np.where(candidates >= 0, columns, -1))


def calibrated_blend(
    ranker: ReasonedRanker,
    dataset: Dataset,
    config: R2recConfig,
    experts: Sequence[str] | None = None,
) -> dict[str, float]:
    """Return the weights of the experts under which validation's targets are likeliest.

    What ``blending.holds`` names counts at least as much as without its rivals.

    Args:
        ranker: One that ranks by the answers alone.
        experts: Those that may speak, all by default; without ``answers``, no thought is read.
    """
    experts = ranker.expert_names if experts is None else experts
    queries, candidates = _validation(dataset, config, config.blending.num_queries)
    histories = queries.histories()
    answers = np.zeros(candidates.shape)
    if "answers" in experts:
        answers = ranker.score_candidates(histories, candidates).scores
    first = ranker.first_stage.score(histories).scores
    said = ranker.experts(histories, candidates, answers, first)
    return held_weights(
        {name: said[name] for name in experts}, candidates, ridge=config.blending.ridge,
        held=HELD[config.blending.holds], rivals=ranker.rivals,
    )  # fmt: skip


def _measured_order(
    ranker: ReasonedRanker, dataset: Dataset, config: R2recConfig
) -> dict[str, Any] | None:
    if config.task == "rated" or not config.ranking.num_orders_measured:
        return None
    queries, candidates = _validation(dataset, config)
    effect = order_effect(
        ranker, queries.histories(), candidates, num_orders=config.ranking.num_orders_measured
    )
    return asdict(effect)


def _kind(config: R2recConfig) -> type[AnsweringModel]:
    return CopyingModel if config.copies else AnsweringModel


def _recites(model: AnsweringModel, config: R2recConfig) -> bool:
    has_title_tokens = model.writer.title_token_ids is not None
    return config.recites == "always" or (config.recites == "tiny" and has_title_tokens)


def _scale(dataset: Dataset, config: R2recConfig) -> list[float] | None:
    """Return the ratings that can be answered, None where titles are."""
    if config.task != "rated":
        return None
    return list(rating_scale(dataset.train, most=config.traces.evidence.max_ratings))


def _offers(
    dataset: Dataset, config: R2recConfig
) -> Callable[[Mapping[str, Any]], Sequence[str]] | None:
    """Return what says of a trace all answers that its question offers, as the student writes
    them; None where answers are learned as any other words."""
    if not config.chooses:
        return None
    titles = catalogue_titles(dataset.catalogue)
    scale = _scale(dataset, config) or []
    title_of = dict(zip(dataset.catalogue.item_ids, titles, strict=True))

    def offered(trace: Mapping[str, Any]) -> Sequence[str]:
        if trace["task"] == "rated":
            return [written_answer("rated", f"{rating:g}") for rating in scale]
        return [written_answer("likes", title_of[item]) for item in trace["candidates"]]

    return offered


def _keys_of(stage: Stage, config: R2recConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides a stage's result."""
    keys: dict[str, Any] = config.model_dump(
        mode="json", exclude={"traces": {"limits": True, "teacher": True}}
    )
    kept = ["method", "task", "think", "traces", "vocab_size", "copies", "dropout", "max_tokens"]
    kept += ["recites", "chooses", "ranking"]
    if stage != "untuned":
        kept += [
            "blend",
            "blending",
            "num_valid_candidates",
            "num_valid_queries",
            {"r2rec-sft": "sft", "r2rec-rl": "rl"}[stage],
        ]
    del keys["rl"]["engine"]
    keys["rl"] |= config.rl.engine.decides()
    return {key: keys[key] for key in kept}


def _check_trainable(dataset: Dataset, config: R2recConfig) -> None:
    if config.task == "rated" and dataset.train.rating is None:
        raise DataError(
            f"task rated asks for ratings, and {dataset.name} has none; use likes instead "
            "(--r2rec.task likes)"
        )
    most = int(np.diff(dataset.train.user_offsets).max(initial=0))
    if most < 2 or len(dataset.valid) == 0:
        raise DataError(
            "training r2rec needs a user with 2 training events, and a validation query; in "
            f"{dataset.name} no user has more than {most}, and there are {len(dataset.valid)} "
            "queries"
        )

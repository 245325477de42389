"""R²ec on the road: no-think, then thoughts by supervised fine-tuning, then RecPO.

Source: Towards Large Recommender Models with Reasoning, arXiv 2505.16994.

Departs from the paper, in the defaults for the tiny backbone: item rows are learned per title, the
read-out is gated so that thinking starts at the ranking without thought, thoughts look things up
in the training graph, a supervised stage comes before RL, and the softmax of the recommendation is
over the whole catalogue. Each is a key of `R2ecConfig`.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from pydantic import ValidationError
from scipy.special import log_softmax
from torch.utils.data import Dataset as TorchDataset

from reasonrec import ranks
from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset, InteractionLog, Queries
from reasonrec.errors import CheckpointError, ConfigError, DataError
from reasonrec.evaluation.protocol import Evaluation, evaluate
from reasonrec.evaluation.recipe import Recipe, recipe_of
from reasonrec.graph.build import InteractionGraph
from reasonrec.manifest import (
    check_outputs,
    is_finished,
    make_folder,
    read_manifest,
    start_stage,
    stopwatch,
    write_manifest,
)
from reasonrec.methods.r2ec_config import (
    TRUNK_STAGES,
    InferenceConfig,
    R2ecConfig,
    SftStage,
    Stage,
)
from reasonrec.metrics import hit, ndcg
from reasonrec.models.backbone import build_model
from reasonrec.models.gate import FILE, ThinkingGate
from reasonrec.models.ranking import rank_targets
from reasonrec.models.reasoning_recommender import Batch, ReasoningRecommender
from reasonrec.models.recommenders import (
    EvidenceRecommender,
    GatedThinkingRecommender,
    NoThinkRecommender,
    ThinkingRecommender,
    candidates_of,
)
from reasonrec.records import Histories, Lookup, Recommendation
from reasonrec.rng import stream, stream_seed
from reasonrec.serving.recommender import recommend as recommend_to
from reasonrec.traces.config import ThoughtConfig
from reasonrec.traces.together import fit_together
from reasonrec.traces.verbaliser import Verbaliser
from reasonrec.training.calibration import calibrate_evidence, restore_evidence
from reasonrec.training.config import EngineConfig, OptimiserConfig, SftLossConfig
from reasonrec.training.examples import (
    Propose,
    WindowDataset,
    events_with_history,
    hold_out_last,
    keep_batch,
    schedule_windows,
)
from reasonrec.training.gating import learn_gate
from reasonrec.training.loop import LossFunction, fit
from reasonrec.training.losses import sft_loss
from reasonrec.training.rl.engines.choice import build_engine
from reasonrec.training.rl.engines.contract import RolloutEngine
from reasonrec.training.rl.recpo import PromptSample, Recpo, StartingPoint

METHOD_OF_STAGE: dict[Stage, str] = {
    "no-think": "no-think",
    "evidence": "evidence-no-think",
    "sft": "think-sft",
    "recpo": "think-recpo",
    "gate": "think-gated",
}
"""The folder of each stage in a run; its method has the same name, but a gate that of the model
that it stands before, with ``/gated`` behind it."""
IN_PROMPT = "evidence-in-prompt"
"""The method of the stage ``evidence`` where the prompt holds the evidence as text too."""


def method_of(stage: Stage, config: R2ecConfig) -> str:
    """Return the name of what a stage trains."""
    if stage == "evidence" and config.evidence.in_prompt:
        return IN_PROMPT
    return METHOD_OF_STAGE[stage]


def train_stage(
    stage: Stage,
    dataset: Dataset,
    config: R2ecConfig,
    *,
    out: Path,
    seed: int,
    start: Path | None = None,
    again: Path | None = None,
) -> Path:
    """Train one stage into ``out`` and return it; a finished folder is left as it is.

    Args:
        start: Folder of the stage before among ``config.stages``: no-think for SFT and for the
            evidence alone, SFT for RecPO, any that thinks for the gate. None for the first of them.
        again: Folder of the same stage, settings and seed. The validation rows are then trained on
            too, and chosen is what was best there: how far to go, and what evidence is worth.

    Raises:
        DataError: The data set has nothing to train or validate on.
        CheckpointError: ``start`` is missing, was trained on other data or rows, ``again`` is
            another run, or ``out`` holds one.
    """
    ranks.join()
    trained_on = "train" if again is None else "train+valid"
    if stage == "gate":
        ranks.first_alone(lambda: _train_gate(dataset, config, out=out, seed=seed, start=start))
        return out
    out = ranks.first_alone(lambda: make_folder(out))
    stages = list(config.stages)
    before_it = _stage_before(stage, config)
    is_known = stage in stages or stage == "evidence"  # from which nothing else starts
    if (start is None) != (before_it is None) or not is_known:
        raise CheckpointError(
            "no-think starts from nothing; evidence and sft need --start with a no-think folder, "
            f"recpo one with a supervised model. Stage {stage} got start = {start}, with stages = "
            f"{stages}, of which the first starts from the backbone"
        )
    inputs = {"data": dataset.fingerprint}
    if start is not None and before_it is not None:
        before = checked_manifest(start, dataset)
        wanted = METHOD_OF_STAGE[before_it]
        if before["method"] != wanted:
            raise CheckpointError(
                f"stage {stage} starts from a {wanted} folder; {start} holds {before['method']}"
            )
        if before["trained_on"] != trained_on:
            raise CheckpointError(
                f"stage {stage} on {trained_on} must start from a model of the same rows; {start} "
                f"learned from {before['trained_on']}"
            )
        inputs["start"] = before["fingerprint"]
        if stage == "recpo":
            config = _thinking_as_taught(config, before, start)
    reads_evidence = config.head.pointer or config.evidence.in_prompt
    if stage == "evidence" and not (reads_evidence and config.thought.num_lookups):
        raise ConfigError(
            "the stage evidence needs head.pointer and thought.num_lookups of 1 or more; got "
            f"{config.head.pointer} and {config.thought.num_lookups}. Turn them on, or leave it out"
        )
    asked = _keys_of(stage, config)
    chosen = None
    if again is not None:
        chosen = _chosen_before(again, dataset, {"config": asked, "seed": seed})
        inputs["again"] = chosen["fingerprint"]
        dataset = dataset.with_validation()
    if is_finished(out, stage="train", inputs=inputs, config=asked, seed=seed):
        return out
    _check_trainable(stage, dataset)
    parts = _Parts(dataset, config, seed)
    model = (
        build_model(
            dataset.catalogue,
            backbone=config.backbone,
            tiny=config.tiny,
            head=config.head,
            seed=seed,
            prompt=config.prompt,
            weights=config.weights,
        )
        if start is None
        else ReasoningRecommender.from_pretrained(start / "model")
    )
    if model.pointer is not None:
        counts = np.bincount(dataset.train.item_index, minlength=dataset.num_items)
        model.pointer.count(torch.from_numpy(counts))
    ranks.first_alone(
        lambda: start_stage(out, stage="train", inputs=inputs, config=asked, seed=seed)
    )
    writes = config.recpo.engine if stage == "recpo" else EngineConfig()
    with closing(build_engine(writes)) as engine:
        data, loss, optimiser = _stage_parts(stage, model, parts, engine)
        torch.manual_seed(seed)
        fitted = fit(
            model, data, loss, parts.validate(model, stage) if chosen is None else None, optimiser,
            out=out, seed=seed, label=method_of(stage, config), collate=keep_batch,
            steps_per_batch=config.recpo.recpo.num_inner_epochs if stage == "recpo" else 1,
            share=1.0 if chosen is None else chosen["share"],
        )  # fmt: skip

    def finish() -> None:
        calibrated = None
        if chosen is not None:
            calibrated = chosen["calibrated"]
            restore_evidence(model, calibrated or {})
        elif stage != "no-think" and config.calibrate:
            calibrated = parts.calibrate(model, stage)
        model.save_pretrained(out / "model")
        files = sorted(str(p.relative_to(out)) for p in (out / "model").rglob("*") if p.is_file())
        write_manifest(
            out,
            stage="train",
            inputs=inputs,
            config=asked,
            outputs=files,
            seconds=fitted.seconds,
            seed=seed,
            extra={
                "method": method_of(stage, config),
                "trained_on": trained_on,
                "data_folder": os.path.relpath(dataset.folder, out),
                "best_step": fitted.best_step,
                "best_score": fitted.best_score,
                "share": fitted.share,
                "calibrated": calibrated,
            }
            # a recipe holds settings alone, and here a finished run decides too
            | (recipe_of(stage, config, seed=seed, start=start) if chosen is None else {}),
        )

    ranks.first_alone(finish)
    return out


def _chosen_before(again: Path, dataset: Dataset, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a stage that is to be trained again, validation rows and all.

    Raises:
        CheckpointError: It was trained otherwise, on other data, on these rows already, or by a
            version that did not say how far it went.
    """
    manifest = checked_manifest(again, dataset)
    for key, wanted in asked.items():
        if manifest[key] != wanted:
            raise CheckpointError(
                f"what is trained again must have the same {key}; that of {again} is another"
            )
    if manifest["trained_on"] != "train" or "share" not in manifest:
        raise CheckpointError(
            f"{again} must have been trained on train alone by this version, which says how far it "
            f"went; it learned from {manifest['trained_on']}. Train it first"
        )
    return manifest


def _thinking_as_taught(config: R2ecConfig, before: Mapping[str, Any], start: Path) -> R2ecConfig:
    """Return the configuration with the thoughts that the model before RL learned to write.

    Raises:
        ConfigError: Others are asked for.
    """
    if "thought" not in before["config"]:  # it never thought
        return config
    taught = ThoughtConfig.model_validate(before["config"]["thought"]).model_dump()
    asked, usual = config.thought.model_dump(), R2ecConfig().thought.model_dump()
    other = [
        f"{key} = {asked[key]!r} instead of {value!r}"
        for key, value in taught.items()
        if asked[key] not in (value, usual[key])
    ]
    if other:
        raise ConfigError(
            f"thoughts in RL must be those that {start} learned; asked for was thought."
            f"{', thought.'.join(other)}. Leave such keys out, or train sft with them"
        )
    return config.model_copy(update={"thought": ThoughtConfig.model_validate(taught)})


def _train_gate(
    dataset: Dataset, config: R2ecConfig, *, out: Path, seed: int, start: Path | None
) -> Path:
    """Learn when the model of ``start`` is to think; its folder is named, not copied."""
    thinks = [METHOD_OF_STAGE["sft"], METHOD_OF_STAGE["recpo"]]
    before = None if start is None else checked_manifest(start, dataset)
    if start is None or before is None or before["method"] not in thinks:
        raise CheckpointError(
            f"stage gate needs --start with a {' or '.join(thinks)} folder; got "
            f"{start if before is None else before['method']}"
        )
    if before["trained_on"] != "train":
        raise CheckpointError(
            f"a gate is chosen on validation queries, and {start} learned from their targets; "
            "train it before a model of train alone"
        )
    out = make_folder(out)
    inputs = {"data": dataset.fingerprint, "start": before["fingerprint"]}
    asked = _keys_of("gate", config)
    if is_finished(out, stage="train", inputs=inputs, config=asked, seed=seed):
        return out
    _check_trainable("gate", dataset)
    start_stage(out, stage="train", inputs=inputs, config=asked, seed=seed)
    thinking = load_recommender(start, dataset)
    assert isinstance(thinking, ThinkingRecommender)
    with stopwatch() as spent:
        events = _held_out(dataset.train, config)
        if not len(events):
            events = events_with_history(dataset.train)
        events = stream(seed, "gate").permutation(events)[: config.gate.max_events]
        queries = _Parts(dataset, config, seed).queries()
        gate, choice = learn_gate(
            thinking,
            dataset.train,
            events,
            (queries.histories(), queries.target),
            config.gate,
            config.recpo.recpo,
            seed=seed,
        )
        gate.save(out)
    write_manifest(
        out, stage="train", inputs=inputs, config=asked, outputs=[FILE], seconds=spent[0],
        seed=seed,
        extra={
            "method": f"{thinking.name}/gated",
            "trained_on": "train",
            "data_folder": os.path.relpath(dataset.folder, out),
            "start_folder": os.path.relpath(start, out),
            "best_step": None,
            "best_score": None,
            "gate": {k: v for k, v in asdict(choice).items() if k != "threshold"},
        }
        | recipe_of("gate", config, seed=seed, start=start),
    )  # fmt: skip
    return out


def train(
    dataset: Dataset,
    config: R2ecConfig,
    *,
    out: Path,
    seed: int,
    again: Path | None = None,
    announce: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Train the stages, by default no-think, SFT and RecPO, into folders of ``out``.

    Args:
        again: Folder of these stages, trained; see `train_stage`.
    """
    folders: dict[Stage, Path] = {}
    _check_trainable(config.stages[-1], dataset)  # what it cannot use, the first need not start
    for stage in config.stages:
        method = method_of(stage, config)
        announce(method)
        before = _stage_before(stage, config)
        start = None if before is None else folders[before]
        folders[stage] = train_stage(
            stage, dataset, config, out=out / method, seed=seed, start=start,
            again=None if again is None else again / method,
        )  # fmt: skip
    return list(folders.values())


def settings_of(run: Path) -> tuple[R2ecConfig, int]:
    """Return the settings and the seed of a folder that holds the stages of `train`.

    Raises:
        CheckpointError: It holds none, or the last of them does not say how it was trained.
    """
    found = [run / METHOD_OF_STAGE[s] for s in TRUNK_STAGES if (run / METHOD_OF_STAGE[s]).is_dir()]
    if not found:
        raise CheckpointError(
            f"{run} must be a folder of `reasonrec train r2ec`, with {METHOD_OF_STAGE['no-think']} "
            "and what follows it; found neither"
        )
    manifest = read_manifest(found[-1])
    if "recipe" not in manifest:
        raise CheckpointError(
            f"{found[-1]} must say how it was trained, as a model of train alone does; train it "
            "with this version"
        )
    recipe = Recipe.model_validate(manifest["recipe"])
    return R2ecConfig.model_validate(recipe.config), recipe.seed


def load_recommender(folder: Path, dataset: Dataset, *, thinks: bool = True) -> Recommender:
    """Return the trained model of a stage folder as a recommender over ``dataset``.

    Args:
        thinks: False ranks without a thought even where the model has learned to think; its name
            is then that of the method with ``/silent`` behind it.

    Raises:
        CheckpointError: The folder is no finished model, or was trained on other data.
    """
    manifest = checked_manifest(folder, dataset)
    if manifest["trained_on"] == "train+valid":
        dataset = dataset.with_validation()
    name: str = manifest["method"]
    if "start_folder" in manifest:
        start = Path(folder) / manifest["start_folder"]
        thinking = load_recommender(start, dataset, thinks=thinks)
        if read_manifest(start)["fingerprint"] != manifest["inputs"]["start"]:
            raise CheckpointError(
                f"{folder} is a gate before another model than {start} holds now; train it again"
            )
        if not isinstance(thinking, ThinkingRecommender):
            return thinking
        return GatedThinkingRecommender(thinking, ThinkingGate.load(folder))
    model = ReasoningRecommender.from_pretrained(Path(folder) / "model")
    if name == "no-think":
        return NoThinkRecommender(model)
    if not thinks:
        return NoThinkRecommender(model, name=f"{name}/silent")
    has_evidence_alone = name in (METHOD_OF_STAGE["evidence"], IN_PROMPT)
    try:
        thought = ThoughtConfig.model_validate(manifest["config"]["thought"])
        inference = InferenceConfig.model_validate(manifest["config"].get("inference", {}))
    except (KeyError, ValidationError) as error:
        raise CheckpointError(
            f"{folder} was trained with settings that this version does not know ({error}); "
            "train again"
        ) from None
    graph = InteractionGraph.build(dataset.train, dataset.num_items)
    together = fit_together(dataset, thought)
    verbaliser = Verbaliser(model.writer, graph, dataset.catalogue, thought, together)
    if has_evidence_alone:
        return EvidenceRecommender(model, verbaliser, name=name, in_prompt=name == IN_PROMPT)
    return ThinkingRecommender(
        model,
        verbaliser,
        name=name,
        max_tokens=manifest["config"]["max_tokens"],
        temperature=inference.temperature,
        num_samples=inference.num_samples,
        seed=manifest["seed"],
    )


class R2ec:
    """The method from Python: ``R2ec(out="runs/mine").fit(dataset).recommend(["u1"], k=10)``."""

    def __init__(self, config: R2ecConfig | None = None, *, out: Path | str, seed: int = 0) -> None:
        self.config = config or R2ecConfig()
        self.out = Path(out)
        self.seed = seed
        self._dataset: Dataset | None = None
        self._recommender: Recommender | None = None

    def fit(self, dataset: Dataset) -> "R2ec":
        """Train all stages on ``dataset.train``, or continue where an earlier call stopped."""
        folders = train(dataset, self.config, out=self.out, seed=self.seed)
        self._dataset, self._recommender = dataset, load_recommender(folders[-1], dataset)
        return self

    @property
    def recommender(self) -> Recommender:
        """The trained model; `evaluate` and `recommend` take it too."""
        if self._recommender is None:
            raise CheckpointError("the method must be trained first: call fit(dataset)")
        return self._recommender

    def recommend(
        self, user_ids: list[str], k: int = 10, *, explain: bool = False
    ) -> list[Recommendation]:
        """Return the best ``k`` items of each user, with thought and chains if ``explain``."""
        recommender = self.recommender
        assert self._dataset is not None
        return recommend_to(recommender, self._dataset, user_ids, k=k, explain=explain)

    def evaluate(self, **settings: Any) -> Evaluation:
        """Return metrics, ranks and thoughts on the test queries.

        Args:
            settings: As `evaluation.protocol.evaluate` takes them: ``part``, ``protocols``, ...
        """
        recommender = self.recommender
        assert self._dataset is not None
        return evaluate(recommender, self._dataset, seed=self.seed, **settings)


@dataclass(frozen=True)
class _Parts:
    """What the stages share."""

    dataset: Dataset
    config: R2ecConfig
    seed: int

    def verbaliser(
        self, model: ReasoningRecommender, *, unknown: np.ndarray | None = None
    ) -> Verbaliser:
        """Return who answers and writes; ``unknown`` events are not learned from for that."""
        graph = InteractionGraph.build(self.dataset.train, self.dataset.num_items)
        thought = self.config.thought
        together = fit_together(self.dataset, thought, unknown=unknown)
        return Verbaliser(model.writer, graph, self.dataset.catalogue, thought, together)

    def queries(self) -> Queries:
        return validation_queries(self.dataset, self.config.num_valid_queries)

    def calibrate(self, model: ReasoningRecommender, stage: Stage) -> dict[str, list[float]]:
        """Fit what looked-up evidence is worth to the validation queries."""
        queries = self.queries()
        recommender = self.recommender(model, self.verbaliser(model), stage)
        return calibrate_evidence(recommender, queries.histories(), queries.target)

    def recommender(
        self, model: ReasoningRecommender, verbaliser: Verbaliser, stage: Stage
    ) -> ThinkingRecommender | EvidenceRecommender:
        """Return the model as it is validated: it thinks greedily, or has its evidence alone."""
        if stage == "evidence":
            in_prompt = self.config.evidence.in_prompt
            return EvidenceRecommender(model, verbaliser, in_prompt=in_prompt)
        return ThinkingRecommender(model, verbaliser, max_tokens=max_tokens(self.config))

    def validate(
        self, model: ReasoningRecommender, stage: Stage
    ) -> Callable[[ReasoningRecommender], dict[str, float]]:
        queries = self.queries()
        histories = queries.histories()
        verbaliser = self.verbaliser(model) if stage != "no-think" else None

        def measure(model: ReasoningRecommender) -> dict[str, float]:
            silent = validation_accuracy(NoThinkRecommender(model), queries, histories)
            if verbaliser is None:
                return {f"valid/{name}": value for name, value in silent.items()}
            thinking = self.recommender(model, verbaliser, stage)
            spoken = validation_accuracy(thinking, queries, histories)
            return {
                **{f"valid/{name}": value for name, value in spoken.items()},
                **{f"valid/silent/{name}": value for name, value in silent.items()},
            }

        return measure


def _held_out(log: InteractionLog, config: R2ecConfig) -> np.ndarray:
    return hold_out_last(
        log, max_events=config.held_out.max_events, max_frac=config.held_out.max_frac
    )


def _stage_before(stage: Stage, config: R2ecConfig) -> Stage | None:
    """Return the stage that one starts from, None for the backbone as it is."""
    in_order: tuple[Stage, ...] = get_args(Stage)
    earlier = in_order[: in_order.index(stage)]
    trunk: list[Stage] = [one for one in config.stages if one in earlier and one in TRUNK_STAGES]
    return trunk[-1] if trunk else None


def max_tokens(config: R2ecConfig) -> int:
    """Return the budget of a thought: RecPO's, so that all stages think equally long."""
    return config.recpo.recpo.max_tokens


def _stage_parts(
    stage: Stage, model: ReasoningRecommender, parts: _Parts, engine: RolloutEngine
) -> tuple[TorchDataset, LossFunction, OptimiserConfig]:
    dataset, config, seed = parts.dataset, parts.config, parts.seed
    log = dataset.train
    held_out = _held_out(log, config)
    if stage == "recpo":
        recpo = config.recpo.recpo
        eligible = held_out if len(held_out) else events_with_history(log)
        batch_size, epochs = config.recpo.optimiser.batch_size, config.recpo.num_epochs
        asked = config.recpo.num_prompts if epochs is None else round(epochs * len(eligible))
        sample = PromptSample(
            eligible, num_prompts=max(batch_size, asked), batch_size=batch_size,
            num_inner_epochs=recpo.num_inner_epochs, seed=seed,
        )  # fmt: skip
        needs_start = recpo.kl_weight or recpo.rollouts_from == "start"
        start = StartingPoint(model) if needs_start else None
        learner = Recpo(
            recpo, log, parts.verbaliser(model, unknown=eligible), seed=seed, start=start,
            engine=engine,
        )  # fmt: skip
        return sample, learner, config.recpo.optimiser
    own = {"no-think": config.no_think, "evidence": config.evidence, "sft": config.sft}
    chosen = own[stage]
    is_sft = isinstance(chosen, SftStage)
    log = log if is_sft else log.without(held_out)
    windows = schedule_windows(
        log, max_history=config.head.max_history, num_epochs=chosen.num_epochs,
        batch_size=chosen.optimiser.batch_size, seed=stream_seed(seed, stage),
    ).at_most(chosen.max_windows, above_all=held_out if is_sft else None)  # fmt: skip
    data = WindowDataset(
        log, windows, model.writer,
        verbaliser=parts.verbaliser(model, unknown=held_out) if is_sft else None,
        num_branches=chosen.num_branches if is_sft else 0,
        held_out=held_out if is_sft and len(held_out) else None,
        writes=stage != "evidence", in_prompt=config.evidence.in_prompt,
        propose=proposer(model, config.thought.num_candidates) if stage == "sft" else None,
        seed=seed,
    )  # fmt: skip
    weights = chosen.loss if is_sft else SftLossConfig()
    return data, lambda model, batch: sft_loss(model, batch, weights), chosen.optimiser


def proposer(model: ReasoningRecommender, num_candidates: int) -> Propose | None:
    """Return who names candidates while the model learns thoughts: the model as it is now.

    Later ones have learned what thoughts are ranked for, and would name it too often.
    """
    if not num_candidates:
        return None
    start = StartingPoint(model)

    @torch.no_grad()
    def propose(trunk: Batch, histories: Histories) -> list[Lookup]:
        was_training = model.training
        model.eval()
        with start.in_place():
            states = model(trunk.to(model.device), with_scores=False).pre_states
            candidates = candidates_of(model, states.flatten(0, 1), histories, num_candidates)
        model.train(was_training)
        return candidates

    return propose


def validation_queries(dataset: Dataset, most: int) -> Queries:
    """Return the validation queries that choose: all, or a seeded sample of ``most``."""
    queries = dataset.valid
    if len(queries) <= most:
        return queries
    drawn = stream(0, "validation").choice(len(queries), most, replace=False)
    return queries.take(np.sort(drawn))


def validation_accuracy(
    recommender: Recommender, queries: Queries, histories: Histories
) -> dict[str, float]:
    """Return what a run is validated by, for a recommender as it is now."""
    return ranking_accuracy(recommender.score(histories).scores, queries, histories)


def ranking_accuracy(
    scores: np.ndarray, queries: Queries, histories: Histories
) -> dict[str, float]:
    """Return metrics of scores (Q, N), and the log-loss of their softmax."""
    rank = rank_targets(scores, queries.target, histories=histories, mask="history-except-target")
    logp = log_softmax(scores, axis=1)[np.arange(len(scores)), queries.target]
    return {
        "ndcg@10": float(ndcg(rank, 10).mean()),
        "hit@10": float(hit(rank, 10).mean()),
        "ndcg": float(ndcg(rank, scores.shape[1]).mean()),
        "log_loss": -float(logp.mean()),
    }


def _keys_of(stage: Stage, config: R2ecConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides a stage's result."""
    keys: dict[str, Any] = config.model_dump(mode="json")
    own = stage.replace("-", "_")
    if stage == "gate":  # the rest is that of the model that it stands before
        asked = {key: keys[key] for key in ("method", "held_out", "num_valid_queries", own)}
        rolls_out = config.gate.source == "rollouts"
        return asked | ({"recpo": {"recpo": keys["recpo"]["recpo"]}} if rolls_out else {})
    kept = ["method", "backbone", "tiny", "head", "held_out", "num_valid_queries", own]
    if config.backbone != "tiny":
        kept += ["weights", "prompt"]
    if stage != "no-think":
        kept += ["thought", "inference", "calibrate"]
    asked = {key: keys[key] for key in kept}
    if stage == "recpo":
        del asked["recpo"]["engine"]
        asked["recpo"] |= config.recpo.engine.decides()
    return asked if stage == "no-think" else asked | {"max_tokens": max_tokens(config)}


def checked_manifest(folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Return the manifest of a model folder over this data."""
    manifest = read_manifest(folder)
    if manifest["stage"] != "train" or "method" not in manifest:
        raise CheckpointError(f"{folder} must be a folder written by `reasonrec train`")
    if manifest["inputs"].get("data") != dataset.fingerprint:
        raise CheckpointError(
            f"{folder} was trained on other data than {dataset.folder} holds now: the data set was "
            "changed or is another one. Prepare it as it was, or train again"
        )
    check_outputs(folder)
    return manifest


def _check_trainable(stage: Stage, dataset: Dataset) -> None:
    """Refuse data that has no position to learn from, or nothing to choose the best step by."""
    needed = 3 if stage in ("recpo", "gate") else 2
    most = int(np.diff(dataset.train.user_offsets).max(initial=0))
    if most < needed or len(dataset.valid) == 0:
        raise DataError(
            f"training {METHOD_OF_STAGE[stage]} needs a user with {needed} training events, and a "
            f"validation query; in {dataset.name} no user has more than {most}, and there are "
            f"{len(dataset.valid)} queries. Under leave-one-out that is a user with {needed + 2} "
            "events"
        )

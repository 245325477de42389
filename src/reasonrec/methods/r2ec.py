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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from reasonrec import ranks
from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError, ConfigError
from reasonrec.evaluation.protocol import Evaluation, evaluate
from reasonrec.evaluation.recipe import Recipe, recipe_of
from reasonrec.manifest import (
    check_outputs,
    is_finished,
    make_folder,
    read_manifest,
    start_stage,
    stopwatch,
    write_manifest,
    writes_alone,
)
from reasonrec.methods.r2ec_config import (
    TRUNK_STAGES,
    InferenceConfig,
    R2ecConfig,
    Stage,
)
from reasonrec.methods.r2ec_stages import (
    IN_PROMPT,
    METHOD_OF_STAGE,
    StageParts,
    check_trainable,
    events_to_ask,
    keys_of,
    learned_from,
    method_of,
    stage_before,
    tell_of_repeats,
)
from reasonrec.models.backbone import build_model
from reasonrec.models.gate import FILE, ThinkingGate
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.recommenders import (
    EvidenceRecommender,
    GatedThinkingRecommender,
    NoThinkRecommender,
    ThinkingRecommender,
)
from reasonrec.records import Recommendation
from reasonrec.rng import stream
from reasonrec.serving.recommender import recommend as recommend_to
from reasonrec.traces.config import PromptConfig, ThoughtConfig
from reasonrec.traces.verbaliser import Verbaliser
from reasonrec.training.calibration import restore_evidence
from reasonrec.training.config import EngineConfig
from reasonrec.training.examples import (
    keep_batch,
)
from reasonrec.training.gating import learn_gate
from reasonrec.training.loop import fit
from reasonrec.training.rl.engines.choice import build_engine


@writes_alone
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
    config, inputs = _checked_start(stage, dataset, config, start, trained_on)
    asked = keys_of(stage, config)
    chosen = None
    if again is not None:
        chosen = _chosen_before(again, dataset, {"config": asked, "seed": seed})
        inputs["again"] = chosen["fingerprint"]
        dataset = dataset.with_validation()
    if is_finished(out, stage="train", inputs=inputs, config=asked, seed=seed):
        return out
    check_trainable(stage, dataset)
    if start is None and not config.head.repeats:
        tell_of_repeats(dataset)
    parts = StageParts(dataset, config, seed)
    model = _model_to_train(dataset, config, start, seed)
    if stage != "no-think":
        model.ask_no_more_than(config.thought.least_looked_up)
    ranks.first_alone(
        lambda: start_stage(out, stage="train", inputs=inputs, config=asked, seed=seed)
    )
    writes = config.recpo.engine if stage == "recpo" else EngineConfig()
    with closing(build_engine(writes)) as engine:
        data, loss, optimiser, epochs = learned_from(stage, model, parts, engine)
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
        elif stage != "no-think":
            recommender = parts.recommender(model, parts.verbaliser(model), stage)
            calibrated = parts.calibrate(recommender) if config.calibrate else None
            parts.tell_of_unfinished_thoughts(recommender)
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
                "data_folder": dataset.seen_from(out),
                "best_step": fitted.best_step,
                "best_score": fitted.best_score,
                "share": fitted.share,
                "epochs": epochs,
                "calibrated": calibrated,
            }
            # a recipe holds settings alone, and here a finished run decides too
            | (recipe_of(stage, config, seed=seed, start=start) if chosen is None else {}),
        )

    ranks.first_alone(finish)
    return out


def _checked_start(
    stage: Stage, dataset: Dataset, config: R2ecConfig, start: Path | None, trained_on: str
) -> tuple[R2ecConfig, dict[str, str]]:
    """Return a stage's configuration, with its start's head and thoughts, and what goes into it.

    Raises:
        CheckpointError: ``start`` is not what the stage starts from.
        ConfigError: The stage needs something that is turned off.
    """
    stages = list(config.stages)
    before_it = stage_before(stage, config)
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
        _check_same_held_out(config, before["config"], start)
        _check_same_told(config, before["config"], start)
        config = _as_before("head", stage, config, before, start)
        if stage == "recpo":
            config = _as_before("thought", stage, config, before, start)
    check_can_tell(config.prompt, dataset)
    if config.prompt.item_popularity and config.head.item_rows == "id":
        raise ConfigError(
            "prompt.item_popularity is told in the texts that rows are read from, and with "
            "head.item_rows = id none are. Set head.item_rows to text or text+id, or leave it off"
        )
    reads_evidence = config.head.pointer or config.evidence.in_prompt
    if stage == "evidence" and not (reads_evidence and config.thought.num_lookups):
        raise ConfigError(
            "the stage evidence needs head.pointer and thought.num_lookups of 1 or more; got "
            f"{config.head.pointer} and {config.thought.num_lookups}. Turn them on, or leave it out"
        )
    return config, inputs


def check_can_tell(prompt: PromptConfig, dataset: Dataset) -> None:
    """Refuse prompts that are to tell what a data set does not know.

    Raises:
        ConfigError: It has no times, or no ratings.
    """
    needed = (
        ("elapsed", prompt.elapsed, "times", dataset.train.timestamp),
        ("ratings", prompt.ratings, "ratings", dataset.train.rating),
    )
    for key, is_on, what, known in needed:
        if is_on and (known is None or np.isnan(known).all()):
            raise ConfigError(
                f"prompt.{key} needs a log with {what}, and {dataset.name} has none. Leave it off"
            )


def _check_same_told(config: R2ecConfig, told: Mapping[str, Any], start: Path) -> None:
    """Refuse to go on with other prompts than the model before has: they are saved with it.

    Raises:
        ConfigError: ``start`` tells ratings or popularity and is not to go on so, or the other way
            round.
    """
    for key in ("ratings", "item_popularity"):
        had, asked = told.get("prompt", {}).get(key, False), getattr(config.prompt, key)
        if had != asked:
            raise ConfigError(
                f"what prompts tell must be the same in all stages; {start} was trained with "
                f"prompt.{key} = {had}, and asked for was {asked}. Set it to {had}, or train that "
                "stage anew"
            )


def _check_same_held_out(config: R2ecConfig, told: Mapping[str, Any], start: Path) -> None:
    """Refuse to rank thoughts for events that the model before was trained on.

    Raises:
        ConfigError: ``start`` held out other events.
    """
    asked = config.held_out.model_dump()
    for key, value in told.get("held_out", {}).items():
        if asked.get(key, value) != value:
            raise ConfigError(
                f"what is held out must be the same in all stages; {start} was trained with "
                f"held_out.{key} = {value}, and asked for was {asked[key]}. Set it to {value}, or "
                "train that stage anew"
            )


def _model_to_train(
    dataset: Dataset, config: R2ecConfig, start: Path | None, seed: int
) -> ReasoningRecommender:
    model = (
        build_model(
            dataset.catalogue,
            backbone=config.backbone,
            tiny=config.tiny,
            head=config.head,
            seed=seed,
            prompt=config.prompt,
            weights=config.weights,
            train=dataset.train,
        )
        if start is None
        else ReasoningRecommender.from_pretrained(start / "model")
    )
    model.head = model.head.model_copy(update={"pooling": config.head.pooling})
    if model.pointer is not None:
        counts = np.bincount(dataset.train.item_index, minlength=dataset.num_items)
        model.pointer.count(torch.from_numpy(counts))
    return model


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


def _as_before(
    part: Literal["head", "thought"],
    stage: Stage,
    config: R2ecConfig,
    before: Mapping[str, Any],
    start: Path,
) -> R2ecConfig:
    """Return the configuration with the head, or the thoughts, of the model before.

    What is not asked for otherwise is taken from there. How thoughts are read is for the first
    stage that thinks to say.

    Raises:
        ConfigError: Something else is asked for.
    """
    if part not in before["config"]:  # a model that never thought has no thoughts
        return config
    kind = type(getattr(config, part))
    had = kind.model_validate(before["config"][part]).model_dump()
    asked, usual = getattr(config, part).model_dump(), getattr(R2ecConfig(), part).model_dump()
    if part == "head" and stage != "recpo":
        had["pooling"] = asked["pooling"]
    other = [
        f"{part}.{key} = {asked[key]!r} instead of {value!r}"
        for key, value in had.items()
        if asked[key] not in (value, usual[key])
    ]
    if other:
        raise ConfigError(
            f"the {part} must be that of the model which {stage} starts from, {start}; asked for "
            f"was {', '.join(other)}. Leave such keys out, or train the stage before with them"
        )
    return config.model_copy(update={part: kind.model_validate(had)})


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
    _check_same_held_out(config, before["config"], start)
    out = make_folder(out)
    inputs = {"data": dataset.fingerprint, "start": before["fingerprint"]}
    asked = keys_of("gate", config)
    if is_finished(out, stage="train", inputs=inputs, config=asked, seed=seed):
        return out
    check_trainable("gate", dataset)
    start_stage(out, stage="train", inputs=inputs, config=asked, seed=seed)
    thinking = load_recommender(start, dataset)
    assert isinstance(thinking, ThinkingRecommender)
    with stopwatch() as spent:
        mask = config.recpo.recpo.mask if config.gate.source == "rollouts" else None
        events = events_to_ask(dataset.train, config, mask=mask)
        events = stream(seed, "gate").permutation(events)[: config.gate.max_events]
        queries = StageParts(dataset, config, seed).queries()
        knows_less = Verbaliser.learned_from(
            dataset, thinking.model.writer, thinking.verbaliser.config, unknown=events
        )
        gate, choice = learn_gate(
            thinking,
            replace(thinking, verbaliser=knows_less),
            dataset.train,
            events,
            (queries.histories(), queries.target),
            config.gate,
            config.recpo.recpo,
            seed=seed,
            repeats=config.head.repeats,
        )
        gate.save(out)
    write_manifest(
        out, stage="train", inputs=inputs, config=asked, outputs=[FILE], seconds=spent[0],
        seed=seed,
        extra={
            "method": f"{thinking.name}/gated",
            "trained_on": "train",
            "data_folder": dataset.seen_from(out),
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
    check_trainable(config.stages[-1], dataset)  # what it cannot use, the first need not start
    for stage in config.stages:
        method = method_of(stage, config)
        announce(method)
        before = stage_before(stage, config)
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
        CheckpointError: The folder is no finished model of R²ec, or was trained on other data.
    """
    manifest = checked_manifest(folder, dataset)
    name: str = manifest["method"]
    if name.removesuffix("/gated") not in (*METHOD_OF_STAGE.values(), IN_PROMPT):
        raise CheckpointError(
            f"{folder} must be a folder of `reasonrec train r2ec` or of one of its stages; it "
            f"holds {name}. `reasonrec recommend` and `evaluate` open it, and from Python "
            "reasonrec.methods.loading.load_recommender"
        )
    if manifest["trained_on"] == "train+valid":
        dataset = dataset.with_validation()
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
    verbaliser = Verbaliser.learned_from(dataset, model.writer, thought)
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

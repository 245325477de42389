"""The language-model baselines: untuned, direct-answer SFT, BIGRec and TIGER, each on one page.

Same backbone, prompt, loop, training rows, histories and choice of the best step as our own models;
what is trained and how it ranks differs.

- ``untuned/title``: nothing is trained; a title ranks by its likelihood as the next of the history.
- ``direct-sft``: the same ranking after next-token training on the titles.
- ``bigrec``: Bao et al. 2023, arXiv 2308.08434. Writes a title in words, ranks by distance to it.
- ``tiger``: Rajput et al. 2023, arXiv 2305.05065. Writes a semantic ID, ranks by its likelihood.

How each departs from its paper stands in ``docs/baselines.md``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch.utils.data import Dataset as TorchDataset

from reasonrec.baselines.contract import Recommender
from reasonrec.data.dataset import Dataset
from reasonrec.errors import CheckpointError, ConfigError, DataError
from reasonrec.evaluation.recipe import recipe_of
from reasonrec.manifest import is_finished, make_folder, start_stage, write_manifest, writes_alone
from reasonrec.methods.baselines.config import (
    Baseline,
    BaselinesConfig,
    BigrecConfig,
    DirectSftConfig,
    TigerConfig,
)
from reasonrec.methods.r2ec import check_can_tell, checked_manifest
from reasonrec.methods.r2ec_config import R2ecConfig
from reasonrec.methods.r2ec_stages import (
    ranking_accuracy,
    validation_accuracy,
    validation_queries,
)
from reasonrec.models.answers import HeadlessModel, with_words_of
from reasonrec.models.backbone import build_model, catalogue_titles, item_texts
from reasonrec.models.grounding import (
    GroundingRecommender,
    TitleWritingModel,
    grounded_scores,
)
from reasonrec.models.likelihood import LikelihoodRecommender, item_trie
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.semantic_ids import (
    add_id_tokens,
    frac_shared,
    id_texts,
    log_vectors,
    residual_codes,
    text_vectors,
    with_last_code,
)
from reasonrec.models.tiny.backbone import build_tiny_backbone
from reasonrec.models.tiny.tokenizer import train_tokenizer
from reasonrec.rng import stream_seed
from reasonrec.traces.prompts import HISTORY
from reasonrec.training.examples import keep_batch, schedule_windows
from reasonrec.training.item_texts import (
    ContinuedHistories,
    WrittenTitles,
    continuation_loss,
    title_loss,
)
from reasonrec.training.loop import fit

METHOD_OF: dict[Baseline, str] = {
    "untuned": "untuned/title",  # R2Rec's `untuned` is asked about candidates
    "direct-sft": "direct-sft",
    "bigrec": "bigrec",
    "tiger": "tiger",
}
METHODS = tuple(METHOD_OF.values())
POWERS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Powers of popularity that validation chooses from."""


@writes_alone
def train(
    what: Baseline,
    dataset: Dataset,
    config: BaselinesConfig,
    *,
    base: R2ecConfig,
    out: Path,
    seed: int,
) -> Path:
    """Train one baseline into ``out`` and return it; a finished folder is left as it is.

    Args:
        base: Backbone, prompt, ``head.max_history`` and ``num_valid_queries``.

    Raises:
        DataError: The data set has nothing to train or validate on.
        CheckpointError: ``out`` holds another run, or the backbone cannot be loaded.
        ConfigError: Settings that do not go with this baseline.
    """
    out = make_folder(out)
    _check_usable(what, config, base)
    check_can_tell(base.prompt, dataset)
    inputs = {"data": dataset.fingerprint}
    asked = _keys_of(what, config, base)
    if is_finished(out, stage="train", inputs=inputs, config=asked, seed=seed):
        return out
    _check_trainable(what, dataset)
    extra: dict[str, Any] = {"best_step": 0, "best_score": None}
    seconds = 0.0
    model = _build(what, dataset, config, base, seed)
    if what != "untuned":
        own = _own(what, config)
        start_stage(out, stage="train", inputs=inputs, config=asked, seed=seed)
        windows = schedule_windows(
            dataset.train, max_history=base.head.max_history, num_epochs=own.num_epochs,
            batch_size=own.optimiser.batch_size, seed=stream_seed(seed, "no-think"),
        )  # fmt: skip
        data: TorchDataset = (
            WrittenTitles(
                dataset.train, windows, model, num_branches=config.bigrec.num_branches,
                max_tokens=config.bigrec.max_tokens, seed=seed,
            )
            if isinstance(model, TitleWritingModel)
            else ContinuedHistories(dataset.train, windows, model)
        )  # fmt: skip
        loss: Any = title_loss if isinstance(model, TitleWritingModel) else continuation_loss
        torch.manual_seed(seed)
        fitted = fit(
            model, data, loss, _validate(what, dataset, config, base), own.optimiser,
            out=out, seed=seed, label=METHOD_OF[what], collate=keep_batch,
        )  # fmt: skip
        seconds = fitted.seconds
        extra |= {"best_step": fitted.best_step, "best_score": fitted.best_score}
    if isinstance(model, TitleWritingModel):
        extra["popularity_power"] = (
            _best_power(model, dataset, config, base) if config.bigrec.popularity else 0.0
        )
    if what == "tiger":
        codes = [title.rpartition("|")[0] for title in model.titles]
        extra["frac_shared_codes"] = frac_shared(np.array(codes)[:, None])
    model.save_pretrained(out / "model")
    files = sorted(str(p.relative_to(out)) for p in (out / "model").rglob("*") if p.is_file())
    write_manifest(
        out, stage="train", inputs=inputs, config=asked, outputs=files, seconds=seconds, seed=seed,
        extra={
            "method": METHOD_OF[what],
            "trained_on": "nothing" if what == "untuned" else "train",
            "data_folder": dataset.seen_from(out),
        } | extra | recipe_of(what, config, seed=seed, start=None, base=base),
    )  # fmt: skip
    return out


def load_recommender(folder: Path, dataset: Dataset) -> Recommender:
    """Return the model of a baseline's folder as a recommender over ``dataset``.

    Raises:
        CheckpointError: The folder is no finished baseline, or was trained on other data.
    """
    folder = Path(folder)
    manifest = checked_manifest(folder, dataset)
    found: list[Baseline] = [n for n, method in METHOD_OF.items() if method == manifest["method"]]
    if not found:
        raise CheckpointError(
            f"{folder} must be a folder of `reasonrec train {'|'.join(METHOD_OF)}`; it holds "
            f"{manifest['method']}"
        )
    what = found[0]
    own = {} if what == "untuned" else {what.replace("-", "_"): manifest["config"].get("own")}
    try:
        config = BaselinesConfig.model_validate(own)
    except ValidationError as error:
        raise CheckpointError(
            f"{folder} was trained with settings that this version does not know ({error}); "
            "train again"
        ) from None
    kind = TitleWritingModel if what == "bigrec" else HeadlessModel
    model = kind.from_pretrained(folder / "model")
    return _recommender(what, model, dataset, config, power=manifest.get("popularity_power", 0.0))


def _recommender(
    what: Baseline,
    model: ReasoningRecommender,
    dataset: Dataset,
    config: BaselinesConfig,
    *,
    power: float = 0.0,
) -> LikelihoodRecommender | GroundingRecommender:
    if isinstance(model, TitleWritingModel):
        return GroundingRecommender(
            model,
            popularity_share(dataset),
            power=power,
            mean=config.bigrec.state == "mean",
            max_tokens=config.bigrec.max_tokens,
        )
    assert isinstance(model, HeadlessModel)
    beam = {"direct-sft": config.direct_sft.beam, "tiger": config.tiger.beam}.get(what, 0)
    return LikelihoodRecommender(model, item_trie(model), METHOD_OF[what], beam)


def popularity_share(dataset: Dataset) -> np.ndarray:
    """Return each item's training events, scaled so that the rarest has 0 and the most taken 1."""
    counts = np.bincount(dataset.train.item_index, minlength=dataset.num_items).astype(np.float64)
    return (counts - counts.min()) / max(counts.max() - counts.min(), 1.0)


def _build(
    what: Baseline, dataset: Dataset, config: BaselinesConfig, base: R2ecConfig, seed: int
) -> HeadlessModel:
    """Return the untrained model of a baseline."""
    titles = catalogue_titles(dataset.catalogue)
    model: ReasoningRecommender = build_model(
        dataset.catalogue, backbone=base.backbone, tiny=base.tiny,
        head=base.head.model_copy(update={"item_rows": "id"}), seed=seed,
        prompt=base.prompt, weights=base.weights, train=dataset.train,
    )  # fmt: skip
    if what == "tiger":
        return _with_semantic_ids(model, dataset, config.tiger, base, seed)
    own = _own(what, config)
    words = [f" {title}" for title in titles] + [HISTORY] * 100
    answering = with_words_of(
        model, words, dropout=own.dropout, seed=seed,
        vocab_size=own.vocab_size if isinstance(own, BigrecConfig) else 0,
        kind=TitleWritingModel if what == "bigrec" else HeadlessModel,
    )  # fmt: skip
    assert isinstance(answering, HeadlessModel)
    return answering


def _with_semantic_ids(
    model: ReasoningRecommender, dataset: Dataset, config: TigerConfig, base: R2ecConfig, seed: int
) -> HeadlessModel:
    """Return a model to which every item is its semantic ID."""
    vectors = item_vectors(dataset, config, model, seed=seed)
    codes = residual_codes(
        vectors, num_levels=config.num_levels, codebook_size=config.codebook_size, seed=seed
    )
    codes = with_last_code(codes)
    backbone, tokenizer = model.backbone, model.tokenizer
    if base.backbone == "tiny":  # of no use: the tokens of titles and of words
        tokenizer = train_tokenizer([], [HISTORY] * 100, vocab_size=300)
        add_id_tokens(tokenizer, codes)
        backbone = build_tiny_backbone(base.tiny, tokenizer, seed=seed)
    else:
        add_id_tokens(tokenizer, codes)
        if len(tokenizer) > backbone.get_input_embeddings().weight.shape[0]:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return HeadlessModel(
        backbone, tokenizer, id_texts(codes),
        model.head.model_copy(update={"dropout": config.dropout}),
        model.item_ids, model.item_texts, prompt=base.prompt, weights=base.weights,
    )  # fmt: skip


def item_vectors(
    dataset: Dataset, config: TigerConfig, model: ReasoningRecommender, *, seed: int
) -> np.ndarray:
    """Return what semantic IDs are made of: a vector (N, D) of every item."""
    if config.ids_from == "states":
        with torch.no_grad():
            parts = torch.arange(dataset.num_items, device=model.device).split(64)
            states = torch.cat([model.eval().encode_items(part) for part in parts]).cpu().numpy()
        return states / np.linalg.norm(states, axis=1, keepdims=True)
    titles = catalogue_titles(dataset.catalogue)
    parts = []
    if "text" in config.ids_from:
        texts = item_texts(dataset.catalogue, titles)
        parts.append(text_vectors(texts, width=config.vector_width, seed=seed))
    if "log" in config.ids_from:
        parts.append(
            log_vectors(dataset.train, dataset.num_items, width=config.vector_width, seed=seed)
        )
    return np.concatenate(parts, axis=1)


def _validate(
    what: Baseline, dataset: Dataset, config: BaselinesConfig, base: R2ecConfig
) -> Callable[[ReasoningRecommender], dict[str, float]]:
    queries = validation_queries(dataset, base.num_valid_queries)
    histories = queries.histories()

    def measure(model: ReasoningRecommender) -> dict[str, float]:
        recommender = _recommender(what, model, dataset, config)
        values = validation_accuracy(recommender, queries, histories)
        if not (isinstance(recommender, LikelihoodRecommender) and recommender.beam == 0):
            del values["log_loss"]  # of distances, or of what a beam kept: no probability
        return {f"valid/{name}": value for name, value in values.items()}

    return measure


def _best_power(
    model: ReasoningRecommender, dataset: Dataset, config: BaselinesConfig, base: R2ecConfig
) -> float:
    """Return the power of popularity that ranks validation best; the smallest of equals."""
    queries = validation_queries(dataset, base.num_valid_queries)
    histories = queries.histories()
    recommender = _recommender("bigrec", model, dataset, config)
    assert isinstance(recommender, GroundingRecommender)
    written, _, _ = recommender.write(histories)
    worth = [
        ranking_accuracy(
            grounded_scores(written, recommender.title_states, recommender.popularity, power=power),
            queries,
            histories,
        )["ndcg"]
        for power in POWERS
    ]
    return POWERS[int(np.argmax(worth))]


def _own(what: Baseline, config: BaselinesConfig) -> DirectSftConfig | BigrecConfig | TigerConfig:
    return {"bigrec": config.bigrec, "tiger": config.tiger}.get(what, config.direct_sft)


def _keys_of(what: Baseline, config: BaselinesConfig, base: R2ecConfig) -> dict[str, Any]:
    """Return the part of the configuration that decides a baseline's result."""
    kept = ["backbone", "tiny"] + (["weights", "prompt"] if base.backbone != "tiny" else [])
    keys: dict[str, Any] = base.model_dump(mode="json", include=set(kept))
    keys |= {"method": METHOD_OF[what], "max_history": base.head.max_history}
    told = base.prompt.model_dump(mode="json", exclude_defaults=True)
    if base.backbone == "tiny" and told:  # as it is, a prompt was never among its keys
        keys["prompt"] = told
    if what != "untuned":
        keys |= {
            "own": _own(what, config).model_dump(mode="json"),
            "num_valid_queries": base.num_valid_queries,
        }
    return keys


def _check_usable(what: Baseline, config: BaselinesConfig, base: R2ecConfig) -> None:
    if base.prompt.chat and what != "bigrec":
        raise ConfigError(
            f"{what} reads the next item as the continuation of the history, which a chat template "
            "would cut off; leave prompt.chat off"
        )
    if what == "tiger" and base.weights.lora:
        raise ConfigError(
            "tiger teaches the backbone new tokens, whose embeddings low-rank adapters would leave "
            "untrained; leave weights.lora off"
        )
    if what == "tiger" and config.tiger.ids_from == "states" and base.backbone == "tiny":
        raise ConfigError(
            "tiger.ids_from states needs a backbone that has learned to read; the tiny one starts "
            "at random. Take text, log or text+log"
        )


def _check_trainable(what: Baseline, dataset: Dataset) -> None:
    if what == "untuned":
        return
    most = int(np.diff(dataset.train.user_offsets).max(initial=0))
    if most < 2 or len(dataset.valid) == 0:
        raise DataError(
            f"training {what} needs a user with 2 training events, and a validation query; in "
            f"{dataset.name} no user has more than {most}, and there are {len(dataset.valid)} "
            "queries"
        )

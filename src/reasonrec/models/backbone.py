"""The backbone: the tiny one that is trained here, or any causal LM of a folder or the hub."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from reasonrec import elapsed, rated
from reasonrec.data.dataset import Catalogue, InteractionLog
from reasonrec.errors import CheckpointError
from reasonrec.models.adapters import add_adapters
from reasonrec.models.added_marker import add_marker
from reasonrec.models.config import Dtype, HeadConfig, TinyConfig, WeightsConfig
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.tiny.backbone import build_tiny_backbone
from reasonrec.models.tiny.initialisation import start_from_text
from reasonrec.models.tiny.tokenizer import train_tokenizer, unique_titles
from reasonrec.traces.config import PromptConfig
from reasonrec.traces.prompts import WORDS, PromptWriter, as_data

TOKENIZED_WORDS = 100
"""Words of a description that an item's text keeps, as in R²ec."""


def build_model(
    catalogue: Catalogue,
    *,
    backbone: str,
    tiny: TinyConfig,
    head: HeadConfig,
    seed: int,
    prompt: PromptConfig | None = None,
    weights: WeightsConfig | None = None,
    train: InteractionLog | None = None,
) -> ReasoningRecommender:
    """Return an untrained recommender over a catalogue.

    Args:
        backbone: ``tiny``, or a folder or hub name of any causal LM of ``transformers``.
        prompt, weights: How a backbone from elsewhere is asked, held and trained; of these only
            what prompts tell (``elapsed``, ``until_asked``, ``ratings``, ``item_popularity``) is
            for ``tiny`` too.
        train: The training log, and no event of another part; read for ``prompt.item_popularity``.

    Raises:
        CheckpointError: The backbone cannot be loaded.
        ValueError: ``prompt.item_popularity`` is set, and there is no ``train``.
    """
    titles = catalogue_titles(catalogue)
    popularity = None
    if prompt is not None and prompt.item_popularity:
        if train is None:
            raise ValueError("prompt.item_popularity needs the training log; got train = None")
        popularity = popularity_words(train, len(titles))
    texts = item_texts(catalogue, titles, num_words=head.text_words, popularity=popularity)
    if backbone == "tiny":
        tokenizer = _tiny_tokenizer(titles, item_texts(catalogue, titles), tiny, prompt)
        language_model = build_tiny_backbone(tiny, tokenizer, seed=seed)
    else:
        weights = weights or WeightsConfig()
        language_model, tokenizer = load_backbone(backbone, weights.dtype)
        if prompt is not None and prompt.add_marker:
            add_marker(language_model, tokenizer, prompt.answer_marker, lora=weights.lora)
        if weights.lora:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                add_adapters(language_model, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ReasoningRecommender(
            language_model, tokenizer, titles, head, catalogue.item_ids, texts,
            prompt=prompt, weights=weights,
        )  # fmt: skip
    if backbone != "tiny":
        return model
    tokens = model.writer.title_token_ids
    assert tokens is not None
    start_from_text(
        language_model.get_input_embeddings().weight,  # pyright: ignore[reportArgumentType]
        tokens,
        item_texts(catalogue, titles, num_words=0),
        std=tiny.init_std,
        share=tiny.text_share,
        seed=seed,
    )
    return model


def build_writer(catalogue: Catalogue, tiny: TinyConfig) -> PromptWriter:
    """Return the prompt writer that a tiny model over this catalogue would have."""
    titles = catalogue_titles(catalogue)
    return PromptWriter(_tiny_tokenizer(titles, item_texts(catalogue, titles), tiny), titles)


def catalogue_titles(catalogue: Catalogue) -> list[str]:
    """Return a unique readable title for every item."""
    return unique_titles([title or "" for title in catalogue.titles])


def _tiny_tokenizer(
    titles: list[str], texts: list[str], tiny: TinyConfig, prompt: PromptConfig | None = None
) -> PreTrainedTokenizerBase:
    words = WORDS
    if prompt is not None and prompt.elapsed:
        words += elapsed.WORDS
    if prompt is not None and prompt.ratings:
        words += rated.WORDS
    return train_tokenizer(titles, texts, vocab_size=tiny.vocab_size, words=words)


def load_backbone(
    name: str, dtype: Dtype = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal LM and its tokenizer from a folder or the hub."""
    try:
        # a saved adapter names the folder of its backbone: it must be found from anywhere
        name = str(Path(name).resolve()) if Path(name).exists() else name
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        where = "folder" if Path(name).exists() else "name"
        raise CheckpointError(
            f"the backbone must be 'tiny', or a folder or hub name of a causal LM; the {where} "
            f"{name!r} gave: {str(error).splitlines()[0]}"
        ) from None
    known = int(model.get_input_embeddings().weight.shape[0])  # pyright: ignore[reportIndexIssue, reportArgumentType]
    if len(tokenizer) > known:
        raise CheckpointError(
            f"the backbone must know every token of its tokenizer; {name!r} has {known} embeddings "
            f"for {len(tokenizer)} tokens. Is the tokenizer that of another model?"
        )
    return model, tokenizer


def item_texts(
    catalogue: Catalogue,
    titles: list[str],
    *,
    num_words: int = TOKENIZED_WORDS,
    popularity: Sequence[str] | None = None,
) -> list[str]:
    """Return the text of every item: title, categories, first words of the description.

    Args:
        popularity: Of each item, `popularity_words`, which stand before the description; None
            leaves them out.
    """
    columns = {
        name: catalogue.table[name].to_list() if name in catalogue.table.columns else []
        for name in ("categories", "description")
    }
    columns = {name: values or [None] * len(titles) for name, values in columns.items()}
    texts = []
    told = popularity or [""] * len(titles)
    for title, words, description, taken in zip(
        titles, columns["categories"], columns["description"], told, strict=True
    ):
        parts = [title + "."]
        if words:
            parts.append(as_data(", ".join(str(word) for word in words)) + ".")
        if taken:
            parts.append(taken)
        if description and num_words:
            parts.append(" ".join(as_data(description).split()[:num_words]))
        texts.append(" ".join(parts))
    return texts


def popularity_words(log: InteractionLog, num_items: int) -> list[str]:
    """Return how many people took each item of a log, and what they rated it on average.

    ``Taken by 37, rated 4.2 on average.``, where nobody rated it ``Taken by 37.``, and nothing for
    an item that nobody took. A mean is over the ratings that there are. Of the training log, an
    event that is trained on counts too, as it does for the prior of any baseline.

    Source: R²ec, fig. 5, where both are those of a later snapshot of the shop.
    """
    pairs = np.unique(log.user_index.astype(np.int64) * num_items + log.item_index)
    takers = np.bincount(pairs % num_items, minlength=num_items).tolist()
    rating = np.full(len(log), np.nan) if log.rating is None else log.rating.astype(np.float64)
    item, rating = log.item_index[~np.isnan(rating)], rating[~np.isnan(rating)]
    raters = np.bincount(item, minlength=num_items)
    means = (np.bincount(item, rating, minlength=num_items) / np.maximum(raters, 1)).tolist()
    return [
        "" if not taken else f"Taken by {taken}{f', rated {mean:.1f} on average' if num else ''}."
        for taken, num, mean in zip(takers, raters.tolist(), means, strict=True)
    ]

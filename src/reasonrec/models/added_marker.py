"""One token for the answer marker, where a tokenizer from elsewhere would spell it in several."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reasonrec.errors import ConfigError


def add_marker(
    backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, marker: str, *, lora: bool
) -> None:
    """Give tokenizer and backbone one token for the marker, in place; nothing if there is one.

    The new vectors, in and out, are the means of those of ``<``, ``word`` and ``>``: the same
    whenever they are made, so that a backbone under adapters, which is not saved, has them again.

    Args:
        marker: ``<word>``.

    Raises:
        ConfigError: The backbone, which is to have adapters, has no row to spare.
    """
    if len(_ids(tokenizer, marker)) == 1:
        return
    rows = _vectors(backbone)[0].shape[0]
    if lora and len(tokenizer) >= rows:
        raise ConfigError(
            "prompt.add_marker with weights.lora needs a backbone with more embeddings than "
            f"tokens, since adapters are saved without it; this one has {rows} for "
            f"{len(tokenizer)}. Leave prompt.add_marker off, or train all weights"
        )
    tokenizer.add_tokens([marker])
    if len(tokenizer) > rows:
        backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    set_marker(backbone, tokenizer, marker)


def set_marker(backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, marker: str) -> None:
    """Write the first vectors of a marker that the tokenizer knows as one token, in place."""
    (place,) = _ids(tokenizer, marker)
    parts = (marker[0], marker[1:-1], marker[-1])
    spelled = [token for part in parts for token in _ids(tokenizer, part)]
    with torch.no_grad():
        for rows in _vectors(backbone):
            rows[place] = rows[spelled].float().mean(0)


def _vectors(backbone: PreTrainedModel) -> list[torch.Tensor]:
    """Return the embeddings of tokens and the weights of their logits: one twice if tied."""
    layers: list[Any] = [backbone.get_input_embeddings(), backbone.get_output_embeddings()]
    return [layer.weight for layer in layers]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    return list(ids)

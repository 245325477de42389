"""Weights on their way to an engine elsewhere: written to a folder, never worked into the model.

Departs from the official code, which merges adapters into the weights that are trained on and, by
the time that the engine reads them, has taken them out again: its rollouts come from the weights
without adapters, and the frozen weights drift by rounding.
"""

from pathlib import Path

from safetensors.torch import save_file

from reasonrec.errors import ConfigError
from reasonrec.models.adapters import merged_weights
from reasonrec.models.reasoning_recommender import ReasoningRecommender


def save_merged(model: ReasoningRecommender, folder: Path) -> Path:
    """Write the backbone as any loader of causal LMs reads it, adapters worked into the copy."""
    folder.mkdir(parents=True)
    backbone = model.backbone
    is_tied = bool(getattr(backbone.config.get_text_config(), "tie_word_embeddings", False))
    head = backbone.get_output_embeddings()
    tied = {n for n, module in backbone.named_modules() if is_tied and module is head}
    tensors = {
        name: weight.detach().cpu().contiguous()
        for name, weight in merged_weights(backbone)
        if name.rpartition(".")[0] not in tied
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    backbone.config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def save_adapter(model: ReasoningRecommender, folder: Path) -> Path:
    """Write the adapters alone, as peft reads them.

    Raises:
        ConfigError: The backbone has none.
    """
    if not model.weights.lora:
        raise ConfigError(
            "handover = 'adapter' needs weights.lora; this backbone has no adapters. "
            "Use handover = 'merged'"
        )
    model.backbone.save_pretrained(folder)
    return folder

"""A Qwen3-shaped causal language model of about a million parameters, trained here from nothing."""

import torch
from transformers import (
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from reasonrec.models.config import TinyConfig


def build_tiny_backbone(
    config: TinyConfig, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> PreTrainedModel:
    """Return a randomly initialised causal LM for ``tokenizer``; embeddings are tied."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.width,
        "intermediate_size": config.feed_forward_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.width // config.num_heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "initializer_range": config.init_std,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.shape == "llama":
            return LlamaForCausalLM(LlamaConfig(**shape))
        return Qwen3ForCausalLM(Qwen3Config(**shape))

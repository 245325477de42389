"""A tiny untrained recommender over a toy catalogue, for tests of models and loops."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from reasonrec.data.dataset import Catalogue, Dataset
from reasonrec.graph.build import InteractionGraph
from reasonrec.methods.r2ec_stages import proposer
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig, TinyConfig
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.traces.config import ThoughtConfig
from reasonrec.traces.verbaliser import Verbaliser
from reasonrec.training.config import SftLossConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.losses import sft_loss

TOY_SHAPE = TinyConfig(width=16, num_layers=2, num_heads=2, feed_forward_width=32, vocab_size=300)


def toy_catalogue(num_items: int) -> Catalogue:
    """Return items of two genres: even ones are ``Tide``, odd ones ``Ember``."""
    genres = [["Tide"] if i % 2 == 0 else ["Ember"] for i in range(num_items)]
    return Catalogue(
        pl.DataFrame(
            {
                "item_id": [f"i{i}" for i in range(num_items)],
                "title": [f"Tale {i}" for i in range(num_items)],
                "categories": genres,
            }
        )
    )


def toy_model(
    num_items: int = 12, *, seed: int = 0, backbone: str = "tiny", **head: Any
) -> ReasoningRecommender:
    """Return an untrained recommender in evaluation mode, with weights large enough to differ."""
    model = build_model(
        toy_catalogue(num_items),
        backbone=backbone,
        tiny=TOY_SHAPE.model_copy(update={"init_std": 0.2}),
        head=HeadConfig(**{"dropout": 0.0, "max_history": 8, "least_asked": 1} | head),
        seed=seed,
    )
    if model.readout.gate is not None:
        with torch.no_grad():  # open the gate, so that a test sees both states
            model.readout.gate.fill_(0.5)
    return model.eval()


def toy_verbaliser(model: ReasoningRecommender, dataset: Dataset, **thought: Any) -> Verbaliser:
    """Return a verbaliser over the training graph of a toy data set."""
    graph = InteractionGraph.build(dataset.train, dataset.num_items)
    catalogue = toy_catalogue(dataset.num_items)
    plain = {"num_people": 0, "num_like": 0, "num_weighed": 0}
    return Verbaliser(model.writer, graph, catalogue, ThoughtConfig(**plain | thought))


def talking_toy(
    dataset: Dataset, *, num_steps: int = 40, num_candidates: int = 0, **thought: Any
) -> ReasoningRecommender:
    """Return a toy that has learned for some steps to write, and so to ask, as the verbaliser does,
    and that gives what it finds a share of its belief."""
    model = toy_model(dataset.num_items)
    windows = schedule_windows(
        dataset.train, max_history=8, num_epochs=num_steps, batch_size=8, seed=0
    )
    verbaliser = toy_verbaliser(model, dataset, num_candidates=num_candidates, **thought)
    data = WindowDataset(
        dataset.train, windows, model.writer, verbaliser=verbaliser, num_branches=2,
        propose=proposer(model, num_candidates),
    )  # fmt: skip
    words = SftLossConfig(next_item=0.0, think=0.0, post=0.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for step in range(num_steps):
        loss, _ = sft_loss(model, data.__getitems__(range(step * 8, step * 8 + 8)), words)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert model.pointer is not None
    with torch.no_grad():
        model.pointer.amount.fill_(0.5)
    return model.eval()


def ring_rows(num_users: int, num_items: int, length: int) -> list[list[int]]:
    """Return users who walk along the catalogue from different items on: the next is plus one."""
    return [[(user + step) % num_items for step in range(length)] for user in range(num_users)]


def texts(model: ReasoningRecommender, tokens: Sequence[int]) -> str:
    """Return tokens as text."""
    return str(model.tokenizer.decode(list(tokens)))


def plain_tokenizer(*, size: int = 320) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer as language models have: no title tokens, no padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["History: After Mostly Item: Tale of nothing new"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {},
    "llama": {"tie_word_embeddings": False},
    # windows shorter than a prompt, capped logits and scaled embeddings
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    "granite": {"logits_scaling": 3.0},
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 2},
}
"""Language models of other people's making, toy-sized, and what is special about each."""


def save_backbone(folder: Path, architecture: str) -> Path:
    """Write a randomly initialised causal LM and a tokenizer with a chat template to a folder."""
    tokenizer = plain_tokenizer()
    tokenizer.chat_template = (
        "<s>{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    # some classes of tokenizer add tokens of their own when they are loaded: eight rows to spare
    shape = {
        "vocab_size": len(tokenizer) + 8, "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
        "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(shape | ARCHITECTURES[architecture]))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

"""Any causal LM of a folder, with a tokenizer that knows no titles, walks the same road."""

import numpy as np
import pytest
import torch
from tests.toy_models import TOY_SHAPE, plain_tokenizer, ring_rows, toy_catalogue, toy_verbaliser
from tests.toys import toy_dataset
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from reasonrec.errors import CheckpointError
from reasonrec.models.backbone import build_model
from reasonrec.models.branches import Batch
from reasonrec.models.config import HeadConfig
from reasonrec.models.generation import think
from reasonrec.models.look_ups import look_up_for
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender
from reasonrec.records import Histories
from reasonrec.traces.config import PromptConfig
from reasonrec.traces.prompts import PromptWriter, as_data
from reasonrec.training.config import SftLossConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.losses import sft_loss

N = 12
DATASET = toy_dataset(ring_rows(6, N, 8), [f"Tale {i}" for i in range(N)])
HISTORIES = Histories.from_lists([[1, 2, 3], [], [4, 5]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone")
    tokenizer = plain_tokenizer()
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False,
        initializer_range=0.2, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def build(folder, *, marker="<answer>", **head):
    settings = {"item_rows": "text", "dropout": 0.0, "token_dropout": 0.0, "max_history": 8} | head
    model = build_model(
        toy_catalogue(N), backbone=str(folder), tiny=TOY_SHAPE, head=HeadConfig(**settings), seed=0,
        prompt=PromptConfig(answer_marker=marker),
    )  # fmt: skip
    model.refresh_items()
    return model.eval()


@pytest.mark.parametrize("kind", ["text", "id", "text+id"])
def test_it_ranks_without_a_thought_and_comes_back_from_disk(folder, tmp_path, kind):
    model = build(folder, item_rows=kind)
    assert model.writer.title_token_ids is None
    scores = NoThinkRecommender(model).score(HISTORIES).scores
    assert scores.shape == (3, N)
    assert len(np.unique(scores[0])) == N
    model.save_pretrained(tmp_path)
    loaded = ReasoningRecommender.from_pretrained(tmp_path).cpu()
    assert np.array_equal(NoThinkRecommender(loaded).score(HISTORIES).scores, scores)
    assert loaded.writer.titles == model.writer.titles


def test_the_state_is_read_at_the_end_of_the_prompts_text(folder):
    model = build(folder)
    ids = model.tokenizer.encode("<s>History: [Tale 1] [Tale 2] [Tale 3]", add_special_tokens=False)
    plain = model.backbone(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    expected = model.score_states(plain)
    scores = NoThinkRecommender(model).score(HISTORIES).scores[0]
    torch.testing.assert_close(torch.from_numpy(scores), expected.detach(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["text", "id", "text+id"])
def test_a_step_of_fine_tuning_lowers_its_loss(folder, kind):
    model = build(folder, item_rows=kind)
    windows = schedule_windows(DATASET.train, max_history=8, num_epochs=1, batch_size=6, seed=0)
    verbaliser = toy_verbaliser(model, DATASET, num_lookups=1, num_links=2)
    data = WindowDataset(
        DATASET.train, windows, model.writer, verbaliser=verbaliser, num_branches=2
    )
    batch = data.__getitems__(range(6))
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss, parts = sft_loss(model, batch, SftLossConfig())
        assert {"train/next_item", "train/think", "train/tokens"} <= parts.keys()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    gradient = model.backbone.get_output_embeddings().weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("marker", ["<answer>", "<item-next>"])
def test_it_thinks_asks_and_is_answered_with_titles_of_several_tokens(folder, tmp_path, marker):
    build(folder, marker=marker).save_pretrained(tmp_path)
    model = ReasoningRecommender.from_pretrained(tmp_path)  # which knows the marker
    writer = model.writer
    ids, lengths = writer.item_prompts(["Tale 1."])
    assert model.tokenizer.decode(ids[0, : lengths[0]]) == f"<s>Item: Tale 1.{marker}"
    script = [*writer.encode(" After"), *writer.item_tokens(3), *writer.encode(marker)]
    verbaliser = toy_verbaliser(model, DATASET, num_links=2, reverse_share=0.0)
    spoken = iter(script)
    plain = model.language_logits

    def scripted(states, *_):
        # asked for tokens that are drawn alone, not for those that the graph answers with
        logits = torch.full_like(plain(states, *_), -30.0)
        logits[:, next(spoken)] = 30.0
        return logits

    start = len(writer.encode("<think>"))
    model.language_logits = scripted
    histories = Histories.from_lists([[2, 3]])
    written = think(
        model, writer.prompts(histories), look_up_for(verbaliser, histories),
        max_tokens=120, temperature=0,
    )  # fmt: skip
    said = model.tokenizer.decode(written.token_ids[0, : int(written.lengths[0])])
    assert said == f"<think> After [Tale 3]: [Tale 4] [Tale 5];{marker}"
    assert writer.thought_text(model.tokenizer.encode(said, add_special_tokens=False)) == (
        "After [Tale 3]: [Tale 4] [Tale 5];"
    )
    assert written.named_item.tolist() == [[4, 5]]
    assert not written.is_truncated.any()
    marks = written.is_written[0].tolist()
    assert marks[:start] == [False] * start
    assert sum(marks) == len(script)


def test_what_it_samples_has_the_log_probabilities_of_the_training_pass(folder):
    model = build(folder)
    verbaliser = toy_verbaliser(model, DATASET)
    prompts = model.writer.prompts(HISTORIES)
    written = think(
        model, prompts, look_up_for(verbaliser, HISTORIES), max_tokens=12, group_size=2,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    lengths = torch.from_numpy(prompts.lengths)
    outputs = model(
        Batch(
            torch.from_numpy(prompts.token_ids), lengths,
            branch_ids=written.token_ids.reshape(3, 2, -1),
            branch_lengths=written.lengths.reshape(3, 2),
            branch_at=(lengths - 1)[:, None].expand(3, 2),
            is_written=written.is_written.reshape(3, 2, -1),
        )
    )  # fmt: skip
    torch.testing.assert_close(
        outputs.token_logp.reshape(6, -1), written.token_logp, atol=1e-4, rtol=0
    )
    recommender = ThinkingRecommender(model, verbaliser, max_tokens=12)
    scored = recommender.score(HISTORIES)
    assert scored.scores.shape == (3, N)
    assert np.isfinite(scored.scores).all()


def test_instructions_name_the_marker_and_it_is_no_opening_and_no_text_of_the_catalogue():
    tokenizer = plain_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}\n"
    marked = PromptConfig(chat=True, answer_marker="<done>")
    writer = PromptWriter(tokenizer, ["Tale"], prompt=marked)
    text = tokenizer.decode(writer.prefix)
    assert "End your thoughts with <done>." in text and "<answer>" not in text
    assert as_data("a <done> tale") == "a (done) tale"
    for wrong in ("<think>", "done", "<two words>"):
        with pytest.raises(ValueError, match="answer_marker"):
            PromptConfig(answer_marker=wrong)


def test_a_backbone_that_is_none_is_a_stated_error(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(CheckpointError, match="the backbone must be 'tiny', or a folder"):
        build(tmp_path)

import numpy as np
import polars as pl
import pytest
import torch
from tests.toy_models import TOY_SHAPE, toy_model

from reasonrec.data.dataset import Catalogue, InteractionLog
from reasonrec.errors import CheckpointError
from reasonrec.models import reasoning_recommender
from reasonrec.models.backbone import build_model, item_texts, popularity_words
from reasonrec.models.branches import Batch
from reasonrec.models.config import HeadConfig
from reasonrec.models.reasoning_recommender import ReasoningRecommender
from reasonrec.models.rec_head import GatedReadout, first_places, score_catalogue
from reasonrec.models.recommenders import NoThinkRecommender
from reasonrec.records import Histories
from reasonrec.traces.config import PromptConfig
from reasonrec.traces.prompts import PROMPT_VERSION


def test_scores_are_inner_products_over_temperature():
    state = torch.tensor([[1.0, 2.0]])
    rows = torch.tensor([[3.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    # 1*3 + 2*0, 2*-1, 1 + 2; all over 0.5
    torch.testing.assert_close(
        score_catalogue(state, rows, temperature=0.5), torch.tensor([[6.0, -4.0, 6.0]])
    )


def test_cosine_ignores_length():
    state = torch.tensor([[3.0, 4.0]])
    rows = torch.tensor([[6.0, 8.0], [-4.0, 3.0]])
    torch.testing.assert_close(
        score_catalogue(state, rows, similarity="cosine"), torch.tensor([[1.0, 0.0]])
    )


def test_half_precision_states_still_give_float32_scores_that_do_not_collapse():
    # the official code scores in bfloat16: of 10,000 items, 43 distinct scores
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(1, 64, generator=generator).bfloat16()
    rows = torch.randn(10_000, 64, generator=generator).bfloat16()
    scores = score_catalogue(state, rows, similarity="cosine", temperature=0.02)
    assert scores.dtype == torch.float32
    assert len(scores.unique()) > 9_900
    assert len(scores.bfloat16().unique()) < 2_000


def test_scoring_refuses_another_width_and_a_temperature_of_zero():
    with pytest.raises(ValueError, match="same width; got 3 and 2"):
        score_catalogue(torch.ones(1, 3), torch.ones(4, 2))
    with pytest.raises(ValueError, match="temperature must be above 0; got 0"):
        score_catalogue(torch.ones(1, 2), torch.ones(4, 2), temperature=0)


def test_the_gate_starts_at_the_state_before_the_thought():
    pre, post = torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, -2.0]])
    readout = GatedReadout(2)
    assert readout(pre, post).tolist() == pre.tolist()
    with torch.no_grad():
        readout.gate[0] = 0.5
    assert readout(pre, post).tolist() == [[3.0, 2.0]]  # half way in the first dimension only
    assert GatedReadout(2, gated=False)(pre, post).tolist() == post.tolist()


def test_an_item_that_is_found_again_stands_where_it_was_found_first():
    found = torch.tensor([[7, 2, 7, -1, 2, 7, -1], [0, 1, 2, 3, 4, 5, 6]])
    assert first_places(found).tolist() == [[0, 1, 0, 3, 1, 0, 3], [0, 1, 2, 3, 4, 5, 6]]
    many = torch.randint(-1, 20, (5, 3, 40), generator=torch.Generator().manual_seed(0))
    pairs = (many[..., :, None] == many[..., None, :]).to(torch.uint8)  # the slow obvious way
    assert torch.equal(first_places(many), pairs.argmax(-1))


def test_rows_of_title_tokens_are_the_input_embeddings():
    model = toy_model(num_items=5)
    embeddings = model.backbone.get_input_embeddings().weight
    tokens = [model.tokenizer.encode(f" [Tale {i}]", add_special_tokens=False) for i in range(5)]
    assert all(len(token) == 1 for token in tokens)
    torch.testing.assert_close(model.item_rows(), embeddings[[token[0] for token in tokens]])


def asking(model, histories, next_item) -> Batch:
    """Return a batch that asks for the items after histories of one item."""
    prompts = model.writer.prompts(Histories.from_lists(histories))
    return Batch(
        torch.from_numpy(prompts.token_ids), torch.from_numpy(prompts.lengths),
        item_ends=torch.from_numpy(prompts.item_ends), next_item=torch.tensor(next_item),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["text", "text+id"])
def test_rows_from_text_are_the_state_at_the_answer_marker_and_carry_gradient(kind):
    model = toy_model(num_items=4, item_rows=kind)
    model.refresh_items()
    ids = model.tokenizer.encode("<s>Item: Tale 2. Tide.<answer>", add_special_tokens=False)
    plain = model.backbone(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
    torch.testing.assert_close(model.item_rows()[2], plain, atol=1e-5, rtol=0)
    model(asking(model, [[1], [3]], [[-100, 2], [-100, 0]])).next_item_logp.sum().backward()
    only_in_item_text = model.tokenizer.encode("Item", add_special_tokens=False)[0]
    gradient = model.backbone.get_input_embeddings().weight.grad
    assert gradient[only_in_item_text].abs().sum() > 0


def test_rows_from_texts_of_many_lengths_are_those_that_each_has_alone(monkeypatch):
    monkeypatch.setattr(reasoning_recommender, "TEXTS_AT_ONCE", 3)
    model = toy_model(num_items=8, item_rows="text")
    model.item_texts = [" ".join(["wave"] * (5 * n % 8 + 1)) for n in range(8)]
    asked = torch.tensor([6, 0, 3, 7, 1, 5, 2])
    with torch.no_grad():
        alone = torch.cat([model.encode_items(item[None]) for item in asked])
        torch.testing.assert_close(model.encode_items(asked), alone, atol=1e-6, rtol=0)
    assert len(alone.unique(dim=0)) == 7


def test_rows_are_read_from_as_many_words_of_a_description_as_are_asked_for():
    table = pl.DataFrame({
        "item_id": ["a", "b"], "title": ["Pen", "Ink"], "categories": [["Office"], None],
        "description": ["one two three four", None],
    })  # fmt: skip
    model = build_model(
        Catalogue(table), backbone="tiny", tiny=TOY_SHAPE, seed=0,
        head=HeadConfig(item_rows="text", text_words=3),
    )  # fmt: skip
    assert model.item_texts == ["Pen. Office. one two three", "Ink."]
    assert item_texts(Catalogue(table), ["Pen", "Ink"], num_words=0) == ["Pen. Office.", "Ink."]


def log_of(user, item, rating):
    rating = None if rating is None else np.array(rating, np.float32)
    return InteractionLog(np.array(user, np.int32), np.array(item, np.int32), 3, rating=rating)


def test_how_many_took_an_item_and_how_they_rated_it():
    none = float("nan")
    # item 0: persons 0, twice, and 2; (5 + 4 + 4) / 3. Item 1: one of two rated it. Item 2: nobody
    log = log_of([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 3, 0], [5, 4, none, 2, none, 4])
    told = ["Taken by 2, rated 4.3 on average.", "Taken by 2, rated 2.0 on average.", ""]
    assert popularity_words(log, 5) == [*told, "Taken by 1.", ""]
    silent = log_of(log.user_index, log.item_index, None)
    assert popularity_words(silent, 5) == ["Taken by 2.", "Taken by 2.", "", "Taken by 1.", ""]


def test_popularity_stands_in_the_text_of_a_row_before_the_description_and_nowhere_else():
    table = pl.DataFrame({
        "item_id": ["a", "b"], "title": ["Pen", "Ink"], "categories": [["Office"], None],
        "description": ["one two three four", None],
    })  # fmt: skip
    log = log_of([0, 1], [0, 0], [4, 3])

    def built(**prompt):
        return build_model(
            Catalogue(table), backbone="tiny", tiny=TOY_SHAPE, seed=0, train=log,
            head=HeadConfig(item_rows="text", text_words=3), prompt=PromptConfig(**prompt),
        )  # fmt: skip

    told, silent = built(item_popularity=True), built()
    assert told.item_texts == [
        "Pen. Office. Taken by 2, rated 3.5 on average. one two three", "Ink.",
    ]  # fmt: skip
    assert silent.item_texts == ["Pen. Office. one two three", "Ink."]
    # the tokens of the tiny model, and the words that its titles start from, know nothing of it
    assert told.tokenizer.get_vocab() == silent.tokenizer.get_vocab()
    weights = silent.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in told.state_dict().items())
    with pytest.raises(ValueError, match=r"item_popularity needs the training log"):
        build_model(
            Catalogue(table), backbone="tiny", tiny=TOY_SHAPE, seed=0, head=HeadConfig(),
            prompt=PromptConfig(item_popularity=True),
        )  # fmt: skip


def test_of_many_targets_as_many_as_asked_for_are_encoded_anew_each_in_its_turn():
    model = toy_model(item_rows="text")
    model.refresh_items()
    next_item = torch.tensor([[4, 0, 2], [3, -1, 2]])  # four targets
    batch = Batch(
        trunk_ids=torch.zeros(2, 3, dtype=torch.long), trunk_lengths=torch.full((2,), 3),
        next_item=next_item,
    )  # fmt: skip
    turns = []
    for _ in range(4):
        found = model.encode_labels(batch, 3)
        assert found is not None and found[1].requires_grad
        turns.append(found[0].tolist())
        model.item_table.steps_since_refresh += 1
    assert turns == [[0, 2, 3], [0, 2, 4], [0, 3, 4], [2, 3, 4]]
    for most in (None, 4, 9):
        found = model.encode_labels(batch, most)
        assert found is not None and found[0].tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("kind", ["text", "text+id"])
def test_a_loss_sees_rows_of_todays_weights_alone(kind):
    model = toy_model(num_items=6, item_rows=kind, live_rows=3)
    model.refresh_items()
    batch = asking(model, [[1], [3], [1], [5]], [[-100, 2], [-100, 0], [-100, 4], [-100, 5]])
    outputs = model(batch)
    # in their turn 0, 2 and 4 of the four are live; the place that asks for 5 is left out
    assert outputs.is_live.nonzero()[:, 0].tolist() == [0, 2, 4]
    with torch.no_grad():
        hidden, _ = model.hidden_states(batch)
        states = torch.stack([hidden[row, end] for row, end in enumerate(batch.item_ends[:, 1])])
        wanted = model.score_states(states)[:3, [0, 2, 4]].log_softmax(-1)
    torch.testing.assert_close(outputs.next_item_logp, wanted[[0, 1, 2], [1, 0, 2]])
    # what the table held of old makes no difference
    model.item_table.encoded[[1, 3, 5]] = 100 * torch.randn(3, 16)
    torch.testing.assert_close(model(batch).next_item_logp, outputs.next_item_logp)
    outputs = model(Batch(**vars(batch) | {"target": torch.tensor([[5], [5], [-100], [1]])}))
    assert outputs.is_live.nonzero()[:, 0].tolist() == [0, 1, 5]  # what thoughts lead to goes first
    with torch.no_grad():
        assert len(model(batch).next_item_logp) == 4  # nothing is trained: the whole catalogue


def test_rows_that_are_kept_are_read_without_dropout():
    model = toy_model(num_items=4, item_rows="text", dropout=0.5, token_dropout=0.3).train()
    model.refresh_items()
    rows = model.item_table.encoded.clone()
    model(asking(model, [[1], [3]], [[-100, 2], [-100, 0]]))
    torch.testing.assert_close(model.item_table.encoded, rows)


@pytest.mark.parametrize("item_rows", ["text", "text+id"])
def test_rows_kept_in_half_precision_are_rounded_and_scored_in_float32(item_rows, tmp_path):
    whole = toy_model(item_rows=item_rows)
    half = toy_model(item_rows=item_rows, table_dtype="bfloat16")
    for model in (whole, half):
        model.refresh_items()
    assert half.item_table.encoded.dtype == torch.bfloat16
    rounded = whole.item_table.encoded.bfloat16()  # the same backbone: the same rows
    assert torch.equal(half.item_table.encoded, rounded)
    states = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    scores = half.score_states(states)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, states @ rounded.float().T)
    # rows just encoded for a loss are not rounded
    index = torch.tensor([3, 5])
    live = half.item_rows((index, half.encode_items(index)))
    torch.testing.assert_close(live[index], whole.item_rows()[index])
    half.save_pretrained(tmp_path)
    again = ReasoningRecommender.from_pretrained(tmp_path).cpu()
    assert torch.equal(again.item_table.encoded, rounded)
    assert torch.equal(again.score_states(states), scores)


@pytest.mark.parametrize("kind", ["id", "text", "text+id"])
def test_saved_and_loaded_models_rank_alike(tmp_path, kind):
    model = toy_model(num_items=6, item_rows=kind)
    model.refresh_items()
    histories = Histories.from_lists([[0, 1], [], [5, 4, 3]])
    model.save_pretrained(tmp_path / "model")
    loaded = ReasoningRecommender.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(
        torch.from_numpy(NoThinkRecommender(loaded).score(histories).scores),
        torch.from_numpy(NoThinkRecommender(model).score(histories).scores),
    )
    assert not list((tmp_path / "model").rglob("*.bin"))
    assert loaded.item_ids == model.item_ids


def test_a_model_of_another_prompt_version_is_refused(tmp_path):
    model = toy_model(num_items=3)
    model.save_pretrained(tmp_path)
    about = tmp_path / "reasonrec.json"
    about.write_text(about.read_text().replace(f'_version": "{PROMPT_VERSION}"', '_version": "0"'))
    with pytest.raises(CheckpointError, match="prompt version 0"):
        ReasoningRecommender.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="folder of a saved model"):
        ReasoningRecommender.from_pretrained(tmp_path / "nowhere")


def test_a_rows_scores_do_not_depend_on_the_other_rows():
    model = toy_model(num_items=9)
    rows = [[1, 2, 3], [], [8] * 12, [4]]
    together = NoThinkRecommender(model).score(Histories.from_lists(rows)).scores
    for b, row in enumerate(rows):
        alone = NoThinkRecommender(model).score(Histories.from_lists([row])).scores
        torch.testing.assert_close(
            torch.from_numpy(alone[0]), torch.from_numpy(together[b]), atol=1e-5, rtol=0
        )

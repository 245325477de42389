"""A language model that reads a question, thinks and answers: packing, sampling, probabilities."""

import numpy as np
import pytest
import torch
from tests.toy_models import TOY_SHAPE, plain_tokenizer, toy_model
from tests.toy_traces import TITLES, hand_question

from reasonrec.models.answers import (
    AnsweringModel,
    CopyingModel,
    answer_log_probs,
    prompts_of,
    with_words_of,
    write,
)
from reasonrec.models.answers import next_logp as next_logp_of
from reasonrec.models.config import HeadConfig
from reasonrec.models.copying import TitleCopier
from reasonrec.models.text_batch import TextBatch, choices_of, text_batch
from reasonrec.models.tiny.backbone import build_tiny_backbone
from reasonrec.traces.interaction_of_thought import student_prompt
from reasonrec.traces.prompts import ANSWER, THINK
from reasonrec.traces.recital import Recital
from reasonrec.training.reasoned import PackedTexts, ReasonedText, reasoned_loss


def answering(num_items: int = 12, seed: int = 0) -> AnsweringModel:
    texts = ["Chain 1: user, @1 (6 shared, usual 3.0). So it is the likeliest."] * 20
    return with_words_of(
        toy_model(num_items, seed=seed), texts, vocab_size=300, dropout=0.0, seed=0,
        kind=CopyingModel,
    ).eval()  # fmt: skip


def foreign() -> AnsweringModel:
    """Return a model whose tokenizer cuts titles to pieces."""
    tokenizer = plain_tokenizer()
    shape = TOY_SHAPE.model_copy(update={"init_std": 0.2})
    backbone = build_tiny_backbone(shape, tokenizer, seed=0)
    return AnsweringModel(
        backbone, tokenizer, list(TITLES), HeadConfig(dropout=0.0), None, None
    ).eval()


def next_logp(model: AnsweringModel, tokens: list[int]) -> torch.Tensor:
    """Return log-probabilities of what follows every token, each token asked about by itself."""
    with torch.no_grad():
        ids = torch.tensor([tokens])
        place = torch.arange(len(tokens))[None]
        hidden = model.run_backbone(model.embed(ids)).last_hidden_state
        batch = TextBatch.of_words(ids, place, torch.ones(1, len(tokens)))
        asked = torch.ones(1, len(tokens), dtype=torch.bool)
        return model.following_logp(batch, hidden, asked)


def test_one_pass_says_what_follows_each_text():
    model = answering()
    assert isinstance(model.copier, TitleCopier)
    texts = [model.prompt_tokens(text) for text in ("So [Tale 1] it is", "[Tale 2] 4 [Tale 3]")]
    found = next_logp_of(model, texts)
    for row, text in zip(found, texts, strict=True):
        torch.testing.assert_close(row, next_logp(model, text)[-1], atol=1e-4, rtol=1e-4)


def test_packed_texts_have_the_loss_of_each_alone():
    model = answering()
    rng = np.random.default_rng(0)
    texts = [
        ReasonedText(rng.integers(10, 200, n), p, n - 2, np.zeros(n, bool))
        for n, p in ((9, 3), (14, 6), (7, 2))
    ]
    for text in texts:  # titles to copy, within the text and not beyond it
        text.token_ids[[1, -1]] = model.writer.item_tokens(1) + model.writer.item_tokens(2)
    packed = PackedTexts(
        texts, num_epochs=1, tokens_per_row=24, batch_size=2, answer_weight=3.0, pad_id=0, seed=0
    )
    assert sorted(n for row in packed.rows for n in row) == [0, 1, 2]
    assert len(packed) == 2  # 9 + 14 or 14 + 7 share a row of 24 tokens, never all three (30)
    loss, _ = reasoned_loss(model, packed.__getitems__([0, 1]))
    total = weights = 0.0
    for text in texts:
        alone, _, _ = model(text_batch([(text.token_ids.tolist(), text.num_prompt)], 0))
        weight = torch.ones(len(text.token_ids))
        weight[text.answer_at :] = 3.0
        total += float((alone[0] * weight).sum().detach())
        weights += float(weight[text.num_prompt :].sum())
    assert float(loss.detach()) == pytest.approx(-total / weights, rel=1e-5)


def test_the_prompt_and_what_is_recited_are_masked_and_the_answer_weighs_more():
    text = ReasonedText(np.arange(20, 28), 3, 6, np.arange(8) == 4)
    packed = PackedTexts(
        [text], num_epochs=1, tokens_per_row=8, batch_size=1, answer_weight=5.0, pad_id=0, seed=0
    )
    assert packed[0]["weight"].tolist() == [[0, 0, 0, 1, 0, 1, 5, 5]]


def test_what_an_answer_is_chosen_from_is_what_could_still_become_another_one():
    answers = [[1, 2, 3], [1, 2, 4, 5], [6], [1, 2]]
    assert choices_of(answers, [1, 2, 4, 5], 9) == [(0, [1, 6]), (2, [4, 3, 9])]
    assert choices_of(answers, [1, 2], 9) == [(0, [1, 6]), (2, [9, 3, 4])]
    assert choices_of(answers, [6], 9) == [(0, [6, 1])]
    assert choices_of([[7, 8]], [7, 8], 9) == []  # the only answer is no choice
    # whatever the tokens, an answer's choices are what tells it from the others: shares add up to 1
    chances = 0.0
    for answer in answers:
        chance = 1.0
        for _, ids in choices_of(answers, answer, 9):
            chance /= len(ids)
        chances += chance
    assert chances == pytest.approx(1.0)


def test_a_choice_is_learned_among_what_is_offered_and_moves_nothing_else():
    model = answering().train()
    offered = [model.writer.item_tokens(n)[0] for n in (3, 1, 5)]  # the right one first
    left_out = model.writer.item_tokens(4)[0]
    prompt = model.prompt_tokens("History: [Tale 0] 4. Question: which of")
    text = [*prompt, *model.writer.encode(ANSWER), offered[0], model.end_token]
    at = len(text) - 2
    learned = ReasonedText(
        np.array(text), len(prompt), at, np.zeros(len(text), bool), choices=[(at, offered)]
    )
    rows = PackedTexts(
        [learned, learned], num_epochs=1, tokens_per_row=2 * len(text), batch_size=1,
        answer_weight=4.0, pad_id=0, seed=0,
    )[0]  # fmt: skip
    # both in one row: two choices, each at its place behind the other text
    assert rows["choice_at"].tolist() == [[at, len(text) + at]]
    assert rows["choice_ids"].tolist() == [[offered, offered]]
    assert rows["weight"].unique().tolist() == [0.0, 1.0]  # as words, they count like others
    words = model(text_batch([(text, len(prompt))], 0))[0].sum().item()
    logp = next_logp(model, text)[at - 1]
    choice = logp[offered].log_softmax(-1)[0].item()
    loss, parts = reasoned_loss(model, rows)
    assert parts["sft/answer_logp"] == pytest.approx(choice, rel=1e-4)
    num_words = len(text) - len(prompt)
    expected = -(words + 4.0 * choice) / (num_words + 4.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    rows["weight"][:] = 0.0  # the choice alone
    embeddings = model.backbone.get_input_embeddings().weight
    (moved,) = torch.autograd.grad(reasoned_loss(model, rows)[0], embeddings)
    assert moved[left_out].abs().max().item() < 1e-6 * moved[offered[1]].abs().max().item()


def test_a_trained_prefix_is_the_prompt_that_is_served():
    model = answering()
    prompt = model.prompt_tokens("History: [Tale 1] 4. Question: [Tale 2]")
    reply, at, _ = model.reply_tokens("So it is [Tale 1].", " 4")
    served = [
        model.tokenizer.bos_token_id,
        *model.writer.encode("History: [Tale 1] 4. Question: [Tale 2]"),
    ]
    assert prompt == [*served, *model.writer.encode(THINK)]
    assert model.tokenizer.decode(reply[:at]) == f" So it is [Tale 1].{ANSWER}"
    assert reply[-1] == model.end_token


@pytest.mark.parametrize("build", [answering, foreign])
def test_greedy_thoughts_are_the_likeliest_tokens_of_a_plain_pass(build):
    model = build()
    prompts = [model.prompt_tokens(text) for text in ("History: nothing.", "So [Tale 1] it is so")]
    written = write(model, prompts, max_tokens=6, max_answer_tokens=3)
    marker = model.writer.encode(ANSWER)
    for r, prompt in enumerate(prompts):
        length = int(written.lengths[r])
        tokens = [*prompt, *written.token_ids[r, :length].tolist()]
        with torch.no_grad():
            logp = next_logp(model, tokens)
        for step in range(length):
            if bool(written.is_written[r, step]):
                place = len(prompt) + step
                assert tokens[place] == int(logp[place - 1].argmax())
                assert float(written.token_logp[r, step]) == pytest.approx(
                    float(logp[place - 1, tokens[place]]), abs=1e-4
                )
        end = int(written.answer_at[r])
        assert tokens[len(prompt) + end - len(marker) : len(prompt) + end] == marker
        torch.testing.assert_close(
            written.marker_logp[r].exp(), logp[len(prompt) + end - 1].exp(), atol=1e-4, rtol=1e-4
        )


def test_a_thought_without_an_end_is_cut_and_the_marker_is_forced():
    model = answering()
    written = write(model, [model.prompt_tokens("History: nothing.")], max_tokens=4)
    # nothing trained ever writes the marker: four tokens, then the marker, which was not drawn
    assert written.is_truncated.tolist() == [True]
    assert written.is_written.tolist() == [[True] * 4 + [False]]
    assert written.answer_at.tolist() == written.lengths.tolist() == [5]
    silent = write(model, [model.prompt_tokens("History: nothing.")], max_tokens=0)
    assert silent.token_ids.tolist() == [model.writer.encode(ANSWER)]


def test_samples_do_not_depend_on_a_row_that_ends_early():
    model = answering()
    prompts = [model.prompt_tokens("History: nothing.")]
    generator = torch.Generator().manual_seed(1)
    many = write(
        model, prompts, max_tokens=30, group_size=6, temperature=1.5, generator=generator,
        max_answer_tokens=4,
    )  # fmt: skip
    assert len({tuple(row.tolist()) for row in many.token_ids}) > 1
    texts = [([*prompts[0], *many.token_ids[r, : int(many.lengths[r])].tolist()], len(prompts[0]))
             for r in range(6)]  # fmt: skip
    with torch.no_grad():
        logp, _, _ = model(text_batch(texts, model.writer.pad_id))
    for r in range(6):
        length = int(many.lengths[r])
        drawn = many.is_written[r, :length]
        own = logp[r, len(prompts[0]) : len(prompts[0]) + length]
        torch.testing.assert_close(
            many.token_logp[r, :length][drawn], own[drawn], atol=1e-4, rtol=1e-4
        )
    with pytest.raises(ValueError, match="needs a generator"):
        write(model, prompts, max_tokens=4, temperature=1.0)


@pytest.mark.parametrize("task", ["rated", "likes"])
def test_answer_probabilities_are_those_of_every_answer_read_out(task):
    question = hand_question(task=task)
    for model in (answering(), foreign()):
        prefix = [*model.prompt_tokens(student_prompt(question)), *model.writer.encode(ANSWER)]
        with torch.no_grad():
            logp = next_logp(model, prefix)
        [found] = answer_log_probs(model, [question], [prefix], logp[-1:])
        assert np.exp(found).sum() == pytest.approx(1.0, abs=1e-5)
        answers = model.answer_tokens(question)
        ends = [] if all(len(a) == 1 for a in answers) else [model.end_token]
        sums = []
        for answer in answers:
            text = ([*prefix, *answer, *ends], len(prefix))
            with torch.no_grad():
                sums.append(float(model(text_batch([text], 0))[0].sum()))
        expected = torch.tensor(sums).log_softmax(0)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_new_words_leave_titles_and_known_pieces_as_they_were(tmp_path):
    old = toy_model(12)
    new = with_words_of(old, ["chains close on it"] * 50, vocab_size=310, dropout=0.2, seed=0)
    vectors, vocabulary = new.backbone.get_input_embeddings().weight, old.tokenizer.get_vocab()
    again = toy_model(12).backbone.get_input_embeddings().weight
    for title in (" [Tale 3]", "<answer>", "e"):
        torch.testing.assert_close(
            vectors[new.tokenizer.get_vocab()[title]], again[vocabulary[title]]
        )
    assert len(new.writer.encode(" chains close")) < len(old.writer.encode(" chains close"))
    assert new.writer.title_token_ids is not None
    new.save_pretrained(tmp_path)
    loaded = AnsweringModel.from_pretrained(tmp_path).cpu()
    assert isinstance(loaded, AnsweringModel)
    batch = TextBatch.of_words(torch.tensor([[5, 9, 11]]), torch.arange(3)[None], torch.ones(1, 3))
    torch.testing.assert_close(loaded(batch)[0], new.eval()(batch)[0])


def test_a_model_without_title_tokens_keeps_its_tokenizer():
    catalogue_model = foreign()
    kept = with_words_of(catalogue_model, ["words"], vocab_size=500, dropout=0.0, seed=0)
    assert kept.tokenizer is catalogue_model.tokenizer
    question = hand_question(task="likes")
    assert prompts_of(kept, [question])[0][-1] == kept.writer.encode(THINK)[-1]


def test_a_turn_that_ends_in_the_middle_of_a_thought_is_answered():
    model = answering()
    model.copier = None
    prompt = model.prompt_tokens("So [Tale 1] it is")
    with torch.no_grad():  # the end is what follows the prompt
        ids = torch.tensor([prompt])
        state = model.run_backbone(model.embed(ids)).last_hidden_state[0, -1]
        model.backbone.get_output_embeddings().weight[model.end_token] = 100 * state
    assert int(next_logp(model, prompt)[-1].argmax()) == model.end_token
    written = write(model, [prompt], max_tokens=8)
    assert written.token_ids[0].tolist() == model.writer.encode(ANSWER)
    assert written.is_truncated.tolist() == [True]
    assert not written.is_written.any()


def test_what_is_recited_follows_its_cue_once_and_is_not_drawn():
    model = answering()
    encode = model.writer.encode
    cue, words, more = encode(" Chain 1:"), encode(" [Tale 3] [Tale 4]"), encode(" so")
    script = [*cue, *more, *cue, *encode(ANSWER)]
    prompts = [model.prompt_tokens("History: [Tale 1]")]
    marker = encode(ANSWER)

    def written(**more_of):
        spoken = iter(script)

        def scripted(states):
            logits = torch.full((len(states), len(model.tokenizer)), -30.0)
            logits[:, next(spoken, marker[0])] = 30.0
            return logits

        model.token_logits = lambda states: heard(states, scripted)
        return write(model, prompts, **more_of)

    asked = []

    def heard(states, scripted):
        asked.append(len(asked))
        return scripted(states)

    recital = [[(cue, words)]]
    # the model is asked at every step; where words are recited, what it says is not heard
    script[len(cue) : len(cue)] = [more[0]] * len(words)
    script.insert(0, more[0])  # the width of the head is asked for first
    found = written(max_tokens=60, recitals=recital)
    length = int(found.lengths[0])
    expected = [*cue, *words, *more, *cue, *marker]
    assert found.token_ids[0, :length].tolist() == expected
    is_written = [True] * len(cue) + [False] * len(words) + [True] * (length - len(cue + words))
    assert found.is_written[0, :length].tolist() == is_written
    assert (found.token_logp[0, len(cue) : len(cue) + len(words)] == 0).all()
    assert not found.is_truncated.any()
    # where there is no room, the thought ends
    short = written(max_tokens=len(cue) + 1, recitals=recital)
    assert short.token_ids[0, : int(short.lengths[0])].tolist() == [*cue, *marker]
    assert short.is_truncated.all()


def test_recited_tokens_are_marked_in_what_is_learned():
    model = answering()
    told = [Recital(" Chain 1:", " [Tale 3],")]
    tokens, at, is_recited = model.reply_tokens("Chain 1: [Tale 3], so.", " [Tale 5]", told)
    assert model.tokenizer.decode(np.array(tokens)[np.array(is_recited)]) == " [Tale 3],"
    assert model.tokenizer.decode(tokens[:at]) == f" Chain 1: [Tale 3], so.{ANSWER}"
    assert len(is_recited) == len(tokens)

import dataclasses

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, talking_toy, texts, toy_catalogue, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.models import reasoning_recommender
from reasonrec.models.branches import Batch
from reasonrec.models.generation import think
from reasonrec.models.language_head import backbone_logits
from reasonrec.models.look_ups import look_up_for
from reasonrec.models.recommenders import ThinkingRecommender
from reasonrec.records import Found, FoundItems, Histories, Link, Lookup
from reasonrec.traces.config import ThoughtConfig
from reasonrec.traces.prompts import EVERYTHING, SOMEBODY, TASTE
from reasonrec.traces.verbaliser import Verbaliser


def _histories():
    return Histories.from_lists([[1, 2, 3], [7], [4, 5, 6, 7, 8]])


def _always(item):
    """A graph that answers every question with one item."""
    return lambda rows, items, _: [Lookup(via, (Link(item, 1.0, 1, 0),)) for via in items]


def _generate(model, look_up=None, *, G=4, temperature=1.0, top_k=0, max_tokens=10, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return think(
        model, model.writer.prompts(_histories()), look_up,
        max_tokens=max_tokens, group_size=G, temperature=temperature, top_k=top_k,
        generator=generator,
    )  # fmt: skip


@torch.no_grad()
def _one_by_one(model, look_up, *, G, temperature, top_k, max_tokens, seed):
    """The slow obvious way: every token of every thought from a pass over all before it."""
    writer, prompts = model.writer, model.writer.prompts(_histories())
    generator = torch.Generator().manual_seed(seed)
    num_rows, limit = 3 * G, len(writer.opening) + max_tokens
    answer = writer.encode("<answer>")
    uniform = [torch.rand((num_rows, 1), generator=generator) for _ in range(limit + len(answer))]
    thoughts, marks, logps = [], [], []
    for r in range(num_rows):
        prompt = prompts.token_ids[r // G, : prompts.lengths[r // G]].tolist()
        tokens, written, logp = list(writer.opening), [], []
        queue, is_forced = [], False
        while tokens[-len(answer) :] != answer or queue:
            if len(tokens) >= limit and not is_forced:
                queue, is_forced = list(answer), True
            if queue:
                tokens.append(queue.pop(0))
                continue
            states = model.run_backbone(
                model.embed(torch.tensor([prompt + tokens])), use_cache=False
            ).last_hidden_state[:, -1]
            own = [tokens[s] for s in written] or [writer.pad_id]
            logits = model.language_logits(
                states, torch.tensor([prompt]), torch.tensor([own]), torch.tensor([tokens[-1]])
            )[0]
            if top_k:
                logits[logits < logits.sort(descending=True).values[top_k - 1]] = -torch.inf
            if temperature == 0:
                token = int(logits.argmax())
            else:
                logits = logits / temperature
                cumulative = logits.softmax(-1).cumsum(-1)
                token = int((cumulative <= uniform[len(tokens) - 1][r]).sum())
            written.append(len(tokens))
            logp.append(float(logits.log_softmax(-1)[token]))
            tokens.append(token)
            item = writer.asked_about(texts(model, tokens))
            if look_up is not None and token in writer.asking_tokens and item is not None:
                (found,) = look_up([r // G], [item], [0])
                queue, _ = writer.lookup_tokens(found)
        thoughts.append(tokens)
        marks.append(written)
        logps.append(logp)
    return thoughts, marks, logps


def _answers(rows, items, places):
    """A graph that answers with nothing, one item or two."""
    return [
        Lookup(
            i,
            tuple(Link((i + k + 1) % 12, 1.0, 1, 0) for k in range(i % 3)),
            like=tuple(Link((i + k + 5) % 12, 0.5, 0, -1) for k in range(i % 2)),
            also=FoundItems.of([Found(i, 1.0, 3)]),
        )
        for i in items
    ]


@pytest.mark.parametrize(
    ("temperature", "top_k", "max_tokens"),
    [(0.0, 0, 24), (1.0, 0, 120), (1.3, 0, 5), (1.5, 4, 24)],
)
def test_thoughts_read_in_pieces_are_those_read_one_token_at_a_time(temperature, top_k, max_tokens):
    model = toy_model()
    titles = model.writer.title_token_ids.tolist()
    with torch.no_grad():  # a head that wants to ask, so that thoughts fall out of step
        wanted = [*titles, *model.writer.encode(" After"), *model.writer.encode("<answer>")]
        model.backbone.get_input_embeddings().weight[wanted] *= 3
    given = {
        "G": 4, "temperature": temperature, "top_k": top_k, "max_tokens": max_tokens, "seed": 6
    }  # fmt: skip
    written = _generate(model, _answers, **given)
    thoughts, marks, logps = _one_by_one(model, _answers, **given)
    if temperature == 1.0:
        assert len({len(tokens) for tokens in thoughts}) > 2
        assert max(map(len, written.evidence)) > 1
    for r in range(12):
        length = int(written.lengths[r])
        assert written.token_ids[r, :length].tolist() == thoughts[r]
        assert written.is_written[r].nonzero()[:, 0].tolist() == marks[r]
        found = written.token_logp[r][written.is_written[r]]
        torch.testing.assert_close(found, torch.tensor(logps[r]), atol=1e-4, rtol=0)
        kept = length - len(model.writer.encode("<answer>"))  # what was cut off is not found
        closing = {*titles, model.writer.encode(";")[0]}
        for at in written.named_at[r][written.named_item[r] >= 0].tolist():
            assert at < kept
            assert thoughts[r][at] in closing


def test_the_token_head_is_applied_to_drawn_tokens_alone(monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    rows: list[int] = []

    def counted(backbone, states, *rest):
        rows.append(len(states))
        return backbone_logits(backbone, states, *rest)

    monkeypatch.setattr(reasoning_recommender, "backbone_logits", counted)
    written = _generate(model, _always(0), max_tokens=20)
    assert sum(rows) == int(written.is_written.sum())
    rows.clear()
    batch = _as_batch(model, written, G=4)
    model(batch)
    assert sum(rows) == int(written.is_written.sum())


def _as_batch(model, written, G):
    prompts = model.writer.prompts(_histories())
    lengths = torch.from_numpy(prompts.lengths)
    return Batch(
        torch.from_numpy(prompts.token_ids), lengths,
        branch_ids=written.token_ids.reshape(3, G, -1),
        branch_lengths=written.lengths.reshape(3, G),
        branch_at=(lengths - 1)[:, None].expand(3, G),
        is_written=written.is_written.reshape(3, G, -1),
    )  # fmt: skip


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_sampled_log_probabilities_and_states_are_those_of_the_training_pass(pooling):
    model = toy_model(pooling=pooling)
    written = _generate(model, _always(0))
    outputs = model(_as_batch(model, written, G=4))
    torch.testing.assert_close(
        outputs.token_logp.reshape(12, -1), written.token_logp, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        outputs.post_states.reshape(12, -1), written.post_states, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        outputs.pre_states.reshape(12, -1), written.pre_states, atol=1e-4, rtol=0
    )


def test_rollouts_come_from_the_weights_as_they_are_after_an_update():
    # the official code sent the base weights to its sampler
    model = toy_model()
    before = _generate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5))
            )
    after = _generate(model)
    assert not torch.equal(before.token_ids, after.token_ids)
    outputs = model(_as_batch(model, after, G=4))
    torch.testing.assert_close(
        outputs.token_logp.reshape(12, -1), after.token_logp, atol=1e-4, rtol=0
    )


def test_every_thought_opens_closes_and_says_what_it_wrote():
    model = toy_model()
    written = _generate(model, max_tokens=6)
    for r in range(12):
        length = int(written.lengths[r])
        text = texts(model, written.token_ids[r, :length])
        assert text.startswith("<think>")
        assert text.endswith("<answer>")
        assert text.count("<answer>") == 1
        assert not written.is_written[r, 0]
        # a forced marker was not sampled, so it must carry no token loss
        assert bool(written.is_written[r, length - 1]) == (not bool(written.is_truncated[r]))
        assert not written.is_written[r, length:].any()
    assert written.is_truncated.any()


def test_evidence_is_inserted_after_a_question_and_is_not_trained_on():
    model = toy_model()
    writer = model.writer
    # a language head that always writes " After [Tale 3]" and then ends the thought
    script = [*writer.encode(" After"), *writer.item_tokens(3), *writer.encode("<answer>")]
    state = {"asked": 0}
    plain = model.language_logits

    def scripted(states, *rest):
        logits = torch.full_like(plain(states, *rest), -30.0)
        logits[:, script[min(state["asked"], len(script) - 1)]] = 30.0
        state["asked"] += 1
        return logits

    model.language_logits = scripted
    look_up = lambda rows, items, _: [  # noqa: E731
        (state.update(asked=len(script) - 1), Lookup(i, (Link(9, 2.0, 1, 0),)))[1] for i in items
    ]
    written = _generate(model, look_up, G=1, temperature=0, max_tokens=20)
    text = texts(model, written.token_ids[0, : int(written.lengths[0])])
    assert text == "<think> After [Tale 3]: [Tale 9];<answer>"
    inserted, _ = writer.lookup_tokens(written.evidence[0][0])
    at = 1 + len(script) - 1
    assert written.token_ids[0, at : at + len(inserted)].tolist() == inserted
    assert not written.is_written[0, at : at + len(inserted)].any()
    assert written.evidence[0][0].via_item_index == 3


def test_people_alike_are_asked_about_one_after_the_other_and_told_apart_from_items():
    model = toy_model()
    dataset = toy_dataset(ring_rows(6, 12, 8), [f"Tale {i}" for i in range(12)])
    verbaliser = toy_verbaliser(
        model, dataset, num_people=2, num_taken=1, num_lookups=0, name_taste=False
    )
    histories = _histories()
    people = verbaliser.people_alike(histories)
    look_up = look_up_for(verbaliser, histories)
    found = look_up([1, 1, 1], [SOMEBODY, 3, SOMEBODY], [0, 1, 1])
    assert [one.kind for one in found] == ["alike", "after", "alike"]
    assert found[0] == people.record(1, 0)
    assert found[2] == people.record(1, 1)
    assert found[1].via_item_index == 3
    # nobody is known but those two
    assert look_up([1], [SOMEBODY], [2])[0].links == ()
    # as the verbaliser writes it, and as the sampler would insert it
    text = texts(model, verbaliser.write(histories, seed=0, keys=np.arange(3)).tokens[1])
    names = [f"[Tale {people.item_index[1, p, 0]}]" for p in range(2)]
    assert text == f"<think> Alike: {names[0]}; Alike: {names[1]};<answer>"
    assert model.writer.asked_about("<think> Alike") == SOMEBODY
    assert model.writer.asked_about("<think> Mostly Alike") is None
    assert model.writer.asked_about("<think> Mostly Sea. Alike: [Tale 1]; Alike") == SOMEBODY


def _ring():
    return toy_dataset(ring_rows(8, 12, 8), [f"Tale {i}" for i in range(12)])


TASTE_ALONE = {"num_people": 0, "num_lookups": 0, "look_up_taste": True}


def test_taste_is_looked_up_as_the_verbaliser_does_where_it_is_to_be():
    model, histories = toy_model(), _histories()
    verbaliser = toy_verbaliser(model, _ring(), **TASTE_ALONE)
    found = look_up_for(verbaliser, histories)([2, 0], [TASTE, TASTE], [0, 0])
    commonest = verbaliser.commonest(histories)
    assert [one.words for one in found] == [commonest[2], commonest[0]]
    assert all(one.words and not len(one.found) for one in found)
    told = str(model.writer.tokenizer.decode(model.writer.lookup_tokens(found[0])[0]))
    assert told == f": {', '.join(commonest[2])};"
    assert model.writer.asked_about("<think> Mostly") == TASTE
    assert model.writer.asked_about("<think> After [Tale 3") is None
    # where the model writes it, the word asks nothing
    own = toy_verbaliser(model, _ring(), **TASTE_ALONE | {"look_up_taste": False})
    assert look_up_for(own, histories) is None
    asks_more = toy_verbaliser(model, _ring(), num_lookups=1)
    assert look_up_for(asks_more, histories)([1], [TASTE], [0]) == [None]


def test_a_model_that_learned_to_ask_for_taste_is_told_it():
    dataset, told = _ring(), {"look_up_taste": True, "num_lookups": 1}
    model, histories = talking_toy(dataset, **told), _histories()
    verbaliser = toy_verbaliser(model, dataset, **told)
    written = _generate(model, look_up_for(verbaliser, histories), temperature=0.0, G=1)
    opening = len(model.writer.opening)
    for r, words in enumerate(verbaliser.commonest(histories)):
        taste, asked = written.evidence[r][:2]
        assert (taste.kind, taste.words, asked.kind) == ("taste", words, "after")
        tokens, own = (x[r].tolist() for x in (written.token_ids, written.is_written))
        text = f"<think> Mostly: {', '.join(words)}; After"
        assert texts(model, tokens[: int(written.lengths[r])]).startswith(text)
        answer = len(model.writer.lookup_tokens(taste)[0])
        assert own[opening : opening + answer + 2] == [True, *[False] * answer, True]
        assert written.named_item[r].max() >= 0  # what else was found stands in its place
        at = written.named_at[r][written.named_item[r] >= 0].tolist()
        titles = [model.writer.item_tokens(i)[0] for i in written.named_item[r].tolist() if i >= 0]
        assert [tokens[place] for place in at] == titles


def test_a_thought_asks_about_titles_of_its_own_prompt_at_least_once_and_never_twice():
    model = toy_model()
    titles = set(model.writer.title_token_ids.tolist())
    after = model.writer.encode(" After")[-1]
    with torch.no_grad():  # a head that wants to ask, to name titles, and to end
        wanted = [*sorted(titles), *model.writer.encode(" After"), *model.writer.encode("<answer>")]
        model.backbone.get_input_embeddings().weight[wanted] *= 3
    written = _generate(model, _always(0), G=16, max_tokens=40)
    asked = 0
    for r in range(48):
        tokens, own = written.token_ids[r].tolist(), written.is_written[r].tolist()
        named = [s for s, token in enumerate(tokens) if own[s] and token in titles]
        shown = {int(model.writer.item_tokens(i)[0]) for i in _histories().row(r // 16)}
        assert {tokens[s] for s in named} <= shown
        assert len({tokens[s] for s in named}) == len(named)
        assert all(tokens[s - 1] == after for s in named)  # a title only as a question
        assert named or written.is_truncated[r]
        assert len(named) == len(written.evidence[r])
        asked += len(named)
    assert asked > 10


def test_greedy_thoughts_need_no_randomness_and_do_not_depend_on_the_batch():
    model = toy_model()
    dataset = toy_dataset(ring_rows(6, 12, 7), [f"Tale {i}" for i in range(12)])
    recommender = ThinkingRecommender(model, toy_verbaliser(model, dataset), max_tokens=8)
    together = recommender.score(_histories())
    for b in range(3):
        alone = recommender.score(_histories().take([b]))
        assert alone.thoughts[0] == together.thoughts[b]
        torch.testing.assert_close(
            torch.from_numpy(alone.scores[0]),
            torch.from_numpy(together.scores[b]),
            atol=1e-4,
            rtol=0,
        )


def test_averaging_over_samples_gives_log_probabilities():
    model = toy_model()
    dataset = toy_dataset(ring_rows(6, 12, 7), [f"Tale {i}" for i in range(12)])
    recommender = ThinkingRecommender(
        model, toy_verbaliser(model, dataset), max_tokens=6, temperature=1.0, num_samples=3
    )
    scored = recommender.score(_histories())
    torch.testing.assert_close(
        torch.from_numpy(scored.scores).logsumexp(-1), torch.zeros(3), atol=1e-5, rtol=0
    )
    assert len(scored.thoughts) == 3
    again = dataclasses.replace(recommender).score(_histories())
    assert again.thoughts == scored.thoughts


def test_sampling_without_a_generator_is_refused():
    model = toy_model()
    with pytest.raises(ValueError, match="needs a generator"):
        think(model, model.writer.prompts(_histories()), None, max_tokens=4)


def test_look_ups_answer_for_the_right_user():
    model = toy_model()
    dataset = toy_dataset(ring_rows(6, 12, 7), [f"Tale {i}" for i in range(12)])
    verbaliser = toy_verbaliser(model, dataset, reverse_share=0.0)
    histories = Histories.from_lists([[2], [2, 3]], user_index=[-1, -1])
    found = look_up_for(verbaliser, histories)([0, 1], [2, 2], [0, 0])
    # whoever took 2 took 3 next; the second user has it already, so 4 comes first
    assert found[0].links[0].item_index == 3
    assert found[1].links[0].item_index == 4


def test_a_history_is_searched_once_for_what_its_thoughts_ask_again():
    model = toy_model()
    dataset = toy_dataset(ring_rows(6, 12, 7), [f"Tale {i}" for i in range(12)])
    dataset = dataclasses.replace(dataset, catalogue=toy_catalogue(12))
    thought = ThoughtConfig(num_people=2, together="ease")
    verbaliser = Verbaliser.learned_from(dataset, model.writer, thought)
    histories = Histories.from_lists([[2], [2, 3], [4]], user_index=[-1, -1, -1])
    asked = [(1, 2, 0), (0, SOMEBODY, 1), (1, SOMEBODY, 0), (0, EVERYTHING, 0), (1, 3, 1)]
    asked += [(0, SOMEBODY, 0), (1, 2, 2), (0, EVERYTHING, 1), (1, SOMEBODY, 9), (2, 4, 0)]
    look_up = look_up_for(verbaliser, histories)
    found = [*look_up(*zip(*asked[:5])), *look_up(*zip(*asked[5:]))]
    alone = [look_up_for(verbaliser, histories)([row], [item], [at])[0] for row, item, at in asked]
    for one, other in zip(found, alone):
        assert (one.kind, one.links, one.like) == (other.kind, other.links, other.like)
        np.testing.assert_array_equal(one.also.item_index, other.also.item_index)
        np.testing.assert_allclose(one.also.weight, other.also.weight, rtol=1e-6)
    assert found[6] is found[0]  # another thought about the same history asks about the same title
    people = verbaliser.people_alike(histories)
    assert [found[5].links, found[1].links] == [people.record(0, at).links for at in (0, 1)]
    assert found[3].links and not found[7].links and not found[8].links

"""Ranking after every sentence of a thought, from one pass."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, save_backbone, talking_toy, texts, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.evaluation.faithfulness.edits import assemble, cut_after, thoughts_of
from reasonrec.models.anytime import Cuts, batch_of, cut_places, cuts_of, scores_along
from reasonrec.models.branches import Batch
from reasonrec.models.generation import think
from reasonrec.models.look_ups import look_up_for
from reasonrec.models.recommenders import score_given
from reasonrec.records import Histories, Link, Lookup
from reasonrec.traces.found import found_columns

N = 12


@pytest.fixture(scope="module")
def toy():
    """A toy that asks and finds."""
    dataset = toy_dataset(ring_rows(8, N, 9), [f"Tale {i}" for i in range(N)])
    model = talking_toy(dataset, num_lookups=2)
    return model, toy_verbaliser(model, dataset, num_lookups=2), dataset.valid.histories()


@pytest.fixture(
    scope="module",
    params=["tiny", "tiny mean", "tiny max", "qwen2", "gpt2", "mistral", "mistral mean"],
)
def written(request, tmp_path_factory, toy):
    """A toy and its thoughts: one that asks and finds, however its thoughts are read, and untrained
    ones of other makes."""
    model, verbaliser, histories = toy
    make, _, pooling = request.param.partition(" ")
    if make == "tiny":
        model = deepcopy(model)
        model.head = model.head.model_copy(update={"pooling": pooling or "last"})
    else:
        folder = save_backbone(tmp_path_factory.mktemp(make), make)
        model = toy_model(N, backbone=str(folder), pooling=pooling or "last")
        dataset = toy_dataset(ring_rows(8, N, 9), [f"Tale {i}" for i in range(N)])
        verbaliser = toy_verbaliser(model, dataset, num_lookups=2)
    prompts = model.writer.prompts(histories)
    thoughts = think(
        model, prompts, look_up_for(verbaliser, histories), max_tokens=24, group_size=2,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    return model, histories, prompts, thoughts


def test_one_pass_gives_the_scores_of_every_beginning_written_out(written):
    model, histories, prompts, thoughts = written
    batch = batch_of(model, prompts, thoughts)
    cuts = cuts_of(batch, model.writer)
    scores = scores_along(model, batch, cuts)
    pieces = thoughts_of(thoughts, model.writer)
    num_checked = 0
    for row, thought in enumerate(pieces):
        b, g = divmod(row, 2)
        assert int(cuts.exists[b, g].sum()) == len(thought.pieces) + 1
        given = [
            assemble(cut_after(thought, k), model.writer) for k in range(len(thought.pieces) + 1)
        ]
        history = histories.take(np.full(len(given), b))
        slow = score_given(model, history, given)
        before = thoughts.pre_states[row : row + 1].expand(len(given), -1)
        with torch.no_grad():
            served = model.beside_history(scores[b, g, : len(given)], before, history)
        np.testing.assert_allclose(served.numpy(), slow, atol=2e-4)
        num_checked += len(given)
    assert num_checked > 2 * len(pieces)
    if model.writer.title_token_ids is not None:
        assert cuts.num_found.max() > 1


def test_the_last_beginning_is_the_thought_and_the_first_is_empty(written):
    model, _, prompts, thoughts = written
    batch = batch_of(model, prompts, thoughts)
    cuts = cuts_of(batch, model.writer)
    scores = scores_along(model, batch, cuts)
    last = cuts.exists.sum(-1) - 1
    whole = scores.gather(2, last[..., None, None].expand(-1, -1, 1, N))[:, :, 0]
    own = model(batch, with_tokens=False).think_logits
    # a marker that the model spelled in other tokens than ours is read at ours
    ours = [
        thoughts.token_ids[r, : thoughts.lengths[r]].tolist()[
            -len(model.writer.encode("<answer>")) :
        ]
        == model.writer.encode("<answer>")
        for r in range(len(thoughts.lengths))
    ]
    same = torch.tensor(ours).reshape(own.shape[:2])
    assert same.any()
    torch.testing.assert_close(whole[same], own[same], atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(scores[:, 0, 0], scores[:, 1, 0], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("max_tokens", range(9, 18))
def test_a_forced_end_in_the_middle_of_an_answer_of_the_graph_is_a_cut_like_others(toy, max_tokens):
    model, verbaliser, histories = toy
    prompts = model.writer.prompts(histories)
    thoughts = think(
        model, prompts, look_up_for(verbaliser, histories), max_tokens=max_tokens, temperature=0
    )
    assert thoughts.is_truncated.any()
    batch = batch_of(model, prompts, thoughts)
    cuts = cuts_of(batch, model.writer)
    last = (cuts.exists.sum(-1) - 1)[..., None, None].expand(-1, -1, 1, N)
    whole = scores_along(model, batch, cuts).gather(2, last)[:, :, 0]
    own = model(batch, with_tokens=False).think_logits
    torch.testing.assert_close(whole, own, atol=2e-4, rtol=1e-4)


def test_a_thought_is_cut_after_sentences_and_look_ups():
    model = toy_model()
    writer = model.writer
    links = Link(5, 1.0, 1, 0), Link(7, 0.5, 1, 0)
    parts = [
        (writer.encode(" Mostly Tide."), True),
        (writer.encode(" After") + writer.item_tokens(3), True),
        (writer.lookup_tokens(Lookup(3, links))[0], False),
        (writer.encode(" After") + writer.item_tokens(2), True),
        (writer.lookup_tokens(Lookup(2))[0], False),
        (writer.encode(" Ember"), True),
    ]
    tokens, is_written, ends = list(writer.opening), [False], []
    for part, own in parts:
        tokens += part
        is_written += [own] * len(part)
        ends.append(len(tokens))
    tokens += writer.encode("<answer>")
    is_written += [True]
    places = cut_places(tokens, is_written, writer)
    assert places == [ends[0], ends[2], ends[4], ends[5]]
    assert texts(model, tokens[places[0] : places[1]]) == " After [Tale 3]: [Tale 5] [Tale 7];"


def test_evidence_counts_from_the_look_up_that_found_it():
    model = toy_model()
    with torch.no_grad():
        model.pointer.amount.fill_(0.9)
        model.pointer.from_state.fill_(0.0)
        model.readout.gate.fill_(0.0)  # words change nothing: all that moves is evidence
    histories = Histories.from_lists([[3, 2]])
    prompts = model.writer.prompts(histories)
    dataset = toy_dataset(ring_rows(4, N, 9), [f"Tale {i}" for i in range(N)])
    thoughts = toy_verbaliser(model, dataset, num_lookups=2, num_links=1).write(
        histories, seed=0, keys=np.array([0])
    )
    named = thoughts.named[0].items.item_index.tolist()
    assert len(named) == 2
    places, *found = map(torch.from_numpy, found_columns(thoughts.named))
    ids = torch.tensor([thoughts.tokens])
    batch = Batch(
        trunk_ids=torch.from_numpy(prompts.token_ids),
        trunk_lengths=torch.from_numpy(prompts.lengths),
        branch_ids=ids, branch_lengths=torch.tensor([[ids.shape[-1]]]),
        branch_at=torch.from_numpy(prompts.lengths - 1)[:, None],
        is_written=torch.tensor([thoughts.is_written]),
        named_at=places[None], named_item=found[0][None], named_weight=found[1][None],
        named_kind=found[2][None],
    )  # fmt: skip
    cuts = cuts_of(batch, model.writer)
    assert cuts.num_found[0, 0].tolist() == [0, 0, 1, 2]  # empty, taste, one look-up, the other
    p = scores_along(model, batch, cuts)[0, 0].softmax(-1)
    rises = (p.diff(dim=0) > 0.01).nonzero().tolist()
    assert rises == [[1, named[0]], [2, named[1]]]


def test_every_token_knows_its_sentence():
    # the opening is one token; sentences of 2 and 3 tokens, then the marker and padding
    cuts = Cuts(torch.tensor([[[1, 3, 6], [1, -1, -1]]]), torch.zeros(1, 2, 3))
    assert cuts.sentence_of_tokens(8).tolist() == [
        [[-1, 0, 0, 1, 1, 1, -1, -1], [-1, -1, -1, -1, -1, -1, -1, -1]]
    ]

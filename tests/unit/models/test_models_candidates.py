"""Thoughts that name candidates of the model itself: `` Maybe: [Title] [Title];``."""

import copy

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, talking_toy, texts, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.evaluation.faithfulness.edits import thoughts_of
from reasonrec.methods.r2ec_stages import proposer
from reasonrec.models.branches import Batch
from reasonrec.models.generation import think
from reasonrec.models.look_ups import look_up_for
from reasonrec.models.recommenders import NoThinkRecommender, ThinkingRecommender
from reasonrec.records import LOOKUP_KINDS, Histories, Lookup
from reasonrec.serving.recommender import recommend
from reasonrec.traces.config import ThoughtConfig, TracesConfig
from reasonrec.traces.prompts import CANDIDATES
from reasonrec.training.config import RecpoConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.rl.recpo import roll_out

N = 12
MAYBE = LOOKUP_KINDS.index("maybe")
AHEAD = {"num_candidates": 3, "num_candidates_asked": 1, "num_lookups": 2, "name_taste": False}
HISTORIES = Histories.from_lists([[1, 2, 3], [7], [4, 5, 6, 7, 8]])


@pytest.fixture(scope="module")
def shop():
    return toy_dataset(ring_rows(8, N, 9), [f"Tale {i}" for i in range(N)])


@pytest.fixture(scope="module")
def talking(shop):
    """A toy that has learned to ask for candidates, and about the first of them."""
    return talking_toy(shop, num_steps=60, **AHEAD)


def _best(model, histories, num_items):
    """The slow obvious way: every item's score without a thought, sorted by hand."""
    scores = NoThinkRecommender(model).score(histories).scores.astype(np.float64)
    rows = []
    for b, row in enumerate(scores):
        allowed = [i for i in range(N) if i not in histories.row(b)]
        total = sum(np.exp(row[i]) for i in allowed)
        best = sorted(allowed, key=lambda i: -row[i])[:num_items]
        rows.append([(i, np.exp(row[i]) / total) for i in best])
    return rows


def test_candidates_are_what_the_state_before_the_thought_scores_highest(shop):
    model = toy_model(N)
    look_up = look_up_for(toy_verbaliser(model, shop, **AHEAD), HISTORIES, model)
    found = look_up([0, 1, 2], [CANDIDATES] * 3, [0, 0, 0])
    for b, expected in enumerate(_best(model, HISTORIES, 3)):
        assert [link.item_index for link in found[b].links] == [i for i, _ in expected]
        weights = [link.weight for link in found[b].links]
        np.testing.assert_allclose(weights, [share for _, share in expected], rtol=1e-4)
        assert not {i for i, _ in expected} & set(HISTORIES.row(b).tolist())
    # named once: whoever asks again hears nothing new
    assert look_up([1], [CANDIDATES], [1]) == [Lookup(-1, kind="maybe")]


def test_a_thought_by_hand(shop):
    model = toy_model(N)
    verbaliser = toy_verbaliser(model, shop, **AHEAD)
    look_up = look_up_for(verbaliser, HISTORIES, model)
    named = look_up([0, 1, 2], [CANDIDATES] * 3, [0, 0, 0])
    thoughts = verbaliser.write(HISTORIES, seed=0, keys=np.arange(3), candidates=named)
    titles = [f"[Tale {link.item_index}]" for link in named[1].links]
    answer = texts(model, model.writer.lookup_tokens(look_up([1], [7], [0])[0])[0])
    first = look_up([1], [named[1].links[0].item_index], [0])[0]
    about_first = texts(model, model.writer.lookup_tokens(first)[0])
    assert texts(model, thoughts.tokens[1]) == (
        f"<think> Maybe: {' '.join(titles)}; After {titles[0]}{about_first} After [Tale 7]{answer}"
        "<answer>"
    )
    written = [t for t, own in zip(thoughts.tokens[1], thoughts.is_written[1]) if own]
    assert texts(model, written) == f" Maybe After {titles[0]} After [Tale 7]<answer>"
    assert thoughts.named[1].items.kind[:3].tolist() == [MAYBE] * 3
    ends = [thoughts.tokens[1][at] for at in thoughts.named[1].places[:3]]
    assert ends == [model.writer.item_tokens(link.item_index)[0] for link in named[1].links]
    plain = toy_verbaliser(model, shop, **{k: v for k, v in AHEAD.items() if "cand" not in k})
    assert "Maybe" not in texts(model, plain.write(HISTORIES, seed=0, keys=np.arange(3)).tokens[1])


def test_only_an_item_of_the_history_counts_once_more(shop):
    verbaliser = toy_verbaliser(toy_model(N), shop, num_weighed=3)
    again = LOOKUP_KINDS.index("again")
    (taken,) = verbaliser.look_up(Histories.from_lists([[1, 2]]), np.array([2]))
    (candidate,) = verbaliser.look_up(Histories.from_lists([[1, 2]]), np.array([5]))
    assert [one.item_index for one in taken.also if one.kind == again] == [2]
    assert not [one for one in candidate.also if one.kind == again]


def test_training_names_what_the_starting_model_believes_and_loses_nothing_on_it(shop):
    model = toy_model(N)
    start = copy.deepcopy(model)
    windows = schedule_windows(shop.train, max_history=8, num_epochs=1, batch_size=4, seed=0)
    data = WindowDataset(
        shop.train, windows, model.writer, verbaliser=toy_verbaliser(model, shop, **AHEAD),
        num_branches=2, propose=proposer(model, 3),
    )  # fmt: skip
    with torch.no_grad():  # as training would
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    model.train()
    batch = Batch(**data.__getitems__([0, 3, 5]))
    assert model.training
    starts = shop.train.user_offsets[shop.train.user_index[windows.start[[0, 3, 5]]]]
    column = (batch.branch_at[..., None] == batch.item_ends[:, None, :]).int().argmax(-1)
    events = (starts[:, None] + column.numpy()).ravel()
    expected = _best(start, shop.train.histories_before(events), 3)
    is_maybe = batch.named_kind == MAYBE
    assert (is_maybe.sum(-1) == 3).all()
    assert batch.named_item[is_maybe].tolist() == [i for row in expected for i, _ in row]
    outputs = model.eval()(batch)
    written = batch.is_written
    assert torch.isfinite(outputs.token_logp).all()
    assert (outputs.token_logp[written] < 0).any()
    assert (outputs.token_logp[~written] == 0).all()
    b, g, _ = is_maybe.nonzero(as_tuple=True)
    assert not written[b, g, batch.named_at[is_maybe]].any()


def test_rollouts_ask_for_candidates_and_sampler_and_trainer_agree(shop, talking):
    verbaliser = toy_verbaliser(talking, shop, **AHEAD)
    config = RecpoConfig(max_tokens=40)
    rollouts = roll_out(
        talking, shop.train, verbaliser, np.array([3, 11, 25]), config, generator_seed=1
    )
    batch = rollouts.batch
    with torch.no_grad():
        logp = talking(batch).token_logp
    torch.testing.assert_close(logp, rollouts.sampler_logp_P_G_S, atol=1e-4, rtol=0)
    is_maybe = batch.named_kind == MAYBE
    named = [set(batch.named_item[p][is_maybe[p]].tolist()) for p in range(3)]
    assert all(named)
    asked = 0
    titles = talking.writer.title_token_ids.tolist()
    for p, g, s in batch.is_written.nonzero().tolist():
        token = int(batch.branch_ids[p, g, s])
        if token in titles and titles.index(token) in named[p]:
            asked += 1
            assert s > batch.named_at[p, g][is_maybe[p, g]].max()  # named before it is asked about
    assert asked


def test_a_trained_toy_recommends_with_candidates_in_its_thought_and_none_among_its_chains(
    shop, talking
):
    recommender = ThinkingRecommender(talking, toy_verbaliser(talking, shop, **AHEAD))
    histories = shop.valid.histories()
    scored = recommender.score(histories)
    best = _best(talking, histories, 3)
    hits = 0
    for b, row in enumerate(scored.evidence):
        for lookup in (one for one in row if one.kind == "maybe" and one.links):
            hits += 1
            assert [link.item_index for link in lookup.links] == [i for i, _ in best[b]]
            assert f"Maybe: {' '.join(f'[Tale {i}]' for i, _ in best[b])};" in scored.thoughts[b]
    assert hits
    answers = recommend(recommender, shop, ["u0", "u1"], k=3, explain=True)
    assert all(answer.chains for answer in answers)
    assert all(chain.num_neighbours for answer in answers for chain in answer.chains)
    written = recommender.write(histories)
    for thought in thoughts_of(written, talking.writer):
        for piece in thought.pieces:
            if piece.kind == "maybe" and piece.named:
                assert texts(talking, piece.tokens).startswith(" Maybe: [")
                assert piece.via_item is None


def test_where_no_candidates_are_wanted_the_word_is_no_question(shop):
    model = toy_model(N)
    writer, plain = model.writer, model.language_logits
    assert writer.asked_about("<think> Maybe") == CANDIDATES
    assert writer.asked_about("<think> Mostly Maybe") is None
    script = [*writer.encode(" Maybe"), *writer.encode(" After"), writer.item_tokens(3)[0],
              *writer.encode("<answer>")]  # fmt: skip
    place = iter(script)

    def scripted(states, *rest):
        return torch.full_like(plain(states, *rest), -30.0).index_fill_(
            1, torch.tensor([next(place)]), 30.0
        )

    model.language_logits = scripted
    histories = Histories.from_lists([[1, 2, 3]])
    look_up = look_up_for(toy_verbaliser(model, shop, num_lookups=1), histories)
    written = think(model, writer.prompts(histories), look_up, max_tokens=30, temperature=0)
    text = texts(model, written.token_ids[0, : int(written.lengths[0])])
    assert text.startswith("<think> Maybe After [Tale 3]: [")
    assert [one.kind for one in written.evidence[0]] == ["after"]


def test_a_pointer_that_was_saved_before_candidates_is_read(tmp_path):
    model = toy_model(N)
    with torch.no_grad():
        model.pointer.lift.copy_(torch.arange(float(len(LOOKUP_KINDS))))
        model.pointer.trust.weight.normal_()
    tensors = {f"pointer.{n}": w.detach().clone() for n, w in model.pointer.named_parameters()}
    old = {n: w[:4] if len(w) == len(LOOKUP_KINDS) else w for n, w in tensors.items()}
    fresh = toy_model(N).pointer
    fresh.know_all_kinds(old, prefix="pointer.")
    assert old["pointer.lift"].tolist() == [0, 1, 2, 3, 0, 0]
    assert old["pointer.log_half"].tolist() == [-4.0] * 6
    assert torch.equal(old["pointer.trust.weight"][:4], tensors["pointer.trust.weight"][:4])
    assert not old["pointer.trust.weight"][4:].any()
    assert old["pointer.sharpness"].shape == (1,)


def test_what_cannot_name_candidates_says_so(shop):
    model = toy_model(N)
    with pytest.raises(ValueError, match="need the model whose they are"):
        look_up_for(toy_verbaliser(model, shop, **AHEAD), HISTORIES)
    with pytest.raises(ValueError, match="at most num_candidates"):
        ThoughtConfig(num_candidates_asked=1)
    with pytest.raises(ValueError, match=r"num_candidates must be 0 here.*got 2"):
        TracesConfig(thought=ThoughtConfig(num_candidates=2))

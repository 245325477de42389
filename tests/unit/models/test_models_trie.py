"""The trie of items, and exact likelihoods against every item read out on its own."""

import numpy as np
import pytest
import torch
from tests.toy_models import ARCHITECTURES, TOY_SHAPE, save_backbone, toy_catalogue

from reasonrec.models.answers import AnsweringModel, HeadlessModel, with_words_of
from reasonrec.models.backbone import build_model
from reasonrec.models.config import HeadConfig
from reasonrec.models.likelihood import LikelihoodRecommender, item_trie, score_items
from reasonrec.models.trie import TokenTrie
from reasonrec.records import Histories

N = 9
HISTORIES = Histories.from_lists([[0, 3, 4], [], [5], list(range(8)) * 2])


def toy_reader(backbone="tiny") -> AnsweringModel:
    """Return an untrained model whose weights are large enough for its answers to differ."""
    shape = TOY_SHAPE.model_copy(update={"init_std": 0.2})
    head = HeadConfig(dropout=0.0, max_history=8)
    model = build_model(toy_catalogue(N), backbone=str(backbone), tiny=shape, head=head, seed=0)
    return with_words_of(model, [], vocab_size=0, dropout=0.0, seed=0, kind=HeadlessModel).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A backbone of other people's making, to which titles are several tokens."""
    return toy_reader(save_backbone(tmp_path_factory.mktemp("llama"), "llama"))


def slow_scores(model, history, sequences):
    """Return log p of every item: one text each, its tokens' softmax over those that can follow."""
    prompts = model.writer.prompts(Histories.from_lists([history]))
    prompt = prompts.token_ids[0, : prompts.lengths[0]].tolist()
    scores = []
    for sequence in sequences:
        ids = torch.tensor([[*prompt, *sequence]])
        with torch.no_grad():
            hidden = model.run_backbone(model.embed(ids), use_cache=False).last_hidden_state[0]
            logits = model.token_logits(hidden)
        total = 0.0
        for n, token in enumerate(sequence):
            begun = [s for s in sequences if s[:n] == sequence[:n]]
            allowed = sorted({s[n] for s in begun})
            logp = logits[len(prompt) + n - 1][allowed].log_softmax(-1)
            total += float(logp[allowed.index(token)])
        scores.append(total)
    return np.array(scores, np.float32)


def test_the_trie_holds_the_items_and_nothing_else():
    # items: 0 = 5 7, 1 = 5 8 1, 2 = 6, 3 = 5 8 2
    trie = TokenTrie([[5, 7], [5, 8, 1], [6], [5, 8, 2]])
    first, second, third = trie.levels
    assert first.token.tolist() == [5, 6]
    assert first.num_items.tolist() == [3, 1]
    assert first.item.tolist() == [-1, 2]
    assert (first.first_child.tolist(), first.num_children.tolist()) == ([0, 2], [2, 0])
    assert second.token.tolist() == [7, 8]
    assert second.item.tolist() == [0, -1]
    assert (second.first_child.tolist(), second.num_children.tolist()) == ([0, 0], [0, 2])
    assert (third.token.tolist(), third.item.tolist()) == ([1, 2], [1, 3])
    # shared by several items: 5, and 5 8 below it
    assert (first.num_shared.tolist(), second.num_shared.tolist()) == ([2, 0], [0, 1])


def test_first_tokens_are_read_in_groups_of_a_size():
    # below 1 two beginnings are shared (1 and 1 5), below 2 and 4 one each; 3 has one item
    trie = TokenTrie([[1, 5, 6], [1, 5, 7], [2, 5], [2, 6], [3], [4, 5], [4, 6]])
    assert trie.levels[0].num_shared.tolist() == [2, 1, 0, 1]
    assert [group.tolist() for group in trie.groups(3)] == [[0, 1], [3]]
    assert [group.tolist() for group in trie.groups(1)] == [[0], [1], [3]]
    assert TokenTrie([[1], [2]]).groups(9) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_walk_through_the_trie_spells_an_item(seed):
    rng = np.random.default_rng(seed)
    drawn = {tuple(rng.integers(4, size=rng.integers(1, 4)).tolist()) for _ in range(12)}
    sequences = [s for s in drawn if not any(s != o and o[: len(s)] == s for o in drawn)]
    trie = TokenTrie(sequences)
    walks = {}
    todo = [((), range(len(trie.levels[0].token)), 0)]
    while todo:
        begun, nodes, depth = todo.pop()
        level = trie.levels[depth] if depth < len(trie.levels) else None
        for node in nodes:
            text = (*begun, int(level.token[node]))
            begin, count = int(level.first_child[node]), int(level.num_children[node])
            assert int(level.num_items[node]) == sum(s[: len(text)] == text for s in sequences)
            if count:
                todo.append((text, range(begin, begin + count), depth + 1))
            else:
                walks[text] = int(level.item[node])
    assert walks == {s: n for n, s in enumerate(sequences)}


@pytest.mark.parametrize(
    ("sequences", "said"),
    [
        ([], "at least one item"),
        ([[1], []], "at least one token"),
        ([[1, 2], [1, 2]], "same tokens"),
        ([[1, 2], [1]], "begin them"),
        ([[1], [1]], "begin them|same tokens"),
    ],
)
def test_items_that_a_text_could_not_tell_apart_are_refused(sequences, said):
    with pytest.raises(ValueError, match=said):
        TokenTrie(sequences)


def test_the_likelihood_of_four_items_worked_by_hand():
    model = toy_reader()
    # the language head is made to give the same logits everywhere: 0 for all but two tokens
    a, b, c, d = 40, 41, 42, 43
    trie = TokenTrie([[a, c], [a, d], [b, c], [b, d, a]])
    logits = torch.zeros(len(model.tokenizer))
    logits[a], logits[d] = np.log(3.0), np.log(4.0)
    model.token_logits = lambda states: logits.expand(*states.shape[:-1], -1)
    ids = torch.tensor([[1, 50, 51], [1, 50, 0]])
    scores = score_items(model, ids, torch.tensor([3, 2]), trie)
    # p(a) = 3 / (3 + 1), p(c | .) = 1 / (1 + 4); the last token of the last item must follow
    expected = [3 / 4 * 1 / 5, 3 / 4 * 4 / 5, 1 / 4 * 1 / 5, 1 / 4 * 4 / 5]
    np.testing.assert_allclose(scores.exp().numpy(), [expected] * 2, rtol=1e-5)


@pytest.mark.parametrize("words", ["titles", "ids"])
@pytest.mark.parametrize("most_together", [1, 128])
def test_exact_scores_are_those_of_every_item_read_out_alone(words, most_together, monkeypatch):
    monkeypatch.setattr("reasonrec.models.likelihood.MOST_TOGETHER", most_together)
    model = toy_reader()
    if words == "titles":  # one token each
        sequences = [model.writer.item_tokens(item) for item in range(N)]
    else:  # three codes over four sub-word tokens, uneven
        sequences = [[40 + n // 4, 50 + n % 3, 60 + n % 2] for n in range(N - 1)] + [[44]]
    scores = LikelihoodRecommender(model, TokenTrie(sequences), "toy").score(HISTORIES).scores
    slow = [slow_scores(model, HISTORIES.row(b).tolist(), sequences) for b in range(4)]
    np.testing.assert_allclose(scores, slow, atol=2e-5)
    np.testing.assert_allclose(np.exp(scores).sum(1), 1.0, rtol=1e-5)
    assert len({tuple(row) for row in scores.round(4).tolist()}) == 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_titles_of_several_tokens_are_exact_whatever_the_backbone(architecture, tmp_path):
    model = toy_reader(save_backbone(tmp_path, architecture))
    trie = item_trie(model)
    assert len(trie.levels) > 1
    histories = HISTORIES.take(np.array([0, 2]))
    scores = LikelihoodRecommender(model, trie, "toy").score(histories).scores
    sequences = [model.writer.item_tokens(item) for item in range(N)]
    slow = [slow_scores(model, histories.row(b).tolist(), sequences) for b in range(2)]
    np.testing.assert_allclose(scores, slow, atol=1e-4)


def test_a_wide_beam_is_the_exact_ranking_and_a_narrow_one_finds_what_it_finds(llama):
    sequences = [[40 + n // 4, 50 + n % 3, 60 + n % 2] for n in range(N - 1)] + [[44]]
    trie = TokenTrie(sequences)
    exact = LikelihoodRecommender(llama, trie, "toy").score(HISTORIES).scores
    wide = LikelihoodRecommender(llama, trie, "toy", beam=N).score(HISTORIES).scores
    np.testing.assert_allclose(wide, exact, atol=1e-5)
    narrow = LikelihoodRecommender(llama, trie, "toy", beam=2).score(HISTORIES).scores
    found = np.isfinite(narrow)
    assert (found.sum(1) >= 1).all() and (found.sum(1) <= 6).all()
    np.testing.assert_allclose(narrow[found], exact[found], atol=1e-5)


def test_a_rows_scores_do_not_depend_on_the_other_rows(llama):
    recommender = LikelihoodRecommender(llama, item_trie(llama), "toy")
    together = recommender.score(HISTORIES).scores
    for b in range(len(HISTORIES)):
        alone = recommender.score(HISTORIES.take(np.array([b]))).scores
        np.testing.assert_allclose(alone[0], together[b], atol=1e-5)

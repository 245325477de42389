"""What neither paper has: evidence that adds to its own score, titles that start from their words,
tokens that are blanked out, and tokens that are never written."""

import math

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.models.language_head import backbone_logits
from reasonrec.models.reasoning_recommender import TINY_SHARPNESS
from reasonrec.models.rec_head import Evidence, EvidencePointer, beside_history
from reasonrec.models.recommenders import EvidenceRecommender, NoThinkRecommender
from reasonrec.models.tiny.initialisation import start_from_text
from reasonrec.training.config import SftLossConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.losses import sft_loss


def _evidence(item, weight=None, kind=None):
    item = torch.tensor(item, dtype=torch.long)
    weight = torch.ones(item.shape) * (item >= 0) if weight is None else torch.tensor(weight)
    return Evidence(item, weight, torch.zeros_like(item) if kind is None else torch.tensor(kind))


def test_a_pointer_that_has_learned_nothing_leaves_the_ranking_as_it_is():
    pointer = EvidencePointer(4, 6)
    scores = torch.randn(2, 6)
    found = _evidence([[0, 1, 2], [5, -1, 5]])
    torch.testing.assert_close(
        pointer(scores, torch.randn(2, 4), found), scores.log_softmax(-1), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("behind", [20, 40, 50, 58, 70, 500])
def test_evidence_of_the_most_unlikely_item_has_the_gradient_of_the_mixture(behind):
    pointer = EvidencePointer(4, 5)
    with torch.no_grad():
        pointer.amount[0] = 0.3
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0, -float(behind)]], requires_grad=True)
    logp = pointer(scores, torch.zeros(1, 4), _evidence([[4]]))
    (-logp[0, 0]).backward()
    # a share of .3 / 2 of the probability is gone: -log(1 - a / 2), by a
    assert pointer.amount.grad[0].item() == pytest.approx(0.5 / (1 - 0.15))
    assert all(torch.isfinite(weight.grad).all() for weight in pointer.parameters())
    assert torch.isfinite(scores.grad).all()


def test_the_mixture_of_state_and_evidence_by_hand():
    pointer = EvidencePointer(2, 4)
    with torch.no_grad():
        pointer.amount[0] = 0.5
        pointer.trust.bias.fill_(math.log(3))  # sigmoid: 3 / 4
        pointer.from_weight.fill_(2.0)
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    found = _evidence([1, 2, -1], [6.0**0.5, 1.0, 0.0])
    # p_state x weight squared: item 1: 0.2 x 6 = 1.2, item 2: 0.3 x 1; so p_found is 0.8 and 0.2.
    # The share is 0.5 x 3 / 4 = 3 / 8
    expected = torch.tensor(
        [5 / 8 * 0.1, 5 / 8 * 0.2 + 3 / 8 * 0.8, 5 / 8 * 0.3 + 3 / 8 * 0.2, 5 / 8 * 0.4]
    )
    torch.testing.assert_close(pointer(scores, torch.zeros(2), found).exp(), expected)


def test_what_is_found_often_is_trusted_by_its_whole_weight():
    pointer = EvidencePointer(2, 4)
    with torch.no_grad():
        pointer.amount[0] = 0.9
        pointer.trust_in_weight.fill_(1.0)
    found = _evidence([3, 1, -1], [1.0, 3.0, 0.0])
    share, given = pointer.shares(torch.zeros(3), torch.zeros(2), found)
    # sigmoid(log 4) = 4 / 5, times 0.9; alike in the state, so given by weight: 1 / 4, 3 / 4
    torch.testing.assert_close(share, torch.tensor([0.72]))
    torch.testing.assert_close(given, torch.tensor([0.18, 0.54, 0.0]))


def test_what_people_alike_took_is_trusted_apart_from_what_follows_an_item():
    pointer = EvidencePointer(2, 4)
    with torch.no_grad():
        pointer.amount[:2] = torch.tensor([0.4, 0.2])
        pointer.from_weight[1] = 0.0
    found = _evidence([3, 1, 3, 2], [1.0, 3.0, 9.0, 1.0], [0, 0, 1, 1])
    share, given = pointer.shares(torch.zeros(4), torch.zeros(2), found)
    # half of each amount: 0.2 by weight, 1 / 4 and 3 / 4, and 0.1 evenly
    torch.testing.assert_close(share, torch.tensor([0.3]))
    torch.testing.assert_close(given, torch.tensor([0.05, 0.15, 0.05, 0.05]))
    scores = torch.zeros(4)
    # 0.7 x 1 / 4, and item 3 is given something by both kinds
    expected = torch.tensor([0.175, 0.325, 0.225, 0.275])
    torch.testing.assert_close(pointer(scores, torch.zeros(2), found).exp(), expected)


def test_all_evidence_together_leaves_the_state_a_twentieth():
    pointer = EvidencePointer(2, 4)
    with torch.no_grad():
        pointer.amount[:2] = torch.tensor([3.0, 1.0])
    torch.testing.assert_close(pointer.bounded_amount()[:3], torch.tensor([0.7125, 0.2375, 0.0]))
    with torch.no_grad():
        pointer.amount[:2] = torch.tensor([-1.0, 0.5])
    torch.testing.assert_close(pointer.bounded_amount()[:3], torch.tensor([0.0, 0.5, 0.0]))


def test_lifts_by_hand():
    pointer = EvidencePointer(2, 4)
    pointer.count(torch.tensor([1, 1, 1, 5]))
    with torch.no_grad():
        pointer.sharpness.fill_(0.5)
        pointer.from_popularity.fill_(1.0)
        pointer.lift[:3] = torch.tensor([2.0, 0.0, 1.0])
        pointer.log_half.fill_(math.log(0.5))
    scores = torch.tensor([0.04, 0.16, 0.16, 0.64]).log()
    found = _evidence([1, 0, 1, 3, -1], [0.25, 0.5, 0.25, 1.5, 0.0], [0, 2, 0, 1, 0])
    # item 1: weights 0.25 + 0.25 at half 0.5: (1 + 1) squared = 4; item 0: 1 + 1 = 2, of its words;
    # item 3 was found by a kind without lift. States to the power 1/2, popularity (n + .3) / 2.3
    odds = torch.tensor([0.2 * 2 * 1.3, 0.4 * 4 * 1.3, 0.4 * 1.3, 0.8 * 5.3])
    torch.testing.assert_close(
        pointer(scores, torch.zeros(2), found).exp(), odds / odds.sum(), atol=1e-6, rtol=0
    )


def test_lifts_can_start_to_learn():
    pointer = EvidencePointer(2, 4)
    pointer.count(torch.tensor([1, 9, 1, 1]))
    pointer(torch.zeros(4), torch.zeros(2), _evidence([1]))[1].backward()
    assert pointer.lift.grad[0] > 0
    assert pointer.lift.grad[1:].eq(0).all()
    assert pointer.from_popularity.grad > 0


def test_a_row_that_found_nothing_does_not_depend_on_what_others_found():
    pointer = EvidencePointer(2, 4)
    pointer.count(torch.tensor([1, 9, 1, 1]))
    with torch.no_grad():
        pointer.sharpness.fill_(0.3)
        pointer.from_popularity.fill_(1.0)
    scores, post = torch.randn(2, 4), torch.zeros(2, 2)
    beside = pointer(scores, post, _evidence([[2], [-1]]))[1]
    alone = pointer(scores[1:], post[1:], _evidence([[]]))[0]
    torch.testing.assert_close(beside, alone)


def test_every_mention_of_an_item_counts_and_nothing_found_takes_no_share():
    model = toy_model(num_items=6, gated=False)
    with torch.no_grad():
        model.pointer.amount[0] = 0.8
    post = torch.randn(2, 16)
    found = _evidence([[2, 4, 2, -1], [-1, -1, -1, -1]])
    plain = model.score_thoughts(post, post, None).softmax(-1)
    mixed = model.score_thoughts(post, post, found).exp()
    # share 0.8 x 1 / 2; alike in weight: pointed at in proportion to p_state, item 2 twice
    whole = 2 * plain[0, 2] + plain[0, 4]
    expected = 0.6 * plain[0]
    expected[2] += 0.4 * 2 * plain[0, 2] / whole
    expected[4] += 0.4 * plain[0, 4] / whole
    torch.testing.assert_close(mixed[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(mixed[1], plain[1], atol=1e-6, rtol=0)


def test_a_pointer_can_start_to_learn_and_come_back_from_below_nothing():
    for start in (0.0, -0.3):
        pointer = EvidencePointer(2, 4)
        with torch.no_grad():
            pointer.amount.fill_(start)
        found = _evidence([1])
        logp = pointer(torch.zeros(4), torch.zeros(2), found)
        torch.testing.assert_close(logp, torch.zeros(4).log_softmax(-1))
        logp[1].backward()  # the true item was found: more of the evidence would raise it
        assert pointer.amount.grad[0] > 0
        assert pointer.amount.grad[1] == 0  # nobody was asked about
        assert logp.isfinite().all()


def test_a_model_without_pointer_reads_the_state_alone():
    model = toy_model(num_items=6, pointer=False)
    assert model.pointer is None
    post, found = torch.randn(1, 16), _evidence([[0, 1]])
    torch.testing.assert_close(
        model.score_thoughts(post, post, found), model.score_states(post), atol=1e-6, rtol=0
    )


def _started(texts, *, share, width=4096):
    embeddings = torch.full((len(texts) + 2, width), 7.0)
    tokens = np.arange(len(texts)) + 2
    start_from_text(embeddings, tokens, texts, std=0.5, share=share, seed=0)
    assert (embeddings[:2] == 7).all()  # tokens that are no titles stay as they were
    return embeddings[2:]


def test_items_of_like_words_start_close_and_all_start_at_the_same_scale():
    texts = ["moon saga one", "moon saga two", "war diary", "war Diary!", "a b", "c d", ""]
    rows = _started(texts, share=0.5)
    # width 4096: an estimated standard deviation is within 1.1 % (1 / sqrt 2D); 4 of these
    torch.testing.assert_close(rows[:6].std(-1), torch.full((6,), 0.5), rtol=0.045, atol=0)
    close = torch.nn.functional.normalize(rows, dim=-1)
    cosine = close @ close.T
    # the same words, half of the variance from them: cosine 1/2; no word in common: 0
    assert abs(cosine[2, 3] - 0.5) < 0.06
    assert abs(cosine[4, 5]) < 0.06
    assert 0.1 < cosine[0, 1] < 0.5


def test_without_a_share_of_the_text_nothing_is_shared():
    rows = _started(["same words", "same words", "others"], share=0.0)
    close = torch.nn.functional.normalize(rows, dim=-1)
    assert abs(close[0] @ close[1]) < 0.06  # 4 / sqrt 4096


def test_rare_words_count_more_and_a_word_of_every_item_counts_nothing():
    texts = ["book moon", "book moon", *["book war"] * 10, *["book sea"] * 10]
    rows = _started(texts, share=1.0)
    torch.testing.assert_close(rows[0], rows[1])
    close = torch.nn.functional.normalize(rows, dim=-1)
    assert abs(close[0] @ close[5]) < 0.06  # "book" is in all of them


def test_tokens_are_blanked_out_whole_and_only_while_training():
    model = toy_model(token_dropout=0.25)
    ids = torch.arange(2000).reshape(20, 100) % len(model.tokenizer)
    plain = model.backbone.get_input_embeddings()(ids)
    assert torch.equal(model.embed(ids), plain)
    torch.manual_seed(0)
    trained = model.train().embed(ids)
    blank = (trained == 0).all(-1)
    # 2000 tokens at 1/4: standard error .0097
    assert abs(blank.float().mean() - 0.25) < 0.04
    assert torch.equal(trained[~blank], plain[~blank])


def test_padding_the_begin_token_and_the_opening_marker_are_never_written():
    model = toy_model()
    nothing = torch.full((3, 1), model.writer.pad_id)
    logits = model.language_logits(torch.randn(3, 16), nothing, nothing, nothing[:, 0])
    never = model.tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "<think>"])
    assert (logits[:, never] == -torch.inf).all()
    # with an empty prompt no title may be asked about either
    assert logits.isfinite().sum() == 3 * (logits.shape[1] - 3 - model.num_items - 1)


@pytest.mark.parametrize("least", [0, 1, 2, 7])
def test_what_may_be_written_is_what_the_rules_say_row_by_row(least):
    model = toy_model(least_asked=least)
    generator = torch.Generator().manual_seed(0)
    titles, pad = model.item_table.title_token_ids, model.writer.pad_id
    after, answer = model.writer.encode(" After")[-1], model.writer.encode("<answer>")[0]
    is_there = torch.rand((200, 4), generator=generator) < 0.6
    seen = titles[torch.randint(12, (200, 4), generator=generator)].where(is_there, pad)
    asked = seen[:, :2].where(torch.rand((200, 2), generator=generator) < 0.5, pad)
    previous = torch.where(torch.rand(200, generator=generator) < 0.5, after, 7)
    states = torch.randn((200, 16), generator=generator)
    logits = model.language_logits(states, seen, asked, previous)
    never = set(model.never_written.tolist())
    words = set(range(logits.shape[1])) - set(titles.tolist()) - never
    num_asking = 0
    for r in range(200):
        shown, done = set(seen[r].tolist()) - {pad}, set(asked[r].tolist()) - {pad}
        has_asked = len(done) >= min(least, len(shown))
        may_write = words if has_asked else words - {answer}
        if previous[r] == after and shown - done:
            may_write = shown - done
            num_asking += 1
        elif not shown - done:
            may_write = may_write - {after}
        assert set(logits[r].isfinite().nonzero()[:, 0].tolist()) == may_write
    assert 20 < num_asking < 180
    plain = backbone_logits(model.backbone, states) * TINY_SHARPNESS
    finite = logits[:, sorted(words)].where(logits[:, sorted(words)].isfinite(), 0.0)
    expected = plain[:, sorted(words)].where(finite != 0, 0.0)
    assert torch.equal(finite, expected)


def test_how_recent_a_title_is_adds_to_asking_about_it():
    model = toy_model(num_items=6)
    with torch.no_grad():
        model.asks_recent[:3] = torch.tensor([5.0, 2.0, -1.0])
    tokens = model.item_table.title_token_ids
    after = model.writer.encode(" After")[-1]
    states, nothing = torch.randn(1, 16), torch.full((1, 1), model.writer.pad_id)
    # items 3 1 3 and padding: 3 is the newest and 1 the one before; the older 3 does not count
    seen = torch.tensor([[tokens[3], tokens[1], tokens[3], model.writer.pad_id]])
    previous = torch.tensor([after])
    learned = model.language_logits(states, seen, nothing, previous)
    with torch.no_grad():
        model.asks_recent.zero_()
    plain = model.language_logits(states, seen, nothing, previous)
    assert learned.isfinite().sum() == 2
    torch.testing.assert_close((learned - plain)[0, tokens[[3, 1]]], torch.tensor([5.0, 2.0]))
    # with nothing learned, states and embeddings aside, the newer title is ahead by a constant
    with torch.no_grad():
        model.backbone.get_input_embeddings().weight.zero_()
    bare = model.language_logits(states, seen, nothing, previous)
    torch.testing.assert_close(bare[0, tokens[[3, 1]]], torch.tensor([0.0, -0.7]))


def test_no_thought_of_the_teacher_is_impossible_for_the_model():
    # rows with repeats, longer than a prompt: what is not shown or was asked already is -inf
    rows = [[i % 5, 7, 7, i % 5, 3, 3, 8, i % 4, 9, 7, 7, 1, 1] for i in range(12)]
    dataset = toy_dataset(rows, [f"Tale {i}" for i in range(12)])
    model = toy_model(max_history=4)
    verbaliser = toy_verbaliser(model, dataset, num_lookups=5)
    windows = schedule_windows(dataset.train, max_history=4, num_epochs=2, batch_size=4, seed=0)
    data = WindowDataset(
        dataset.train, windows, model.writer, verbaliser=verbaliser, num_branches=3
    )
    for start in range(0, len(data), 16):
        batch = data.__getitems__(range(start, min(start + 16, len(data))))
        loss, _ = sft_loss(model, batch, SftLossConfig())
        assert loss.isfinite()


def test_a_thought_moves_new_items_alone_and_the_history_keeps_what_it_had():
    before = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log() + 5  # scores, of no scale of their own
    after = torch.tensor([[0.7, 0.1, 0.15, 0.05]]).log()
    is_own = torch.tensor([[True, False, False, True]])
    # history: .1 and .4 as before; the other half is shared 2 : 3, as after the thought
    expected = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    torch.testing.assert_close(beside_history(after, before, is_own).exp(), expected)
    everything = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(beside_history(after, before, everything).exp(), expected)
    nothing = ~everything
    torch.testing.assert_close(beside_history(after, before, nothing), after)


@pytest.mark.parametrize("repeats", [False, True])
def test_served_thoughts_leave_the_history_where_it_was_unless_things_are_offered_again(repeats):
    dataset = toy_dataset(ring_rows(6, 12, 8), [f"Tale {i}" for i in range(12)])
    model = toy_model(pointer=True)
    model.head = model.head.model_copy(update={"repeats": repeats})
    with torch.no_grad():
        model.pointer.amount[:] = 0.3
    verbaliser = toy_verbaliser(model, dataset, num_lookups=1)
    thinking = EvidenceRecommender(model, verbaliser)
    histories = dataset.test.histories()
    silent = NoThinkRecommender(model).score(histories).scores
    served = thinking.score(histories).scores
    gathered = thinking.write(histories)
    found = Evidence(gathered.named_item, gathered.named_weight, gathered.named_kind)
    pre = gathered.pre_states
    raw = model.score_thoughts(pre, gathered.post_states, found).detach().numpy()
    for row in range(len(histories)):
        own = np.unique(histories.row(row))
        new = np.setdiff1d(np.arange(12), own)
        if repeats:
            np.testing.assert_array_equal(served[row], raw[row])
            continue
        logp = silent[row] - np.log(np.exp(silent[row]).sum())
        np.testing.assert_allclose(served[row, own], logp[own], atol=1e-5)
        assert np.exp(served[row]).sum() == pytest.approx(1, abs=1e-5)
        assert served[row, new].argsort().tolist() == raw[row, new].argsort().tolist()

"""The control of thinking: what a thought would look up, and no thought."""

import numpy as np
import pytest
import torch
from tests.toy_models import ring_rows, texts, toy_model, toy_verbaliser
from tests.toys import toy_dataset

from reasonrec.metrics import ndcg
from reasonrec.models.branches import Batch
from reasonrec.models.ranking import rank_targets
from reasonrec.models.recommenders import EvidenceRecommender, NoThinkRecommender
from reasonrec.records import Histories
from reasonrec.traces.found import evidence_columns
from reasonrec.training.config import SftLossConfig
from reasonrec.training.examples import WindowDataset, schedule_windows
from reasonrec.training.losses import sft_loss

N = 12
TITLES = [f"Tale {i}" for i in range(N)]


def _shop(num_users=8):
    return toy_dataset(ring_rows(num_users, N, 9), TITLES)


def _control(dataset, *, amount=0.0, in_prompt=False, **thought):
    model = toy_model()
    with torch.no_grad():
        model.pointer.amount[:2] = amount
    return EvidenceRecommender(
        model, toy_verbaliser(model, dataset, **thought), in_prompt=in_prompt
    )


def _windows(dataset, recommender, *, num_epochs=1, num_branches=2):
    windows = schedule_windows(
        dataset.train, max_history=8, num_epochs=num_epochs, batch_size=4, seed=0
    )
    return WindowDataset(
        dataset.train, windows, recommender.model.writer, verbaliser=recommender.verbaliser,
        num_branches=num_branches, writes=False, in_prompt=recommender.in_prompt, seed=0,
    )  # fmt: skip


def test_the_fixed_rule_asks_about_the_newest_items_each_once():
    verbaliser = _control(_shop(), num_lookups=3).verbaliser
    gathered = verbaliser.gather(Histories.from_lists([[5, 1, 2, 3, 2], [7], []]))
    # the second 2 is the newest item and stands for both; two rows are shorter than three questions
    assert [[one.via_item_index for one in row] for row in gathered] == [[2, 3, 1], [7], []]


def test_the_fixed_rule_asks_about_the_people_that_a_thought_asks_about():
    dataset = _shop()
    verbaliser = _control(dataset, num_lookups=2, num_people=2).verbaliser
    histories = dataset.valid.histories()
    people = verbaliser.people_alike(histories)
    gathered = verbaliser.gather(histories)
    for b in range(len(histories)):
        assert [one for one in gathered[b] if one.kind == "alike"] == people.records(b)
    _, _, kind = evidence_columns(gathered)
    assert set(kind.ravel().tolist()) == {0, 1}


def test_the_evidence_is_what_a_thought_finds_that_asks_the_same():
    dataset = _shop()
    recommender = _control(dataset, num_lookups=3, lookup_window=3)  # all thoughts ask all three
    histories = dataset.valid.histories()
    gathered = recommender.write(histories)
    thoughts = recommender.verbaliser.write(histories, seed=0, keys=np.arange(len(histories)))
    for b in range(len(histories)):
        found = gathered.named_item[b] >= 0
        named = thoughts.named[b].items
        assert gathered.named_item[b, found].tolist() == named.item_index.tolist()
        assert gathered.named_weight[b, found].tolist() == named.weight.tolist()
        assert [one.via_item_index for one in gathered.evidence[b]] == thoughts.via_item[b].tolist()


def test_evidence_takes_its_share_from_the_state_after_the_prompt():
    dataset = _shop()
    recommender = _control(dataset, amount=0.4, num_lookups=1)
    histories = dataset.valid.histories().take(np.array([2]))
    scored = recommender.score(histories)
    silent = NoThinkRecommender(recommender.model).score(histories).scores[0].astype(np.float64)
    p = np.exp(silent - silent.max())
    p /= p.sum()
    # amount .4, and trust sigmoid(0) = 1/2: a share of .2; p_found goes with p_state x weight
    (lookup,) = scored.evidence[0]
    parts = {link.item_index: p[link.item_index] * link.weight for link in lookup.links}
    expected = 0.8 * p
    for item, part in parts.items():
        expected[item] += 0.2 * part / sum(parts.values())
    own = np.isin(np.arange(N), histories.row(0))  # keeps what it had; what is new shares the rest
    expected *= p[~own].sum() / expected[~own].sum()
    expected[own] = p[own]
    assert len(parts) == 2 and own.any()
    np.testing.assert_allclose(np.exp(scored.scores[0]), expected, rtol=1e-4)
    assert scored.thoughts is None and scored.num_tokens is None


def test_an_untrained_control_ranks_as_without_a_thought():
    dataset = _shop()
    recommender = _control(dataset)
    histories = Histories.from_lists([[3, 4, 5], [0], []])
    scores = recommender.score(histories).scores
    silent = torch.from_numpy(NoThinkRecommender(recommender.model).score(histories).scores)
    np.testing.assert_allclose(scores, silent.log_softmax(-1).numpy(), atol=1e-5)


@pytest.mark.parametrize("in_prompt", [False, True])
def test_training_sees_the_scores_that_serving_gives(in_prompt):
    dataset = _shop()
    recommender = _control(dataset, amount=0.3, in_prompt=in_prompt, num_lookups=2)
    data = _windows(dataset, recommender)
    batch = data.__getitems__([0, 3, 5])
    assert ("branch_ids" in batch) == in_prompt
    assert "is_written" not in batch
    outputs = recommender.model.eval()(Batch(**batch))
    starts = dataset.train.user_offsets[dataset.train.user_index[data.windows.start[[0, 3, 5]]]]
    column = (batch["branch_at"][..., None] == batch["item_ends"][:, None, :]).int().argmax(-1)
    events = (starts[:, None] + column.numpy()).ravel()  # column j shows a user's first j events
    assert batch["target"].flatten().tolist() == dataset.train.item_index[events].tolist()
    histories = dataset.train.histories_before(events)
    pre, reached = outputs.pre_states.flatten(0, 1), outputs.think_logits.reshape(-1, N)
    with torch.no_grad():
        expected = recommender.model.beside_history(reached, pre, histories)
    served = recommender.score(histories).scores
    np.testing.assert_allclose(expected.numpy(), served, atol=1e-4)
    own = np.zeros(served.shape, bool)
    own[np.repeat(np.arange(len(histories)), histories.lengths), histories.item_index] = True
    # among new items the scores of training and serving differ by one constant a row
    apart = np.where(own, np.nan, reached.detach().numpy() - served)
    np.testing.assert_allclose(np.nanmax(apart, 1) - np.nanmin(apart, 1), 0, atol=1e-4)


def test_it_learns_to_use_evidence_that_helps_and_writes_nothing():
    dataset = toy_dataset(ring_rows(12, N, 8), TITLES)
    recommender = _control(dataset, num_lookups=1)
    data = _windows(dataset, recommender, num_epochs=30)
    pointer = list(recommender.model.pointer.parameters())
    optimiser = torch.optim.Adam(pointer, lr=3e-2)
    weights = SftLossConfig(next_item=0.0, think=1.0)
    for step in range(60):
        loss, logged = sft_loss(
            recommender.model, data.__getitems__(range(step, step + 8)), weights
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert "train/tokens" not in logged and "train/post" not in logged
    histories, target = dataset.valid.histories(), dataset.valid.target
    values = [
        ndcg(
            rank_targets(
                one.score(histories).scores, target, histories=histories,
                mask="history-except-target",
            ),
            10,
        ).mean()
        for one in (recommender, NoThinkRecommender(recommender.model))
    ]  # fmt: skip
    # neighbours walk the same ring, so what they took next is the answer; the trunk knows nothing
    assert recommender.model.pointer.amount[0] > 0.1
    assert values[0] > values[1] + 0.1


def test_a_prompt_that_holds_evidence_holds_exactly_that_and_is_read_at_its_end():
    dataset = _shop()
    recommender = _control(dataset, in_prompt=True, num_lookups=2, num_people=1, num_taken=2)
    model, writer = recommender.model, recommender.model.writer
    histories = dataset.valid.histories().take(np.array([1, 4]))
    gathered = recommender.write(histories)
    rows = recommender.verbaliser.as_prompt(gathered.evidence)
    for b, (person, *items) in enumerate(gathered.evidence):
        taken = " ".join(f"[Tale {link.item_index}]" for link in person.links)
        said = f" Alike: {taken};"
        for one in items:
            after = " ".join(f"[Tale {link.item_index}]" for link in one.links)
            said += f" After [Tale {one.via_item_index}]: {after};"
        assert texts(model, rows[b]) == f"{said}<answer>"
        assert len(items) == 2
        prompt = writer.prompts(histories.take(np.array([b]))).token_ids[0].tolist()
        whole = torch.tensor([[*prompt, *rows[b]]])
        hidden = model.backbone(whole, output_hidden_states=True).hidden_states[-1][0]
        torch.testing.assert_close(gathered.post_states[b], hidden[-1], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            gathered.pre_states[b], hidden[len(prompt) - 1], atol=1e-5, rtol=0
        )
    # nothing to ask about: the prompt ends where it is read
    assert recommender.verbaliser.as_prompt([[]]) == [writer.encode("<answer>")]
    scored = recommender.score(histories)
    assert scored.thoughts is None and scored.num_tokens is None


def test_a_prompt_with_evidence_trains_its_last_state_and_no_word():
    dataset = _shop()
    recommender = _control(dataset, in_prompt=True, num_lookups=1)
    batch = _windows(dataset, recommender).__getitems__([0, 1])
    _, logged = sft_loss(recommender.model, batch, SftLossConfig())
    assert set(logged) == {"train/next_item", "train/think", "train/post"}

import torch
from tests.toy_models import toy_model

from reasonrec.models.branches import Batch, branch_attention, read_thoughts
from reasonrec.records import Histories


def _batch(model, branch_lengths, branch_at):
    prompts = model.writer.prompts(Histories.from_lists([[1, 2, 3, 4], [5], [6, 7, 8, 9, 10]]))
    generator = torch.Generator().manual_seed(1)
    G, S = branch_lengths.shape[1], int(branch_lengths.max())
    # plain words only: which titles may be written is tested where thoughts are sampled
    ids = torch.randint(5, 250, (3, G, S), generator=generator)
    real = torch.arange(S) < branch_lengths[..., None]
    return Batch(
        torch.from_numpy(prompts.token_ids),
        torch.from_numpy(prompts.lengths),
        branch_ids=torch.where(real, ids, model.writer.pad_id),
        branch_lengths=branch_lengths,
        branch_at=branch_at,
        is_written=real,
    )


def test_a_branch_reads_as_if_it_alone_followed_its_part_of_the_prompt():
    model = toy_model()
    lengths = torch.tensor([[3, 5], [1, 4], [5, 2]])
    at = torch.tensor([[3, 5], [2, 2], [4, 6]])  # some branches leave before the prompt's end
    batch = _batch(model, lengths, at)
    outputs = model(batch, with_post=True)
    for b in range(3):
        for g in range(2):
            alone = torch.cat(
                [batch.trunk_ids[b, : at[b, g] + 1], batch.branch_ids[b, g, : lengths[b, g]]]
            )
            plain = model.backbone(alone[None], output_hidden_states=True)
            hidden = plain.hidden_states[-1][0]
            # float32 sums in another order: 1e-5 on values of about 1
            torch.testing.assert_close(
                outputs.pre_states[b, g], hidden[at[b, g]], atol=1e-5, rtol=0
            )
            torch.testing.assert_close(outputs.post_states[b, g], hidden[-1], atol=1e-5, rtol=0)
            for s in range(1, int(lengths[b, g])):
                so_far = batch.branch_ids[b, g, :s]  # every token counts as written here
                seen = batch.trunk_ids[b, : at[b, g] + 1]
                logits = model.language_logits(
                    hidden[at[b, g] + s][None], seen[None], so_far[None], so_far[-1:]
                )
                expected = logits.log_softmax(-1)[0, batch.branch_ids[b, g, s]]
                torch.testing.assert_close(outputs.token_logp[b, g, s], expected, atol=1e-4, rtol=0)
    assert (outputs.token_logp[..., 0] == 0).all()  # the opening marker is never written


def test_the_longest_branch_is_read_at_its_own_last_token():
    # the official code dropped one column after cropping: the longest rollout lost its last token
    model = toy_model()
    lengths = torch.tensor([[2], [2], [6]])
    batch = _batch(model, lengths, torch.tensor([[5], [2], [6]]))
    before = model(batch).post_states
    batch.branch_ids[2, 0, 5] = (batch.branch_ids[2, 0, 5] + 1) % 50 + 5
    after = model(batch).post_states
    assert not torch.allclose(before[2, 0], after[2, 0])
    torch.testing.assert_close(before[:2], after[:2])


def test_a_thought_is_read_at_its_end_or_over_all_its_tokens_by_hand():
    # one prompt of four tokens; of the first thought two of them are the beginning
    trunk = torch.tensor([[[100.0], [7.0], [2.0], [50.0]]])
    branches = torch.tensor([[[[3.0], [-4.0], [99.0]], [[1.0], [6.0], [2.0]]]])
    batch = Batch(
        torch.zeros(1, 4), torch.tensor([4]), branch_lengths=torch.tensor([[2, 3]]),
        pre_at=torch.tensor([[0, 3]]), branch_at=torch.tensor([[2, 3]]),
    )  # fmt: skip
    read = {how: read_thoughts(batch, trunk, branches, how) for how in ("last", "mean", "max")}
    assert read["last"].tolist() == [[[-4.0], [2.0]]]
    assert read["mean"].tolist() == [[[(7 + 2 + 3 - 4) / 4], [(1 + 6 + 2) / 3]]]
    assert read["max"].tolist() == [[[7.0], [6.0]]]
    batch.pre_at = None  # the branch is the whole thought
    assert read_thoughts(batch, trunk, branches, "mean").tolist() == [[[-0.5], [3.0]]]


def test_who_may_attend_to_whom():
    allowed = branch_attention(
        trunk_lengths=torch.tensor([2]), num_trunk=3,
        branch_lengths=torch.tensor([[2, 1]]), branch_at=torch.tensor([[1, 0]]), num_step=2,
    )[0]  # fmt: skip
    # columns and rows: trunk 0 1 and padding, branch a0 a1, branch b0 and padding
    expected = [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],  # padding sees itself, so that no softmax is empty
        [1, 1, 0, 1, 0, 0, 0],  # a sees the prompt up to 1
        [1, 1, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],  # b sees the prompt up to 0, and nothing of a
        [1, 0, 0, 0, 0, 1, 1],
    ]
    assert allowed.int().tolist() == expected


def test_dense_next_item_probabilities_are_over_the_whole_catalogue():
    model = toy_model(num_items=7)
    prompts = model.writer.prompts(Histories.from_lists([[1, 2]]))
    total = 0.0
    for item in range(7):
        batch = Batch(
            torch.from_numpy(prompts.token_ids),
            torch.from_numpy(prompts.lengths),
            item_ends=torch.from_numpy(prompts.item_ends),
            next_item=torch.tensor([[-100, -100, item]]),
        )
        logp = model(batch).next_item_logp
        assert logp.shape == (1,)
        total += logp.exp().item()
    assert abs(total - 1) < 1e-5

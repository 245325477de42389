"""Copying titles from what was read, worked out by hand."""

import math

import torch

from reasonrec.models.copying import LOOKBACK, TitleCopier, following, tokens_before


def test_language_and_copied_titles_are_mixed_by_the_gate():
    copier = TitleCopier(4)
    torch.nn.init.constant_(copier.gate.bias, math.log(3.0))  # sigmoid(ln 3) = 3/4
    logits = torch.zeros(2, 5)  # the language head gives every token 1/5
    match = torch.tensor([[0.0, math.log(3.0), 7.0], [1.0, 2.0, 3.0]])
    token_ids = torch.tensor([[4, 2, 3], [4, 2, 3]])
    is_source = torch.tensor([[True, True, False], [False, False, False]])
    mixed = copier.mix(logits, torch.zeros(2, 4), match, token_ids, is_source).exp()
    # row 0: attention 1/4 to token 4, 3/4 to token 2; 1/4 * 1/5 = .05, + 3/4 of the attention
    expected = torch.tensor([[0.05, 0.05, 0.05 + 0.5625, 0.05, 0.05 + 0.1875], [0.2] * 5])
    torch.testing.assert_close(mixed, expected)  # row 1 has nothing to copy


def test_what_stands_before_a_place_ends_where_its_text_begins():
    ids = torch.tensor([[11, 12, 13, 21, 22]])
    place = torch.tensor([[0, 1, 2, 0, 1]])  # two texts in one row
    before = tokens_before(ids, place, 0)
    assert before.shape == (1, 5, LOOKBACK)
    assert before[0, :, :3].tolist() == [[0, 0, 0], [11, 0, 0], [12, 11, 0], [0, 0, 0], [21, 0, 0]]
    assert following(before, ids)[0, 2, :4].tolist() == [13, 12, 11, 0]

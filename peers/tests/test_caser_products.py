"""Caser's filters as products of matrices: the numbers and gradients of the convolutions."""

import pytest
import torch
from recbole_caser import AcrossFactors, AlongTime
from torch import nn

L, D, FILTERS = 6, 5, 3


@pytest.mark.parametrize(
    ("kind", "size"),
    [(AlongTime, (L, 1)), *((AcrossFactors, (length, D)) for length in (1, 2, 5, L))],
)
def test_products_are_the_convolution_and_so_are_their_gradients(kind, size):
    torch.manual_seed(0)
    conv = nn.Conv2d(1, FILTERS, size).double()
    images = torch.randn(4, 1, L, D, dtype=torch.double, requires_grad=True)
    asked = [images, conv.weight, conv.bias]
    out, expected = kind(conv)(images), conv(images)
    torch.testing.assert_close(out, expected)
    slope = torch.randn_like(expected)
    for found, of_library in zip(
        torch.autograd.grad((out * slope).sum(), asked),
        torch.autograd.grad((expected * slope).sum(), asked),
        strict=True,
    ):
        torch.testing.assert_close(found, of_library)


def test_operations_are_not_looked_through_for_nan():
    assert not torch.is_anomaly_enabled()

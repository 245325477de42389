"""Scores at the places that are asked about give the loss and gradient of scores everywhere."""

import pytest
import torch
from rectools.models.nn.transformers.lightning import TransformerLightningModule
from rectools.models.nn.transformers.similarity import DistanceSimilarityModule
from rectools_models import AskedPlaces, CatalogueLoss
from torch import nn

NUM_ITEMS, WIDTH, NUM_NEGATIVES = 30, 8, 5


class Network(nn.Module):
    """Stands in for an encoder: each place is a turned row of its item."""

    def __init__(self, distance: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows = nn.Parameter(torch.randn(NUM_ITEMS + 1, WIDTH))
        self.turn = nn.Linear(WIDTH, WIDTH)
        self.item_model = self
        self.similarity_module = DistanceSimilarityModule(distance)

    def get_all_embeddings(self):
        return self.rows

    def encode_sessions(self, batch, item_rows):
        return self.turn(item_rows[batch["x"]])

    def forward(self, batch, candidate_item_ids=None):
        rows = self.get_all_embeddings()
        return self.similarity_module(self.encode_sessions(batch, rows), rows, candidate_item_ids)


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax"])
@pytest.mark.parametrize("distance", ["dot", "cosine"])
@pytest.mark.parametrize("asked", ["padded", "masked"])
def test_loss_and_gradient_are_the_librarys(loss, distance, asked, monkeypatch):
    monkeypatch.setattr(CatalogueLoss, "PLACES", 7)
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(1, NUM_ITEMS + 1, (4, 6), generator=draw)
    y = torch.randint(1, NUM_ITEMS + 1, (4, 6), generator=draw)
    if asked == "padded":
        y[0, :5], y[1, :3], x[0, :5], x[1, :3] = 0, 0, 0, 0
    else:
        y[torch.rand(4, 6, generator=draw) > 0.3] = 0
    batch = {"x": x, "y": y, "yw": torch.rand(4, 6, generator=draw) + 0.5}
    if loss == "sampled_softmax":
        batch["negatives"] = torch.randint(1, NUM_ITEMS + 1, (4, 6, NUM_NEGATIVES), generator=draw)
    found = []
    for kind in (TransformerLightningModule, AskedPlaces):
        network = Network(distance)
        module = kind(
            torch_model=network, model_config={}, dataset_schema={}, item_external_ids=[],
            item_extra_tokens=["PAD"], data_preparator=None, lr=0.1, gbce_t=0.5, loss=loss,
            logits_t=0.7,
        )  # fmt: skip
        module.log = lambda *_, **__: None
        value = module.training_step(batch, 0)
        value.backward()
        found.append((value.detach(), network.rows.grad, network.turn.weight.grad))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)

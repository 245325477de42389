"""Caser of RecBole: its network and its loss, trained here on every place of every history.

RecBole reads files of its own and decides alone what is evaluated on what, so only its model is
used, handed what it asks of a configuration and of a data set. Cross-entropy over the whole
catalogue, as the library's default. Each event of training, but for a user's first, is a target;
the events before it, at most ``max_events`` of them, are the image that is convolved, padded on
the right as the library pads. Its filters are as long or as wide as the image, so that they are
multiplied as matrices: the numbers and gradients of the library's convolutions, in half the time.
"""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from contract import Histories, Prepared, Scorer, UnfitError, Watch
from recbole.model.sequential_recommender.caser import Caser
from torch import Tensor, nn

# one of the library's modules has every operation of the process looked through for NaN, which
# takes half of all time; the loss is looked at instead
torch.autograd.set_detect_anomaly(False)


def train_caser(prepared: Prepared, settings: Mapping[str, Any], seed: int) -> Scorer:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    length = settings["max_events"]
    config = {
        "USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length", "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": length, "device": "cpu", "loss_type": "CE",
        "embedding_size": settings["num_factors"], "nh": settings["num_horizontal"],
        "nv": settings["num_vertical"], "dropout_prob": settings["dropout"],
        "reg_weight": settings["regularisation"],
    }  # fmt: skip
    # the library counts users and items from 1 and keeps 0 for padding
    sizes = {"user": prepared.num_users + 1, "item": prepared.num_items + 1}
    model = Caser(config, SimpleNamespace(user_num=sizes["user"], num=sizes.__getitem__))
    model.conv_v = AlongTime(model.conv_v)
    model.conv_h = nn.ModuleList([AcrossFactors(conv) for conv in model.conv_h])
    optimiser = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    is_known_user = np.zeros(prepared.num_users, bool)
    is_known_user[prepared.user_index] = True
    scorer = _Convolution(model, length, is_known_user, prepared.item_counts > 0)
    watch = Watch(prepared, settings["check_every"], settings["patience"])
    users, images, targets = _places(prepared, length)
    if len(targets) == 0:
        raise UnfitError("training must hold a user with two events; there is none")
    size = settings["batch_size"]
    for epoch in range(1, settings["max_epochs"] + 1):
        model.train()
        order = rng.permutation(len(targets))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            loss = model.calculate_loss(
                {
                    "user": torch.from_numpy(users[batch]),
                    "item_list": torch.from_numpy(images[batch]),
                    "item": torch.from_numpy(targets[batch]),
                }
            )
            if not torch.isfinite(loss):
                raise UnfitError("the loss must stay finite; with these settings it did not")
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if watch.is_over(epoch, model, scorer):
            break
    scorer.epochs = watch.restore(model)
    return scorer


class AlongTime(nn.Module):
    """A convolution whose filters are as long as the image, and one factor wide."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 1, L, D) to (B, filters, 1, D)."""
        mixed = self.weight[:, 0, :, 0] @ images[:, 0]
        return (mixed + self.bias[:, None])[:, :, None]


class AcrossFactors(nn.Module):
    """A convolution whose filters are as wide as the image, and some events long."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 1, L, D) to (B, filters, L - length + 1, 1)."""
        num_filters, _, length, width = self.weight.shape
        # every filter row meets every event once; what a place sums up lies along a diagonal
        rows = self.weight[:, 0].transpose(0, 1).reshape(-1, width)
        met = (images[:, 0] @ rows.T).unflatten(2, (length, num_filters))  # (B, L, length, filters)
        stop = met.shape[1] - length + 1
        summed = self.bias + sum(met[:, k : stop + k, k] for k in range(length))
        return summed.transpose(1, 2)[..., None]


def _places(prepared: Prepared, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the user, the events before, and the target of each place; counted from 1."""
    user, item = prepared.user_index, prepared.item_index
    first = np.searchsorted(user, user)  # where the user of each event begins
    place = np.flatnonzero(np.arange(len(user)) > first)
    begin = np.maximum(first[place], place - length)
    columns = begin[:, None] + np.arange(length)  # (P, L)
    images = np.where(columns < place[:, None], item[np.minimum(columns, len(item) - 1)] + 1, 0)
    return user[place] + 1, images, item[place] + 1


class _Convolution:
    """Scores histories by the library's own prediction over all items."""

    def __init__(
        self, model: Caser, length: int, is_known_user: np.ndarray, is_known: np.ndarray
    ) -> None:
        self.model, self.length = model, length
        self.is_known_user, self.is_known = is_known_user, is_known
        self.epochs = 0

    @torch.inference_mode()
    def score(self, histories: Histories) -> np.ndarray:
        images = np.zeros((len(histories), self.length), np.int64)
        for row, items in enumerate(histories.items):
            last = items[-self.length :] + 1
            images[row, : len(last)] = last
        # a user whom training never saw has no embedding: padding, which is 0
        users = histories.user_index
        known = (users >= 0) & self.is_known_user[users]
        asked = {
            "user": torch.from_numpy(np.where(known, users + 1, 0)),
            "item_list": torch.from_numpy(images),
            "item_length": None,
        }
        return self.model.full_sort_predict(asked)[:, 1:].numpy()

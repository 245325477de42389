"""LightGCN of torch_geometric: its propagation and its loss, trained here in batches of edges.

The library's embeddings are of users and items in one graph, users first. A query is answered from
its own history, as all methods are: the user's edges are replaced by the history, the items stay
as they were learned, and the library's rule is applied to this one node (``_Graph.score``). A user
whom training knows keeps the embedding that was learned; for others it is 0, and the history
speaks alone.

Departs from the paper: the weight decay is on the rows of a batch, per pair, as authors' code
does; repeats of a user and an item are one edge.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from contract import Histories, Prepared, Scorer, UnfitError, Watch
from torch_geometric.nn import LightGCN


def train_lightgcn(prepared: Prepared, settings: Mapping[str, Any], seed: int) -> Scorer:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    num_users, num_items = prepared.num_users, prepared.num_items
    pairs = np.unique(prepared.user_index * num_items + prepared.item_index)
    users, items = pairs // num_items, pairs % num_items
    model = LightGCN(num_users + num_items, settings["num_factors"], settings["num_layers"])
    optimiser = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    # both directions, as one sparse matrix: one product for each layer
    ends = torch.from_numpy(np.stack([users, items + num_users]))
    edges = torch.cat([ends, ends.flip(0)], dim=1)
    scorer = _Graph(model, prepared, edges)
    watch = Watch(prepared, settings["check_every"], settings["patience"])
    size = settings["batch_size"]
    for epoch in range(1, settings["max_epochs"] + 1):
        model.train()
        order = rng.permutation(len(pairs))
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            others = _negatives(rng, pairs, users[batch], num_items)
            user = torch.from_numpy(users[batch])
            taken = torch.from_numpy(items[batch] + num_users)
            other = torch.from_numpy(others + num_users)
            rows = scorer.propagate()
            liked = (rows[user] * rows[taken]).sum(dim=1)
            disliked = (rows[user] * rows[other]).sum(dim=1)
            loss = model.recommendation_loss(
                liked,
                disliked,
                node_id=torch.cat([user, taken, other]),
                lambda_reg=settings["regularisation"],
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


def _negatives(
    rng: np.random.Generator, pairs: np.ndarray, users: np.ndarray, num_items: int
) -> np.ndarray:
    """Return an item for each user that the user did not take in training, uniformly."""
    drawn = rng.integers(num_items, size=len(users))
    for _ in range(20):  # who took nearly everything keeps what was drawn last
        keys = users * num_items + drawn
        places = np.minimum(np.searchsorted(pairs, keys), len(pairs) - 1)
        is_taken = pairs[places] == keys
        if not is_taken.any():
            break
        drawn[is_taken] = rng.integers(num_items, size=int(is_taken.sum()))
    return drawn


class _Graph:
    """Scores histories as nodes that hang on the learned items."""

    def __init__(self, model: LightGCN, prepared: Prepared, edges: torch.Tensor) -> None:
        num_nodes = model.num_nodes
        self.model, self.num_users = model, prepared.num_users
        self.epochs = 0
        degree = torch.bincount(edges[0], minlength=num_nodes).float()
        weight = (degree[edges[0]] * degree[edges[1]]) ** -0.5
        self.matrix = torch.sparse_coo_tensor(
            edges.flip(0), weight, (num_nodes, num_nodes)
        ).to_sparse_csr()
        self.item_degree = degree[self.num_users :]
        is_known = torch.bincount(edges[0], minlength=num_nodes)[: self.num_users] > 0
        self.is_known_user = is_known.numpy()
        self.is_known = prepared.item_counts > 0

    def layers(self) -> list[torch.Tensor]:
        """Return the embeddings of all nodes, layer after layer, from the learned ones on."""
        rows = [self.model.embedding.weight]
        for _ in range(self.model.num_layers):
            rows.append(self.matrix @ rows[-1])
        return rows

    def propagate(self) -> torch.Tensor:
        """Return what ``LightGCN.get_embedding`` does, by one sparse product a layer."""
        return sum(
            share * rows for share, rows in zip(self.model.alpha, self.layers(), strict=True)
        )  # type: ignore[return-value]

    @torch.inference_mode()
    def score(self, histories: Histories) -> np.ndarray:
        layers = self.layers()
        item_rows = [rows[self.num_users :] for rows in layers]
        users = torch.zeros(len(histories), layers[0].shape[1])
        known = np.array([u >= 0 and self.is_known_user[u] for u in histories.user_index], bool)
        alpha = self.model.alpha
        if known.any():
            users[known] = alpha[0] * layers[0][torch.from_numpy(histories.user_index[known])]
        for row, items in enumerate(histories.items):
            taken = torch.from_numpy(np.unique(items))
            weight = (len(taken) * self.item_degree[taken]) ** -0.5  # (M,)
            for layer in range(1, len(layers)):
                users[row] += alpha[layer] * (weight @ item_rows[layer - 1][taken])
        final = sum(share * rows for share, rows in zip(alpha, item_rows, strict=True))
        return (users @ final.T).numpy()

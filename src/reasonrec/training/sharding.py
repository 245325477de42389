"""FSDP2: weights that are shared out among the processes, and the model itself beside them.

A training pass runs on the copy that `shared_out` makes: a process holds a part of each weight, and
a layer's are put together while it computes. Rollouts, item rows, validation and files read weights
outside of that pass, some of them on one process alone. They get the model itself, which has whole
weights for as long as `whole` lasts and none in between.
"""

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from reasonrec import ranks
from reasonrec.models.reasoning_recommender import ReasoningRecommender


def shared_out(model: ReasoningRecommender) -> FSDPModule:
    """Return a copy of a model of which each process holds a part; the model's weights are let go.

    A layer's weights are put together for its forward and again for its backward pass, all others
    for the whole step. Buffers, item rows encoded from text among them, stay whole in both models.
    """
    kept = [
        *model.parameters(), *model.buffers(), model.tokenizer, model.writer,
        model.titles, model.item_ids, model.item_texts,
    ]  # fmt: skip
    shared: Any = copy.deepcopy(model, {id(one): one for one in kept})
    # not by the length of a rank's own rows: each pass over the layers is one of all ranks
    shared._can_branch = model.takes_own_masks(sys.maxsize)
    mesh = init_device_mesh(model.device.type, (ranks.num_ranks(),))
    for layer in shared.backbone.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            fully_shard(layer, mesh=mesh)
    fully_shard(shared, mesh=mesh)
    object.__setattr__(shared, "lent", model)  # an attribute, but no part of the copy
    _let_go(model)
    return shared


@contextmanager
def whole(model: nn.Module) -> Iterator[Any]:
    """Lend the model itself, with whole weights, from what training has wrapped it in, if anything.

    All ranks enter and leave together; within, each may do as it likes. What is changed in the
    weights is forgotten at the end, unless it was handed out.
    """
    if not isinstance(model, FSDPModule):
        yield getattr(model, "module", model)  # the model itself where DDP wraps it
        return
    lent = put_together(model).train(model.training)
    try:
        yield lent
    finally:
        _let_go(lent)


@torch.no_grad()
def put_together(shared: Any) -> ReasoningRecommender:
    """Return the model itself with its whole weights, which it keeps."""
    for weight, part in zip(shared.lent.parameters(), shared.parameters(), strict=True):
        weight.data = whole_tensor(part.detach())
    return shared.lent


@torch.no_grad()
def hand_out(shared: Any) -> None:
    """Take the weights that the lent model has now for those that are shared out."""
    for weight, part in zip(shared.lent.parameters(), shared.parameters(), strict=True):
        part.copy_(part_of(weight.detach(), part))


def _let_go(model: nn.Module) -> None:
    for weight in model.parameters():
        weight.data = weight.data.new_empty(0)


def whole_tensor(part: Tensor) -> Tensor:
    """Return a tensor that may be shared out as the whole that it is; all ranks ask together."""
    if not isinstance(part, DTensor):
        return part
    return part.full_tensor().clone()  # it came with padding behind it, which no file may hold


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, alike on all ranks, shared out as another one of its shape is."""
    if not isinstance(like, DTensor):
        return tensor
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def with_gradients_everywhere(loss: Tensor, shared: Any) -> None:
    """Let the backward pass of a loss give each rank a gradient of whatever another has one of.

    Ranks add up their gradients in one row, so all must have those of the same weights; that of a
    weight that a rank's rows did not use is 0.
    """

    def fill() -> None:
        # those of a layer have been added up by now
        weights = [w for w in shared.parameters() if w.requires_grad and not isinstance(w, DTensor)]
        is_used = ranks.gathered_objects([weight.grad is not None for weight in weights])
        for weight, used in zip(weights, zip(*is_used, strict=True), strict=True):
            if weight.grad is None and any(used):
                weight.grad = torch.zeros_like(weight)

    # called in the order of asking: before FSDP's own, which is asked for further down the graph
    loss.register_hook(lambda _: Variable._execution_engine.queue_callback(fill))

"""Counts the bytes of all tensors that are alive at a time, as they come and go."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Within it, ``peak`` is the most bytes that tensors made within it took at a time.

    Args:
        counts: Which of them count; all if left out.
    """

    def __init__(self, counts: Callable[[torch.Tensor], bool] = lambda tensor: True) -> None:
        super().__init__()
        self._counts = counts
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }  # fmt: skip
        result = func(*args, **(kwargs or {}))
        self._alive = {
            key: (reference, size)
            for key, (reference, size) in self._alive.items() if not reference.expired()
        }  # fmt: skip
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self._counts(leaf):
                storage = leaf.untyped_storage()
                if storage._cdata not in given:  # a view, or written in place
                    self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return result

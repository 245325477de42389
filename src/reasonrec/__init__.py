"""Recommenders that think before they recommend, and show why."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("reasonrec")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

if TYPE_CHECKING:
    from reasonrec.data.dataset import Dataset
    from reasonrec.methods.r2ec import R2ec

__all__ = ["Dataset", "R2ec", "__version__"]

_HOMES = {"Dataset": "reasonrec.data.dataset", "R2ec": "reasonrec.methods.r2ec"}


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import; `reasonrec --help` must not wait for them
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'reasonrec' has no attribute {name!r}")

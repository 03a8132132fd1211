"""Pretraining of Vision Transformers on WebDataset shards, with an evaluator in a process of its own.

For notebooks: `pipeline.load("runs/l16")` opens a model, `pipeline.read_features("features/cifar10")` what `embed` wrote
(docs/notebook.md). Importing this package imports nothing heavy; the first use of one of these names does.
"""

from typing import Any

__version__ = "0.1.0"
_FOR_NOTEBOOKS = ("load", "read_features")


def __getattr__(name: str) -> Any:
    """Import the functions for notebooks when they are first asked for."""
    if name not in _FOR_NOTEBOOKS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # by name: whoever imports this package does not depend on all that they need

    return getattr(import_module("pipeline.notebook"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_FOR_NOTEBOOKS])

"""Find a model's tensors in what training programs save, under their checkpoints' names and their wrappers' prefixes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.errors import ExchangeError

# Entries of a checkpoint that hold a model, in the order in which they are looked for. `teacher` is DINO's, whose evaluation
# reads it (facebookresearch/dino, eval_linear.py, --checkpoint_key).
_MODELS = ("state_dict", "model", "model_state_dict", "module", "teacher", "state_dict_ema", "model_ema", "ema", "student")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict")
# What wrappers put in front of every name: DistributedDataParallel, torch.compile, Lightning's modules.
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_DEEPEST = 4  # levels of entries


@dataclass(frozen=True)
class StateDict:
    """Holds tensors by name, and how they were found, in words."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def state_dict_of(found: Any, *, source: str) -> StateDict:
    """Return the state dict that a checkpoint holds, directly or in one of its usual entries.

    Raises:
        ExchangeError: there is none.
    """
    notes: list[str] = []
    for _ in range(_DEEPEST):
        if not isinstance(found, Mapping):
            break
        entries = [name for name in _MODELS if _holds_tensors(found.get(name))]
        if not entries:
            break
        others = [name for name in (*entries[1:], *_AVERAGES) if name != entries[0] and _holds_tensors(found.get(name))]
        if others:
            notes.append(
                f"the checkpoint holds {', '.join([entries[0], *dict.fromkeys(others)])}: {entries[0]} is read; to read "
                "another, save it in a file of its own"
            )
        found = found[entries[0]]
    if isinstance(found, Mapping):
        tensors = {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if tensors:
            return StateDict(tensors, tuple(notes))
    names = ", ".join(str(name)[:40] for name in list(found)[:5]) if isinstance(found, Mapping) else type(found).__name__
    raise ExchangeError(f"{source} holds no tensors by name: it is no state dict (it holds {names or 'nothing'})")


def _holds_tensors(value: Any, *, deepest: int = _DEEPEST) -> bool:
    """Return whether an entry is a state dict, or a checkpoint in a checkpoint; a pickle may hold itself."""
    if not isinstance(value, Mapping) or deepest == 0:
        return False
    inner = (name in _MODELS and _holds_tensors(value[name], deepest=deepest - 1) for name in value)
    return any(isinstance(entry, Tensor) for entry in value.values()) or any(inner)


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors without what wrappers put in front of every name; torch.compile does so within names too."""
    found = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
    while found and (prefix := next((some for some in _WRAPPERS if all(name.startswith(some) for name in found)), None)):
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def part_of(state: StateDict, *, anchors: Sequence[str], source: str) -> StateDict:
    """Return the model whose names end with all of some, where a state dict holds it as a part, under one prefix.

    Args:
        anchors: names of tensors that the model has, each.

    Returns:
        The part without its prefix; the state dict itself where no part has these names.

    Raises:
        ExchangeError: several parts have them.
    """
    tensors = unwrapped(state.tensors)
    first = anchors[0]
    prefixes = [name.removesuffix(first) for name in tensors if name.endswith(first)]
    parts = [prefix for prefix in prefixes if all(f"{prefix}{anchor}" in tensors for anchor in anchors)]
    if "" in parts or not parts:
        return StateDict(tensors, state.notes)
    if len(parts) > 1:
        parts = [part for part in parts if part.startswith("teacher.")] or parts
    if len(parts) > 1:
        shown = ", ".join(parts[:4])
        raise ExchangeError(
            f"{source} holds several models ({shown}); save one of them in a file of its own, without the prefix"
        )
    (prefix,) = parts
    found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    note = f"the names of the model's {len(found)} tensors begin with {prefix}; {len(tensors) - len(found)} others are left out"
    return StateDict(found, (*state.notes, note))

"""Make a model's configuration from a file's plain values. Each is checked against the type of its field."""

from __future__ import annotations

import math
import types
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

LARGEST_SIZE = 2**31 - 1  # limit of a width, a depth, ... that is read from a file

Described = TypeVar("Described")


def from_plain(kind: type[Described], values: Any) -> Described:
    """Return a dataclass from a mapping of its fields; a field with a default may be absent.

    A whole number is at least 1, or `least` in its field's metadata.

    Raises:
        ValueError: an unknown or a missing key, or a value that is none of its field's.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    needed = {name for name, field in known.items() if field.default is MISSING}
    if not isinstance(values, dict) or not needed <= values.keys() <= known.keys():
        raise ValueError(f"the model's description is not the keys {', '.join(sorted(known))}")
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for name, value in values.items():
        found[name] = list_as_tuple(value)
        if not _fits(found[name], hints[name], least=known[name].metadata.get("least", 1)):
            raise ValueError(f"the model's {name} is {str(value)[:40]}")
    return kind(**found)


def list_as_tuple(value: Any) -> Any:
    """Return lists as tuples, which JSON does not have."""
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any, *, least: int) -> bool:
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part, least=least) for part in get_args(hint))
    if origin is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if origin is tuple:
        parts = get_args(hint)
        if isinstance(value, tuple) and parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        return (
            isinstance(value, tuple)
            and len(value) == len(parts)
            and all(_fits(item, part, least=least) for item, part in zip(value, parts, strict=True))
        )
    if hint is int:
        return type(value) is int and least <= value <= LARGEST_SIZE
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return value is None if hint is type(None) else type(value) is hint

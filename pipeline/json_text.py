"""Parse JSON so that every damage is a ValueError. This module imports nothing heavy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds.

    Raises:
        ValueError: it is no JSON, not UTF-8, or nested more deeply than Python's parser can follow.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def to_finite(value: Any) -> Any:
    """Return the same values with null for every infinity and NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: to_finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

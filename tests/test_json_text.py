"""JSON is parsed as Python parses it, every damage is a ValueError, and what is written is JSON for every parser."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.json_text import parse_json, to_finite

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_made_finite_is_strict_json_and_finite_values_stay(value: Any) -> None:
    text = json.dumps(to_finite(value), allow_nan=False)
    assert parse_json(text) == to_finite(value)
    assert to_finite(to_finite(value)) == to_finite(value)


def test_infinities_and_nans_become_null_at_any_depth() -> None:
    found = to_finite({"a": [math.inf, (1.5, -math.inf)], "b": {"c": math.nan}, "d": 2})
    assert found == {"a": [None, [1.5, None]], "b": {"c": None}, "d": 2}


@pytest.mark.parametrize("text", ["", "{", "nul", b"\xff\xfe\xff", "[" * 100_000, '{"a":' * 100_000, b'"\xed\xa0"'])
def test_damage_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)

"""YAML as people write it: parsed to plain values, or refused in one sentence."""

from __future__ import annotations

from typing import Any

import yaml

MAX_VALUES = 100_000  # aliases followed: ten lines of aliases of aliases stand for billions
# PyYAML's constructors raise these beside its own errors: `2001-99-99`, `!!bool maybe`, `!!timestamp x`, an integer of 5,000 digits.
CONSTRUCTION_ERRORS = (ValueError, KeyError, AttributeError, IndexError, TypeError, OverflowError)


def parse_yaml(text: str) -> Any:
    """The values of one YAML document; None for an empty one.

    Raises:
        ValueError: why it is not read.
    """
    try:
        return _parse(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _parse(text: str) -> Any:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES} values")
        try:
            return loader.construct_document(node)
        except CONSTRUCTION_ERRORS as error:
            raise ValueError(f"a value is not what its form or its tag says ({type(error).__name__}: {error})") from error
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Values below a node, and itself. An alias counts as what it stands for."""
    known = counts.get(id(node), 0)
    if known is None:
        raise ValueError("an alias stands for something that contains it")
    if known:
        return known
    counts[id(node)] = None
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    counts[id(node)] = total = 1 + sum(_count_values(part, counts) for part in below)
    return total

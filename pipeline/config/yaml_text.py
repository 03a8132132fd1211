"""Parse YAML as people write it to plain values, or refuse it in one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

MAX_VALUES = 100_000  # aliases followed: ten lines of aliases of aliases can mean billions
# PyYAML's constructors raise these besides its own errors: `2001-99-99`, `!!bool maybe`, `!!timestamp x`, an integer of
# 5,000 digits.
CONSTRUCTION_ERRORS = (ValueError, KeyError, AttributeError, IndexError, TypeError, OverflowError)
_FLOAT = "tag:yaml.org,2002:float"
_READ_AS = (*(f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "timestamp", "null")), _FLOAT)
# YAML 1.1 takes 1e-3 for a text: its numbers with an exponent have a point and a sign, as in 1.0e-3. In YAML 1.2 and JSON it is
# a number.
_WITH_EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+\Z")


@dataclass(frozen=True)
class Plain:
    """Holds an unquoted word that YAML reads as something else than text: `007`, `1.10`, `on`, `2024-01-01`, `null`.

    Args:
        value: what YAML reads; the text where that cannot be made.
        text: as it was typed.
    """

    value: Any
    text: str


def parse_yaml(text: str) -> Any:
    """Return the values of one YAML document, with `Plain` where text was read as something else; None for an empty one.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    try:
        return _parse(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _with_exponents(resolvers: Mapping[str, list[tuple[str, Any]]]) -> dict[str, list[tuple[str, Any]]]:
    """Return PyYAML's table of what words look like, by their first character, with numbers such as 1e-3 added."""
    return {first: [*resolvers.get(first, []), (_FLOAT, _WITH_EXPONENT)] for first in "+-.0123456789"}


class _Loader(yaml.SafeLoader):
    """Keeps the text of unquoted words, and reads 1e-3 as a number."""

    yaml_implicit_resolvers: ClassVar[Any] = {
        **yaml.SafeLoader.yaml_implicit_resolvers,
        **_with_exponents(yaml.SafeLoader.yaml_implicit_resolvers),
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        is_word = isinstance(node, yaml.ScalarNode) and node.style is None and node.tag in _READ_AS and node.value != ""
        if not is_word or self.resolve(yaml.ScalarNode, node.value, (True, False)) != node.tag:
            return super().construct_object(node, deep=deep)
        try:
            return Plain(super().construct_object(node, deep=deep), node.value)
        except CONSTRUCTION_ERRORS:
            return Plain(node.value, node.value)


def _parse(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count_values(node, {}) > MAX_VALUES:
            raise ValueError(f"its aliases mean more than {MAX_VALUES} values")
        try:
            return loader.construct_document(node)
        except CONSTRUCTION_ERRORS as error:
            raise ValueError(f"a value is not what its form or its tag says ({type(error).__name__}: {error})") from error
    finally:
        loader.dispose()


def _count_values(node: yaml.Node, counts: dict[int, int | None]) -> int:
    """Count the values below a node, and itself. An alias counts as its target."""
    known = counts.get(id(node), 0)
    if known is None:
        raise ValueError("an alias refers to something that contains it")
    if known:
        return known
    counts[id(node)] = None
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        below = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    counts[id(node)] = total = 1 + sum(_count_values(part, counts) for part in below)
    return total


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line = key.start_mark.line + 1
            if key.value in lines:
                raise ValueError(f"{key.value[:60]!r} is set twice, in lines {lines[key.value]} and {line}; delete one")
            lines[key.value] = line

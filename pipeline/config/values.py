"""Restore what was typed from what YAML reads: a setting that is a text takes the text, whatever else YAML sees in it.

YAML 1.1 reads `on`, `007`, `1.10`, `2024-05-01` and `12:30` as booleans, numbers and dates. The position in the schema decides
what such a word is. A number that has two readings is refused.
"""

from __future__ import annotations

import types
import typing
from typing import Any, Literal

from pydantic import AliasChoices

from pipeline.config.yaml_text import Plain
from pipeline.data.section import ShardsSection
from pipeline.section import Section, annotation_of, section_for


def fit_to_schema(value: Any, annotation: Any, *, path: str = "", name: str | None = None) -> Any:
    """Fit plain values to their positions in the schema. The schema itself refuses a value that fits no position.

    Args:
        value: result of `parse_yaml`.
        annotation: type at its position.
        path: name of its position, for messages.

    Raises:
        ValueError: a number has two readings.
    """
    if isinstance(value, dict):
        texts = {key.text if isinstance(key, Plain) else str(key): below for key, below in value.items()}
        said = {key: below.text if isinstance(below, Plain) else below for key, below in texts.items()}
        section = section_for(annotation, said, name=name)
        fields = {} if section is None else _annotations(section)
        other = _values_of(annotation)
        return {
            key: fit_to_schema(below, fields.get(key, other), path=f"{path}{key}.", name=None if other is Any else key)
            for key, below in texts.items()
        }
    kinds = list(_kinds_of(annotation))
    if isinstance(value, list):
        sequence = next((kind for kind in kinds if typing.get_origin(kind) is tuple), None)
        parts = zip(value, _parts_of(sequence, len(value)), strict=True)
        return [fit_to_schema(below, part, path=f"{path}{i}.") for i, (below, part) in enumerate(parts)]
    return _fit_word(value, kinds, path.removesuffix(".")) if isinstance(value, Plain) else value


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and not isinstance(kind, types.GenericAlias)


def _annotations(section: type[Section]) -> dict[str, Any]:
    """Return the type of every key that a section takes."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        alias = field.validation_alias
        names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
        found |= dict.fromkeys([name, *names], annotation_of(field))
    return found


def _values_of(annotation: Any) -> Any:
    """Return the type of the values of a mapping whose keys are names."""
    mapping = next((kind for kind in _kinds_of(annotation) if typing.get_origin(kind) is dict), None)
    return Any if mapping is None else typing.get_args(mapping)[1]


def _kinds_of(annotation: Any) -> typing.Iterator[Any]:
    """Yield the alternatives of a type, without their annotations."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _kinds_of(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from _kinds_of(part)
    else:
        yield annotation


def _parts_of(sequence: Any, count: int) -> list[Any]:
    arguments = typing.get_args(sequence) if sequence is not None else ()
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return [arguments[0]] * count
    return [*arguments[:count], *[Any] * (count - len(arguments))]


def _fit_word(word: Plain, kinds: list[Any], path: str) -> Any:
    if word.value is None and type(None) in kinds:
        return None
    if str in kinds or any(_is_class(kind) and issubclass(kind, ShardsSection) for kind in kinds):
        return word.text
    choices = [choice for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    if word.text in choices:
        return word.text
    if isinstance(word.value, bool) and bool not in kinds:
        return word.text  # pydantic would take True for 1
    if isinstance(word.value, int | float) and not isinstance(word.value, bool):
        _check_number(word, path)
    return word.value


def _check_number(word: Plain, path: str) -> None:
    """Refuse `010`, which is ten or eight, and `1:30`, which is a time or ninety."""
    digits = word.text.lstrip("+-").replace("_", "")
    if ":" in digits:
        raise ValueError(f"{path}={word.text}: YAML reads this as {word.value}; write the number in digits, without a colon")
    if digits.isdigit() and int(digits) != abs(word.value):
        sign = "-" if word.text.startswith("-") else ""
        raise ValueError(
            f"{path}={word.text}: YAML reads this as octal, which is {word.value}; write {path}={sign}{int(digits)} or "
            f"{path}={word.value}"
        )

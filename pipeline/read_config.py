"""From YAML files and overrides to a `RunConfig`, and from what is wrong with them to words."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import RunConfig, Section
from pipeline.errors import ConfigError
from pipeline.secrets import redact
from pipeline.yaml_text import parse_yaml

MAX_SHOWN = 200  # characters of a value, in a message
MAX_PROBLEMS = 20  # of a configuration, in a message


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, what it `extends`, and `section.key=value` overrides.

    The run's name is the file's name where the file gives none.

    Raises:
        ConfigError: in words, with the nearest right name for a wrong key.
    """
    values = _read_yaml(Path(path))
    values.setdefault("name", Path(path).stem)
    for override in overrides or []:
        _apply_override(values, override)
    return parse_config(values, source=str(path))


def parse_config(values: dict[str, Any], *, source: str) -> RunConfig:
    """Validate plain values.

    Raises:
        ConfigError: all problems at once, a line each.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = _without_branches(error.errors())
        lines = [_explain(problem, values) for problem in problems[:MAX_PROBLEMS]]
        if len(problems) > MAX_PROBLEMS:
            lines.append(f"and {len(problems) - MAX_PROBLEMS} more problems")
        text = f"{source}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])
        raise ConfigError(redact(text)) from None  # pydantic's own words repeat the input, credentials and all


def _without_branches(problems: Sequence[Any]) -> list[dict[str, Any]]:
    """Problems of values that may be a text or a list: of the form that was meant alone, and without its name in the place."""
    found: list[dict[str, Any]] = []
    for problem in problems:
        location = problem["loc"]
        branches = [part for part in location if part == "str" or str(part).startswith("tuple[")]
        is_list = isinstance(problem.get("input"), list | tuple | dict)
        if branches and location[-1] == branches[-1] and is_list == (branches[-1] == "str"):
            continue
        found.append({**problem, "loc": tuple(part for part in location if part not in branches)})
    return found


def _read_yaml(path: Path, *, depth: int = 0) -> dict[str, Any]:
    if depth > 8:
        raise ConfigError(f"{path}: `extends` goes in a circle")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"config file {path} does not exist{hint}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: must be a mapping of sections, it is {type(values).__name__}")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    return _merge(_read_yaml(path.parent / str(parent), depth=depth + 1), values)


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"override {_shorten(override)} is not section.key=value, as trainer.max_steps=100 is")
    place = values
    for depth, key in enumerate(keys[:-1]):
        below = place.get(key)
        if isinstance(below, list | tuple) or keys[depth + 1].isdigit():
            whole = ".".join(keys[: depth + 1])
            raise ConfigError(f"override {_shorten(override)}: {whole} is a list, which is replaced whole: {whole}=[...]")
        place[key] = dict(below) if isinstance(below, dict) else {}
        place = place[key]
    try:
        place[keys[-1]] = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"override {_shorten(override)}: its value is not YAML: {error}") from error


_EXPECTED = {
    "tuple_type": "a list, for example [1, 5]",
    "model_type": "a section: keys and values below it",
    "model_attributes_type": "a section: keys and values below it",
    "dict_type": "a section: keys and values below it",
}


def _explain(problem: Any, values: dict[str, Any]) -> str:
    """One pydantic problem in words."""
    path = ".".join(_shorten_text(str(part)) for part in problem["loc"])
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        known = _keys_at(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
        elsewhere = [
            f"{name}.{problem['loc'][-1]}" for name in RunConfig.model_fields if problem["loc"][-1] in _keys_at((name,))
        ]
        prefix = "".join(f"{part}." for part in problem["loc"][:-1])
        hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {path}; " + (f"did you mean {elsewhere[0]}?" if elsewhere and not near else hint)
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], int):
        return f"{'.'.join(str(part) for part in problem['loc'][:-1])}: the list is too short"
    if problem["type"] == "missing":
        return f"{path} is not set; add it to the file or as an override {path}=..."
    if problem["type"] == "string_pattern_mismatch":
        return (
            f"{path}={_shorten(problem['input'])}: letters, digits, '.', '_' and '-' only, the first a letter or digit: it names a folder"
            + ("; it is the file's name where the file gives none, so set name=..." if path == "name" else "")
        )
    if problem["type"] in _EXPECTED:
        return f"{path}={_shorten(problem.get('input'))}: must be {_EXPECTED[problem['type']]}"
    given = problem.get("input")
    shown = "" if isinstance(given, dict) or not path else f"={_shorten(given)}"
    return f"{path}{shown}: {message}" if path else message


def _shorten(value: Any) -> str:
    return _shorten_text(repr(value))


def _shorten_text(text: str) -> str:
    """Short enough for a message. Credentials are hidden before: half of one would not be recognised."""
    if len(text) <= MAX_SHOWN:
        return text
    return f"{redact(text[: 10 * MAX_SHOWN])[:MAX_SHOWN]}..."


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: Any = RunConfig
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        if field is None:
            return []
        model = _section_in(field.annotation)
        if model is None:
            return []
    return list(model.model_fields)


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Section):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _section_in(part))), None)

"""Read YAML files and overrides into a `RunConfig`, and say in words what is wrong with them."""

from __future__ import annotations

import difflib
import shlex
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.config.explain import explain, shorten
from pipeline.config.run import RunConfig
from pipeline.config.upgrade import upgrade
from pipeline.config.values import fit_to_schema
from pipeline.config.yaml_text import Plain, parse_yaml
from pipeline.credentials import redact
from pipeline.errors import ConfigError
from pipeline.section import Section, annotation_of, section_for

S = TypeVar("S", bound=Section)


def load_config(path: str | Path, overrides: list[str] | None = None, *, more: dict[str, Any] | None = None) -> RunConfig:
    """Read a YAML file, what it `extends`, and `section.key=value` overrides.

    The run's name is the file's name where the file gives none.

    Args:
        more: sections that replace the file's settings, key by key, before the overrides do.

    Raises:
        ConfigError: the message is in words, with the nearest right name for a wrong key.
    """
    if "=" in str(path) and not Path(path).exists():
        raise ConfigError(
            f"{shorten(str(path))} is a setting, but the first argument is a config file: type CONFIG.yaml "
            f"{shlex.quote(str(path))}"
        )
    values = _merge(read_values(Path(path)), more or {})
    values.setdefault("name", Path(path).stem)
    apply_overrides(values, overrides or [])
    return parse_config(upgrade(values), source=str(path))


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> None:
    """Set `section.key=value` settings in plain values.

    Raises:
        ConfigError: one of them is no such text.
    """
    _check_quotes(overrides)
    for override in overrides:
        _apply_override(values, override)


def parse_config(values: dict[str, Any], *, source: str) -> RunConfig:
    """Validate a run's plain values; see `validate`."""
    return validate(RunConfig, values, source=source)


def validate(schema: type[S], values: dict[str, Any], *, source: str) -> S:
    """Validate plain values.

    Raises:
        ConfigError: the message has all problems, a line each.
    """
    try:
        values = fit_to_schema(values, schema)
    except ValueError as error:
        raise ConfigError(redact(f"{source}: {error}")) from error
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = explain(error.errors(), values)
        text = f"{source}: " + ("\n  ".join(["", *lines]) if len(lines) > 1 else lines[0])
        raise ConfigError(redact(text)) from None  # pydantic's own message repeats the input, with credentials


def read_values(path: Path, *, depth: int = 0) -> dict[str, Any]:
    """Return the plain values of a YAML file and of what it `extends`.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    if depth > 8:
        raise ConfigError(f"{path}: `extends` is circular")
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
    values = upgrade(values)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    parent = parent.text if isinstance(parent, Plain) else str(parent)
    return _merge(read_values(path.parent / parent, depth=depth + 1), values)


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
        raise ConfigError(f"override {shorten(override)} is not section.key=value, as trainer.max_steps=100 is")
    node = values
    for depth, key in enumerate(keys[:-1]):
        below = node.get(key)
        if isinstance(below, list | tuple) or keys[depth + 1].isdigit():
            whole = ".".join(keys[: depth + 1])
            raise ConfigError(f"override {shorten(override)}: {whole} is a list, which is replaced whole: {whole}=[...]")
        node[key] = dict(below) if isinstance(below, dict) else _default_names(keys[: depth + 1])
        node = node[key]
    try:
        value = _read_value(text)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"override {shorten(override)}: its value is not YAML: {reason}; {_HOW_TO_QUOTE}") from error
    below = node.get(keys[-1])
    if isinstance(value, list) and isinstance(below, dict):
        names = [getattr(word, "text", word) for word in value]
        if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
            value = {name: below.get(name) or {} for name in names}  # named members keep their settings
    node[keys[-1]] = value


def _default_names(keys: list[str]) -> dict[str, Any]:
    """Return the defaults that an override inside a mapping keeps: `evaluation.protocols.few_shot.shots=[5]` keeps linear."""
    section: type[Section] | None = RunConfig
    default: Any = None
    for key in keys:
        field = section.model_fields.get(key) if section is not None else None
        if field is None:
            return {}
        section, default = section_for(annotation_of(field), {}), field.default
    return {name: {} for name in default} if isinstance(default, dict) else {}


def _read_value(text: str) -> Any:
    """Read an override's value. Text without brackets or quotes is taken as it was typed: `a #b` and `pipe: x` lose nothing.

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    typed = text.strip()
    if typed.startswith(("[", "{", "'", '"', "!", "&")):
        return parse_yaml(text)
    try:
        value = parse_yaml(text)
    except ValueError:
        return Plain(typed, typed)
    if isinstance(value, Plain) and value.text == typed:
        return value
    return value if value == typed or not typed else Plain(typed, typed)


_HOW_TO_QUOTE = "put a list or section into quotes, as in evaluation.datasets='[{name: a, train: FOLDER, test: FOLDER}]'"


def _check_quotes(overrides: list[str]) -> None:
    """Say what to type where a shell has split a value at its spaces.

    Raises:
        ConfigError: the next overrides continue this one.
    """
    for index, override in enumerate(overrides):
        key, _, text = override.partition("=")
        if _num_open(text) <= 0:
            continue
        for end in range(index + 2, len(overrides) + 1):
            whole = " ".join([text, *overrides[index + 1 : end]])
            if _num_open(whole) <= 0:
                raise ConfigError(
                    f"override {shorten(override)} was split at its spaces by the shell; type {key}={shlex.quote(whole)}"
                )


def _num_open(text: str) -> int:
    return sum(text.count(bracket) for bracket in "[{") - sum(text.count(bracket) for bracket in "]}")

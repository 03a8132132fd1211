"""From YAML files and overrides to a `RunConfig`, and from what is wrong with them to words."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline.config.run import RunConfig
from pipeline.config.values import fit_to_schema
from pipeline.config.yaml_text import Plain, parse_yaml
from pipeline.credentials import redact
from pipeline.errors import ConfigError
from pipeline.section import section_in

MAX_SHOWN = 200  # characters of a value, in a message
MAX_PROBLEMS = 20  # of a configuration, in a message


def load_config(path: str | Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file, what it `extends`, and `section.key=value` overrides.

    The run's name is the file's name where the file gives none.

    Raises:
        ConfigError: in words, with the nearest right name for a wrong key.
    """
    if "=" in str(path) and not Path(path).exists():
        raise ConfigError(
            f"{_shorten(str(path))} is a setting, but the first argument is a config file: type CONFIG.yaml {shlex.quote(str(path))}"
        )
    values = _read_yaml(Path(path))
    values.setdefault("name", Path(path).stem)
    _check_quotes(overrides or [])
    for override in overrides or []:
        _apply_override(values, override)
    return parse_config(values, source=str(path))


def parse_config(values: dict[str, Any], *, source: str) -> RunConfig:
    """Validate plain values.

    Raises:
        ConfigError: all problems at once, a line each.
    """
    try:
        values = fit_to_schema(values, RunConfig)
    except ValueError as error:
        raise ConfigError(redact(f"{source}: {error}")) from error
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
    parent = parent.text if isinstance(parent, Plain) else str(parent)
    return _merge(_read_yaml(path.parent / parent, depth=depth + 1), values)


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
        place[keys[-1]] = _read_value(text)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"override {_shorten(override)}: its value is not YAML: {reason}; {_HOW_TO_QUOTE}") from error


def _read_value(text: str) -> Any:
    """Of an override. Text without brackets or quotes around it is taken as it was typed: `a #b` and `pipe: x` lose nothing.

    Raises:
        ValueError: why it cannot be read.
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
        ConfigError: an override that is continued by the next ones.
    """
    for place, override in enumerate(overrides):
        key, _, text = override.partition("=")
        if _num_open(text) <= 0:
            continue
        for end in range(place + 2, len(overrides) + 1):
            whole = " ".join([text, *overrides[place + 1 : end]])
            if _num_open(whole) <= 0:
                raise ConfigError(
                    f"override {_shorten(override)} was split at its spaces by the shell; type {key}={shlex.quote(whole)}"
                )


def _num_open(text: str) -> int:
    return sum(text.count(bracket) for bracket in "[{") - sum(text.count(bracket) for bracket in "]}")


_SECTION_WANTED = ("model_type", "model_attributes_type", "dict_type")
_OTHER_NAMES = {  # of other programs
    "lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "batch_size": "trainer.global_batch_size",
    "batch": "trainer.global_batch_size", "epochs": "trainer.duration", "steps": "trainer.duration", "gpus": "trainer.devices",
    "workers": "data.num_workers", "classes": "model.num_classes", "output": "output_dir",
}  # fmt: skip
_PLACEHOLDERS = {"name": "NAME", "train": "FOLDER", "test": "FOLDER", "path": "FOLDER"}


def _explain(problem: Any, values: dict[str, Any]) -> str:
    """One pydantic problem in words."""
    location = problem["loc"]
    path = ".".join(_shorten_text(str(part)) for part in location)
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return _explain_unknown(location, problem.get("input"))
    if problem["type"] == "missing" and isinstance(location[-1], int):
        return f"{'.'.join(str(part) for part in location[:-1])}: the list is too short"
    if problem["type"] == "missing":
        glued = [key for key in problem["input"] if ":" in str(key)] if isinstance(problem.get("input"), dict) else []
        if glued:
            return f"{path} is not set, but {_shorten_text(str(glued[0]))} is; write a space after the colon"
        list_line = _list_with(location, values)
        return f"{path} is not set; add it to the file or " + (
            f"type {list_line}" if list_line else f"as an override {path}=..."
        )
    if problem["type"] == "string_pattern_mismatch":
        return (
            f"{path}={_shorten(problem['input'])}: letters, digits, '.', '_' and '-' only, the first a letter or digit: it names a folder"
            + ("; it is the file's name where the file gives none, so set name=..." if path == "name" else "")
        )
    given = problem.get("input")
    if problem["type"] == "tuple_type":
        return f"{path}={_shorten(given)}: must be a list; type {_line(path, _as_list(given, _example_at(location)))}"
    if problem["type"] == "string_type" and given is None:
        return f"{path} is empty; type a value behind {path}="
    if problem["type"] in _SECTION_WANTED:
        return f"{path}={_shorten(given)}: must be a section: keys and values below it{_section_line(location)}"
    shown = "" if isinstance(given, dict) or not path else f"={_shorten(given)}"
    return f"{path}{shown}: {message}" if path else message


def _explain_unknown(location: tuple[Any, ...], given: Any) -> str:
    path, key = ".".join(_shorten_text(str(part)) for part in location), str(location[-1])
    known = _keys_at(location[:-1])
    if ":" in key and given is None:
        return f"unknown key {path}; write a space after the colon: {_shorten_text(key.replace(':', ': ', 1))}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    elsewhere = [f"{name}.{key}" for name in RunConfig.model_fields if key in _keys_at((name,))]
    if key in _OTHER_NAMES and (len(location) == 1 or not near):
        near, elsewhere = [], [_OTHER_NAMES[key]]
    prefix = "".join(f"{part}." for part in location[:-1])
    value = given if isinstance(given, str | int | float) and not isinstance(given, bool) else None
    if elsewhere and not near:
        if elsewhere[0] == "trainer.duration" and isinstance(value, str | int | float) and str(value).isdigit():
            value = f"{value} {key}"
        line = "" if value is None or not _loads(elsewhere[0], value) else f" Type {_line(elsewhere[0], value)}"
        return f"unknown key {path}; did you mean {elsewhere[0]}?{line}"
    return f"unknown key {path}; " + (f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(known)}")


def _loads(path: str, value: Any) -> bool:
    """Whether a line is worth typing: short enough, and without what a message hides."""
    return len(str(value)) < MAX_SHOWN and redact(f"{path}={value}") == f"{path}={value}"


def _line(path: str, value: Any) -> str:
    """What to type on the command line."""
    text = str(value) if isinstance(value, str | int | float) else _flow(value)
    return _shorten_text(f"{path}={shlex.quote(text)}")


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()


def _list_with(location: tuple[Any, ...], values: dict[str, Any]) -> str | None:
    """What to type where a key of a list's item is missing: lists are replaced whole."""
    place = next((i for i, part in enumerate(location) if isinstance(part, int)), None)
    if place is None or len(location) != place + 2:
        return None
    found: Any = values
    for part in location[:place]:
        found = found.get(part) if isinstance(found, dict) else None
    items = [found] if isinstance(found, dict) else found
    if not isinstance(items, list) or not isinstance(items[location[place]], dict):
        return None
    completed = [*items]
    completed[location[place]] = {**items[location[place]], location[-1]: _PLACEHOLDERS.get(location[-1], "...")}
    return _line(".".join(str(part) for part in location[:place]), completed)


def _as_list(given: Any, item: dict[str, str]) -> list[Any]:
    if item:
        return [given] if isinstance(given, dict) else [item]
    return [given] if isinstance(given, str | int | float) and given != "" else [1, 5]


def _example_at(location: tuple[Any, ...]) -> dict[str, str]:
    return {key: _PLACEHOLDERS[key] for key in _keys_at(location) if key in _PLACEHOLDERS}


def _section_line(location: tuple[Any, ...]) -> str:
    """What to type where a section belongs."""
    place = next((i for i, part in enumerate(location) if isinstance(part, int)), None)
    if place is not None:
        example = _example_at(location)
        return f"; type {_line('.'.join(str(part) for part in location[:place]), [example])}" if example else ""
    first = next(iter(_keys_at(location)), None)
    return f", as {'.'.join(str(part) for part in location)}.{first}=..." if first else ""


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
        model = section_in(field.annotation)
        if model is None:
            return []
    return list(model.model_fields)

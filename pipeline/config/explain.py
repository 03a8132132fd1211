"""Turn pydantic's problems with a configuration into words: what is wrong, where, and what to type instead."""

from __future__ import annotations

import difflib
import shlex
import typing
from collections.abc import Sequence
from typing import Any

import yaml

from pipeline.config.run import RunConfig
from pipeline.credentials import redact
from pipeline.section import annotation_of, mark_of, members_of, section_for, sections_in

MAX_SHOWN = 200  # limit of a value's characters in a message
MAX_PROBLEMS = 20  # limit of a configuration's problems in a message

_SECTION_WANTED = ("model_type", "model_attributes_type", "dict_type")
_OTHER_NAMES = {  # other programs' names
    "lr": "optimizer.learning_rate", "wd": "optimizer.weight_decay", "batch_size": "trainer.global_batch_size",
    "batch": "trainer.global_batch_size", "epochs": "trainer.duration", "steps": "trainer.duration", "gpus": "trainer.devices",
    "workers": "data.num_workers", "classes": "model.num_classes", "output": "output_dir",
}  # fmt: skip
_PLACEHOLDERS = {"name": "NAME", "train": "FOLDER", "test": "FOLDER", "path": "FOLDER"}


def explain(problems: Sequence[Any], values: dict[str, Any]) -> list[str]:
    """Return a line for each problem.

    Args:
        problems: pydantic's problems of a `RunConfig`.
        values: the values of the `RunConfig`.
    """
    found = _without_branches(problems)
    lines = [_explain(problem, values) for problem in found[:MAX_PROBLEMS]]
    return [*lines, f"and {len(found) - MAX_PROBLEMS} more problems"] if len(found) > MAX_PROBLEMS else lines


def _without_branches(problems: Sequence[Any]) -> list[dict[str, Any]]:
    """Keep, for values that may be a text or a list, the problems of the intended form, without its name in the location."""
    found: list[dict[str, Any]] = []
    for problem in problems:
        location = problem["loc"]
        branches = [part for part in location if part == "str" or str(part).startswith("tuple[")]
        is_list = isinstance(problem.get("input"), list | tuple | dict)
        if branches and location[-1] == branches[-1] and is_list == (branches[-1] == "str"):
            continue
        found.append({**problem, "loc": tuple(part for part in location if part not in branches)})
    return found


def _explain(problem: Any, values: dict[str, Any]) -> str:
    """Return one pydantic problem in words."""
    location, _ = _resolve(problem["loc"])
    path = ".".join(shorten_text(str(part)) for part in location)
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return _explain_unknown(location, _keys(_resolve(problem["loc"][:-1])[1]), problem.get("input"))
    if problem["type"] == "union_tag_invalid":
        return _explain_choice(location, problem)
    if problem["type"] == "missing" and isinstance(location[-1], int):
        return f"{'.'.join(str(part) for part in location[:-1])}: the list is too short"
    if problem["type"] == "missing":
        glued = [key for key in problem["input"] if ":" in str(key)] if isinstance(problem.get("input"), dict) else []
        if glued:
            return f"{path} is not set, but {shorten_text(str(glued[0]))} is; write a space after the colon"
        list_line = _list_with(location, values)
        return f"{path} is not set; add it to the file or " + (
            f"type {list_line}" if list_line else f"as an override {path}=..."
        )
    if problem["type"] == "string_pattern_mismatch":
        return (
            f"{path}={shorten(problem['input'])}: letters, digits, '.', '_' and '-' only, the first a letter or digit: "
            "it names a folder"
            + ("; it is the file's name where the file gives none, so set name=..." if path == "name" else "")
        )
    given = problem.get("input")
    if problem["type"] == "tuple_type":
        return f"{path}={shorten(given)}: must be a list; type {_line(path, _as_list(given, _example_at(location)))}"
    if problem["type"] == "string_type" and given is None:
        return f"{path} is empty; type a value behind {path}="
    if problem["type"] in _SECTION_WANTED:
        return f"{path}={shorten(given)}: must be a section: keys and values below it{_section_line(location)}"
    shown = "" if isinstance(given, dict) or not path else f"={shorten(given)}"
    return f"{path}{shown}: {message}" if path else message


def _explain_choice(location: tuple[Any, ...], problem: Any) -> str:
    """Explain a key that names no member of its kind."""
    mark = mark_of(_resolve(location)[1])
    assert mark is not None
    given, known = str(problem["ctx"]["tag"]), [name.strip("' ") for name in str(problem["ctx"]["expected_tags"]).split(",")]
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    path = ".".join([*map(str, location), mark.key])
    hint = f"did you mean {path}={near[0]}?" if near else f"known here: {', '.join(known)}"
    return f"{path}={shorten_text(given)}: there is no such choice; {hint}"


def _explain_unknown(location: tuple[Any, ...], known: list[str], given: Any) -> str:
    path, key = ".".join(shorten_text(str(part)) for part in location), str(location[-1])
    if ":" in key and given is None:
        return f"unknown key {path}; write a space after the colon: {shorten_text(key.replace(':', ': ', 1))}"
    others = _members_with(location[:-1], key) if len(location) == 2 else None  # a protocol's name says which it is
    if others:
        return f"unknown key {path}; it is a setting of {others}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    elsewhere = [f"{name}.{key}" for name in RunConfig.model_fields if key in _keys(_type_below(RunConfig, name))]
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


def _members_with(location: tuple[Any, ...], key: str) -> str | None:
    """Return the members that have a key, in words, where another one is chosen at a position."""
    annotation = _resolve(location)[1]
    mark = mark_of(annotation)
    if mark is None:
        return None
    names = [name for name, section in members_of(annotation).items() if key in section.model_fields]
    where = ".".join(str(part) for part in location)
    return " or ".join(f"{where}.{mark.key}={name}" for name in names) or None


def _loads(path: str, value: Any) -> bool:
    """Return whether a line is worth typing: short enough, and without what a message hides."""
    return len(str(value)) < MAX_SHOWN and redact(f"{path}={value}") == f"{path}={value}"


def _line(path: str, value: Any) -> str:
    """Return what to type on the command line."""
    text = str(value) if isinstance(value, str | int | float) else _flow(value)
    return shorten_text(f"{path}={shlex.quote(text)}")


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()


def _list_with(location: tuple[Any, ...], values: dict[str, Any]) -> str | None:
    """Return what to type where a key of a list's item is missing: lists are replaced whole."""
    list_index = next((i for i, part in enumerate(location) if isinstance(part, int)), None)
    if list_index is None or len(location) != list_index + 2:
        return None
    found: Any = values
    for part in location[:list_index]:
        found = found.get(part) if isinstance(found, dict) else None
    items = [found] if isinstance(found, dict) else found
    if not isinstance(items, list) or not isinstance(items[location[list_index]], dict):
        return None
    completed = [*items]
    completed[location[list_index]] = {**items[location[list_index]], location[-1]: _PLACEHOLDERS.get(location[-1], "...")}
    return _line(".".join(str(part) for part in location[:list_index]), completed)


def _as_list(given: Any, item: dict[str, str]) -> list[Any]:
    if item:
        return [given] if isinstance(given, dict) else [item]
    return [given] if isinstance(given, str | int | float) and given != "" else [1, 5]


def _example_at(location: tuple[Any, ...]) -> dict[str, str]:
    return {key: _PLACEHOLDERS[key] for key in _keys(_resolve(location)[1]) if key in _PLACEHOLDERS}


def _section_line(location: tuple[Any, ...]) -> str:
    """Return what to type where a section belongs."""
    list_index = next((i for i, part in enumerate(location) if isinstance(part, int)), None)
    if list_index is not None:
        example = _example_at(location)
        return f"; type {_line('.'.join(str(part) for part in location[:list_index]), [example])}" if example else ""
    annotation = _resolve(location)[1]
    mark = mark_of(annotation)
    first = mark.key if mark is not None else next(iter(_keys(annotation)), None)
    return f", as {'.'.join(str(part) for part in location)}.{first}=..." if first else ""


def shorten(value: Any) -> str:
    return shorten_text(repr(value))


def shorten_text(text: str) -> str:
    """Shorten a text for a message. Credentials are hidden before: half of one would not be recognised."""
    if len(text) <= MAX_SHOWN:
        return text
    return f"{redact(text[: 10 * MAX_SHOWN])[:MAX_SHOWN]}..."


def _resolve(location: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """Return a position without the names of chosen members, which pydantic puts into it, and its type."""
    kept: list[Any] = []
    annotation: Any = RunConfig
    for part in location:
        members = members_of(annotation)
        if part in members:
            annotation = members[part]
            continue
        kept.append(part)
        if not isinstance(part, int):
            annotation = _type_below(annotation, str(part))
    return tuple(kept), annotation


def _type_below(annotation: Any, key: str) -> Any:
    if typing.get_origin(annotation) is dict:
        return typing.get_args(annotation)[1]
    section = section_for(annotation, {})
    field = None if section is None else section.model_fields.get(key)
    return None if field is None else annotation_of(field)


def _keys(annotation: Any) -> list[str]:
    """Return the keys that a position takes: those of every member where one is chosen."""
    return list(dict.fromkeys(key for section in sections_in(annotation) for key in section.model_fields))

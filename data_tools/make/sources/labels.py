"""Read labels as columns and members hold them: class ids where all are whole numbers, names otherwise."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data_tools.make.sources.listing import MAX_LABEL, Listing
from data_tools.text_files import same_name
from pipeline.errors import DataError
from pipeline.json_text import parse_json

WHOLE_NUMBER = re.compile(r"\+?[0-9]{1,18}(\.0*)?")
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(nan|inf)", re.IGNORECASE)
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_number(text: str) -> int | None:
    """Return the class id that a text means: 7, 007 or 7.0; None for anything else."""
    return int(text.partition(".")[0]) if WHOLE_NUMBER.fullmatch(text) else None


def read_texts(listing: Listing, *, known: Collection[str] = (), source: str = "the source") -> Listing:
    """Read labels from texts: they are ids if all of them are whole numbers, and names otherwise.

    Args:
        known: names that a list or a map gives; texts that are all among them are names, numbers or not.

    Raises:
        DataError: numbers that are not ids: fractions, negative ones.
    """
    texts = listing.classes
    if listing.class_source == "names" or texts is None:
        return listing
    named = replace(listing, class_source="names")
    if known and all(text in known for text in texts):
        return named
    values = [read_number(text) for text in texts]
    ids = [value for value in values if value is not None]
    if len(ids) < len(texts):
        if all(NUMBER.fullmatch(text) for text in texts):
            strange = next(text for text, value in zip(texts, values, strict=True) if value is None)
            raise DataError(f"{source}: label {strange} is no class number; they are whole numbers and begin at 0")
        return named
    if max(ids, default=0) > MAX_LABEL:
        raise DataError(f"{source}: label {max(ids)} is no class number; name the classes in a --class-map")
    return named.relabel(np.array(ids, np.int64), None)


def tell_apart(names: Sequence[str]) -> tuple[str, ...]:
    """Return different class names by id. A name that occurs again, as ImageNet's `crane` (a bird and a machine), gets its id.

    A test split that is made with these names would otherwise be refused, or its cranes be numbered as one class.
    """
    counts = Counter(map(same_name, names))
    taken = set(counts)
    result: list[str] = []
    for label, name in enumerate(names):
        own = name if counts[same_name(name)] == 1 else f"{name} ({label})"
        while own != name and same_name(own) in taken:
            own += "'"
        taken.add(same_name(own))
        result.append(own)
    return tuple(result)


def read_member(data: bytes, extension: str, *, field: str | None) -> list[str]:
    """Return the labels that a sample's .cls or .json member holds, as texts; none if it holds none.

    Args:
        field: field of the .json, `a.b` for a field in a field; else `labels` where it is a list, or `label`.

    Raises:
        ValueError: neither numbers nor names, and why.
    """
    text = data.removeprefix(BYTE_ORDER_MARK).strip().decode("utf-8")
    is_json = extension == "json" or text.startswith(("[", "{", '"')) or NUMBER.fullmatch(text) is not None
    value = text if not is_json or WHOLE_NUMBER.fullmatch(text) else parse_json(text)
    if field is not None:
        return _to_texts(_find_field(value, field))
    if not isinstance(value, dict):
        return _to_texts(value)
    one, several = value.get("label"), value.get("labels")
    if several is None:
        return _to_texts(one)
    found = _to_texts(several)
    if one is not None and (others := _to_texts(one)) and not set(others) <= set(found):
        raise ValueError(
            f"its fields label ({others[0]}) and labels ({', '.join(found)}) differ: choose one with --label-field"
        )
    return found


def fields_of(data: bytes) -> list[str]:
    """Return the fields of a .json member, for messages."""
    try:
        value = parse_json(data)
    except ValueError:
        return []
    return list(value) if isinstance(value, dict) else []


def _find_field(value: Any, field: str) -> Any:
    for part in (field,) if isinstance(value, dict) and field in value else field.split("."):
        if not isinstance(value, dict) or part not in value:
            held = f"it has {', '.join(value)}" if isinstance(value, dict) else "it holds no fields"
            raise ValueError(f"its .json has no field {field!r}; {held}")
        value = value[part]
    return value


def _to_texts(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [text for one in value for text in _to_texts(one)]
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, bool):
        return [str(int(value))]
    if (isinstance(value, int) and 0 <= value <= MAX_LABEL) or (isinstance(value, float) and value.is_integer() and value >= 0):
        return [str(int(value))]
    raise ValueError(f"{json.dumps(value)[:40]} is no class; numbers are whole and begin at 0")

"""Define the base of all sections of the configuration, a setting's relaunch rule, and unions of which one section is chosen.

A kind of thing (model family, objective, optimizer, schedule, protocol) is a union of sections, one for each member:

    Objective = Annotated[Sigmoid | Softmax, OneOf("name", default="sigmoid")]

A member's section has a literal field that tells it from the others, `name: Literal["softmax"] = "softmax"`, and its settings.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

MAX_SEED = 2**63 - 1  # numpy's and torch's generators take 64 bits with a sign
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

# May a setting differ between two launches of one run?
# fixed: no, the relaunch is refused. told: yes, and the difference is printed. free: yes, without a message.
Relaunch = Literal["fixed", "told", "free"]
TOLD: dict[str, Any] = {"relaunch": "told"}
FREE: dict[str, Any] = {"relaunch": "free"}


class Section(BaseModel):
    """All sections derive from it. They are frozen and refuse unknown keys.

    `relaunch` is the rule of a section's settings. Without one it is that of the section around it, and fixed for the whole. A
    setting with another rule carries it: `Field(json_schema_extra=FREE)`. A setting that is added later must do by default what
    was done without it: an older run is resumed with that default.
    """

    # Numbers become strings where a string is required: a run may be named 42.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)

    relaunch: ClassVar[Relaunch | None] = None


class OneOf:
    """Marks a union of sections of which one is chosen by the text of a key.

    Pydantic's own discriminator refuses a union of one, and values that leave the key out.

    Args:
        key: the literal field that every member has.
        default: the member that values without the key belong to.
    """

    def __init__(self, key: str, *, default: str) -> None:
        self.key = key
        self.default = default

    def members(self, union: Any) -> dict[str, type[Section]]:
        """Return the sections of the union by the text that chooses them."""
        return {str(section.model_fields[self.key].default): section for section in typing.get_args(union) or (union,)}

    def chosen(self, value: Any) -> str:
        """Return the text by which a value, or a section, chooses."""
        if isinstance(value, Mapping):
            return str(value.get(self.key, self.default))
        return str(getattr(value, self.key, self.default))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices = {name: handler.generate_schema(section) for name, section in self.members(source).items()}
        return core_schema.tagged_union_schema(choices, discriminator=self.chosen)


def mark_of(annotation: Any) -> OneOf | None:
    """Return the mark of `Annotated[A | B, OneOf(...)]`; None for every other type."""
    return next((item for item in typing.get_args(annotation) if isinstance(item, OneOf)), None)


def members_of(annotation: Any) -> dict[str, type[Section]]:
    """Return the members of a marked union by the text that chooses them; none for every other type."""
    mark = mark_of(annotation)
    return {} if mark is None else mark.members(typing.get_args(annotation)[0])


def annotation_of(field: FieldInfo) -> Any:
    """Return a field's type, with the mark of its union, which pydantic keeps apart."""
    mark = next((item for item in field.metadata if isinstance(item, OneOf)), None)
    return field.annotation if mark is None else Annotated[field.annotation, mark]


def section_for(annotation: Any, value: Mapping[str, Any], *, name: str | None = None) -> type[Section] | None:
    """Return the section that a value of this type is read as; None if it is no section, or no member has the chosen text.

    Args:
        name: the value's key in a mapping, by which it chooses if it has no mark of its own.
    """
    mark = mark_of(annotation)
    if mark is None:
        return next(sections_in(annotation), None)
    return members_of(annotation).get(mark.chosen(value if name is None else {mark.key: name, **value}))


def sections_in(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a type is made of."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Section):
        yield annotation
    for part in typing.get_args(annotation):
        yield from sections_in(part)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their paths: `trainer.max_steps`. Lists are values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def relaunch_rule(section: type[Section], path: str, *, around: Relaunch = "fixed") -> Relaunch:
    """Return the rule of one setting.

    Args:
        path: dotted keys below the section. A key that no section has is fixed.
        around: the rule of the section's surroundings.
    """
    key, _, below = path.partition(".")
    field = section.model_fields.get(key)
    if field is None:
        return "fixed"
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "relaunch" in extra:
        return typing.cast(Relaunch, extra["relaunch"])
    rule = section.relaunch or around
    inner = list(sections_in(field.annotation))
    if not inner:
        return rule
    if not below:
        return inner[0].relaunch or rule
    having = [member for member in inner if below.partition(".")[0] in member.model_fields]
    return relaunch_rule(having[0], below, around=rule) if having else "fixed"

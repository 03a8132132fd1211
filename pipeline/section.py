"""The base of all sections of the configuration, and what each setting says about a relaunch."""

from __future__ import annotations

import types
import typing
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**63 - 1  # of numpy and of torch's generators, which take 64 bits with a sign
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]

# May a setting differ between two launches of one run?
# fixed: no, the relaunch is refused. told: yes, and the difference is printed. free: yes, without a word.
Relaunch = Literal["fixed", "told", "free"]
TOLD: dict[str, Any] = {"relaunch": "told"}
FREE: dict[str, Any] = {"relaunch": "free"}


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused.

    `relaunch` is the rule of a section's settings; without one it is that of the section around it, and fixed for the whole.
    A setting with another rule carries it: `Field(json_schema_extra=FREE)`. A setting that is added later must do by default
    what was done without it: an older run is resumed with that default.
    """

    # Numbers become strings where a string is asked for: a run may be named 42.
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)

    relaunch: ClassVar[Relaunch | None] = None


def relaunch_rule(section: type[Section], path: str, *, around: Relaunch = "fixed") -> Relaunch:
    """The rule of one setting.

    Args:
        path: dotted keys below the section. A key that no section has is fixed.
        around: the rule of what the section is part of.
    """
    key, _, below = path.partition(".")
    field = section.model_fields.get(key)
    if field is None:
        return "fixed"
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "relaunch" in extra:
        return typing.cast(Relaunch, extra["relaunch"])
    rule = section.relaunch or around
    inner = section_in(field.annotation)
    if inner is None:
        return rule
    return relaunch_rule(inner, below, around=rule) if below else inner.relaunch or rule


def section_in(annotation: Any) -> type[Section] | None:
    """The section that a type is made of, if there is one."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias) and issubclass(annotation, Section):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := section_in(part))), None)

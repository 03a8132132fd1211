"""Configurations of older versions, in today's words: old run folders are resumed, evaluated and reported."""

from __future__ import annotations

from typing import Any


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose keys are today's. What is up to date already stays as it is; the argument is not changed.

    Changes, newest first:
        `loss` became `objective`.
    """
    upgraded = dict(values)
    if "loss" in upgraded and "objective" not in upgraded:
        upgraded["objective"] = upgraded.pop("loss")
    return upgraded

"""Configurations of older versions, in today's words: old run folders are resumed, evaluated and reported."""

from __future__ import annotations

from typing import Any


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose keys are today's. What is up to date already stays as it is; the argument is not changed.

    Changes, newest first:
        `evaluation.shots` and `.seeds` went into `evaluation.protocols.few_shot`, and `.protocols` from a list to a mapping.
        `loss` became `objective`.
    """
    upgraded = dict(values)
    evaluation = upgraded.get("evaluation")
    if isinstance(evaluation, dict):
        upgraded["evaluation"] = _upgrade_protocols(evaluation)
    if "loss" in upgraded and "objective" not in upgraded:
        upgraded["objective"] = upgraded.pop("loss")
    return upgraded


def _upgrade_protocols(evaluation: dict[str, Any]) -> dict[str, Any]:
    few_shot = {key: evaluation[key] for key in ("shots", "seeds") if key in evaluation}
    names = evaluation.get("protocols")
    if isinstance(names, dict) or not (few_shot or isinstance(names, list)):
        return evaluation
    kept = {key: value for key, value in evaluation.items() if key not in ("shots", "seeds", "protocols")}
    listed = [getattr(name, "text", name) for name in names] if isinstance(names, list) else ["few_shot", "linear"]
    left_out = dict.fromkeys(("few_shot", "linear"))  # null, or those of a file that this one extends would come back
    return {**kept, "protocols": {**left_out, **{name: few_shot if name == "few_shot" else {} for name in listed}}}

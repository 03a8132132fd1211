"""Rename settings of older versions to today's, in old run folders, files and command lines."""

from __future__ import annotations

from typing import Any

_KNOWN = ("few_shot", "linear")  # protocols of the versions that had a list of them


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose keys are today's. An old key counts over a new one. The argument is not changed.

    Changes, newest first:
        `evaluation.shots` and `.seeds` went into `evaluation.protocols.few_shot`, and `.protocols` from a list to a mapping.
        `loss` became `objective`.
    """
    upgraded = dict(values)
    evaluation = upgraded.get("evaluation")
    if isinstance(evaluation, dict):
        upgraded["evaluation"] = _upgrade_protocols(evaluation)
    if isinstance(upgraded.get("loss"), dict):
        objective = upgraded.get("objective")
        upgraded["objective"] = {**(objective if isinstance(objective, dict) else {}), **upgraded.pop("loss")}
    return upgraded


def _upgrade_protocols(evaluation: dict[str, Any]) -> dict[str, Any]:
    few_shot = {key: evaluation[key] for key in ("shots", "seeds") if key in evaluation}
    protocols = evaluation.get("protocols")
    if isinstance(protocols, list):
        names = [getattr(name, "text", name) for name in protocols]
        # Null leaves one out: the file that this one extends may have it.
        protocols = {**dict.fromkeys(_KNOWN), **{name: {} for name in names}} if len(set(names)) == len(names) else protocols
    elif protocols is None and few_shot:
        protocols = {name: {} for name in _KNOWN}
    if few_shot and isinstance(protocols, dict) and protocols.get("few_shot", {}) is not None:
        given = protocols.get("few_shot", {})
        protocols = {**protocols, "few_shot": {**(given if isinstance(given, dict) else {}), **few_shot}}
    kept = {key: value for key, value in evaluation.items() if key not in few_shot}
    return kept if protocols is None else {**kept, "protocols": protocols}

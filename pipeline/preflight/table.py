"""Compare machines, name the odd ones, and lay the results out."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.preflight.measure import Machine, Measure, Severity

SLOWER, LARGER = 0.8, 2.0  # a machine is odd below the others' median times this, or above it times that
MOST_NAMED = 8  # machines in a line


@dataclass(frozen=True)
class Finding:
    """Says what is wrong, where, and how to mend it."""

    machines: tuple[str, ...]
    text: str
    severity: Severity


def find_odd(machines: Sequence[Machine]) -> list[Finding]:
    """Return what each machine's values say by themselves, and what sets a machine apart from the others."""
    findings: dict[tuple[str, str, Severity], list[str]] = {}
    for machine in machines:
        for measure in machine.measures:
            if measure.advice is not None:
                said = (measure.name, f"{measure.text}; {measure.advice}", measure.severity)
                findings.setdefault(said, []).append(machine.name)
    for name in _names(machines):
        for machine in machines:
            text = _oddness(machine, [other for other in machines if other is not machine], name)
            if text is not None:
                findings.setdefault((name, text, "warning"), []).append(machine.name)
    found = [Finding(tuple(where), f"{name}: {text}", severity) for (name, text, severity), where in findings.items()]
    return sorted(found, key=lambda finding: finding.severity)


def _oddness(machine: Machine, others: Sequence[Machine], name: str) -> str | None:
    mine = machine.find(name)
    theirs = [found for other in others if (found := other.find(name)) is not None]
    if mine is None or not theirs:
        return None
    if mine.rule == "same":
        usual, count = Counter(measure.text for measure in theirs).most_common(1)[0]
        return None if mine.text == usual or 2 * count <= len(theirs) else f"{mine.text}, where the others have {usual}"
    values = [measure.value for measure in theirs if not isinstance(measure.value, str)]
    if mine.rule == "any" or isinstance(mine.value, str) or not values:
        return None
    usual = statistics.median(values)
    if mine.rule == "none less" and mine.value < SLOWER * usual:
        return f"{mine.text}, {100 * (1 - mine.value / usual):.0f} % below the others' {usual:.4g}"
    if mine.rule == "none more" and mine.value > LARGER * usual:
        return f"{mine.text}, {mine.value / usual:.1f} times the others' {usual:.4g}"
    return None


def _names(machines: Sequence[Machine]) -> list[str]:
    return list(dict.fromkeys(measure.name for machine in machines for measure in machine.measures))


def make_table(machines: Sequence[Machine]) -> str:
    """Return the common values in a list, and those that differ in a table with a row for each machine."""
    common, differing = [], []
    for name in _names(machines):
        found = [machine.find(name) for machine in machines]
        (common if len({None if m is None else m.text for m in found}) == 1 or _of_one(found) else differing).append(name)
    lines = []
    for name in common:
        measure = next(m for machine in machines if (m := machine.find(name)) is not None)
        lines.append(f"{name:<34} {measure.text}")
    if differing:
        rows = [[machine.name, *(_cell(machine.find(name)) for name in differing)] for machine in machines]
        lines += ["", *_columns(_wrapped([["machine", *differing], *rows]))]
    return "\n".join(lines)


def _of_one(found: Sequence[Measure | None]) -> bool:
    """Return whether a value is one for all machines, which a single one holds."""
    return sum(measure is not None for measure in found) == 1


def _cell(measure: Measure | None) -> str:
    return "" if measure is None else measure.text


def _wrapped(rows: list[list[str]]) -> list[list[str]]:
    """Return rows whose first has several lines, so that columns are as narrow as their values."""
    widths = [max(len(row[column]) for row in rows[1:]) for column in range(len(rows[0]))]
    heads = [_broken(text, max(8, width)) for text, width in zip(rows[0], widths, strict=True)]
    depth = max(map(len, heads))
    padded = [[""] * (depth - len(head)) + head for head in heads]
    return [[head[line] for head in padded] for line in range(depth)] + rows[1:]


def _broken(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def describe_findings(findings: Sequence[Finding], *, num_machines: int) -> list[str]:
    """Return a line for each finding, problems first; one line where there is none."""
    if not findings:
        return ["nothing is wrong" if num_machines == 1 else f"nothing is wrong, and no machine of {num_machines} differs"]
    return [f"{finding.severity.upper()}  {_where(finding.machines, num_machines)}{finding.text}" for finding in findings]


def _where(names: Sequence[str], num_machines: int) -> str:
    if num_machines == 1:
        return ""
    if len(names) == num_machines:
        return "all machines: "
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}: "


def to_values(machines: Sequence[Machine], findings: Sequence[Finding]) -> dict[str, Any]:
    """Return everything, for JSON, which has no infinite numbers."""
    values = [asdict(machine) for machine in machines]
    for measure in (measure for machine in values for measure in machine["measures"]):
        if isinstance(measure["value"], float) and math.isinf(measure["value"]):
            measure["value"] = "unlimited"
    return {"machines": values, "findings": [asdict(finding) for finding in findings]}

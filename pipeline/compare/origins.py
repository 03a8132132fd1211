"""Compare what two runs began with: shards, first weights, software, ranks. Each difference is a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.build.data_record import compare_records
from pipeline.compare.folders import Folder
from pipeline.run.records import Row

Sameness = Literal["the same", "different", "unknown"]


@dataclass(frozen=True)
class Origin:
    """Says whether one thing is the same in two runs, and what differs in words."""

    sameness: Sameness
    text: str


@dataclass(frozen=True)
class Origins:
    """Holds what two runs began with."""

    data: Origin
    initial: Origin
    software: Origin
    ranks: Origin


def compare_origins(a: Folder, b: Folder) -> Origins:
    """Compare two folders' records."""
    return Origins(
        data=_compare_data(a.data, b.data),
        initial=_compare_initial(a, b),
        software=_compare_versions(a.versions, b.versions),
        ranks=_compare_ranks(a.ranks, b.ranks),
    )


def _compare_data(a: Row, b: Row) -> Origin:
    prints = [row.get("fingerprint") for row in (a, b)]
    if None in prints:
        return Origin("unknown", f"{_which(prints)} no record of its shards (data.json)")
    accepted = [row.get("accepted") for row in (a, b)]
    changes = "".join(
        f"; run {name} resumed with other shards {len(found)} times (data.accept)"
        for name, found in zip("AB", accepted, strict=True)
        if isinstance(found, list) and found
    )
    if prints[0] == prints[1]:
        return Origin("different" if changes else "the same", f"the same shards, fingerprint {prints[0]}{changes}")
    return Origin("different", f"fingerprints {prints[0]} and {prints[1]}; from A to B: {compare_records(a, b)}{changes}")


def _compare_initial(a: Folder, b: Folder) -> Origin:
    """Compare the weights of step 0 where both runs have them, else the records of what they began with."""
    first = [folder.course.digests.get(0) for folder in (a, b)]
    sources = [_describe_source(folder.initial) for folder in (a, b)]
    said = sources[0] if sources[0] == sources[1] else f"A: {sources[0]}; B: {sources[1]}"
    if None not in first:
        same = first[0] == first[1]
        return Origin(
            "the same" if same else "different",
            f"weights of step 0 are {'equal to the last bit' if same else 'different'} ({said})",
        )
    digests = [None if folder.initial is None else folder.initial.get("digest") for folder in (a, b)]
    if digests[0] != digests[1]:
        return Origin("different", said)
    if digests[0] is not None:
        taken = [(folder.initial or {}).get("taken") for folder in (a, b)]
        return Origin("the same" if taken[0] == taken[1] else "different", said)
    return Origin("unknown", f"{_which(first)} no weights of step 0")


def _describe_source(record: Row | None) -> str:
    if record is None:
        return "from the seed"
    return f"{record.get('source')}, digest {record.get('digest')}"


def _compare_versions(a: Mapping[str, str], b: Mapping[str, str]) -> Origin:
    if not a or not b:
        return Origin("unknown", f"{_which([a or None, b or None])} no checkpoint that names its software")
    changed = [f"{name} {a.get(name, '-')} and {b.get(name, '-')}" for name in {**a, **b} if a.get(name) != b.get(name)]
    if changed:
        return Origin("different", ", ".join(changed))
    return Origin("the same", "the same: " + ", ".join(f"{name} {version}" for name, version in a.items()))


def _compare_ranks(a: int | None, b: int | None) -> Origin:
    if a is None or b is None:
        return Origin("unknown", f"{_which([a, b])} no record of its ranks")
    return Origin("the same" if a == b else "different", f"{a} in both" if a == b else f"{a} and {b}")


def _which(values: Sequence[object]) -> str:
    missing = [name for name, value in zip("AB", values, strict=True) if value is None]
    return "both runs have" if len(missing) == 2 else f"run {missing[0]} has"

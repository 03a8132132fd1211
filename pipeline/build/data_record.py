"""Keep RUN_DIR/data.json: what the run was trained on, shard by shard, so that a resume can say in words what has changed.

{"fingerprint": of all of it, as checkpoints name it,
 "corpora": [{"folder", "weight", "first_class", "shards": {NAME: [bytes, samples, digest of keys, digest of labels]}}],
 "accepted": [{"step", "from", "to", "changed", "when"}]}    changes that somebody has accepted, see data.accept
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.data.shards.content import HALF, MASK
from pipeline.data.shards.index import ShardIndex
from pipeline.data.streams.mixture import Mixture, UnindexedShards
from pipeline.errors import CheckpointError
from pipeline.files import write_whole
from pipeline.run.folder import RunFolder
from pipeline.run.records import read_json

SHOWN_SHARDS = 3
COLUMNS = ("sizes", "numbers of samples", "keys", "labels")  # parts of a shard's entry
Data = Mixture | UnindexedShards


@dataclass(frozen=True)
class Continuity:
    """Says how the data of a resumed run relate to those of its checkpoint."""

    messages: list[str]
    accepted: dict[str, Any] | None = None  # a change, to be recorded


def check_data(run_dir: Path, data: Data, *, before: str, step: int, accept: str | None) -> Continuity:
    """Return whether a run may resume with these data.

    Args:
        before: fingerprint in the checkpoint.
        step: step of the checkpoint.
        accept: fingerprint that was accepted by option.

    Raises:
        CheckpointError: the data are others, and nobody has accepted them.
    """
    now = data.fingerprint
    if before == now:
        return Continuity([])
    if isinstance(data, Mixture) and before == data.order_fingerprint:
        return Continuity(
            [
                "this run began before indexes knew keys and labels: sizes and order of the shards are as they were, whether "
                "labels are unchanged is unknown; from here on they are compared"
            ]
        )
    record = read_record(run_dir)
    changed = describe_change(record, data) if record.get("fingerprint") == before else "their index, or the mixture, differs"
    if known := [entry for entry in _accepted(record) if entry.get("from") == before and entry.get("to") == now]:
        return Continuity(
            [f"resumes with other shards, as was accepted at step {known[-1].get('step')}: {known[-1].get('changed')}"]
        )
    if accept != now:
        given = f" (data.accept={accept} names others)" if accept is not None else ""
        raise CheckpointError(
            f"the shards of data.train are not those this run began with: {changed}{given}. Restore them; or start a new run "
            f"with name=...; or resume with them anyway with data.accept={now}, which is recorded in {RunFolder(run_dir).data}"
        )
    return Continuity(
        [
            f"resumes with other shards, as data.accept says: {changed}. In the epoch under way images may come twice or "
            "not at all"
        ],
        {
            "step": step,
            "from": before,
            "to": now,
            "changed": changed,
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def write_record(run_dir: Path, data: Data, accepted: dict[str, Any] | None = None) -> None:
    """Record what the run is trained on from here on, and a change that was accepted."""
    record = read_record(run_dir)
    if record.get("fingerprint") == data.fingerprint and accepted is None:
        return
    changes = [*_accepted(record), *([] if accepted is None else [accepted])]
    write_whole(RunFolder(run_dir).data, json.dumps({**_describe(data), "accepted": changes}) + "\n")


def read_record(run_dir: Path) -> dict[str, Any]:
    """Return the record; empty if there is none, or it cannot be read."""
    return read_json(RunFolder(run_dir).data) or {}


def _accepted(record: dict[str, Any]) -> list[dict[str, Any]]:
    entries = record.get("accepted")
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _describe(data: Data) -> dict[str, Any]:
    if isinstance(data, UnindexedShards):
        return {"fingerprint": data.fingerprint, "urls": list(data.urls)}
    corpora = [
        {"folder": c.index.folder, "weight": c.weight, "first_class": c.first_class, "shards": describe_shards(c.index)}
        for c in data.corpora
    ]
    return {"fingerprint": data.fingerprint, "corpora": corpora}


def describe_shards(index: ShardIndex) -> dict[str, list[Any]]:
    """Return each shard's size, number of samples, and digests of its keys and labels."""
    members = (index.block_content >> np.uint64(HALF)).astype(np.uint32)
    labels = (index.block_content & np.uint64(MASK)).astype(np.uint32)
    shards: dict[str, list[Any]] = {}
    for number, name in enumerate(index.shard_names):
        first, last = index.shard_first_block[number : number + 2].tolist()
        samples = int(index.first_sample[last] - index.first_sample[first])
        digests = [xxhash.xxh3_64_hexdigest(half[first:last].tobytes()) for half in (members, labels)]
        shards[name] = [int(index.shard_bytes[number]), samples, *digests]
    return shards


def describe_change(record: dict[str, Any], data: Data) -> str:
    """Return what differs from a record, in words."""
    return compare_records(record, _describe(data))


def compare_records(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return what differs between two records whose fingerprints differ, in words."""
    try:
        return "; ".join(_differences(before, now)) or "the size of the index's blocks, or its skipped samples, differ"
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):  # written by another version
        return "their index, or the mixture, differs"


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    if "urls" in before or "urls" in now:
        return [f"data.train named {_name_train(before)}, now {_name_train(now)}"]
    if len(before["corpora"]) != len(now["corpora"]):
        return [f"{len(before['corpora'])} corpora were mixed, now {len(now['corpora'])}"]
    parts: list[str] = []
    for old, new in zip(before["corpora"], now["corpora"], strict=True):
        found = [f"{name} was {old[name]:g}, now {new[name]:g}" for name in ("weight", "first_class") if old[name] != new[name]]
        found += _shard_differences(old["shards"], new["shards"])
        if found:
            folder = new["folder"] if old["folder"] == new["folder"] else f"{old['folder']}, now {new['folder']}"
            parts.append(f"{folder}: {', '.join(found)}")
    return parts


def _name_train(record: dict[str, Any]) -> str:
    if "urls" in record:
        return f"{len(record['urls'])} tars without an index"
    return ", ".join(str(corpus["folder"]) for corpus in record["corpora"])


def _shard_differences(before: dict[str, list[Any]], now: dict[str, list[Any]]) -> list[str]:
    groups: dict[str, list[str]] = {
        "missing": sorted(set(before) - set(now)),
        "added": sorted(set(now) - set(before)),
    }
    for name in sorted(set(before) & set(now)):
        for column, what in _changed_columns(before[name], now[name]):
            groups.setdefault(what, []).append(name)
            if column < 2:  # sizes that differ explain digests that do
                break
    return [_list_names(what, names, len(before)) for what, names in groups.items() if names]


def _changed_columns(before: list[Any], now: list[Any]) -> list[tuple[int, str]]:
    return [(column, what) for column, what in enumerate(COLUMNS) if before[column] != now[column]]


def _list_names(what: str, names: list[str], total: int) -> str:
    shown = ", ".join(names[:SHOWN_SHARDS]) + (", ..." if len(names) > SHOWN_SHARDS else "")
    count = f"{len(names)} of {total} shards ({shown})"
    return f"{count} {what}" if what in ("missing", "added") else f"other {what} in {count}"

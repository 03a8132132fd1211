"""Read what a W&B run's offline file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.monitor.loggers import RunIdentity
from pipeline.monitor.wandb_file import read_records


def identity(folder: Path) -> RunIdentity:
    return RunIdentity(name="tiny", run_id="abc123", folder=folder, project="p", entity=None, mode="offline")


def stored(folder: Path, run_id: str, kind: str) -> list[Any]:
    """Return the records of a kind in a run's offline file. There is one such file: older ones are set aside."""
    from wandb.proto import wandb_internal_pb2

    (only,) = (folder / "wandb").glob(f"offline-run-*/run-{run_id}.wandb")
    found = []
    for data in read_records(only):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # made when it is imported
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == kind:
            found.append(getattr(record, kind))
    return found


def stored_history(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """Return rows by key."""
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in history.item}
        for history in stored(folder, run_id, "history")
    ]


def stored_config(folder: Path, run_id: str) -> dict[str, Any]:
    (run,) = stored(folder, run_id, "run")
    return {item.key: json.loads(item.value_json) for item in run.config.update}

"""Decide which W&B run a run folder belongs to: its id, its project, and whether the folder is a copy of another run's.

    RUN_DIR/wandb_id          the id
    RUN_DIR/wandb_run.json    project and entity of the first launch, where the folder lay, and what it was copied from

A folder that was moved, renamed, restored from a backup or is seen under another mount is the same run. A copy is another run:
under the same id the two would overwrite each other. A copy is recognised by its original: the folder lies elsewhere than
noted, and the noted path, or a folder next to this one, still holds the original.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.console.lines import log_line
from pipeline.files import write_whole
from pipeline.monitor.wandb_settings import Said, WandbEnvironment, check_name
from pipeline.run.folder import RunFolder
from pipeline.run.records import read_json, replace_json

ID_FILE = "wandb_id"
DEFAULT_PROJECT = "vit-pretraining"


@dataclass(frozen=True)
class WandbIdentity:
    """Names a run folder's W&B run, with messages about it."""

    run_id: str
    messages: list[str]


@dataclass(frozen=True)
class Destination:
    """Says where W&B keeps the run, and which parts of the environment do not count."""

    project: str
    entity: str | None
    ignored: dict[str, str]


def settle_run(root: Path, *, wanted: Said | None, checkpoint_id: str | None, step: int) -> WandbIdentity:
    """Return the id of a run folder's W&B run: its own, made at the first call; a new one for a copy.

    Args:
        wanted: id from the environment; a folder without one takes it, unless another run has it.
        checkpoint_id: id in the newest checkpoint, in case the folder's own note is lost.
        step: first step of this launch, noted with a copy.
    """
    record = read_json(RunFolder(root).wandb_record) or {}
    run_id = _read_id(root) or record.get("run_id") or checkpoint_id
    messages: list[str] = []
    if run_id is None:
        run_id = _new_id(root, wanted, messages)
    elif wanted is not None and wanted.value != run_id:
        messages.append(f"{wanted.source}={wanted.value} is ignored: this run folder's W&B run is {run_id}")
    original = _find_original(root, record, run_id)
    if original is not None:
        mine = _location(root)
        # Not drawn at random: an evaluator and a training that notice the copy at once must choose the same id.
        new = hashlib.blake2b(f"{run_id} {mine['path']} {mine['folder_inode']}".encode(), digest_size=4).hexdigest()
        record["forked_from"] = {"run_id": run_id, "folder": str(original), "step": step}
        messages.append(
            f"W&B: this folder is a copy of {original}, whose run {run_id} stays its own; the copy goes on as run {new}, "
            f"linked by forked_from in its configuration"
        )
        run_id = new
        _forget_sent(root)
    _write(root, run_id, {**record, "run_id": run_id, "place": _location(root)})
    return WandbIdentity(run_id, messages)


def settle_destination(root: Path, environment: WandbEnvironment, *, project: str | None, entity: str | None) -> Destination:
    """Return where the run goes: the configuration's choice, else the first launch's, else the environment's.

    Raises:
        ConfigError: W&B does not accept the project name.
    """
    record = read_json(RunFolder(root).wandb_record) or {}
    known = record if "project" in record else None
    ignored: dict[str, str] = {}

    def settle(name: str, asked: str | None, said: Said | None) -> str | None:
        value = asked or (known[name] if known is not None else said.value if said else None)
        if said is not None and said.value != value:
            why = (
                f"tracking.{name}={asked}"
                if asked
                else f"the run began in {name} {value}; tracking.{name}={said.value} moves it"
            )
            ignored[said.source] = why
        return value

    found = settle("project", project, environment.project) or DEFAULT_PROJECT
    owner = settle("entity", entity, environment.entity)
    check_name("project", Said(found, "tracking.project"))
    check_name("entity", Said(owner, "tracking.entity") if owner else None)
    if known is not None and (known["project"], known["entity"]) != (found, owner):
        _forget_sent(root)  # the other project has nothing yet
    if known is None or (known["project"], known["entity"]) != (found, owner):
        _write(root, None, {**record, "project": found, "entity": owner})
    return Destination(found, owner, ignored)


def forked_from(root: Path) -> dict[str, Any] | None:
    """Return the folder that this one was copied from, if any."""
    return (read_json(RunFolder(root).wandb_record) or {}).get("forked_from")


def _new_id(root: Path, wanted: Said | None, messages: list[str]) -> str:
    if wanted is None:
        return uuid.uuid4().hex[:8]
    for other in root.parent.glob(f"*/{ID_FILE}"):  # left in a shell, it would join two runs
        if other.parent.name != root.name and _read_id(other.parent) == wanted.value:
            messages.append(f"{wanted.source}={wanted.value} is ignored: it is the W&B run of {other.parent}")
            return uuid.uuid4().hex[:8]
    return wanted.value


def _read_id(root: Path) -> str | None:
    try:
        return (root / ID_FILE).read_text(errors="replace").strip() or None
    except OSError:
        return None


def _location(root: Path) -> dict[str, Any]:
    """Return what distinguishes a folder from its copies: a rename keeps inodes, a copy has new ones."""
    try:
        file_inode = (root / ID_FILE).stat().st_ino
    except OSError:
        file_inode = None
    return {"path": str(root.resolve()), "folder_inode": root.stat().st_ino, "file_inode": file_inode}


def _find_original(root: Path, record: dict[str, Any], run_id: str) -> Path | None:
    """Return the folder that this one is a copy of, or None."""
    noted = record.get("place")
    if not isinstance(noted, dict) or not noted.get("path"):
        return None  # written by an older version, which noted none
    here = _location(root)
    if (here["folder_inode"], here["file_inode"]) == (noted.get("folder_inode"), noted.get("file_inode")):
        return None
    there = Path(noted["path"])
    if str(there) != here["path"] and _read_id(there) == run_id and not os.path.samefile(there, root):
        return there
    for other in root.resolve().parent.glob(f"*/{ID_FILE}"):  # renamed, and this is a copy in its old or another path
        folder = other.parent
        if str(folder) != here["path"] and _read_id(folder) == run_id and folder.stat().st_ino == noted.get("folder_inode"):
            return folder
    return None


def _forget_sent(root: Path) -> None:
    """Forget what W&B was given of another run."""
    for path in root.glob("wandb_sent_*.jsonl"):
        path.unlink(missing_ok=True)


def _write(root: Path, run_id: str | None, record: dict[str, Any]) -> None:
    try:
        if run_id is not None and _read_id(root) != run_id:
            write_whole(root / ID_FILE, run_id)
            record["place"] = _location(root)  # location of the new file
        if read_json(RunFolder(root).wandb_record) != record:
            replace_json(RunFolder(root).wandb_record, record)
    except OSError as error:  # an evaluator may see a run folder that it cannot write
        log_line(
            f"[wandb] {RunFolder(root).wandb_record} cannot be written ({error}): a copy of this folder will pass for "
            "the run itself"
        )

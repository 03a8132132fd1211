"""The run folder, and checkpoints in it that are either complete or absent.

    RUN_DIR/
      config.yaml                          as resolved at the last launch
      checkpoints/step_00001000/           one folder a checkpoint
        model.safetensors                  fp32 masters: the weights file below, under a second name
        moments-00000-of-00002.safetensors Adam's moments, whole tensors shared out between the ranks that wrote them
        meta.json                          step, images seen, number of updates, W&B id, versions
        manifest.json                      size and hash of every other file; written last
      weights/step_00001000.safetensors    fp32 weights with the model's config in the header: what evaluation reads
      complete.json                        written when the last step is saved
      metrics.jsonl  evaluations.jsonl  claims/  wandb_id  wandb/

A checkpoint is written under a name that starts with a dot, flushed, hashed and then renamed. Readers see only names
without the dot and check every hash, so whatever a crash leaves behind is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError
from pipeline.run_folder import RunFolder

_HASH_CHUNK = 16 * 2**20
FORMAT = 2  # of the files below a checkpoint folder
MODEL_FILE = "model.safetensors"
MOMENTS_FILES = "moments-*.safetensors"


@dataclass(frozen=True)
class CheckpointMeta:
    """What a relaunch must know before it loads tensors, and what is not a tensor."""

    format: int
    step: int
    images_seen: int
    num_updates: int  # steps of the optimizer: those it refused are not among them
    skipped_steps: int
    callbacks: dict[str, Any]  # their state by their key
    world_size: int  # as it was saved; any other number of ranks can go on
    zero_stage: int
    wandb_id: str
    data_fingerprint: str
    order_version: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A complete, verified checkpoint."""

    path: Path
    meta: CheckpointMeta


@dataclass(frozen=True)
class Found:
    """What a search for a checkpoint saw: the newest complete one, and by step why newer ones were passed over."""

    newest: Checkpoint | None
    rejected: dict[int, str]


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and durably. Its folder is there, or away: it is not made anew."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """BLAKE2b of a file's bytes, after making sure they are on disk."""
    digest = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """All files below a folder but the manifest itself, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")


def describe_files(folder: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """Manifest entries: relative name to size and hash."""
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": hash_file(path)} for path in files}


def publish(staging: Path, target: Path, *, manifest: dict[str, dict[str, Any]]) -> None:
    """Complete a staged checkpoint: manifest last, then the rename that makes it visible."""
    write_atomically(staging / "manifest.json", json.dumps(manifest, indent=1).encode())
    for folder in {path.parent for path in files_of(staging)}:
        sync_folder(folder)
    if target.exists():  # the same step saved before and found broken at resume
        shutil.rmtree(target)
    staging.rename(target)
    sync_folder(target.parent)


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint against its manifest, hash by hash.

    Raises:
        CheckpointError: what is missing or differs.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        for name, expected in manifest.items():
            file = path / name
            if file.stat().st_size != expected["bytes"]:
                raise CheckpointError(f"{file} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}")
            if hash_file(file) != expected["blake2b"]:
                raise CheckpointError(f"{file} is damaged: its hash differs from the manifest")
        return Checkpoint(path=path, meta=read_meta(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is incomplete: {Path(error.filename).name} is missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: manifest or meta.json cannot be read ({error})") from error


def read_meta(path: Path) -> CheckpointMeta:
    """A checkpoint's meta.json.

    Raises:
        CheckpointError: it has another format.
        FileNotFoundError, ValueError, TypeError: it is not there, or damaged.
    """
    meta = json.loads((path / "meta.json").read_text())
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {meta.get('format', 1)}, this software reads format {FORMAT}")
    return CheckpointMeta(**meta)


def find_latest(folder: RunFolder) -> Found:
    """The newest checkpoint that verifies. Broken ones are named, never used."""
    rejected: dict[int, str] = {}
    for step in reversed(folder.checkpoint_steps()):
        try:
            return Found(newest=read_checkpoint(folder.checkpoint_of(step)), rejected=rejected)
        except CheckpointError as error:
            rejected[step] = str(error)
    return Found(newest=None, rejected=rejected)


def write_meta(staging: Path, meta: CheckpointMeta) -> None:
    write_atomically(staging / "meta.json", json.dumps(asdict(meta), indent=1).encode())


def delete_old(folder: RunFolder, *, newest: int, keep_last: int, keep_every_steps: int | None) -> list[int]:
    """Delete checkpoints beyond the last `keep_last` up to step `newest` and the multiples of `keep_every_steps`.

    `newest` is the step just saved. Weights stay: they are what a run is for.

    Returns:
        The steps deleted.
    """
    steps = [step for step in folder.checkpoint_steps() if step <= newest]
    keep = set(steps[-keep_last:]) | {s for s in steps if keep_every_steps and s % keep_every_steps == 0}
    deleted = [step for step in steps if step not in keep]
    for step in deleted:
        # Out of sight first: a half-deleted folder must not look like a checkpoint.
        grave = folder.checkpoints / f".deleting-step_{step:08d}"
        folder.checkpoint_of(step).rename(grave)
        shutil.rmtree(grave)
    return deleted


def set_aside(folder: RunFolder, step: int) -> Path:
    """Rename a checkpoint that does not verify, so that it neither counts nor stands in the way, and return its place."""
    place = folder.checkpoints / f"broken-step_{step:08d}"
    if place.exists():
        shutil.rmtree(place)  # an older wreck of the same step
    folder.checkpoint_of(step).rename(place)
    return place


def clear_leftovers(folder: RunFolder) -> None:
    """Remove what crashed saves and deletions left: names that start with a dot."""
    for parent in (folder.checkpoints, folder.weights):
        for path in parent.glob(".*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def collect_versions() -> dict[str, str]:
    """Versions that a checkpoint's bytes depend on."""
    import pipeline

    return {"pipeline": pipeline.__version__, **{name: metadata.version(name) for name in ("torch", "lightning", "deepspeed")}}

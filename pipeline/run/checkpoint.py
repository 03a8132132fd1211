"""Read and write the run folder's checkpoints, which are either complete or absent.

    RUN_DIR/
      config.yaml                          as resolved at the last launch
      checkpoints/step_00001000/           one folder a checkpoint
        model.safetensors                  fp32 masters: the weights file below, under a second name
        average.safetensors                their running average, if one is kept, under a second name too
        moments-00000-of-00002.safetensors Adam's moments, whole tensors shared out between the ranks that wrote them
        meta.json                          step, images seen, number of updates, W&B id, versions
        manifest.json                      size and hash of every other file; written last
      weights/step_00001000.safetensors    fp32 weights with the model's config in the header: what evaluation reads
      weights/step_00001000.average.safetensors
      complete.json                        written when the last step is saved
      metrics.jsonl  evaluations.jsonl  claims/  wandb_id  wandb/

A checkpoint is written under a name that starts with a dot, flushed, hashed and then renamed. Readers see only names without
the dot and check every hash, so whatever a crash leaves behind is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.errors import CheckpointError, DamagedError
from pipeline.files import sync_folder, write_whole
from pipeline.json_text import parse_json
from pipeline.run.folder import RunFolder, step_name
from pipeline.run.loss_history import LossHistory, choose_kept

_HASH_CHUNK = 16 * 2**20
FORMAT = 2  # format of the files in a checkpoint folder
MODEL_FILE = "model.safetensors"
AVERAGE_FILE = "average.safetensors"
MOMENTS_FILES = "moments-*.safetensors"
METRICS_STATE = "TrainingMetrics"  # key of the metrics' state among the callbacks
_META_TYPES = {"bool": bool, "int": int, "str": str}  # the other fields are mappings


@dataclass(frozen=True)
class CheckpointMeta:
    """Holds what a relaunch must know before it loads tensors, and state that is not a tensor."""

    format: int
    step: int
    images_seen: int
    num_updates: int  # steps of the optimizer, without those it refused
    skipped_steps: int
    callbacks: dict[str, Any]  # state of the callbacks by their key
    world_size: int  # number of ranks that saved it; any other number of ranks can resume
    zero_stage: int
    wandb_id: str
    data_fingerprint: str
    order_version: int
    versions: dict[str, str]
    proven: bool = True  # published after a step that began from it was taken; a run's last one is not


@dataclass(frozen=True)
class Checkpoint:
    """Describes a complete, verified checkpoint."""

    path: Path
    meta: CheckpointMeta


def hash_file(path: Path) -> str:
    """Return the BLAKE2b hash of a file's bytes."""
    digest = hashlib.blake2b(digest_size=20)
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def files_of(folder: Path) -> list[Path]:
    """Return all files below a folder but the manifest itself, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")


def describe_files(folder: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """Return manifest entries of files on disk: relative name to size and hash."""
    return {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "blake2b": hash_file(path)} for path in files}


def publish(staging: Path, target: Path, *, manifest: dict[str, dict[str, Any]]) -> None:
    """Complete a staged checkpoint: write the manifest last, then rename the folder, which makes it visible."""
    write_whole(staging / "manifest.json", json.dumps(manifest, indent=1).encode())
    for folder in {path.parent for path in files_of(staging)}:
        sync_folder(folder)
    if target.exists():  # the same step was saved before and found broken at resume
        shutil.rmtree(target)
    staging.rename(target)
    sync_folder(target.parent)


def read_checkpoint(path: Path) -> Checkpoint:
    """Verify a checkpoint against its manifest, hash by hash.

    Raises:
        DamagedError: a file is missing or differs.
        CheckpointError: it cannot be read, or another version of this software wrote it.
    """
    try:
        _check_format(path)
        _verify(path)
        return Checkpoint(path=path, meta=read_meta(path))
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {error.filename or path} cannot be read: {error.strerror or error}; make it readable to this user here"
        ) from error


def _check_format(path: Path) -> None:
    """Check the format before anything else counts as damage: another version may store it otherwise."""
    try:
        meta = parse_json((path / "meta.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return  # the manifest will report it
    if isinstance(meta, dict) and isinstance(found := meta.get("format", 1), int) and found != FORMAT:
        raise _other_version(path, meta, f"has format {found}, this software reads format {FORMAT}")


def _verify(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"checkpoint {path} cannot be read: it is a link to {path.readlink()}, which does not exist")
    try:
        manifest = parse_json((path / "manifest.json").read_bytes())
        for name, expected in manifest.items():
            file = path / name
            if ".." in Path(name).parts or path not in file.parents:
                raise DamagedError(f"{path}: manifest.json names {name[:80]!r}, which is outside of the folder")
            if file.stat().st_size != expected["bytes"]:
                raise DamagedError(f"{file} has {file.stat().st_size} bytes, its manifest says {expected['bytes']}")
            if hash_file(file) != expected["blake2b"]:
                raise DamagedError(f"{file} is damaged: its hash differs from the manifest")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedError(f"{path} is incomplete: {Path(error.filename).name} is missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(f"{path}: manifest.json cannot be read ({error})") from error
    missing = {"meta.json", MODEL_FILE} - set(manifest)
    if missing:
        raise DamagedError(f"{path}: manifest.json does not name {', '.join(sorted(missing))}")


def read_meta(path: Path) -> CheckpointMeta:
    """Return a verified checkpoint's meta.json. Keys that a later version of the same format adds are passed over.

    Raises:
        CheckpointError: another version of this software wrote it.
    """
    meta: Any = None
    try:
        meta = parse_json((path / "meta.json").read_bytes())
        names = {field.name for field in fields(CheckpointMeta)}
        _check_types(known := CheckpointMeta(**{key: value for key, value in meta.items() if key in names}))
        return known
    except (ValueError, TypeError, AttributeError) as error:
        raise _other_version(path, meta, f"has a meta.json that this version does not know ({error})") from error


def _check_types(meta: CheckpointMeta) -> None:
    for field in fields(meta):
        value, wanted = getattr(meta, field.name), _META_TYPES.get(str(field.type), dict)
        if type(value) is not wanted or (wanted is int and value < 0):
            raise ValueError(f"{field.name} is {str(value)[:40]!r}")


def _other_version(path: Path, meta: Any, what: str) -> CheckpointError:
    import pipeline

    versions = meta.get("versions") if isinstance(meta, dict) else None
    wrote = versions.get("pipeline") if isinstance(versions, dict) else None
    by = f"by version {wrote} of this software" if wrote else "by another version of this software"
    return CheckpointError(
        f"{path} was written {by} and {what} (version {pipeline.__version__}): it is left as it is; go on with the version "
        "that wrote it"
    )


def write_meta(staging: Path, meta: CheckpointMeta) -> None:
    write_whole(staging / "meta.json", json.dumps(asdict(meta), indent=1).encode())


def delete_old(
    folder: RunFolder, *, newest: int, keep_last: int, keep_every_steps: int | None, sound: int | None = None
) -> list[int]:
    """Delete checkpoints up to step `newest`, except those that `choose_kept` names.

    Weights stay: they are the purpose of a run.

    Args:
        newest: the step just saved.
        sound: a step that is kept: the newest one from which training is known to continue.

    Returns:
        The steps deleted.
    """
    steps = [step for step in folder.checkpoint_steps() if step <= newest]
    lost = frozenset(step for step in steps if is_lost(folder.checkpoint_of(step)))
    keep = {*choose_kept(steps, lost=lost, keep_last=keep_last, keep_every_steps=keep_every_steps), sound}
    deleted = [step for step in steps if step not in keep]
    for step in deleted:
        # Hide it first: a half-deleted folder must not look like a checkpoint.
        grave = folder.checkpoints / f".deleting-{step_name(step)}"
        folder.checkpoint_of(step).rename(grave)
        shutil.rmtree(grave)
    return deleted


def read_loss_history(path: Path) -> LossHistory | None:
    """Return what a checkpoint's meta.json says of the run's loss; None where it says nothing."""
    try:
        meta = parse_json((path / "meta.json").read_bytes())
        return LossHistory.described_by(meta["callbacks"][METRICS_STATE]["loss"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_lost(path: Path) -> bool:
    """Return whether a checkpoint was saved after its run had lost what it learnt. One that does not say counts as good."""
    history = read_loss_history(path)
    return history is not None and history.is_lost


def collect_versions() -> dict[str, str]:
    """Return the versions that a checkpoint's bytes depend on."""
    import pipeline

    return {"pipeline": pipeline.__version__, **{name: metadata.version(name) for name in ("torch", "lightning", "deepspeed")}}

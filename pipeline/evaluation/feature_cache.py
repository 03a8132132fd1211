"""Keep computed features in files, so that a new protocol or shot count costs no forward pass.

    RUN_DIR/features/KEY.safetensors     values (N, D) fp32, labels (N,) int64

The key is a hash of all that features depend on. So a folder may be shared by runs and by evaluators, and a file that is there
is right. When the files exceed the limit, those that were not read for longest are removed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import safe_open

from pipeline.data.images.crop import EvalTransform
from pipeline.data.shards.index import ShardIndex
from pipeline.distributed.precision import EvaluationPrecision
from pipeline.evaluation.feature_kinds import REPRESENTATION, FeatureKind
from pipeline.evaluation.features import Features
from pipeline.evaluation.section import EvaluationSection
from pipeline.files import Draft
from pipeline.run.folder import RunFolder
from pipeline.run.weights import WeightsHeader

VERSION = 1  # of what is computed from the same weights and images; it rises when features change
DRAFT_S = 3600.0  # nobody writes for that long
LARGEST_PART = 0.1  # of the free space: a training on the same disk needs the rest
_SUFFIX = ".safetensors"


def key_of_features(
    header: WeightsHeader,
    index: ShardIndex,
    *,
    transform: EvalTransform,
    precision: EvaluationPrecision,
    kind: FeatureKind = REPRESENTATION,
) -> str:
    """Return the name of a split's features: a hash of the weights, the images and what is done to them."""
    conditions = {
        "version": VERSION,
        "weights": header.digest,
        "model": {"family": header.model.family, **header.model.to_dict()},
        "data": index.fingerprint,
        "transform": asdict(transform),
        "precision": precision,
        **kind.key(),
    }
    return hashlib.blake2b(json.dumps(conditions, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


@dataclass
class FeatureCache:
    """Finds and keeps features in a folder.

    Args:
        limit_bytes: of all files; features of one split that exceed it are not kept.
    """

    folder: Path
    limit_bytes: int

    def __post_init__(self) -> None:
        self._problem: str | None = None

    def find(self, key: str) -> Features | None:
        """Return features; None where they are not there. A damaged file is removed, and said."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                count = (file.metadata() or {})["num_unreadable"]
                found = Features(file.get_tensor("values"), file.get_tensor("labels"), num_unreadable=int(count))
            os.utime(path)  # it was read: others are removed before it
        except FileNotFoundError:
            return None
        except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
            self._say(f"{path} cannot be used ({error}); its features are computed again")
            return None
        if len(found.values) != len(found.labels):
            self._say(f"{path} is damaged; its features are computed again")
            return None
        return found

    def keep(self, key: str, features: Features) -> None:
        """Write features, if they fit. What cannot be written costs time later, and nothing else."""
        size = features.values.nbytes + features.labels.nbytes
        if size > self.limit_bytes:
            self._say(
                f"features of {size / 2**30:.3g} GiB are not kept: evaluation.cache_gib={self.limit_bytes / 2**30:.3g} is less"
            )
            return
        try:
            self.folder.mkdir(exist_ok=True)  # without parents: a run's folder that was renamed must not be created again
            if size > shutil.disk_usage(self.folder).free * LARGEST_PART:
                self._say(f"features are not kept: {self.folder} is on a disk with little space, which checkpoints need")
                return
            self._make_room(size)
            data = safetensors.torch.save(
                {"values": features.values.contiguous(), "labels": features.labels.contiguous()},
                metadata={"num_unreadable": str(features.num_unreadable)},
            )
            with Draft(self._path(key), durability="unflushed") as draft:
                draft.file.write(data)
                draft.publish()
        except OSError as error:
            reason = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror or error
            self._say(f"features cannot be kept in {self.folder} ({reason}); other protocols will compute them again")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self, size: int) -> None:
        """Remove the files that were not read for longest. Another evaluator may do so at the same time.

        Drafts that killed evaluators left go first. One that is removed while it is written, because two clocks differ by
        hours, is computed again.
        """
        for draft in self.folder.glob(".*.part"):
            with suppress(FileNotFoundError):
                if time.time() - draft.stat().st_mtime > DRAFT_S:
                    draft.unlink()
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        used = sum(bytes_used for _, bytes_used, _ in found)
        for _, bytes_used, path in sorted(found):
            if used + size <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            used -= bytes_used

    def _say(self, text: str) -> None:
        if text != self._problem:
            print(f"[eval] {text}", flush=True)
        self._problem = text


def make_cache(section: EvaluationSection, folder: RunFolder) -> FeatureCache | None:
    """Make the cache that the settings ask for; None where they ask for none."""
    if not section.cache_gib:
        return None
    where = folder.features if section.cache_folder is None else Path(section.cache_folder).expanduser()
    return FeatureCache(where, limit_bytes=int(section.cache_gib * 2**30))

"""Look at weights files: whether one was replaced, what its header says, whether its numbers are finite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.run.folder import WeightsName
from pipeline.run.weights import Weights, WeightsHeader, read_weights_header

Stamp = tuple[int, int]  # when a file was written, and its size


def stamp_of(path: Path) -> Stamp | None:
    """Return what changes when a file is replaced; None if it is gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


class Headers:
    """Reads headers of weights files, each again only when its file changes."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[Stamp, WeightsHeader]] = {}

    def read(self, path: Path) -> WeightsHeader:
        """Return the header of a weights file.

        Raises:
            CheckpointError: it cannot be read.
        """
        stamp = stamp_of(path)
        known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        header = read_weights_header(path)
        if stamp is not None:
            self._known[path] = (stamp, header)
        return header


def why_not_finite(weights: Weights) -> str | None:
    """Return which tensors hold NaN or infinities; None if none does."""
    broken = [name for name, tensor in weights.model.state_dict().items() if not bool(tensor.isfinite().all())]
    if not broken:
        return None
    return (
        f"the weights of {WeightsName(weights.header.step, weights.header.kind)} are not finite (NaN or infinity in "
        f"{len(broken)} tensors, {broken[0]} first): training has diverged"
    )


@dataclass(frozen=True)
class Loaded:
    """Holds the weights that were loaded last."""

    stamp: Stamp | None
    weights: Weights
    why_not_finite: str | None

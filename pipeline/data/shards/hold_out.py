"""Divide a corpus in two by indexes alone: one leaves out what the other holds. The shards stay as they are."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.console.progress import track
from pipeline.data.shards.folder import ShardFolder
from pipeline.data.shards.index import ShardIndex, assemble_index, load_index, save_index
from pipeline.data.shards.kept import kept_in_shard
from pipeline.data.shards.sample import read_labels
from pipeline.data.shards.scan import scan_shard
from pipeline.data.shards.tar import scan_samples
from pipeline.errors import DataError
from pipeline.files import write_whole
from pipeline.json_text import parse_json

DIVISION = "division.json"  # how the parts were made


@dataclass(frozen=True)
class Divided:
    """Names the two indexes, and how many samples each has.

    Attributes:
        rest: index file of what is not held out.
        held_out: index file of what is.
    """

    rest: str
    held_out: str
    num_rest: int
    num_held_out: int


def hold_out(path: str, index: str | None, *, share: float, seed: int, out: Path) -> Divided:
    """Hold a part of a corpus out, the same part of every class, and write both indexes; nothing where they exist already.

    A sample is chosen by a hash of its shard's name, its key and the seed: the same shards always give the same parts. A class
    of at least two images gives at least one, and keeps at least one.

    Args:
        path, index: of the corpus, as `load_index` takes them.
        share: part to hold out, between 0 and 1.
        out: folder for `rest.safetensors` and `held_out.safetensors`.

    Raises:
        DataError: shards cannot be read, or have too few samples to divide.
    """
    whole = load_index(path, index)
    files = {name: str(out / f"{name}.safetensors") for name in ("rest", "held_out")}
    if all(Path(file).exists() for file in files.values()):
        _compare(out / DIVISION, share=share, seed=seed)
    else:
        _divide(whole, share=share, seed=seed, files=files)
    rest, held = (load_index(whole.folder, files[name]) for name in ("rest", "held_out"))
    if rest.num_samples + held.num_samples != whole.num_samples:
        raise DataError(f"{out} holds parts of another corpus than {whole.folder}: remove it, or choose another run folder")
    return Divided(files["rest"], files["held_out"], rest.num_samples, held.num_samples)


def _compare(record: Path, *, share: float, seed: int) -> None:
    """Refuse parts that were made in another way.

    Raises:
        DataError: the share or the seed was another.
    """
    try:
        made = parse_json(record.read_bytes())
    except FileNotFoundError:  # parts of before there was a record
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{record} cannot be read ({error}); remove {record.parent}, and the parts are made again") from error
    wanted = {"share": share, "seed": seed}
    if made != wanted:
        raise DataError(
            f"{record.parent} holds parts made with {made}, and now {wanted} is asked for: what was trained on them cannot be "
            "compared with it; choose another run folder (name=...), or the former values"
        )


def _divide(whole: ShardIndex, *, share: float, seed: int, files: dict[str, str]) -> None:
    Path(files["rest"]).parent.mkdir(parents=True, exist_ok=True)
    listed = _list_samples(whole)
    chosen = choose_held_out(listed, share=share, seed=seed)
    if not chosen or len(chosen) == len(listed):
        raise DataError(f"{whole.folder} has {len(listed)} samples, too few to hold out a part of {share:g}")
    held: dict[str, set[str]] = defaultdict(set)
    kept: dict[str, set[str]] = defaultdict(set)
    for shard, key, _ in listed:
        (held if (shard, key) in chosen else kept)[shard].add(key)
    write_whole(Path(files["rest"]).with_name(DIVISION), json.dumps({"share": share, "seed": seed}) + "\n")
    for name, wanted in (("rest", kept), ("held_out", held)):
        save_index(_index_of(whole, wanted), files[name])


def choose_held_out(samples: Sequence[tuple[str, str, int | None]], *, share: float, seed: int) -> set[tuple[str, str]]:
    """Return which samples are held out, by shard and key.

    Args:
        samples: shard, key and class of each; samples without one class are taken as of one class.
    """
    by_class: dict[int | None, list[tuple[bytes, str, str]]] = defaultdict(list)
    for shard, key, label in samples:
        digest = hashlib.blake2b(f"{seed}\n{shard}\n{key}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        by_class[label].append((digest, shard, key))
    chosen: set[tuple[str, str]] = set()
    for members in by_class.values():
        count = min(len(members) - 1, max(1, round(share * len(members))))
        chosen.update((shard, key) for _, shard, key in sorted(members)[:count])
    return chosen


def _list_samples(whole: ShardIndex) -> list[tuple[str, str, int | None]]:
    """Return shard, key and class of every sample that the index keeps. Headers and labels alone are read."""
    folder = ShardFolder(whole.folder)
    listed: list[tuple[str, str, int | None]] = []
    for name in track(whole.shard_names, description="list the samples", unit="shard"):
        with folder.open(name) as file:

            def read(start: int, length: int, file=file) -> bytes:  # type: ignore[no-untyped-def]
                file.seek(start)
                return file.read(length)

            marked = kept_in_shard(whole, name).mark(list(scan_samples(file, name=name)))
            for sample, is_kept in marked:
                if is_kept:
                    labels = read_labels(sample, read, shard=name)
                    listed.append((name, sample.key, labels[0] if labels and len(labels) == 1 else None))
    return listed


def _index_of(whole: ShardIndex, wanted: dict[str, set[str]]) -> ShardIndex:
    """Return an index of some samples alone."""
    folder = ShardFolder(whole.folder)
    block_samples = int(whole.block_samples.max())
    entries = []
    for name, num_bytes in zip(whole.shard_names, whole.shard_bytes.tolist(), strict=True):
        if not wanted.get(name):
            continue
        with folder.open(name) as file:
            others = frozenset(sample.key for sample in scan_samples(file, name=name)) - wanted[name]
            file.seek(0)
            entries.append(scan_shard(file, name=name, num_bytes=num_bytes, block_samples=block_samples, skip=others))
    return assemble_index(whole.folder, entries)

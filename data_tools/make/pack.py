"""Pack images into WebDataset shards: shuffled once with a seed, in parallel, the same bytes every time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.folder_lock import LOCK_NAME, lock_folder
from data_tools.index import index_folder
from data_tools.make.class_check import check_names
from data_tools.make.classes import Numbering, number_classes
from data_tools.make.record import MakeRecord
from data_tools.make.reencode import Encoding
from data_tools.make.sources import find_source
from data_tools.make.sources.listing import Listing
from data_tools.make.sources.options import SourceOptions
from data_tools.make.sources.repeats import find_repeats
from data_tools.make.sources.source import Source
from data_tools.make.sources.webdataset_tars import count_without_label, fields_without_label
from data_tools.make.write_shard import ShardTask, is_intact, write_shard
from data_tools.parallel import Workers
from data_tools.text_files import printable
from pipeline.data.shards.class_names import CLASSES_NAME
from pipeline.data.shards.folder import is_remote
from pipeline.data.shards.index import DEFAULT_BLOCK_SAMPLES
from pipeline.data.shards.index_location import INDEX_NAME
from pipeline.errors import DataError
from pipeline.files import remove_drafts
from pipeline.keyed_random import Purpose, derive_key, permutation

SHOWN_CLASSES = 5


@dataclass(frozen=True)
class ShardSize:
    """Says how much goes into a shard. Bytes are those in the source, so a shard is smaller where images are made smaller."""

    amount: int = 10_000
    unit: Literal["samples", "bytes"] = "samples"


@dataclass(frozen=True)
class MakeOptions:
    """Says what is to be made of a source.

    Attributes:
        seed: seed of the shuffle and of the split.
        val_fraction: part of the samples, by a hash of their names, that goes to FOLDER/val and the others to FOLDER/train;
            None puts all into FOLDER.
    """

    shard_size: ShardSize = field(default_factory=ShardSize)
    block_samples: int = DEFAULT_BLOCK_SAMPLES
    order: Literal["shuffled", "as listed"] = "shuffled"
    seed: int = 0
    numbering: Numbering = field(default_factory=Numbering)
    encoding: Encoding = field(default_factory=Encoding)
    val_fraction: float | None = None
    source: SourceOptions = field(default_factory=SourceOptions)


@dataclass(frozen=True)
class MakeReport:
    """Describes what was made, as FOLDER/make.json stores it."""

    kind: str  # kind of source
    num_samples: int
    num_bytes: int  # size of all shards
    num_classes: int | None  # None where the source only numbers them
    samples_of: dict[str, int]  # by split, where there is one
    num_passed_over: int  # files that are no images, samples without one
    max_label: int | None  # where classes have no names
    num_labels: int  # number of different labels that occur
    class_source: Literal["--classes", "--class-map", "the source"]
    num_several_labels: int
    num_without_label: int
    num_reencoded: int
    block_samples: int
    num_unmapped: int  # samples left out because the class map names none of their classes
    unmapped: dict[str, int]  # labels left out, by class
    left_out: list[dict[str, str]]  # samples whose image had to be re-encoded and cannot be decoded
    num_shards: int
    num_written: int = 0  # shards written by this call; an earlier call wrote the others
    # Reports of older versions lack these.
    first_passed_over: list[str] = field(default_factory=list)  # names of the first files that were passed over
    without_images: list[str] = field(default_factory=list)  # folders or tars that hold no image, so are no classes
    json_fields: list[str] = field(default_factory=list)  # fields of the first sample without a label, if it has a .json
    remarks: list[str] = field(default_factory=list)  # remarks on the names of a folder of tars
    num_repeated: int = 0  # samples whose image was named before, with the same labels
    num_contradicting: int = 0  # samples of unnamed images that occur with other labels too
    first_contradicting: str | None = None


@dataclass(frozen=True)
class ShardPlan:
    """Names a folder of shards, and the samples that go there, in order."""

    folder: Path
    samples: NDArray[np.int64]
    shard_ends: NDArray[np.int64]

    def shards(self) -> Iterator[tuple[Path, NDArray[np.int64]]]:
        """Yield each shard's path and samples."""
        for number, samples in enumerate(np.split(self.samples, self.shard_ends[:-1])):
            yield self.folder / f"shard-{number:06d}.tar", samples


class _Tasks(Sequence[ShardTask]):
    """Makes the tasks of shards to write, each on its turn: all of them would take as much memory as the whole listing."""

    def __init__(
        self, shards: list[tuple[Path, NDArray[np.int64]]], *, listing: Listing, record: MakeRecord, encoding: Encoding
    ) -> None:
        self._shards, self._listing, self._record, self._encoding = shards, listing, record, encoding

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: Any) -> Any:
        target, samples = self._shards[number]
        return ShardTask(target, self._record.note_path(target), samples, self._listing.take(samples), self._encoding)


def make_shards(source: str, folder: str, *, options: MakeOptions, workers: Workers) -> MakeReport:
    """Pack `source` into shards in `folder` and index them.

    A shard appears whole or not at all, so the same call after a crash resumes where it stopped.

    Raises:
        DataError: unusable source, or a folder that holds shards of something else.
    """
    root = Path(folder)
    if remote := [path for path in (source, folder) if is_remote(path)]:
        raise DataError(f"{remote[0]} is a URL; `make` reads and writes local files: mount it, or copy the shards afterwards")
    if root.resolve().is_relative_to(Path(source).resolve()):
        raise DataError(f"{folder} is the source itself or lies in it; give the shards a folder of their own")
    numbering = options.numbering
    is_renumbered = numbering.names is not None or numbering.targets is not None
    known = {*(numbering.names or ()), *(numbering.targets or {})}
    found = find_source(source, options=options.source, label_use="read" if is_renumbered else "keep", known=known)
    folders = [root] if options.val_fraction is None else [root / "train", root / "val"]
    with lock_folder(root, advice="name another folder", name=workers.lock_name(LOCK_NAME)):
        for path in folders if workers.share is None else ():  # other shares are writing theirs
            remove_drafts(path)
        return _make(found, source, folders, options, workers=workers)


def _make(found: Source, source: str, folders: list[Path], options: MakeOptions, *, workers: Workers) -> MakeReport:
    """Do the same, while nobody else writes into the folder."""
    root = folders[0] if options.val_fraction is None else folders[0].parent
    record = MakeRecord(root, _describe_request(found, options), folders=folders)
    if record.is_unchanged(found.stamp) and (report := _stored_report(record, folders, options)):
        return report
    try:
        listing = found.list(record.work, workers)
    except OSError as error:
        raise DataError(f"source {source!r} cannot be listed: {error}") from error
    num_listed = len(listing)
    listing, unmapped = number_classes(listing, options.numbering)
    if not len(listing):
        raise DataError(
            f"{source}: none of its samples has a class that the class map names; its classes are {_some(unmapped)}"
        )
    repeats = find_repeats(listing)
    listing = check_names(listing, source=source, folders=folders, options=options, is_new=record.is_new)
    parts = _plan(listing, folders, options)
    record.claim(listing.digest(), times=listing.times, stamp=found.stamp)
    num_written = _write(parts, listing, record, options, workers)
    if not num_written and (report := _stored_report(record, folders, options)):
        return report
    facts = {
        "kind": found.kind,
        "num_unmapped": num_listed - len(listing),
        "unmapped": unmapped,
        "num_written": num_written,
        "class_source": _class_source(options.numbering),
        **_describe_listing(listing),
        "num_repeated": repeats.alike,
        "remarks": list(found.remarks),
        "num_contradicting": repeats.contradicting,
        "first_contradicting": repeats.first,
    }
    return _finish(facts, listing.classes, parts, record, options, workers=workers)


def _some(classes: Collection[str]) -> str:
    more = f" and {len(classes) - SHOWN_CLASSES} more" if len(classes) > SHOWN_CLASSES else ""
    return ", ".join(map(printable, list(classes)[:SHOWN_CLASSES])) + more


def _describe_request(source: Source, options: MakeOptions) -> dict[str, Any]:
    """Return everything the shards depend on that is known before the source is listed."""
    request = {**asdict(options), "kind": source.kind}
    del request["block_samples"]  # the index alone depends on it
    classes = repr((options.numbering.names, sorted((options.numbering.targets or {}).items())))
    request["numbering"] = [hashlib.blake2b(classes.encode(), digest_size=16).hexdigest(), options.numbering.unmapped]
    return request


def _stored_report(record: MakeRecord, folders: list[Path], options: MakeOptions) -> MakeReport | None:
    """Return the report of the call that finished, if everything it made still exists.

    The index is then left alone: it may have been remade since, with skip lists.
    """
    stored = record.report
    if stored is None or stored["block_samples"] != options.block_samples:
        return None
    are_indexed = all((folder / INDEX_NAME).exists() for folder in folders)
    num_shards = sum(len(list(folder.glob("shard-*.tar"))) for folder in folders)
    if not are_indexed or num_shards != stored["num_shards"] or not record.are_shards_there():
        return None
    record.clean()
    return MakeReport(**stored)


def _plan(listing: Listing, folders: list[Path], options: MakeOptions) -> list[ShardPlan]:
    """Decide which sample goes where."""
    order = np.arange(len(listing))
    if options.order == "shuffled":
        order = permutation(derive_key(options.seed, Purpose.MAKE_SHUFFLE), len(listing))
    if options.val_fraction is None:
        members = [order]
    else:
        is_val = choose_val(listing, fraction=options.val_fraction, seed=options.seed)[order]
        members = [order[~is_val], order[is_val]]
    for folder, samples in zip(folders, members, strict=True):
        if not len(samples):
            raise DataError(f"--split {options.val_fraction:g} leaves no sample of {len(order)} for {folder}")
    tar_bytes = listing.tar_bytes()
    return [
        ShardPlan(folder, samples, _cut(tar_bytes[samples], options.shard_size))
        for folder, samples in zip(folders, members, strict=True)
    ]


def choose_val(listing: Listing, *, fraction: float, seed: int) -> NDArray[np.bool_]:
    """Return which samples are for validation. A sample's name decides, so it stays there whatever else is added."""
    limit = int(fraction * 2**64)
    hashes = (xxhash.xxh64_intdigest(listing.name(sample), seed) for sample in range(len(listing)))
    return np.fromiter((value < limit for value in hashes), np.bool_, count=len(listing))


def _cut(tar_bytes: NDArray[np.int64], size: ShardSize) -> NDArray[np.int64]:
    """Return where each shard ends. A shard takes samples while they fit, and at least one."""
    if size.unit == "samples":
        return np.append(np.arange(size.amount, len(tar_bytes), size.amount), len(tar_bytes))
    total = np.cumsum(tar_bytes)
    ends: list[int] = []
    while not ends or ends[-1] < len(total):
        first = ends[-1] if ends else 0
        before = int(total[first - 1]) if first else 0
        ends.append(max(first + 1, int(np.searchsorted(total, before + size.amount, side="right"))))
    return np.array(ends)


def _write(parts: list[ShardPlan], listing: Listing, record: MakeRecord, options: MakeOptions, workers: Workers) -> int:
    """Write the shards that do not exist yet. Return how many were written."""
    for part in parts:
        part.folder.mkdir(exist_ok=True)
    shards = [shard for part in parts for shard in part.shards()]
    damaged = _find_damaged([path for path, _ in shards], record, workers)
    todo = [shard for shard in shards if record.note(shard[0]) is None or shard[0] in damaged]
    tasks = _Tasks(todo, listing=listing, record=record, encoding=options.encoding)
    try:
        done = workers.map(
            write_shard,
            tasks,
            description="write shards",
            unit="shard",
            name_task=lambda task: task.target.name,
            count_images=lambda task, _: len(task.numbers),
            are_kept=True,
        )
        for _ in done:
            pass
    except OSError as error:
        raise DataError(f"shards cannot be written: {error}; the same command resumes where it stopped") from error
    return len(todo)


def _find_damaged(shards: Sequence[Path], record: MakeRecord, workers: Workers) -> set[Path]:
    """Return the shards of an interrupted call that do not hold what their notes say."""
    unchecked = [(path, digest) for path in shards if (digest := record.unchecked_digest(path)) is not None]
    if not unchecked:
        return set()
    checked = workers.map(is_intact, unchecked, description="check shards", unit="shard")
    return {path for (path, _), intact in checked if not intact}


def _class_source(numbering: Numbering) -> Literal["--classes", "--class-map", "the source"]:
    if numbering.names is not None:
        return "--classes"
    return "the source" if numbering.targets is None else "--class-map"


def _describe_listing(listing: Listing) -> dict[str, Any]:
    """Return the report's part on the source."""
    return {
        "num_classes": None if listing.classes is None else len(listing.classes),
        "num_passed_over": listing.passed_over,
        "first_passed_over": list(listing.first_passed_over),
        "without_images": list(listing.empty_classes),
        "num_labels": len(np.unique(listing.labels)),
        "max_label": int(listing.labels.max()) if listing.classes is None and len(listing.labels) else None,
        "num_several_labels": int(np.sum(np.diff(listing.label_ends, prepend=0) > 1)),
        "num_without_label": count_without_label(listing),
        "json_fields": fields_without_label(listing),
    }


def _finish(
    facts: dict[str, Any],
    classes: Sequence[str] | None,
    parts: list[ShardPlan],
    record: MakeRecord,
    options: MakeOptions,
    *,
    workers: Workers,
) -> MakeReport:
    """Index the shards, check that all samples are there, and write the report."""
    notes = {shard: record.note(shard) or {} for part in parts for shard, _ in part.shards()}
    samples_of: dict[str, int] = {}
    total_bytes = 0
    for part in parts:
        expected = sum(notes[shard]["num_samples"] for shard, _ in part.shards())
        if not expected:
            raise DataError(f"{part.folder}: none of its {len(part.samples)} images can be decoded")
        if classes is not None:
            (part.folder / CLASSES_NAME).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
        index = index_folder(str(part.folder), block_samples=options.block_samples, workers=workers).index
        if index.num_samples != expected:
            raise DataError(
                f"{part.folder}: {index.num_samples} samples in the shards, {expected} were written; empty it and start again"
            )
        samples_of[part.folder.name] = expected
        total_bytes += int(index.shard_bytes.sum())
    report = MakeReport(
        num_samples=sum(samples_of.values()),
        num_bytes=total_bytes,
        samples_of=samples_of if len(parts) > 1 else {},
        num_reencoded=sum(note["num_reencoded"] for note in notes.values()),
        block_samples=options.block_samples,
        left_out=[entry for note in notes.values() for entry in note["left_out"]],
        num_shards=sum(note["num_samples"] > 0 for note in notes.values()),
        **facts,
    )
    stored = {entry.name: getattr(report, entry.name) for entry in fields(report) if entry.name != "num_written"}
    record.finish(stored, notes)
    return report

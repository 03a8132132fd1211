"""Pack images into WebDataset shards: shuffled once with a seed, in parallel, the same bytes every time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_tools.folder_lock import LOCK_NAME, lock_folder
from data_tools.index import index_folder
from data_tools.make.class_check import check_names
from data_tools.make.classes import Numbering, number_classes
from data_tools.make.one_pass import write_shards
from data_tools.make.output import Output, find_work
from data_tools.make.plan import MakeOptions, ShardPlan, plan_shards
from data_tools.make.record import MakeRecord
from data_tools.make.sources import find_source
from data_tools.make.sources.listing import Int64s, Listing
from data_tools.make.sources.repeats import find_repeats
from data_tools.make.sources.source import Source
from data_tools.make.sources.webdataset_tars import count_without_label, fields_without_label
from data_tools.make.two_passes import Shards, TwoPasses
from data_tools.make.write_shard import ShardTask, is_intact
from data_tools.parallel import DEFAULT_MEMORY_BYTES, Workers
from data_tools.text_files import printable
from pipeline.data.shards.class_names import CLASSES_NAME
from pipeline.data.shards.folder import is_remote
from pipeline.data.shards.index_location import INDEX_NAME
from pipeline.errors import DataError

SHOWN_CLASSES = 5


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
class Passes:
    """Says how samples get from the source to their shards. Shards are the same in every way.

    Attributes:
        number: 1 reads the samples of a shard wherever they are; 2 reads the source in sequence, to scratch, and then scratch.
            None takes 2 where the source's files are a store's.
        memory_bytes: limit of a worker's memory in two passes.
        scratch: folder for what only the work needs; by default below the output, or of the system.
    """

    number: Literal[1, 2] | None = None
    memory_bytes: int = DEFAULT_MEMORY_BYTES
    scratch: str | None = None


def make_shards(
    source: str, folder: str, *, options: MakeOptions, workers: Workers, passes: Passes | None = None
) -> MakeReport:
    """Pack `source` into shards in `folder` and index them. Both may be URLs.

    A shard appears whole or not at all, so the same call after a crash resumes where it stopped.

    Raises:
        DataError: unusable source, a folder that holds shards of something else, or a store that takes no files.
    """
    passes = passes or Passes()
    root = folder.rstrip("/") if is_remote(folder) else str(Path(folder))
    _refuse_itself(source, folder)
    numbering = options.numbering
    is_renumbered = numbering.names is not None or numbering.targets is not None
    known = {*(numbering.names or ()), *(numbering.targets or {})}
    found = find_source(source, options=options.source, label_use="read" if is_renumbered else "keep", known=known)
    parts = ("",) if options.val_fraction is None else ("train", "val")
    output = Output(root, parts, work=find_work(root, passes.scratch))
    with _lock(output, workers.lock_name(LOCK_NAME)):
        if workers.share is None:  # other shares are writing theirs
            output.remove_drafts()
        return _make(found, source, output, options, passes, workers=workers)


def _refuse_itself(source: str, folder: str) -> None:
    """Refuse to write into the source."""
    if is_remote(source) != is_remote(folder):
        return
    if is_remote(source):
        is_inside = f"{folder.rstrip('/')}/".startswith(f"{source.rstrip('/')}/")
    else:
        is_inside = Path(folder).resolve().is_relative_to(Path(source).resolve())
    if is_inside:
        raise DataError(f"{folder} is the source itself or lies in it; give the shards a folder of their own")


@contextmanager
def _lock(output: Output, name: str) -> Iterator[None]:
    """Hold the output's lock. That of a store is in the work folder, so it keeps off only commands that share this folder."""
    if not output.is_remote:
        with lock_folder(Path(output.root), advice="name another folder", name=name):
            yield
        return
    folder = output.work.with_suffix(".lock")
    try:
        with lock_folder(folder, advice="name another folder with --scratch", name=name):
            if (reason := output.store().why_unwritable()) is not None:
                raise DataError(f"{output.root}: no shards can be written there ({reason})")
            yield
    finally:
        with suppress(OSError):  # another command may hold the lock
            folder.rmdir()


def _make(found: Source, source: str, output: Output, options: MakeOptions, passes: Passes, *, workers: Workers) -> MakeReport:
    """Do the same, while nobody else writes into the folder."""
    record = MakeRecord(output, _describe_request(found, options))
    if record.is_unchanged(found.stamp) and (report := _stored_report(record, output, options)):
        return report
    try:
        listing = found.list(output.work, workers)
    except OSError as error:
        raise DataError(f"source {source!r} cannot be listed: {error}") from error
    num_listed = len(listing)
    listing, unmapped = number_classes(listing, options.numbering)
    if not len(listing):
        raise DataError(
            f"{source}: none of its samples has a class that the class map names; its classes are {_some(unmapped)}"
        )
    repeats = find_repeats(listing)
    listing = check_names(listing, source=source, output=output, options=options, is_new=record.is_new)
    parts = plan_shards(listing, output, options)
    record.claim(listing.digest(), times=listing.times, stamp=found.stamp)
    num_written = _write(parts, listing, record, output, options, passes, workers=workers)
    if not num_written and (report := _stored_report(record, output, options)):
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
    return _finish(facts, listing.classes, parts, record, output, options, workers=workers)


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


def _stored_report(record: MakeRecord, output: Output, options: MakeOptions) -> MakeReport | None:
    """Return the report of the call that finished, if everything it made still exists.

    The index is then left alone: it may have been remade since, with skip lists.
    """
    stored = record.report
    if stored is None or stored["block_samples"] != options.block_samples:
        return None
    sizes = output.tar_sizes()
    are_indexed = all(output.store(part).exists(INDEX_NAME) for part in output.parts)
    num_shards = sum(name.rpartition("/")[2].startswith("shard-") for name in sizes)
    if not are_indexed or num_shards != stored["num_shards"] or not record.are_shards_there(sizes):
        return None
    record.clean()
    return MakeReport(**stored)


def _write(
    parts: list[ShardPlan],
    listing: Listing,
    record: MakeRecord,
    output: Output,
    options: MakeOptions,
    passes: Passes,
    *,
    workers: Workers,
) -> int:
    """Write the shards that do not exist yet. Return how many were written."""
    shards = [shard for part in parts for shard in part.shards()]
    sizes = output.tar_sizes()
    damaged = _find_damaged([name for name, _ in shards], record, output, workers)
    todo = [shard for shard in shards if record.note(shard[0], sizes) is None or shard[0] in damaged]
    if not todo:
        return 0
    record.check_still_ours()
    output.make_folders()

    def make_task(name: str, samples: Int64s, located: Listing) -> ShardTask:
        return ShardTask(output.path(name), record.note_path(name), samples, located, options.encoding)

    try:
        if _count_passes(listing, passes) == 2:
            if workers.share is not None:
                raise DataError("--share has no meaning with two passes: every machine's first pass is needed in the second")
            to_write = Shards([name for name, _ in shards], [s for _, s in shards], frozenset(name for name, _ in todo))
            TwoPasses(
                listing,
                to_write,
                output=output,
                make_task=make_task,
                identity=record.identity,
                memory_bytes=passes.memory_bytes,
            ).run(workers)
        else:
            write_shards(todo, listing, make_task, workers=workers)
    except OSError as error:
        raise DataError(f"shards cannot be written: {error}; the same command resumes where it stopped") from error
    record.check_still_ours()
    return len(todo)


def _count_passes(listing: Listing, passes: Passes) -> int:
    """Return in how many passes samples are read.

    Raises:
        DataError: one, where each sample of a large file would be a request.
    """
    if listing.layout == "files" or not any(map(is_remote, listing.files)):  # each image is a file, or at hand
        return passes.number or 1
    if passes.number == 1:
        raise DataError("--passes 1 reads tars at random places, which on a URL would be a request for each image")
    return 2


def _find_damaged(shards: Sequence[str], record: MakeRecord, output: Output, workers: Workers) -> set[str]:
    """Return the shards of an interrupted call that do not hold what their notes say. Those of a store were checked there."""
    if output.is_remote:
        return set()
    sizes = output.tar_sizes()
    digests = {output.path(name): digest for name in shards if (digest := record.unchecked_digest(name, sizes)) is not None}
    if not digests:
        return set()
    checked = workers.map(is_intact, list(digests.items()), description="check shards", unit="shard")
    broken = {path for (path, _), intact in checked if not intact}
    return {name for name in shards if output.path(name) in broken}


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
    output: Output,
    options: MakeOptions,
    *,
    workers: Workers,
) -> MakeReport:
    """Index the shards, check that all samples are there, and write the report."""
    sizes = output.tar_sizes()
    notes = {shard: record.note(shard, sizes) for part in parts for shard, _ in part.shards()}
    if gone := [shard for shard, note in notes.items() if note is None]:
        raise DataError(f"{output.path(gone[0])} was written, and is gone or another now; the same command writes it again")
    written = {shard: note for shard, note in notes.items() if note is not None}
    samples_of: dict[str, int] = {}
    total_bytes = 0
    for part in parts:
        folder = output.folder(part.part)
        expected = sum(written[shard]["num_samples"] for shard, _ in part.shards())
        if not expected:
            raise DataError(f"{folder}: none of its {len(part.samples)} images can be decoded")
        if classes is not None:
            output.store(part.part).write(CLASSES_NAME, "".join(f"{name}\n" for name in classes).encode())
        index = index_folder(folder, block_samples=options.block_samples, workers=workers).index
        if index.num_samples != expected:
            raise DataError(
                f"{folder}: {index.num_samples} samples in the shards, {expected} were written; empty it and start again"
            )
        samples_of[part.part] = expected
        total_bytes += int(index.shard_bytes.sum())
    report = MakeReport(
        num_samples=sum(samples_of.values()),
        num_bytes=total_bytes,
        samples_of=samples_of if len(parts) > 1 else {},
        num_reencoded=sum(note["num_reencoded"] for note in written.values()),
        block_samples=options.block_samples,
        left_out=[entry for note in written.values() for entry in note["left_out"]],
        num_shards=sum(note["num_samples"] > 0 for note in written.values()),
        **facts,
    )
    stored = {entry.name: getattr(report, entry.name) for entry in fields(report) if entry.name != "num_written"}
    record.finish(stored, written)
    return report

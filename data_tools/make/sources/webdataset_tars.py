"""List existing WebDataset tars: all members of every sample are kept, addressed by byte range."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from data_tools.make.sources.files import image_extension
from data_tools.make.sources.kept import keep_listings
from data_tools.make.sources.labels import fields_of, read_member, read_texts, tell_apart
from data_tools.make.sources.listing import Listing, Member
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.sources.parts import list_parts
from data_tools.make.sources.stored import changed_at, file_name, file_stem, open_stored, read_small, read_stored, split_path
from data_tools.parallel import Workers
from data_tools.text_files import decode_text, printable, same_name
from pipeline.data.shards.class_names import CLASSES_NAME, split_lines
from pipeline.data.shards.folder import is_remote
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, MAX_LABEL_BYTES, cut_at_last_dot
from pipeline.data.shards.tar import refuse_sparse, scan_samples
from pipeline.errors import DataError

MAX_KEPT_BYTES = 64 << 20  # limit of a tar's labels in memory
LabelUse = Literal["keep", "read"]


@dataclass(frozen=True)
class LabelRule:
    """Says where a sample's label is.

    Attributes:
        use: `read` refuses samples without a label: they cannot be renumbered; `keep` counts them.
        field: field of the .json members; None for .cls, or else `label` or `labels` of the .json.
    """

    use: LabelUse
    field: str | None = None


def list_webdataset(paths: list[str], *, rule: LabelRule, workers: Workers, scratch: Path) -> Listing:
    """Return the samples that have an image. Members of a sample that lie apart in their tar are brought together.

    A sample's label is its .cls, or else its .json. Whole numbers are ids; where any label is a name, they are numbered
    like names. The .cls is written again, and outranks the .json, which keeps its other fields.

    Args:
        scratch: where the lists of a store's tars are kept until the work is done.

    Raises:
        DataError: damaged tars, no images, members that cannot be distinguished, or labels that are none.
    """
    list_tar = keep_listings(partial(_list_tar, rule), scratch, paths=paths)
    listing = list_parts(list_tar, paths, workers=workers, description="list tars", unit="tar")
    if not len(listing):
        ends = ", ".join(printable(name) for name in listing.first_passed_over[:3])
        raise DataError(
            f"{paths[0]}: no images in its {listing.passed_over} samples (looked for KEY.{', KEY.'.join(IMAGE_EXTENSIONS)}; it "
            f"holds {ends} ...)"
        )
    return _name_classes(listing, split_path(paths[0])[0])


def _name_classes(listing: Listing, folder: str) -> Listing:
    """Return the listing with the class names that lie next to the tars, by id."""
    stored = read_small(folder, CLASSES_NAME)
    listing = read_texts(listing, source=folder)
    if stored is None:
        return listing
    names = tell_apart(split_lines(decode_text(stored, name=f"{folder}/{CLASSES_NAME}", encoding=None)))
    if listing.classes is None:
        return replace(listing, classes=names)
    index_of = {same_name(name): index for index, name in enumerate(names)}
    if strangers := [name for name in listing.classes if same_name(name) not in index_of]:
        raise DataError(f"label '{printable(strangers[0])}' is not among the {len(names)} names of {folder}/{CLASSES_NAME}")
    return listing.relabel(np.array([index_of[same_name(name)] for name in listing.classes]), names)


def fields_without_label(listing: Listing) -> list[str]:
    """Return the fields of the .json of the first sample without a label: one of them may be the label."""
    for sample in np.flatnonzero(np.diff(listing.label_ends, prepend=0) == 0)[:1].tolist():
        for member in listing.members(sample):
            if member.extension == "json":
                return fields_of(read_stored(listing.files[member.file], member.start, member.length))
    return []


def _list_tar(rule: LabelRule, path: str) -> Listing:
    runs = ListingBuilder()
    with open_stored(path) as file:
        labels = LabelFiles(file, keeps=is_remote(path))
        for sample in scan_samples(file, name=path):
            refuse_sparse(sample, path)
            members = [Member(member.extension, 0, member.start, member.length) for member in sample.members]
            for key, own in _separate(sample.key, members):
                runs.add(key, labels=(), members=own)
                labels.pass_by(own)
        return _finish(runs.build(layout="ranges", files=(path,)), rule, labels)


class LabelFiles:
    """Reads labels' members of a tar. In a store, most are read while the scan passes them: later costs another request.

    Args:
        keeps: whether to read them on the way.
    """

    def __init__(self, file: BinaryIO, *, keeps: bool) -> None:
        self._file, self._keeps = file, keeps
        self._kept: dict[int, bytes] = {}
        self._num_bytes = 0

    def pass_by(self, members: Sequence[Member]) -> None:
        """Keep the label of a sample, while there is room."""
        by_extension = {member.extension: member for member in members}
        found = next((by_extension[extension] for extension in LABEL_EXTENSIONS if extension in by_extension), None)
        if self._keeps and found is not None and self._num_bytes + found.length <= MAX_KEPT_BYTES:
            self._kept[found.start] = self.read(found)
            self._num_bytes += found.length

    def read(self, member: Member) -> bytes:
        """Return a member's bytes."""
        if member.start in self._kept:
            return self._kept[member.start]
        self._file.seek(member.start)
        return self._file.read(member.length)


def _separate(key: str, members: list[Member]) -> list[tuple[str, list[Member]]]:
    """Return the samples whose keys hold dots (22.05.jpg, 22.05.cls, 22.06.jpg) and that are one if cut at the first dot.

    They are distinguished from one sample of several files (input.jpg, output.cls) by an image in each.
    """
    if any(member.extension in IMAGE_EXTENSIONS for member in members):
        return [(key, members)]
    groups: dict[str, list[Member]] = {}
    for member in members:
        head, last = cut_at_last_dot(member.extension)
        groups.setdefault(head, []).append(member._replace(extension=last))
    have_images = all(any(member.extension in IMAGE_EXTENSIONS for member in group) for group in groups.values())
    if "" in groups or not have_images:
        return [(key, members)]
    return [(f"{key}.{head}", group) for head, group in groups.items()]


def _finish(runs: Listing, rule: LabelRule, labels_of: LabelFiles) -> Listing:
    """Join runs of consecutive members of one key to samples."""
    path = runs.files[0]
    keys = [runs.name(run) for run in range(len(runs))]
    same = _runs_to_join(runs, keys)
    samples = ListingBuilder()
    absorbed = {run for others in same.values() for run in others}
    samples.note_time(file_name(path), changed_at(path))
    for run, key in enumerate(keys):
        if run in absorbed:
            continue
        members = [member for part in (run, *same.get(run, ())) for member in runs.members(part)]
        name = key.decode("utf-8", "surrogateescape")
        named = _name_images(members)
        for extensions in ([member.extension for member in members], [member.extension for member in named]):
            if repeated := [e for e, count in Counter(extensions).items() if count > 1]:
                raise DataError(f"{path}: sample {name!r} has two members .{repeated[0]}; give the samples keys of their own")
        members = named
        if not any(member.extension in IMAGE_EXTENSIONS for member in members):
            samples.pass_over(f"{file_name(path)}/{name}.{members[0].extension}")
            continue
        labels = _read_labels(labels_of, members, rule, path=path, key=name)
        # Keys often begin again in every tar, so the tar's name is part of the sample's.
        kept = [member for member in members if member.extension != "cls" or not labels]
        samples.add(f"{file_stem(path)}/{name}", labels=labels, members=kept)
    return samples.build(layout="ranges", files=(path,))


def _name_images(members: list[Member]) -> list[Member]:
    """Store an image with an ending no reader looks for (.jfif, .pgm) under its format's ending, if it is the only one."""
    if any(member.extension in IMAGE_EXTENSIONS for member in members):
        return members
    return [member._replace(extension=image_extension(f"x.{member.extension}") or member.extension) for member in members]


def _read_labels(labels_of: LabelFiles, members: list[Member], rule: LabelRule, *, path: str, key: str) -> list[str]:
    """Return the labels of a sample, as texts."""
    by_extension = {member.extension: member for member in members}
    extensions = LABEL_EXTENSIONS if rule.field is None else ("json",)
    source = f"{path}: sample {key!r}"
    for extension in extensions:
        if (member := by_extension.get(extension)) is None:
            continue
        if extension == "cls" and member.length > MAX_LABEL_BYTES:
            raise DataError(f"{source}: its .cls has {member.length} bytes; a label is short")
        data = labels_of.read(member)
        try:
            labels = read_member(data, extension, field=rule.field)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{source} has a .{extension} that is no label: {error}") from error
        if labels:
            return labels
    if rule.use == "read" or rule.field is not None:
        raise DataError(f"{source} has no label ({', '.join(extensions)}), so its class cannot be numbered")
    return []


def _runs_to_join(runs: Listing, keys: list[bytes]) -> dict[int, list[int]]:
    """Map the first run of a sample whose members lie apart to its other runs.

    Runs of one key that each have an image are samples of their own: tars that were joined repeat their keys.
    """
    by_key: dict[bytes, list[int]] = {}
    if len(set(keys)) < len(keys):
        for run, key in enumerate(keys):
            by_key.setdefault(key, []).append(run)
    joined: dict[int, list[int]] = {}
    for key, same in by_key.items():
        kinds = [{member.extension for member in runs.members(run)} for run in same]
        with_image = sum(not kind.isdisjoint(IMAGE_EXTENSIONS) for kind in kinds)
        if len(same) == 1 or with_image == len(same):
            continue
        if sum(map(len, kinds)) > len(set().union(*kinds)):
            raise DataError(
                f"{runs.files[0]}: the members of sample {key.decode(errors='replace')!r} lie apart, and some occur more than "
                f"once, so it is unknown which belong together; give the samples keys of their own"
            )
        joined[same[0]] = same[1:]
    return joined


def count_without_label(listing: Listing) -> int:
    """Count samples without a label."""
    return int(np.sum(np.diff(listing.label_ends, prepend=0) == 0))

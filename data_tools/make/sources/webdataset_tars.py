"""List existing WebDataset tars: all members of every sample are kept, addressed by byte range."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from data_tools.make.sources.files import image_extension
from data_tools.make.sources.labels import fields_of, read_member, read_texts, tell_apart
from data_tools.make.sources.listing import Listing, Member
from data_tools.make.sources.listing_builder import ListingBuilder
from data_tools.make.sources.parts import list_parts
from data_tools.parallel import Workers
from data_tools.text_files import printable, read_text, same_name
from pipeline.data.shards.class_names import CLASSES_NAME, split_lines
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, MAX_LABEL_BYTES, cut_at_last_dot
from pipeline.data.shards.tar import refuse_sparse, scan_samples
from pipeline.errors import DataError

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


def list_webdataset(paths: list[Path], *, rule: LabelRule, workers: Workers) -> Listing:
    """Return the samples that have an image. Members of a sample that lie apart in their tar are brought together.

    A sample's label is its .cls, or else its .json. Whole numbers are ids; where any label is a name, they are numbered
    like names. The .cls is written again, and outranks the .json, which keeps its other fields.

    Raises:
        DataError: damaged tars, no images, members that cannot be distinguished, or labels that are none.
    """
    listing = list_parts(
        partial(_list_tar, rule), [str(path) for path in paths], workers=workers, description="list tars", unit="tar"
    )
    if not len(listing):
        ends = ", ".join(printable(name) for name in listing.first_passed_over[:3])
        raise DataError(
            f"{paths[0]}: no images in its {listing.passed_over} samples (looked for KEY.{', KEY.'.join(IMAGE_EXTENSIONS)}; it "
            f"holds {ends} ...)"
        )
    return _name_classes(listing, paths[0].parent)


def _name_classes(listing: Listing, folder: Path) -> Listing:
    """Return the listing with the class names that lie next to the tars, by id."""
    if not (folder / CLASSES_NAME).exists():
        return read_texts(listing, source=str(folder))
    listing = read_texts(listing, source=str(folder))
    names = tell_apart(split_lines(read_text(str(folder / CLASSES_NAME), encoding=None)))
    if listing.classes is None:
        return replace(listing, classes=names)
    index_of = {same_name(name): index for index, name in enumerate(names)}
    if strangers := [name for name in listing.classes if same_name(name) not in index_of]:
        raise DataError(f"label '{printable(strangers[0])}' is not among the {len(names)} names of {folder / CLASSES_NAME}")
    return listing.relabel(np.array([index_of[same_name(name)] for name in listing.classes]), names)


def fields_without_label(listing: Listing) -> list[str]:
    """Return the fields of the .json of the first sample without a label: one of them may be the label."""
    for sample in np.flatnonzero(np.diff(listing.label_ends, prepend=0) == 0)[:1].tolist():
        for member in listing.members(sample):
            if member.extension == "json":
                with open(listing.files[member.file], "rb") as file:
                    return fields_of(os.pread(file.fileno(), member.length, member.start))
    return []


def _list_tar(rule: LabelRule, path: str) -> Listing:
    runs = ListingBuilder()
    with open(path, "rb") as file:
        for sample in scan_samples(file, name=path):
            refuse_sparse(sample, path)
            members = [Member(member.extension, 0, member.start, member.length) for member in sample.members]
            for key, own in _separate(sample.key, members):
                runs.add(key, labels=(), members=own)
    return _finish(runs.build(layout="ranges", files=(path,)), rule)


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


def _finish(runs: Listing, rule: LabelRule) -> Listing:
    """Join runs of consecutive members of one key to samples."""
    path = runs.files[0]
    keys = [runs.name(run) for run in range(len(runs))]
    same = _runs_to_join(runs, keys)
    samples = ListingBuilder()
    absorbed = {run for others in same.values() for run in others}
    with open(path, "rb") as file:
        samples.note_time(Path(path).name, os.fstat(file.fileno()).st_mtime_ns)
        for run, key in enumerate(keys):
            if run in absorbed:
                continue
            members = [member for part in (run, *same.get(run, ())) for member in runs.members(part)]
            name = key.decode("utf-8", "surrogateescape")
            named = _name_images(members)
            for extensions in ([member.extension for member in members], [member.extension for member in named]):
                if repeated := [e for e, count in Counter(extensions).items() if count > 1]:
                    raise DataError(
                        f"{path}: sample {name!r} has two members .{repeated[0]}; give the samples keys of their own"
                    )
            members = named
            if not any(member.extension in IMAGE_EXTENSIONS for member in members):
                samples.pass_over(f"{Path(path).name}/{name}.{members[0].extension}")
                continue
            labels = _read_labels(file, members, rule, path=path, key=name)
            # Keys often begin again in every tar, so the tar's name is part of the sample's.
            kept = [member for member in members if member.extension != "cls" or not labels]
            samples.add(f"{Path(path).stem}/{name}", labels=labels, members=kept)
    return samples.build(layout="ranges", files=(path,))


def _name_images(members: list[Member]) -> list[Member]:
    """Store an image with an ending no reader looks for (.jfif, .pgm) under its format's ending, if it is the only one."""
    if any(member.extension in IMAGE_EXTENSIONS for member in members):
        return members
    return [member._replace(extension=image_extension(f"x.{member.extension}") or member.extension) for member in members]


def _read_labels(file: BinaryIO, members: list[Member], rule: LabelRule, *, path: str, key: str) -> list[str]:
    """Return the labels of a sample, as texts."""
    by_extension = {member.extension: member for member in members}
    extensions = LABEL_EXTENSIONS if rule.field is None else ("json",)
    source = f"{path}: sample {key!r}"
    for extension in extensions:
        if (member := by_extension.get(extension)) is None:
            continue
        if extension == "cls" and member.length > MAX_LABEL_BYTES:
            raise DataError(f"{source}: its .cls has {member.length} bytes; a label is short")
        file.seek(member.start)
        try:
            labels = read_member(file.read(member.length), extension, field=rule.field)
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

"""WebDataset tars that exist already: all members of every sample are kept, addressed by byte range."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data_tools.sources.listing import MAX_LABEL, Listing, ListingBuilder, Member
from data_tools.sources.parts import list_parts
from pipeline.data.index import CLASSES_NAME
from pipeline.data.sample import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, parse_label
from pipeline.data.tar import refuse_sparse, scan_samples
from pipeline.errors import DataError

LabelUse = Literal["keep", "read"]


def list_webdataset(paths: list[Path], *, label_use: LabelUse, num_workers: int) -> Listing:
    """The samples that have an image. Members of a sample that lie apart in their tar are brought together.

    Args:
        label_use: `keep` leaves the labels to their members; `read` takes them out of `.cls`, or else `.json`, so that
            they can be changed. A `.cls` is then written anew and outranks the `.json`, which stays as it is unless
            it holds several labels.

    Raises:
        DataError: damaged tars, no images, members that cannot be told apart, or (to be read) labels that are none.
    """
    listing = list_parts(
        partial(_list_tar, label_use), [str(path) for path in paths], num_workers=num_workers, description="list tars", unit="tar"
    )  # fmt: skip
    if not len(listing):
        raise DataError(
            f"{paths[0]}: no images in its {listing.passed_over} samples (looked for {', '.join(IMAGE_EXTENSIONS)})"
        )
    names = paths[0].parent / CLASSES_NAME
    return replace(listing, classes=tuple(names.read_text().splitlines())) if names.exists() else listing


def _list_tar(label_use: LabelUse, path: str) -> Listing:
    runs = ListingBuilder()
    with open(path, "rb") as file:
        for sample in scan_samples(file, name=path):
            refuse_sparse(sample, path)
            members = [Member(member.extension, 0, member.start, member.length) for member in sample.members]
            runs.add(sample.key, labels=(), members=members)
    return _finish(runs.build(layout="ranges", files=(path,)), label_use)


def _finish(runs: Listing, label_use: LabelUse) -> Listing:
    """Samples out of runs of consecutive members of one key."""
    path = runs.files[0]
    keys = [runs.name(run) for run in range(len(runs))]
    same = _runs_to_join(runs, keys)
    samples = ListingBuilder()
    passed_over = 0
    absorbed = {run for others in same.values() for run in others}
    with open(path, "rb") as file:
        for run, key in enumerate(keys):
            if run in absorbed:
                continue
            members = [member for part in (run, *same.get(run, ())) for member in runs.members(part)]
            name = key.decode("utf-8", "surrogateescape")
            if repeated := [e for e, count in Counter(member.extension for member in members).items() if count > 1]:
                raise DataError(f"{path}: sample {name!r} has two members .{repeated[0]}; give the samples keys of their own")
            if not any(member.extension in IMAGE_EXTENSIONS for member in members):
                passed_over += 1
                continue
            labels: list[int] = []
            if label_use == "read":
                member = _label_member(members, path=path, key=name)
                file.seek(member.start)
                labels = _parse_labels(file.read(member.length), path=path, key=name)
                members = [m for m in members if m.extension != "cls" and (m.extension != "json" or len(labels) == 1)]
            # Keys often begin anew in every tar, so the tar's name is part of the sample's.
            samples.add(f"{Path(path).stem}/{name}", labels=labels, members=members)
    return samples.build(layout="ranges", files=(path,), passed_over=passed_over)


def _runs_to_join(runs: Listing, keys: list[bytes]) -> dict[int, list[int]]:
    """First run of a sample whose members lie apart, to its other runs.

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
                f"once, so which belong together cannot be told; give the samples keys of their own"
            )
        joined[same[0]] = same[1:]
    return joined


def _label_member(members: list[Member], *, path: str, key: str) -> Member:
    by_extension = {member.extension: member for member in members}
    for extension in LABEL_EXTENSIONS:
        if extension in by_extension:
            return by_extension[extension]
    raise DataError(f"{path}: sample {key!r} has no label ({', '.join(LABEL_EXTENSIONS)}), so its class cannot be renumbered")


def _parse_labels(text: bytes, *, path: str, key: str) -> list[int]:
    """One label as the trainer reads it, or several: {"labels": [...]}."""
    try:
        value = json.loads(text)
        labels = [int(label) for label in value["labels"]]
    except (ValueError, KeyError, TypeError):
        labels = [parse_label(text, shard=path, key=key)]
    if strange := [label for label in labels if not 0 <= label <= MAX_LABEL]:
        raise DataError(f"{path}: label {strange[0]} of sample {key!r} is no class number; they begin at 0")
    return labels


def count_without_label(listing: Listing) -> int:
    """Samples without a label of their own or in a member."""
    kinds = np.array([extension in LABEL_EXTENSIONS for extension in listing.extensions])
    labels = np.concatenate([[0], np.cumsum(kinds[listing.member_extension])])[listing.member_ends]
    return int(np.sum((np.diff(labels, prepend=0) == 0) & (np.diff(listing.label_ends, prepend=0) == 0)))

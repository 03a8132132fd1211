"""Define what `verify` finds: the kinds of defect, what each means for a training, and how findings are shown."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.data.shards.folder import describe_read_only
from pipeline.data.shards.skips import Skip

Effect = Literal["stops", "replaced", "kept"]


class DefectKind(NamedTuple):
    """Describes one kind of defect of a sample.

    Attributes:
        effect: whether it stops a training, the sample is substituted and counted, or it is trained on as it is.
    """

    effect: Effect
    title: str


KINDS = {
    "no_image": DefectKind("stops", "no image"),
    "no_label": DefectKind("stops", "no label"),
    "bad_label": DefectKind("stops", "label is not a number"),
    "label_outside": DefectKind("stops", "label outside classes.txt"),
    "repeated_member": DefectKind("stops", "one key for several samples"),
    "linked_member": DefectKind("stops", "link to an earlier member"),
    "empty": DefectKind("replaced", "image of no bytes"),
    "not_an_image": DefectKind("replaced", "not an image"),
    "unknown_format": DefectKind("replaced", "unknown format"),
    "truncated": DefectKind("replaced", "image truncated"),
    "damaged": DefectKind("replaced", "image damaged"),
    "bomb": DefectKind("replaced", "decompression bomb"),
    "oversized": DefectKind("replaced", "image of more than a GiB"),
    "one_colour": DefectKind("kept", "nearly every pixel the same"),
    "irregular_jpeg": DefectKind("kept", "JPEG that libjpeg-turbo warns of"),
    "no_end_marker": DefectKind("kept", "JPEG without end marker"),
    "trailing_bytes": DefectKind("kept", "bytes behind the JPEG's end"),
    "sixteen_bit": DefectKind("kept", "more than 8 bits a channel"),
    "cmyk": DefectKind("kept", "CMYK"),
    "alpha": DefectKind("kept", "transparency"),
    "palette": DefectKind("kept", "palette"),
    "multi_frame": DefectKind("kept", "several frames"),
    "several_images": DefectKind("kept", "several images in a sample"),
    "exif_orientation": DefectKind("kept", "EXIF orientation other than 1"),
    "icc_profile": DefectKind("kept", "ICC colour profile"),
    "other_format": DefectKind("kept", "format differs from the name"),
    "extreme_aspect_ratio": DefectKind("kept", "aspect ratio beyond 5:1"),
    "tiny": DefectKind("kept", "shorter side under 32 px"),
    "huge": DefectKind("kept", "so large that Pillow warns"),
    "odd_metadata": DefectKind("kept", "metadata that Pillow complains of"),
}
REASON_CHARACTERS = 80  # limit in the table; the report has them all
EFFECTS: dict[Effect, str] = {
    "stops": "stops a training",
    "replaced": "cannot be decoded: training puts a neighbour in its place, and counts it",
    "kept": "decodes, is trained on as it is: only counted",
}


@dataclass(frozen=True)
class Verification:
    """Holds what was found in a folder of shards.

    Attributes:
        num_readable: samples whose image decodes.
        num_empty_shards: tars without any member; they are no fault.
        num_passed_over: samples of the skip lists given, which are not checked and not among `num_samples`.
        num_known_shards: shards of which everything was known from before.
        counts: samples by kind of defect.
        examples: the first few by kind.
        broken_shards: what is wrong with them, by name.
        skips: samples to leave out besides those of the skip lists given.
        images_per_s: speed of this call; None if everything was known before.
    """

    folder: str
    num_shards: int
    num_empty_shards: int
    num_samples: int
    num_readable: int
    num_passed_over: int
    num_known_shards: int
    counts: dict[str, int]
    examples: dict[str, list[Skip]]
    broken_shards: dict[str, str]
    skips: list[Skip]
    images_per_s: float | None

    @property
    def stops_training(self) -> bool:
        """Return whether a training on the shards as they are would stop."""
        return bool(self.broken_shards) or any(KINDS[kind].effect == "stops" for kind in self.counts)


def describe(found: Verification, *, skip_list: Path) -> dict[str, Any]:
    """Return the report as it is written."""
    return {
        "folder": found.folder,
        "shards": found.num_shards,
        "shards_without_members": found.num_empty_shards,
        "samples": found.num_samples,
        "readable_images": found.num_readable,
        "samples_of_given_skip_lists": found.num_passed_over,
        "stops_training": found.stops_training,
        "counts": found.counts,
        "broken_shards": found.broken_shards,
        "skip_list": str(skip_list),
        "skipped": len(found.skips),
        "examples": {kind: [example._asdict() for example in examples] for kind, examples in found.examples.items()},
    }


def tabulate(found: Verification) -> str:
    """Return counts by kind, the gravest first, each with an example."""
    lines: list[str] = []
    for effect, meaning in EFFECTS.items():
        kinds = [kind for kind in found.counts if KINDS[kind].effect == effect]
        if kinds:
            lines += ["", meaning]
        for kind in kinds:
            example, count = found.examples[kind][0], found.counts[kind]
            share = f"{100 * count / found.num_samples:.3g} %"
            reason = example.reason if len(example.reason) <= REASON_CHARACTERS else f"{example.reason[:REASON_CHARACTERS]}..."
            example_text = printable(f"{example.shard} {example.key}: {reason}")
            lines.append(f"  {KINDS[kind].title:34} {count:>9}  {share:>7}  {example_text}")
    if found.broken_shards:
        lines += ["", "broken shards: `index` refuses them; unpack compressed ones, copy damaged ones again"]
        lines += [f"  {printable(reason.partition('; ')[0])}" for reason in found.broken_shards.values()]
    return "\n".join(lines)


def summarise(found: Verification) -> str:
    """Return one line that says how much was checked, and how fast."""
    known = " (nothing to do: all known from before)" if found.num_known_shards == found.num_shards else ""
    speed = f", {found.images_per_s:.0f} images/s" if found.images_per_s else known
    empty = f" ({found.num_empty_shards} of them without any member)" if found.num_empty_shards else ""
    passed_over = f", {found.num_passed_over} passed over as the skip lists say" if found.num_passed_over else ""
    return (
        f"{found.folder}: {found.num_samples} samples in {found.num_shards} "
        f"{'shard' if found.num_shards == 1 else 'shards'}{empty}{passed_over}; {found.num_readable} images can be "
        f"decoded{speed}"
    )


def next_step(found: Verification, *, skip_list: Path) -> str:
    """Return what to do now: the exact command, where there is one."""
    if found.num_samples and len(found.skips) == found.num_samples:
        return "no sample would be left: there is nothing to index until this is repaired"
    first = "repair or remove the broken shards, then " if found.broken_shards else ""
    skips = f" --skip {shlex.quote(str(skip_list))}" if found.skips or found.num_passed_over else ""
    out = "" if describe_read_only(found.folder) is None else " --out PLACE"
    return f"{first}python -m data_tools index {shlex.quote(found.folder)}{skips}{out}"


def printable(text: str) -> str:
    """Make a name safe for a terminal: names in tars may hold anything."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)

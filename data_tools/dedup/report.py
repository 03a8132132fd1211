"""Write down what `dedup` found: the skip list, a report, a table, and pictures of pairs for a person to judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from data_tools.dedup.catalogue import Catalogue, StoredImage
from data_tools.dedup.find import Copy, DedupResult
from data_tools.dedup.perceptual_hash import HASH_BYTES
from data_tools.parallel import write_json
from data_tools.shards import list_shards
from pipeline.data.images.decode import decode_image
from pipeline.data.shards.folder import ShardFolder, describe_read_only, is_remote
from pipeline.data.shards.skips import Skip, write_skips
from pipeline.errors import DataError

SKIP_NAME = "skip.tsv"  # of `verify`
MAX_UNDECODABLE_LISTED = 100  # `verify` lists them all
MAX_SHEET_PAIRS = 80
SHEET_COLUMNS = 4
TILE_SIDE = 160
CAPTION_HEIGHT = 30


@dataclass(frozen=True)
class DedupOutputs:
    """Names the files that findings are written to."""

    skip_list: Path
    report: Path
    against_sheet: Path
    within_sheet: Path


def default_outputs(corpus: str, *, out: str | None) -> DedupOutputs:
    """Return paths next to the shards, or for a URL in the current folder, unless an option says otherwise."""
    shards = list_shards(corpus)
    folder, prefix = Path(out) if out else shards.output_folder, shards.output_prefix
    names = ("copies.tsv", "dedup.json", "dedup-against.jpg", "dedup-within.jpg")
    return DedupOutputs(*(folder / f"{prefix}{name}" for name in names))


def write_findings(found: DedupResult, outputs: DedupOutputs) -> None:
    """Write all files.

    Raises:
        DataError: they cannot be written.
    """
    try:
        outputs.skip_list.parent.mkdir(parents=True, exist_ok=True)
        write_skips(
            outputs.skip_list, [Skip(copy.image.shard, copy.image.key, _reason(found, copy)) for copy in found.left_out]
        )
        write_json(outputs.report, describe(found))
        for sheet_path, pairs in ((outputs.against_sheet, found.against), (outputs.within_sheet, found.within or [])):
            if pairs:
                draw_sheet(pairs).save(sheet_path, quality=88)
            else:
                sheet_path.unlink(missing_ok=True)  # left by an earlier search
    except OSError as error:
        raise DataError(f"findings cannot be written to {outputs.report.parent} ({error}); name a folder with --out") from error


def _reason(found: DedupResult, copy: Copy) -> str:
    is_inside = copy.of.folder == found.corpus.images.folder
    source = "" if is_inside else f"{copy.of.folder}:"
    how = "" if copy.how == "whole" else f" ({copy.how})"
    return f"copy of {source}{copy.of.shard}/{copy.of.key} distance {copy.distance}{how}"


def describe(found: DedupResult) -> dict[str, Any]:
    """Return the report."""
    return {
        "distance": found.distance,
        "hash_bits": 8 * HASH_BYTES,
        "corpus": _describe_set(found.corpus),
        "left_out": {
            "images": len(found.left_out),
            "copies_of_test_images": len(found.left_out_for_test),
            "copies_inside": None if found.within is None else len(found.within),
        },
        "test_sets": [
            {
                **_describe_set(copies.catalogue),
                "test_images_with_a_copy": copies.num_test_images,
                "copies_of_them": copies.num_corpus_images,
            }
            for copies in found.test_sets
        ],
        "pairs_by_distance": {"against": _by_distance(found.against), "within": _by_distance(found.within or [])},
        "pairs_by_kind": {name: dict(Counter(copy.how for copy in pairs)) for name, pairs in _both(found)},
        "pairs": {name: [_describe_pair(copy) for copy in pairs] for name, pairs in _both(found)},
    }


def _both(found: DedupResult) -> list[tuple[str, list[Copy]]]:
    return [("against", found.against), ("within", found.within or [])]


def _describe_set(catalogue: Catalogue) -> dict[str, Any]:
    return {
        "path": catalogue.images.path,
        "shards": len(catalogue.images.shards),
        "images_hashed": len(catalogue),
        "featureless": int(catalogue.is_featureless.sum()),
        "samples_without_image": catalogue.num_without_image,
        "undecodable": len(catalogue.undecodable),
        "undecodable_first": [
            " ".join((f"{shard}/{key}:", reason)) for shard, key, reason in catalogue.undecodable[:MAX_UNDECODABLE_LISTED]
        ],
    }


def _by_distance(pairs: Sequence[Copy]) -> dict[int, int]:
    return dict(sorted(Counter(copy.distance for copy in pairs).items()))


def _describe_pair(copy: Copy) -> dict[str, Any]:
    return {
        "image": f"{copy.image.shard}/{copy.image.key}",
        "of": f"{copy.of.folder}:{copy.of.shard}/{copy.of.key}",
        "distance": copy.distance,
        "how": copy.how,
    }


def tabulate(found: DedupResult) -> str:
    """Return the findings as a table for the terminal."""
    rows: list[tuple[str, ...]] = [("", "images", "no image", "undecodable", "featureless", "in the corpus", "as copies")]
    rows.append((found.corpus.images.path, *_counts(found.corpus), "", ""))
    rows += [
        (
            copies.catalogue.images.path,
            *_counts(copies.catalogue),
            f"{copies.num_test_images:,}",
            f"{copies.num_corpus_images:,}",
        )
        for copies in found.test_sets
    ]
    first, *others = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))]).rstrip()
        for row in rows
    ]
    if any(catalogue.is_featureless.any() for catalogue in (found.corpus, *(copies.catalogue for copies in found.test_sets))):
        lines.append("featureless: flat, striped or the like, with no details to tell them apart by: kept, and not looked for")
    total = len(found.corpus)
    parts = [f"{len(found.left_out_for_test):,} copies of test images"] if found.test_sets else []
    parts += [] if found.within is None else [f"{len(found.within):,} copies of another image of the corpus"]
    share = f"{len(found.left_out):,} of {total:,} images ({len(found.left_out) / max(1, total):.2%})"
    return "\n".join([*lines, "", f"to leave out: {share}: {', '.join(parts)}"])


def next_step(found: DedupResult, outputs: DedupOutputs) -> str:
    """Return the written files, and the command that uses them."""
    lines = [f"report:    {outputs.report}", f"skip list: {outputs.skip_list}"]
    lines += [
        f"to judge:  {path}"
        for path, pairs in ((outputs.against_sheet, found.against), (outputs.within_sheet, found.within))
        if pairs
    ]
    if not found.left_out:
        return "\n".join([*lines, "next:      nothing; there is nothing to leave out"])
    folder = found.corpus.images.folder
    verified = Path(folder) / SKIP_NAME  # an index that leaves out copies must go on leaving out what cannot be used
    skip_lists = [*([verified] if not is_remote(folder) and verified.exists() else []), outputs.skip_list]
    options = " ".join(f"--skip {path}" for path in skip_lists) + ("" if describe_read_only(folder) is None else " --out PLACE")
    return "\n".join([*lines, f"next:      python -m data_tools index {folder} {options}"])


def _counts(catalogue: Catalogue) -> tuple[str, ...]:
    num_featureless = int(catalogue.is_featureless.sum())
    num_undecodable = len(catalogue.undecodable)
    counts = (len(catalogue) + num_undecodable, catalogue.num_without_image, num_undecodable, num_featureless)
    return tuple(f"{count:,}" for count in counts)


def draw_sheet(pairs: Sequence[Copy]) -> Image.Image:
    """Return an image of pairs side by side with their distances, the doubtful ones (closest to the threshold) first."""
    shown = sorted(pairs, key=lambda copy: (-copy.distance, copy.image, copy.of))[:MAX_SHEET_PAIRS]
    width, height = 2 * TILE_SIDE + 10, TILE_SIDE + CAPTION_HEIGHT
    num_rows = -(-len(shown) // SHEET_COLUMNS)
    sheet = Image.new("RGB", (min(SHEET_COLUMNS, len(shown)) * width, num_rows * height + 16), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((2, 2), f"{len(shown)} of {len(pairs)} pairs, the largest distance first; left: to leave out", fill="black")
    for number, copy in enumerate(shown):
        left, top = number % SHEET_COLUMNS * width, number // SHEET_COLUMNS * height + 16
        draw.text((left + 2, top), f"{copy.distance} bits, {copy.how}", fill="black")
        for side, image in enumerate((copy.image, copy.of)):
            tile = _read_tile(image)
            x, y = left + side * TILE_SIDE, top + CAPTION_HEIGHT
            draw.text((x + 2, top + 13), _shorten(f"{image.shard.removesuffix('.tar')}/{image.key}"), fill="black")
            sheet.paste(tile, (x + (TILE_SIDE - tile.width) // 2, y + (TILE_SIDE - tile.height) // 2))
    return sheet


def _shorten(text: str, *, most: int = 26) -> str:
    return text if len(text) <= most else f"...{text[3 - most :]}"


def _read_tile(image: StoredImage) -> Image.Image:
    data = ShardFolder(image.folder).read_range(image.shard, image.start, image.start + image.length)
    picture = Image.fromarray(decode_image(data))
    scale = TILE_SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)

"""Count what one shard holds, from its images' headers alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import xxhash

from data_tools.inspect_image import Header, read_header
from data_tools.shards import Shard
from data_tools.stats.histogram import log_bin
from pipeline.data.shards.folder import UnreachableError
from pipeline.data.shards.kept import KeptSamples
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, find_member, parse_labels
from pipeline.data.shards.tar import TarMember, TarSample, find_defect
from pipeline.errors import DataError

HEAD_BYTES = 32 << 10  # nearly all headers end within; the rest is read where they do not
SHEET_IMAGES = 48
SIZE_BINS_PER_OCTAVE = 8  # bins of the joint histogram of width and height
COUNTERS = ("labels", "widths", "heights", "short_sides", "areas", "aspect_ratios", "image_bytes", "sizes", "formats", "modes")
TOTALS = (
    "samples",
    "left_out_by_index",
    "counted_in_spite_of_index",
    "images",
    "total_image_bytes",
    "without_image",
    "without_label",
    "unreadable_headers",
)


def measure_shard(folder: str, name: str, *, seed: int, kept: KeptSamples | None = None) -> dict[str, Any]:
    """Count what a shard holds.

    Args:
        kept: the samples to count; None for all. If its index is of another shard, by the size, it is ignored.

    Raises:
        UnreachableError: it cannot be read.
    """
    with Shard(folder, name) as shard:
        counts = _ShardCounts(shard, seed=seed)
        is_stale = kept is not None and kept.num_bytes not in (None, shard.num_bytes)
        broken = None
        try:
            samples = shard.samples()
            marked = ((sample, True) for sample in samples) if kept is None or is_stale else kept.mark(samples)
            for sample, is_kept in marked:
                if not is_kept:
                    counts.totals["left_out_by_index"] += 1
                    continue
                counts.totals["counted_in_spite_of_index"] += is_stale
                counts.add(sample)
        except UnreachableError:
            raise
        except DataError as error:
            broken = str(error)
        return {
            "counters": counts.by_counter(),
            "totals": counts.totals,
            "shard_bytes": shard.num_bytes,
            "drawn": counts.drawn(),
            "broken": broken,
        }


class _ShardCounts:
    """Counts what a shard holds, sample by sample."""

    def __init__(self, shard: Shard, *, seed: int) -> None:
        self.totals: Counter[str] = Counter(dict.fromkeys(TOTALS, 0))
        self._counters: dict[str, Counter[Any]] = {name: Counter() for name in COUNTERS}
        self._drawn: list[tuple[Any, ...]] = []
        self._shard = shard
        self._seed = seed

    def add(self, sample: TarSample) -> None:
        """Count a sample.

        Raises:
            DataError: two of its members have one extension, or it cannot be read.
        """
        if (defect := find_defect(sample)) is not None and defect.kind == "repeated_member":
            raise DataError(f"{self._shard.name}: sample {sample.key!r} {defect.reason}")
        labels = _read_labels(self._shard, sample)
        image = find_member(sample, IMAGE_EXTENSIONS)
        self.totals["samples"] += 1
        if labels is None:
            self.totals["without_label"] += 1
        else:
            self._counters["labels"].update(labels)
        if image is None:
            self.totals["without_image"] += 1
            return
        self._add_image(image)
        if image.pieces is None:  # the sheet reads byte ranges; a sparse image does not lie in one
            self._draw(sample.key, image, labels[0] if labels else None)

    def by_counter(self) -> dict[str, list[tuple[Any, int]]]:
        """Return counts by value for each counter, sorted."""
        return {counter: sorted(counts.items()) for counter, counts in self._counters.items()}

    def drawn(self) -> list[tuple[Any, ...]]:
        """Return rank, key, start, length and label of the images for the sheet."""
        return sorted(self._drawn)[:SHEET_IMAGES]

    def _add_image(self, image: TarMember) -> None:
        self.totals["images"] += 1
        self.totals["total_image_bytes"] += image.length
        if image.length:
            self._counters["image_bytes"][log_bin(image.length)] += 1
        header = _read_header(self._shard, image)
        if header is None:
            self.totals["unreadable_headers"] += 1
        else:
            _count_header(self._counters, header)

    def _draw(self, key: str, image: TarMember, label: int | None) -> None:
        """Put an image among those of which the sheet shows the lowest ranks."""
        rank = xxhash.xxh3_64_intdigest(f"{self._seed}|{self._shard.name}|{key}".encode(errors="surrogateescape"))
        self._drawn.append((rank, key, image.start, image.length, label))
        if len(self._drawn) >= 4 * SHEET_IMAGES:
            self._drawn = sorted(self._drawn)[:SHEET_IMAGES]


def _read_labels(shard: Shard, sample: TarSample) -> tuple[int, ...] | None:
    label = find_member(sample, LABEL_EXTENSIONS)
    if label is None:
        return None
    text = shard.read(label)
    try:
        return parse_labels(text, shard=shard.name, key=sample.key)
    except DataError:
        return None


def _read_header(shard: Shard, image: TarMember) -> Header | None:
    header = read_header(shard.read(image, HEAD_BYTES))
    return read_header(shard.read(image)) if header is None and image.length > HEAD_BYTES else header


def _count_header(counters: dict[str, Counter[Any]], header: Header) -> None:
    width, height = header.width, header.height
    counters["widths"][width] += 1
    counters["heights"][height] += 1
    counters["short_sides"][min(width, height)] += 1
    counters["areas"][log_bin(width * height)] += 1
    counters["aspect_ratios"][log_bin(width / height)] += 1
    counters["sizes"][_size_bin(width), _size_bin(height)] += 1
    counters["formats"][header.format] += 1
    counters["modes"][header.mode] += 1


def _size_bin(pixels: int) -> int:
    return (pixels**SIZE_BINS_PER_OCTAVE).bit_length() - 1  # floor(log2) of the power: exact

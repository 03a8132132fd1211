"""Count what a corpus holds: classes, image sizes, formats and bytes, from the images' headers alone.

OUT/
  stats.json      every figure
  stats.html      one page for a person, with plots and a contact sheet
  .stats/         what was counted in each shard, so that a killed command goes on where it stopped
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import xxhash

from data_tools.inspect_image import Header, read_header
from data_tools.kept_samples import KeptSamples, kept_in_shard
from data_tools.parallel import map_in_processes, remember, write_json
from data_tools.shards import Shard, ShardList, is_whole, shard_version
from data_tools.stats.histogram import bin_value, effective_number, log_bin, percentiles
from pipeline.data.shards.class_names import class_names_of
from pipeline.data.shards.folder import UnreachableError
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.sample import IMAGE_EXTENSIONS, LABEL_EXTENSIONS, find_member, parse_label
from pipeline.data.shards.tar import TarMember, TarSample, find_defect
from pipeline.errors import DataError

RULES_VERSION = 2  # version of what is counted
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


class Drawn(NamedTuple):
    """Describes a sample of the contact sheet."""

    rank: int  # a hash of seed, shard and key: the lowest ranks of all shards are a random sample
    shard: str
    key: str
    start: int
    length: int
    label: int | None


@dataclass(frozen=True)
class CorpusStats:
    """Holds everything counted in a folder.

    Attributes:
        counters: counts by value. Areas, aspect ratios and bytes by half-percent bin; sizes by bins of width and height.
        totals: plain sums.
        class_names: class names by id, where classes.txt has them.
    """

    folder: str
    num_shards: int
    shard_bytes: int
    counters: dict[str, Counter[Any]]
    totals: Counter[str]
    broken_shards: dict[str, str]
    class_names: list[str] | None
    drawn: list[Drawn]

    @property
    def class_counts(self) -> dict[int, int]:
        """Return the number of samples by class, also of classes that are named and have none."""
        return dict.fromkeys(range(len(self.class_names or ())), 0) | dict(self.counters["labels"])

    def name(self, label: int | None) -> str:
        """Return the name of a class for people."""
        if label is None:
            return "no label"
        return self.class_names[label] if self.class_names and 0 <= label < len(self.class_names) else f"class {label}"


def measure_folder(
    shards: ShardList, *, work: Path, num_workers: int, seed: int = 0, index: ShardIndex | None = None
) -> CorpusStats:
    """Count everything in some shards that a training would see.

    Args:
        index: says which samples are left out; None counts them all.
        work: keeps what was counted in each shard.
        seed: seed of the contact sheet's samples.

    Raises:
        DataError: `work` cannot be written.
    """
    write_json(work / "about.json", {"folder": shards.folder, "is": "what `stats` counted; may be deleted"})
    measure = partial(_measure_shard, shards.folder, work, seed, index)
    done = map_in_processes(measure, shards.names, num_workers=num_workers, description="measure shards", unit="shard")
    counters: dict[str, Counter[Any]] = {name: Counter() for name in COUNTERS}
    totals: Counter[str] = Counter()
    broken = {name: f"{name} is compressed; `gunzip` (or `zstd -d`) it first" for name in shards.compressed}
    drawn: list[Drawn] = []
    shard_bytes = 0
    for name, result in done:
        for counter, pairs in result["counters"].items():
            counters[counter].update({tuple(value) if isinstance(value, list) else value: count for value, count in pairs})
        totals.update(result["totals"])
        shard_bytes += result["shard_bytes"]
        drawn = sorted([*drawn, *(Drawn(rank, name, *rest) for rank, *rest in result["drawn"])])[:SHEET_IMAGES]
        if result["broken"] is not None:
            broken[name] = result["broken"]
    return CorpusStats(
        folder=shards.folder,
        num_shards=len(shards.names) + len(shards.compressed),
        shard_bytes=shard_bytes,
        counters=counters,
        totals=totals,
        broken_shards=dict(sorted(broken.items())),
        class_names=class_names_of(shards.folder),
        drawn=drawn,
    )


def _measure_shard(folder: str, work: Path, seed: int, index: ShardIndex | None, name: str) -> dict[str, Any]:
    """Return what one shard holds, counted now or remembered."""
    kept = None if index is None else kept_in_shard(index, name)
    try:
        facts = (
            RULES_VERSION, PIL.__version__, shard_version(folder, name), seed, None if kept is None else kept.version,
        )  # fmt: skip
        measure = partial(measure_shard, folder, name, seed=seed, kept=kept)
        return remember(measure, path=work / f"{name}.json", facts=facts, is_final=is_whole)
    except UnreachableError as error:  # not remembered: it may be reachable the next time
        return {"counters": {}, "totals": {}, "shard_bytes": 0, "drawn": [], "broken": str(error)}


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
        label = _read_label(self._shard, sample)
        image = find_member(sample, IMAGE_EXTENSIONS)
        self.totals["samples"] += 1
        if label is None:
            self.totals["without_label"] += 1
        else:
            self._counters["labels"][label] += 1
        if image is None:
            self.totals["without_image"] += 1
            return
        self._add_image(image)
        if image.pieces is None:  # the sheet reads byte ranges; a sparse image does not lie in one
            self._draw(sample.key, image, label)

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


def _read_label(shard: Shard, sample: TarSample) -> int | None:
    label = find_member(sample, LABEL_EXTENSIONS)
    if label is None:
        return None
    text = shard.read(label)
    try:
        return parse_label(text, shard=shard.name, key=sample.key)
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


def describe(measured: CorpusStats) -> dict[str, Any]:
    """Return the figures as they are written."""
    counters, totals = measured.counters, measured.totals
    num_images = totals["images"]
    return {
        "folder": measured.folder,
        "shards": measured.num_shards,
        "shard_bytes": measured.shard_bytes,
        **{name: totals[name] for name in TOTALS},
        "broken_shards": measured.broken_shards,
        "classes": _describe_classes(measured),
        "width": percentiles(counters["widths"]),
        "height": percentiles(counters["heights"]),
        "short_side": percentiles(counters["short_sides"]),
        "pixels": percentiles(_unbinned(counters["areas"])),
        "aspect_ratio": percentiles(_unbinned(counters["aspect_ratios"])),
        "bytes_per_image": {
            **percentiles(_unbinned(counters["image_bytes"])),
            "mean": totals["total_image_bytes"] / num_images if num_images else None,
        },
        "formats": dict(counters["formats"].most_common()),
        "modes": dict(counters["modes"].most_common()),
    }


def _unbinned(counts: Mapping[int, int]) -> dict[float, int]:
    return {bin_value(number): count for number, count in counts.items()}


def _describe_classes(measured: CorpusStats) -> dict[str, Any]:
    counts = measured.class_counts
    spread = percentiles(Counter(counts.values()))
    return {
        "named": None if measured.class_names is None else len(measured.class_names),
        "with_samples": sum(count > 0 for count in counts.values()),
        "without_samples": [measured.name(label) for label, count in sorted(counts.items()) if not count],
        "samples_per_class": {name: spread[name] for name in ("min", "median", "max") if name in spread},
        "effective_number": effective_number(counts),
        "counts": [{"class": label, "name": measured.name(label), "samples": count} for label, count in sorted(counts.items())],
    }


def tabulate(report: Mapping[str, Any]) -> str:
    """Return the figures in a few lines."""
    classes = report["classes"]
    spread = " / ".join(f"{classes['samples_per_class'].get(name, 0):.0f}" for name in ("min", "median", "max"))
    lines = [
        f"{report['folder']}: {report['samples']} samples in {report['shards']} "
        f"{'shard' if report['shards'] == 1 else 'shards'}, {report['shard_bytes'] / 1e6:,.4g} MB",
        f"classes       {classes['with_samples']} with samples, {len(classes['without_samples'])} named without; samples a "
        "class "
        f"(min / median / max) {spread}; effective number {classes['effective_number']:.1f}",
        f"formats       {_listed(report['formats'])}; modes {_listed(report['modes'])}",
        _percentile_line("", {"min": "min", "p5": "5 %", "median": "median", "p95": "95 %", "max": "max"}),
        *(_percentile_line(title, {k: shown(v * scale) for k, v in report[name].items() if k in SHOWN})
          for name, (title, scale) in MEASURES.items() if report[name].get("median")),
    ]  # fmt: skip
    if report["left_out_by_index"]:
        lines.append(f"not counted: {report['left_out_by_index']} samples that the index leaves out, as a training does")
    if report["counted_in_spite_of_index"]:
        lines.append(
            f"{report['counted_in_spite_of_index']} of them lie in shards that have changed since they were indexed: "
            "run `index` again"
        )
    missing = {
        "without_image": "without image",
        "without_label": "without usable label",
        "unreadable_headers": "unreadable headers",
    }
    lines += [f"{title}: {report[name]} (`verify` says which)" for name, title in missing.items() if report[name]]
    return "\n".join(
        [
            *lines,
            *(f"not counted, or not to its end: {reason.partition('; ')[0]}" for reason in report["broken_shards"].values()),
        ]
    )


SHOWN = ("min", "p5", "median", "p95", "max")
MEASURES = {
    "width": ("width, px", 1),
    "height": ("height, px", 1),
    "short_side": ("short side", 1),
    "pixels": ("megapixels", 1e-6),
    "aspect_ratio": ("width/height", 1),
    "bytes_per_image": ("kB an image", 1e-3),
}


def shown(value: float) -> str:
    """Round to a whole number from a hundred on, else to three figures."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _percentile_line(title: str, values: Mapping[str, str]) -> str:
    return f"{title:12}" + "".join(f"{values[name]:>10}" for name in SHOWN)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"

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

from data_tools.parallel import Workers, remember, write_json
from data_tools.shards import ShardList, is_whole, shard_version
from data_tools.stats.histogram import bin_value, effective_number, percentiles
from data_tools.stats.shard_counts import COUNTERS, SHEET_IMAGES, TOTALS, measure_shard
from pipeline.data.shards.class_names import class_names_of
from pipeline.data.shards.folder import UnreachableError
from pipeline.data.shards.index import ShardIndex
from pipeline.data.shards.kept import kept_in_shard

RULES_VERSION = 3  # version of what is counted


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
    shards: ShardList, *, work: Path, workers: Workers, seed: int = 0, index: ShardIndex | None = None
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
    done = workers.map(measure, shards.names, description="measure shards", unit="shard", are_kept=True)
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
            RULES_VERSION,
            PIL.__version__,
            shard_version(folder, name),
            seed,
            None if kept is None else kept.version,
        )
        measure = partial(measure_shard, folder, name, seed=seed, kept=kept)
        return remember(measure, path=work / f"{name}.json", facts=facts, is_final=is_whole)
    except UnreachableError as error:  # not remembered: it may be reachable the next time
        return {"counters": {}, "totals": {}, "shard_bytes": 0, "drawn": [], "broken": str(error)}


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
        f"class (min / median / max) {spread}; effective number {classes['effective_number']:.1f}",
        f"formats       {_listed(report['formats'])}; modes {_listed(report['modes'])}",
        _percentile_line("", {"min": "min", "p5": "5 %", "median": "median", "p95": "95 %", "max": "max"}),
        *(
            _percentile_line(title, {k: shown(v * scale) for k, v in report[name].items() if k in SHOWN})
            for name, (title, scale) in MEASURES.items()
            if report[name].get("median")
        ),
    ]
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

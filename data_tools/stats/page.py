"""Write one self-contained HTML page on a corpus: figures, plots and a contact sheet, all inside the file."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from data_tools.stats.measure import MEASURES, CorpusStats, Drawn, shown
from data_tools.stats.plots import draw_classes, draw_shapes, draw_sizes
from pipeline.console.words import size
from pipeline.data.images.decode import UnreadableImage, decode_image
from pipeline.data.shards.folder import ShardFolder, UnreachableError
from pipeline.errors import DataError

THUMBNAIL_PX = 288  # twice the size it is shown at
SHOWN_CLASSES = 10  # the largest and the smallest
COLUMNS = {
    "min": "min",
    "p1": "1 %",
    "p5": "5 %",
    "p25": "25 %",
    "median": "median",
    "p75": "75 %",
    "p95": "95 %",
    "p99": "99 %",
    "max": "max",
}

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1d2430; background: #f4f5f7; \
margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 10px; }
section { background: white; border: 1px solid #e2e5ea; border-radius: 10px; padding: 18px 20px; margin-top: 18px; }
p.note { color: #5d6672; margin: 0 0 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-top: 18px; }
.tile { background: white; border: 1px solid #e2e5ea; border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: 23px; line-height: 1.25; }
.tile span { color: #5d6672; font-size: 13px; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 12px; }
figure { margin: 0; min-width: 0; }
figure div { aspect-ratio: 1; background: #eceef1; border-radius: 6px; display: flex; align-items: center; \
justify-content: center;
  overflow: hidden; color: #a33; font-size: 12px; text-align: center; }
figure img { width: 100%; height: 100%; object-fit: contain; }
figure img.small { image-rendering: pixelated; }
figcaption { font-size: 12px; color: #39424e; line-height: 1.3; margin-top: 3px; overflow: hidden; overflow-wrap: anywhere;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
img.plot { width: 100%; height: auto; margin: 6px 0; }
.side + p.note { margin: 14px 0 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { padding: 4px 12px; text-align: right; border-bottom: 1px solid #eceef1; }
th { color: #5d6672; font-weight: 500; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.side { display: flex; flex-wrap: wrap; gap: 10px 48px; align-items: flex-start; }
.scroll { overflow-x: auto; }
.warning { border-left: 4px solid #d9822b; }
ul { margin: 0; padding-left: 20px; }
"""


def write_page(measured: CorpusStats, report: Mapping[str, Any], path: Path) -> None:
    """Write the page, whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    title = report["folder"].rstrip("/").rpartition("/")[2] or report["folder"]
    sections = [
        _warnings(report),
        _contact_sheet(measured),
        _classes(measured, report),
        _sizes(measured, report),
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f'<h1>{html.escape(title)}</h1><p class="note">{html.escape(report["folder"])}</p>'
        f"{_tiles(report)}{''.join(sections)}</main></body></html>\n"
    )
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(page, encoding="utf-8", errors="backslashreplace")  # tars hold names that are not UTF-8
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}") from error


def _tiles(report: Mapping[str, Any]) -> str:
    classes = report["classes"]
    tiles = [
        (f"{report['samples']:,}", "samples"),
        (size(report["shard_bytes"]), f"in {_number(report['shards'], 'shard')}"),
        (f"{classes['with_samples']:,}", "classes with samples"),
        (f"{classes['effective_number']:,.1f}", "effective number of classes"),
        (_median_size(report), "median width × height, px"),
        (size(report["bytes_per_image"].get("median", 0)), "median image file"),
    ]
    cells = "".join(
        f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>' for value, name in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _median_size(report: Mapping[str, Any]) -> str:
    return f"{report['width'].get('median', 0):,.0f} × {report['height'].get('median', 0):,.0f}"


def _warnings(report: Mapping[str, Any]) -> str:
    titles = {
        "without_image": "samples without an image",
        "without_label": "samples without a usable label",
        "unreadable_headers": "images whose header cannot be read",
    }
    lines = [f"{report[name]:,} {title}" for name, title in titles.items() if report[name]]
    lines += [f"not counted, or not to its end: {reason.partition('; ')[0]}" for reason in report["broken_shards"].values()]
    if not lines:
        return ""
    items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f'<section class="warning"><h2>What is amiss</h2><ul>{items}</ul><p class="note">`verify` says more.</p></section>'


def _contact_sheet(measured: CorpusStats) -> str:
    if not measured.drawn:
        return ""
    figures = "".join(_figure(measured, drawn) for drawn in sorted(measured.drawn))
    note = f"{len(measured.drawn)} samples drawn at random, as stored (EXIF orientation is not applied, as in training)."
    return f'<section><h2>Samples</h2><p class="note">{note}</p><div class="sheet">{figures}</div></section>'


def _figure(measured: CorpusStats, drawn: Drawn) -> str:
    name, title = html.escape(measured.name(drawn.label)), html.escape(f"{drawn.shard} {drawn.key}", quote=True)
    return f'<figure title="{title}"><div>{_thumbnail(measured.folder, drawn)}</div><figcaption>{name}</figcaption></figure>'


def _thumbnail(folder: str, drawn: Drawn) -> str:
    """Return an <img> of the sample, or words where it cannot be decoded."""
    try:
        image = Image.fromarray(
            decode_image(ShardFolder(folder).read_range(drawn.shard, drawn.start, drawn.start + drawn.length))
        )
    except UnreadableImage:
        return "cannot be decoded"
    except UnreachableError:
        return "could not be read"
    is_small = max(image.size) < THUMBNAIL_PX // 2
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    if is_small:
        image.save(buffer, "PNG")
        return f'<img class="small" alt="" src="{_inline(buffer.getvalue(), "png")}">'
    image.save(buffer, "JPEG", quality=82)
    return f'<img alt="" src="{_inline(buffer.getvalue(), "jpeg")}">'


def _classes(measured: CorpusStats, report: Mapping[str, Any]) -> str:
    classes = report["classes"]
    counts = [(entry["name"], entry["samples"]) for entry in classes["counts"]]
    if not counts:
        return ""
    spread, empty = classes["samples_per_class"], classes["without_samples"]
    named = "no classes.txt" if classes["named"] is None else f"{classes['named']:,} in classes.txt"
    note = (
        f"{classes['with_samples']:,} classes with samples, {named}. Samples a class: {spread['min']:,.0f} at least, "
        f"{spread['median']:,.0f} in the middle, {spread['max']:,.0f} at most. As hard to guess as "
        f"{classes['effective_number']:,.1f} classes of equal size (exp of the entropy)."
    )
    if spread["min"] == spread["max"]:
        note = f"{len(counts):,} classes, {named}; every one has {_number(int(spread['max']), 'sample')}."
        return f'<section><h2>Classes</h2><p class="note">{note}</p></section>'
    ordered = sorted((item for item in counts if item[1]), key=lambda item: (-item[1], item[0]))
    tables = ""
    if len(ordered) > 2 * SHOWN_CLASSES:
        largest = _table(("largest", "samples"), [(name, f"{count:,}") for name, count in ordered[:SHOWN_CLASSES]])
        smallest = _table(("smallest", "samples"), [(name, f"{count:,}") for name, count in ordered[: -SHOWN_CLASSES - 1 : -1]])
        tables = f'<div class="side">{largest}{smallest}</div>'
    if empty:
        shown = ", ".join(empty[:30]) + (f" and {len(empty) - 30:,} more" if len(empty) > 30 else "")
        tables += f'<p class="note">Without a sample: {html.escape(shown)}</p>'
    plot = _plot(draw_classes(counts), "samples by class")
    return f'<section><h2>Classes</h2><p class="note">{note}</p>{plot}{tables}</section>'


def _sizes(measured: CorpusStats, report: Mapping[str, Any]) -> str:
    counters = measured.counters
    if not counters["widths"]:
        return ""
    rows = [
        (title, *(shown(report[name][column] * scale) for column in COLUMNS))
        for name, (title, scale) in MEASURES.items()
        if report[name].get("median")
    ]
    one_size = len(counters["widths"]) == len(counters["heights"]) == 1
    plots = (
        f'<p class="note">All images are {_median_size(report)} px.</p>'
        if one_size
        else _plot(draw_sizes(counters["sizes"], counters["short_sides"]), "image sizes")
    )
    plots += _plot(draw_shapes(counters["aspect_ratios"], counters["image_bytes"]), "aspect ratio and bytes an image")
    tables = "".join(
        _table((title, "images", "share"), _shares(report[name])) for name, title in (("formats", "format"), ("modes", "mode"))
    )
    return (
        f'<section><h2>Images</h2><div class="scroll">{_table(("", *COLUMNS.values()), rows)}</div>{plots}</section>'
        f'<section><h2>Formats and modes</h2><div class="side">{tables}</div></section>'
    )


def _shares(counts: Mapping[str, int]) -> list[tuple[str, ...]]:
    total = sum(counts.values())
    return [(name, f"{count:,}", f"{100 * count / total:.3g} %") for name, count in counts.items()]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _plot(png: bytes, alt: str) -> str:
    return f'<img class="plot" alt="{alt}" src="{_inline(png, "png")}">'


def _inline(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _number(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"

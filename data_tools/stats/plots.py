"""Plot a corpus as PNGs: classes, image sizes, shapes and bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from data_tools.stats.histogram import LOG_STEP
from data_tools.stats.shard_counts import SIZE_BINS_PER_OCTAVE
from pipeline.console.figures import house_style, label_of

BLUE, GREY, ORANGE = "#3b6ea5", "#8a8f98", "#d9822b"
NAMED_CLASSES = 40  # more than this are drawn as a curve, without names
LOG_FROM_RATIO = 30
PLOT_BINS = 60


@house_style()
def draw_classes(counts: Sequence[tuple[str, int]]) -> bytes:
    """Draw samples by class, largest first: as bars with names, or as a curve where there are many."""
    ordered = sorted(counts, key=lambda item: (-item[1], item[0]))
    numbers = np.array([count for _, count in ordered])
    median = float(np.median(numbers))
    if len(ordered) <= NAMED_CLASSES:
        figure, axis = _figure(width=10, height=0.9 + 0.24 * len(ordered))
        axis.barh(range(len(ordered)), numbers, color=BLUE, height=0.75)
        axis.set_yticks(range(len(ordered)), [_shorten(name) for name, _ in ordered])
        axis.set_ylim(len(ordered) - 0.4, -0.6)
        axis.axvline(median, color=ORANGE, linewidth=1.5, label=f"median {median:,.0f}")
        axis.set_xlabel("samples")
        axis.set_xlim(0, numbers.max() * 1.06)
        _thousands(axis.xaxis)
        axis.grid(axis="y", visible=False)
    else:
        figure, axis = _figure(width=10, height=3.4)
        axis.fill_between(np.arange(len(ordered) + 1), np.append(numbers, numbers[-1]), step="post", color=BLUE, linewidth=0)
        axis.axhline(median, color=ORANGE, linewidth=1.5, label=f"median {median:,.0f}")
        axis.set(xlabel="class, by rank", ylabel="samples", xlim=(0, len(ordered)), ylim=(0, numbers.max() * 1.08))
        if numbers.max() > LOG_FROM_RATIO * max(1, numbers.min()):
            axis.set_yscale("log")
            axis.set_ylim(0.8, numbers.max() * 1.5)
        _thousands(axis.yaxis)
        _thousands(axis.xaxis)
    axis.legend(frameon=False, loc="lower right" if len(ordered) <= NAMED_CLASSES else "upper right")
    return _encode(figure)


@house_style()
def draw_sizes(sizes: Mapping[tuple[int, int], int], short_sides: Mapping[int, int]) -> bytes:
    """Draw width against height, and the shorter side."""
    figure, (left, right) = _figure(width=10, height=4.4, columns=2, ratios=(1, 1.15))
    grid, first = _size_grid(sizes)
    edges = np.exp2((first + np.arange(len(grid) + 1)) / SIZE_BINS_PER_OCTAVE)
    norm = LogNorm(vmin=1, vmax=max(2, int(grid.max())))
    mesh = left.pcolormesh(edges, edges, np.ma.masked_equal(grid.T, 0), norm=norm, cmap="viridis_r", rasterized=True)
    left.plot(edges[[0, -1]], edges[[0, -1]], color=GREY, linewidth=0.8, linestyle=":", label="square")
    left.set(
        xscale="log", yscale="log", aspect="equal", xlabel="width, px", ylabel="height, px", title="Images by width and height"
    )
    for axis in (left.xaxis, left.yaxis):
        _octaves(axis, edges)
    left.legend(frameon=False, loc="upper left", fontsize=8)
    figure.colorbar(mesh, ax=left, shrink=0.8).ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _draw_integers(right, short_sides)
    right.set(xlabel="shorter side, px", ylabel="images", title="Shorter side")
    return _encode(figure)


@house_style()
def draw_shapes(aspect_ratios: Mapping[int, int], image_bytes: Mapping[int, int]) -> bytes:
    """Draw aspect ratio and bytes an image, both from half-percent bins, on logarithmic axes."""
    if len(aspect_ratios) == 1:
        figure, right = _figure(width=10, height=3.4)
        right.set_ylabel("images")
    else:
        figure, (left, right) = _figure(width=10, height=3.4, columns=2)
        _draw_bins(left, aspect_ratios)
        left.set(xlabel="width / height", ylabel="images", title="Aspect ratio")
        left.axvline(1, color=GREY, linewidth=0.8, linestyle=":")
        _ratio_ticks(left)
    _draw_bins(right, image_bytes)
    right.set(xlabel="bytes", title="Bytes an image")
    low, high = right.get_xlim()
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    right.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
    return _encode(figure)


def _ratio_ticks(axis: Any) -> None:
    low, high = axis.get_xlim()
    if high / low > 100:
        ticks = [10.0**power for power in range(-6, 7)]
    elif high / low > 4:
        ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
    else:
        ticks = [0.5, 2 / 3, 0.75, 1, 4 / 3, 1.5, 2]
    inside = [tick for tick in ticks if low <= tick <= high]
    axis.set_xticks(inside, [f"{tick:.2f}".rstrip("0").rstrip(".") if tick < 10 else f"{tick:,.0f}" for tick in inside])


def _size_grid(sizes: Mapping[tuple[int, int], int]) -> tuple[np.ndarray, int]:
    """Return counts on a square grid of (width, height) bins, and the number of its first bin."""
    bins = np.array(list(sizes))
    first = int(bins.min()) - 2
    length = int(bins.max()) - first + 3
    grid = np.zeros((length, length))
    grid[bins[:, 0] - first, bins[:, 1] - first] = list(sizes.values())
    return grid, first


def _octaves(axis: Any, edges: np.ndarray) -> None:
    octaves = [2**k for k in range(32) if edges[0] <= 2**k <= edges[-1]]
    step = -(-len(octaves) // 8)
    axis.set_major_locator(NullLocator())
    axis.set_ticks(octaves[::step] or [float(edges[0])])
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _draw_integers(axis: Any, counts: Mapping[int, int]) -> None:
    """Draw a histogram of whole numbers. The last bar gathers the highest percent, so that it does not stretch the axis."""
    values, numbers = (np.array(column) for column in zip(*sorted(counts.items()), strict=True))
    top = values[np.searchsorted(np.cumsum(numbers), 0.99 * numbers.sum())]
    is_cut = values[-1] > 1.2 * top
    last = int(top if is_cut else values[-1])
    width = max(1, -(-(last - int(values[0]) + 1) // PLOT_BINS))
    edges = np.arange(int(values[0]), last + 1 + width, width) - 0.5
    heights, _ = np.histogram(np.minimum(values, last), bins=edges, weights=numbers)
    axis.bar(edges[:-1], heights, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white", linewidth=0.3)
    if is_cut:
        axis.text(
            0.98,
            0.95,
            f"last bar: {last:,} to {int(values[-1]):,}",
            transform=axis.transAxes,
            ha="right",
            va="top",
            fontsize=8,
            color=GREY,
        )
    axis.set_xlim(edges[0] - 2 * width, edges[-1] + 2 * width)
    _thousands(axis.xaxis)
    _thousands(axis.yaxis)


def _draw_bins(axis: Any, counts: Mapping[int, int]) -> None:
    """Draw a histogram of half-percent bins. Each bar gathers the same number of them."""
    values, numbers = (np.array(column) for column in zip(*sorted(counts.items()), strict=True))
    width = max(1, -(-(values[-1] - values[0] + 1) // PLOT_BINS))
    first = values[0] - (values[0] % width)
    heights = np.bincount((values - first) // width, weights=numbers)
    edges = np.exp((first - 0.5 + width * np.arange(len(heights) + 1)) * LOG_STEP)
    axis.bar(edges[:-1], heights, width=np.diff(edges), align="edge", color=BLUE, edgecolor="white", linewidth=0.3)
    axis.set_xscale("log")
    margin = max(1.05, (edges[-1] / edges[0]) ** 0.03)
    axis.set_xlim(edges[0] / margin, edges[-1] * margin)
    axis.xaxis.set_minor_locator(NullLocator())
    _thousands(axis.yaxis)


def _thousands(axis: Any) -> None:
    """Show whole numbers, unless the axis is logarithmic and has ticks of its own."""
    if axis.get_scale() == "linear":
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def _shorten(name: str, length: int = 32) -> str:
    return label_of(name if len(name) <= length else f"{name[: length - 1]}…")


def _figure(*, width: float, height: float, columns: int = 1, ratios: Sequence[float] | None = None) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    axes = figure.subplots(1, columns, width_ratios=ratios)
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        axis.title.set_fontsize(11)
    return figure, axes


def _encode(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    return buffer.getvalue()

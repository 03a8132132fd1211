"""Draw the state of runs as plain text: for a terminal of any kind, a pipe, or a log."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.console.words import duration
from pipeline.json_text import to_finite
from pipeline.monitor.status import RunStatus, find_runs, read_signs, read_status, watch_claims
from pipeline.run.claims import Sightings
from pipeline.run.evaluations import show_value
from pipeline.run.records import Row, number
from pipeline.run.state import watch_for_life

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
SPARK_WIDTH = 48
BAR_WIDTH = 30
WATCH_EVERY_S = 2.0
CLEAR = "\033[H\033[J"  # home, and clear from there
COLOURS = {
    "running": 32,
    "finished": 32,
    "saving": 36,
    "starting": 36,
    "waiting for data": 33,
    "stopped by signal": 33,
    "copied": 33,
}
RED, BOLD = 31, 1
ENDED = ("finished", "failed", "died", "stopped by signal", "copied", "never started")  # `--watch` does not wait after these
SHOWN_NODES = 4
RECENTLY_S = 20.0  # a sign of life this young needs no word


@dataclass(frozen=True)
class Style:
    """Says what an output can show."""

    colours: bool
    blocks: str

    @staticmethod
    def of(stream: Any, *, term: str | None, no_color: str | None) -> Style:
        """Choose colours for a terminal that has them, block characters where the encoding does."""
        colours = stream.isatty() and term not in (None, "dumb", "") and not no_color
        try:
            BLOCKS.encode(stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return Style(colours, ASCII_BLOCKS)
        return Style(colours, BLOCKS)

    def paint(self, text: str, code: int) -> str:
        return f"\033[{code}m{text}\033[0m" if self.colours else text


def show(paths: Sequence[str], *, output: str, watch: bool, style: Style) -> None:
    """Print the state of runs; with `watch`, repeat it until none of them trains any more.

    Raises:
        ConfigError: a path that holds no run.
    """
    sightings = Sightings()
    while True:
        runs = find_runs(paths)
        if not watch:  # else the next looks show it
            watch_claims(runs, sightings)
        signs = watch_for_life([read_signs(folder) for folder in runs])
        statuses = [read_status(found.root, signs=found, sightings=sightings) for found in signs]
        text = to_json(statuses) if output == "json" else "\n".join(describe(statuses, style=style))
        # A terminal is redrawn in place; elsewhere one state follows the other.
        print((CLEAR if watch and style.colours else "") + text, flush=True)
        if not watch or all(status.state in ENDED for status in statuses):
            return
        time.sleep(WATCH_EVERY_S)


def to_json(statuses: Sequence[RunStatus]) -> str:
    """Return one run as an object, several as a list."""
    values = [to_finite(asdict(status)) for status in statuses]
    return json.dumps(values[0] if len(values) == 1 else values, indent=1, allow_nan=False)


def describe(statuses: Sequence[RunStatus], *, style: Style) -> Iterator[str]:
    """Yield one run in full, several in a line each."""
    if len(statuses) == 1:
        yield from describe_run(statuses[0], style=style)
    else:
        yield from tabulate(statuses, style=style)


def describe_run(status: RunStatus, *, style: Style) -> Iterator[str]:
    """Yield everything about one run, a fact a line."""
    ago = "" if (status.since_s or 0.0) < RECENTLY_S else f", last sign of life {ago_of(status.since_s or 0.0)}"
    detail = f" ({status.detail})" if status.detail else ""
    yield f"{style.paint(status.run, BOLD)}   {_painted_state(status, style)}{detail}{ago}"
    rows = [
        *_progress(status, style),
        *_speed(status),
        *_training(status, style),
        *_stored(status),
        *_evaluated(status),
        *_where_rows(status),
    ]
    for label, text in rows:
        yield f"  {label:<12} {text}"
    for warning in status.warnings:
        yield f"  {style.paint('! ' + warning, RED)}"


def _painted_state(status: RunStatus, style: Style) -> str:
    return style.paint(status.state, COLOURS.get(status.state, RED))


def _progress(status: RunStatus, style: Style) -> Iterator[tuple[str, str]]:
    if status.step is None:
        return
    if status.total_steps:
        part = status.step / status.total_steps
        bar = "".join("#" if i < round(part * BAR_WIDTH) else "." for i in range(BAR_WIDTH))
        yield "step", f"{status.step:,} of {status.total_steps:,}  [{bar}] {100 * part:.1f} %"
    else:
        yield "step", f"{status.step:,}"
    if status.images_seen is not None:
        passes = {name: number(status.line, name) for name in status.line if name.startswith("epoch")}
        epochs = [f"{name} {value:.2f}" for name, value in passes.items() if value is not None]
        yield "images seen", ", ".join([f"{status.images_seen:,}", *epochs])
    if status.eta_s is not None:
        end = time.strftime("%a %d %b %H:%M", time.localtime(time.time() + status.eta_s))
        yield "time left", f"{duration(status.eta_s)}, until {end}"


def _speed(status: RunStatus) -> Iterator[tuple[str, str]]:
    speed = status.speed
    texts = {
        "images_per_s": "{:,.4g} images/s",
        "step_time_s": "{:.3g} s a step",
        "data_wait_fraction": "{:.1%} of it waiting for data",
        "mfu": "MFU {:.1%}",
    }
    parts = [text.format(speed[name]).replace("%", " %") for name, text in texts.items() if name in speed]
    if parts:
        yield "speed", ", ".join(parts)
    straggler = status.stragglers
    if straggler:
        yield (
            "slowest rank",
            (
                f"{straggler['rank']}: {straggler['ratio']:.2f} times the others' own time, they wait "
                f"{100 * straggler['cost']:.1f} % "
                f"of each step for it ({' + '.join(straggler['measured'])})"
            ),
        )
        for node in straggler["nodes"][:SHOWN_NODES] if len(straggler["nodes"]) > 1 else []:
            yield (
                "",
                (
                    f"{node['host']}: median {1e3 * node['median_s']:.1f} ms, slowest rank {node['slowest_rank']} "
                    f"{1e3 * node['slowest_s']:.1f} ms, of it {1e3 * node['slowest_data_wait_s']:.1f} waiting for data"
                ),
            )


def _training(status: RunStatus, style: Style) -> Iterator[tuple[str, str]]:
    line = status.line
    if not line:
        return
    assert status.loss_steps is not None
    first, last = status.loss_steps
    yield "loss", f"{finite(line, 'train/loss', '.4g')}  {sparkline(status.losses, style=style)}  steps {first:,}-{last:,}"
    yield (
        "",
        (
            f"learning rate {finite(line, 'train/learning_rate', '.3g')}, gradient norm "
            f"{finite(line, 'train/gradient_norm', '.3g')}, "
            f"skipped steps {count(line, 'train/skipped_steps')}"
        ),
    )
    yield "data", f"{count(line, 'data/unreadable')} unreadable images, {count(line, 'data/retries')} reads retried"


def finite(row: Row, key: str, form: str) -> str:
    """Return a number of a line of metrics; `not finite` where it is null, as JSON has no infinities."""
    value = number(row, key)
    if value is not None:
        return format(value, form)
    return "not finite" if key in row else "unknown"


def count(row: Row, key: str) -> str:
    value = number(row, key)
    return "unknown" if value is None and key in row else f"{value or 0:,.0f}"


def _stored(status: RunStatus) -> Iterator[tuple[str, str]]:
    if status.checkpoint is not None:
        found = status.checkpoint
        yield "checkpoint", f"step {found.step:,}, {ago_of(found.age_s)}, {size(found.bytes)}"
    elif status.step is not None:
        yield "checkpoint", "none yet"


def _evaluated(status: RunStatus) -> Iterator[tuple[str, str]]:
    width = max((len(found.measure) for found in status.evaluations), default=0)
    for index, found in enumerate(status.evaluations):
        text = f"{found.measure:<{width}}  {show_value(found.newest, found.quantity)} (step {found.newest_step:,})"
        if found.num_checkpoints > 1:
            extreme = "max" if found.quantity == "accuracy" else "min"
            best = f"{show_value(found.best, found.quantity)} (step {found.best_step:,})"
            text += f"; {extreme} over {found.num_checkpoints} checkpoints, on the test split: {best}"
        if found.reference is not None:
            text += f"; {found.reference_by}: {show_value(found.reference, found.quantity)}"
        yield "" if index else "evaluation", text
    if status.evaluating:
        yield "evaluating", ", ".join(status.evaluating)
    if status.not_evaluated:
        missing = status.not_evaluated
        yield ("" if status.evaluations else "evaluation"), f"{missing} checkpoint{'s' * (missing > 1)} without any result"


def _where_rows(status: RunStatus) -> Iterator[tuple[str, str]]:
    beat = status.heartbeat
    if "host" not in beat:
        return
    parts = [f"{beat['host']} (process {beat['pid']})" if "pid" in beat else beat["host"]]
    if "slurm_job_id" in beat:
        parts.append(f"Slurm job {beat['slurm_job_id']}")
    if "world_size" in beat and "num_nodes" in beat:
        ranks, nodes = beat["world_size"], beat["num_nodes"]
        parts.append(f"{ranks} rank{'s' * (ranks > 1)} on {nodes} node{'s' * (nodes > 1)}")
    if "started" in beat:
        parts.append(f"launched {ago_of(time.time() - beat['started'])}")
    yield "where", ", ".join(parts)


def tabulate(statuses: Sequence[RunStatus], *, style: Style) -> Iterator[str]:
    """Yield a line a run."""
    header = ["run", "state", "step", "done", "left", "images/s", "MFU", "loss", "newest evaluation", "alerts"]
    rows = [header, *(_cells(status) for status in statuses)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    for line, row in enumerate(rows):
        cells = [
            cell.ljust(width) if i < 2 or i == 8 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        if line:
            status = statuses[line - 1]
            cells[1] = style.paint(cells[1], COLOURS.get(status.state, RED))
        yield "  ".join(cells).rstrip()


def _cells(status: RunStatus) -> list[str]:
    def cell(value: Any, text: str) -> str:
        return "-" if value is None else text

    newest = max(status.evaluations, key=lambda found: found.newest_step, default=None)
    speed = status.speed
    state = status.state
    if state in ("silent", "died") and status.since_s is not None:
        state = f"{state} {duration(status.since_s)}"
    return [
        Path(status.run).name,
        state,
        cell(status.step, f"{status.step}"),
        f"{100 * status.step / status.total_steps:.0f} %" if status.total_steps and status.step is not None else "-",
        cell(status.eta_s, duration(status.eta_s or 0)),
        f"{speed['images_per_s']:.4g}" if "images_per_s" in speed else "-",
        f"{100 * speed['mfu']:.1f} %" if "mfu" in speed else "-",
        finite(status.line, "train/loss", ".4g") if status.line else "-",
        cell(newest, f"{show_value(newest.newest, newest.quantity)} {newest.measure}" if newest else ""),
        str(len(status.warnings) or "-"),
    ]


def sparkline(values: Sequence[float | None], *, style: Style) -> str:
    """Return the values' course in a line of characters: means over equal parts, from the least to the greatest."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        return ""
    count = min(SPARK_WIDTH, len(known))
    edges = [i * len(known) // count for i in range(count + 1)]
    means = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    top = len(style.blocks) - 1
    return "".join(style.blocks[round((mean - low) / (high - low) * top) if high > low else 0] for mean in means)


def ago_of(seconds: float) -> str:
    return f"{duration(seconds)} ago"


def size(num_bytes: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 2**10:.0f} KiB"

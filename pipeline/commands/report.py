"""Show results of runs as a table, a picture, a page, and files for print."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.launch.imports import collector_paused
from pipeline.launch.signals import StopRequest

if TYPE_CHECKING:
    from pipeline.report.run_data import Axis, RunData

EPILOG = (
    "examples:\n  python -m pipeline report runs/demo\n"
    "  python -m pipeline report runs/demo --html\n"
    "  python -m pipeline report runs/l16 runs/b16 runs/h14 --html scaling.html --print figures/\n\n"
    "--html writes one page that needs nothing else: curves by step, images seen or exaFLOPs (several runs over each\n"
    "other), results next to what is to be expected, alerts, training images, and the model's figures where `figures`\n"
    "has drawn them. --print writes each curve as PNG, SVG and PDF, one column wide, and all numbers as CSV and JSON."
)


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("run_dir", nargs="+", metavar="RUN_DIR", help="folders of runs, or of evaluated models")
    command.add_argument(
        "--out",
        metavar="FILE|FOLDER",
        help="picture to write (default: RUN_DIR/report.png), or an existing folder: FOLDER/NAME_OF_THE_RUN.png",
    )
    command.add_argument(
        "--html", nargs="?", const="", metavar="FILE", help="write a page (default: RUN_DIR/report.html of the first run)"
    )
    command.add_argument("--print", metavar="FOLDER", help="write figures for print and the numbers of all curves")
    command.add_argument("--axis", choices=["step", "images", "exaflops"], default="step", help="of --print (default: step)")


def run(arguments: argparse.Namespace, _stop: StopRequest) -> int:
    from pipeline.errors import ConfigError

    paths = [Path(path) for path in arguments.run_dir]
    if len(paths) > 1 and arguments.html is None and arguments.print is None:
        raise ConfigError("several runs are compared in a page or in print: add --html [FILE] or --print FOLDER")
    if arguments.html is None and arguments.print is None:
        return _show(paths[0], arguments.out)
    if arguments.out is not None:
        raise ConfigError("--out is the picture of one run; --html FILE and --print FOLDER name their own places")
    with collector_paused():
        from pipeline.report.run_data import read_runs

    runs = read_runs(paths)
    if arguments.html is not None:
        _write_page(runs, arguments.html)
    if arguments.print is not None:
        _write_print(runs, Path(arguments.print), arguments.axis)
    return 0


def _show(path: Path, out: str | None) -> int:
    from pipeline.errors import ConfigError

    with collector_paused():
        from pipeline.report.report import write_report

    written = write_report(path, Path(out) if out else None)
    print(written.text)
    if written.error is not None:
        raise ConfigError(written.error)
    return 0


def _write_page(runs: list[RunData], name: str) -> None:
    from pipeline.errors import ConfigError
    from pipeline.files import write_whole
    from pipeline.report.page import make_page

    target = Path(name) if name else runs[0].folder.page
    if target.is_dir():
        target = target / f"{runs[0].name.replace('/', '-')}.html"
    data = make_page(runs, samples=_samples_of(runs[0])).encode(errors="replace")
    try:
        write_whole(target, data)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written ({error.strerror or error}); --html FILE puts it elsewhere") from error
    print(f"page: {target} ({len(data) / 1e6:.2g} MB)")


def _samples_of(run: RunData) -> bytes | None:
    """Return a picture of the training images of step 1; None where they cannot be read here, which is said."""
    from pipeline.errors import PipelineError

    if not run.folder.config.exists():
        return None
    with collector_paused():
        from pipeline.build.samples import draw_first_images
        from pipeline.config.read import load_config

    try:
        return draw_first_images(load_config(run.folder.config), count=32)
    except PipelineError as error:
        print(f"no training images in the page: {error}")
        return None


def _write_print(runs: list[RunData], out: Path, axis: Axis) -> None:
    import json

    from pipeline.console.figures import figure_bytes
    from pipeline.errors import ConfigError
    from pipeline.files import write_whole
    from pipeline.report.charts import draw_chart, list_charts
    from pipeline.report.tables import curves_as_csv, curves_as_json

    try:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "curves.csv", curves_as_csv(runs).encode())
        write_whole(out / "curves.json", json.dumps(curves_as_json(runs), indent=1).encode())
        count = 0
        for chart in list_charts(runs):
            figure = draw_chart(chart, runs, axis)
            if figure is not None:
                count += 1
                for format in ("png", "svg", "pdf"):
                    background = "none" if format == "svg" else "white"
                    write_whole(out / f"{chart.name}.{format}", figure_bytes(figure, format, background=background))
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror or error}); name another folder") from error
    print(f"print: {count} figures, curves.csv and curves.json in {out}")

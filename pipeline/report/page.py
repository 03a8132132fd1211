"""Write a report as one HTML page that needs nothing else: no network, any screen, light or dark."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.report.charts import Chart, draw_chart, list_charts, to_inline_svg
from pipeline.report.run_data import AXES, RunData
from pipeline.report.tables import curves_as_csv, curves_as_json
from pipeline.run.evaluations import MeasureResults

MAX_FIGURE_STEPS = 12  # checkpoints with figures in one page: each has some 300 kB
_FIGURES = {
    "filters": "Filters of the patch embedding (principal components)",
    "position_similarity": "Similarity of position embeddings",
    "attention_distance": "Mean attention distance by layer",
    "attention_rollout": "What the output attends to (attention rollout)",
}
_STYLE = """
:root{color-scheme:light dark;--back:#fff;--front:#1a1a1a;--soft:#666;--line:#ddd;--card:#fafafa}
@media(prefers-color-scheme:dark){:root{--back:#15171a;--front:#e6e6e6;--soft:#9a9a9a;--line:#33363b;--card:#1d2024}
.card svg{filter:brightness(1.4)}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1200px;padding:1rem;background:var(--back);color:var(--front);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.5rem;margin:.2rem 0}h2{font-size:1.15rem;margin:2rem 0 .6rem}
h3{font-size:.95rem;margin:.2rem 0;font-weight:600;overflow-wrap:anywhere}
.soft{color:var(--soft)}.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:.7rem;min-width:0}
.facts td{white-space:normal;overflow-wrap:anywhere}.card svg{width:100%;height:auto;display:block}svg text{fill:currentColor}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--back)}
.card th:first-child,.card td:first-child{background:var(--card)}
nav{position:sticky;top:0;background:var(--back);padding:.5rem 0;z-index:1;border-bottom:1px solid var(--line)}
nav label{margin-right:1rem;white-space:nowrap}.problem{border-left:3px solid #D55E00;padding-left:.6rem;overflow-wrap:anywhere}
img{max-width:100%;height:auto;background:#fff;border-radius:4px}input[type=range]{width:100%}
body[data-x=step] .x:not(.x-step),body[data-x=images] .x:not(.x-images),
body[data-x=exaflops] .x:not(.x-exaflops){display:none}
a{color:inherit}
"""
_SCRIPT = """
document.querySelectorAll('input[name=axis]').forEach(function(choice){choice.addEventListener('change',function(){
document.body.dataset.x=choice.value})});
document.querySelectorAll('.slider').forEach(function(box){var range=box.querySelector('input');function show(){
box.querySelectorAll('[data-n]').forEach(function(part){part.hidden=part.dataset.n!==range.value})}
range.addEventListener('input',show);show()});
"""


def make_page(runs: Sequence[RunData], *, samples: bytes | None = None) -> str:
    """Return the page.

    Args:
        samples: a PNG of training images as the first of the runs saw them.
    """
    title = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    charts = list_charts(runs)
    training = [chart for chart in charts if chart.key is not None]
    measured = [chart for chart in charts if chart.measure is not None]
    parts = [
        f"<h1>{_text(title)}</h1>",
        _facts(runs),
        *(f'<p class="problem">{_text(run.name)}: {_text(problem)}</p>' for run in runs for problem in run.problems),
        _axis_choice() if charts else "",
        _section("Accuracy", [_chart(chart, runs) for chart in measured]),
        "" if not measured else f"<h2>Results</h2>{_results(runs)}",
        _section("Training", [_chart(chart, runs) for chart in training]),
        _alerts(runs),
        "" if samples is None else f"<h2>Training images as the model saw them</h2>{_image(samples, 'training images')}",
        *(_model_figures(run) for run in runs),
        _downloads(runs),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body data-x="step">\n'
        + "\n".join(part for part in parts if part)
        + f"\n<script>{_SCRIPT}</script></body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value).encode(errors="replace").decode())


def _section(title: str, cards: Sequence[str]) -> str:
    shown = [card for card in cards if card]
    return f'<h2>{title}</h2><div class="grid">{"".join(shown)}</div>' if shown else ""


def _facts(runs: Sequence[RunData]) -> str:
    cards = []
    for run in runs:
        rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(value)}</td></tr>" for name, value in run.facts.items())
        state = f'<p class="soft">{_text(run.state)}</p>'
        cards.append(f'<div class="card"><h3>{_text(run.name)}</h3>{state}<table class="facts">{rows}</table></div>')
    return f'<div class="grid">{"".join(cards)}</div>'


def _axis_choice() -> str:
    labels = "".join(
        f'<label><input type="radio" name="axis" value="{axis}"{" checked" if axis == "step" else ""}> {label}</label>'
        for axis, label in AXES.items()
    )
    return f"<nav>Curves by: {labels}</nav>"


def _chart(chart: Chart, runs: Sequence[RunData]) -> str:
    """Return a card with the chart on every axis, one of which is shown."""
    views = []
    for axis, label in AXES.items():
        figure = draw_chart(chart, runs, axis)
        inner = (
            '<p class="soft">no run says this</p>'
            if figure is None
            else to_inline_svg(figure, description=_text(f"{chart.title} by {label}"))
        )
        views.append(f'<div class="x x-{axis}">{inner}</div>')
    return f'<div class="card"><h3>{_text(chart.title)}</h3>{"".join(views)}</div>'


def _results(runs: Sequence[RunData]) -> str:
    """Return the newest value of every measure, a column for each run, and what is to be expected."""
    measures = list(dict.fromkeys(results.measure for run in runs for results in run.results))
    by_run = [{results.measure: results for results in run.results} for run in runs]
    has_reference = any(results.reference is not None for found in by_run for results in found.values())
    head = "".join(f"<th>{_text(run.name)}</th>" for run in runs) + ("<th>to expect</th>" if has_reference else "")
    lines = []
    for measure in measures:
        cells = [_newest(found[measure]) if measure in found else "-" for found in by_run]
        reference = next((r.reference for found in by_run if (r := found.get(measure)) and r.reference), None)
        one = next(found[measure] for found in by_run if measure in found)
        if has_reference:
            cells.append("" if reference is None else f"{one.show(reference.value)} ({_text(reference.by)})")
        lines.append(f"<tr><td>{_text(measure)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return (
        f'<div class="scroll"><table><tr><th>of the newest checkpoint</th>{head}</tr>{"".join(lines)}</table></div>'
        '<p class="soft">Mean ± standard deviation over seeds, where there are several. The bands of curves are the range '
        "over seeds.</p>"
    )


def _newest(results: MeasureResults) -> str:
    step = max(results.by_step)
    values = results.by_step[step]
    centre = mean(values)
    shown = results.show(centre)
    if len(values) > 1 and len(set(values)) > 1:
        spread = (sum((value - centre) ** 2 for value in values) / (len(values) - 1)) ** 0.5
        shown = f"{shown} ± {100 * spread:.1f}" if results.quantity == "accuracy" else f"{shown} ± {spread:.3g}"
    return f'<span title="step {step}">{_text(shown)}</span>'


def _alerts(runs: Sequence[RunData]) -> str:
    lines = [
        f"<tr><td>{_text(run.name)}</td><td>{_text(alert.get('step', ''))}</td><td>{_text(alert.get('kind', ''))}</td>"
        f'<td style="text-align:left">{_text(alert.get("text", ""))}</td></tr>'
        for run in runs
        for alert in run.alerts
    ]
    head = "<tr><th>run</th><th>step</th><th>alert</th><th></th></tr>"
    return f'<h2>Alerts</h2><div class="scroll"><table>{head}{"".join(lines)}</table></div>' if lines else ""


def _image(data: bytes, description: str) -> str:
    return f'<img alt="{_text(description)}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'


def _model_figures(run: RunData) -> str:
    """Return the figures of a run's weights with a slider over checkpoints."""
    folders = _spread(sorted(path for path in run.folder.figures.glob("step_*") if path.is_dir()))
    views = []
    for number, folder in enumerate(folders):
        cards = [
            f'<div class="card"><h3>{caption}</h3>{_image(path.read_bytes(), caption)}</div>'
            for name, caption in _FIGURES.items()
            if (path := folder / f"{name}.png").exists()
        ]
        step = folder.name.removeprefix("step_").lstrip("0")
        views.append(
            f'<div data-n="{number}"><p class="soft">step {_text(step)}</p><div class="grid">{"".join(cards)}</div></div>'
        )
    if not views:
        return ""
    last = len(views) - 1
    slider = f'<input type="range" min="0" max="{last}" value="{last}" aria-label="checkpoint"{" hidden" if not last else ""}>'
    return f'<h2>What {_text(run.name)} has learned</h2><div class="slider">{slider}{"".join(views)}</div>'


def _spread(folders: Sequence[Path]) -> list[Path]:
    """Return at most so many: the first, the last, and others at equal distances."""
    if len(folders) <= MAX_FIGURE_STEPS:
        return list(folders)
    return [folders[round(n * (len(folders) - 1) / (MAX_FIGURE_STEPS - 1))] for n in range(MAX_FIGURE_STEPS)]


def _downloads(runs: Sequence[RunData]) -> str:
    def link(name: str, kind: str, text: str) -> str:
        data = base64.b64encode(text.encode()).decode()
        return f'<a download="{name}" href="data:{kind};base64,{data}">{name}</a>'

    values: dict[str, Any] = curves_as_json(runs)
    links = [link("curves.csv", "text/csv", curves_as_csv(runs)), link("curves.json", "application/json", json.dumps(values))]
    return f"<h2>Numbers</h2><p>{' &middot; '.join(links)}</p>"

"""List what can be measured: protocols with their settings, and the suites that come with the software."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from pipeline.config.evaluation import read_suite
from pipeline.errors import ConfigError
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.section import EvaluationSection
from pipeline.evaluation.segmentation import __doc__ as _segmentation
from pipeline.section import members_of

SUITES = Path("configs/suites")
_WIDTH = 110


def describe_suites(folder: Path = SUITES) -> str:
    """Return protocols, settings and suites, as text for a terminal."""
    lines = ["protocols of evaluation.datasets (evaluation.protocols)"]
    for name, section in members_of(Protocol).items():
        lines += _entry(name, (section.__doc__ or "").splitlines()[0])
        for key, field in section.model_fields.items():
            if key != "protocol":
                lines.append(f"      {key}={_short(field.default)}  {field.description or ''}".rstrip())
    lines += ["", "measures of other sets"]
    lines += _entry("upstream", "the objective's loss and accuracy on held-out images of the corpus (evaluation.validation)")
    lines += _entry("segmentation", f"{(_segmentation or '').splitlines()[0]} (evaluation.segmentation)")
    lines += ["", f"suites ({folder}; --suite FILE)"]
    paths = sorted(folder.glob("*.yaml"))
    for path in paths:
        lines += _entry(path.name, _describe(path))
    if not paths:
        lines.append(f"  none: {folder} is not here")
    return "\n".join(lines)


def _entry(name: str, text: str) -> list[str]:
    first, *rest = textwrap.wrap(text, _WIDTH - 30)
    return [f"  {name:<28}{first}", *(f"  {'':<28}{line}" for line in rest)]


def _describe(path: Path) -> str:
    """Return the first sentence of a suite's comment, and its sets."""
    comment = [line.lstrip("# ").rstrip() for line in path.read_text().splitlines() if line.startswith("#")]
    try:
        values = read_suite(path)
    except ConfigError as error:
        return str(error)
    datasets: list[Any] = [*values.get("datasets", []), *values.get("validation", []), *values.get("segmentation", [])]
    names = [str(dataset.get("name")) for dataset in datasets if isinstance(dataset, dict)]
    about = comment[0].rstrip(".") if comment else "no description"
    root = values.get("root", EvaluationSection.model_fields["root"].default)
    below = f" below {getattr(root, 'text', root)}" if root else ""
    return f"{about}. {len(names)} sets{below}: {', '.join(names)}"


def _short(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value).replace(" ", "")

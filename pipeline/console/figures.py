"""Draw figures as files, the same on every machine, whatever a user's matplotlibrc asks for and whatever names hold."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with matplotlib's own settings: a user's may need LaTeX, or a font that is missing. It also works as a decorator."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.filterwarnings("ignore", message="Glyph")  # for scripts that the font lacks; what is printed shows them
        yield


# Okabe and Ito's colours, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/), without yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
COLUMN_INCHES = 3.25  # one column of a two-column paper


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw for print: text of 8 points in a figure one column wide, thin lines, colours that all readers can tell apart."""
    import matplotlib
    from cycler import cycler

    with house_style():
        matplotlib.rcParams.update(
            {
                "axes.linewidth": 0.6,
                "axes.prop_cycle": cycler(color=COLOURS),
                "axes.spines.right": False,
                "axes.spines.top": False,
                "figure.constrained_layout.use": True,
                "figure.figsize": (COLUMN_INCHES, 2.3),
                "font.size": 8,
                "grid.linewidth": 0.4,
                "legend.fontsize": 7,
                "legend.frameon": False,
                "lines.linewidth": 1.2,
                "savefig.dpi": 300,
                "svg.fonttype": "none",  # text stays text, which a page can colour and a reader can search
                "svg.hashsalt": "",  # the same file every time
                "xtick.major.width": 0.6,
                "ytick.major.width": 0.6,
            }
        )
        yield


@paper_style()  # its settings of formats count when a file is written
def figure_bytes(figure: Figure, format: str, *, background: Literal["white", "none"] = "white") -> bytes:
    """Return a figure for print as a file, the same every time: png, svg or pdf."""
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(format)
    figure.savefig(buffer, format=format, metadata=metadata, transparent=background == "none")
    return buffer.getvalue()


def label_of(text: str) -> str:
    """Return a name as matplotlib draws it: no mathematics between dollars, no bytes that are not UTF-8."""
    return text.encode(errors="replace").decode().replace("$", r"\$")

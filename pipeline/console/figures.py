"""Draw figures as files, the same on every machine, whatever a user's matplotlibrc asks for and whatever names hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with matplotlib's own settings: a user's may need LaTeX, or a font that is missing. It also works as a decorator."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        warnings.filterwarnings("ignore", message="Glyph")  # for scripts that the font lacks; what is printed shows them
        yield


def label_of(text: str) -> str:
    """Return a name as matplotlib draws it: no mathematics between dollars, no bytes that are not UTF-8."""
    return text.encode(errors="replace").decode().replace("$", r"\$")

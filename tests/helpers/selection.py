"""Train only what the chosen tests of a module look at: its quick and its slow tests are run apart."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def quick_and_slow(names: Iterable[str], *, quick: Collection[str]) -> list[Any]:
    """Return values of a parameter. Those that are not quick are marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def chosen_names(request: pytest.FixtureRequest) -> list[str]:
    """Return the values of the parameter `name` in those tests of a module that this session runs, each once."""
    found: dict[str, None] = {}
    for item in request.session.items:
        call = getattr(item, "callspec", None)
        if item.path == request.path and call is not None and "name" in call.params:
            found[call.params["name"]] = None
    return list(found)

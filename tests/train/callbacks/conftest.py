"""The callbacks' trainings share a process group."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.one_rank import one_rank


@pytest.fixture(scope="package")
def rank() -> Iterator[None]:
    """Make this process a training's only rank."""
    with one_rank():
        yield

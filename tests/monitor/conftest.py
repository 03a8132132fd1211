"""Give W&B's clients a server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.wandb_server import Serving, serve_wandb


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    with serve_wandb() as serving:
        for name, value in serving.environment.items():
            monkeypatch.setenv(name, value)
        yield serving

"""A real S3 server on loopback with one bucket, reached over a network that can fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.store import FaultProxy, S3Server, bad_network


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the server's folder, with the bucket."""
    root = tmp_path_factory.mktemp("store")
    (root / "bucket").mkdir()
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[S3Server]:
    server = S3Server(root)
    yield server
    server.kill()


@pytest.fixture
def store(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    with bad_network(server, monkeypatch) as proxy:
        yield proxy

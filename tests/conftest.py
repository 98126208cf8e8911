"""Shared by all tests: quiet libraries, no network, results of no test left behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgresServer, postgres_binaries
from tests.rays import Nodes, nodes

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Of one's own: what another process was killed over while compiling would be found broken.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="inductor-"))


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[Nodes]:
    """A Ray cluster on this machine; it takes ten seconds to start, so all tests share it."""
    yield from nodes()


@pytest.fixture(autouse=True)
def _own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the caller's results and settings."""
    monkeypatch.setenv("AUTOTUNE_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("AUTOTUNE_DEVICE", raising=False)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running PostgreSQL server with nothing in it."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'autotune-memory[postgres]'")
    server = PostgresServer(binaries)
    yield server
    server.close()

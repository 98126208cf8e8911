"""Shared by all tests: quiet libraries, no network, results of no test left behind."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Of one's own: what another process was killed over while compiling would be found broken.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="inductor-"))


@pytest.fixture(autouse=True)
def _own_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the caller's results and settings."""
    monkeypatch.setenv("AUTOTUNE_RESULTS", str(tmp_path / "results"))
    monkeypatch.delenv("AUTOTUNE_DEVICE", raising=False)

"""What is held outside of tensors: assumed by capability, or measured and kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.core.context import Device
from autotune.core.units import GIB, MIB
from autotune.memory import measure_outside, outside
from autotune.memory.outside import (
    CONTEXT_BYTES,
    CONTEXT_SPREAD,
    KERNELS_BYTES,
    LARGE_WORKSPACE,
    MEASURED_SPREAD,
    MULTIPLYING_THREADS,
    WORKSPACE,
    assumed,
    outside_of,
    remember,
)
from autotune.runners.device_table import DEVICES, find_device

CARD = Device(kind="cuda", name="Some Card", total_bytes=16 * GIB, capability=(8, 0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(outside.CACHE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cpu_has_a_heap_and_no_workspaces() -> None:
    found = outside_of(Device(kind="cpu"))
    assert found.workspace_bytes == 0
    assert found.prior.fixed_bytes == found.fixed_bytes < 64 * MIB


@pytest.mark.parametrize("name", DEVICES)
def test_every_known_device_has_a_context_that_is_said_to_be_assumed(name: str) -> None:
    found = outside_of(find_device(name))
    assert 256 * MIB < found.fixed_bytes < GIB
    assert found.spread == CONTEXT_SPREAD
    assert found.source.startswith("assumed")


def test_reports_are_used_where_there_are_some() -> None:
    assert assumed((8, 6)).fixed_bytes == 256 * MIB + KERNELS_BYTES
    assert "RTX 3090" in assumed((8, 6)).source
    assert assumed((7, 5)).fixed_bytes == assumed(None).fixed_bytes == CONTEXT_BYTES


def test_workspaces_are_larger_from_hopper_on() -> None:
    assert assumed((8, 9)).workspace_bytes == MULTIPLYING_THREADS * WORKSPACE
    assert assumed((9, 0)).workspace_bytes == MULTIPLYING_THREADS * LARGE_WORKSPACE
    assert assumed((12, 0)).workspace_bytes == MULTIPLYING_THREADS * LARGE_WORKSPACE


def test_what_was_measured_is_used_for_this_device_and_this_torch(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = remember(CARD, 600 * MIB, 16 * MIB)
    assert path == cache / "devices.json"
    found = outside_of(CARD)
    assert (found.fixed_bytes, found.workspace_bytes) == (600 * MIB, 16 * MIB)
    assert found.spread == MEASURED_SPREAD < CONTEXT_SPREAD
    other = Device(kind="cuda", name="Other Card", capability=(9, 0))
    assert outside_of(other) == assumed((9, 0))
    remember(other, 700 * MIB, 64 * MIB)
    assert outside_of(CARD) == found, "one does not overwrite the other"
    monkeypatch.setattr(outside, "version", lambda name: "9.9")
    assert outside_of(CARD) == assumed((8, 0)), "another build brings other kernels"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', '{"a": {"x": 1}}'])
def test_a_broken_file_is_as_none(cache: Path, text: str) -> None:
    cache.mkdir()
    (cache / "devices.json").write_text(text)
    assert outside_of(CARD) == assumed((8, 0))
    remember(CARD, GIB, 0)
    assert outside_of(CARD).fixed_bytes == GIB


def test_the_cache_is_where_the_platform_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(outside.CACHE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert remember(CARD, GIB, 0) == tmp_path / "xdg" / "autotune" / "devices.json"


def test_the_step_that_is_measured_trains_on_any_device() -> None:
    import torch

    measure_outside.small_step(torch.device("cpu"))

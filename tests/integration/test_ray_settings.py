"""What is typed of a cluster and cannot be done is said before anything starts."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from autotune.cluster import remote_runner
from autotune.core.errors import AutotuneError, BadValue, UnknownName, UsageError
from autotune.plan import Settings
from autotune.runners.ray_cluster import Cluster
from tests.rays import ENVIRONMENT, Nodes, needs_ray

pytestmark = needs_ray


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"runner": "rya"}, UnknownName, "unknown runner 'rya'"),
        ({"engine": "tnue"}, UnknownName, "unknown engine 'tnue'"),
        ({"engine": "tune:ahsa"}, UnknownName, "unknown scheduler 'ahsa'"),
        ({"engine": "autotune:asha"}, BadValue, "has no scheduler"),
        ({"address": "auto"}, BadValue, "trials run on this machine"),
        ({"runner": "ray", "jobs": 0}, BadValue, "at least 1"),
        ({"runner": "ray", "device": "cuda:1"}, BadValue, "one of a single machine"),
        ({"runner": "ray", "device": "cuda"}, UsageError, "can run trials on cuda"),
        ({"runner": "ray", "budget": "99TB"}, BadValue, "more than cpu has"),
    ],
)
def test_bad_settings_are_said(
    ray_nodes: Nodes, change: dict[str, Any], error: type[AutotuneError], match: str
) -> None:
    with pytest.raises(error, match=match) as caught:
        remote_runner(replace(Settings(budget="500MB"), **change))
    assert caught.value.exit_status == 2


def test_a_cluster_that_is_not_there_is_said() -> None:
    program = (
        "from autotune.__main__ import main; import sys; "
        "sys.exit(main(['run', '--budget', '1GB', '--runner', 'ray', '--address', '127.0.0.1:9']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **ENVIRONMENT},
    )
    assert done.returncode == 2, done.stderr
    assert "there is no Ray cluster at '127.0.0.1:9'" in done.stderr


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="ray, which runs trials on a cluster") as caught:
        Cluster()
    assert caught.value.help == "pip install 'autotune-memory[ray]'"

"""A real Ray cluster for tests: a head that stays, and nodes that come and are killed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest

from autotune.runners.ray import RayRunner
from autotune.runners.ray_cluster import Cluster

GIB = 2**30
STORE = 80 * 2**20
"""The least that Ray takes for an object store."""

HEAD_CPUS = 4
HEAD_MEMORY = 12 * GIB

ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None,
    reason="ray is not installed: pip install 'autotune-memory[ray]'",
)


class Nodes:
    """A cluster on this machine, which this process is connected to."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster as Simulated

        self._cluster = Simulated(initialize_head=True, head_node_args=node(HEAD_CPUS, HEAD_MEMORY))
        self.address = self._cluster.address
        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")

    def add(self, cpus: int, memory: int) -> Any:
        """Start a node."""
        return self._cluster.add_node(wait=True, **node(cpus, memory))

    def kill(self, one: Any) -> None:
        """Kill a node without warning, as a power cut does."""
        self._cluster.remove_node(one, allow_graceful=False)

    def close(self) -> None:
        """End everything."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()


def node(cpus: int, memory: int) -> dict[str, Any]:
    """What a node offers."""
    return {
        "num_cpus": cpus,
        "num_gpus": 0,
        "memory": memory,
        "object_store_memory": STORE,
        "include_dashboard": False,
    }


def nodes() -> Iterator[Nodes]:
    """A cluster that is there as long as it is iterated over."""
    os.environ.update(ENVIRONMENT)
    found = Nodes()
    yield found
    found.close()


def ray_runner(*, slots: int, limit_bytes: int = 2 * GIB, **more: Any) -> RayRunner:
    """A runner on the cluster that this process is connected to."""
    return RayRunner(Cluster(kind="cpu"), limit_bytes=limit_bytes, jobs=slots, **more)

"""The nodes of a Ray cluster, and an agent on each.

What a node offers is what Ray says of it: its CPUs, its accelerators and, for trials on a CPU, its
`memory`. A run takes its nodes whole, so that trials of two runs never share cores.

Agents are never asked a second time by Ray itself: a trial that Ray repeated would be invisible to
the study. An agent that is lost is forgotten; its node gets a new one if it is still there.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from autotune.core.errors import AutotuneError, BadValue, MissingLibrary, UsageError
from autotune.runners.ray_agent import Agent, Home
from autotune.runners.ray_room import Node, Place, Post, seats_of

START_SECONDS = 120.0
"""How long the first agents may take; later ones are used once they are there."""

LOOK_SECONDS = 5.0
"""How often it is looked for nodes that came or that have no agent."""

OBJECT_STORE_BYTES = 100 * 2**20
"""For a Ray of one's own: events are small, and Ray's default is a third of the memory."""

_SETTINGS = {
    "RAY_worker_niceness": "0",  # or trials would be slower than the same ones without Ray
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
_ROOM_FOR_CALLS = 4
_KNOCK_SECONDS = 10.0
_MOST_FAILURES = 3
"""Agents that may fail to start on a node before it is left alone."""


class Cluster:
    """The agents of a Ray cluster.

    Args:
        address: Of the cluster: `auto` for the one that runs on this machine, or `host:port`. None
            for the one that `RAY_ADDRESS` names, or else one of its own on this machine.
        kind: `"cpu"` or `"cuda"`; None for accelerators where there are any.
        preload: Further modules for warm parents to import.

    Attributes:
        posts: Agents that have said what they have.
        home: How this process is set up; workers are set up alike.

    Raises:
        MissingLibrary: If ray is not installed.
        UsageError: If there is no cluster at that address, or nothing in it that can be used.
    """

    def __init__(
        self, address: str | None = None, kind: str | None = None, preload: tuple[str, ...] = ()
    ) -> None:
        self.posts: list[Post] = []
        self._kind = _checked(kind)
        self.home = Home.of_driver(preload)
        self._seats_of: int | None = None
        self._coming: list[Post] = []
        self._failed: Counter[str] = Counter()
        self._looked = 0.0
        self._started_ray = _connect(address)
        try:
            self._gather()
        except BaseException:
            self.close()
            raise

    @property
    def places(self) -> list[Place]:
        """Every device that is there; those of a node stand together."""
        return [place for post in self.posts for place in post.places]

    def seat(self, limit_bytes: int) -> None:
        """Say how much a trial needs, from which follows how many a device is meant for.

        As on one machine: one for each accelerator, and on a CPU as many as memory and cores allow.
        """
        self._seats_of = limit_bytes
        for place in self.places:
            place.seats = seats_of(place.device, limit_bytes)

    def refresh(self) -> None:
        """Take in agents that have come, and start some on nodes that have none."""
        import ray

        for post in list(self._coming):
            if ray.wait([post.greeting], timeout=0)[0]:
                self._coming.remove(post)
                self._receive(post)
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        known = {post.node.id for post in (*self.posts, *self._coming)}
        nodes = {node.id: node for node in _nodes(self._kind)}
        self._coming = [post for post in self._coming if post.node.id in nodes]
        for name, node in nodes.items():
            if name not in known and self._failed[name] < _MOST_FAILURES:
                self._coming.append(self._start(node))

    def forget(self, post: Post) -> None:
        """Give an agent up, and end what may be left of it."""
        import ray

        if post in self.posts:
            self.posts.remove(post)
            ray.kill(post.actor, no_restart=True)
        self._looked = 0.0

    def release(self) -> None:
        """End every agent, so that what it held is free; `refresh` starts agents again."""
        import ray

        ends = [post.actor.close.remote() for post in self.posts]
        if ends:
            ray.wait(ends, num_returns=len(ends), timeout=15)
        for post in (*self.posts, *self._coming):
            ray.kill(post.actor, no_restart=True)
        self.posts, self._coming, self._looked = [], [], 0.0

    def close(self) -> None:
        """End every agent and, if it was started for this, Ray."""
        import ray

        if ray.is_initialized():
            self.release()
            if self._started_ray:
                ray.shutdown()

    def _gather(self) -> None:
        """Start an agent on each node, and wait for those that come soon."""
        import ray

        nodes = _nodes(self._kind)
        if self._kind is None:
            with_gpus = [node for node in nodes if node.gpus]
            self._kind = "cuda" if with_gpus else "cpu"
            nodes = with_gpus or nodes
        self._coming = [self._start(node) for node in nodes]
        greetings = [post.greeting for post in self._coming]
        if greetings:
            ray.wait(greetings, num_returns=len(greetings), timeout=START_SECONDS)
        failures: list[str] = []
        for post in list(self._coming):
            if ray.wait([post.greeting], timeout=0)[0]:
                self._coming.remove(post)
                failures += self._receive(post)
        self._looked = time.monotonic()
        if not self.places:
            raise UsageError(
                f"no node of the Ray cluster can run trials on {self._kind}",
                context=failures or _taken(nodes),
                help="autotune must be installed on every node, in the same version; "
                "`ray status` shows what is free",
            )

    def _start(self, node: Node) -> Post:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor: Any = (
            ray.remote(Agent)
            .options(
                num_cpus=node.cpus,
                num_gpus=node.gpus if self._kind == "cuda" else 0,
                max_restarts=0,
                max_task_retries=0,
                max_concurrency=4 * max(1, node.cpus) + _ROOM_FOR_CALLS,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
            )
            .remote(self.home)
        )
        return Post(node=node, actor=actor, greeting=actor.greet.remote(node.cpus, node.memory))

    def _receive(self, post: Post) -> list[str]:
        """Take in an agent that has come; return why it cannot be used, if so."""
        import ray

        try:
            found, devices = ray.get(post.greeting)
        except ray.exceptions.RayError as error:
            self._failed[post.node.id] += 1
            return [f"{post.node.host}: {first_line(error)}"]
        fitting = [device for device in devices if device.kind == self._kind]
        if found != version("autotune-memory") or not fitting:
            self._failed[post.node.id] = _MOST_FAILURES
            ray.kill(post.actor, no_restart=True)
            which = f"has autotune-memory {found}" if fitting else f"has no {self._kind} device"
            return [f"{post.node.host}: {which}"]
        post.places = [
            Place(post=post, device=device, seats=seats_of(device, self._seats_of))
            for device in fitting
        ]
        self.posts.append(post)
        return []


def first_line(error: BaseException) -> str:
    """Return what Ray says of an error that is of use: its last line that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _checked(kind: str | None) -> str | None:
    if kind not in (None, "cpu", "cuda"):
        raise BadValue(
            f"device '{kind}' is one of a single machine",
            where="--device",
            help="on a cluster write --device cuda or --device cpu",
        )
    return kind


def _nodes(kind: str | None) -> list[Node]:
    import ray

    found = []
    for node in ray.nodes():
        offered = node.get("Resources", {})
        gpus = int(offered.get("GPU", 0))
        if node["Alive"] and offered.get("CPU", 0) >= 1 and (kind != "cuda" or gpus):
            found.append(
                Node(
                    id=node["NodeID"],
                    host=node["NodeManagerAddress"],
                    cpus=int(offered["CPU"]),
                    gpus=gpus,
                    memory=int(offered.get("memory", sys.maxsize)),
                )
            )
    return found


def _taken(nodes: Sequence[Node]) -> list[str]:
    if not nodes:
        return ["it has no node with a CPU or accelerator to offer"]
    return [f"{n.host}: its {n.cpus} CPUs were not free for {START_SECONDS:.0f} s" for n in nodes]


def _connect(address: str | None) -> bool:
    """Connect to Ray; return whether that has to be undone."""
    try:
        import ray
    except ImportError as error:
        raise MissingLibrary(
            "ray, which runs trials on a cluster, is not installed",
            help="pip install 'autotune-memory[ray]'",
        ) from error
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None and not os.environ.get("RAY_ADDRESS"):
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            **quiet,
        )
        return True
    where = address or os.environ["RAY_ADDRESS"]
    try:
        _knock(where)
        ray.init(address=where, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"there is no Ray cluster at '{where}': {first_line(error)}",
            where="--address",
            help="ray start --head   starts one here; without --address one is started for the run",
        ) from error
    return True


def _knock(address: str) -> None:
    """See whether anybody answers at `host:port`; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" in address:
        raise BadValue(
            f"'{address}' is the address of a Ray client, which cannot stream events",
            where="--address",
            help="run on a node of the cluster: ray job submit -- autotune run --runner ray",
        )
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


def gone() -> AutotuneError:
    """Return the error for a cluster that has lost every node."""
    return AutotuneError(
        "every node of the Ray cluster is gone",
        help="start nodes again, then `autotune resume` repeats what was running",
    )

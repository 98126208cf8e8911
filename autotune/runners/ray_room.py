"""What the nodes of a cluster offer, and what of it trials have.

Memory is given out by the byte and per device: a trial takes its limit of one device as long as it
runs, so that several small trials share a large device and none of them can use what was promised
to another; each limit is enforced where the trial runs. A trial of several ranks takes it once for
each rank: of the one CPU of a node, or of as many accelerators side by side. Where no node has that
much free, ranks are spread over several, on each of them side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from autotune.core.context import Device
from autotune.trial.layouts.seat import ranks_of
from autotune.trial.spec import TrialSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine of the cluster, as Ray knows it.

    Attributes:
        id: Ray's name for it.
        host: Its address.
        cpus: CPUs that it offers.
        gpus: Accelerators that it offers.
        memory: Bytes that it offers.
    """

    id: str
    host: str
    cpus: int
    gpus: int
    memory: int


@dataclass(slots=True, eq=False, kw_only=True)
class Place:
    """A device of a node, and what trials have of it.

    Attributes:
        post: The agent.
        device: The device, as its trials see it.
        seats: Trials that it is meant for at a time.
        taken: Bytes that each running trial may use, by ticket.
    """

    post: Post
    device: Device
    seats: int = 1
    taken: dict[int, int] = field(default_factory=dict)

    @property
    def free_bytes(self) -> int:
        """Memory that is promised to nobody."""
        return self.device.total_bytes - sum(self.taken.values())

    @property
    def load(self) -> float:
        """How full it would be with one trial more."""
        return (len(self.taken) + 1) / max(1, self.seats)


@dataclass(slots=True, eq=False, kw_only=True)
class Post:
    """An agent at its node.

    Attributes:
        node: The node.
        actor: Ray's handle.
        greeting: Ray's promise of the agent's devices.
        places: Devices, once the agent has said which.
    """

    node: Node
    actor: Any
    greeting: Any
    places: list[Place] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Room:
    """Devices that a trial can have, how many ranks are on each, and the bytes that each takes."""

    places: tuple[Place, ...]
    ranks: tuple[int, ...]
    limit_bytes: int

    @property
    def bytes(self) -> tuple[int, ...]:
        """What a trial takes of each device."""
        return tuple(ranks * self.limit_bytes for ranks in self.ranks)

    @property
    def free(self) -> bool:
        """Whether that much of each is promised to nobody."""
        taken = zip(self.places, self.bytes, strict=True)
        return all(place.free_bytes >= size for place, size in taken)

    @property
    def load(self) -> float:
        """How full the fullest of them would be."""
        return max(place.load for place in self.places)

    @property
    def nodes(self) -> list[tuple[Place, int]]:
        """The first device on each node, and how many ranks are on that node."""
        found: dict[int, tuple[Place, int]] = {}
        for place, ranks in zip(self.places, self.ranks, strict=True):
            first, more = found.get(id(place.post), (place, 0))
            found[id(place.post)] = (first, more + ranks)
        return list(found.values())


def rooms(spec: TrialSpec, places: Iterable[Place]) -> list[Room]:
    """Return every room on one node that is large enough for a trial, whether it is free or not."""
    ranks, found = ranks_of(spec), []
    for place in places:
        if place.device.kind == "cpu":
            room = Room((place,), (ranks,), spec.limit_bytes)
        else:
            first = place.device.index
            wanted = range(first, first + ranks)
            beside = [p for p in place.post.places if p.device.index in wanted]
            room = Room(tuple(beside), (1,) * len(beside), spec.limit_bytes)
            if len(beside) < ranks:
                continue
        sizes = zip(room.places, room.bytes, strict=True)
        if all(p.device.total_bytes >= size for p, size in sizes):
            found.append(room)
    return found


def spread(spec: TrialSpec, places: Iterable[Place], *, empty: bool = False) -> Room | None:
    """Return room on several nodes together, on as few as possible; None if there is none.

    Args:
        spec: The trial; one of a single rank cannot be spread.
        places: Devices.
        empty: Whether what other trials have now is taken to be free.
    """
    left = ranks_of(spec)
    posts: dict[int, list[tuple[Place, int]]] = {}
    for place in places:
        size = place.device.total_bytes if empty else place.free_bytes
        posts.setdefault(id(place.post), []).append((place, size // spec.limit_bytes))
    offers = sorted(map(_side_by_side, posts.values()), key=lambda offer: -sum(n for _, n in offer))
    taken: list[tuple[Place, int]] = []
    for place, most in itertools.chain.from_iterable(offers):
        if (ranks := min(most, left)) > 0:
            taken.append((place, ranks))
            left -= ranks
    if left or len(taken) < 2:
        return None
    return Room(tuple(p for p, _ in taken), tuple(n for _, n in taken), spec.limit_bytes)


def _side_by_side(offered: Sequence[tuple[Place, int]]) -> list[tuple[Place, int]]:
    """Return what a node offers to one part of a trial: its CPU, or cards in a row, one rank each.

    Args:
        offered: Devices, and how many ranks find room on each.
    """
    if offered[0][0].device.kind == "cpu":
        return list(offered)
    longest: list[tuple[Place, int]] = []
    row: list[tuple[Place, int]] = []
    for place, most in sorted(offered, key=lambda offer: offer[0].device.index):
        if not most or (row and place.device.index != row[-1][0].device.index + 1):
            row = []
        if most:
            row = [*row, (place, 1)]
        longest = max(longest, row, key=len)
    return longest


def slots_of(places: Sequence[Place], count: int | None) -> list[Place]:
    """Return a place for each trial that runs at a time, as evenly as seats allow.

    Args:
        places: Every place.
        count: How many; None for as many as there are seats.
    """
    seated = [place for place in places if place.seats]
    wanted = sum(place.seats for place in seated) if count is None else count
    taken = dict.fromkeys(seated, 0)
    for _ in range(wanted if seated else 0):
        best = min(seated, key=lambda place: (taken[place] + 1) / place.seats)
        taken[best] += 1
    return [place for place in seated for _ in range(taken[place])]


def seats_of(device: Device, limit_bytes: int | None) -> int:
    """Return how many trials a device is meant for; none, if it is too small for any."""
    if device.kind != "cpu" or not limit_bytes:
        return 1 if device.total_bytes >= (limit_bytes or 0) else 0
    return min(device.cores, device.total_bytes // limit_bytes)

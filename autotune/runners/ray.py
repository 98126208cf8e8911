"""Trials on a Ray cluster: the same children under the same limits, on every node at once.

Ray starts an agent on each node and carries events; it decides nothing. The driver alone asks,
tells and writes, so that a search is the same search wherever its trials run. A trial goes to a
device that has its limit free, one of several ranks to several nodes if none has room for all of
them; if a node of its is lost, it is repeated elsewhere, at most `repeats` times, and an event says
so. Events carry the attempt and their place in it: one that is delivered twice, or late by a node
that was given up, is dropped.

`import ray` happens where it is used, since nothing else needs it.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from autotune.core.context import Device
from autotune.core.errors import DataError, ModelError, error_from_json
from autotune.core.outcome import Crashed, Outcome, Stopped, outcome_from_json
from autotune.core.units import format_gib
from autotune.core.workload import Workload, WorkloadFacts
from autotune.runners.ray_attempt import Attempt, Branch
from autotune.runners.ray_cluster import Cluster, first_line, gone
from autotune.runners.ray_room import Place, Post, Room, rooms, slots_of, spread
from autotune.trial.layouts.seat import ranks_of
from autotune.trial.spec import Event, TrialSpec

REPEATS = 2
"""How often a trial is repeated whose node was lost."""

WAIT_SECONDS = 300.0
"""How long a cluster without any node is waited for."""

_LISTEN_SECONDS = 1.0


class RayRunner:
    """Runs trials on the nodes of a cluster.

    Args:
        cluster: The cluster; closed with the runner.
        limit_bytes: What a trial needs, for the number of slots.
        jobs: Most trials at a time; None for one per accelerator, or as memory and cores allow.
        repeats: How often a trial is repeated whose node was lost.

    Attributes:
        name: `"ray"`.
    """

    trains = True
    name = "ray"

    def __init__(
        self,
        cluster: Cluster,
        *,
        limit_bytes: int,
        jobs: int | None = None,
        repeats: int = REPEATS,
    ) -> None:
        cluster.seat(limit_bytes)
        self._cluster = cluster
        self._seen: dict[tuple[str, str], Place] = {}
        self._jobs = jobs
        self._repeats = repeats
        self._tickets = itertools.count()
        self._running: dict[int, Attempt] = {}
        self._waiting: deque[TrialSpec] = deque()
        self._lost: dict[int, int] = {}
        self._ready: deque[Event] = deque()
        self._token = ""
        self._bare_since = 0.0

    @property
    def slots(self) -> int:
        """Most trials at a time; it grows and shrinks with the cluster."""
        return self._jobs or sum(place.seats for place in self._cluster.places)

    @property
    def devices(self) -> tuple[Device, ...]:
        """The device of each slot, the one with the least memory first."""
        slots = slots_of(self._cluster.places, self._jobs)
        return tuple(sorted((slot.device for slot in slots), key=lambda d: d.total_bytes))

    @property
    def threads(self) -> int:
        """CPU threads for a trial, so that no node has more than cores."""
        slots = slots_of(self._cluster.places, self._jobs)
        shares = [
            slot.device.cores // sum(slot.post is other.post for other in slots) for slot in slots
        ]
        return max(1, min(shares))

    def describe(self, workload: Workload, cache: Path) -> WorkloadFacts:
        """Have the objective look at model and data on a node, and see that all nodes have them.

        Raises:
            AutotuneError: What the objective found wrong, or which node misses what.
        """
        import ray

        cache.mkdir(parents=True, exist_ok=True)
        token = cache / "driver"
        token.touch()
        self._token = str(token.absolute())
        while not self._cluster.posts:
            self._cluster.refresh()
            self._wait_for_nodes(_LISTEN_SECONDS)
        first, *others = self._cluster.posts
        answer = ray.get(first.actor.describe.remote(workload, str(cache.absolute())))
        if "error" in answer:
            error = error_from_json(answer["error"])
            if others:
                error.context = (*error.context, f"on node {first.node.host}")
            raise error
        for path, kind in ((workload.model, ModelError), (workload.data, DataError)):
            if path is None or ray.get(first.actor.missing.remote([path])):
                continue  # a hub name, or the objective's own
            for post in others:
                if ray.get(post.actor.missing.remote([path])):
                    raise kind(
                        f"'{path}' is not on node {post.node.host}",
                        help="put it where every node sees it, under the same path",
                    )
        return WorkloadFacts.from_json(answer["facts"])

    def submit(self, spec: TrialSpec) -> None:
        """Start a trial, or let it wait until a device has its limit free."""
        here = replace(
            spec,
            cache=_absolute(spec.cache),
            log=_absolute(spec.log),
            keep=_absolute(spec.keep),
            checkpoint=_absolute(spec.checkpoint),
        )
        self._waiting.append(here)
        self._start_waiting()

    def next(self, timeout: float | None = None) -> Event | None:
        """Return the next event of any trial, or None after `timeout` seconds without one.

        Raises:
            AutotuneError: If every node was lost, and none came within `WAIT_SECONDS`.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while not self._ready and (self._running or self._waiting or not self.slots):
            self._cluster.refresh()
            self._end_failed()
            self._start_waiting()
            left = _LISTEN_SECONDS if until is None else until - time.monotonic()
            if self._ready or left < 0:
                break
            self._listen(min(left, _LISTEN_SECONDS))
        return self._ready.popleft() if self._ready else None

    def cancel(self, trial: int, reason: str) -> None:
        """End a trial, or let one that waits never start; its outcome is `Stopped`."""
        for spec in list(self._waiting):
            if spec.number == trial:
                self._waiting.remove(spec)
                self._end(trial, Stopped(reason=reason))
        for attempt in self._running.values():
            if attempt.spec.number == trial:
                attempt.cancel(reason)

    def now(self) -> float:
        """Return Unix seconds of the driver's machine."""
        return time.time()

    def close(self) -> None:
        """End every trial and agent, and Ray where it was started for this run."""
        self._running.clear()
        self._waiting.clear()
        self._ready.clear()
        self._cluster.close()

    def _start_waiting(self) -> None:
        """Start what finds room; what no node can hold ends with a sentence."""
        places = self._cluster.places
        self._seen |= {(place.post.node.id, place.device.label): place for place in places}
        for spec in list(self._waiting):
            free = [room for room in rooms(spec, places) if room.free]
            room = min(free, key=lambda room: room.load) if free else spread(spec, places)
            if room is not None:
                self._waiting.remove(spec)
                self._start(spec, room)
            elif self._seen and not _holds(self._seen.values(), spec):
                self._waiting.remove(spec)
                most = max(place.device.total_bytes for place in self._seen.values())
                ranks = ranks_of(spec)
                times = f"{ranks} times " if ranks > 1 else ""
                said = (
                    f"its limit of {times}{format_gib(spec.limit_bytes)} fits no node of the "
                    f"cluster, of which the largest device has {format_gib(most)}"
                )
                self._end(spec.number, Crashed(error=said))

    def _start(self, spec: TrialSpec, room: Room) -> None:
        attempt = Attempt.at(room, spec, next(self._tickets))
        for place, size in zip(room.places, room.bytes, strict=True):
            place.taken[attempt.ticket] = size
        self._running[attempt.ticket] = attempt
        attempt.start(attempt.branches[0], self._token)
        where = [place for place, _ in room.nodes]
        node = {
            "node": ", ".join(place.post.node.host for place in where),
            "device": ", ".join(place.device.label for place in where),
        }
        self._ready.append(Event(trial=spec.number, kind="node", data=node, time=self.now()))

    def _listen(self, timeout: float) -> None:
        """Wait until some trial has said something, and take one event of each that has."""
        import ray

        running = {
            branch.stream: (attempt, branch)
            for attempt in self._running.values()
            for branch in attempt.branches
            if branch.runs
        }
        if not running:
            self._wait_for_nodes(timeout)
            return
        said, _ = ray.wait(list(running), num_returns=1, timeout=timeout)
        for stream in said:
            attempt, branch = running[stream]
            if attempt.ticket in self._running and branch.runs:
                self._hear(attempt, branch)

    def _end_failed(self) -> None:
        """End what is left of attempts of which a part has failed."""
        for attempt in self._running.values():
            if attempt.overdue and not attempt.ending:
                attempt.cancel("another of its nodes failed")

    def _wait_for_nodes(self, timeout: float) -> None:
        """Wait for a node that can hold a trial; raise if none has come for too long."""
        places = self._cluster.places
        if any(_holds(places, spec) for spec in self._waiting) or (
            self.slots and not self._waiting
        ):
            self._bare_since = 0.0
            return
        now = time.monotonic()
        self._bare_since = self._bare_since or now
        if now - self._bare_since > WAIT_SECONDS:
            raise gone()
        time.sleep(max(0.0, timeout))

    def _hear(self, attempt: Attempt, branch: Branch) -> None:
        import ray

        try:
            order, event = ray.get(next(branch.stream))
        except ray.exceptions.RayTaskError as error:
            said = Crashed(error=f"its agent failed: {first_line(error)}")
            self._note(attempt, branch, said)
        except (ray.exceptions.RayError, StopIteration) as error:
            self._lose(branch.post, error)
        else:
            self._take(attempt, branch, order, event)

    def _take(self, attempt: Attempt, branch: Branch, order: int, event: Event) -> None:
        """Take an event, unless it was taken before or its attempt is over."""
        if attempt.ticket not in self._running or order <= branch.heard:
            return
        branch.heard = order
        if event.kind == "log":
            path = Path(branch.spec.log)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(event.data["text"])
        elif event.kind == "meeting":
            attempt.gather(event.data["address"], self._token)
        elif event.kind == "outcome":
            self._note(attempt, branch, outcome_from_json(event.data))
        else:
            self._ready.append(event)

    def _lose(self, post: Post, error: BaseException) -> None:
        """Give an agent up and repeat its trials elsewhere, as often as they may be."""
        self._cluster.forget(post)
        for attempt in list(self._running.values()):
            for branch in attempt.branches:
                if branch.post is post and branch.end is None:
                    self._note(attempt, branch, error)

    def _note(self, attempt: Attempt, branch: Branch, how: Outcome | BaseException) -> None:
        """Take note of how a branch ended; when all have, repeat the trial or hand its end out."""
        attempt.end(branch, how)
        if not attempt.over:
            return
        del self._running[attempt.ticket]
        for place in attempt.room.places:
            place.taken.pop(attempt.ticket, None)
        if attempt.lost is None:
            self._end(attempt.spec.number, attempt.outcome)
        else:
            self._repeat(attempt, attempt.lost)

    def _repeat(self, attempt: Attempt, lost: Branch) -> None:
        number = attempt.spec.number
        assert lost.lost is not None
        self._lost[number] = times = self._lost.get(number, 0) + 1
        seconds = time.monotonic() - attempt.began
        where = f"node {lost.post.node.host} was lost ({first_line(lost.lost)})"
        if times > self._repeats:
            said = f"{where}, and the trial was repeated {self._repeats} times already"
            self._end(number, Crashed(error=said, seconds=seconds))
            return
        data = {"note": f"{where}; the trial is repeated", "lost": times, "seconds": seconds}
        self._ready.append(Event(trial=number, kind="repeated", data=data, time=self.now()))
        self._waiting.appendleft(attempt.spec)

    def _end(self, number: int, outcome: Outcome) -> None:
        event = Event(trial=number, kind="outcome", data=outcome.to_json(), time=self.now())
        self._ready.append(event)


def _absolute(path: str) -> str:
    """Return a path as every node can take it; empty if it is."""
    return str(Path(path).absolute()) if path else ""


def _holds(places: Iterable[Place], spec: TrialSpec) -> bool:
    """Whether devices could hold a trial if they were free."""
    known = list(places)
    return bool(rooms(spec, known)) or spread(spec, known, empty=True) is not None

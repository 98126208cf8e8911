"""Trials on this machine: one process group each, slots side by side, every end an outcome.

Single-threaded: `next` waits for the pipes and the ends of all children at once, and looks at the
clock before it looks at messages, so that a trial that talks all the time still meets its limit.
"""

from __future__ import annotations

import signal
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from autotune.core.errors import AutotuneError, error_from_json
from autotune.core.outcome import Crashed, Stopped, TimedOut
from autotune.core.workload import Workload, WorkloadFacts
from autotune.runners.isolated import Child, WarmParent
from autotune.trial.objective import OBJECTIVES
from autotune.trial.spec import Event, TrialSpec


@dataclass(slots=True)
class _Running:
    """A trial whose outcome has not been handed out."""

    spec: TrialSpec
    child: Child
    began: float
    phase: str = ""
    step: int = 0


class LocalRunner:
    """Runs trials in process groups of this machine.

    Args:
        slots: Most trials at a time.
        preload: Further modules for the warm parent to import.
    """

    trains = True

    def __init__(self, slots: int = 1, preload: tuple[str, ...] = ()) -> None:
        self.slots = slots
        objective_modules = {path.partition(":")[0] for path in OBJECTIVES.paths().values()}
        self._parent = WarmParent([*sorted(objective_modules), *preload])
        self._running: dict[int, _Running] = {}
        self._ready: deque[Event] = deque()

    def describe(self, workload: Workload, cache: Path) -> WorkloadFacts:
        """Have the objective look at model and data in a child of its own."""
        log = cache / "describe.log"
        child = self._parent.start(
            {"do": "describe", "workload": workload.to_json(), "cache": str(cache), "log": str(log)}
        )
        try:
            message = child.receive()
        finally:
            child.kill()
        if message is None:
            raise AutotuneError(
                f"{workload.objective} ended while it was being prepared, "
                f"exit code {child.process.exitcode}",
                where=str(log),
                help="its output is in that file; `autotune doctor` checks the machine",
            )
        if message["kind"] == "error":
            raise error_from_json(message["data"])
        return WorkloadFacts.from_json(message["data"])

    def submit(self, spec: TrialSpec) -> None:
        """Fork a child for the trial."""
        child = self._parent.start({"do": "trial", "spec": spec.to_json(), "log": spec.log})
        self._running[spec.number] = _Running(spec, child, time.monotonic())

    def next(self, timeout: float | None = None) -> Event | None:
        """Return the next event of any trial, or None after `timeout` seconds without one."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._ready:
            self._end_overdue()
            if self._ready or not self._running:
                break
            now = time.monotonic()
            if until is not None and now >= until:
                return None
            deadlines = [r.began + r.spec.limit_seconds for r in self._running.values()]
            soonest = min(deadlines if until is None else [*deadlines, until])
            self._collect(max(0.0, soonest - now))
        return self._ready.popleft() if self._ready else None

    def cancel(self, trial: int, reason: str) -> None:
        """Kill a trial; its outcome is `Stopped`."""
        running = self._running.pop(trial, None)
        if running is not None:
            running.child.kill()
            seconds = time.monotonic() - running.began
            self._end(running, Stopped(step=running.step, reason=reason, seconds=seconds))

    def now(self) -> float:
        """Return Unix seconds."""
        return time.time()

    def close(self) -> None:
        """Kill every trial that is left."""
        for running in self._running.values():
            running.child.kill()
        self._running.clear()
        self._ready.clear()

    def _end_overdue(self) -> None:
        for number, running in list(self._running.items()):
            seconds = time.monotonic() - running.began
            if seconds >= running.spec.limit_seconds:
                del self._running[number]
                running.child.kill()
                limit = running.spec.limit_seconds
                outcome = TimedOut(limit_seconds=limit, phase=running.phase, seconds=seconds)
                self._end(running, outcome)

    def _collect(self, timeout: float) -> None:
        """Wait until some child has said something or ended, and take one message of each."""
        pipes = {r.child.connection: n for n, r in self._running.items()}
        for pipe in wait(list(pipes), timeout):
            if isinstance(pipe, Connection):
                self._take(pipes[pipe])

    def _take(self, number: int) -> None:
        running = self._running[number]
        message = running.child.receive()
        if message is None or message["kind"] == "outcome":
            del self._running[number]
            running.child.reap()
        if message is None:
            self._end(running, _crash(running))
            return
        kind, data = message["kind"], message["data"]
        running.phase = data.get("phase", running.phase)
        running.step = data.get("step", running.step) if kind == "step" else running.step
        self._ready.append(Event(trial=number, kind=kind, data=data, time=message["time"]))

    def _end(self, running: _Running, outcome: Stopped | TimedOut | Crashed) -> None:
        event = Event(
            trial=running.spec.number, kind="outcome", data=outcome.to_json(), time=time.time()
        )
        self._ready.append(event)


def _crash(running: _Running) -> Crashed:
    """Say how a child ended that left no outcome."""
    code = running.child.process.exitcode
    seconds = time.monotonic() - running.began
    where = f"in {running.phase or 'start'}, step {running.step}"
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps by the kernel for want of memory" if name == "SIGKILL" else ""
        return Crashed(signal=name, error=f"ended by {name}{hint} {where}", seconds=seconds)
    return Crashed(exit_code=code, error=f"exited with {code} {where}", seconds=seconds)

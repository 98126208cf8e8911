"""What runs on each node of a Ray cluster: an actor that forks trials as `LocalRunner` does.

One agent serves a node. Each trial is a child of its own of the agent's warm parent, under the same
limits as on one machine, so that a trial costs milliseconds to start and ends with the same outcome
wherever it ran. The agent knows nothing of the search; it hands events on as they come.

Ray runs each call in a thread of its own. This module does not import ray: it is a plain class.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from autotune.core.context import Device
from autotune.core.errors import AutotuneError
from autotune.core.workload import Workload
from autotune.runners.devices import cpu_device, detect_devices
from autotune.runners.local import LocalRunner
from autotune.trial.spec import Event, TrialSpec

POLL_SECONDS = 0.1
"""How soon a trial that says nothing hears that it is cancelled."""

LOG_CHARACTERS = 100_000
"""Most of a trial's log that is sent to the driver, from its end."""


VARIABLES = ("OMP_NUM_THREADS",)
"""What Ray sets in its workers, and a trial must have as the driver has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """How the driver's process is set up, for workers to be set up alike.

    Attributes:
        folder: Where the driver works; workers do, too, if their node has that folder.
        imports: The driver's import path, for objectives that are no installed package.
        variables: Environment variables as the driver has them; None stands for unset.
        preload: Further modules for warm parents to import.
    """

    folder: str
    imports: tuple[str, ...]
    variables: Mapping[str, str | None]
    preload: tuple[str, ...] = ()

    @classmethod
    def of_driver(cls, preload: tuple[str, ...] = ()) -> Home:
        """Describe this process."""
        return cls(
            folder=str(Path.cwd()),
            imports=tuple(place for place in sys.path if place),
            variables={name: os.environ.get(name) for name in VARIABLES},
            preload=preload,
        )

    def enter(self) -> None:
        """Set this process up like the driver's, at the usual priority if that is allowed."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        sys.path += [place for place in self.imports if place not in sys.path]
        for name, value in self.variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        with contextlib.suppress(PermissionError):  # a worker that someone else started is nice
            os.setpriority(os.PRIO_PROCESS, 0, 0)


class Agent:
    """Runs the trials of one node.

    Args:
        home: How the driver's process is set up.
    """

    def __init__(self, home: Home) -> None:
        home.enter()
        self._preload = home.preload
        self._forking = threading.Lock()
        self._running: set[int] = set()
        self._cancelled: dict[int, str] = {}
        self._idle = threading.Event()
        LocalRunner(1, home.preload)  # starts the warm parent, which imports meanwhile

    def greet(self, cpus: int, memory: int) -> tuple[str, list[Device]]:
        """Say which autotune this is, and which devices its trials may use.

        Args:
            cpus: CPUs that the node offers to Ray.
            memory: Bytes that it offers.

        Returns:
            The version, and the accelerators that Ray gave to the agent, then the CPU.
        """
        cores = max(1, min(cpus, len(os.sched_getaffinity(0))))
        offered = min(cpu_device().total_bytes, memory)
        devices = [
            replace(
                device,
                cores=cores,
                total_bytes=offered if device.kind == "cpu" else device.total_bytes,
                free_bytes=min(device.free_bytes, offered)
                if device.kind == "cpu"
                else device.free_bytes,
            )
            for device in detect_devices()
        ]
        return version("autotune-memory"), devices

    def missing(self, paths: Sequence[str]) -> list[str]:
        """Return those of the files and folders that this node does not have."""
        return [path for path in paths if not Path(path).exists()]

    def describe(self, workload: Workload, cache: str) -> dict[str, Any]:
        """Have the objective look at model and data.

        Returns:
            Under `"facts"` what it found, or under `"error"` what is wrong, both as JSON objects.
        """
        with self._forking:
            runner = LocalRunner(1, self._preload)
            try:
                return {"facts": runner.describe(workload, Path(cache)).to_json()}
            except AutotuneError as error:
                return {"error": error.to_json()}
            finally:
                runner.close()

    def run(self, ticket: int, spec: TrialSpec, token: str = "") -> Iterator[tuple[int, Event]]:
        """Run a trial and yield what it reports, each event with its place in the order.

        Args:
            ticket: Names this attempt at the trial; `cancel` takes it.
            spec: The trial.
            token: A file of the driver's; if it is not there, the log is sent as an event.
        """
        self._running.add(ticket)
        runner = LocalRunner(1, self._preload)
        order = 0
        try:
            with self._forking:
                runner.submit(spec)
            while True:
                if (reason := self._cancelled.pop(ticket, None)) is not None:
                    runner.cancel(spec.number, reason)
                if (event := runner.next(POLL_SECONDS)) is None:
                    continue
                if event.kind == "outcome":
                    if token and not Path(token).exists():
                        yield order, Event(trial=spec.number, kind="log", data=_log(spec))
                        order += 1
                    yield order, event
                    return
                yield order, event
                order += 1
        finally:
            runner.close()
            self._running.discard(ticket)
            if not self._running:
                self._idle.set()

    def cancel(self, ticket: int, reason: str) -> None:
        """End a trial; its outcome is `Stopped` with this reason."""
        self._cancelled[ticket] = reason

    def close(self, seconds: float = 10.0) -> None:
        """End every trial, and return once none is left, or after so many seconds."""
        self._idle.clear()
        left = list(self._running)
        for ticket in left:
            self._cancelled[ticket] = "closed"
        if left:
            self._idle.wait(seconds)


def _log(spec: TrialSpec) -> dict[str, str]:
    path = Path(spec.log)
    return {"text": path.read_text(errors="replace")[-LOG_CHARACTERS:] if path.exists() else ""}

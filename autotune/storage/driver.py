"""Who drives a run: a process on a host, and whether it is still there.

A process id alone says little: ids are used again, in containers almost at once. So the moment of
the process's birth is kept with it. Of a process on another host only its heartbeat is known.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

LEASE_SECONDS = 60.0
"""A driver on another host counts as gone when its heartbeat is older than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """The process that writes a run.

    Attributes:
        pid: Its process id.
        host: Name of its host.
        born: Unix time at which the process began.
    """

    pid: int
    host: str
    born: float

    @classmethod
    def current(cls) -> Driver:
        """Return this process."""
        return cls(pid=os.getpid(), host=socket.gethostname(), born=_born(os.getpid()) or 0.0)

    def alive(self, heartbeat: float, now: float) -> bool:
        """Whether the process is still at work.

        Args:
            heartbeat: Unix time at which it was last heard of.
            now: Unix time.
        """
        if self.host != socket.gethostname():
            return now - heartbeat < LEASE_SECONDS
        born = _born(self.pid)
        return born is not None and abs(born - self.born) < 2.0


def _born(pid: int) -> float | None:
    """Return when a process of this host began, None if it is gone or only waits to be reaped."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None

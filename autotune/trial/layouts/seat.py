"""Which of a trial's ranks a process is, and where it meets the others."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.trial.spec import TrialSpec

REHEARSED = "fake"
"""In place of an address: collectives that only have shapes, for a rehearsal of one rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Which of a trial's ranks a process is.

    Attributes:
        rank: From 0.
        address: Where ranks find each other: `tcp://host:port`, `file:///path`, or `REHEARSED`.
        patience: Seconds that a rank waits for the others before it gives up.
        host: Address of this machine that other nodes know; empty if all ranks are on it.
        listening: Descriptor of the socket at that address, for the rank that keeps the store.
    """

    rank: int
    address: str
    patience: float = 600.0
    host: str = ""
    listening: int | None = None


def ranks_of(spec: TrialSpec) -> int:
    """Return the number of ranks that a trial has."""
    return int(spec.config.get("layout.ranks", 1))

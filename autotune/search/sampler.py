"""The proposer's contract: ask for a configuration, tell how a trial ended."""

from __future__ import annotations

from typing import Protocol

from autotune.core.config import Config
from autotune.core.record import TrialRecord


class Proposer(Protocol):
    """Proposes configurations from what earlier trials showed.

    A proposal is a function of the seed, the number of the trial and what was told before, and of
    nothing else: a run that was interrupted and resumed proposes what it would have proposed.

    Attributes:
        note: What the search had to give up, as a sentence for the user; empty if nothing.
    """

    note: str

    def ask(self, number: int) -> Config | None:
        """Return a configuration for trial `number` that is legal and was never returned or told.

        Returns:
            The configuration, or None if the space is exhausted.
        """

    def tell(self, record: TrialRecord) -> None:
        """Learn from a trial, whoever proposed it; one without an outcome is running."""

    def remaining(self) -> float | None:
        """Return how much the last proposal was expected to add, as a share of the hypervolume.

        Returns:
            The share; None if this proposer does not know.
        """

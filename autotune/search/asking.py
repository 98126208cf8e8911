"""What every proposer does alike: take the first wish that is legal and new, and keep the books."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Iterator

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.search.neighbours import nearest_new


class Asking(ABC):
    """A `Proposer` but for its wishes and for what it learns.

    Args:
        space: What may be proposed.
        context: What legality is judged by.
        seed: Of the run.

    Attributes:
        note: What the search had to give up, as a sentence; empty if nothing.
    """

    def __init__(self, space: Space, context: Context, seed: int) -> None:
        self.note = ""
        self._space = space
        self._context = context
        self._seed = seed
        self._running: dict[int, Config] = {}
        self._known: set[Config] = set()

    def ask(self, number: int) -> Config | None:
        """Return a legal configuration that is new, or None if the space is exhausted."""
        wish = self._space.baseline()
        for wish in self._wishes(number):
            if self._is_new(wish):
                return self._take(number, wish)
        found = nearest_new(
            wish,
            self._space,
            self._context,
            is_new=self._is_new,
            rng=random.Random(f"{self._seed}/{number}"),
        )
        return None if found is None else self._take(number, found)

    def tell(self, record: TrialRecord) -> None:
        """Learn from a trial, whoever proposed it; one without an outcome counts as running."""
        self._known.add(record.config)
        if record.outcome is None:
            self._running[record.number] = record.config
        else:
            self._running.pop(record.number, None)
            self._learn(record)

    def remaining(self) -> float | None:
        """Return None: what a further proposal promises is not known."""
        return None

    @abstractmethod
    def _wishes(self, number: int) -> Iterator[Config]:
        """Yield what to propose, best first, legal and new or not."""

    @abstractmethod
    def _learn(self, record: TrialRecord) -> None:
        """Keep what a trial that ended teaches."""

    def _take(self, number: int, config: Config) -> Config:
        self._running[number] = config
        self._known.add(config)
        return config

    def _is_new(self, config: Config) -> bool:
        return config not in self._known and self._space.legal(config, self._context)

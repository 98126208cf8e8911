"""What a row says in a table of values that one technique keeps other knobs from having."""

from __future__ import annotations

from dataclasses import dataclass

from autotune.core.context import Context
from autotune.core.domains import Value


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseExclusion:
    """Values of another knob that cannot be had; when that holds is up to the table.

    Attributes:
        knob: Its name.
        allowed: Values that can be had; the first one is neutral.
        because: Half a sentence.
    """

    knob: str
    allowed: tuple[Value, ...]
    because: str

    def meets(self, context: Context) -> bool:
        """Whether a configuration has one of the values."""
        return context.config.get(self.knob, self.allowed[0]) not in self.allowed

    def sentence(self, way_out: str) -> str:
        """Return the reason, and what to do: set the knob, or go another way."""
        return f"{self.because}: set {self.knob} to {self.allowed[0]}, or {way_out}"

"""The budget: how much memory a trial may need, and which of its peaks counts.

What counts is the *footprint*, the strictest peak that a device can report (`core/outcome.py`):
memory of the process on the device by NVML on CUDA, growth of the resident set on a CPU. A part
is kept free as headroom, since the last per cent of a device is not usable in practice.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.core.errors import BadValue
from autotune.core.units import format_gb, format_gib, parse_bytes

DEFAULT_HEADROOM = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Memory that one trial may need on one device.

    Attributes:
        total_bytes: What the user typed.
        headroom: Share of it that is kept free.

    Raises:
        BadValue: If the amount is not positive or the headroom is not in [0, 0.5].
    """

    total_bytes: int
    headroom: float = DEFAULT_HEADROOM

    def __post_init__(self) -> None:
        if self.total_bytes <= 0:
            raise BadValue("a budget must be above 0", help="write it like 16GB")
        if not 0.0 <= self.headroom <= 0.5:
            raise BadValue(f"headroom must be within 0 and 0.5, but got {self.headroom}")

    @classmethod
    def parse(cls, text: str, headroom: float = DEFAULT_HEADROOM) -> Budget:
        """Read `16GB` and the like; see `units.parse_bytes` for the errors."""
        return cls(total_bytes=parse_bytes(text), headroom=headroom)

    @property
    def limit_bytes(self) -> int:
        """What a trial's footprint may reach: the total less the headroom."""
        return int(self.total_bytes * (1.0 - self.headroom))

    def violation(self, footprint_bytes: int) -> float:
        """Return how far a footprint is over the limit, in GiB; at most 0 if it fits."""
        return (footprint_bytes - self.limit_bytes) / 2**30

    def describe(self) -> str:
        """Say both readings: `16.0 GB = 14.90 GiB, 3% headroom kept`."""
        return (
            f"{format_gb(self.total_bytes)} = {format_gib(self.total_bytes)}, "
            f"{self.headroom:.0%} headroom kept"
        )

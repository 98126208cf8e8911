"""How fast devices compute and tell each other: data sheets for cards, assumptions for the rest.

Only ratios matter to the order of layouts, and achieved rates are a share of these that is much the
same for all of them. Numbers are dense peaks without sparsity and one direction of a link.

References:
    NVIDIA data sheets of A10, A30, A40, A100, L4, L40S, H100, H200, B200 and the GeForce cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from autotune.core.context import Device

TERA, GIGA = 1e12, 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a group of like devices can do.

    Attributes:
        flops16: Floating point operations in 16 bits that one device does in a second.
        flops32: Those in 32 bits.
        memory: Bytes that one device reads or writes in a second.
        link: Bytes that a device sends to a neighbour in a second.
        network: Bytes that it sends to a device of another machine in a second.
        latency: Seconds that a message takes beside its bytes.
        node: Devices that are neighbours.
        gathering: Time to gather or to scatter a tensor, as a share of the time to sum it.
        together: Devices that compute at the same time; those of a CPU share its cores.
        source: Where the numbers are from.
    """

    flops16: float
    flops32: float
    memory: float
    link: float
    network: float = 25 * GIGA
    latency: float = 20e-6
    node: int = 8
    gathering: float = 0.5
    together: int = 1 << 20
    source: str = "data sheet"

    def link_of(self, ranks: int) -> float:
        """Return bytes per second between ranks that follow each other in so many."""
        return self.link if ranks <= self.node else self.network

    def sum_seconds(self, size: float, ranks: int, *, stride: int = 1, devices: int = 1) -> float:
        """Return seconds to sum a tensor over ranks, by a ring.

        Args:
            size: Of the tensor, in bytes.
            ranks: That each have one.
            stride: From one of them to the next.
            devices: Ranks in all; those of a CPU that are more than its cores wait for each other.
        """
        moved = 2.0 * size * (ranks - 1) / ranks / self.link_of(ranks * stride)
        return (moved + self.latency * ranks) * max(1.0, devices / self.together)


def _card(tera16: float, tera32: float, memory: float, link: float) -> Rates:
    return Rates(
        flops16=tera16 * TERA, flops32=tera32 * TERA, memory=memory * GIGA, link=link * GIGA
    )


_PCIE4, _PCIE5 = 25.0, 50.0

CARDS: Mapping[str, Rates] = {
    "A10": _card(125, 31.2, 600, _PCIE4),
    "A10G": _card(70, 31.5, 600, _PCIE4),
    "A30": _card(165, 10.3, 933, 100),
    "A40": _card(150, 37.4, 696, 56),
    "A100-40GB": _card(312, 19.5, 1555, 300),
    "A100-80GB": _card(312, 19.5, 2039, 300),
    "B200": _card(2250, 75, 8000, 900),
    "GH200-96GB": _card(989, 67, 4000, 450),
    "H100-80GB": _card(989, 67, 3350, 450),
    "H100-94GB": _card(835, 60, 3900, 300),
    "H200": _card(989, 67, 4800, 450),
    "L4": _card(121, 30.3, 300, _PCIE4),
    "L40S": _card(362, 91.6, 864, _PCIE4),
    "RTX3090": _card(71, 35.6, 936, _PCIE4),
    "RTX4090": _card(165, 82.6, 1008, _PCIE4),
    "RTX5090": _card(210, 104.8, 1792, _PCIE5),
    "RTX6000Ada": _card(182, 91.1, 960, _PCIE4),
}
"""By the names of `runners/device_table.py`."""

UNKNOWN = _card(100, 20, 800, _PCIE4)
"""For a card without a data sheet here: the order of layouts depends on it but little."""


CPU = Rates(
    flops16=100 * GIGA, flops32=100 * GIGA, memory=10 * GIGA, link=1 * GIGA, network=GIGA,
    latency=1e-3, gathering=1.0, source="assumed for processes that share the cores of a CPU",
)  # fmt: skip
"""About what one core computes, and what two processes tell each other over the loopback."""


def rates_of(device: Device) -> Rates:
    """Return the rates of a card by its name, and of a process for a CPU."""
    if device.kind == "cpu":
        return replace(CPU, together=device.cores)
    for name, rates in CARDS.items():
        if device.name.replace(" ", "").lower().startswith(name.lower()):
            return rates
    known = [name for name in CARDS if name.partition("-")[0].lower() in device.name.lower()]
    if known:
        return CARDS[known[0]]
    return replace(UNKNOWN, source="assumed: this card is not in the table")

"""Bytes and seconds: the only place that knows GB from GiB.

A budget of `16GB` is 16·10⁹ bytes (14.90 GiB), the strict reading: what fits it also fits a
"16 GB" card after driver and context. `16GiB` is 16·2³⁰. A bare number is an error that explains
the difference. Memory is shown in GiB everywhere, durations as `0:52` or `1:24:00`.
"""

from __future__ import annotations

import re

from autotune.core.errors import BadValue

KIB, MIB, GIB = 2**10, 2**20, 2**30

_BYTES = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": KIB,
    "mib": MIB,
    "gib": GIB,
    "tib": 2**40,
}
_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Read an amount of memory such as `16GB`, `14.9GiB` or `500 MB`.

    Returns:
        Bytes.

    Raises:
        BadValue: If there is no unit, an unknown one, or the amount is not positive.
    """
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise BadValue(f"'{text}' is not an amount of memory", help="write it like 16GB or 14.9GiB")
    number, unit = float(match[1]), match[2].lower()
    if not unit:
        raise BadValue(
            f"'{text}' has no unit: {number:g}GB is {format_gib(round(number * 10**9))}, "
            f"{number:g}GiB is {format_gb(round(number * GIB))}",
            help=f"write {number:g}GB (the strict reading, as on a card's box) or {number:g}GiB",
        )
    if unit not in _BYTES:
        raise BadValue(
            f"'{match[2]}' in '{text}' is not a unit of memory",
            help="known: B, kB, MB, GB, TB (powers of 1000), KiB, MiB, GiB, TiB (powers of 1024)",
        )
    amount = round(number * _BYTES[unit])
    if amount <= 0:
        raise BadValue(f"'{text}' is no memory at all", help="write an amount above 0, like 16GB")
    return amount


def parse_duration(text: str) -> float:
    """Read a duration such as `90s`, `30m`, `2h` or `1h30m`.

    Returns:
        Seconds.

    Raises:
        BadValue: If it cannot be read, has no unit, or is not positive.
    """
    pieces = re.findall(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
    rest = re.sub(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", "", text).strip()
    if not pieces or rest or any(unit.lower() not in _SECONDS for _, unit in pieces):
        raise BadValue(f"'{text}' is not a duration", help="write it like 90s, 30m, 2h or 1h30m")
    seconds = sum(float(number) * _SECONDS[unit.lower()] for number, unit in pieces)
    if seconds <= 0:
        raise BadValue(f"'{text}' is no time at all", help="write a duration above 0, like 30m")
    return seconds


def format_gib(amount: float, digits: int | None = None) -> str:
    """Show bytes as GiB, with digits enough to tell small amounts apart: `14.90 GiB`.

    Args:
        amount: Bytes.
        digits: Digits after the point; by default 2, or 3 below 1 GiB.
    """
    return f"{gib(amount, digits)} GiB"


def gib(amount: float, digits: int | None = None) -> str:
    """Return the number of `format_gib` without its unit, for tables that name it on top."""
    if digits is None:
        digits = 2 if amount >= GIB else 3
    return f"{amount / GIB:.{digits}f}"


def format_gb(amount: float) -> str:
    """Show bytes as budgets are typed, in powers of 1000: `16.0 GB`, `350 MB`."""
    if amount >= 10**9:
        return f"{amount / 10**9:.1f} GB"
    return f"{amount / 10**6:.0f} MB" if amount >= 10**7 else f"{amount / 10**6:.1f} MB"


def format_duration(seconds: float) -> str:
    """Show seconds as `0:52` (minutes and seconds) or `1:24:00` above an hour."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{whole % 60:02d}"
    return f"{minutes}:{whole % 60:02d}"

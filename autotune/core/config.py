"""A configuration: one value for each knob that is off neutral.

Neutral values are left out, so that two spaces that spell the same configuration differently give
the same fingerprint. Configurations that differ only in EXACT knobs share one `accuracy_key`:
what one of them scores, all of them score. `memory_key` names what decides memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

from autotune.core.domains import Value
from autotune.core.knob import Knob, Numerics


class Config(Mapping[str, Value]):
    """An immutable choice of values, compared and hashed by content.

    Args:
        values: Values by knob name.
        knobs: The knobs they belong to; neutral values among them are dropped.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Value], knobs: Iterable[Knob] = ()) -> None:
        neutral = {knob.name: knob.neutral for knob in knobs}
        kept = {name: values[name] for name in sorted(values)}
        self._values = {n: v for n, v in kept.items() if n not in neutral or v != neutral[n]}

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Config) and self._values == other._values

    def __repr__(self) -> str:
        return f"Config({self._values})"

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name this configuration."""
        return _digest(self._values)

    def complete(self, knobs: Iterable[Knob]) -> dict[str, Value]:
        """Return a value for every knob, neutral ones included."""
        return {knob.name: self._values.get(knob.name, knob.neutral) for knob in knobs}

    def differences(self, knobs: Iterable[Knob]) -> tuple[str, ...]:
        """Return what differs from the baseline, as labels in the order of `knobs`."""
        return tuple(k.show(self._values[k.name]) for k in knobs if k.name in self._values)

    def describe(self, knobs: Iterable[Knob]) -> str:
        """Print the difference from the baseline: `bf16, ckpt full`; `baseline` if none."""
        return ", ".join(self.differences(knobs)) or "baseline"

    def accuracy_key(self, knobs: Iterable[Knob]) -> str:
        """Name what decides accuracy: every knob that is not EXACT."""
        exact = {knob.name for knob in knobs if knob.numerics is Numerics.EXACT}
        return _digest({n: v for n, v in self._values.items() if n not in exact})

    def memory_key(self, workload: str, device: str) -> str:
        """Name what decides memory: the configuration, the workload and the kind of device."""
        return _digest({**self._values, " workload": workload, " device": device})

    def to_json(self) -> dict[str, Value]:
        """Return the values that are off neutral as a JSON object."""
        return dict(self._values)


def _digest(values: Mapping[str, Value]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]

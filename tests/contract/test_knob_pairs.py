"""Every pair of values of two knobs trains, compresses and scores, or is blocked with a sentence.

Of a knob's numbers the least and the greatest are paired; what lies between differs in size alone,
and is tried by itself in `test_knobs.py`. Each pair is tried on one family, which a digest of the
pair chooses, so that all families meet all kinds of pairs; what a value needs to be legal at all
comes with it.
"""

from __future__ import annotations

import itertools
import math
import zlib

import pytest

from autotune.core.domains import Value
from autotune.core.knob import Knob
from tests import tiny_models as tiny
from tests.contract.knob_trial import CHOICES, EXPENSIVE, Trial, reason, with_companions

Choice = tuple[Knob, Value]

pytestmark = pytest.mark.no_cover  # every line is covered by cheaper tests; counting costs 40 %


def _is_paired(knob: Knob, value: Value) -> bool:
    numbers = [v for k, v in CHOICES if k is knob and isinstance(v, int | float)]
    return value not in numbers or value in (min(numbers), max(numbers))


PAIRED = [choice for choice in CHOICES if _is_paired(*choice)]
PAIRS = [
    (a, b)
    for a, b in itertools.combinations(PAIRED, 2)
    if a[0] is not b[0] and not {a[0].name, b[0].name} & EXPENSIVE
]


def _family(*choices: Choice) -> str:
    name = " ".join(f"{knob.name}={value}" for knob, value in choices)
    return tiny.TASKS[zlib.crc32(name.encode()) % len(tiny.TASKS)]


def _together(first: Choice, second: Choice, family: str) -> dict[str, Value]:
    """Both values, and what each of them needs, as far as that does not contradict the other."""
    pair = {first[0].name: first[1], second[0].name: second[1]}
    needed = (with_companions(*first, family) or {}) | (with_companions(*second, family) or {})
    return needed | pair


def _passes(config: dict[str, Value], family: str) -> None:
    trial = Trial(config, family)
    losses = trial.train(2)
    trial.compress()
    assert all(math.isfinite(loss) for loss in (*losses, trial.evaluate())), (config, losses)


@pytest.mark.parametrize("first", PAIRED, ids=lambda c: f"{c[0].name}={c[1]}")
def test_every_pair_of_values_composes_or_is_blocked(first: Choice) -> None:
    failures = []
    for one, other in PAIRS:
        if one != first:
            continue
        family = _family(one, other)
        config = _together(one, other, family)
        said = reason(config, family)
        if said is not None:
            assert len(said.split()) > 5, (config, said)
            continue
        try:
            _passes(config, family)
        except Exception as error:  # noqa: BLE001  every pair that fails is shown
            failures.append(f"{family} {config}: {type(error).__name__}: {error}"[:400])
    assert not failures, "\n".join(failures)


def test_pairs_are_tried_and_not_all_blocked() -> None:
    tried = sum(reason(_together(a, b, f := _family(a, b)), f) is None for a, b in PAIRS)
    assert tried > len(PAIRS) // 4


EXPENSIVE_CHOICES = [c for c in CHOICES if c[0].name in EXPENSIVE and c[1] != "inductor"]


@pytest.mark.parametrize("first", EXPENSIVE_CHOICES, ids=lambda c: f"{c[0].name}={c[1]}")
@pytest.mark.parametrize("name", ["checkpointing", "lora.rank"])
def test_expensive_values_compose_with_what_is_usual(first: Choice, name: str) -> None:
    other = next(c for c in CHOICES if c[0].name == name)
    config = _together(first, other, "llama")
    said = reason(config, "llama")
    if said is not None:
        assert len(said.split()) > 5
        return
    _passes(config, "llama")

"""Screening: refuse the hopeless, admit the doubtful, and rehearse only where memory decides."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from autotune.core.outcome import Refused
from autotune.core.units import GIB
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.search.screen import Screen
from tests.knobs import completed, out_of_memory

LIMIT = 4 * GIB


class Counted:
    """Says what each configuration needs, and counts how often it was asked."""

    def __init__(self, need: dict[str, int]) -> None:
        self.need, self.asked, self.closed = need, 0, False

    def rehearse(self, spec: Any) -> Rehearsal:
        self.asked += 1
        if spec.name not in self.need:
            raise CannotRehearse("an operator cannot be followed without values")
        return Rehearsal(
            peak_bytes=self.need[spec.name], phase="steady", within="backward", operator="mm",
            anatomy={}, peaks={}, parameters=1, trained_parameters=1,
        )  # fmt: skip

    def close(self) -> None:
        self.closed = True


def named(name: str) -> Any:
    return SimpleNamespace(name=name)


NEEDS = {"small": GIB, "doubtful": LIMIT - 64 * 2**20, "large": 8 * GIB}


def test_only_what_is_surely_over_is_refused() -> None:
    screen = Screen(Counted(NEEDS), LIMIT, parameters=GIB)
    looks = {name: screen.look(named(name)) for name in NEEDS}
    refused = {name: screen.refusal(look) for name, look in looks.items()}
    assert refused["small"] is None
    assert refused["doubtful"] is None
    assert looks["doubtful"].interval is not None
    assert looks["doubtful"].interval.high > LIMIT
    assert isinstance(refused["large"], Refused)
    assert LIMIT < refused["large"].least_bytes < refused["large"].needed_bytes < 9 * GIB


def test_nothing_is_rehearsed_where_memory_does_not_decide() -> None:
    rehearser = Counted(NEEDS)
    screen = Screen(rehearser, LIMIT, parameters=1000)
    assert screen.look(named("large")).rehearsal is None
    screen.learn(completed(0, peak=GIB, limit=LIMIT))
    screen.look(named("large"))
    assert rehearser.asked == 0
    screen.learn(completed(1, peak=3 * GIB, limit=LIMIT))
    assert screen.look(named("large")).rehearsed_bytes == 8 * GIB


def test_a_trial_out_of_memory_starts_rehearsing() -> None:
    rehearser = Counted(NEEDS)
    screen = Screen(rehearser, LIMIT)
    screen.learn(out_of_memory(0, needed=2 * LIMIT, limit=LIMIT))
    assert screen.look(named("small")).rehearsal is not None


def test_measurements_move_the_line() -> None:
    screen = Screen(Counted({"middle": 3 * GIB}), LIMIT, parameters=GIB)
    assert screen.refusal(screen.look(named("middle"))) is None
    for number in range(10):  # this device holds half as much again as the rehearsal counts
        record = completed(number, peak=int(1.5 * (1 + number) * GIB / 4), limit=LIMIT)
        screen.learn(replace(record, rehearsed_bytes=(1 + number) * GIB // 4))
    refused = screen.refusal(screen.look(named("middle")))
    assert refused is not None
    assert abs(refused.needed_bytes - 4.5 * GIB) < 0.1 * GIB


def test_what_cannot_be_rehearsed_is_admitted_with_a_note() -> None:
    screen = Screen(Counted({}), LIMIT, parameters=GIB)
    look = screen.look(named("strange"))
    assert "without values" in look.note
    assert screen.refusal(look) is None


def test_closing_closes_the_rehearser() -> None:
    rehearser = Counted(NEEDS)
    Screen(rehearser, LIMIT).close()
    assert rehearser.closed

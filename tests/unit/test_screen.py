"""Screening: refuse the hopeless, admit the doubtful, measure what cannot be rehearsed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.outcome import (
    Completed,
    Crashed,
    Measurement,
    Outcome,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
    Refused,
)
from autotune.core.units import GIB, MIB
from autotune.memory.allocator import LARGE_SEGMENT
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.runners.device_table import find_device
from autotune.search.screen import FIRST_TRIALS, MOST_OUT_OF_MEMORY, PARAMETER_BYTES, Screen
from autotune.trial.spec import TrialSpec
from tests.knobs import completed, out_of_memory
from tests.studies import make_facts

LIMIT = 4 * GIB
CPU = Device(kind="cpu", total_bytes=64 * GIB)


class Counted:
    """Says what each configuration needs, and counts how often it was asked."""

    def __init__(self, need: dict[str, int], events: tuple[tuple[int, int], ...] = ()) -> None:
        self.need, self.events, self.asked, self.closed = need, events, 0, False

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        self.asked += 1
        name = str(spec.config["name"])
        if name not in self.need:
            raise CannotRehearse("an operator cannot be followed without values")
        return Rehearsal(
            peak_bytes=self.need[name], phase="steady", within="backward", operator="mm",
            anatomy={}, peaks={}, parameters=GIB // PARAMETER_BYTES, trained_parameters=1,
            events=self.events if record else (),
        )  # fmt: skip

    def close(self) -> None:
        self.closed = True


class Probed:
    """Ends every probe in the same way."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome, self.specs, self.closed = outcome, list[TrialSpec](), False

    def probe(self, spec: TrialSpec) -> Outcome:
        self.specs.append(spec)
        return self.outcome

    def close(self) -> None:
        self.closed = True


def named(name: str, device: Device = CPU) -> TrialSpec:
    return TrialSpec(
        number=0, config={"name": name}, facts=make_facts(), device=device, threads=1,
        limit_bytes=LIMIT, limit_seconds=60.0, cache="", log="",
    )  # fmt: skip


def measurement(kind: PeakKind = PeakKind.ALLOCATED, **peaks: int) -> Measurement:
    found = tuple(Peak(phase=Phase(phase), kind=kind, bytes=b) for phase, b in peaks.items())
    return Measurement(peaks=found, parameters=GIB // PARAMETER_BYTES)


NEEDS = {"small": GIB, "doubtful": LIMIT - 64 * MIB, "large": 8 * GIB}


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
    assert screen.look(named("large")).count is None
    screen.learn(completed(0, peak=GIB, limit=LIMIT))
    screen.look(named("large"))
    assert rehearser.asked == 0
    screen.learn(completed(1, peak=3 * GIB, limit=LIMIT))
    assert screen.look(named("large")).rehearsed_bytes == 8 * GIB


def test_a_trial_out_of_memory_starts_rehearsing() -> None:
    screen = Screen(Counted(NEEDS), LIMIT)
    screen.learn(out_of_memory(0, needed=2 * LIMIT, limit=LIMIT))
    assert screen.look(named("small")).count is not None


def test_measurements_move_the_line() -> None:
    screen = Screen(Counted({"middle": 3 * GIB}), LIMIT, parameters=GIB)
    assert screen.refusal(screen.look(named("middle"))) is None
    for number in range(10):  # this device holds half as much again as the rehearsal counts
        record = completed(number, peak=int(1.5 * (1 + number) * GIB / 4), limit=LIMIT)
        screen.learn(replace(record, rehearsed_bytes=(1 + number) * GIB // 4))
    refused = screen.refusal(screen.look(named("middle")))
    assert refused is not None
    assert abs(refused.needed_bytes - 4.5 * GIB) < 0.1 * GIB


def test_running_out_of_memory_moves_the_line_upwards_only() -> None:
    screen = Screen(Counted({"middle": 3 * GIB}), LIMIT, parameters=GIB)
    before = screen.look(named("middle")).interval
    failed = replace(out_of_memory(0, needed=2 * GIB, limit=LIMIT), rehearsed_bytes=3 * GIB)
    screen.learn(failed)
    assert screen.look(named("middle")).interval == before, "less than was expected says nothing"
    screen.learn(replace(out_of_memory(1, needed=5 * GIB, limit=LIMIT), rehearsed_bytes=3 * GIB))
    after = screen.look(named("middle")).interval
    assert before is not None
    assert after is not None
    assert after.middle > before.middle + GIB / 2


def test_only_so_much_is_risked_for_learning() -> None:
    over = LIMIT + 64 * MIB
    screen = Screen(Counted({"over": over, "small": GIB}), LIMIT, parameters=GIB)
    for number in range(FIRST_TRIALS):
        assert screen.refusal(screen.look(named("over"))) is None, "the first ones are free"
        screen.learn(out_of_memory(number, needed=LIMIT, limit=LIMIT))
    assert screen.refusal(screen.look(named("over"))) is not None
    assert screen.refusal(screen.look(named("small"))) is None, "it risks nothing"
    for number in range(40):
        screen.learn(completed(10 + number, peak=GIB, limit=LIMIT))
    assert screen.refusal(screen.look(named("over"))) is None, "so many may risk one"
    assert screen.refusal(screen.look(named("over"))) is not None, "and not a second one"


def test_a_failure_counts_in_full_however_unlikely_it_seemed() -> None:
    doubtful = LIMIT - 128 * MIB
    screen = Screen(Counted({"doubtful": doubtful}), LIMIT, parameters=GIB)
    look = screen.look(named("doubtful"))
    assert look.interval is not None
    chance = look.interval.chance_above(LIMIT)
    assert MOST_OUT_OF_MEMORY < chance < 0.5
    enough = math.ceil(chance / MOST_OUT_OF_MEMORY)
    for number in range(FIRST_TRIALS + enough):
        screen.learn(completed(number, peak=GIB, limit=LIMIT))
    assert screen.refusal(look) is None
    screen.learn(out_of_memory(100, needed=LIMIT, limit=LIMIT))
    for number in range(enough):
        screen.learn(completed(200 + number, peak=GIB, limit=LIMIT))
    assert screen.refusal(look) is not None
    for number in range(math.ceil(1 / MOST_OUT_OF_MEMORY)):
        screen.learn(completed(300 + number, peak=GIB, limit=LIMIT))
    assert screen.refusal(look) is None


def test_loading_has_a_line_of_its_own() -> None:
    screen = Screen(Counted({"quick": GIB // 2}), LIMIT, parameters=GIB)
    record = replace(completed(0, limit=LIMIT), rehearsed_bytes=GIB // 2)
    for _ in range(8):  # importance is measured while loading: five times what a step needs
        found = measurement(load=5 * GIB // 2, steady=GIB // 2)
        screen.learn(replace(record, outcome=Completed(measurement=found)))
    interval = screen.look(named("quick")).interval
    assert interval is not None
    assert interval.middle == pytest.approx(5 * GIB / 2, rel=0.1)
    failed = OutOfMemory(phase=Phase.LOAD, needed_bytes=6 * GIB)
    for _ in range(20):
        screen.learn(replace(record, config=Config({"name": "quick"}), outcome=failed))
    assert screen.refusal(screen.look(named("quick"))) is not None


def test_a_configuration_whose_loading_does_not_fit_is_refused() -> None:
    class Loading(Counted):
        def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
            found = super().rehearse(spec, record=record)
            peaks = {"load": found.peak_bytes, "steady": GIB // 2}
            return replace(found, phase="load", peaks=peaks)

    screen = Screen(Loading(NEEDS), LIMIT, parameters=GIB)
    assert screen.refusal(screen.look(named("large"))) is not None
    record = replace(completed(0, limit=LIMIT), config=Config({"name": "small"}))
    for _ in range(8):  # what was counted is held against loading, too
        screen.look(named("small"))
        found = measurement(load=GIB, steady=GIB // 2)
        ended = replace(record, rehearsed_bytes=GIB, outcome=Completed(measurement=found))
        screen.learn(ended)
    interval = screen.look(named("small")).interval
    assert interval is not None
    assert interval.middle == pytest.approx(GIB, rel=0.05)


def test_what_is_counted_on_cuda_is_reserved_memory_under_the_limit_less_the_context() -> None:
    a100, size = find_device("A100-80GB"), 700 * MIB
    # 600 MiB come and go, 700 do not fit into their segment: without a limit both are reserved.
    events = ((1, size), (2, 600 * MIB), (2, -600 * MIB), (3, size), (3, -size), (1, -size))
    needs = {"any": 2 * size}
    screen = Screen(Counted(needs, events), 3 * GIB, parameters=GIB)
    roomy = screen.look(named("any", a100))
    tight = replace(named("any", a100), limit_bytes=2 * size + 600 * MIB)
    squeezed = screen.look(tight)
    assert roomy.count is not None
    assert squeezed.count is not None
    workspaces = roomy.count.outside.workspace_bytes  # in one segment
    assert roomy.count.allocator_bytes == 600 * MIB + LARGE_SEGMENT - workspaces
    assert squeezed.count.fits
    assert squeezed.count.bytes < roomy.count.bytes
    assert squeezed.interval is not None
    expected = squeezed.count.bytes + squeezed.count.outside.fixed_bytes
    assert squeezed.interval.middle == pytest.approx(expected, rel=1e-6)


def test_what_cannot_be_rehearsed_is_admitted_with_a_note_where_nothing_can_measure_it() -> None:
    screen = Screen(Counted({}), LIMIT, parameters=GIB)
    look = screen.look(named("strange"))
    assert "without values" in look.note
    assert screen.refusal(look) is None


@pytest.mark.parametrize(
    ("outcome", "counted", "refused", "said"),
    [
        (Completed(measurement=measurement(steady=GIB)), GIB, False, "a probe measured 1.00 GiB"),
        (Completed(measurement=measurement(steady=5 * GIB)), 5 * GIB, True, "measured 5.00 GiB"),
        (OutOfMemory(needed_bytes=LIMIT), LIMIT + 1, True, "a probe ran out of memory"),
        (Crashed(signal="SIGSEGV"), 0, False, "a probe crashed: SIGSEGV"),
    ],
)
def test_what_cannot_be_rehearsed_is_measured(
    outcome: Outcome, counted: int, refused: bool, said: str
) -> None:
    prober = Probed(outcome)
    screen = Screen(Counted({}), LIMIT, parameters=GIB, prober=prober)
    look = screen.look(named("strange"))
    assert [spec.probe for spec in prober.specs] == [True]
    assert look.rehearsed_bytes == counted
    assert (screen.refusal(look) is not None) == refused
    assert said in look.note


def test_nothing_is_probed_where_memory_does_not_decide() -> None:
    prober = Probed(Completed())
    Screen(Counted({}), LIMIT, prober=prober).look(named("strange"))
    assert not prober.specs


def test_closing_closes_the_rehearser_and_the_prober() -> None:
    rehearser, prober = Counted(NEEDS), Probed(Completed())
    Screen(rehearser, LIMIT, prober=prober).close()
    assert rehearser.closed
    assert prober.closed


def test_the_rehearser_is_asked_for_events_only_on_cuda() -> None:
    asked: list[Any] = []

    class Listening(Counted):
        def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
            asked.append(record)
            return super().rehearse(spec, record=record)

    screen = Screen(Listening(NEEDS, ((1, GIB),)), LIMIT, parameters=GIB)
    screen.look(named("small"))
    screen.look(named("small", find_device("H200")))
    assert asked == [False, True]

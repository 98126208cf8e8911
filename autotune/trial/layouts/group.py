"""The processes of a trial of several ranks: made, watched, and ended together.

The trial's process has only imported modules so far. It forks one process for each rank, passes on
what the first of them reports, and puts together what all of them measured. It does not train
itself. A rank that fails, dies or is heard of no more ends all of them at once: the others would
wait for it until some timeout, minutes later.

Which rank was the cause is told from how they end: one that was killed comes before one that ran
out of memory, and that before those that only lost the connection to it. Where no rank has done a
step for ten times as long as steps take, the one that hangs is the one that waits for no other.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from autotune.core.outcome import (
    Completed,
    Crashed,
    Measurement,
    Outcome,
    OutOfMemory,
    Phase,
    Stopped,
    outcome_from_json,
)
from autotune.trial.layouts.meeting import meeting
from autotune.trial.layouts.seat import Seat, ranks_of
from autotune.trial.spec import TrialSpec

Run = Callable[[TrialSpec, Seat, Callable[[str, dict[str, Any]], None]], Outcome]
"""Runs one rank to its end and returns how it ended; told where events go."""

SILENCE_SECONDS = 8.0
"""A rank that is heard of no more for so long hangs: a thread of its own says that it lives."""

BEAT_SECONDS = 1.0

PATIENCE = 10.0
"""A step may take so many times as long as the slowest one so far, and `SILENCE_SECONDS`."""

FIRST_SECONDS = 120.0
"""How long a step may take before any is known to compare it with."""

COMPARED_STEPS = 3
"""Steps that must be known before others are held against them."""

SETTLE_SECONDS = 1.5
"""How long the others are heard after the first failure, since the cause may speak last."""

_SET_PARENT_DEATH_SIGNAL = 1

_TRAINING = (Phase.FIRST, Phase.STEADY)

_FRAMES = 3  # the innermost ones: further out, the model itself is called by DDP
_WAITING = ("/torch/distributed/", "/torch/autograd/", "/torch/nn/parallel/")

_IN_VAIN = "waits in vain"
_LOST = (
    *("connection reset", "connection closed", "connection refused", "broken pipe", "timed out"),
    _IN_VAIN,
)
"""How collectives say that another rank is gone, and how it is said of a rank that waits for it."""


@dataclass(slots=True)
class _Rank:
    """One process of the trial."""

    number: int
    pid: int
    pipe: Connection
    heard: float
    phase: str = ""
    step: int = 0
    waits: bool = False
    outcome: Outcome | None = None
    ended: bool = False


@dataclass(slots=True)
class _Pace:
    """When the group did its latest step, and how long its slowest one took."""

    latest: float
    steps: int = 0
    slowest: float = 0.0

    def note(self, step: int) -> None:
        """Take note that some rank is at a step."""
        if step > self.steps:
            now = time.monotonic()
            if self.steps:
                self.slowest = max(self.slowest, now - self.latest)
            self.steps, self.latest = step, now

    @property
    def stalls(self) -> bool:
        """Whether the next step is overdue."""
        known = self.steps >= COMPARED_STEPS
        longest = max(SILENCE_SECONDS, PATIENCE * self.slowest) if known else FIRST_SECONDS
        return time.monotonic() - self.latest > longest


def run_group(
    spec: TrialSpec,
    ranks: int,
    run: Run,
    report: Callable[[str, dict[str, Any]], None],
    then: Callable[[], object],
) -> Outcome:
    """Run a trial on several ranks of this machine, or its part of them if others are elsewhere.

    A part that opens the meeting of all ranks reports its address, as a `"meeting"`.

    Args:
        spec: What to do; every rank gets it with a device of its own.
        ranks: How many.
        run: What a rank does.
        report: Told what the first rank reports.
        then: Called once all ranks are forked; threads may be started from then on.

    Returns:
        How the first rank ended, with what all ranks measured; or how the rank that ended the
        trial did.
    """
    began = time.monotonic()
    with meeting(spec, ranks) as seats:
        group = [_fork(own_device(spec, seat.rank), seat, run) for seat in seats]
        then()
        if spec.part is not None and not spec.part.address:
            report("meeting", {"address": seats[0].address})
        try:
            _listen(group, report)
        finally:
            for rank in group:
                _end(rank)
    outcome = _together(group)
    return replace(outcome, seconds=round(time.monotonic() - began, 4))


def own_device(spec: TrialSpec, rank: int) -> TrialSpec:
    """Return the spec for one rank: an accelerator of its own, or a share of the CPU's threads."""
    part = spec.part
    first, count = (part.first, part.count) if part is not None else (0, ranks_of(spec))
    if spec.device.kind == "cpu":
        return replace(spec, threads=max(1, spec.threads // count))
    return replace(spec, device=replace(spec.device, index=spec.device.index + rank - first))


def together(ends: Sequence[Outcome]) -> Outcome:
    """Put the ends of a trial's parts together, as those of ranks are.

    Args:
        ends: Of each part, that with the first rank first.
    """
    cause = min(ends, key=_blame)
    peaks = tuple(peak for end in ends for peak in end.measurement.peaks)
    measured = replace(ends[0].measurement, peaks=peaks)
    return replace(cause, measurement=measured, seconds=max(end.seconds for end in ends))


def _fork(spec: TrialSpec, seat: Seat, run: Run) -> _Rank:
    reading, writing = Pipe(duplex=False)
    pid = os.fork()
    if pid:
        writing.close()
        return _Rank(seat.rank, pid, reading, time.monotonic())
    code = 1
    try:
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        reading.close()
        _rank_main(spec, seat, run, writing)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _rank_main(spec: TrialSpec, seat: Seat, run: Run, pipe: Connection) -> None:
    lock = threading.Lock()

    def say(kind: str, data: dict[str, Any]) -> None:
        with lock, contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(json.dumps({"kind": kind, "data": data}).encode())

    def live() -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            say("alive", {"waits": _waits(main)})

    main = threading.get_ident()
    threading.Thread(target=live, daemon=True).start()
    say("outcome", run(spec, seat, say).to_json())


def _listen(group: Sequence[_Rank], report: Callable[[str, dict[str, Any]], None]) -> None:
    """Hear all ranks until each has an outcome, or until one of them has failed."""
    until: float | None = None
    pace = _Pace(time.monotonic())
    while True:
        open_pipes = {rank.pipe: rank for rank in group if not rank.ended}
        now = time.monotonic()
        if not open_pipes or (until is not None and now >= until):
            return
        for pipe in wait(list(open_pipes), BEAT_SECONDS / 2):
            assert isinstance(pipe, Connection)
            _take(open_pipes[pipe], report)
        if until is None:
            _end_hanging([rank for rank in group if not rank.ended], pace)
        failed = any(r.ended and not isinstance(r.outcome, Completed) for r in group)
        if failed and until is None:
            until = time.monotonic() + SETTLE_SECONDS


def _take(rank: _Rank, report: Callable[[str, dict[str, Any]], None]) -> None:
    rank.heard = time.monotonic()
    try:
        message = json.loads(rank.pipe.recv_bytes())
    except (EOFError, OSError):
        rank.ended = True
        if rank.outcome is None:
            rank.outcome = _died(rank)
        return
    kind, data = message["kind"], message["data"]
    if kind == "outcome":
        rank.outcome, rank.ended = outcome_from_json(data), True
        return
    rank.waits = data.get("waits", rank.waits)
    rank.phase = data.get("phase", rank.phase)
    rank.step = data.get("step", rank.step)
    if rank.number == 0 and kind != "alive":
        report(kind, data)


def _died(rank: _Rank) -> Crashed:
    """Say how a rank ended that left no outcome."""
    _, status = os.waitpid(rank.pid, 0)
    rank.pid = 0
    code = os.waitstatus_to_exitcode(status)
    where = f"rank {rank.number} in {rank.phase or 'start'}, step {rank.step}"
    if code < 0:
        name = signal.Signals(-code).name
        return Crashed(signal=name, error=f"{where}, ended by {name}", rank=rank.number)
    return Crashed(exit_code=code, error=f"{where}, exited with {code}", rank=rank.number)


def _end_hanging(group: Sequence[_Rank], pace: _Pace) -> None:
    """Take ranks that hang as failed: those that are silent, or the one that others wait for."""
    for rank in group:
        if time.monotonic() - rank.heard > SILENCE_SECONDS:
            rank.outcome, rank.ended = _hangs(rank, "it is silent"), True
    if any(rank.phase in _TRAINING for rank in group):
        pace.note(max(rank.step for rank in group))
        if pace.stalls:
            cause = min(group, key=lambda rank: (rank.waits, rank.step, rank.number))
            seconds = time.monotonic() - pace.latest
            told = f"no rank has done a step for {seconds:.0f} s"
            cause.outcome, cause.ended = _hangs(cause, told), True


def _hangs(rank: _Rank, why: str) -> Crashed:
    where = f"rank {rank.number} in {rank.phase or 'start'}, step {rank.step}"
    how = _IN_VAIN if rank.waits else "hangs"
    return Crashed(error=f"{where}, {how}: {why}", rank=rank.number)


def _waits(thread: int) -> bool:
    """Whether a thread is inside a collective, or the backward pass that waits for some."""
    frame = sys._current_frames().get(thread)
    for _ in range(_FRAMES):
        if frame is None:
            return False
        if any(place in frame.f_code.co_filename for place in _WAITING):
            return True
        frame = frame.f_back
    return False


def _end(rank: _Rank) -> None:
    if rank.pid:
        if not isinstance(rank.outcome, Completed):
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, signal.SIGKILL)
        os.waitpid(rank.pid, 0)
        rank.pid = 0
    rank.pipe.close()


def _together(group: Sequence[_Rank]) -> Outcome:
    """Put the ends of all ranks together: the cause of a failure, or the first rank's success."""
    ends = [(rank, rank.outcome) for rank in group if rank.outcome is not None]
    measured = _measured([(rank.number, outcome.measurement) for rank, outcome in ends])
    rank, outcome = min(ends, key=lambda end: (_blame(end[1]), end[0].number))
    return replace(outcome, measurement=measured, rank=rank.number)


def _blame(outcome: Outcome) -> int:
    """Order outcomes by how likely they are to have caused the others."""
    if isinstance(outcome, Completed):
        return 5
    if isinstance(outcome, Stopped):
        return 4
    if isinstance(outcome, Crashed):
        lost = any(word in outcome.error.lower() for word in _LOST)
        return 3 if lost and outcome.signal is None else (0 if outcome.signal else 2)
    return 1 if isinstance(outcome, OutOfMemory) else 2


def _measured(found: Sequence[tuple[int, Measurement]]) -> Measurement:
    """Return the first rank's measurement with the peaks of all, each with its rank."""
    peaks = tuple(
        replace(peak, rank=rank) for rank, measurement in found for peak in measurement.peaks
    )
    first = dict(found).get(0, Measurement())
    return replace(first, peaks=peaks)

"""The child process: one JSON request in, JSON lines out, one outcome last.

`enter` is the target of every child that `runners/isolated.py` forks from the warm parent. It makes
the child a process group of its own, ends it if the driver dies, and turns whatever happens into
data. The warm parent has only imported modules: no tensor was computed and no device touched.
"""

from __future__ import annotations

import gc
import json
import multiprocessing as mp
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from autotune.core.errors import AutotuneError
from autotune.core.knob import run_stage
from autotune.core.outcome import (
    Completed,
    Crashed,
    Diverged,
    Measurement,
    Outcome,
    OutOfMemory,
    Paused,
    Phase,
)
from autotune.core.workload import Workload
from autotune.trial import cold
from autotune.trial.layouts.group import run_group
from autotune.trial.layouts.seat import Seat, ranks_of
from autotune.trial.spec import TrialSpec

Report = Callable[[str, dict[str, Any]], None]
"""Takes the kind of an event and its data."""

_REPORT_SECONDS = 0.2
_TRACEBACK_CHARACTERS = 20_000


class Channel:
    """Sends events to the driver as JSON, one message each.

    Args:
        connection: The writing end of a pipe.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last_step = 0.0

    def send(self, kind: str, data: dict[str, Any]) -> None:
        """Send an event; steps that follow each other closely are thinned out."""
        now = time.time()
        if kind == "step":
            if now - self._last_step < _REPORT_SECONDS and data["step"] != data["steps"]:
                return
            self._last_step = now
        self._connection.send_bytes(json.dumps({"kind": kind, "data": data, "time": now}).encode())


def enter(request: str, connection: Connection) -> None:
    """Serve one request: `{"do": "describe" | "trial", ...}`. Runs in a child of the warm parent.

    Args:
        request: JSON.
        connection: Where events go.
    """
    os.setsid()
    gc.freeze()  # what was imported lives on; collections need not walk it, nor copy its pages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    message = json.loads(request)
    _redirect_output(message["log"])
    if variables := _variables(message):
        cold.restart(message, connection, variables)
    watcher = threading.Thread(target=_end_with_driver, daemon=True)
    serve(message, connection, watcher.start)


def serve(
    message: dict[str, Any], connection: Connection, watch: Callable[[], object] = int
) -> None:
    """Do what a request asks for, report it, and end the process.

    Args:
        message: The request.
        connection: Where events go.
        watch: Starts the thread that ends this process with the driver; nothing is forked then.
    """
    channel = Channel(connection)
    if message["do"] == "describe":
        watch()
        _describe(message, channel)
    else:
        spec = TrialSpec.from_json(message["spec"])
        if (ranks := ranks_of(spec)) > 1:
            outcome = run_group(spec, ranks, _rank, channel.send, watch)
        else:
            watch()
            outcome = _trial(spec, channel.send)
        channel.send("outcome", outcome.to_json())
    connection.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # nothing of a trial needs the interpreter's slow shutdown


def _describe(message: dict[str, Any], channel: Channel) -> None:
    """Have the objective look at model and data; errors become a message of their own."""
    from autotune.trial.objective import load_objective

    workload = Workload(**message["workload"])
    try:
        objective = load_objective(workload.objective)(workload, Path(message["cache"]))
        channel.send("facts", objective.describe().to_json())
    except AutotuneError as error:
        channel.send("error", error.to_json())
    except Exception as error:  # noqa: BLE001  a plug-in may raise anything; it is shown
        traceback.print_exc()
        failure = AutotuneError(
            f"{workload.objective} could not be prepared: {type(error).__name__}: {error}",
            where=message["log"],
            help="the whole traceback is in that file",
        )
        channel.send("error", failure.to_json())


def _variables(message: dict[str, Any]) -> dict[str, str]:
    """Return the environment variables that a trial asks for and this process does not have."""
    if message["do"] != "trial":
        return {}
    from autotune.knobs import BUILTIN
    from autotune.knobs.stages import ENVIRONMENT

    wanted = run_stage(ENVIRONMENT, dict[str, str](), BUILTIN, message["spec"]["config"])
    return {name: value for name, value in wanted.items() if os.environ.get(name) != value}


def _rank(spec: TrialSpec, seat: Seat, report: Report) -> Outcome:
    """Run one rank of a trial of several, in a process of its own."""
    return _trial(spec, report, seat)


def _trial(spec: TrialSpec, report: Report, seat: Seat | None = None) -> Outcome:
    """Run a trial, or one rank of it, under its limits and return how it ended."""
    import torch

    from autotune.trial import limits
    from autotune.trial.layouts.join import join
    from autotune.trial.lifecycle import run_trial
    from autotune.trial.measure import make_meter
    from autotune.trial.progress import Progress
    from autotune.trial.training import LossDiverged

    began = time.monotonic()
    torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.facts.workload.seed)
    counted = str(Phase.EVALUATE) if spec.facts.workload.purpose == "inference" else ""
    snapshot = spec.snapshot if seat is None or seat.rank == 0 else ""
    meter = make_meter(spec.device, snapshot)
    progress = Progress(meter=meter, report=report, counted=counted)
    data_bytes = limits.status_bytes("VmData")

    def common() -> dict[str, Any]:
        seconds = round(time.monotonic() - began, 4)
        return {"seconds": seconds, "measurement": progress.measurement()}

    try:
        team = join(spec, seat)  # before the limit, which would count the stacks of its threads
        limits.enforce(spec.limit_bytes, spec.device, progress.meter.context_bytes)
        return _timed(run_trial(spec, progress, team=team), **common())
    except LossDiverged as error:
        return Diverged(step=error.step, loss=str(error.loss), **common())
    except Exception as error:  # noqa: BLE001  whatever a trial raises is its outcome
        held = _held_bytes(spec, data_bytes)
        limits.lift()
        traceback.print_exc()
        if limits.is_out_of_memory(error):
            needed = max(spec.limit_bytes, held + limits.requested_bytes(error))
            return OutOfMemory(
                phase=progress.phase or Phase.LOAD,
                step=progress.step,
                needed_bytes=needed,
                message=str(error)[:500],
                **common(),
            )
        text = traceback.format_exc()[-_TRACEBACK_CHARACTERS:]
        return Crashed(
            exit_code=1, error=f"{type(error).__name__}: {error}"[:500], traceback=text, **common()
        )


def _timed(outcome: Completed | Paused, *, seconds: float, measurement: Measurement) -> Outcome:
    """Return an outcome with how long it took; its rungs are over by then, too."""
    rungs = tuple(replace(rung, seconds=seconds) for rung in outcome.rungs)
    return replace(outcome, seconds=seconds, measurement=measurement, rungs=rungs)


def _held_bytes(spec: TrialSpec, data_bytes_at_start: int) -> int:
    """Return what the trial held when its request failed: tensors on CUDA, heap on a CPU."""
    import torch

    from autotune.trial.limits import status_bytes

    if spec.device.kind == "cuda":
        return int(torch.cuda.memory_allocated(spec.device.index))
    return max(0, status_bytes("VmData") - data_bytes_at_start)


def _end_with_driver() -> None:
    """End the whole process group as soon as the driver is gone, however it went."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)


def _redirect_output(log: str) -> None:
    """Send standard output and error to the trial's log, also what native code prints."""
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with Path(os.devnull).open("rb") as empty:
        os.dup2(empty.fileno(), 0)


def _serve_again(pipe: str, request: str) -> None:
    """Serve the request of `cold.restart`, in the interpreter that it started."""
    from autotune.trial.warm import import_quietly

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_quietly(["autotune.trial.lifecycle"])
    serve(json.loads(Path(request).read_text()), Connection(int(pipe), readable=False))


if __name__ == "__main__":
    _serve_again(*sys.argv[1:])

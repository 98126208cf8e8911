"""One warm process that rehearses: the driver asks in JSON, a line each way.

CUDA semantics need a process that has never gone backward and sees no device, and importing torch
and transformers takes seconds, so rehearsals have a process of their own, which lives as long as
the driver wants it. What was rehearsed once is remembered. If it dies or hangs, it is started anew
with the next question, and the one at hand is answered by an error: a measured step tells, then.

This module runs at both ends, and imports no torch at the driver's.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import IO, Any, TypeAlias

from autotune.core.config import Config
from autotune.core.errors import AutotuneError, error_from_json
from autotune.memory.rehearsal import ON_CPU_TENSORS, CannotRehearse, Rehearsal
from autotune.memory.trace import Scale, Trace
from autotune.trial.layouts.seat import ranks_of
from autotune.trial.spec import TrialSpec

Answer: TypeAlias = "Callable[[Mapping[str, Any]], Rehearsal | Trace]"

START_SECONDS = 120.0
"""How long the process may take to import everything."""

REHEARSAL_SECONDS = 120.0
"""How long one rehearsal may take."""

PRELOAD = (
    "torch",
    "torch.utils.checkpoint",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "autotune.trial.lifecycle",
)
"""What every rehearsal needs; the module of a model's family is imported by the first that does."""

MOST_RECORDED = 64
"""Rehearsals that are remembered with all of their events, which take megabytes."""

_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",  # tracing must not create a context on a device
    "OMP_NUM_THREADS": "1",  # fake tensors compute nothing
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_CHUNK = 2**16


class RehearsalWorker:
    """The driver's end: starts the process, asks, remembers.

    Args:
        extra: Further modules to import at the start, such as the objective's.
        timeout: Most seconds for one rehearsal.

    Example:
        >>> with RehearsalWorker() as worker:  # doctest: +SKIP
        ...     worker.rehearse(spec).peak_bytes
    """

    def __init__(self, extra: tuple[str, ...] = (), *, timeout: float = REHEARSAL_SECONDS) -> None:
        self._extra = extra
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._greeted = False
        self._known: dict[str, Rehearsal | CannotRehearse] = {}
        self._recorded: OrderedDict[str, Rehearsal] = OrderedDict()
        self._on_cpu_tensors = False

    def __enter__(self) -> RehearsalWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start the process now and return at once, so that it is warm when it is asked."""
        if self._process is None or self._process.poll() is not None:
            self._greeted = False
            self._process = self._launch()

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        """Rehearse a trial, with the semantics of its device; what is known is not done again.

        Args:
            spec: The trial.
            record: Whether the events of a steady step are kept.

        Returns:
            Its peaks and their anatomy.

        Raises:
            CannotRehearse: If fake tensors cannot follow the trial, or the process fails.
            AutotuneError: What the trial itself raises, such as for a model that is missing.
        """
        key = memory_key(spec)
        known = self._known.get(key)
        if isinstance(known, CannotRehearse):
            raise known
        if known is not None and not record:
            return known
        if key in self._recorded:
            self._recorded.move_to_end(key)
            return self._recorded[key]
        try:
            found = Rehearsal.from_json(
                self._ask({"ask": "rehearse", "spec": spec.to_json(), "record": record})
            )
        except CannotRehearse as error:
            self._known[key] = error
            raise
        bare = replace(found, events=())
        self._known[key] = bare
        if not record:
            return bare
        self._recorded[key] = found
        if len(self._recorded) > MOST_RECORDED:
            self._recorded.popitem(last=False)
        return found

    def trace(self, spec: TrialSpec, scale: Scale | None = None) -> Trace:
        """Return every event of a trial, of another scale if one is given; nothing is remembered.

        Args:
            spec: The trial.
            scale: Its size in place of its own.

        Raises:
            CannotRehearse: If fake tensors cannot follow the trial, or the process fails.
            AutotuneError: What the trial itself raises, such as for a model that cannot be cut.
        """
        size = None if scale is None else scale.to_json()
        return Trace.from_json(self._ask({"ask": "trace", "spec": spec.to_json(), "scale": size}))

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        self._greeted = False
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if not self._ready():
            raise CannotRehearse("the process that rehearses does not start")
        answer = self._converse(request)
        if "error" in answer:
            raise error_from_json(answer)
        return answer

    def _ready(self) -> bool:
        """Have a process that has said hello; a shim that breaks it is left out the next time."""
        for _ in range(2):
            self.start()
            if self._greeted or self._read_line(START_SECONDS) is not None:
                self._greeted = True
                return True
            self.close()
            self._on_cpu_tensors = True
        return False

    def _converse(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a line and return the one that comes back.

        Raises:
            CannotRehearse: If none does.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        began = time.monotonic()
        with contextlib.suppress(OSError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        line = self._read_line(self._timeout)
        if line is None:
            hung = time.monotonic() - began >= self._timeout
            self.close()
            reason = f"took more than {self._timeout:.0f} seconds" if hung else "ended"
            raise CannotRehearse(f"the process that rehearses {reason}")
        return dict(json.loads(line))

    def _read_line(self, seconds: float) -> bytes | None:
        """Return the next line of the process; None if it ends, or none comes in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        file = self._process.stdout.fileno()
        read: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            selector.register(file, selectors.EVENT_READ)
            while not read or not read[-1].endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                read.append(os.read(file, _CHUNK))
                if not read[-1]:
                    return None
        return b"".join(read)

    def _launch(self) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **_ENVIRONMENT}
        if self._on_cpu_tensors:
            environment[ON_CPU_TENSORS] = "1"
        return subprocess.Popen(
            [sys.executable, "-m", __name__, *self._extra],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )


def memory_key(spec: TrialSpec) -> str:
    """Name what decides a trial's memory: see `Config.memory_key`."""
    fingerprint = spec.facts.workload.fingerprint + spec.facts.data_fingerprint
    part = f"{fingerprint} {'probe' if spec.probe else 'whole'}"
    capability = spec.device.capability or ()
    device = f"{spec.device.kind} {'.'.join(map(str, capability))}"
    return Config(spec.config).memory_key(part, device)


def serve(modules: Sequence[str]) -> None:
    """Be the process: answer lines of standard input until it ends.

    Args:
        modules: What to import first, beside what every rehearsal needs.
    """
    answers = os.fdopen(os.dup(1), "wb")  # nothing else may write between the lines
    os.dup2(2, 1)
    answer = _prepare(modules)
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        _say(answers, _answer(answer, json.loads(line)))


def _prepare(modules: Sequence[str]) -> Answer:
    """Import everything, put the shim in place, and keep collections from walking all of it."""
    from autotune.trial.warm import import_quietly

    import_quietly([*PRELOAD, *modules])
    import torch

    from autotune.memory.fake_device import NoFakeDevice, install
    from autotune.memory.rehearse import rehearse, trace

    torch.set_num_threads(1)
    # Before any backward, also that of a CPU's rehearsal. If it cannot be, each rehearsal says so.
    with contextlib.suppress(NoFakeDevice):
        install()
    gc.collect()
    gc.freeze()

    def answer(request: Mapping[str, Any]) -> Rehearsal | Trace:
        spec = TrialSpec.from_json(request["spec"])
        if request["ask"] == "rehearse":
            if ranks_of(spec) > 1:
                from autotune.memory.ranks import rehearse_ranks

                return rehearse_ranks(spec, record=request["record"])
            return rehearse(spec, record=request["record"])
        size = request["scale"]
        scale = None if size is None else Scale(**size)
        if ranks_of(spec) > 1:
            from autotune.memory.ranks import trace_ranks

            return trace_ranks(spec, scale)
        return trace(spec, scale)

    return answer


def _answer(answer: Answer, request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return answer(request).to_json()
    except AutotuneError as error:
        return dict(error.to_json())
    except Exception as error:  # noqa: BLE001  whatever a plug-in raises, the process lives on
        return dict(CannotRehearse(f"it failed with {type(error).__name__}: {error}").to_json())


def _say(answers: IO[bytes], message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1:])

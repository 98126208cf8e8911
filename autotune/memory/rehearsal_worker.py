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
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

from autotune.core.config import Config
from autotune.core.errors import AutotuneError, error_from_json
from autotune.memory.rehearsal import ON_CPU_TENSORS, CannotRehearse, Rehearsal
from autotune.trial.spec import TrialSpec

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
        self._known: dict[tuple[str, bool], Rehearsal | CannotRehearse] = {}
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
        key = (memory_key(spec), record)
        if key not in self._known:
            try:
                self._known[key] = self._ask(spec, record=record)
            except CannotRehearse as error:
                self._known[key] = error
        known = self._known[key]
        if isinstance(known, CannotRehearse):
            raise known
        return known

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

    def _ask(self, spec: TrialSpec, *, record: bool) -> Rehearsal:
        if not self._ready():
            raise CannotRehearse("the process that rehearses does not start")
        answer = self._converse({"spec": spec.to_json(), "record": record})
        if "error" in answer:
            raise error_from_json(answer)
        return Rehearsal.from_json(answer)

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
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(file, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return None
                read = os.read(file, _CHUNK)
                if not read:
                    return None
                line += read
        return line

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
    rehearse = _prepare(modules)
    _say(answers, {"ready": True})
    for line in sys.stdin.buffer:
        _say(answers, _answer(rehearse, json.loads(line)))


def _prepare(modules: Sequence[str]) -> Callable[..., Rehearsal]:
    """Import everything, put the shim in place, and keep collections from walking all of it."""
    from autotune.trial.warm import import_quietly

    import_quietly([*PRELOAD, *modules])
    import torch

    from autotune.memory.fake_device import NoFakeDevice, install
    from autotune.memory.rehearse import rehearse

    torch.set_num_threads(1)
    # Before any backward, also that of a CPU's rehearsal. If it cannot be, each rehearsal says so.
    with contextlib.suppress(NoFakeDevice):
        install()
    gc.collect()
    gc.freeze()
    return rehearse


def _answer(rehearse: Callable[..., Rehearsal], request: Mapping[str, Any]) -> dict[str, Any]:
    try:
        spec = TrialSpec.from_json(request["spec"])
        return rehearse(spec, record=request["record"]).to_json()
    except AutotuneError as error:
        return dict(error.to_json())
    except Exception as error:  # noqa: BLE001  whatever a plug-in raises, the process lives on
        return dict(CannotRehearse(f"it failed with {type(error).__name__}: {error}").to_json())


def _say(answers: IO[bytes], message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    serve(sys.argv[1:])

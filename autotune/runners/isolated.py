"""One process group per trial, forked from a warm parent that has imported torch and done no more.

Importing torch and transformers costs seconds, forking milliseconds. The warm parent is the
standard library's fork server, told to import modules and nothing else: it computes nothing and
initialises no device, so a child may use any number of threads and CUDA. Children are process
groups, and are killed as such, so that nothing they started outlives them.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing as mp
import os
import signal
import sys
import types
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from autotune.trial import warm
from autotune.trial.worker import enter

PRELOAD = (
    "torch",
    "torch.profiler",
    "torch.utils.checkpoint",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "autotune.trial.lifecycle",
)
"""What every trial needs; modules of other model families are imported by the trials that do."""

_GRACE_SECONDS = 5.0
"""How long a child that has handed in its outcome may take to end by itself."""

_ENVIRONMENT = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # asking for devices must not initialise CUDA
    "TOKENIZERS_PARALLELISM": "false",  # threads of the tokenizer do not survive a fork
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the cores from trials beside them
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "KINETO_LOG_LEVEL": "6",  # or the profiler writes two lines into the log for each session
}


class Child:
    """A running child.

    Attributes:
        process: The process; its number is also that of its group.
        connection: The reading end of its pipe.
    """

    def __init__(self, process: BaseProcess, connection: Connection) -> None:
        self.process = process
        self.connection = connection

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None if the child has closed its end."""
        try:
            message = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            return None
        return dict(message)

    def kill(self) -> None:
        """End the child and everything it started, and wait for it."""
        pid = self.process.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.reap()

    def reap(self) -> None:
        """See the process end, take what is left of its group along, close the pipe."""
        self.process.join(_GRACE_SECONDS)
        pid = self.process.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        self.connection.close()


class WarmParent:
    """Forks children that have torch imported already.

    Args:
        extra: Further modules to import, such as the objective's.
    """

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload([warm.__name__, "autotune.trial.worker"])
        variables = _ENVIRONMENT | {warm.VARIABLE: " ".join([*PRELOAD, *extra])}
        with _environment(variables):
            forkserver.ensure_running()

    def start(self, request: dict[str, Any]) -> Child:
        """Fork a child for one request; see `trial.worker.enter`."""
        reading, writing = self._context.Pipe(duplex=False)
        process = self._context.Process(
            target=enter, args=(json.dumps(request), writing), daemon=False
        )
        with _no_main_module():
            process.start()
        writing.close()
        return Child(process, reading)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables that are not set, for what is started inside."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep multiprocessing from running the user's script again in each child.

    Children need nothing of it, and a script that calls `autotune.tune` at its top level would
    call it again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main

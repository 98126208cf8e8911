"""A trial in a fresh interpreter, for environment variables that must be there before torch is.

The warm parent has imported torch, which reads some variables as it loads (the backend of the CUDA
allocator, the C library's `malloc`). A child whose configuration sets such a variable replaces
itself by a new interpreter: same process, same pipe to the driver, seconds later. Nothing is kept
but the request, which is handed on in a file beside the trial's log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

_SET_PARENT_DEATH_SIGNAL = 1


def restart(
    message: Mapping[str, Any], connection: Connection, variables: Mapping[str, str]
) -> NoReturn:
    """Replace this process by a fresh interpreter that serves the same request.

    Args:
        message: The request; `log` is a path beside which it can be written.
        connection: Where events go.
        variables: Environment variables for the new interpreter.

    References:
        prctl(2), PR_SET_PDEATHSIG: the thread that watched the driver does not survive.
    """
    request = Path(message["log"]).with_name("request.json")
    request.write_text(json.dumps(dict(message)))
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    pipe = connection.fileno()
    os.set_inheritable(pipe, True)
    command = [sys.executable, "-m", "autotune.trial.worker", str(pipe), str(request)]
    os.execve(sys.executable, command, {**os.environ, **variables})

"""`autotune stop`: end a run that another process drives."""

from __future__ import annotations

import getpass
import socket
import time
from typing import Annotated

from rich.text import Text

from autotune.cli.options import Common, Flag, RunName, Storage
from autotune.core.errors import StorageError
from autotune.report.document import SCHEMA, run_head
from autotune.storage.run import Run

WAIT_SECONDS = 120.0
"""How long a driver is waited for; it looks at every event, and at least every 15 s."""

POLL_SECONDS = 0.3


def stop(
    run: RunName = None,
    /,
    *,
    no_wait: Annotated[bool, Flag] = False,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """End a run safely, from another terminal or another machine.

    No trial is started any more, and those that run end as `stopped`. `autotune resume` continues
    the run later.

    Args:
        run: The run; by default the latest.
        no_wait: Do not wait until it has ended.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.

    Raises:
        StorageError: If its driver does not answer.
    """
    found = Run.open(run, results=common.results, storage=storage)
    where, was = common.where(storage), found.status
    if was == "running":
        _request(found, common)
        if not no_wait:
            _wait(found, where)
    now = Run.open(found.name if storage else found.folder, results=common.results, storage=storage)
    document = {
        "schema": SCHEMA,
        "run": run_head(now),
        "asked": was == "running",
        "counts": now.counts(),
    }
    common.show(document, Text(_sentence(now, was, where)))


def _request(run: Run, common: Common) -> None:
    from autotune.storage.store import Store

    with Store.open(run.database, create=False) as store:
        store.request_stop(run.name, f"{getpass.getuser()}@{socket.gethostname()}")
    common.say(Text(f"Stopping {run.name}: it ends what runs, and starts nothing more.", "dim"))


def _wait(run: Run, where: str) -> None:
    from autotune.storage.reader import Reader

    until = time.monotonic() + WAIT_SECONDS
    with Reader.open_read_only(run.database) as reader:
        while reader.info(run.name).status == "running":
            if time.monotonic() > until:
                raise StorageError(
                    f"run '{run.name}' has not ended within {WAIT_SECONDS:.0f} s; the request "
                    "stands, and its driver heeds it as soon as it looks",
                    help=f"autotune attach {run.name}{where}   follows it",
                )
            time.sleep(POLL_SECONDS)


def _sentence(run: Run, was: str, where: str) -> str:
    ends = ", ".join(f"{count} {status}" for status, count in sorted(run.counts().items()))
    if was != "running":
        return f"{run.name} was not running: it is {run.status}, with {ends or 'no trials'}."
    if run.status == "running":
        return f"{run.name} is asked to stop: `autotune attach {run.name}{where}` follows it."
    words = f"{run.name} is stopped: {ends or 'no trials'}."
    return f"{words} `autotune resume {run.name}{where}` continues it."

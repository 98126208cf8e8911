"""What a study database is, whatever its version, and its upgrade on request."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select

from autotune.storage.driver import Driver
from autotune.storage.engine import connect, said
from autotune.storage.faults import foreign_database
from autotune.storage.migrate import current_version, shown, upgrade
from autotune.storage.models import RUNNING, RunRow, TrialRow


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseInfo:
    """What a study database is.

    Attributes:
        where: How it is named, without a password.
        version: Version of its schema.
        runs: Number of its runs.
        trials: Number of its trials.
        running: Names of the runs that a living driver writes into it.
    """

    where: str
    version: str
    runs: int
    trials: int
    running: tuple[str, ...]


def describe(where: str | Path) -> DatabaseInfo:
    """Return what a study database is; nothing is changed, not even an older one.

    Args:
        where: A file, a run folder, or an SQLAlchemy URL.

    Raises:
        StorageError: If it is missing, holds no study, or cannot be read.
    """
    engine = connect(where, "read")
    try:
        name = shown(engine)
        with said(name), engine.connect() as connection:
            version = current_version(connection)
            if version is None:
                raise foreign_database(name)
            # Columns that every version has, a newer one too as far as that can be known.
            rows = connection.execute(
                select(
                    RunRow.name,
                    RunRow.status,
                    RunRow.heartbeat,
                    RunRow.driver_pid,
                    RunRow.driver_host,
                    RunRow.driver_born,
                ).order_by(RunRow.id)
            ).all()
            trials = connection.execute(select(func.count(TrialRow.id))).scalar_one()
    finally:
        engine.dispose()
    running = [
        run
        for run, status, heartbeat, pid, host, born in rows
        if status == RUNNING and Driver(pid=pid, host=host, born=born).alive(heartbeat, time.time())
    ]
    return DatabaseInfo(
        where=name, version=version, runs=len(rows), trials=trials, running=tuple(running)
    )


def upgrade_database(where: str | Path) -> None:
    """Bring a database to this version; see `migrate.upgrade`."""
    engine = connect(where, "write")
    try:
        upgrade(engine)
    finally:
        engine.dispose()

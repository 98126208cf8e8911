"""The statements that a driver repeats for every event of every trial, put together once.

To build a statement takes SQLAlchemy longer than to run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from autotune.storage.models import Base, EventRow, RunRow

Values = dict[str, Any]
"""A row by its columns; where a trial has many, they are inserted together, not one by one."""

_TABLES = Base.metadata.tables
_INSERTS = {name: insert(table) for name, table in _TABLES.items()}
_RUN = _TABLES[RunRow.__tablename__]
_EVENT = _TABLES[EventRow.__tablename__]

HEARTBEAT = (
    select(
        RunRow.id,
        RunRow.status,
        RunRow.elapsed,
        RunRow.heartbeat,
        RunRow.driver_pid,
        RunRow.driver_host,
        RunRow.driver_born,
    )
    .where(RunRow.name == bindparam("run"))
    .with_for_update()
)
"""Who drives the run `run` and since when; nobody else writes it before the transaction ends."""

_BEAT = (
    update(_RUN)
    .where(_RUN.c.id == bindparam("key"))
    .values(elapsed=bindparam("worked"), heartbeat=bindparam("now"))
)
_LIKE = select(_EVENT.c.id).where(
    *(
        _EVENT.c[name].is_not_distinct_from(bindparam(name))
        for name in ("run_id", "trial", "kind", "time", "data")
    )
)


def beat(session: Session, key: int, elapsed: float, now: float) -> None:
    """Say that the driver of a run is at work.

    Args:
        session: That writes.
        key: Of the run's row.
        elapsed: Seconds in which the run was worked at.
        now: Unix time.
    """
    session.execute(_BEAT, {"key": key, "worked": elapsed, "now": now})


def insert_once(session: Session, event: Values) -> None:
    """Insert an event, unless there is one that says the same."""
    if session.execute(_LIKE, event).first() is None:
        session.execute(_INSERTS[_EVENT.name], event)


def insert_all(session: Session, rows: Mapping[type[Base], list[Values]]) -> None:
    """Insert rows, those of a table together."""
    for table, values in rows.items():
        if values:
            session.execute(_INSERTS[table.__tablename__], values)

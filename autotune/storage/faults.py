"""What databases complain of, as sentences that say what to do.

SQLite and servers speak in fixed phrases ("database or disk is full"); each is answered here once,
for the writer, the readers and queries alike. What passes by itself, such as a server that restarts
or a lock, becomes an `UnreachableDatabase`, which a run waits for. Imports no database library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from autotune.core.errors import StorageError, UnreachableDatabase
from autotune.storage.urls import masked, scrubbed


@dataclass(frozen=True, slots=True)
class _Saying:
    """A phrase, in lower case, and what is said instead; `passes` if trying again may help."""

    phrase: str
    message: str
    help: str
    passes: bool = False


_ANSWERS = "check host, port and network, and that the server runs; a run meanwhile goes on"
_SAYINGS: tuple[_Saying, ...] = (
    _Saying(
        "disk is full",
        "the disk is full, so nothing more can be recorded in '{where}'",
        "free some space, then `autotune resume` continues where the run stopped",
    ),
    _Saying(
        "readonly database",
        "'{where}' is read-only, so nothing can be recorded in it",
        "make the file and its folder writable, or use another folder: --results DIR",
    ),
    _Saying(
        "unable to open database file",
        "'{where}' cannot be opened or created",
        "check that its folder exists and can be written, or use another: --results DIR",
    ),
    _Saying(
        "is locked",
        "'{where}' was locked by another program for too long",
        "close what has it open (a database browser, another autotune), then try again",
        passes=True,
    ),
    _Saying(
        "not a database",
        "'{where}' is not a study database",
        "name a run, its folder, or its study.db",
    ),
    _Saying(
        "malformed",
        "'{where}' is damaged",
        "copy the file aside, then try: sqlite3 study.db '.recover' | sqlite3 recovered.db",
    ),
    _Saying(
        "disk i/o error",
        "the disk failed while reading or writing '{where}'",
        "check the disk; a network folder cannot hold a study database: --results DIR",
    ),
    _Saying(
        "read-only transaction",
        "'{where}' is read-only for this account, so nothing can be recorded in it",
        "use the URL of an account that may write",
    ),
    _Saying(
        "permission denied",
        "the account of '{where}' lacks a right: {text}",
        "use the URL of an account that has it, or let its owner GRANT it",
    ),
    _Saying(
        "authentication failed",
        "'{where}' does not accept this account and password",
        "check both; in a password write @ as %40, : as %3A, / as %2F and % as %25",
    ),
    _Saying(
        "no password supplied",
        "'{where}' wants a password",
        "write it into the URL of AUTOTUNE_STORAGE, or into ~/.pgpass",
    ),
    _Saying(
        "access denied",
        "'{where}' does not accept this account and password, or lets it do too little",
        "check both, and its rights; in a password write @ as %40, : as %3A and / as %2F",
    ),
    _Saying(
        "does not exist",
        "'{where}' is not there as named: {text}",
        "check the names; an empty database is made by: createdb NAME",
    ),
    _Saying(
        "unknown database",
        "'{where}' is not there: {text}",
        "check the name; an empty database is made by: CREATE DATABASE NAME",
    ),
    *(
        _Saying(phrase, "'{where}' does not answer: {text}", _ANSWERS, passes=True)
        for phrase in (
            "connection refused",
            "connection failed",
            "connection is closed",
            "connection is lost",
            "connection reset",
            "connection timeout",
            "closed the connection",
            "terminating connection",
            "the database system is",
            "could not connect",
            "can't connect",
            "could not translate host name",
            "consuming input failed",
            "timeout expired",
            "lost connection",
            "gone away",
            "too many clients",
            "too many connections",
            "deadlock",
        )
    ),
)
_PASSING_STATES = frozenset({"08", "40", "53", "57"})
"""SQLSTATE classes: connection, serialisation and deadlock, resources, an operator's doing."""


def storage_error(error: BaseException, where: object) -> StorageError:
    """Return what went wrong with the database at `where`, in words.

    Args:
        error: An exception of a database's driver or of SQLAlchemy.
        where: File or URL.

    Returns:
        The error to raise: an `UnreachableDatabase` if trying again may help.
    """
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    text = scrubbed(lines[0] if lines else type(cause).__name__)
    shown = masked(where)
    for saying in _SAYINGS:
        if saying.phrase in text.lower():
            kind = UnreachableDatabase if saying.passes else StorageError
            return kind(saying.message.format(where=shown, text=text), help=saying.help)
    state = str(getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None) or "")
    if state[:2] in _PASSING_STATES or getattr(error, "connection_invalidated", False):
        return UnreachableDatabase(f"'{shown}' does not answer: {text}", help=_ANSWERS)
    return StorageError(
        f"'{shown}' cannot be used: {text}",
        help="check that the database is the one of a run and that it can be reached",
    )


def missing_database(path: Path) -> StorageError:
    """Return the error for a study database that is not there."""
    return StorageError(
        f"there is no study database at '{path}'",
        help="name a run under --results DIR, or start one: autotune run --budget 16GB",
    )


def foreign_database(where: object) -> StorageError:
    """Return the error for a database without autotune's tables."""
    return StorageError(
        f"'{masked(where)}' holds no autotune study", help="name a run, its folder, or its study.db"
    )

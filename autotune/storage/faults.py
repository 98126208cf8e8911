"""What databases complain of, as sentences that say what to do.

SQLite speaks in fixed phrases ("database or disk is full"); each is answered here once, for the
writer, the readers and queries alike. Imports no database library.
"""

from __future__ import annotations

from pathlib import Path

from autotune.core.errors import StorageError

_SAYINGS: tuple[tuple[str, str, str], ...] = (
    (
        "disk is full",
        "the disk is full, so nothing more can be recorded in '{where}'",
        "free some space, then `autotune resume` continues where the run stopped",
    ),
    (
        "readonly database",
        "'{where}' is read-only, so nothing can be recorded in it",
        "make the file and its folder writable, or use another folder: --results DIR",
    ),
    (
        "unable to open database file",
        "'{where}' cannot be opened or created",
        "check that its folder exists and can be written, or use another: --results DIR",
    ),
    (
        "is locked",
        "'{where}' was locked by another program for too long",
        "close what has it open (a database browser, another autotune), then try again",
    ),
    (
        "not a database",
        "'{where}' is not a study database",
        "name a run, its folder, or its study.db",
    ),
    (
        "malformed",
        "'{where}' is damaged",
        "copy the file aside, then try: sqlite3 study.db '.recover' | sqlite3 recovered.db",
    ),
    (
        "disk i/o error",
        "the disk failed while reading or writing '{where}'",
        "check the disk; a network folder cannot hold a study database: --results DIR",
    ),
)


def storage_error(error: BaseException, where: object) -> StorageError:
    """Return what went wrong with the database at `where`, in words.

    Args:
        error: An exception of sqlite3 or SQLAlchemy.
        where: File or URL, as shown to the user.
    """
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    text = lines[0] if lines else type(cause).__name__
    for phrase, message, help_text in _SAYINGS:
        if phrase in text.lower():
            return StorageError(message.format(where=where), help=help_text)
    return StorageError(
        f"'{where}' cannot be used: {text}",
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
        f"'{where}' holds no autotune study", help="name a run, its folder, or its study.db"
    )

"""Every error that a user can meet, as one tree.

The tree is drawn first, so that a reader knows what to catch before reading a class::

    AutotuneError                    exit status 1
    ├── UsageError                   2  what was typed cannot be done as typed
    │   ├── UnknownName              2  no knob, objective, space, sampler or run of that name
    │   ├── BadValue                 2  a value outside its domain, or a malformed unit
    │   ├── BlockedConfiguration     2  values that exclude each other, or this device or model
    │   ├── SpaceFileError           2  a search space file that cannot be read as one
    │   ├── DataError                2  data that is missing, empty, broken or has other columns
    │   ├── ModelError               2  a model that cannot be loaded
    │   ├── MissingLibrary           2  an optional library that is not installed
    │   ├── CannotExport             2  settings that the target of an export has no words for
    │   └── QueryError               2  SQL that fails or that would write
    ├── NothingFits                  3  no configuration of the space fits the budget
    └── StorageError                 1  results that cannot be read or written
        ├── NewerDatabase            1  a study database written by a newer autotune
        └── UnreachableDatabase      1  a study database that does not answer now, but may again

Outcomes of trials are not here: an out-of-memory trial is data (`autotune.core.outcome`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class AutotuneError(Exception):
    """Root of the tree: a message, where it is, and what to type instead.

    Args:
        message: States the rule and the values, in one sentence.
        where: `file:line:column`, or another place the user can go to.
        context: Lines shown under the message, such as the source around an error.
        help: What to type or do instead; lines of text.
    """

    exit_status = 1

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        context: Sequence[str] = (),
        help: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.context = tuple(context)
        self.help = help

    def to_json(self) -> dict[str, object]:
        """Return the error as a JSON object with `error`, `message`, `where`, `context`, `help`."""
        return {
            "error": type(self).__name__,
            "message": self.message,
            "where": self.where,
            "context": list(self.context),
            "help": self.help,
        }


class UsageError(AutotuneError):
    """What was typed cannot be done as typed."""

    exit_status = 2


class UnknownName(UsageError):
    """A name that nothing carries."""

    @classmethod
    def among(
        cls,
        kind: str,
        name: str,
        known: Iterable[str],
        *,
        where: str | None = None,
        context: Sequence[str] = (),
        listing: str | None = None,
    ) -> UnknownName:
        """Build the error for `name`, which is not in `known`.

        Args:
            kind: What was looked for: `"knob"`, `"space"`, …
            name: What was typed.
            known: Every name that would have worked.
            where: Place in a file, if it was in one.
            context: Source lines to show.
            listing: The command that lists all names.
        """
        names = sorted(set(known))
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        parts = [f"did you mean '{close[0]}'?"] if close else []
        if listing:
            parts.append(f"`{listing}` lists all {len(names)}")
        elif names:
            parts.append(f"known: {', '.join(names[:20])}")
        else:
            parts.append(f"there is no {kind} yet")
        return cls(
            f"unknown {kind} '{name}'", where=where, context=context, help="  ".join(parts) or None
        )


class BadValue(UsageError):
    """A value outside its domain, or a unit that cannot be read."""


class BlockedConfiguration(UsageError):
    """Values that exclude each other, or that this device or model excludes."""


class SpaceFileError(UsageError):
    """A search space file that cannot be read as one."""


class DataError(UsageError):
    """Data that is missing, empty, broken, or has other columns than asked for."""


class ModelError(UsageError):
    """A model that cannot be loaded."""


class MissingLibrary(UsageError):
    """An optional library that is not installed; the help has the exact `pip install`."""


class CannotExport(UsageError):
    """Settings that the target of an export has no words for; one line of context for each."""


class QueryError(UsageError):
    """SQL that fails, or that would write."""


class NothingFits(AutotuneError):
    """No configuration of the space fits the budget."""

    exit_status = 3


class StorageError(AutotuneError):
    """Results that cannot be read or written."""


class NewerDatabase(StorageError):
    """A study database written by a newer autotune; nothing was changed."""


class UnreachableDatabase(StorageError):
    """A study database that does not answer now: down, restarting, locked. Worth trying again."""


def error_from_json(data: dict[str, object]) -> AutotuneError:
    """Rebuild an error that crossed a process boundary by `AutotuneError.to_json`."""
    kinds = {kind.__name__: kind for kind in _subclasses(AutotuneError)}
    kind = kinds.get(str(data.get("error")), AutotuneError)
    context = data.get("context")
    where, help_text = data.get("where"), data.get("help")
    return kind(
        str(data.get("message", "")),
        where=None if where is None else str(where),
        context=[str(line) for line in context] if isinstance(context, list) else (),
        help=None if help_text is None else str(help_text),
    )


def _subclasses(kind: type[AutotuneError]) -> list[type[AutotuneError]]:
    return [kind] + [below for child in kind.__subclasses__() for below in _subclasses(child)]

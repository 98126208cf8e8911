"""Names for things that plug in: typed, lazy, open to other packages by entry points.

A registry maps a name to `"module:attribute"`, imported when it is first asked for, so that listing
names costs no import. Other packages add names by an entry point group.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar, cast

from autotune.core.errors import AutotuneError, UnknownName

T = TypeVar("T")


class Registry(Generic[T]):
    """A lazy table of names.

    Args:
        kind: What is registered, for messages: `"objective"`.
        builtin: Import path `"module:attribute"` by name.
        group: Entry point group by which other packages add names.
        listing: The command that lists all names.
    """

    def __init__(
        self,
        kind: str,
        builtin: Mapping[str, str],
        *,
        group: str | None = None,
        listing: str | None = None,
    ) -> None:
        self.kind = kind
        self.listing = listing
        self._builtin = dict(builtin)
        self._group = group

    def paths(self) -> dict[str, str]:
        """Return the import path of every name; built-in names win over entry points."""
        found = entry_points(group=self._group) if self._group else ()
        return {**{point.name: point.value for point in found}, **self._builtin}

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted(self.paths()))

    def load(self, name: str) -> T:
        """Import and return what carries `name`.

        Raises:
            UnknownName: If nothing does.
            AutotuneError: If its module cannot be imported.
        """
        paths = self.paths()
        if name not in paths:
            raise UnknownName.among(self.kind, name, paths, listing=self.listing)
        return self.import_path(paths[name])

    def import_path(self, path: str) -> T:
        """Import and return what stands at `"module:attribute"`.

        Raises:
            AutotuneError: If the module cannot be imported or has no such attribute.
        """
        module, _, attribute = path.partition(":")
        try:
            return cast(T, getattr(importlib.import_module(module), attribute))
        except (ImportError, AttributeError) as error:
            raise AutotuneError(
                f"{self.kind} '{path}' cannot be imported: {error}", help=f"see {self.listing}"
            ) from error

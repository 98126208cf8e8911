"""Settings files: `autotune.toml`, or `[tool.autotune]` of `pyproject.toml`, in this folder.

::

    results = "runs"          # options of every command
    device = "cuda:0"

    [run]                     # options of one command
    budget = "16GB"
    space = "lossless"

A flag wins over the environment, which wins over a file. Where each value came from is remembered
for `run --dry-run`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.core.errors import UnknownName, UsageError

if TYPE_CHECKING:
    from cyclopts import App
    from cyclopts.argument import ArgumentCollection

FILES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("autotune.toml", ()),
    ("pyproject.toml", ("tool", "autotune")),
)
"""Files that are looked for, and the table of each that counts. The first one found is used."""

_SHARED = ("results", "device", "json", "quiet", "verbose", "no-color")
_sources: dict[str, str] = {}


def read_settings(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what the command line and the environment left open: a hook of cyclopts.

    Raises:
        UsageError: If a file is not TOML, or a section in it is not a table.
        UnknownName: If a file has a setting that does not exist.
    """
    from cyclopts.config import Dict

    where, settings = _find()
    if settings:
        _check_names(settings, where)
        own: object = settings
        for command in commands:
            own = own.get(command, {}) if isinstance(own, Mapping) else {}
        names = {name.removeprefix("--") for argument in arguments for name in argument.names}
        shared = {
            name: value
            for name, value in settings.items()
            if not isinstance(value, Mapping) and name.replace("_", "-") in names
        }
        if not isinstance(own, Mapping):
            raise UsageError(f"[{'.'.join(commands)}] must be a table", where=where)
        subcommands = {name for name in own if isinstance(own[name], Mapping)}
        mine = {name: own[name] for name in own if name not in subcommands} if commands else {}
        _check_options(mine, names, commands, where)
        Dict(data=_spelled({**shared, **mine}), source=where, use_commands_as_keys=False)(
            app, commands, arguments
        )
    _sources.clear()
    for argument in arguments:
        for name in argument.names:
            _sources[name] = argument.tokens[0].source if argument.tokens else "default"


def source_of(option: str) -> str:
    """Return where the value of an option came from: `cli`, `env`, a file, or `default`."""
    return _sources.get(option, "default")


def _find() -> tuple[str, Mapping[str, Any]]:
    for name, keys in FILES:
        path = Path(name)
        if not path.is_file():
            continue
        try:
            found: Any = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            if keys:
                continue  # another tool's file: it will say what is wrong with it
            raise UsageError(f"this is not TOML: {error}", where=name) from error
        except OSError as error:
            raise UsageError(f"cannot be read: {error.strerror or error}", where=name) from error
        for key in keys:
            found = found.get(key, {}) if isinstance(found, Mapping) else {}
        if found:
            return name, found
    return "", {}


def _check_names(settings: Mapping[str, Any], where: str) -> None:
    from autotune.cli import COMMANDS

    for name, value in settings.items():
        known = tuple(COMMANDS) if isinstance(value, Mapping) else _SHARED
        if name.replace("_", "-") not in known:
            kind = "section" if isinstance(value, Mapping) else "setting of every command"
            raise UnknownName.among(kind, name, known, where=where)


def _check_options(
    mine: Mapping[str, Any], names: set[str], commands: tuple[str, ...], where: str
) -> None:
    for name in mine:
        if name.replace("_", "-") not in names:
            long = {known for known in names if len(known) > 1 and not known.startswith("-")}
            listing = f"autotune {' '.join(commands)} --help"
            raise UnknownName.among(
                f"setting of [{'.'.join(commands)}]", name, long, where=where, listing=listing
            )


def _spelled(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in settings.items()}

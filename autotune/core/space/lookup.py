"""Where search spaces are found: a path, the folder `./search_spaces`, or shipped with autotune.

A wheel has the shipped spaces inside the package. A checkout has them beside it, also when it is
installed editable: they are plain YAML, no Python package that an import could find.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from autotune.core.errors import SpaceFileError, UnknownName
from autotune.core.knob import Knob
from autotune.core.space.file import SUFFIXES, parse_space, space_name
from autotune.core.space.model import Space

_FOLDER = "search_spaces"
_LOCAL = Path(_FOLDER)


def load_space(name_or_path: str, knobs: Sequence[Knob]) -> Space:
    """Find a space by name or path and read it; errors as in `find_space_text`, `parse_space`."""
    text, where = find_space_text(name_or_path)
    return parse_space(text, where, knobs)


def shipped_spaces() -> tuple[str, ...]:
    """Return the names of the spaces that come with autotune, sorted."""
    return tuple(sorted(space_name(entry.name) for entry in _shipped_files()))


def local_spaces() -> tuple[str, ...]:
    """Return the names of the spaces in `./search_spaces`, sorted."""
    if not _LOCAL.is_dir():
        return ()
    return tuple(sorted({space_name(p.name) for p in _LOCAL.iterdir() if p.suffix in SUFFIXES}))


def find_space_text(name_or_path: str) -> tuple[str, str]:
    """Find a space: a path given, `./search_spaces/NAME.yaml`, or one that is shipped.

    Returns:
        The text of the file, and its path as errors show it.

    Raises:
        UnknownName: If there is no space of that name.
        SpaceFileError: If a path is given and there is no readable text file at it.
    """
    path = Path(name_or_path)
    if path.suffix in SUFFIXES or len(path.parts) != 1:
        return _read(path), str(path)
    for suffix in SUFFIXES:
        local = _LOCAL / f"{name_or_path}{suffix}"
        if local.is_file():
            return _read(local), str(local)
    for entry in _shipped_files():
        if space_name(entry.name) == name_or_path:
            return entry.read_text(encoding="utf-8"), entry.name
    known = {*shipped_spaces(), *local_spaces()}
    raise UnknownName.among("space", name_or_path, known, listing="autotune spaces ls")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpaceFileError(
            f"this is not a text file in UTF-8: {error.reason} at byte {error.start}",
            where=str(path),
            help=f"convert it, for example: iconv -f latin1 -t utf-8 {path}",
        ) from error
    except OSError as error:
        raise SpaceFileError(
            f"this space file cannot be read: {error.strerror or error}",
            where=str(path),
            help="`autotune spaces ls` lists the spaces that can be named",
        ) from error


def _shipped_files() -> list[Traversable]:
    package = resources.files("autotune")
    folder = package / _FOLDER
    if not folder.is_dir():
        folder = Path(str(package)).parent / _FOLDER
    return [entry for entry in folder.iterdir() if entry.name.endswith(SUFFIXES)]

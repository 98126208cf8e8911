"""URLs of databases as they may be shown: without passwords.

Whatever a message, a log, a report or a JSON document says of a database goes through `masked`.
It does not parse: a URL with a mistake in it is the one that ends up in a message, and its password
must not. Where in doubt it hides too much. Imports no database library.
"""

from __future__ import annotations

import re

from autotune.core.errors import StorageError

HIDDEN = "***"
"""Stands where a password stood."""

_PARAMETER = re.compile(r"(?i)([?&;][^=&;]*(?:pass|pwd|secret|token)[^=&;]*=)[^&;]*")
_URL = re.compile(r"\b[a-zA-Z][\w+.-]*://\S+")
_SETTING = re.compile(r"(?i)\b(\w*(?:password|passwd|secret)\w*\s*=\s*)('[^']*'|\S+)")


def masked(where: object) -> str:
    """Return a URL, or a file's path, without passwords in it.

    Args:
        where: A file, or an SQLAlchemy URL, well-formed or not.
    """
    text = str(where)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.startswith("sqlite"):
        return text
    colon, at = rest.find(":"), rest.rfind("@")
    if 0 <= colon < at:
        # An unescaped password may hold any sign, so that the last @ ends it.
        rest = f"{rest[: colon + 1]}{HIDDEN}{rest[at:]}"
    return f"{scheme}://" + _PARAMETER.sub(rf"\1{HIDDEN}", rest)


def scrubbed(text: str) -> str:
    """Return a text, such as a driver's message, with every URL and password setting masked."""
    without = _URL.sub(lambda found: masked(found[0]), text)
    return _SETTING.sub(rf"\1{HIDDEN}", without)


def check_server_url(url: str) -> None:
    """Refuse what would be read with a part of the password as the host.

    Raises:
        StorageError: If there is more than one `@`; a query has `%40` instead.
    """
    if url.partition("://")[2].count("@") > 1:
        raise StorageError(
            f"'{masked(url)}' has more than one @, so that it cannot be told where the host begins",
            help="in a name or a password write @ as %40, : as %3A, / as %2F and % as %25",
        )

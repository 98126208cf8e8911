"""Search spaces: `model` says what one is, `file` reads one, `lookup` finds one by name."""

from autotune.core.space.file import TRAINING, parse_space
from autotune.core.space.lookup import (
    find_space_text,
    load_space,
    local_spaces,
    shipped_spaces,
)
from autotune.core.space.model import LISTING, Space

__all__ = [
    "LISTING",
    "TRAINING",
    "Space",
    "find_space_text",
    "load_space",
    "local_spaces",
    "parse_space",
    "shipped_spaces",
]

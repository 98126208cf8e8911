"""The budget that is suggested when nothing fits must itself be enough."""

from __future__ import annotations

import pytest

from autotune.core.units import parse_bytes
from autotune.fit import suggested_budget


@pytest.mark.parametrize("enough", [1, 10**7, 10**7 + 1, 999_999_999, 10**9 + 1, 6_543_210_987])
def test_suggestion_is_enough_and_close(enough: int) -> None:
    suggested = parse_bytes(suggested_budget(enough))
    assert enough <= suggested <= max(1.11 * enough, enough + 10**7)

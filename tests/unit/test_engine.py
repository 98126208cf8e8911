"""A search that Ray Tune drives ends as any other when somebody asks for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from autotune.engine import DrivenSearch


def driven(*, asked: bool) -> tuple[DrivenSearch, Any]:
    state = SimpleNamespace(
        seconds_before=0.0,
        plan=SimpleNamespace(spec=SimpleNamespace(time_limit=None)),
        undecided=False,
        running={},
        name="run",
        submitted=0,
        beats=0,
        stop_if_asked=lambda: asked,
    )
    offered: list[str] = []

    def submit_next() -> bool:
        state.submitted += 1
        offered.append("a trial")
        return True

    def heartbeat(name: str) -> None:
        state.beats += 1

    state.submit_next = submit_next
    state.store = SimpleNamespace(heartbeat=heartbeat)
    runner = SimpleNamespace(now=lambda: 0.0, slots=1, offered=offered)
    return DrivenSearch(cast("Any", state), cast("Any", runner)), state


def test_a_search_that_goes_on_suggests_trials() -> None:
    search, state = driven(asked=False)
    assert search.suggest() == "a trial"
    search.beat()
    assert (state.submitted, state.beats, search.finished) == (1, 1, False)


def test_a_stop_that_was_asked_for_is_heeded_with_the_next_trial() -> None:
    search, state = driven(asked=True)
    assert search.suggest() is None
    assert (state.submitted, search.finished) == (0, True)


def test_and_with_the_next_heartbeat() -> None:
    search, _ = driven(asked=True)
    search.beat()
    assert search.finished

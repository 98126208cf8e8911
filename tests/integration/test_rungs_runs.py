"""Searches on rungs with real trials: paused in one process, finished in another."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.core.outcome import Completed, Paused
from autotune.core.parts import FEWEST_STEPS
from autotune.runners.local import LocalRunner
from autotune.tuner import resume, tune
from tests.integration.test_search import Unscreened, settings

pytestmark = pytest.mark.training

SPACE = """\
summary: learning rates and accumulation
knobs:
  learning_rate: [0.1, 0.3, 1.0, 3.0, 10.0]
  accumulation: [1, 2, 4]
"""
STEPS = 3 * FEWEST_STEPS


@pytest.fixture
def space(tmp_path: Path) -> str:
    path = tmp_path / "rates.yaml"
    path.write_text(SPACE)
    return str(path)


def test_trials_that_paused_end_as_if_they_had_not(space: str, tmp_path: Path) -> None:
    more = {"steps": STEPS, "sampler": "random", "seed": 1}
    whole = tune(**settings(space, tmp_path / "whole", {}, trials=6, **more), runner=Unscreened())
    parts = tune(
        **settings(space, tmp_path / "parts", {}, trials=3, rungs="1/3", name="parts", **more),
        runner=Unscreened(),
    )
    ends = {r.config: r.outcome for r in whole.records if isinstance(r.outcome, Completed)}
    done = [r for r in parts.records if isinstance(r.outcome, Completed)]
    assert any(r.rungs for r in done)
    both = [r for r in done if r.config in ends]
    assert len(both) >= 2
    for record in both:
        assert isinstance(record.outcome, Completed)
        assert record.outcome.scores == ends[record.config].scores
    waiting = [r for r in parts.records if isinstance(r.outcome, Paused)]
    kept = list(parts.folder.glob("trials/*/paused.pt"))
    assert len(kept) == len(waiting)
    more_of_it = resume("parts", extra=2, results=tmp_path / "parts", runner=LocalRunner())
    again = [r for r in more_of_it.records if isinstance(r.outcome, Completed)]
    assert len(again) > len(done)

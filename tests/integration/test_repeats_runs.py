"""Real trainings near the front with further seeds: in one run, and added to a finished one."""

from __future__ import annotations

from pathlib import Path

import pytest

from autotune.core.errors import BadValue
from autotune.core.outcome import Completed
from autotune.search.seeds import seed_values
from autotune.storage.places import seed_log_path
from autotune.storage.query import run_query
from autotune.storage.run import Run
from autotune.tuner import resume, tune
from tests.integration.test_search import SPACE, settings

pytestmark = pytest.mark.training


def test_the_front_is_trained_with_further_seeds(tmp_path: Path) -> None:
    space = tmp_path / "troubled.yaml"
    space.write_text(SPACE)
    found = settings(str(space), tmp_path / "results", {}, trials=3, name="again", seed=5)
    run = tune(**found, repeats="1")
    front = run.front()
    assert run.status == "done"
    assert run.spec.repeats == "1"
    assert len(run) == 3
    assert front
    for record in front:
        assert [again.seed for again in record.repeats] == [6]
        first, second = seed_values(record, run.metric)
        assert first != second  # another seed is another training
        mean = record.score(run.metric)
        assert mean is not None
        assert mean.value == pytest.approx((first + second) / 2)
        assert seed_log_path(run.folder, record.number, 6).is_file()
    spent = sum(len(record.repeats) for record in run.records)

    more = resume("again", repeats="2", results=tmp_path / "results")
    assert len(more) == 3
    assert all(record.seeds == 3 for record in more.front())
    kept = {r.number: r.repeats for r in run.records}
    assert all(r.repeats[: len(kept[r.number])] == kept[r.number] for r in more.records)
    ends = [again.outcome for record in more.records for again in record.repeats]
    assert len(ends) > spent
    assert all(isinstance(end, Completed) for end in ends)
    rows = run_query(more.folder, "select trial, seeds from front order by trial").rows
    assert rows == sorted((r.number, 3) for r in more.front())

    with pytest.raises(BadValue, match="how often"):
        resume("again", repeats="lots", results=tmp_path / "results")
    assert Run.open("again", results=tmp_path / "results").records == more.records

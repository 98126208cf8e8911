"""Trackers: what they are told, that a broken one ends nothing, and what each library then has."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event as Flag
from typing import NamedTuple

import pytest

import autotune.trackers.choice
from autotune.core.errors import MissingLibrary, UnknownName, UsageError
from autotune.core.observer import Observer, RunView, Silent
from autotune.core.outcome import Paused
from autotune.core.record import TrialRecord
from autotune.runners.replay import ReplayRunner
from autotune.storage.run import Run
from autotune.trackers.base import Tracking, Trial, one_line
from autotune.trackers.choice import with_trackers
from autotune.tuner import resume, tune
from tests.recorded import REFERENCE, RUN

TRIALS = 6
FAILING = ("open", "loss", "finished", "close")


def installed(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


class Losing(ReplayRunner):
    """Replays, with losses, which are not recorded: 3, 2, 1 at the three steps that are told."""

    def next(self, timeout: float | None = None):  # type: ignore[no-untyped-def]  # as in the base
        event = super().next(timeout)
        if event is not None and event.kind == "step":
            self.losses = getattr(self, "losses", 0) + 1
            event.data["loss"] = float(3 - (self.losses - 1) % 3)  # type: ignore[index]  # a dict
        return event


class Keeping:
    """A tracker that keeps what it is told, and fails at one method if it is to."""

    def __init__(self, fails: str = "", wait: Flag | None = None) -> None:
        self.fails, self.wait = fails, wait
        self.told: list[tuple[object, ...]] = []

    def _keep(self, *what: object) -> None:
        if self.wait is not None:
            self.wait.wait(30)
        if what[0] == self.fails:
            raise ConnectionError("no answer from https://me:secret@host/api\nmany more lines")
        self.told.append(what)

    def open(self, run: RunView) -> None:
        self._keep("open", run.spec.name)

    def began(self, trial: Trial) -> None:
        self._keep("began", trial)

    def loss(self, number: int, step: int, loss: float) -> None:
        self._keep("loss", number, step, loss)

    def finished(self, trial: Trial) -> None:
        self._keep("finished", trial)

    def close(self, status: str) -> None:
        self._keep("close", status)


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.view: RunView | None = None

    def started(self, run: RunView) -> None:
        self.view = run

    def note(self, text: str) -> None:
        self.notes.append(text)


Search = Callable[..., Run]


def searcher(folder: Path) -> Search:
    """Search with recorded ends, in a second or two."""
    recorded = Run.open(RUN, results=REFERENCE)

    def search(*observers: Observer, track: str = "") -> Run:
        return tune(
            budget="16GB",
            trials=TRIALS,
            seed=3,
            sampler="random",
            name="tracked",
            results=folder,
            runner=Losing(recorded.spec.facts, recorded.records),
            observers=observers,
            track=track,
        )

    return search


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return searcher(tmp_path)


class Watched(NamedTuple):
    run: Run
    view: RunView
    trackers: dict[str, Keeping]
    notes: list[str]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """One search with a tracker that works, one that hangs, one for every way to fail."""
    answer, noting = Flag(), Noting()
    trackers = {"working": Keeping(), "hanging": Keeping(wait=answer)}
    trackers |= {f"fails to {name}": Keeping(name) for name in FAILING}
    watching = [
        Tracking(n, t, [noting], patience=0.2 if n == "hanging" else 60)
        for n, t in trackers.items()
    ]
    track = "tensorboard" if find_spec("tensorboardX") else ""
    run = searcher(tmp_path_factory.mktemp("results"))(*watching, noting, track=track)
    answer.set()
    assert noting.view is not None
    return Watched(run, noting.view, trackers, noting.notes)


def told(tracker: Keeping, what: str) -> list[Trial]:
    return [t[1] for t in tracker.told if t[0] == what and isinstance(t[1], Trial)]


def trained(run: Run) -> list[TrialRecord]:
    return [record for record in run.records if not record.refused]


def test_a_tracker_is_told_every_trial_with_what_was_measured(watched: Watched) -> None:
    run, tracker = watched.run, watched.trackers["working"]
    assert tracker.told[0] == ("open", "tracked")
    assert tracker.told[-1] == ("close", "done")
    assert [t.number for t in told(tracker, "began")] == [r.number for r in trained(run)]
    assert [t[3] for t in tracker.told if t[:2] == ("loss", 0)] == [3.0, 2.0, 1.0]
    for trial, record in zip(told(tracker, "finished"), trained(run), strict=True):
        assert record.outcome is not None
        assert trial.tags == {"origin": str(record.origin), "outcome": record.outcome.tag}
        assert trial.params["precision"] == record.config.get("precision", "fp32")
        assert trial.metrics["seconds"] == record.outcome.seconds
        measured = record.outcome.measurement
        assert trial.metrics.get("peak_gib", 0) * 2**30 == measured.peak_bytes
        assert trial.metrics.get("footprint_gib", 0) * 2**30 == measured.footprint_bytes
        score = record.score(run.spec.facts.metric)
        assert trial.metrics.get("score") == (score.value if score else None)
    best = max(told(tracker, "finished"), key=lambda t: t.metrics.get("score", 0))
    assert {"accuracy", "accuracy_stderr", "tokens_per_second"} <= set(best.metrics)
    by_phase = [v for n, v in best.metrics.items() if n.startswith("peak_") and n != "peak_gib"]
    assert max(by_phase) == best.metrics["peak_gib"]


@pytest.mark.parametrize("fails", FAILING)
def test_a_tracker_that_raises_is_switched_off_with_one_note(watched: Watched, fails: str) -> None:
    assert watched.run.status == "done"
    assert len(watched.run.records) >= TRIALS
    tracker = watched.trackers[f"fails to {fails}"]
    assert [note for note in watched.notes if note.startswith(f"fails to {fails}")] == [
        f"fails to {fails} is switched off and the search goes on: "
        "ConnectionError: no answer from https://***@host/api"
    ]
    assert not {fails, "close"} & {what[0] for what in tracker.told}


def test_a_tracker_that_hangs_holds_up_only_the_end_and_not_for_long(watched: Watched) -> None:
    mine = [note for note in watched.notes if note.startswith("hanging")]
    assert mine == ["hanging did not take everything within 0.2 s"]


def test_a_paused_trial_is_finished_only_if_it_does_not_go_on(watched: Watched) -> None:
    tracker = Keeping()
    tracking = Tracking("keeping", tracker)
    tracking.started(watched.view)
    records = [replace(record, outcome=Paused()) for record in watched.run.records[:2]]
    for record in records:
        tracking.trial_started(record)
        tracking.trial_ended(record, False, ())
    tracking.trial_started(records[1])
    tracking.trial_ended(watched.run.records[1], False, ())
    tracking.ended("done")
    tags = [(trial.number, trial.tags["outcome"]) for trial in told(tracker, "finished")]
    assert tags == [(1, watched.run.records[1].outcome.tag), (0, "paused")]  # type: ignore[union-attr]  # it ended


def test_whoever_has_no_observer_is_warned(watched: Watched) -> None:
    tracking = Tracking("keeping", Keeping("open"))
    tracking.started(watched.view)
    with pytest.warns(RuntimeWarning, match="keeping is switched off"):
        tracking.ended("done")


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123abc")
    assert one_line(ValueError("key 0123abc is\nbad")) == "ValueError: key *** is"


def test_an_unknown_tracker_is_an_error_before_anything_starts(
    search: Search, tmp_path: Path
) -> None:
    with pytest.raises(UnknownName, match="tensorbord") as caught:
        search(track="tensorbord")
    assert "did you mean 'tensorboard'?" in (caught.value.help or "")
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(autotune.trackers.choice.LIBRARIES, "mlflow", "no_such_library")  # type: ignore[arg-type]  # a dict
    with pytest.raises(MissingLibrary, match="needs no_such_library, which is not") as caught:
        with_trackers((), "mlflow")
    assert caught.value.help == "pip install 'autotune-memory[mlflow]'"


def read_events(folder: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
    """Read the scalars and the texts of a folder of event files back."""
    from tensorboardX.proto.event_pb2 import Event

    scalars: dict[str, list[tuple[int, float]]] = {}
    texts: dict[str, str] = {}
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:  # length, checksum, event, checksum
            end = 12 + struct.unpack_from("<Q", content)[0]
            event, content = Event.FromString(content[12:end]), content[end + 4 :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
                elif value.tensor.string_val:
                    texts[value.tag.split("/")[0]] = value.tensor.string_val[0].decode()
    return scalars, texts


@installed("tensorboardX")
def test_tensorboard_has_the_curves_and_the_results(watched: Watched) -> None:
    run = watched.run
    folders = sorted((run.folder / "tensorboard").iterdir())
    assert [f.name for f in folders] == [f"trial-{r.number:04}" for r in trained(run)]
    scalars, texts = read_events(folders[0])
    record = run.records[0]
    assert record.outcome is not None
    score = record.score(run.spec.facts.metric)
    assert score is not None
    assert [value for _, value in scalars["loss"]] == [3.0, 2.0, 1.0]
    assert scalars["score"][0][1] == pytest.approx(score.value)
    peak = record.outcome.measurement.peak_bytes / 2**30
    assert scalars["peak_gib"][0][1] == pytest.approx(peak)
    assert texts == {"outcome": "completed", "origin": "baseline", "differs": "baseline"}


@installed("mlflow")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of SQLAlchemy, by MLflow
def test_mlflow_has_one_run_for_every_trial_also_after_a_resume(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run = search(track="mlflow")
    recorded = Run.open(RUN, results=REFERENCE)
    runner = ReplayRunner(recorded.spec.facts, recorded.records)
    more = resume("tracked", extra=1, results=tmp_path, runner=runner, track="mlflow")
    with closing(sqlite3.connect(run.folder / "mlflow.db")) as database:
        rows = database.execute("select value from tags where key = 'autotune.trial'").fetchall()
        parents = database.execute("select * from tags where key = 'autotune.run'").fetchall()
        losses = database.execute("select value from metrics where key = 'loss'").fetchall()
        scores = database.execute("select value from metrics where key = 'score'").fetchall()
        running = database.execute("select * from runs where status = 'RUNNING'").fetchall()
    assert sorted(int(number) for (number,) in rows) == [r.number for r in trained(more)]
    assert len(parents) == 1
    assert {loss for (loss,) in losses} >= {3.0, 2.0, 1.0}
    known = (record.score(run.spec.facts.metric) for record in more.records)
    assert sorted(s for (s,) in scores) == sorted(score.value for score in known if score)
    assert not running


@installed("wandb")
def test_wandb_keeps_every_trial_offline_and_asks_for_a_key_otherwise(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no key") as caught:
        search(track="wandb")
    assert "WANDB_MODE=offline" in (caught.value.help or "")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = search(track="wandb")
    kept = sorted(path.name.rpartition("-")[2] for path in run.folder.glob("wandb/offline-run-*"))
    assert [int(number) for number in kept] == [r.number for r in trained(run)]
    wandb.teardown()

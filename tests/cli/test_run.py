"""`run` and `resume` through the real loop, with trials that are replayed from the recorded run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

import autotune.cli.dry_run
import autotune.tuner
from autotune.core.outcome import Completed, Crashed
from autotune.core.record import TrialRecord
from autotune.core.seeds import Repetition
from autotune.plan import Settings
from autotune.runners.replay import ReplayRunner
from autotune.storage.run import Run
from tests.cli.conftest import Command
from tests.cli.recorded import facts, records

RUN = ("run", "--budget", "16GB", "--space", "smoke", "--name", "mine", "--trials", "5")
Replays = Callable[[list[TrialRecord]], None]


class InterruptedRunner(ReplayRunner):
    """Somebody presses Ctrl-C after some events."""

    events_left = 12

    def next(self, timeout=None):
        self.events_left -= 1
        if self.events_left == 0:
            raise KeyboardInterrupt
        return super().next(timeout)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> Replays:
    """Let trials end as recorded ones did, instead of training them."""

    def use(found: list[TrialRecord], kind: type[ReplayRunner] = ReplayRunner) -> None:
        def runner(settings: Settings) -> ReplayRunner:
            return kind(facts(), found)

        monkeypatch.setattr(autotune.tuner, "local_runner", runner)
        monkeypatch.setattr(autotune.cli.dry_run, "local_runner", runner)

    use(records())
    return use


def again(record: TrialRecord, *scores: float) -> TrialRecord:
    """The trial as if it had been recorded with further seeds, too."""
    assert isinstance(record.outcome, Completed)
    own = record.outcome.scores["accuracy"]
    ends = [
        replace(record.outcome, scores={"accuracy": replace(own, value=value)}) for value in scores
    ]
    repeats = [Repetition(seed=1 + n, started=0.0, outcome=end) for n, end in enumerate(ends)]
    return replace(record, repeats=tuple(repeats))


def test_run_repeats_what_is_near_the_front(replays: Replays, autotune_says: Command) -> None:
    replays([again(r, 0.7, 0.8) if isinstance(r.outcome, Completed) else r for r in records()])
    said = autotune_says(*RUN, "--repeats", "2", "--json")
    front = said.document["front"]
    assert said.status == 0
    assert {trial["seeds"] for trial in front} == {3}
    notes = [line for line in said.err.splitlines() if line.startswith("note ")]
    assert sum("on average" in line for line in notes) >= 2
    assert "with further seeds" in notes[-1]
    number = front[0]["trial"]
    mean = front[0]["scores"]["accuracy"]["value"]
    trial = autotune_says("show", f"mine/{number}", "--json").document["trial"]
    assert [r["scores"]["accuracy"]["value"] for r in trial["repeats"]] == [0.7, 0.8]
    assert trial["outcome"]["scores"]["accuracy"]["value"] == pytest.approx(3 * mean - 1.5)
    screen = autotune_says("show", f"mine/{number}").out
    assert "By seed; scores above are their mean" in screen
    assert notes[-1].removeprefix("note     ") in " ".join(autotune_says("show").out.split())
    sql = "select trial, score, seeds from front order by trial"
    rows = autotune_says("query", "--json", sql).document["rows"]
    assert [number, mean, 3] in rows
    again_ = autotune_says("resume", "mine", "--repeats", "2")
    assert again_.status == 0
    assert not any("on average" in line for line in again_.err.splitlines())
    assert autotune_says("resume", "mine", "--repeats", "often").status == 2


def test_run_reports_lines_and_a_final_screen(
    replays: Replays, autotune_says: Command, snapshot: SnapshotAssertion
) -> None:
    said = autotune_says(*RUN)
    assert said.status == 0
    assert said.err.splitlines()[0].startswith("autotune  budget=16.0GB device=cpu")
    ends = [line for line in said.err.splitlines() if line.startswith("trial ")]
    assert len(ends) == len(Run.open("mine").records) == 5
    assert said.err.splitlines()[-1].startswith("front    ")
    assert "\x1b" not in said.out + said.err
    assert said.err == snapshot(name="narration")
    assert "Next  autotune front mine" in said.out


def test_quiet_says_only_the_result(replays: Replays, autotune_says: Command) -> None:
    said = autotune_says(*RUN, "-q")
    assert said.err == ""
    assert said.out.startswith("5 trials in ")


def test_json_of_a_run(replays: Replays, autotune_says: Command) -> None:
    said = autotune_says(*RUN, "--json")
    assert said.document["run"]["name"] == "mine"
    assert sum(said.document["counts"].values()) == 5
    assert said.document["front"]
    assert "trial 0" in said.err


def test_verbose_adds_phases(replays: Replays, autotune_says: Command) -> None:
    assert "phase          steady" in autotune_says(*RUN, "-v").err


def test_resume_adds_trials(replays: Replays, autotune_says: Command) -> None:
    autotune_says(*RUN)
    said = autotune_says("resume", "mine", "--trials", "+2")
    assert said.status == 0
    assert len(Run.open("mine").records) == 7
    assert autotune_says("resume", "--trials", "8").status == 0
    assert len(Run.open("mine").records) == 8


def test_ctrl_c_prints_the_resume_line(replays: Replays, autotune_says: Command) -> None:
    replays(records(), InterruptedRunner)
    said = autotune_says(*RUN)
    assert said.status == 130
    assert "`autotune resume mine` continues" in " ".join(said.err.split())
    assert Run.open("mine").status == "interrupted"
    replays(records())
    assert autotune_says("resume", "mine").status == 0
    assert Run.open("mine").status == "done"


def test_trials_that_all_crash_alike_are_one_error(
    replays: Replays, autotune_says: Command
) -> None:
    crash = Crashed(seconds=1.0, exit_code=1, error="ImportError: no x", traceback="T\nImportError")
    replays([replace(record, outcome=crash) for record in records()])
    said = autotune_says(*RUN)
    assert said.status == 1
    assert said.out == ""
    assert "all 5 trials of mine crashed: ImportError: no x" in said.err
    assert "autotune doctor" in said.err
    assert "autotune show mine/0" in said.err


def test_nothing_fits_has_its_own_status(replays: Replays, autotune_says: Command) -> None:
    outcome = records()[0].outcome
    replays([replace(record, outcome=outcome) for record in records()])
    said = autotune_says(*RUN)
    assert said.status == 3
    assert "error  nothing in space 'smoke' fits 16.0 GB" in said.err
    assert "the smallest budget that works is" in said.err
    assert "Traceback" not in said.err


def test_dry_run_says_where_each_setting_comes_from(
    replays: Replays,
    autotune_says: Command,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: SnapshotAssertion,
) -> None:
    monkeypatch.setenv("AUTOTUNE_DEVICE", "cpu")
    Path("autotune.toml").write_text('[run]\nspace = "smoke"\nseed = 7\nbudget = "8GB"\n')
    said = autotune_says("run", "--budget", "16GB", "--dry-run", "--set", "optimizer=sgd")
    assert (said.status, said.err) == (0, "")
    assert said.out == snapshot
    assert not Path("results").exists()
    sources = {
        setting["name"]: setting["source"]
        for setting in autotune_says("run", "--dry-run", "--json").document["settings"]
    }
    assert sources["budget"] == sources["seed"] == "autotune.toml"
    assert sources["device"] == "environment"
    assert sources["trials"] == "default"
    assert sources["global_batch"] == "the space"


def test_dry_run_refuses_what_a_run_would(
    replays: Replays, autotune_says: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOTUNE_DEVICE", "cpu")
    dry = ("run", "--budget", "8GB", "--space", "smoke", "--dry-run")
    said = autotune_says(*dry, "--warm-start", "nosuchrun")
    assert (said.status, "unknown run 'nosuchrun'" in said.err) == (2, True)
    found = autotune_says(*dry, "--devices", "2", "--rungs", "1/2", "--json").document
    shown = {setting["name"]: setting["value"] for setting in found["settings"]}
    assert (shown["devices"], shown["rungs"]) == ("2", "1/2")
    assert "warm_start" not in shown


def test_flag_wins_over_environment_over_file_over_default(
    replays: Replays, autotune_says: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOTUNE_RESULTS")
    Path("pyproject.toml").write_text('[tool.autotune]\nresults = "from-file"\n')
    autotune_says(*RUN)
    assert Path("from-file/mine/study.db").exists()
    monkeypatch.setenv("AUTOTUNE_RESULTS", "from-environment")
    autotune_says(*RUN)
    assert Path("from-environment/mine/study.db").exists()
    autotune_says(*RUN, "--results", "from-flag")
    assert Path("from-flag/mine/study.db").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("budget = 3", "unknown setting of every command 'budget'"),
        ("[runn]\nbudget = '1GB'", "did you mean 'run'?"),
        ("[run]\nbudgt = '1GB'", "did you mean 'budget'?"),
        ("[run\n", "this is not TOML"),
    ],
)
def test_mistakes_in_settings_are_said(autotune_says: Command, text: str, message: str) -> None:
    Path("autotune.toml").write_text(text)
    said = autotune_says("run", "--budget", "1GB")
    assert said.status == 2
    assert said.err.startswith("error  autotune.toml  ")
    assert message in said.err

"""Memory over one step: exact at the peak, small, kept beside the trial, shown in the report."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.core.context import Device
from autotune.core.errors import StorageError
from autotune.core.outcome import Peak, PeakKind, Phase
from autotune.core.record import TrialRecord
from autotune.knobs import BUILTIN
from autotune.memory.rehearsal import CannotRehearse
from autotune.memory.timeline import MOST_MOMENTS, Timeline, timeline_of
from autotune.memory.trace import MOVED, Trace
from autotune.report.cards.card import Declined
from autotune.report.cards.findings import Findings
from autotune.report.cards.timelines import Course, Timelines, timelines_card
from autotune.report.figures import make_figures
from autotune.report.html import report_html
from autotune.report.markdown import report_markdown
from autotune.report.timeline_figures import draw_timelines
from autotune.storage.places import timeline_path
from autotune.storage.run import Run
from autotune.timelines import MOST_TRIALS, keep_timelines, missing, read_timeline, shown
from autotune.trial.spec import TrialSpec
from tests.cli.recorded import completed
from tests.reports import FEW, Page, keep_all, make_run, trace_of
from tests.unit.test_page import HOSTILE

WEIGHTS, GRADIENTS, ACTIVATIONS = 100, 100, 40
STEP = (
    ("before", "", "weights", WEIGHTS),
    ("forward", "aten.mm", "activations", ACTIVATIONS),
    ("head", "aten.loss", "logits", 7),
    ("backward", "aten.mm", "other", GRADIENTS),
    ("backward", MOVED, "other", -GRADIENTS),
    ("backward", MOVED, "gradients", GRADIENTS),
    ("backward", "aten.mm", "logits", -7),
    ("optimizer", "aten.add", "activations", -ACTIVATIONS),
    ("optimizer", "aten.add", "gradients", -GRADIENTS),
)


def test_every_moment_has_all_parts_and_a_move_is_none() -> None:
    found = timeline_of(trace_of(STEP))
    assert (found.phase, found.events, found.moments) == ("steady", 8, (0, 1, 2, 3, 5, 6, 7, 8))
    assert found.totals == (100, 140, 147, 247, 247, 240, 200, 100)
    assert (found.peak_bytes, found.peak_stage, found.operator) == (247, "backward", "aten.mm")
    assert found.parts["gradients"] == (0, 0, 0, 0, 100, 100, 100, 0)
    assert found.stages == (("forward", 0), ("backward", 2), ("optimizer", 6))
    assert found.peaks == {"forward": 147, "backward": 247, "optimizer": 200}
    assert "inputs" not in found.parts


def test_accumulation_goes_forward_more_than_once() -> None:
    twice = timeline_of(trace_of((*STEP[:7], *STEP[1:3], *STEP[6:])))
    kinds = [stage for stage, _ in twice.stages]
    assert kinds == ["forward", "backward", "forward", "backward", "optimizer"]


def test_long_steps_are_thinned_out_and_keep_their_peak() -> None:
    wave = [("forward", "aten.mm", "activations", (-1) ** n * (1 + n % 7)) for n in range(9000)]
    spike = [("backward", "aten.mm", "activations", size) for size in (10_000, -10_000)]
    found = timeline_of(trace_of((STEP[0], *wave[:4321], *spike, *wave[4321:])))
    assert found.events == 9002
    assert len(found.moments) <= MOST_MOMENTS
    assert found.moments == tuple(sorted(set(found.moments)))
    live = [100 + sum(e[3] for e in wave[:4321]) + 10_000]
    assert found.peak_bytes == live[0]
    assert found.moments[found.peak_moment] == 4322
    assert (found.moments[0], found.moments[-1]) == (0, 9002)


def test_a_training_of_one_step_and_an_evaluation_have_their_own_phase() -> None:
    assert timeline_of(trace_of(STEP, phase="first")).phase == "first"
    assert timeline_of(trace_of(STEP, phase="evaluate"), "inference").phase == "evaluate"


def test_json_comes_back_and_what_is_no_timeline_is_refused() -> None:
    found = timeline_of(trace_of(STEP))
    assert Timeline.from_json(found.to_json()) == found
    with pytest.raises(StorageError, match="schema 2"):
        Timeline.from_json({**found.to_json(), "schema": 2})
    with pytest.raises(StorageError, match="no timeline"):
        Timeline.from_json({"schema": 1, "phase": "steady"})


class Tracer:
    """Answers with one trace, or an error for a trial of a number."""

    def __init__(self, *, fails: int = -1, tick: Callable[[], object] = int) -> None:
        self.asked: list[TrialSpec] = []
        self._fails = fails
        self._tick = tick

    def trace(self, spec: TrialSpec) -> Trace:
        self._tick()
        self.asked.append(spec)
        if spec.number == self._fails:
            raise CannotRehearse("an operator cannot be followed without values")
        return trace_of(STEP)


def spec_of(record: TrialRecord, ranks: int = 1) -> TrialSpec:
    config = record.config.to_json() | ({"layout.ranks": ranks} if ranks > 1 else {})
    return TrialSpec(
        number=record.number,
        config=config,
        facts=make_run(FEW).spec.facts,
        device=Device(kind="cpu"),
        threads=1,
        limit_bytes=1,
        limit_seconds=1.0,
        cache="",
        log="",
    )


def kept_in(tmp_path: Path) -> tuple[Run, list[TrialRecord]]:
    run = make_run(FEW, folder=tmp_path)
    return run, shown(run.records, run.metric)


def test_picks_come_first_and_no_more_than_some(tmp_path: Path) -> None:
    run, best = kept_in(tmp_path)
    picks = run.picks()
    assert picks.knee is not None
    assert best[0].number == picks.knee.number
    assert {r.number for r in best} == {r.number for r in run.front()}
    many = make_run([({}, completed(0.5 + n / 100, 1.0 + n / 10)) for n in range(20)])
    assert len(many.front()) == 20
    assert len(shown(many.records, many.metric)) == MOST_TRIALS


def test_timelines_are_kept_and_reasons_too(tmp_path: Path) -> None:
    _, best = kept_in(tmp_path)
    tracer, told = Tracer(fails=best[1].number), []
    assert missing(tmp_path, best) == best
    keep_timelines(tmp_path, best, spec_of, tracer, seconds=60.0, told=told.append)
    assert [spec.number for spec in tracer.asked] == [r.number for r in best]
    assert all(spec.probe for spec in tracer.asked), "an evaluation takes time and is not shown"
    assert len(told) == len(best)
    assert missing(tmp_path, best) == []
    assert read_timeline(tmp_path, best[0].number) == timeline_of(trace_of(STEP))
    reason = read_timeline(tmp_path, best[1].number)
    assert reason == "it cannot be rehearsed: an operator cannot be followed without values"
    assert read_timeline(tmp_path, 99) == ""
    timeline_path(tmp_path, best[0].number).write_text("[")
    assert "cannot be read" in str(read_timeline(tmp_path, best[0].number))


def test_several_ranks_have_none_and_time_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, best = kept_in(tmp_path)
    keep_timelines(tmp_path, best[:1], lambda r: spec_of(r, 4), Tracer(), seconds=60.0)
    assert "it trains on 4 ranks" in str(read_timeline(tmp_path, best[0].number))
    clock = itertools.count()
    monkeypatch.setattr("autotune.timelines.time.monotonic", lambda: float(next(clock)))
    keep_timelines(tmp_path, best, spec_of, Tracer(), seconds=1.5)
    assert missing(tmp_path, best) == best[1:]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    run, best = kept_in(tmp_path)
    (tmp_path / "trials").write_text("a file where a folder should be")
    keep_timelines(tmp_path, best, spec_of, Tracer(), seconds=60.0)
    assert isinstance(timelines_card(Findings.of(run, BUILTIN)), Declined)


def card_of(folder: Path, *, measured: float = 1.0) -> Timelines:
    run = make_run(FEW, folder=folder)
    keep_all(run, measured)
    card = timelines_card(Findings.of(run, BUILTIN))
    assert isinstance(card, Timelines)
    return card


def test_card_says_that_it_is_rehearsed_and_how_far_off(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    assert [course.number for course in card.courses] == [1, 3, 4], "the best score first"
    assert card.sentences[0].startswith("Rehearsed, not measured: a steady training step")
    assert "Each peak is within 0.05% of what its trial measured" in card.sentences[1]
    off = card_of(tmp_path, measured=0.9)
    assert "10.0% below what it measured" in off.sentences[1]
    (table,) = off.tables
    assert table.columns[-3:] == ("rehearsed peak", "measured peak", "differs by")
    assert {row[-1] for row in table.rows} == {"−10.00%"}
    assert table.marked == {
        i for i, row in enumerate(table.rows) if int(row[0]) == recommended(tmp_path)
    }


def recommended(folder: Path) -> int:
    knee = make_run(FEW, folder=folder).picks().knee
    assert knee is not None
    return knee.number


def test_card_declines_with_the_reason(tmp_path: Path) -> None:
    run = make_run(FEW, folder=tmp_path)
    nothing = timelines_card(Findings.of(run, BUILTIN))
    assert isinstance(nothing, Declined)
    assert "`autotune report bert-16gb` makes it" in nothing.reason
    for record in run.front():
        path = timeline_path(tmp_path, record.number)
        path.parent.mkdir(parents=True)
        path.write_text('{"reason": "it cannot be rehearsed: so it is."}')
    refused = timelines_card(Findings.of(run, BUILTIN))
    assert isinstance(refused, Declined)
    assert "it cannot be rehearsed: so it is; " in refused.reason


def test_some_without_are_named(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    gone = card.courses[0].number
    timeline_path(tmp_path, gone).unlink()
    again = timelines_card(Findings.of(make_run(FEW, folder=tmp_path), BUILTIN))
    assert isinstance(again, Timelines)
    assert len(again.courses) == len(card.courses) - 1
    assert f"No timeline of trial {gone}: none was made." in again.sentences


def test_figures_stack_every_part_and_have_words(tmp_path: Path) -> None:
    card = card_of(tmp_path)
    figures = make_figures([card])
    assert [figure.key for figure in figures] == [f"timeline-{c.number}" for c in card.courses]
    first, course = figures[0], card.courses[0]
    assert {trace.name for trace in first.drawing.data} == set(course.timeline.parts)
    assert {trace.stackgroup for trace in first.drawing.data} == {"memory"}
    tops = [sum(values) for values in zip(*(t.y for t in first.drawing.data), strict=True)]
    assert max(tops) == pytest.approx(course.timeline.peak_bytes / 2**30, rel=1e-4)
    named = [note.text for note in first.drawing.layout.annotations]
    assert named[:3] == ["forward", "backward", "optimizer"]
    assert named[3].startswith("peak ")
    shifts = [note.yshift for note in first.drawing.layout.annotations[:3]]
    assert shifts == [0, 0, 0], "there is room for every name"
    assert "Rehearsed memory of trial" in first.alt
    assert "Measured peak" in first.alt


def test_names_of_short_stages_do_not_cover_each_other(tmp_path: Path) -> None:
    short = [("forward", "aten.mm", "activations", 1)] * 3
    long = [("backward", "aten.mm", "gradients", 1)] * 97
    timeline = timeline_of(trace_of((STEP[0], *short, *long, STEP[-1])))
    course = Course(number=1, title="Trial 1", timeline=timeline, measured_bytes=0)
    (figure,) = draw_timelines(replace(card_of(tmp_path), courses=(course,)))
    notes = {note.text: note.yshift for note in figure.drawing.layout.annotations}
    assert notes["forward"] == 0 < notes["backward"]
    assert "not known" in figure.alt


def test_page_and_markdown_have_it_and_names_do_nothing(tmp_path: Path) -> None:
    run = make_run(FEW, folder=tmp_path)
    keep_all(run)
    path = timeline_path(tmp_path, run.front()[0].number)
    path.write_text(path.read_text().replace("aten.mm", HOSTILE.replace('"', "'")))
    found = Findings.of(run, BUILTIN)
    page = Page(report_html(found))
    plots = [str(tag.get("id")) for tag in page.all("div") if tag.get("class") == "plot"]
    assert [p for p in plots if "timeline" in p]
    assert page.all("img") == []
    assert "<script>alert" not in "".join(page.scripts[name] for name in ("drawings", "trials"))
    assert "rehearsed peak" in report_markdown(found)


def test_trials_that_peak_elsewhere_are_named(tmp_path: Path) -> None:
    lean = completed(0.9, 8.0)
    loading = Peak(phase=Phase.LOAD, kind=PeakKind.ALLOCATED, bytes=9 * 2**30)
    measurement = replace(lean.measurement, peaks=(*lean.measurement.peaks, loading))
    run = make_run([({}, replace(lean, measurement=measurement))], folder=tmp_path)
    keep_all(run)
    card = timelines_card(Findings.of(run, BUILTIN))
    assert isinstance(card, Timelines)
    text = "The greatest peak of trial 0 comes while loading, which is not shown here."
    assert text in card.sentences

"""The live display of a run in a terminal: redrawn in place four times a second.

What happens scrolls by above; below it stay the progress, the running trials and the front so far,
cut to the height of the terminal. Output of trials goes to files and never through here. When the
run ends the display goes away, and the final screen takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autotune.core.observer import RunView
from autotune.core.outcome import Completed, OutOfMemory, Paused, Refused
from autotune.core.record import TrialRecord
from autotune.core.units import format_duration, format_gib, gib
from autotune.report.progress import Progress, RunningTrial
from autotune.report.summary import STATES
from autotune.report.text import ROWS, WIDE, Column, make_table, score_text, trials_table

REFRESH_PER_SECOND = 4
_FIXED_LINES = 12
"""Lines of the display that are neither a running trial nor a trial of the front."""


class LiveDisplay(Progress):
    """Draws a run in place.

    Args:
        console: A console on a terminal.
        auto_refresh: Whether a thread redraws; without it only what happens does.
    """

    def __init__(self, console: Console, *, auto_refresh: bool = True) -> None:
        super().__init__()
        self.console = console
        self._live = Live(
            console=console,
            get_renderable=self.render,
            refresh_per_second=REFRESH_PER_SECOND,
            auto_refresh=auto_refresh,
            transient=True,
        )

    def started(self, run: RunView) -> None:
        """Print what is searched, and start drawing."""
        super().started(run)
        self.console.print(header(run))
        self._live.start()

    def trial_ended(
        self,
        record: TrialRecord,
        joined_front: bool,  # noqa: FBT001  (see `Observer`)
        front: Sequence[TrialRecord],
    ) -> None:
        """Let how a trial ended scroll by."""
        super().trial_ended(record, joined_front, front)
        self._say(self._news(record, joined=joined_front))

    def note(self, text: str) -> None:
        """Let it scroll by."""
        self._say(text)

    def ended(self, status: str) -> None:
        """Stop drawing and clear the display."""
        super().ended(status)
        self.close()

    def close(self) -> None:
        """Stop drawing, however the run ended. May be called twice."""
        self._live.stop()

    def render(self) -> RenderableType:
        """Return the display as it stands."""
        if self.view is None:
            return Text()
        running = list(self.running.values())[:ROWS]
        room = self.console.height - _FIXED_LINES - len(running)
        parts: list[RenderableType] = [Text(), self._progress_line(self.view), self._counts_line()]
        if running:
            parts += [Text(), self._running_table(running)]
        if self.front and room > 0:
            parts += [Text(), *self._front_table(self.view, min(ROWS, room))]
        return Group(*parts)

    def _say(self, text: str) -> None:
        self.console.print(Text(f"{format_duration(self.elapsed):>7}  {text}"))

    def _news(self, record: TrialRecord, *, joined: bool) -> str:
        assert self.view is not None
        label = record.config.describe(self.view.space.knobs)
        outcome = record.outcome
        match outcome:
            case Completed():
                metric = self.view.metric
                peak = gib(outcome.measurement.peak_bytes)
                front = ", joined the front" if joined else ""
                over = "" if record.feasible else ", over the budget"
                score = score_text(record.score(metric), metric)
                return f"{record.number}  {metric.name} {score}, {peak} GiB{front}{over}: {label}"
            case Paused(rung=rung):
                score = score_text(rung.scores.get(self.view.metric.name), self.view.metric)
                peak = gib(outcome.measurement.peak_bytes)
                return f"{record.number}  {outcome.summary}, {score}, {peak} GiB: {label}"
            case Refused(needed_bytes=needed):
                return f"{record.number}  refused, {format_gib(needed)} rehearsed: {label}"
            case OutOfMemory(needed_bytes=needed) if needed:
                return f"{record.number}  {outcome.summary}, {format_gib(needed)} needed: {label}"
        return f"{record.number}  {outcome.summary if outcome else ''}: {label}"

    def _progress_line(self, view: RunView) -> Table:
        done, total = self.trained, view.spec.trials
        words = f"{done:g} of {total} finished   {format_duration(self.elapsed)} elapsed"
        left = self.left()
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(
            Text("Trials", style="bold"),
            ProgressBar(total=max(1, total), completed=done, width=24),
            Text(words + (f"   {left} left" if left else "")),
        )
        return line

    def _counts_line(self) -> Text:
        counts = self.counts()
        parts = [f"{counts[state]} {name}" for state, name in STATES.items() if state in counts]
        parts += [f"{len(self.running)} running", f"front {len(self.front)}"]
        return Text("        " + "   ".join(parts))

    def _running_table(self, running: Sequence[RunningTrial]) -> Table:
        assert self.view is not None
        knobs = self.view.space.knobs
        columns = (
            Column("#", "right"),
            Column("phase"),
            Column("step", "right"),
            Column("loss", "right"),
            Column("running, differs from baseline", folds=True),
        )
        rows = [
            (
                str(trial.record.number),
                trial.phase or "start",
                f"{trial.step}/{trial.steps}" if trial.steps else "–",
                "–" if trial.loss is None else f"{trial.loss:.3f}",
                trial.record.config.describe(knobs),
            )
            for trial in running
        ]
        return make_table(columns, rows)

    def _front_table(self, view: RunView, rows: int) -> list[RenderableType]:
        shown = self.front[-rows:][::-1]  # best score first; the smallest are cut
        if rows < len(self.front):
            shown = (*self.front[-rows + 1 :][::-1], self.front[0]) if rows > 1 else shown
        budget = view.budget if self.console.width >= WIDE else None
        parts: list[RenderableType] = [
            Text(f"Front so far: {view.metric.name} against peak memory", style="bold"),
            trials_table(shown, view.metric, view.space.knobs, budget=budget),
        ]
        if len(shown) < len(self.front):
            more = f"… {len(self.front) - len(shown)} more, autotune front {view.spec.name}"
            parts.append(Text(more))
        return parts


def header(run: RunView) -> Table:
    """Return what is searched, under which budget, where, and where the results go."""
    spec, facts = run.spec, run.spec.facts
    count = run.legal_count if run.legal_count is not None else run.space.size
    size = f"{count:,} configurations".replace(",", " ") if count else "a continuous range"
    bf16 = "bf16 yes" if run.device.bf16 else "bf16 not in hardware"
    table = Table.grid(padding=(0, 2, 0, 0))
    rows = (
        (
            "Search",
            f"{facts.workload.objective}, {facts.model.name}, {facts.data}; space {spec.space} "
            f"({len(run.space.domains)} knobs, {size}), sampler {spec.sampler}, seed {spec.seed}",
        ),
        ("Budget", run.budget.describe()),
        (
            "Device",
            f"{run.device.label} {run.device.name} {format_gib(run.device.total_bytes)}, {bf16}, "
            f"{spec.jobs} trial{'s' * (spec.jobs != 1)} at a time",
        ),
        (
            "Output",
            f"{run.folder}   Ctrl-C stops safely, `autotune resume {spec.name}` continues",
        ),
    )
    for name, what in rows:
        table.add_row(Text(name, style="bold"), Text(what, overflow="fold"))
    if facts.note:
        table.add_row(Text("Note", style="bold"), Text(facts.note))
    return table

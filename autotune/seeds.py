"""Trials near the front, trained once more with further seeds when a search has ended.

When a search has ended, what it put on the front is there partly by luck. `repeat_near_front`
trains the trials whose order is not settled with the next seeds (`search/seeds.py` says which), one
after the other or side by side, and records each as a row of its own; the score of a trial is then
the mean over its seeds. A repeat that is interrupted leaves nothing behind and is begun anew when
the run is resumed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from autotune.core.context import Device
from autotune.core.errors import AutotuneError
from autotune.core.outcome import outcome_from_json
from autotune.core.record import TrialRecord
from autotune.core.seeds import Repetition
from autotune.core.workload import Metric, WorkloadFacts
from autotune.driver import HEARTBEAT_SECONDS, Search
from autotune.runners.base import Recording
from autotune.runners.seeds import prepare_seed
from autotune.search.seeds import Order, next_repeat, repeats_sentence
from autotune.storage.places import cache_path, seed_log_path
from autotune.trial.spec import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A repeat under way."""

    seed: int
    started: float
    device: Device


@dataclass(slots=True, kw_only=True)
class _Repeats:
    """The repeats of a search that has ended.

    Attributes:
        state: The search.
        until: When nothing more is started, by the runner's clock; None for no limit.
        running: Repeats under way, by the number of their trial, at most one of each.
        facts: What was prepared, by seed.
        blocked: Whether nothing more can be prepared, which was said.
    """

    state: Search
    until: float | None
    running: dict[int, _Running] = field(default_factory=dict)
    facts: dict[int, WorkloadFacts] = field(default_factory=dict)
    blocked: bool = False

    @property
    def late(self) -> bool:
        """Whether the time is used up."""
        return self.until is not None and self.state.runner.now() >= self.until

    @property
    def first_seed(self) -> int:
        """Seed of the search's own trainings."""
        return self.state.plan.spec.facts.workload.seed

    def choose(self) -> tuple[TrialRecord, int] | None:
        """Return the next trial to repeat with its seed; None if there is none."""
        state, runner, spec = self.state, self.state.runner, self.state.plan.spec

        def recorded(record: TrialRecord, further: int) -> bool:
            assert isinstance(runner, Recording)
            return runner.knows_seed(record.config, self.first_seed + further)

        chosen = next_repeat(
            list(state.records.values()),
            spec.facts.metric,
            state.plan.space.knobs,
            spec.repeats,
            running=self.running,
            knows=recorded if isinstance(runner, Recording) else None,
        )
        return None if chosen is None else (chosen[0], self.first_seed + chosen[1])

    def fill_slots(self) -> None:
        """Start what is to be repeated next, as long as there is time and room for it."""
        state = self.state
        while len(self.running) < state.runner.slots:
            over = state.stopped or self.late or self.blocked
            chosen = None if over else self.choose()
            if chosen is None:
                return
            try:
                self.start(*chosen)
            except AutotuneError as error:
                self.blocked = True
                state.note(f"no further repeats: {error.message}")

    def start(self, record: TrialRecord, seed: int) -> None:
        """Train a trial with another seed.

        Raises:
            AutotuneError: If model or data cannot be prepared any more, or are not what they were.
        """
        state = self.state
        if seed not in self.facts:
            known = state.plan.spec.facts
            found, same = prepare_seed(
                state.runner, known, seed - self.first_seed, cache_path(state.folder)
            )
            if not same:
                digest = known.data_fingerprint[:12]
                raise AutotuneError(
                    f"the data is not what it was: its digest began with {digest} when it was "
                    "recorded"
                )
            self.facts[seed] = found
        taken = [running.device for running in self.running.values()]
        device = min(state.plan.devices, key=lambda d: sum(t == d for t in taken))
        log = seed_log_path(state.folder, record.number, seed)
        now = state.runner.now()
        self.running[record.number] = _Running(seed=seed, started=now, device=device)
        spec = state.trial_spec(record, device)
        state.runner.submit(replace(spec, facts=self.facts[seed], log=str(log)))

    def hear(self, event: Event) -> bool:
        """Take how a repeat ended; what it says before is not kept.

        Returns:
            Whether it has ended, so that another one has room.
        """
        if event.kind != "outcome" or event.trial not in self.running:
            return False
        running = self.running.pop(event.trial)
        if self.state.stopped:
            return False  # it was ended from outside, and is begun anew when the run is resumed
        again = Repetition(
            seed=running.seed, started=running.started, outcome=outcome_from_json(event.data)
        )
        record = self.state.repeated(event.trial, again)
        self.state.note(_ended(record, again, self.state.plan.spec.facts.metric))
        return True

    def end_all(self, reason: str) -> None:
        """End what runs, without a trace."""
        for number in list(self.running):
            self.state.runner.cancel(number, reason)


def repeat_near_front(state: Search, until: float | None) -> str:
    """Train trials near the front with further seeds, as the run asks for.

    Args:
        state: A search that has ended.
        until: When nothing more is started, by the runner's clock; None for no limit.

    Returns:
        How it ended: `"done"`, or `"interrupted"` by Ctrl-C or `autotune stop`.
    """
    work = _Repeats(state=state, until=until)
    changed = True
    try:
        while True:
            if not state.stopped and state.stop_if_asked():
                work.end_all("stopped")
            if changed:
                work.fill_slots()
            if not work.running:
                break
            if (event := state.runner.next(state.store.attempt_in(HEARTBEAT_SECONDS))) is None:
                state.store.heartbeat(state.name)
                changed = False
            else:
                changed = work.hear(event)
    except KeyboardInterrupt:
        work.end_all("interrupted")
        return "interrupted"
    if not state.stopped and (said := _conclusion(work)):
        state.note(said)
    return "interrupted" if state.stopped else "done"


def _ended(record: TrialRecord, again: Repetition, metric: Metric) -> str:
    """Say how a repeat ended."""
    text = f"trial {record.number} again, with seed {again.seed}"
    value, mean = again.score(metric), record.score(metric)
    if value is None or mean is None:
        return f"{text}: {again.outcome.summary}"
    return (
        f"{text}: {metric.name} {value.value:.{metric.digits}f}, on average "
        f"{mean.value:.{metric.digits}f} over {record.seeds} seeds"
    )


def _conclusion(work: _Repeats) -> str:
    """Say what the repeats have come to, or why there are none; empty if that was said."""
    state = work.state
    records, metric = list(state.records.values()), state.plan.spec.facts.metric
    knobs = state.plan.space.knobs
    if said := repeats_sentence(records, metric, knobs):
        return said
    if work.blocked or not state.front:
        return ""
    if not Order(records, metric, knobs).open_pairs():
        return "The order of the front is settled without repeats."
    if work.late:
        return "Nothing was repeated: the time is used up."
    if isinstance(state.runner, Recording):
        return "Nothing was repeated: the recording has no further seeds of these trials."
    return "Nothing was repeated: that would be more than a third of the trainings."

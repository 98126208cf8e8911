"""The parts of the loop: propose and start a trial, conclude one, keep the front.

The driver that holds a `Search` is the only writer of the study database and the only one that asks
and tells. `autotune/tuner.py` has the loop itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from autotune.climb import OPENING, Climb
from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.observer import Observer, RunView
from autotune.core.outcome import Completed, Paused, outcome_from_json
from autotune.core.pareto import front
from autotune.core.parts import continued
from autotune.core.record import Origin, TrialRecord
from autotune.core.seeds import Repetition
from autotune.plan import Plan
from autotune.runners.base import Runner
from autotune.search.rungs import ByRank, Promotion, Rungs, reached_by
from autotune.search.sampler import Proposer
from autotune.search.screen import Screen
from autotune.search.study import StudyMirror
from autotune.storage.store import Store
from autotune.trial.spec import Event, TrialSpec

HEARTBEAT_SECONDS = 15.0
"""The database hears of the driver, and is asked whether the run is to end, at least this often,
also while one long trial runs."""

PATIENCE = 10.0
"""A trial may take this many times as long as the slowest completed one."""

LEAST_TRIAL_SECONDS = 60.0

STABLE = 0.005
"""Share of the hypervolume that is next to nothing."""

CALM_PROPOSALS = 3
"""Proposals in a row that promise next to nothing before a search is stable."""

RECORDED = ("phase", "node", "repeated")
"""Events of running trials that the database keeps; the loss of each step is not for it."""

MOST_REFUSALS = 200
"""Proposals that may be refused one after the other before the search has nothing left to try."""


@dataclass(slots=True, kw_only=True)
class Search:
    """A search under way: who takes part, and what is known so far.

    Attributes:
        plan: What the run depends on.
        store: The study database.
        mirror: The Optuna study in the same database, for the tools that read those.
        proposer: Says what to try next.
        runner: Runs it.
        folder: The run's folder.
        observers: Told what happens.
        records: Every trial of the run, by number.
        running: The device of each trial that runs.
        repeats: What an earlier part of the run left unfinished, to be tried again.
        screen: Refuses what cannot fit; None to try everything.
        noted: What observers heard of the proposer's last note.
        until_stable: Whether the search ends when proposals promise next to nothing.
        calm: How many of the latest proposals did so, one after the other.
        climb: Trials that pause, and which of them goes on.
        stopped: Whether somebody has asked for the end of the run: `autotune stop`.
    """

    plan: Plan
    store: Store
    mirror: StudyMirror
    proposer: Proposer
    runner: Runner
    folder: Path
    observers: Sequence[Observer] = ()
    records: dict[int, TrialRecord] = field(default_factory=dict)
    running: dict[int, Device] = field(default_factory=dict)
    repeats: dict[int, TrialRecord] = field(default_factory=dict)
    screen: Screen | None = None
    noted: str = ""
    until_stable: bool = False
    calm: int = 0
    climb: Climb = field(init=False)
    stopped: bool = False
    _front: list[TrialRecord] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec = self.plan.spec
        metric = spec.facts.metric
        own = self.proposer if isinstance(self.proposer, Promotion) else None
        self.climb = Climb(
            rungs=Rungs.of(spec.rungs, spec.facts.workload.steps),
            rule=own or ByRank(metric),
            metric=metric,
            trials=spec.trials,
            folder=self.folder,
        )

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.plan.spec.name

    @property
    def seconds_before(self) -> float:
        """Time that trials of an earlier part of the run took; it counts for the time limit."""
        records = self.records.values()
        took = sum(r.outcome.seconds for r in records if r.outcome is not None)
        took += sum(again.outcome.seconds for r in records for again in r.repeats)
        return took / max(1, self.plan.spec.jobs)

    @property
    def ended(self) -> list[TrialRecord]:
        """Trials that have an outcome, in order."""
        return [self.records[n] for n in sorted(self.records) if self.records[n].outcome]

    @property
    def front(self) -> list[TrialRecord]:
        """Trials that no other feasible trial beats in both accuracy and memory."""
        return list(self._front)

    @property
    def stable(self) -> bool:
        """Whether the search is to end because proposals promise next to nothing."""
        return self.until_stable and self.calm >= CALM_PROPOSALS

    @property
    def undecided(self) -> bool:
        """Whether the opening still has to show that anything fits; no more is started before."""
        opening = any(self.records[number].origin in OPENING for number in self.running)
        return (
            len(self.records) >= len(OPENING)
            and opening
            and not any(record.feasible for record in self.ended)
        )

    def remember(self, records: Sequence[TrialRecord]) -> None:
        """Take over the trials of an earlier part of the run, and let the proposer learn them."""
        for record in records:
            self.proposer.tell(record)
            if record.outcome is None:
                self.repeats[record.number] = record
            else:
                self.records[record.number] = record
                if self.screen is not None:
                    self.screen.learn(record)
                self._mirror(record)
        self._front = front(self.ended, self.plan.spec.facts.metric)

    def announce(self) -> None:
        """Tell observers what is about to be searched."""
        plan = self.plan
        view = RunView(
            spec=plan.spec,
            space=plan.space,
            legal_count=plan.space.count(plan.context),
            folder=self.folder,
            budget=plan.budget,
            device=plan.context.device,
            metric=plan.spec.facts.metric,
            clock=self.runner.now,
            earlier=tuple(self.ended),
        )
        self.tell_observers(lambda o: o.started(view))

    def submit_next(self) -> bool:
        """Propose and start the next trial; False if there is none left.

        Proposals that the screen refuses are recorded and passed over: they are no trials.
        """
        self.climb.trials = self.plan.spec.trials
        for _ in range(MOST_REFUSALS):
            number = next(n for n in itertools.count() if n not in self.records)
            if (paused := self.climb.choose(number, self.records)) is not None:
                self._go_on(paused)
                return True
            if not self.climb.room(self.records):
                return False
            config, origin = self._propose(number)
            if self.stable:
                return False
            if config is None:
                return False
            if self._start(number, config, origin):
                return True
        return False

    def _start(self, number: int, config: Config, origin: Origin) -> bool:
        """Start a trial; False if the screen refuses it."""
        record = TrialRecord(
            number=number,
            config=config,
            origin=origin,
            started=self.runner.now(),
            limit_bytes=self.plan.budget.limit_bytes,
        )
        device = self._free_device()
        refusal, note = None, ""
        if self.screen is not None:
            look = self.screen.look(self.trial_spec(record, device))
            note = look.note
            record = replace(record, rehearsed_bytes=look.rehearsed_bytes)
            refusal = self.screen.refusal(look)
        self.records[number] = record
        self.store.add_trial(self.name, record, self.plan.space.knobs)
        if note:
            told = Event(trial=number, kind="screen", data={"note": note}, time=record.started)
            self.store.record_event(self.name, told)
        self.proposer.tell(record)
        if refusal is not None:
            self._conclude(replace(record, outcome=refusal))
            return False
        whole = isinstance(self.proposer, Promotion) and self.proposer.whole(config)
        self._submit(record, device, self.climb.first(config, whole=whole))
        return True

    def _go_on(self, record: TrialRecord) -> None:
        """Have a paused trial go on to its next rung."""
        paused = record.outcome if isinstance(record.outcome, Paused) else None
        going = replace(record, outcome=None, paused=paused)
        self.records[record.number] = going
        self.store.continue_trial(self.name, record.number)
        self.proposer.tell(going)
        until = self.climb.rungs.after(reached_by(record))
        self._submit(going, self._free_device(), until)

    def _submit(self, record: TrialRecord, device: Device, until: float) -> None:
        self.running[record.number], self.climb.until[record.number] = device, until
        self.tell_observers(lambda o: o.trial_started(record))
        checkpoint = str(self.climb.checkpoint(record.number)) if self.climb.rungs.on else ""
        spec = self.trial_spec(record, device)
        self.runner.submit(replace(spec, until=until, checkpoint=checkpoint))

    def _free_device(self) -> Device:
        taken = list(self.running.values())
        return min(self.plan.devices, key=lambda d: sum(t == d for t in taken))

    def hear(self, event: Event) -> None:
        """Take an event of a running trial; an outcome concludes it.

        What is said of a trial that has ended is late, or said twice, and changes nothing.
        """
        if event.trial not in self.running:
            return
        if event.kind == "outcome":
            record, outcome = self.records[event.trial], outcome_from_json(event.data)
            if record.paused is not None:
                outcome = continued(record.paused, outcome)
            del self.running[event.trial]
            outcome = self.climb.settled(record, outcome)
            self._conclude(replace(record, outcome=outcome, paused=None))
            for left in self.climb.left_behind(self.records):
                self._conclude(left)
        else:
            record = self.records[event.trial]
            if event.kind in RECORDED:
                self.store.record_event(self.name, event)
            self.tell_observers(lambda o: o.event(record, event))

    def repeated(self, number: int, again: Repetition) -> TrialRecord:
        """Record how a trial ended with a further seed, and let its mean decide on the front.

        Args:
            number: Of the trial.
            again: Its further training.

        Returns:
            The trial with all its seeds.
        """
        metric, known = self.plan.spec.facts.metric, self.records[number]
        record = replace(known, repeats=(*known.repeats, again))
        self.records[number] = record
        self.store.add_repeat(self.name, record, metric)
        members = self._front = front(self.ended, metric)
        self.store.set_front(self.name, [member.number for member in members])
        self.tell_observers(lambda o: o.trial_repeated(record, members))
        return record

    def stop_if_asked(self) -> bool:
        """End what runs once somebody has asked for it; these trials end as `stopped`.

        Returns:
            Whether the run is to end: nothing more is to be started.
        """
        if not self.stopped and (asker := self.store.stop_request(self.name)) is not None:
            self.stopped = True
            self.note(f"stopped by {asker}")
            for number in list(self.running):
                self.runner.cancel(number, f"stopped by {asker}")
        return self.stopped

    def note(self, text: str) -> None:
        """Record something that a person should read, and let observers know."""
        now = self.runner.now()
        told = Event(trial=-1, kind="note", data={"text": text}, time=now)
        self.store.record_event(self.name, told)
        self.tell_observers(lambda o: o.note(text))

    def interrupt(self) -> None:
        """End what runs; these trials are repeated when the run is resumed."""
        for number in list(self.running):
            self.runner.cancel(number, "interrupted")
            self.store.interrupt_trial(self.name, number)
            record = self.records.pop(number)
            if record.paused is not None:
                self.records[number] = replace(record, outcome=record.paused, paused=None)
        self.running.clear()

    def trial_spec(self, record: TrialRecord, device: Device) -> TrialSpec:
        """Return what the runner needs to run a trial."""
        spec = self.plan.spec
        ends = (record.outcome for record in self.records.values())
        slowest = max((e.seconds for e in ends if isinstance(e, Completed)), default=None)
        patience = (
            spec.trial_limit if slowest is None else max(LEAST_TRIAL_SECONDS, PATIENCE * slowest)
        )
        return TrialSpec(
            number=record.number,
            config=record.config.to_json(),
            facts=spec.facts,
            device=device,
            threads=spec.threads,
            limit_bytes=device.total_bytes
            if spec.facts.workload.purpose == "inference"
            else record.limit_bytes,
            limit_seconds=min(spec.trial_limit, patience),
            cache=str(self.folder / "cache"),
            log=str(self.folder / "trials" / str(record.number) / "log.txt"),
        )

    def trial_spec_of(self, config: Config) -> TrialSpec:
        """Return what a trial of a configuration would be, for who wants to know its memory."""
        limit = self.plan.budget.limit_bytes
        return self.trial_spec(
            TrialRecord(number=-1, config=config, limit_bytes=limit), self.plan.devices[0]
        )

    def tell_observers(self, call: Callable[[Observer], None]) -> None:
        """Let every observer know."""
        for observer in self.observers:
            call(observer)

    def _propose(self, number: int) -> tuple[Config | None, Origin]:
        """Return a configuration: what is to be repeated, the opening, then the proposer's."""
        if (left := self.repeats.pop(number, None)) is not None:
            return left.config, left.origin
        space, context = self.plan.space, self.plan.context
        if number < len(OPENING):
            opening = (space.baseline(), space.smallest(context))[number]
            known = {record.config for record in self.records.values()}
            if opening not in known and not space.reasons(opening, context):
                return opening, OPENING[number]
        config = self.proposer.ask(number)
        self._watch(self.proposer.remaining())
        if (note := self.proposer.note) != self.noted:
            self.noted = note
            self.note(note)
        return config, Origin.SAMPLER

    def _watch(self, remaining: float | None) -> None:
        """Count proposals that promise next to nothing, and say so once they end the search."""
        self.calm = self.calm + 1 if remaining is not None and remaining < STABLE else 0
        if self.stable:
            text = f"a further trial is expected to add {remaining:.1%} to the hypervolume: stable"
            self.note(text)

    def _mirror(self, record: TrialRecord) -> None:
        self.store.deliver(partial(self.mirror.tell, record, self.plan.spec.facts.metric))

    def _conclude(self, record: TrialRecord) -> None:
        """Record how a trial ended, tell the proposer, and keep the front."""
        metric = self.plan.spec.facts.metric
        before = [member.number for member in self._front]
        self.records[record.number] = record
        if self.screen is not None:
            self.screen.learn(record)
        self.store.finish_trial(self.name, record, metric)
        if not isinstance(record.outcome, Paused):
            self.climb.forget(record.number)
        self.proposer.tell(record)
        self._mirror(record)
        # What was beaten once stays beaten, so that the other trials need not be looked at again.
        members = self._front = front([*self._front, record], metric)
        numbers = [member.number for member in members]
        if numbers != before:
            self.store.set_front(self.name, numbers)
        self.tell_observers(lambda o: o.trial_ended(record, record.number in numbers, members))

"""The parts of the loop: propose and start a trial, conclude one, keep the front.

The driver that holds a `Search` is the only writer of the study database and the only one that asks
and tells. `autotune/tuner.py` has the loop itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.observer import Observer, RunView
from autotune.core.outcome import Completed, outcome_from_json
from autotune.core.pareto import front
from autotune.core.record import Origin, TrialRecord
from autotune.plan import Plan
from autotune.runners.base import Runner
from autotune.search.sampler import Proposer
from autotune.search.screen import Screen
from autotune.search.study import StudyMirror
from autotune.storage.store import Store
from autotune.trial.spec import Event, TrialSpec

OPENING = (Origin.BASELINE, Origin.SMALLEST)
"""Tried before anything is searched: what is compared with, and whether anything fits."""

PATIENCE = 10.0
"""A trial may take this many times as long as the slowest completed one."""

LEAST_TRIAL_SECONDS = 60.0

STABLE = 0.005
"""Share of the hypervolume that is next to nothing."""

CALM_PROPOSALS = 3
"""Proposals in a row that promise next to nothing before a search is stable."""

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

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.plan.spec.name

    @property
    def seconds_before(self) -> float:
        """Time that trials of an earlier part of the run took; it counts for the time limit."""
        took = sum(r.outcome.seconds for r in self.records.values() if r.outcome is not None)
        return took / max(1, self.plan.spec.jobs)

    @property
    def ended(self) -> list[TrialRecord]:
        """Trials that have an outcome, in order."""
        return [self.records[n] for n in sorted(self.records) if self.records[n].outcome]

    @property
    def front(self) -> list[TrialRecord]:
        """Trials that no other feasible trial beats in both accuracy and memory."""
        return front(self.ended, self.plan.spec.facts.metric)

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
                self.mirror.tell(record, self.plan.spec.facts.metric)

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
        for _ in range(MOST_REFUSALS):
            if sum(not r.refused for r in self.records.values()) >= self.plan.spec.trials:
                return False
            number = next(n for n in itertools.count() if n not in self.records)
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
        taken = list(self.running.values())
        device = min(self.plan.devices, key=lambda d: sum(t == d for t in taken))
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
        self.running[number] = device
        self.tell_observers(lambda o: o.trial_started(record))
        self.runner.submit(self.trial_spec(record, device))
        return True

    def hear(self, event: Event) -> None:
        """Take an event of a running trial; an outcome concludes it."""
        if event.kind == "outcome":
            outcome = outcome_from_json(event.data)
            del self.running[event.trial]
            self._conclude(replace(self.records[event.trial], outcome=outcome))
        else:
            record = self.records[event.trial]
            if event.kind == "phase":
                self.store.record_event(self.name, event)
            self.tell_observers(lambda o: o.event(record, event))

    def interrupt(self) -> None:
        """End what runs; these trials are repeated when the run is resumed."""
        for number in list(self.running):
            self.runner.cancel(number, "interrupted")
            self.store.interrupt_trial(self.name, number)
            del self.records[number]
        self.running.clear()

    def trial_spec(self, record: TrialRecord, device: Device) -> TrialSpec:
        """Return what the runner needs to run a trial."""
        spec = self.plan.spec
        done = [r.outcome.seconds for r in self.ended if isinstance(r.outcome, Completed)]
        patience = max(LEAST_TRIAL_SECONDS, PATIENCE * max(done)) if done else spec.trial_limit
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
            self.tell_observers(lambda o: o.note(note))
        return config, Origin.SAMPLER

    def _watch(self, remaining: float | None) -> None:
        """Count proposals that promise next to nothing, and say so once they end the search."""
        self.calm = self.calm + 1 if remaining is not None and remaining < STABLE else 0
        if self.stable:
            text = f"a further trial is expected to add {remaining:.1%} to the hypervolume: stable"
            self.tell_observers(lambda o: o.note(text))

    def _conclude(self, record: TrialRecord) -> None:
        """Record how a trial ended, tell the proposer, and keep the front."""
        metric = self.plan.spec.facts.metric
        before = [member.number for member in self.front]
        self.records[record.number] = record
        if self.screen is not None:
            self.screen.learn(record)
        self.store.finish_trial(self.name, record, metric)
        self.proposer.tell(record)
        self.mirror.tell(record, metric)
        members = self.front
        numbers = [member.number for member in members]
        if numbers != before:
            self.store.set_front(self.name, numbers)
        self.tell_observers(lambda o: o.trial_ended(record, record.number in numbers, members))

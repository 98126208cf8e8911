"""Seconds of the processor that a trial costs its driver at many trials, and the memory it keeps.

A search of synthetic trials, without any training: the proposer is asked, the trial is recorded as
started and as ended, the proposer and the Optuna mirror are told, the front is kept, all as
`autotune/driver.py` does it. Two questions:

- `per trial`: what one more trial takes when so many are there already, on SQLite and on a
  PostgreSQL server that this starts itself. Seconds are the driver's own, by part.
- `memory`: what the driver's process grows by over thousands of trials that are replayed.

Run with `python -m tests.benchmarks.storage`; the exit status is 1 if a trial takes more than its
limit.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
from sqlalchemy.orm import Session

from autotune.core.config import Config
from autotune.core.observer import Silent
from autotune.core.record import TrialRecord
from autotune.driver import Search
from autotune.knobs import BUILTIN
from autotune.plan import plan_again
from autotune.runners.replay import ReplayRunner
from autotune.search.proposers import Task, make_proposer
from autotune.search.study import StudyMirror
from autotune.storage.buffered import BufferedStore
from autotune.storage.engine import WRITES
from autotune.storage.models import Base, KnobRow, TrialRow
from autotune.storage.rows import describe_outcome, describe_trial, knob_rows, outcome_rows
from autotune.storage.statements import Values, insert_all
from autotune.tuner import search
from tests.cli.recorded import facts, records, spec
from tests.postgres import PostgresServer, postgres_binaries

LIMIT_SECONDS = 0.06
"""Most seconds of the processor for ask, tell and record of one trial."""

BATCH = 500
MEASURED = 20
"""Trials that are measured on top of those that are there."""

PARTS = ("add_trial", "finish_trial", "set_front", "record_event", "deliver")


@contextmanager
def search_of(database: str, folder: Path, sampler: str, trials: int) -> Iterator[Search]:
    """Give a search that replays the recorded run of the tests."""
    plan = plan_again(replace(spec("bench", trials=trials), sampler=sampler, space="default"))
    task = Task(
        space=plan.space,
        context=plan.context,
        metric=plan.spec.facts.metric,
        limit_bytes=plan.budget.limit_bytes,
        seed=0,
        trials=trials,
    )
    runner = ReplayRunner(facts(), records())
    with BufferedStore.open(database, clock=runner.now) as store:
        store.start_run(plan.spec)
        mirror = StudyMirror(database, "bench", plan.space)
        yield Search(
            plan=plan,
            store=store,
            mirror=mirror,
            proposer=make_proposer(sampler, task),
            runner=runner,
            folder=folder,
        )
        mirror.close()


def recorded_seconds(database: str, folder: Path, before: int) -> dict[str, float]:
    """Return median seconds of the processor of one more trial when `before` are there, by part.

    Everything but asking and telling the proposer. Optuna's tables, which the mirror writes, begin
    empty.
    """
    with search_of(database, folder, "random", before + MEASURED) as state:
        known = list(synthetic(state, before))
        fill(state, known)
        state.remember(())
        state.records.update({record.number: record for record in known})
        spent: dict[str, float] = {}
        timed(state, spent)
        seconds = []
        for _ in range(MEASURED):
            began = time.process_time()
            state.submit_next()
            while state.running:
                event = state.runner.next()
                assert event is not None
                state.hear(event)
            seconds.append(time.process_time() - began)
        asked = spent.pop("ask") + spent.pop("tell")
    parts = {name: round(value / MEASURED, 5) for name, value in spent.items()}
    return {"seconds": round(statistics.median(seconds) - asked / MEASURED, 5), **parts}


def proposed_seconds(sampler: str, folder: Path, before: int) -> float:
    """Return seconds of the processor to ask and tell a proposer that knows `before` trials."""
    database = f"sqlite:///{folder / sampler}.db"
    with search_of(database, folder, sampler, before + MEASURED) as state:
        known = list(synthetic(state, before))
        for record in known:
            state.proposer.tell(record)
        state.proposer.ask(before)  # the first one takes everything in
        seconds = []
        for number in range(before, before + MEASURED):
            began = time.process_time()
            config = state.proposer.ask(number)
            assert config is not None
            state.proposer.tell(replace(known[number % before], number=number, config=config))
            seconds.append(time.process_time() - began)
    return round(statistics.median(seconds), 5)


def fill(state: Search, known: Sequence[TrialRecord]) -> None:
    """Write trials as the store would, many in one transaction."""
    metric = state.plan.spec.facts.metric
    for start in range(0, len(known), BATCH):
        with Session(state.store.engine.execution_options(**{WRITES: True})) as session:
            rows = []
            beside: dict[type[Base], list[Values]] = defaultdict(list)
            for record in known[start : start + BATCH]:
                assert record.outcome is not None
                row = TrialRow(run_id=1)
                describe_trial(row, record, BUILTIN)
                describe_outcome(row, record, record.outcome, metric)
                rows.append((row, record))
            session.add_all([row for row, _ in rows])
            session.flush()
            for row, record in rows:
                assert record.outcome is not None
                beside[KnobRow] += knob_rows(row.id, record.config, BUILTIN)
                for table, more in outcome_rows(row.id, record.outcome).items():
                    beside[table] += more
            insert_all(session, beside)
            session.commit()


def timed(state: Search, spent: dict[str, float]) -> None:
    """Add up the seconds of each call of the proposer and the store, by name."""

    def around(call: Callable[..., object], name: str) -> Callable[..., object]:
        def measured(*arguments: object) -> object:
            began = time.process_time()
            try:
                return call(*arguments)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - began

        return measured

    for name in PARTS:
        setattr(state.store, name, around(getattr(state.store, name), name))
    for name in ("ask", "tell"):
        setattr(state.proposer, name, around(getattr(state.proposer, name), name))


def synthetic(state: Search, count: int) -> Iterator[TrialRecord]:
    """Return so many ended trials with configurations of their own."""
    rng, known = random.Random(0), records()
    for number in range(count):
        values = {n: rng.choice(d.grid()) for n, d in state.plan.space.domains.items()}
        yield replace(
            known[number % len(known)],
            number=number,
            config=Config(values, BUILTIN),
            on_front=False,
        )


def growth(folder: Path, trials: int) -> dict[str, float]:
    """Return what the driver's process grows by over many replayed trials, in MiB."""
    process = psutil.Process()
    marks: dict[int, float] = {}

    class Weigh(Silent):
        """Looks at the process five times in the search."""

        ended_trials = 0

        def trial_ended(
            self,
            record: TrialRecord,
            joined_front: bool,
            front: Sequence[TrialRecord],
        ) -> None:
            self.ended_trials += 1
            if self.ended_trials % (trials // 5) == 0:
                gc.collect()
                marks[self.ended_trials] = round(process.memory_info().rss / 2**20, 1)

    with search_of(f"sqlite:///{folder / 'memory.db'}", folder, "random", trials) as state:
        state.observers = (Weigh(),)
        search(state)
    return {str(ended): size for ended, size in marks.items()}


def main() -> int:
    """Measure and print a table; return 1 if a trial takes too long."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--replayed", type=int, default=5_000)
    parser.add_argument("--samplers", default="random,tpe,frontier")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    binaries = postgres_binaries()
    server = PostgresServer(binaries) if binaries else None
    slow = False
    recorded, proposed = {}, {}
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # First of all: in what the other measurements free, growth would not be seen.
            memory = growth(folder, arguments.replayed)
            print("MiB of the driver by trials:", memory)
            places = {"sqlite": f"sqlite:///{folder / 'study.db'}"}
            if server is not None:
                places["postgresql"] = server.new_database()
            for place, url in places.items():
                recorded[place] = recorded_seconds(url, folder, arguments.trials)
                print(f"{place:<12}", *(f"{k} {v}" for k, v in recorded[place].items()))
            for sampler in arguments.samplers.split(","):
                proposed[sampler] = proposed_seconds(sampler, folder, arguments.trials)
                most = proposed[sampler] + max(row["seconds"] for row in recorded.values())
                late = most > LIMIT_SECONDS
                slow |= late
                print(f"{sampler:<12}ask and tell {proposed[sampler]}, with recording {most:.4f}",
                      "too slow" if late else "")  # fmt: skip
    finally:
        if server is not None:
            server.close()
    if arguments.json is not None:
        document = {
            "benchmark": "storage",
            "trials": arguments.trials,
            "limit_seconds": LIMIT_SECONDS,
            "recorded": recorded,
            "proposed_seconds": proposed,
            "driver_mib_by_trials": memory,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

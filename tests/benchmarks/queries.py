"""Seconds that the named queries take over many trials in SQLite.

Writes a database of synthetic trials, without any training, through the tables of the store, and
runs every named query over it several times. SQLite computes in this process and finds the file in
the cache of the system, so that seconds of the processor are what a query takes on a machine of its
own; the clock on the wall, shown beside, also counts what else runs. Run with
`python -m tests.benchmarks.queries`; the exit status is 1 if a query is slower than its limit.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select

from autotune.core.outcome import Completed, OutOfMemory, Phase, Score
from autotune.core.pareto import front_indices
from autotune.storage.engine import WRITES
from autotune.storage.models import AnatomyRow, Base, KnobRow, PeakRow, ScoreRow, TrialRow
from autotune.storage.named_queries import QUERIES
from autotune.storage.query import run_query
from autotune.storage.rows import describe_outcome, describe_trial, knob_rows, outcome_rows
from autotune.storage.store import Store
from tests.studies import KNOBS, LIMIT, METRIC, make_spec, measured, trial

LIMITS = {"front": 0.1}
"""Most seconds of a query, where it is not `MOST`."""

MOST = 0.2
EXTRA_KNOBS = 8
"""Knobs of a trial besides those of the small test space, so that it has as many as usual."""

TEMPLATES = 500
"""Trials that are described in full; all others are one of them with numbers of their own."""

BATCH = 2000
MIB = 2**20


def write_trials(path: Path, count: int) -> None:
    """Write a run of synthetic trials: nine in ten complete, the rest run out of memory."""
    rng = random.Random(0)
    points = [_point(rng) for _ in range(count)]
    members = _front(points)
    templates = [list(_rows(number)) for number in range(TEMPLATES)]
    with Store.open(path) as store:
        store.start_run(make_spec(trials=count))
        engine = store.engine.execution_options(**{WRITES: True})
        for start in range(0, count, BATCH):
            batch: dict[type[Base], list[dict[str, Any]]] = {}
            for number in range(start, min(count, start + BATCH)):
                on_front = number in members
                for kind, row in templates[number % TEMPLATES]:
                    own = _own(kind, row, number, points[number], on_front=on_front)
                    batch.setdefault(kind, []).append(own)
            with engine.begin() as connection:
                for kind, rows in batch.items():
                    connection.execute(insert(kind), rows)
        store.finish_run("first", "done")


def _point(rng: random.Random) -> tuple[float, int]:
    """Return a score and a peak in MiB."""
    mib = rng.uniform(40, 480)
    return 0.5 + 0.4 * (mib / 480) ** 0.3 * rng.uniform(0.6, 1.0), int(mib)


def _completes(number: int) -> bool:
    return number % 10 != 7


def _front(points: list[tuple[float, int]]) -> set[int]:
    numbers = [number for number in range(len(points)) if _completes(number)]
    known = [(-points[number][0], float(points[number][1])) for number in numbers]
    began = time.perf_counter()
    found = {numbers[index] for index in front_indices(known)}
    print(f"the front of {len(known)} points: {time.perf_counter() - began:.3f} s")
    return found


def _own(
    kind: type[Base],
    row: dict[str, Any],
    number: int,
    point: tuple[float, int],
    *,
    on_front: bool,
) -> dict[str, Any]:
    """Return a row of a template as that of a trial of its own."""
    if kind is not TrialRow:
        return {**row, "trial_id": number + 1}
    own = {**row, "id": number + 1, "number": number, "on_front": on_front}
    if own["score"] is not None:
        size = point[1] * MIB
        own |= {"score": point[0], "peak_bytes": size, "footprint_bytes": size + 5 * MIB}
        own |= {"rehearsed_bytes": int(1.03 * size), "seconds": 30 + point[0]}
    return own


def _rows(number: int) -> Iterator[tuple[type[Base], dict[str, Any]]]:
    """Return every row of one trial, as the store would write them."""
    rng = random.Random(number)
    values = {"precision": rng.choice(("fp32", "bf16")), "chunks": rng.randint(1, 16)}
    score, mib = _point(rng)
    if _completes(number):
        scores = {
            "accuracy": Score(value=score, stderr=0.01, n=200),
            "loss": Score(value=1 - score, stderr=0.02, n=200),
        }
        outcome = Completed(seconds=30.0, measurement=measured(mib), scores=scores)
    else:
        outcome = OutOfMemory(seconds=5.0, needed_bytes=LIMIT + mib * MIB, phase=Phase.FIRST)
    record = trial(number, values, outcome)
    row = TrialRow(id=number + 1, run_id=1)
    describe_trial(row, record, KNOBS)
    describe_outcome(row, record, outcome, METRIC)
    yield TrialRow, _values(row)
    for knob in knob_rows(row.id, record.config, KNOBS):
        yield KnobRow, knob
    for index in range(EXTRA_KNOBS):
        value = rng.randint(0, 3)
        yield (
            KnobRow,
            {
                "trial_id": row.id,
                "knob": f"knob.{index}",
                "value": str(value),
                "number": float(value),
                "neutral": value == 0,
            },
        )
    for table, rows in outcome_rows(row.id, outcome).items():
        yield from ((table, beside) for beside in rows)


def _values(row: Base) -> dict[str, Any]:
    return {column.key: getattr(row, column.key) for column in row.__mapper__.column_attrs}


def measure(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of each named query: of the processor, and on the wall."""
    found = {}
    for query in QUERIES:
        seconds, walls = [], []
        for _ in range(repeats):
            began, used = time.perf_counter(), time.process_time()
            run_query(path, query.sql)
            seconds.append(time.process_time() - used)
            walls.append(time.perf_counter() - began)
        found[query.name] = {
            "seconds": round(statistics.median(seconds), 4),
            "wall_seconds": round(statistics.median(walls), 4),
        }
    return found


def main() -> int:
    """Measure and print a table; return 1 if a query is too slow."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--database", type=Path, help="keep the database, or use one that is there")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = arguments.database or Path(name) / "study.db"
        if not path.is_file():
            write_trials(path, arguments.trials)
        with Store.open(path) as store, store.engine.connect() as connection:
            kinds = (TrialRow, KnobRow, ScoreRow, PeakRow, AnatomyRow)
            counts = [select(func.count()).select_from(kind) for kind in kinds]
            rows = sum(connection.execute(query).scalar_one() for query in counts)
        print(f"{rows} rows, {path.stat().st_size / 1e6:.0f} MB")
        found = measure(path, arguments.repeats)
    slow = 0
    for query, taken in found.items():
        late = taken["seconds"] > LIMITS.get(query, MOST)
        slow += late
        print(
            f"{query:<20}{1000 * taken['seconds']:8.1f} ms{1000 * taken['wall_seconds']:10.1f} ms "
            f"on the wall{'   too slow' if late else ''}"
        )
    if arguments.json is not None:
        document = {"benchmark": "queries", "trials": arguments.trials, "queries": found}
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())

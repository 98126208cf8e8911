"""A problem out of real trainings: what `table.py` recorded is looked up, nothing is trained again.

The space holds the combinations of the table and no others. The true loss of a configuration is one
minus the accuracy that was recorded, its peak is the one rehearsed for its setting of the exact
knobs; what a trial observes is off by the standard error of that accuracy. Losses beyond the median
count for nothing: beside the few that diverged all others would look alike.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.domains import Choice, Value
from autotune.core.errors import BadValue
from autotune.core.knob import never_blocked
from autotune.core.outcome import (
    Completed,
    Crashed,
    Diverged,
    Measurement,
    Outcome,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
    Score,
)
from autotune.core.pareto import Point, hypervolume
from autotune.core.record import TrialRecord
from autotune.core.rules import Rule
from autotune.core.space import Space
from autotune.core.units import GIB
from autotune.knobs import BUILTIN
from tests.benchmarks.search_problems import LOSS

TABLE = Path(__file__).resolve().parents[2] / "results" / "reference" / "table.json"
FITTING = 1 / 3
"""Share of all combinations that fit a budget that the table does not name."""

Key = tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A row of the table.

    Attributes:
        loss: One minus accuracy; infinite if the training failed.
        stderr: Of the loss.
        curve: Share of the training and loss, ascending to the whole; empty if it is not known.
        seconds: That it took.
        failed: How it failed, empty if it did not.
        peaks: Bytes by the values of the exact knobs, joined by `|`.
    """

    loss: float
    stderr: float
    curve: tuple[tuple[float, float], ...]
    seconds: float
    failed: str
    peaks: Mapping[str, int]

    @classmethod
    def of(cls, row: Mapping[str, Any], steps: int) -> Training:
        """Read a row."""
        failed = row.get("failed") or ""
        curve = () if failed else row.get("curve") or ()
        return cls(
            loss=math.inf if failed else 1.0 - row["score"],
            stderr=0.0 if failed else row["stderr"] or 0.0,
            curve=tuple((step / steps, 1.0 - score) for step, score in curve),
            seconds=row["seconds"],
            failed=failed,
            peaks=row["peaks"],
        )


class TableProblem:
    """Real trainings under a budget; see `search_runs.Trainings`.

    Args:
        document: The table, as `table.py` writes it.
        name: How tables call it.

    Raises:
        BadValue: If no training of it was completed within the budget.
    """

    shared = True
    context = Context()

    def __init__(self, document: Mapping[str, Any], name: str = "table") -> None:
        self.name = name
        self.steps = int(document["steps"])
        self._lossy: Sequence[str] = document["lossy"]
        self._exact: Sequence[str] = document["exact"]
        self._trainings = {
            self._key(row["config"]): Training.of(row, self.steps) for row in document["rows"]
        }
        self.space = self._space(document["space"])
        losses = [row.loss for row in self._trainings.values() if not row.failed]
        peaks = sorted(p for row in self._trainings.values() for p in row.peaks.values())
        self.limit_bytes = int(
            document.get("limit_bytes") or np.quantile(peaks, FITTING, method="lower")
        )
        self.worst_loss = statistics.median(losses) if losses else math.inf
        if not any(self.expanded(config) for config in self._configs()):
            raise BadValue(
                f"no training of the table was completed within {self.limit_bytes} bytes",
                help="record it anew: python -m tests.benchmarks.table",
            )

    @classmethod
    def read(cls, path: Path = TABLE) -> TableProblem:
        """Read a recorded table."""
        return cls(json.loads(path.read_text()))

    @cached_property
    def ideal(self) -> float:
        """Hypervolume of the whole table, in units of loss times GiB."""
        points = [point for config in self._configs() for point in self.expanded(config)]
        return hypervolume(points, (self.worst_loss, self.limit_bytes / GIB))

    @cached_property
    def rungs(self) -> str:
        """Shares at which every training was evaluated, as `--rungs` takes them; empty if none."""
        curves = [{at for at, _ in row.curve} for row in self._trainings.values() if not row.failed]
        common = sorted(set.intersection(*curves) - {1.0}) if curves else []
        return ",".join(f"{round(share * self.steps)}/{self.steps}" for share in common)

    def true_point(self, config: Config) -> Point:
        """Return loss as recorded, infinite if training failed, and peak in GiB."""
        return self._training(config).loss, self.peak(config) / GIB

    def expansions(self, config: Config) -> Iterator[Config]:
        """Yield the configuration with every setting of its exact knobs."""
        for setting in self._training(config).peaks:
            exact = dict(zip(self._exact, self._values_of(setting), strict=True))
            yield Config({**config, **exact}, self.space.knobs)

    def expanded(self, config: Config) -> list[Point]:
        """Return the point of the leanest expansion, which beats the others, if it fits."""
        row = self._training(config)
        least = min(row.peaks.values())
        return [(row.loss, least / GIB)] if not row.failed and least <= self.limit_bytes else []

    def peak(self, config: Config) -> int:
        """Return the peak in bytes, as it was rehearsed."""
        return self._training(config).peaks[self._setting(config.complete(self.space.knobs))]

    def train(self, number: int, config: Config, seed: int) -> TrialRecord:
        """Return the record of a trial; its noise follows from seed and number."""
        outcome = self._outcome(number, config, seed)
        return TrialRecord(
            number=number, config=config, outcome=outcome, limit_bytes=self.limit_bytes
        )

    def _outcome(self, number: int, config: Config, seed: int) -> Outcome:
        row, peak = self._training(config), self.peak(config)
        if peak > self.limit_bytes:
            return OutOfMemory(seconds=1.0, phase=Phase.FIRST, needed_bytes=peak)
        if row.failed == Diverged.tag:
            return Diverged(seconds=row.seconds)
        if row.failed:
            return Crashed(seconds=row.seconds, error=row.failed)
        measured = Measurement(
            peaks=(Peak(phase=Phase.STEADY, kind=PeakKind.ALLOCATED, bytes=peak),),
            step_seconds=row.seconds / self.steps,
            steps=self.steps,
        )
        noise = random.Random(f"{seed}/{number}").gauss(0.0, row.stderr)
        return Completed(
            seconds=row.seconds,
            measurement=measured,
            scores={LOSS.name: Score(value=row.loss + noise, stderr=row.stderr)},
        )

    def at_rung(self, number: int, config: Config, seed: int, share: float) -> Score:
        """Return what a trial scores after a share of its training that was evaluated."""
        row = self._training(config)
        (loss,) = (loss for at, loss in row.curve if abs(at - share) < 0.5 / self.steps)
        noise = random.Random(f"{seed}/{number}/{share:.3f}").gauss(0.0, row.stderr)
        return Score(value=loss + noise, stderr=row.stderr)

    def _space(self, values: Mapping[str, Sequence[Value]]) -> Space:
        """Return the space of the table's combinations.

        What stands against a value here is the table alone: it says what was legal where it was
        recorded, whatever is installed now.
        """
        knobs = tuple(replace(k, blocked=never_blocked) for k in BUILTIN if k.name in values)
        rule = Rule(
            name="recorded",
            holds=lambda context: self._recorded(context.config),
            reason="the table holds no training of this combination",
        )
        domains = {knob.name: Choice(tuple(values[knob.name])) for knob in knobs}
        return Space(name=self.name, knobs=knobs, domains=domains, rules=(rule,))

    def _recorded(self, values: Mapping[str, Value]) -> bool:
        row = self._trainings.get(self._key(values))
        return row is not None and self._setting(values) in row.peaks

    def _key(self, values: Mapping[str, Value]) -> Key:
        return tuple(values[name] for name in self._lossy)

    def _setting(self, values: Mapping[str, Value]) -> str:
        return "|".join(str(values[name]) for name in self._exact)

    def _values_of(self, setting: str) -> Iterator[Value]:
        for name, text in zip(self._exact, setting.split("|"), strict=True):
            yield next(v for v in self.space.domains[name].grid() if str(v) == text)

    def _training(self, config: Config) -> Training:
        return self._trainings[self._key(config.complete(self.space.knobs))]

    def _configs(self) -> Iterator[Config]:
        for key in self._trainings:
            yield Config(dict(zip(self._lossy, key, strict=True)), self.space.knobs)

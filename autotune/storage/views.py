"""The views that users query: their columns, what each column is, and the SQL they are made of.

Each view is stored as `autotune_view_NAME`, since Optuna has a table `trials` in the same
database; a query sees them by their short names. Memory is in GiB, times are in seconds, instants
in Unix seconds, yes and no are 1 and 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from autotune.core.units import GIB

PREFIX = "autotune_view_"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a view: its name, the SQL expression behind it, and what it is."""

    name: str
    expression: str
    help: str


@dataclass(frozen=True, slots=True)
class View:
    """A view: its name, what a row is, its columns, and the tables behind it."""

    name: str
    help: str
    columns: tuple[Column, ...]
    source: str

    @property
    def stored_name(self) -> str:
        """Name of the view in the database."""
        return PREFIX + self.name

    @property
    def create(self) -> str:
        """The SQL statement that creates the view."""
        columns = ", ".join(f"{column.expression} AS {column.name}" for column in self.columns)
        return f"CREATE VIEW {self.stored_name} AS SELECT {columns} FROM {self.source}"

    @property
    def drop(self) -> str:
        """The SQL statement that drops the view, if it is there."""
        return f"DROP VIEW IF EXISTS {self.stored_name}"


def _gib(amount: str) -> str:
    return f"CAST({amount} AS DOUBLE PRECISION) / {GIB}"


def _measured_gib(column: str) -> str:
    return _gib(f"NULLIF({column}, 0)")


def _beside_trial(table: str, alias: str) -> str:
    return f"{table} {alias} JOIN autotune_trial t ON t.id = {alias}.trial_id {_ITS_RUN}"


_ITS_RUN = "JOIN autotune_run r ON r.id = t.run_id"
_OF_TRIAL = f"autotune_trial t {_ITS_RUN}"
_SEEDS = (
    "CASE t.status WHEN 'completed' THEN 1 + (SELECT COUNT(*) FROM autotune_repeat s "
    "WHERE s.trial_id = t.id AND s.status = 'completed') ELSE 0 END"
)
_KEYS = (
    Column("run", "r.name", "name of the run"),
    Column("trial", "t.number", "number of the trial"),
)
_TRIAL = (
    *_KEYS,
    Column("status", "t.status", "completed, out-of-memory, stopped, diverged, crashed, …"),
    Column("differs", "t.label", "what differs from the baseline"),
    Column("origin", "t.origin", "who proposed it: baseline, smallest, sampler"),
    Column("metric", "r.metric", "the metric that is searched for"),
    Column("score", "t.score", "its value; the mean over seeds, where there are several"),
    Column("stderr", "t.stderr", "its standard error, over the evaluation set and seeds"),
    Column("seeds", _SEEDS, "seeds that the score is the mean of"),
    Column("peak_gib", _measured_gib("t.peak_bytes"), "peak memory, what the search minimises"),
    Column(
        "footprint_gib",
        _measured_gib("t.footprint_bytes"),
        "strictest peak, held against the budget",
    ),
    Column("predicted_gib", _measured_gib("t.rehearsed_bytes"), "peak that the rehearsal counted"),
    Column("seconds", "t.seconds", "duration of the trial"),
    Column("step_seconds", "t.step_seconds", "median duration of an optimizer step"),
    Column("throughput", "t.throughput", "tokens per second"),
    Column("parameters", "t.parameters", "parameters after adaptation"),
    Column("trained_parameters", "t.trained_parameters", "those of them that were trained"),
    Column("on_front", "t.on_front", "whether it is on the front"),
    Column("feasible", "t.feasible", "whether it completed within the budget"),
    Column(
        "needed_gib", _measured_gib("t.needed_bytes"), "out of memory: what was needed at least"
    ),
    Column("failure", "t.failure", "why it did not complete"),
)

VIEWS: tuple[View, ...] = (
    View("trials", "one row per trial", _TRIAL, _OF_TRIAL),
    View("front", "the trials on the front", _TRIAL, f"{_OF_TRIAL} WHERE t.on_front"),
    View(
        "knobs",
        "one row per trial and knob of the space",
        (
            *_KEYS,
            Column("knob", "k.knob", "name of the knob"),
            Column("value", "k.value", "its value, as text"),
            Column("number", "k.number", "its value, if it is a number"),
            Column("neutral", "k.neutral", "whether that changes nothing"),
        ),
        _beside_trial("autotune_knob_value", "k"),
    ),
    View(
        "scores",
        "one row per trial and metric",
        (
            *_KEYS,
            Column("metric", "s.metric", "name of the metric"),
            Column("value", "s.value", "its value"),
            Column("stderr", "s.stderr", "its standard error"),
            Column("n", "s.n", "examples or tokens it is over"),
        ),
        _beside_trial("autotune_score", "s"),
    ),
    View(
        "repeats",
        "one row per further seed of a trial",
        (
            *_KEYS,
            Column("seed", "a.seed", "seed of the training"),
            Column("status", "a.status", "how it ended, as for a trial"),
            Column("metric", "r.metric", "the metric that is searched for"),
            Column("score", "a.score", "its value with this seed"),
            Column("stderr", "a.stderr", "its standard error over the evaluation set"),
            Column("peak_gib", _measured_gib("a.peak_bytes"), "peak memory"),
            Column("seconds", "a.seconds", "duration"),
            Column("failure", "a.failure", "why it did not complete"),
        ),
        _beside_trial("autotune_repeat", "a"),
    ),
    View(
        "rungs",
        "one row per trial, rung where it paused, and metric",
        (
            *_KEYS,
            Column("share", "g.share", "part of the whole training, such as 0.333"),
            Column("step", "g.step", "optimizer steps done"),
            Column("steps", "g.steps", "of the whole training"),
            Column("metric", "g.metric", "name of the metric"),
            Column("value", "g.value", "its value there; no score of a whole training"),
            Column("stderr", "g.stderr", "its standard error"),
            Column("seconds", "g.seconds", "that the trial had taken"),
        ),
        _beside_trial("autotune_rung", "g"),
    ),
    View(
        "memory",
        "one row per measured peak",
        (
            *_KEYS,
            Column("rank", "m.rank", "process of the trial, from 0"),
            Column("phase", "m.phase", "load, first, steady, evaluate"),
            Column("kind", "m.kind", "allocated, reserved, device, resident"),
            Column("gib", _gib("m.bytes"), "the peak"),
        ),
        _beside_trial("autotune_measurement", "m"),
    ),
    View(
        "anatomy",
        "one row per trial and part of memory at the peak",
        (
            *_KEYS,
            Column("part", "a.part", "weights, gradients, optimizer, activations, …"),
            Column("gib", _gib("a.bytes"), "what it took at the peak of a steady step"),
        ),
        _beside_trial("autotune_anatomy", "a"),
    ),
    View(
        "events",
        "one row per thing reported while running",
        (
            Column("run", "r.name", "name of the run"),
            Column("trial", "e.trial", "number of the trial, null for the run itself"),
            Column("time", "e.time", "when"),
            Column("kind", "e.kind", "phase, step, outcome, interrupted, …"),
            Column("data", "e.data", "a JSON object"),
        ),
        "autotune_event e JOIN autotune_run r ON r.id = e.run_id",
    ),
    View(
        "runs",
        "one row per run",
        (
            Column("name", "r.name", "name of the run"),
            Column("status", "r.status", "running, done, interrupted, failed"),
            Column("started", "r.started", "when it was started"),
            Column("elapsed", "r.elapsed", "how long it was worked at"),
            Column("objective", "r.objective", "what is trained"),
            Column("metric", "r.metric", "the metric that is searched for"),
            Column("maximize", "r.maximize", "whether more of it is better"),
            Column("space", "r.space", "name of the search space"),
            Column("sampler", "r.sampler", "name of the sampler"),
            Column("seed", "r.seed", "seed of the search"),
            Column("budget_gib", _gib("r.budget_bytes"), "the budget"),
            Column("limit_gib", _gib("r.limit_bytes"), "the budget less the headroom"),
            Column("device", "r.device", "where it ran"),
        ),
        "autotune_run r",
    ),
)
"""Every view, in the order in which they are listed."""

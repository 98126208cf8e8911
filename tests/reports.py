"""Runs in memory for tests of what is computed from them, and pages read back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path

from autotune.core.config import Config
from autotune.core.domains import Value
from autotune.core.outcome import ANATOMY_PARTS, Outcome, PeakKind, Phase
from autotune.core.record import Origin, TrialRecord
from autotune.core.workload import RunSpec
from autotune.knobs import BUILTIN
from autotune.memory.timeline import timeline_of
from autotune.memory.trace import Events, Trace
from autotune.report.cards.findings import Findings
from autotune.storage.places import timeline_path
from autotune.storage.run import Run
from autotune.timelines import shown
from tests.cli.recorded import LIMIT, NAME, TRIALS, completed, spec

Trial = tuple[Mapping[str, Value], Outcome | None]

FEW: tuple[Trial, ...] = (
    ({}, completed(0.90, 8.0, speed=1000.0)),
    ({"checkpointing": "full"}, completed(0.90, 5.0, speed=800.0)),
    ({"precision": "bf16"}, completed(0.895, 5.0, speed=2000.0)),
    ({"precision": "bf16", "checkpointing": "full"}, completed(0.893, 2.0, speed=1500.0)),
    ({"precision": "bf16", "optimizer": "sgd"}, completed(0.70, 1.0)),
)
"""Five trials that fit, with two matched pairs for each of two knobs."""


def make_run(
    trials: Sequence[Trial] = TRIALS,
    *,
    name: str = NAME,
    folder: Path = Path("results/bert-16gb"),
    own: RunSpec | None = None,
    rehearsed: Mapping[int, int] | None = None,
) -> Run:
    """Return a run of these trials, the first of which is the baseline."""
    records = tuple(
        TrialRecord(
            number=number,
            config=Config(values, BUILTIN),
            origin=Origin.SAMPLER if number else Origin.BASELINE,
            started=1_700_000_000.0 + 60 * number,
            outcome=outcome,
            limit_bytes=LIMIT,
            rehearsed_bytes=(rehearsed or {}).get(number, 0),
        )
        for number, (values, outcome) in enumerate(trials)
    )
    counts: dict[str, int] = {}
    for record in records:
        tag = record.outcome.tag if record.outcome else "running"
        counts[tag] = counts.get(tag, 0) + 1
    return Run(
        name=name,
        folder=folder,
        spec=own or replace(spec(name), trials=len(trials)),
        status="done",
        started=1_700_000_000.0,
        elapsed=600.0,
        records=records,
        database="study.db",
        _counts=counts,
        _knob_values={r.number: r.config.complete(BUILTIN) for r in records},
    )


def findings(trials: Sequence[Trial] = TRIALS, **options: object) -> Findings:
    """Return what cards are computed from."""
    return Findings.of(make_run(trials, **options), BUILTIN)


def trace_of(events: Iterable[tuple[str, str, str, int]], *, phase: str = "steady") -> Trace:
    """Return a trace of one phase, from what went on, the operator, the part and the bytes."""
    rows = list(events)
    causes = list(dict.fromkeys(row[:2] for row in rows))
    columns = Events(
        storages=tuple(range(len(rows))),
        bytes=tuple(row[3] for row in rows),
        parts=tuple(ANATOMY_PARTS.index(row[2]) for row in rows),
        causes=tuple(causes.index(row[:2]) for row in rows),
    )
    return Trace(
        phases={phase: columns},
        parts=ANATOMY_PARTS,
        causes=tuple(causes),
        unit=1,
        parameters=1,
        trained_parameters=1,
    )


def keep_all(run: Run, share: float = 1.0) -> None:
    """Keep a timeline of each trial that has one, whose peak is a share of the measured one."""
    for record in shown(run.records, run.metric):
        assert record.outcome is not None
        peak = record.outcome.measurement.peak(PeakKind.ALLOCATED, Phase.STEADY)
        weights, more = int(0.4 * share * peak), round(share * peak) - int(0.4 * share * peak)
        trace = trace_of(
            (
                ("before", "", "weights", weights),
                ("forward", "aten.mm", "activations", more),
                ("backward", "aten.mm", "activations", -more),
                ("backward", "aten.mm", "gradients", more // 2),
                ("optimizer", "aten.add", "gradients", -(more // 2)),
            )
        )
        path = timeline_path(run.folder, record.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(timeline_of(trace).to_json()))


@dataclass
class Page(HTMLParser):
    """A page as a parser of HTML reads it: its tags, and the text of each script by its id."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    scripts: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._script: str | None = None
        self._skips = False
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = dict(attrs).get("id") or f"script {len(self.scripts)}"
            self.scripts[self._script] = ""
        self._skips = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None
        if tag in ("script", "style"):
            self._skips = False

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data
        elif not self._skips and data.strip():
            self.words.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Return the attributes of every tag of a name."""
        return [attributes for name, attributes in self.tags if name == tag]

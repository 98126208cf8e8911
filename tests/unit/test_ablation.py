"""One knob off neutral at a time: what is compared with what, and which promises are broken."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from autotune.ablation import Bench, broken_promises, cases
from autotune.core.context import Context, Device, ModelFacts
from autotune.core.outcome import (
    Completed,
    Measurement,
    Outcome,
    OutOfMemory,
    Peak,
    PeakKind,
    Phase,
    Score,
)
from autotune.core.units import GIB
from autotune.core.workload import Metric, Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.report.knobs import check_document, check_screen, knob_guide
from autotune.report.text import make_console
from autotune.trial.spec import Event, TrialSpec

MODEL = ModelFacts(
    name="gpt", family="gpt2", layers=4, heads=4, kv_heads=4, hidden=64, ffn=256, vocab=512,
    pretrained=True,
)  # fmt: skip
CONTEXT = Context(
    device=Device(kind="cpu"), model=MODEL, global_batch=16, libraries=frozenset({"peft"})
)
FACTS = WorkloadFacts(
    workload=Workload(objective="causal_lm"),
    model=MODEL,
    data="tokens",
    data_fingerprint="0" * 12,
    metrics=(Metric(name="accuracy", maximize=True),),
)


class Scripted:
    """A runner whose trials end as a table of single values says."""

    slots, trains = 1, True

    def __init__(self, effects: Mapping[str, Mapping[str, float]]) -> None:
        self.effects, self.ran, self.waiting = effects, list[TrialSpec](), deque[Event]()

    def submit(self, spec: TrialSpec) -> None:
        self.ran.append(spec)
        outcome = self.end(spec).to_json()
        self.waiting.append(Event(trial=spec.number, kind="step"))
        self.waiting.append(Event(trial=spec.number, kind="outcome", data=outcome))

    def next(self, timeout: float | None = None) -> Event | None:
        return self.waiting.popleft() if self.waiting else None

    def end(self, spec: TrialSpec) -> Outcome:
        peak, score, seconds = 1.0, 0.8 + 0.001 * spec.facts.workload.seed, 1.0
        for name, value in spec.config.items():
            effect = self.effects.get(f"{name}={value}", {})
            if "fails" in effect:
                return OutOfMemory(phase=Phase.FIRST, needed_bytes=GIB)
            peak *= effect.get("peak", 1.0)
            score += effect.get("score", 0.0)
            seconds *= effect.get("seconds", 1.0)
        amount = int(peak * GIB)
        peaks = tuple(
            Peak(phase=phase, kind=PeakKind.ALLOCATED, bytes=amount)
            for phase in (Phase.STEADY if seconds else Phase.FIRST, Phase.EVALUATE)
        )
        return Completed(
            measurement=Measurement(peaks=peaks, step_seconds=seconds),
            scores={"accuracy": Score(value=score, stderr=0.01, n=100)},
        )


def measure(effects, names, seeds=1, folder=Path("/nowhere")):
    runner = Scripted(effects)
    bench = Bench(
        runner=runner, facts=FACTS, device=CONTEXT.device, threads=1, folder=folder, seeds=seeds
    )
    return bench.measure(cases(BUILTIN, CONTEXT, names)), runner


def test_values_come_with_what_they_need_and_blocked_ones_with_a_reason() -> None:
    found = {(c.knob.name, c.value): c for c in cases(BUILTIN, CONTEXT)}
    alone = found["checkpointing", "full"]
    assert alone.config is not None
    assert alone.peer is not None
    assert not alone.peer
    company = found["weight_bits", 4]
    assert company.peer is not None
    assert dict(company.peer) == {"lora.rank": 4}
    blocked = found["optimizer.offload", "host"]
    assert blocked.config is None
    assert "CUDA" in blocked.reason or "host" in blocked.reason


def test_each_configuration_runs_once() -> None:
    _, runner = measure({}, ["checkpointing", "accumulation"])
    ran = [tuple(sorted(spec.config.items())) for spec in runner.ran]
    assert len(set(ran)) == len(ran)
    assert () in ran


def test_differences_are_against_the_peer() -> None:
    effects = {
        "checkpointing=full": {"peak": 0.5, "seconds": 1.3},
        "lora.rank=4": {"peak": 0.5},
        "weight_bits=4": {"peak": 0.5, "score": -0.1},
    }
    found, _ = measure(effects, ["checkpointing", "weight_bits"])
    by_value = {(d.case.knob.name, d.case.value): d for d in found}
    full = by_value["checkpointing", "full"]
    assert full.peak_bytes == -GIB // 2
    assert full.peak_share == pytest.approx(-0.5)
    assert full.time_share == pytest.approx(0.3)
    assert full.saves
    assert not full.moved
    four = by_value["weight_bits", 4]
    assert four.peak_share == pytest.approx(-0.5)  # beside adapters, which have halved it already
    assert four.score == pytest.approx(-0.1)
    assert four.score_error == pytest.approx(0.01 * 2**0.5)
    assert four.moved


def test_what_was_not_measured_is_no_saving() -> None:
    """A training of two steps has neither a steady phase nor a time per step."""
    found, _ = measure({"global_batch=4.0": {"peak": 2.0, "seconds": 0.0}}, ["global_batch"])
    large = next(d for d in found if d.case.value == 4.0)
    assert large.time_share is None
    assert large.peak_share == pytest.approx(1.0)


def test_several_seeds_are_for_lossy_values_only() -> None:
    found, runner = measure({}, ["checkpointing", "optimizer"], seeds=3)
    seeds = {
        name: {s.facts.workload.seed for s in runner.ran if name in s.config}
        for name in ("checkpointing", "optimizer")
    }
    assert seeds == {"checkpointing": {0}, "optimizer": {0, 1, 2}}
    lion = next(d for d in found if d.case.value == "lion")
    assert lion.score == pytest.approx(0.0)


def test_promises_that_are_broken_are_named() -> None:
    effects = {
        "checkpointing=full": {"peak": 0.5, "score": -0.2},
        "optimizer=sgd": {"fails": 1.0},
        "accumulation=2": {"peak": 1.1},
    }
    names = ["checkpointing", "optimizer", "accumulation", "prune.ffn"]
    found, _ = measure(effects | {"prune.ffn=0.5": {"peak": 0.8}}, names)
    broken = broken_promises(found)
    assert "the score moved" in broken["checkpointing"]
    assert "did not complete with sgd: out of memory" in broken["optimizer"]
    assert "saved none here" in broken["accumulation"]
    assert "prune.ffn" not in broken


def test_screen_document_and_guide_tell_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = measure({"checkpointing=full": {"peak": 0.5, "seconds": 1.3}}, ["checkpointing"])
    blocked = [replace(d, case=d.case) for d in measure({}, ["optimizer.offload"])[0]]
    about = {
        "workload": {"model": "gpt", "data": "tokens"}, "metric": "accuracy",
        "device": {"name": "", "kind": "cpu"},
    }  # fmt: skip
    document = check_document([*found, *blocked], about)
    import sys

    console = make_console(sys.stdout, plain=True, width=100)
    for part in check_screen([*found, *blocked], "accuracy"):
        console.print(part)
    screen = capsys.readouterr().out
    assert "checkpointing=full" in screen
    assert "−50%" in screen
    assert "+30%" in screen
    assert "optimizer.offload=host" in screen
    page = knob_guide(document, BUILTIN)
    assert "## `checkpointing`" in page
    assert "| full | baseline | −50% | −50% | +30% | +0.000 ±0.014 |" in page
    assert "`host` was not measured" in page
    assert all(f"## `{knob.name}`" in page for knob in BUILTIN)

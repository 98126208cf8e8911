"""Rehearsals against the allocator's own record, and the process that does them."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autotune.core.context import Device
from autotune.core.errors import ModelError
from autotune.core.outcome import ANATOMY_PARTS, PeakKind, Phase
from autotune.core.workload import Workload
from autotune.knobs.stages import StepPlan
from autotune.memory import recall
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.memory.rehearsal_worker import RehearsalWorker, memory_key
from autotune.memory.rehearse import rehearse, trace
from autotune.memory.timeline import timeline_of
from autotune.memory.trace import Scale
from autotune.trial import training
from autotune.trial.layouts.team import Team
from autotune.trial.lifecycle import run_trial
from autotune.trial.measure import CpuMeter
from autotune.trial.objective import Batch
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec
from tests.integration import troubled
from tests.tiny_folders import save_model, write_rows

EXACT = 5e-4
"""Operators' own scratch, relative to the peak of a model this small."""

KIND = "tests.integration.troubled:Troubled"


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TrialSpec]:
    """A language model and a classifier of two blocks, with padded texts."""
    from autotune.trial.objective import load_objective

    folder = tmp_path_factory.mktemp("models")
    data = write_rows(folder / "rows.jsonl")
    made = {}
    for name in ("causal_lm", "text_classification"):
        model = save_model(folder / name, name, hidden_size=64, intermediate_size=128)
        workload = Workload(
            objective=name,
            model=str(model),
            data=str(data),
            steps=5,
            global_batch=8,
            sequence_length=32,
            eval_examples=8,
        )
        facts = load_objective(name)(workload, folder / "cache").describe()
        made[name] = TrialSpec(
            number=0,
            config={},
            facts=facts,
            device=Device(kind="cpu"),
            threads=1,
            limit_bytes=2**34,
            limit_seconds=60,
            cache=str(folder / "cache"),
            log=str(folder / "log.txt"),
        )
    return made


def measured(spec: TrialSpec) -> dict[str, int]:
    progress = Progress(meter=CpuMeter(), report=lambda kind, data: None)
    run_trial(spec, progress)
    found = progress.measurement()
    peaks = {str(phase): found.peak(PeakKind.ALLOCATED, phase) for phase in Phase}
    return {phase: peak for phase, peak in peaks.items() if peak}


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("causal_lm", {}),
    ("causal_lm", {"precision": "bf16", "checkpointing": "full", "accumulation": 4}),
    ("causal_lm", {"loss_chunks": 4, "optimizer.bits": 8}),
    ("causal_lm", {"lora.rank": 4, "weight_bits": 4}),
    ("causal_lm", {"activation_bits": 8, "optimizer.kernel": "foreach"}),
    ("text_classification", {"attention": "eager", "optimizer": "adafactor"}),
    ("text_classification", {"prune.ffn": 0.5, "prune.heads": 0.5, "optimizer": "sgd"}),
    ("text_classification", {"lora.rank": 4, "optimizer": "lion", "precision": "bf16"}),
    ("causal_lm", {"prune.ffn": 0.5, "prune.importance": "taylor", "distill": "logits"}),
]


@pytest.mark.parametrize(("name", "config"), CONFIGS, ids=lambda v: v if type(v) is str else "")
def test_peaks_are_those_that_the_allocator_records(
    specs: dict[str, TrialSpec], name: str, config: dict[str, Any]
) -> None:
    spec = replace(specs[name], config=config)
    rehearsed = rehearse(spec)
    assert rehearsed.peaks == pytest.approx(measured(spec), rel=EXACT)
    assert rehearsed.note == ""
    assert rehearsed.peak_bytes == max(rehearsed.peaks.values())
    assert set(rehearsed.anatomy) == set(ANATOMY_PARTS)
    assert sum(rehearsed.anatomy.values()) == rehearsed.peaks["steady"]


def test_parameters_and_no_real_weights(specs: dict[str, TrialSpec]) -> None:
    spec = replace(specs["causal_lm"], config={"lora.rank": 4})
    progress = Progress(meter=CpuMeter(), report=lambda kind, data: None)
    run_trial(replace(spec, probe=True), progress)
    before = torch.get_rng_state()
    rehearsed = rehearse(spec)
    assert rehearsed.parameters == progress.parameters
    assert rehearsed.trained_parameters == progress.trained_parameters
    assert torch.equal(torch.get_rng_state(), before)


def test_events_add_up_to_the_peak(specs: dict[str, TrialSpec]) -> None:
    rehearsed = rehearse(specs["causal_lm"], record=True)
    live, highest, sizes = 0, 0, {}
    for storage, size in rehearsed.events:
        assert (storage in sizes) == (size < 0)
        if size < 0:
            assert sizes.pop(storage) == -size
        else:
            sizes[storage] = size
        live += size
        highest = max(highest, live)
    assert highest == rehearsed.peaks["steady"]


def test_a_probe_is_rehearsed_without_its_evaluation(specs: dict[str, TrialSpec]) -> None:
    rehearsed = rehearse(replace(specs["causal_lm"], probe=True))
    assert set(rehearsed.peaks) == {"load", "first", "steady"}


def test_json_round_trip(specs: dict[str, TrialSpec]) -> None:
    rehearsed = rehearse(specs["causal_lm"], record=True)
    assert Rehearsal.from_json(json.loads(json.dumps(rehearsed.to_json()))) == rehearsed


def test_shortcuts_change_no_byte(
    specs: dict[str, TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    from autotune.knobs import rounding
    from autotune.memory import stand_ins

    monkeypatch.setitem(rounding.PIECE, "cpu", 4096)  # of 17 000 values in the largest weight
    config = {"precision": "bf16", "accumulation": 4, "optimizer.bits": 8}
    spec = replace(specs["causal_lm"], config=config, probe=True)
    short = rehearse(spec)
    monkeypatch.setattr(Team, "different_micro_batches", 4)
    monkeypatch.setattr(stand_ins, "shortcuts", dict)
    assert rehearse(spec).peaks == short.peaks


def test_operators_that_are_recalled_change_no_byte(
    specs: dict[str, TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"attention": "eager", "optimizer.kernel": "foreach", "checkpointing": "full"}
    spec = replace(specs["text_classification"], config=config)
    recalled = [rehearse(spec, record=True) for _ in range(2)]
    monkeypatch.setattr(recall, "run", lambda func, args, kwargs: func(*args, **kwargs))
    asked = rehearse(spec, record=True)
    for found in recalled:
        assert found.peaks == asked.peaks
        assert found.anatomy == asked.anatomy
        assert found.events == asked.events


def trouble(folder: Path, kind: Callable[[str], float] | None = None) -> TrialSpec:
    workload = Workload(objective=KIND, data=json.dumps({"1": "odd"} if kind else {}))
    return TrialSpec(
        number=0,
        config={},
        facts=troubled.Troubled(workload, folder).describe(),
        device=Device(kind="cpu"),
        threads=1,
        limit_bytes=2**34,
        limit_seconds=60,
        cache=str(folder),
        log=str(folder / "log.txt"),
    )


def test_any_objective_is_rehearsed(tmp_path: Path) -> None:
    spec = trouble(tmp_path)
    assert rehearse(spec).peaks == pytest.approx(measured(spec), rel=0.01)


@pytest.mark.parametrize(
    ("read", "said"),
    [
        (lambda _: float(bool((torch.randn(4) > 0).any())), "a truth value"),
        (lambda _: float(torch.randn(4).argmax()), "a count"),
        (lambda _: float(len(torch.randn(4).nonzero())), "shape"),
        (lambda _: float(torch.compile(nn.Linear(4, 4))(torch.randn(4)).sum()), "compiled"),
        (lambda _: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_followed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[str], float], said: str
) -> None:
    monkeypatch.setitem(troubled.TROUBLES, "odd", read)
    with pytest.raises(CannotRehearse, match=said):
        rehearse(trouble(tmp_path, read))


def test_an_evaluation_that_cannot_be_followed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(self: Any, model: nn.Module, batches: list[Batch], plan: object) -> object:
        return model(batches[0]["x"]).nonzero()

    monkeypatch.setattr(troubled.Troubled, "evaluate", evaluate)
    rehearsed = rehearse(trouble(tmp_path))
    assert set(rehearsed.peaks) == {"load", "first", "steady"}
    assert rehearsed.note.startswith("The evaluation is not counted: ")


def test_errors_of_the_trial_itself_are_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(self: Any, plan: object, seed: int) -> nn.Module:
        raise ModelError("there is no such model")

    monkeypatch.setattr(troubled.Troubled, "build", build)
    with pytest.raises(ModelError, match="no such model"):
        rehearse(trouble(tmp_path))


@pytest.fixture(scope="module")
def worker() -> Iterator[RehearsalWorker]:
    with RehearsalWorker(timeout=60) as started:
        yield started


def test_a_worker_gives_the_same_and_remembers(
    worker: RehearsalWorker, specs: dict[str, TrialSpec]
) -> None:
    import time

    spec = specs["causal_lm"]
    first = worker.rehearse(spec)
    assert first.peaks == rehearse(spec).peaks
    began = time.perf_counter()
    assert worker.rehearse(replace(spec, number=7, threads=2)) is first
    assert time.perf_counter() - began < 0.01


def test_where_inference_counts_its_events_are_told(
    worker: RehearsalWorker, specs: dict[str, TrialSpec]
) -> None:
    spec = specs["causal_lm"]
    facts = replace(spec.facts, workload=replace(spec.facts.workload, purpose="inference"))
    told = worker.rehearse(replace(spec, facts=facts), record=True)
    assert told.phase == "evaluate"
    live = itertools.accumulate(size for _, size in told.events)
    assert max(live) == told.peak_bytes == told.peaks["evaluate"]


def test_a_worker_keeps_events_only_where_they_are_asked_for(
    worker: RehearsalWorker, specs: dict[str, TrialSpec]
) -> None:
    spec = replace(specs["text_classification"], probe=True)
    recorded = worker.rehearse(spec, record=True)
    bare = worker.rehearse(spec)
    assert recorded.events
    assert bare == replace(recorded, events=())
    assert worker.rehearse(spec, record=True) is recorded


def test_a_worker_tells_every_event(worker: RehearsalWorker, specs: dict[str, TrialSpec]) -> None:
    spec = specs["causal_lm"]
    scale = Scale(layers=1, micro_batch=4, sequence_length=16)
    for asked in (None, scale):
        seen = worker.trace(spec, asked)
        assert seen == replace(trace(spec, asked), seconds=seen.seconds)
        assert set(seen.phases) == {"load", "first", "steady", "evaluate"}


def test_a_worker_has_cuda_semantics(worker: RehearsalWorker, specs: dict[str, TrialSpec]) -> None:
    spec = replace(specs["causal_lm"], device=Device(kind="cuda", capability=(9, 0)))
    rehearsed = worker.rehearse(spec, record=True)
    assert rehearsed.note == ""
    assert all(size % 512 == 0 for _, size in rehearsed.events)
    lean = worker.rehearse(replace(spec, config={"checkpointing": "full"}))
    assert lean.peak_bytes < rehearsed.peak_bytes
    fused = worker.rehearse(replace(spec, config={"optimizer": "sgd", "accumulation": 2}))
    assert fused.anatomy["optimizer"] == 0


def test_a_worker_says_what_cannot_be_and_goes_on(
    worker: RehearsalWorker, specs: dict[str, TrialSpec], tmp_path: Path
) -> None:
    with pytest.raises(CannotRehearse, match="KeyError"):
        worker.rehearse(trouble(tmp_path, lambda _: 1.0))
    assert worker.rehearse(specs["causal_lm"]).peak_bytes > 0


def test_a_worker_that_dies_is_started_again(
    worker: RehearsalWorker, specs: dict[str, TrialSpec], tmp_path: Path
) -> None:
    spec = trouble(tmp_path)
    workload = replace(spec.facts.workload, data=json.dumps({"1": "killed"}))
    broken = replace(spec, facts=replace(spec.facts, workload=workload))
    with pytest.raises(CannotRehearse, match="ended"):
        worker.rehearse(broken)
    worker.start()
    with pytest.raises(CannotRehearse, match="ended"):
        worker.rehearse(broken)  # remembered: it does not end the process again
    assert worker.rehearse(replace(specs["causal_lm"], probe=True)).peak_bytes > 0


def test_the_key_holds_what_decides_memory(specs: dict[str, TrialSpec]) -> None:
    spec = specs["causal_lm"]
    same = replace(spec, number=3, limit_bytes=1, log="elsewhere")
    others = [
        replace(spec, config={"precision": "bf16"}),
        replace(spec, device=Device(kind="cuda")),
        replace(spec, probe=True),
        specs["text_classification"],
    ]
    assert memory_key(same) == memory_key(spec)
    assert len({memory_key(other) for other in [spec, *others]}) == 1 + len(others)


def test_the_drivers_end_imports_no_torch() -> None:
    program = (
        "import sys, autotune.memory.rehearsal_worker; "
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, timeout=60)
    assert done.returncode == 0


def test_plans_of_a_rehearsal_are_short() -> None:
    batch = {"x": torch.zeros(10, 2)}
    plan = StepPlan(accumulation=4)
    team = Team()
    rows = training._first_rows(batch, plan, team)["x"]
    whole = batch["x"].chunk(plan.accumulation)
    short = rows.chunk(training._few_micro_batches(plan, team).accumulation)
    assert [len(piece) for piece in short] == [len(piece) for piece in whole[:2]]


@pytest.mark.parametrize("config", [{}, {"checkpointing": "full", "accumulation": 2}])
def test_timeline_of_a_step_has_its_peak_to_the_byte(
    specs: dict[str, TrialSpec], config: dict[str, Any]
) -> None:
    spec = replace(specs["causal_lm"], config=config, probe=True)
    timeline, rehearsed = timeline_of(trace(spec)), rehearse(spec)
    assert timeline.peak_bytes == rehearsed.peaks["steady"]
    held = {part: column[timeline.peak_moment] for part, column in timeline.parts.items()}
    assert {part: size for part, size in rehearsed.anatomy.items() if size} == {
        part: size for part, size in held.items() if size
    }
    kinds = [stage for stage, _ in timeline.stages]
    assert kinds == ["forward", "backward"] * int(config.get("accumulation", 1)) + ["optimizer"]

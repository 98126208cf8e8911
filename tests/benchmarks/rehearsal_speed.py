"""What a rehearsal costs, in a process that does nothing else: parts of `benchmarks/rehearsal.py`.

python -m tests.benchmarks.rehearsal_speed speed
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.workload import WorkloadFacts
from autotune.memory.algebra import Algebra
from autotune.memory.rehearsal import Rehearsal
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.memory.trace import Scale, Trace
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec
from tests.benchmarks.rehearsal import SMALL, describe, make_spec

DEPTHS = (12, 24, 48)
BATCHES = (2, 4, 6, 16, 32)
LENGTHS = (128, 256, 512, 1024)
HELD = ((12, 16, 256), (24, 6, 512), (48, 4, 128))
"""Layers, sequences and tokens of the scales that are also rehearsed in full."""

LEAN: Mapping[str, Value] = {"precision": "bf16", "checkpointing": "full"}


class InProcess:
    """Rehearses in this process."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        """Return the memory of a trial."""
        from autotune.memory.rehearse import rehearse

        return rehearse(spec, record=record)

    def trace(self, spec: TrialSpec, scale: Scale | None = None) -> Trace:
        """Return every event of a trial."""
        from autotune.memory.rehearse import trace

        return trace(spec, scale)

    def close(self) -> None:
        """Do nothing: there is no process to end."""


def speed(folder: Path, repeats: int) -> dict[str, Any]:
    """Return CPU seconds of rehearsals of GPT-2 small and of torch's tracker; in this process."""
    facts = _described(folder, "gpt2-small", batch=8, tokens=512)
    spec = make_spec(facts, folder, {})
    kinds = {kind: replace(spec, device=Device(kind=kind)) for kind in ("cuda", "cpu")}
    seconds: dict[str, list[float]] = {kind: [] for kind in (*kinds, "MemTracker")}
    rehearser = InProcess()
    for number in range(repeats + 1):  # the first one imports, and does not count
        length = 512 - 32 * number
        gc.collect()
        gc.freeze()  # as the warm process does once it has imported everything
        for kind, asked in kinds.items():
            seconds[kind].append(rehearser.rehearse(_of_length(folder, asked, length)).seconds)
        seconds["MemTracker"].append(tracker_seconds(length))
    found: dict[str, Any] = {kind: values[1:] for kind, values in seconds.items()}
    return found | {"known_ms": _known_ms(spec)}


def _known_ms(spec: TrialSpec, times: int = 20) -> float:
    """Return milliseconds to ask the warm process for a configuration that it knows."""
    with RehearsalWorker() as worker:
        worker.rehearse(spec)
        began = time.perf_counter()
        for number in range(times):
            worker.rehearse(replace(spec, number=number))
        return (time.perf_counter() - began) / times * 1e3


def algebra(folder: Path, _: int) -> dict[str, Any]:
    """Derive many scales of GPT-2 in this process, and hold some against full rehearsals."""
    at = {n: _described(folder, f"gpt2-{n}", batch=8, tokens=512) for n in DEPTHS}
    tracer = InProcess()
    derives = Algebra(tracer)
    began = time.process_time()
    for batch in BATCHES[:2]:  # one in full, then the rehearsals that the rest follows from
        derives.rehearse(_scaled(folder, at[DEPTHS[0]], batch, LENGTHS[0]))
    built = time.process_time() - began
    specs = [
        _scaled(folder, facts, batch, length)
        for facts in at.values()
        for batch in BATCHES
        for length in LENGTHS
    ]
    gc.collect()
    gc.freeze()
    began = time.process_time()
    found = [derives.rehearse(spec) for spec in specs]
    each = (time.process_time() - began) / len(specs)
    errors = []
    for layers, batch, length in HELD:
        spec = _scaled(folder, at[layers], batch, length)
        errors.append(derives.rehearse(spec).peak_bytes / tracer.rehearse(spec).peak_bytes - 1)
    return {
        "points": len(specs),
        "derived": sum(bool(rehearsal.derived) for rehearsal in found),
        "build_cpu_seconds": round(built, 2),
        "ms_per_point": round(each * 1e3, 3),
        "errors": errors,
    }


def size(folder: Path, _: int) -> dict[str, Any]:
    """Derive the memory of 70 billion parameters, then rehearse all of them, in this process."""
    from autotune.memory.fake_device import install

    install()
    facts = _described(folder, "llama-70b", batch=2, tokens=2048)
    spec = replace(make_spec(facts, folder, LEAN), device=Device(kind="cuda"))
    tracer = InProcess()
    began, cpu = time.perf_counter(), time.process_time()
    found = Algebra(tracer).rehearse(spec, record=True)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    full = tracer.rehearse(spec)
    return {
        "parameters": found.parameters,
        "peak_bytes": found.peak_bytes,
        "cpu_seconds": round(cpu, 2),
        "seconds": round(seconds, 2),
        "resident_bytes": resident,
        "derived": found.derived,
        "note": found.note,
        "full_cpu_seconds": full.seconds,
        "error": found.peak_bytes / full.peak_bytes - 1,
    }


def _described(folder: Path, name: str, batch: int, tokens: int) -> WorkloadFacts:
    runner = LocalRunner(slots=1)
    try:
        return describe(runner, folder, name, batch, tokens)
    finally:
        runner.close()


def _scaled(folder: Path, facts: WorkloadFacts, batch: int, length: int) -> TrialSpec:
    """Return the probe of a model on other batches."""
    workload = replace(facts.workload, global_batch=batch)
    spec = make_spec(replace(facts, workload=workload), folder, {})
    return replace(_of_length(folder, spec, length, facts), probe=True)


def _of_length(
    folder: Path, spec: TrialSpec, length: int, prepared: WorkloadFacts | None = None
) -> TrialSpec:
    """Return a trial on another length; it finds the data of the one that was described."""
    known = (prepared or spec.facts).workload
    workload = replace(spec.facts.workload, sequence_length=length)
    cache = folder / "cache"
    new = cache / f"{workload.objective}-{workload.fingerprint}"
    if not new.exists():
        new.symlink_to(cache / f"{known.objective}-{known.fingerprint}")
    return replace(spec, facts=replace(spec.facts, workload=workload))


def tracker_seconds(tokens: int) -> float:
    """Return CPU seconds of torch's own tracker for the same model and two steps."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.distributed._tools.mem_tracker import MemTracker
    from transformers import AutoConfig, AutoModelForCausalLM

    began = time.process_time()
    with FakeTensorMode():
        config = AutoConfig.for_model("gpt2", **SMALL, use_cache=False)
        model = AutoModelForCausalLM.from_config(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        ids = torch.zeros(8, tokens, dtype=torch.long)
        tracker = MemTracker()
        tracker.track_external(model, optimizer)
        with tracker:
            for _ in range(2):
                logits = model(input_ids=ids).logits.float().flatten(0, 1)
                torch.nn.functional.cross_entropy(logits, ids.flatten()).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                del logits
                tracker.reset_mod_stats()
    return time.process_time() - began


PARTS = {"speed": speed, "algebra": algebra, "size": size}


def shown(part: str, result: Mapping[str, Any]) -> list[str]:
    """Return the lines that say what a part found."""
    if part == "speed":
        lines = [
            f"GPT-2 small, {kind}: median {statistics.median(seconds):.2f} CPU s of "
            f"{', '.join(f'{value:.2f}' for value in seconds)}"
            for kind, seconds in result.items()
            if isinstance(seconds, list)
        ]
        return [*lines, f"a configuration that is known: {result['known_ms']:.3f} ms"]
    if part == "algebra":
        worst = max(result["errors"], key=abs)
        return [
            f"algebra: {result['derived']} of {result['points']} scales derived at "
            f"{result['ms_per_point']:.3f} CPU ms each, after {result['build_cpu_seconds']:.1f} "
            f"CPU s; largest error against a full rehearsal {worst:+.4%}"
        ]
    return [
        f"{result['parameters'] / 1e9:.1f} billion parameters: {result['seconds']:.1f} s "
        f"({result['cpu_seconds']:.1f} CPU s), {result['resident_bytes'] / 2**30:.2f} GiB held; "
        f"in full {result['full_cpu_seconds']:.1f} CPU s, {result['error']:+.4%} apart. "
        f"{result['derived']}"
    ]


def main() -> None:
    """Do one part and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(PARTS[arguments.part](Path(name), arguments.repeats)))


if __name__ == "__main__":
    main()

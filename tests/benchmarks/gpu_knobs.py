"""What each knob value does to the peaks on a GPU, one off neutral at a time, beside the baseline.

Prints allocated, reserved and device peaks, their change against the baseline of the same run, and
throughput. On a machine without a CUDA device it says so; `--device cpu` runs the same table there.

    python -m tests.benchmarks.gpu_knobs --json results/reference/gpu_knobs.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from autotune.core.config import Config
from autotune.core.context import Device
from autotune.core.errors import UnknownName
from autotune.core.outcome import Completed, Measurement, PeakKind, outcome_from_json
from autotune.core.space import parse_space
from autotune.core.units import gib
from autotune.core.workload import Workload
from autotune.knobs import BUILTIN
from autotune.plan import context_of
from autotune.runners.devices import library_versions, pick_device
from autotune.runners.local import LocalRunner
from autotune.trial.spec import TrialSpec

EVERYTHING = "summary: every value\nknobs:\n" + "".join(
    f"  {knob.name}: {list(knob.domain.grid())}\n" for knob in BUILTIN
)


def measure(device: Device, workload: Workload, folder: Path) -> list[dict[str, object]]:
    """Run the baseline and every legal value off it; one row each."""
    runner = LocalRunner(slots=1)
    facts = runner.describe(workload, folder / "cache")
    context = context_of(facts, device)
    space = parse_space(EVERYTHING, "every value", BUILTIN)
    configs = [Config({})] + [
        Config({knob.name: value}, BUILTIN)
        for knob in BUILTIN
        for value in knob.domain.grid()
        if value != knob.neutral
    ]
    rows: list[dict[str, object]] = []
    for number, config in enumerate(configs):
        reasons = space.reasons(config, context)
        row: dict[str, object] = {"configuration": config.describe(BUILTIN)}
        if reasons:
            rows.append(row | {"blocked": reasons[0]})
            continue
        spec = TrialSpec(
            number=number,
            config=config.to_json(),
            facts=facts,
            device=device,
            threads=device.cores,
            limit_bytes=device.free_bytes,
            limit_seconds=600,
            cache=str(folder / "cache"),
            log=str(folder / f"{number}.txt"),
        )
        rows.append(row | run(runner, spec))
    runner.close()
    return rows


def run(runner: LocalRunner, spec: TrialSpec) -> dict[str, object]:
    """Run one trial and return what it measured, or how it ended."""
    runner.submit(spec)
    while (event := runner.next()) is not None:
        if event.kind == "outcome":
            outcome = outcome_from_json(event.data)
            done = isinstance(outcome, Completed)
            return peaks(outcome.measurement) if done else {"ended": outcome.summary}
    raise SystemExit("the trial ended without an outcome")


def peaks(measured: Measurement) -> dict[str, object]:
    """Return the peaks by kind, in bytes, and tokens per second."""
    found = {kind.value: measured.peak(kind) for kind in PeakKind if measured.peak(kind)}
    return {**found, "tokens_per_second": round(measured.throughput, 1)}


def report(rows: list[dict[str, object]]) -> None:
    """Print the table; changes are against the first row, the baseline."""
    base = rows[0]
    kinds = [kind.value for kind in PeakKind if kind.value in base]
    print(
        f"{'configuration':<24}" + "".join(f"{kind:>12}{'':>7}" for kind in kinds) + f"{'tok/s':>9}"
    )
    for row in rows:
        name = str(row["configuration"])
        if kinds[0] not in row:
            print(f"{name:<24}{row.get('ended') or row.get('blocked')}")
            continue
        cells = ""
        for kind in kinds:
            value, before = row[kind], base[kind]
            assert isinstance(value, int)
            assert isinstance(before, int)
            cells += f"{gib(value, 3):>12}{value / before - 1:>+7.0%}"
        print(f"{name:<24}{cells}{row['tokens_per_second']:>9}")


def main() -> None:
    """Measure, print, and write the numbers if a file was named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        device = pick_device(arguments.device)
    except UnknownName as error:
        print(f"nothing was measured: {error.message}")
        return
    workload = Workload(
        objective="text_classification",
        steps=12,
        global_batch=arguments.batch,
        sequence_length=arguments.tokens,
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(device, replace(workload, eval_examples=64), Path(folder))
    report(rows)
    if arguments.json:
        document = {
            "benchmark": "gpu_knobs",
            "device": device.to_json(),
            "versions": library_versions(),
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()

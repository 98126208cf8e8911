"""Every layout on processes of this CPU: predicted beside measured, memory by rank, and time.

    python -m tests.benchmarks.layouts --json results/reference/layouts.json

Each layout trains for real. Peaks of tensors are held against the rehearsal of the same rank, which
starts no process; seconds of a step against the prediction from first principles, by their rank
correlation. Rates of the CPU and of its links are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import distributed, nn
from transformers import AutoConfig

from autotune.core.config import Config
from autotune.core.domains import Value
from autotune.core.outcome import Completed, PeakKind, Phase, outcome_from_json
from autotune.core.workload import Workload, WorkloadFacts
from autotune.knobs import BUILTIN
from autotune.memory.rehearsal_worker import RehearsalWorker
from autotune.parallel.pace import Work, pace_of
from autotune.parallel.rates import Rates
from autotune.runners.devices import cpu_device, library_versions
from autotune.runners.local import LocalRunner
from autotune.trial.layouts.seat import Seat
from autotune.trial.spec import TrialSpec
from tests.ranks import meet, run_ranks
from tests.tiny_folders import byte_tokenizer

LAYOUTS: tuple[Mapping[str, Value], ...] = (
    {},
    {"checkpointing": "full"},
    {"layout.ranks": 2},
    {"layout.ranks": 2, "accumulation": 4},
    {"layout.ranks": 2, "layout.data": "zero1"},
    {"layout.ranks": 2, "layout.data": "zero2"},
    {"layout.ranks": 2, "layout.data": "zero3"},
    {"layout.ranks": 2, "layout.data": "zero3", "accumulation": 4},
    {"layout.ranks": 2, "layout.tensor": 2},
    {"layout.ranks": 2, "layout.pipeline": 2, "accumulation": 4},
    {"layout.ranks": 2, "layout.pipeline": 2, "accumulation": 4, "layout.schedule": "gpipe"},
    {"layout.ranks": 2, "layout.context": 2},
    {"layout.ranks": 2, "checkpointing": "full"},
    {"layout.ranks": 2, "layout.data": "zero3", "checkpointing": "full"},
    {"layout.ranks": 2, "layout.tensor": 2, "checkpointing": "full"},
    {"layout.ranks": 4},
    {"layout.ranks": 4, "layout.data": "zero1"},
    {"layout.ranks": 4, "layout.data": "zero3"},
    {"layout.ranks": 4, "layout.data": "zero3", "layout.shards": 2},
    {"layout.ranks": 4, "layout.tensor": 2},
    {"layout.ranks": 4, "layout.tensor": 2, "layout.data": "zero3"},
    {"layout.ranks": 4, "layout.pipeline": 2, "accumulation": 2},
    {"layout.ranks": 4, "layout.pipeline": 4, "accumulation": 4},
    {"layout.ranks": 4, "layout.context": 2},
    {"layout.ranks": 3, "layout.data": "server"},
)

STEPS, BATCH, TOKENS = 12, 16, 128
LLAMA = {
    "hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 4,
    "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": 0,
}  # fmt: skip
"""Large enough that a step computes and exchanges for longer than it takes to begin either."""

MESSAGE = 2**22
"""Values in the tensor that a link is measured with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One layout: bytes by rank, and seconds of a step."""

    layout: str
    measured: Mapping[int, int]
    predicted: Mapping[int, int]
    seconds: float
    predicted_seconds: float

    @property
    def errors(self) -> list[float]:
        """Relative error of each rank that was rehearsed."""
        return [
            abs(size / self.measured[rank] - 1)
            for rank, size in self.predicted.items()
            if self.measured.get(rank)
        ]


def main() -> None:
    """Measure, print the table, and record it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the numbers here")
    parser.add_argument("--only", type=int, help="the first so many layouts")
    parser.add_argument("--memory", action="store_true", help="leave times out: busy cores")
    arguments = parser.parse_args()
    rates = measure_rates()
    print(
        f"this CPU: {rates.flops32 / 1e9:.0f} GFLOP/s a process, {rates.together} together, "
        f"{rates.link / 1e9:.2f} GB/s and {rates.latency * 1e6:.0f} us between processes\n"
    )
    rows = measure(LAYOUTS[: arguments.only], rates)
    if arguments.memory:
        rows = [replace(row, seconds=0.0, predicted_seconds=0.0) for row in rows]
    print(table(rows))
    summary = summarise(rows)
    print("\n" + "\n".join(f"{name:44} {value:.4f}" for name, value in summary.items()))
    if arguments.json:
        document = {
            "rates": asdict(rates),
            "rows": [asdict(row) for row in rows],
            "summary": summary,
            "versions": library_versions(),
        }
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def measure(layouts: tuple[Mapping[str, Value], ...], rates: Rates) -> list[Row]:
    """Train and rehearse every layout."""
    rows = []
    with tempfile.TemporaryDirectory() as name, RehearsalWorker() as worker:
        runner, folder = LocalRunner(slots=1), Path(name)
        try:
            workload = Workload(
                objective="causal_lm",
                model=str(_model(folder / "model")),
                steps=STEPS,
                global_batch=BATCH,
                sequence_length=TOKENS,
                eval_examples=8,
            )
            facts = runner.describe(workload, folder / "cache")
            for config in layouts:
                rows.append(_row(config, facts, folder, runner, worker, rates))
                print(f"  {rows[-1].layout}", flush=True)
        finally:
            runner.close()
    return rows


def _model(folder: Path) -> Path:
    """Write the configuration of the model that every layout trains from scratch."""
    tokenizer = byte_tokenizer()
    AutoConfig.for_model("llama", vocab_size=len(tokenizer), **LLAMA).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _row(
    config: Mapping[str, Value],
    facts: WorkloadFacts,
    folder: Path,
    runner: LocalRunner,
    worker: RehearsalWorker,
    rates: Rates,
) -> Row:
    spec = TrialSpec(
        number=0, config=config, facts=facts, device=cpu_device(), threads=1, probe=False,
        limit_bytes=4 * 2**30, limit_seconds=600.0, cache=str(folder / "cache"),
        log=str(folder / "log.txt"),
    )  # fmt: skip
    runner.submit(spec)
    while True:
        event = runner.next(600)
        assert event is not None
        if event.kind == "outcome":
            break
    outcome = outcome_from_json(event.data)
    assert isinstance(outcome, Completed), outcome
    measured: dict[int, int] = {}
    for peak in outcome.measurement.peaks:
        if peak.kind is PeakKind.ALLOCATED and peak.phase in (Phase.FIRST, Phase.STEADY):
            measured[peak.rank] = max(peak.bytes, measured.get(peak.rank, 0))
    rehearsal = worker.rehearse(TrialSpec.from_json({**spec.to_json(), "probe": True}))
    predicted = rehearsal.by_rank or {0: rehearsal.peak_bytes}
    model = facts.model
    work = Work(model=model, global_batch=BATCH, tokens=TOKENS)
    return Row(
        layout=Config(config, BUILTIN).describe(BUILTIN),
        measured=measured,
        predicted=predicted,
        seconds=outcome.measurement.step_seconds,
        predicted_seconds=pace_of(config, work, rates).seconds,
    )


def measure_rates() -> Rates:
    """Measure what a process of this CPU computes, and what two of them tell each other."""
    flops = _flops()
    seconds, latency, gathering = run_ranks(2, "tests.benchmarks.layouts:link", patience=120.0)[0]
    return Rates(
        flops16=flops, flops32=flops, memory=_memory(), link=4 * MESSAGE / seconds,
        network=4 * MESSAGE / seconds, latency=latency, gathering=gathering,
        together=cpu_device().cores, source="measured",
    )  # fmt: skip


def link(seat: Seat) -> tuple[float, float, float]:
    """Return seconds to sum a large tensor over two ranks, a small one, and the share to gather."""
    meet(seat, 2)
    whole, part = torch.zeros(MESSAGE), torch.zeros(MESSAGE // 2)
    small = torch.zeros(16)
    summed = _median(lambda: distributed.all_reduce(whole))
    pieces = list(whole.chunk(2))
    gathered = _median(lambda: distributed.all_gather(pieces, part))
    return summed, _median(lambda: distributed.all_reduce(small)), gathered / summed


def _median(action: Callable[[], object], times: int = 10) -> float:
    action()
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _flops() -> float:
    """Return operations per second of a block that trains: half a step of a transformer."""
    hidden, rows = LLAMA["hidden_size"], BATCH // 2
    block = nn.TransformerEncoderLayer(
        hidden, LLAMA["num_attention_heads"], LLAMA["intermediate_size"], 0.0, batch_first=True
    )
    given = torch.randn(rows, TOKENS, hidden)
    size = sum(parameter.numel() for parameter in block.parameters())
    forward = (2.0 * size + 4.0 * hidden * TOKENS) * rows * TOKENS
    return 3.0 * forward / _median(lambda: block(given).sum().backward())


def _memory() -> float:
    """Return bytes per second of an optimizer that reads four tensors and writes three."""
    weights = [nn.Parameter(torch.randn(2**20)) for _ in range(8)]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW(weights)
    return 7 * 4 * 2**20 * len(weights) / _median(lambda: optimizer.step() or 0)


def summarise(rows: list[Row]) -> dict[str, float]:
    """Return the numbers that the targets are about."""
    errors = [error for row in rows for error in row.errors]
    summary = {
        "memory: median relative error of a rank": statistics.median(errors),
        "memory: greatest": max(errors),
        "ranks compared": float(len(errors)),
    }
    if any(row.seconds for row in rows):
        found: Any = spearmanr([r.seconds for r in rows], [r.predicted_seconds for r in rows])
        summary["time: rank correlation, predicted and measured"] = float(found.statistic)
        alone = [r for r in rows if len(r.measured) <= cpu_device().cores]
        found = spearmanr([r.seconds for r in alone], [r.predicted_seconds for r in alone])
        summary["time: the same for ranks that have a core each"] = float(found.statistic)
    return summary


def table(rows: list[Row]) -> str:
    """Return the table: MiB of the ranks that differ, and seconds relative to the first row."""
    lines = [
        f"{'layout':44} {'measured MiB':>22} {'predicted':>22} {'s/step':>8} {'predicted':>10}"
    ]
    for row in rows:
        ranks = sorted(row.predicted)
        measured = " ".join(f"{row.measured.get(rank, 0) / 2**20:.1f}" for rank in ranks)
        predicted = " ".join(f"{row.predicted[rank] / 2**20:.1f}" for rank in ranks)
        lines.append(
            f"{row.layout:44} {measured:>22} {predicted:>22} {row.seconds:8.3f} "
            f"{row.predicted_seconds:10.3f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""An objective that trains a tiny network, and misbehaves on request: for tests of outcomes.

`workload.data` is a JSON object from the number of micro-batches to a kind of trouble, so that a
knob (`accumulation`) decides which trial is in trouble. `"*"` stands for every other number.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from autotune.core.context import ModelFacts
from autotune.core.errors import DataError
from autotune.core.outcome import Score
from autotune.core.workload import Metric, Workload, WorkloadFacts
from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan
from autotune.trial.objective import Batch

WIDTH = 16


class Network(nn.Module):
    """Two blocks of one layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return x


class Troubled:
    """Learns to reproduce noise. See the module for how it is made to fail."""

    def __init__(self, workload: Workload, cache: Path) -> None:
        self.workload = workload
        self.cache = cache

    def describe(self) -> WorkloadFacts:
        if self.workload.data == "missing":
            raise DataError("no such data", where="missing", help="give another --data")
        filled = replace(
            self.workload,
            steps=self.workload.steps or 8,
            global_batch=32,
            sequence_length=4,
            eval_examples=32,
            learning_rate=1e-3,
        )
        return WorkloadFacts(
            workload=filled,
            model=ModelFacts(name="two layers", family="none", layers=2, vocab=WIDTH),
            data="noise",
            data_fingerprint="0" * 12,
            metrics=(Metric(name="error", maximize=False),),
        )

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield {"x": torch.randn(plan.global_batch, WIDTH, generator=generator)}

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        generator = torch.Generator().manual_seed(1)
        return [{"x": torch.randn(32, WIDTH, generator=generator)} for _ in range(2)]

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return Network()

    def loss(self, model: nn.Module, batch: Batch, plan: StepPlan) -> Tensor:
        troubles: Mapping[str, str] = json.loads(self.workload.data or "{}")
        trouble = troubles.get(str(plan.accumulation), troubles.get("*", ""))
        x = batch["x"]
        loss = (model(x) - x).square().mean()
        if trouble:
            loss = loss * _misbehave(trouble)
        return loss

    def evaluate(
        self, model: nn.Module, batches: Sequence[Batch], plan: EvalPlan
    ) -> Mapping[str, Score]:
        with torch.no_grad():
            errors = [float((model(b["x"]) - b["x"]).square().mean()) for b in batches]
        return {"error": Score(value=sum(errors) / len(errors), stderr=0.01, n=len(errors))}


def _misbehave(trouble: str) -> float:
    kind, _, argument = trouble.partition(" ")
    return TROUBLES[kind](argument)


def _spin(_: str) -> float:
    while True:  # never lets go of the interpreter for long
        pass


def _signal(name: str) -> Callable[[str], float]:
    def send(_: str) -> float:
        os.kill(os.getpid(), getattr(signal, name))
        return 1.0

    return send


def _sleep(seconds: str) -> float:
    time.sleep(float(seconds or 600))
    return 1.0


def _fail(_: str) -> float:
    raise ValueError("a bug in the user's code")


def _start_grandchild(marker: str) -> float:
    process = subprocess.Popen(["sleep", "600"])
    Path(marker).write_text(str(process.pid))
    return _sleep("")


def _tell_environment(path: str) -> float:
    seen = {name: os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "AUTOTUNE_WARM")}
    Path(path).write_text(json.dumps({**seen, "pid": os.getpid()}))
    return 1.0


def _on_rank(argument: str) -> float:
    """`on 1 6 killed`: on rank 1, in its sixth loss."""
    rank, count, trouble = argument.split(" ", 2)
    _seen.append(1)
    if torch.distributed.get_rank() == int(rank) and len(_seen) == int(count):
        return _misbehave(trouble)
    return 1.0


_seen: list[int] = []

TROUBLES: dict[str, Callable[[str], float]] = {
    "on": _on_rank,
    "hang": _sleep,
    "slow": _sleep,
    "busy": _spin,
    "segfault": _signal("SIGSEGV"),
    "killed": _signal("SIGKILL"),
    "exit": lambda code: os._exit(int(code)),
    "raise": _fail,
    "diverge": lambda _: float("nan"),
    "allocate": lambda mebibytes: float(torch.ones(int(mebibytes) * 2**18).mean()),
    "grandchild": _start_grandchild,
    "environment": _tell_environment,
}
"""What a kind of trouble does before the loss is multiplied by what it returns."""

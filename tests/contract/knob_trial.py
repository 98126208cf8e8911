"""The stages of a trial on a tiny model, in the order of `trial/lifecycle.py`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from autotune.core import companions
from autotune.core.config import Config
from autotune.core.context import Context, Device
from autotune.core.domains import Value
from autotune.core.knob import Knob, run_stage
from autotune.knobs import BUILTIN
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.distillation import Distiller
from autotune.knobs.optimizers import build_optimizer
from autotune.knobs.scaling import LossScaler
from autotune.knobs.stages import (
    ADAPT,
    COMPRESS,
    DATA,
    DEPLOY,
    ENVIRONMENT,
    EVALUATE,
    LOAD,
    OPTIMISE,
    PARALLELISE,
    SAVE,
    STEP,
    Adaptation,
    DataPlan,
    EvalPlan,
    LoadPlan,
    OptimPlan,
    StepPlan,
)
from autotune.trial.loop import MAX_GRADIENT_NORM, contexts
from tests import tiny_models as tiny

BATCH = 4
EXPENSIVE = frozenset({"compile", "activation_budget"})
"""Seconds for each configuration: tried alone, and in pairs with a few."""

FEATURES = frozenset({"by_length", "documents", "on_the_fly", "memory_map", "stream"})


def context(config: dict[str, Value], family: str, batch: int = 32) -> Context:
    """What a configuration is judged against: a CPU that has bf16, and every optional library."""
    return Context(
        config=Config(config, BUILTIN).complete(BUILTIN),
        device=Device(kind="cpu", bf16=True),
        model=tiny.facts(family),
        global_batch=batch,
        libraries=frozenset({"peft"}),
        features=FEATURES,
        purpose="inference" if "cache_bits" in config else "training",
    )


def reason(config: dict[str, Value], family: str) -> str | None:
    """Why a configuration is blocked, or None."""
    return companions.first_reason(config, BUILTIN, context(config, family))


@dataclass
class Trial:
    """One tiny trial, stage by stage."""

    config: dict[str, Value]
    family: str

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.environment = run_stage(ENVIRONMENT, {}, BUILTIN, self.config)
        data = DataPlan(sequence_length=8, global_batch=BATCH)
        self.data = run_stage(DATA, data, BUILTIN, self.config)
        load = run_stage(LOAD, LoadPlan(), BUILTIN, self.config)
        model = tiny.build_task(self.family, dtype=load.dtype, attention=load.attention)
        state = Adaptation(model=model, losses=self._losses)
        state = run_stage(ADAPT, state, BUILTIN, self.config)
        self.model = run_stage(PARALLELISE, state.model, BUILTIN, self.config)
        self.optim = run_stage(OPTIMISE, OptimPlan(), BUILTIN, self.config)
        self.optimizer = build_optimizer(
            self.model.parameters(), self.optim, base_rate=3e-4, model=self.model
        )
        self.plan = run_stage(STEP, StepPlan(), BUILTIN, self.config)
        self.distiller = (
            Distiller(self.model, state.distillation) if state.distillation is not None else None
        )
        self.scaler = LossScaler() if self.plan.loss_scaling else None

    def _losses(self, model: nn.Module) -> Iterator[Tensor]:
        for seed in range(2):
            yield tiny.task_loss(model, self.family, seed=seed)

    def loss(self) -> Tensor:
        """The loss of a forward pass, inside the contexts of the plan."""
        with contexts(self.plan.around_forward, torch.device("cpu")):
            loss = tiny.task_loss(self.model, self.family, self.plan.loss_chunks)
            return loss if self.distiller is None else self.distiller.mix(loss)

    def backward(self) -> float:
        """One forward and backward pass; returns the loss."""
        loss = self.loss()
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if self.scaler is not None:
            assert self.scaler.unscale([p for p in self.model.parameters() if p.grad is not None])
        return float(loss.detach())

    def train(self, steps: int) -> list[float]:
        """Losses before each of `steps` steps."""
        losses = []
        for step in range(steps):
            losses.append(self.backward())
            trained = [p for p in self.model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=not self.plan.keep_gradients)
            for told in self.plan.after_step:
                told(self.model, (step + 1) / steps)
        return losses

    def compress(self) -> None:
        """Make the trained model what will be evaluated."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.distiller is not None:
            self.distiller.leave()
        self.model = run_stage(COMPRESS, self.model, BUILTIN, self.config)

    def evaluate(self) -> float:
        """The loss without gradients; `compress` comes before."""
        plan = run_stage(EVALUATE, EvalPlan(), BUILTIN, self.config)
        with torch.no_grad(), contexts(plan.around_forward, torch.device("cpu")):
            return float(tiny.task_loss(self.model, self.family, plan.loss_chunks))

    def deploy(self) -> nn.Module:
        """The model as it is handed on."""
        return run_stage(DEPLOY, self.model, BUILTIN, self.config).eval()

    def saved(self) -> nn.Module:
        """The model as it is written to a folder; `compress` comes before."""
        return run_stage(SAVE, self.deploy(), BUILTIN, self.config)

    def bytes(self) -> dict[str, int]:
        """Bytes of weights, gradients and optimizer states after a step."""
        self.backward()
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        gradients = storage_bytes(grads)
        self.optimizer.step()
        states = [t for s in self.optimizer.state.values() for t in s.values()]
        return {
            "weights": storage_bytes([*self.model.parameters(), *self.model.buffers()]),
            "gradients": gradients,
            "states": storage_bytes(t for t in states if torch.is_tensor(t) and t.numel() > 1),
        }


CHOICES = [
    (k, v)
    for k in BUILTIN
    for v in k.domain.grid()
    if v != k.neutral and not k.name.startswith("layout.")
]
"""Every value off neutral, with its knob; layouts need several processes (`test_layouts.py`)."""


@cache
def _legal(name: str, value: Value, family: str) -> tuple[tuple[str, Value], ...] | None:
    found = companions.with_companions({name: value}, BUILTIN, context({name: value}, family))
    return None if found is None else tuple(found.items())


def with_companions(knob: Knob, value: Value, family: str) -> dict[str, Value] | None:
    """A legal configuration that has a value, or None if it is blocked whatever is added."""
    found = _legal(knob.name, value, family)
    return None if found is None else dict(found)

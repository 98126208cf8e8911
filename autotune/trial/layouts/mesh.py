"""Ranks on a mesh: what they share along each of its dimensions, and all of it in products.

| dimension | ranks along it |
|---|---|
| pipeline | have some of the blocks each |
| copies, data | see different sequences; what `layout.data` says is divided along `data` |
| context | have a part of each sequence |
| tensor | have a part of each matrix |

A model is first cut into stages, then its matrices are shared, then its parameters divided.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from autotune.knobs.stages import DataPlan, LayoutPlan
from autotune.trial.layouts.replicas import (
    Buckets,
    Parts,
    Whole,
    average,
    average_in_backward,
    gathered,
    shard,
    zero_one,
)
from autotune.trial.layouts.seat import REHEARSED
from autotune.trial.layouts.team import Build, Micro, Team, count_parameters
from autotune.trial.layouts.tensor import share_matrices
from autotune.trial.layouts.whole import Skeleton
from autotune.trial.objective import Batch
from autotune.trial.spec import TrialSpec

if TYPE_CHECKING:
    from autotune.core.outcome import Score
    from autotune.trial.layouts.context import SharedSequences
    from autotune.trial.layouts.pipeline import Stage

T = TypeVar("T")

DIMENSIONS = ("pipeline", "copies", "data", "context", "tensor")
"""Of the mesh, the one whose ranks talk most last: those are neighbours."""


class MeshTeam(Team):
    """One rank of a mesh.

    Args:
        layout: Of the whole trial.
        spec: What is trained.
        rank: Of this process.
    """

    def __init__(self, layout: LayoutPlan, spec: TrialSpec, rank: int) -> None:
        self.layout = layout
        self.rank, self.size = rank, layout.ranks
        sharding = layout.data in ("zero2", "zero3")
        inside = (layout.shards or layout.replicas) if sharding else layout.replicas
        sizes = (
            layout.pipeline,
            layout.replicas // inside,
            inside,
            layout.context,
            layout.tensor,
        )
        mesh = init_device_mesh(spec.device.kind, sizes, mesh_dim_names=DIMENSIONS)
        self.along = {name: mesh[name] for name in DIMENSIONS}
        self._copies = mesh["copies", "data"]
        self._divided = sharding and layout.replicas > 1
        self._keeps = bool(spec.keep)
        self._device = spec.device.label
        # Tensors without values cannot be moved while they are divided, and need no room.
        divides_by_moving = self._divided and distributed.get_backend() != REHEARSED
        on_cuda = spec.device.kind == "cuda"
        self._on_host = on_cuda and (divides_by_moving or layout.pipeline > 1)
        self._counted = (0, 0)
        self._whole: nn.Module | None = None
        self._parts: Parts | None = None
        self._skeleton: Skeleton | None = None
        self._sequences: SharedSequences | None = None
        self.stage: Stage | None = None

    def place(self, model: nn.Module, move: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Leave the model on the host if its weights are divided: no device has room for all."""
        return model if self._on_host else move(model)

    def arrange(self, model: nn.Module, data: DataPlan) -> nn.Module:
        """Cut the model into stages, share its matrices, divide its parameters."""
        layout = self.layout
        self._counted = count_parameters(model)
        if self._keeps and layout.sharded:
            self._skeleton = Skeleton(model)
        if layout.pipeline > 1:
            from autotune.trial.layouts.pipeline import Stage

            self.stage = Stage(model, self.along["pipeline"], layout.schedule)
            model = model.to(self._device)
        if layout.tensor > 1:
            share_matrices(model, self.along["tensor"])
        if layout.context > 1:
            from autotune.trial.layouts.context import SharedSequences

            self._sequences = SharedSequences(model, self.along["context"])
        whole = Whole(model)
        if self._divided:
            copies = self.along["copies"].size() > 1
            mesh = self._copies if copies else self.along["data"]
            shard(whole, mesh, again=layout.data == "zero3")
        self._whole = whole
        if self._wrapped:
            self._whole = average_in_backward(whole, self._averaging)
        self.model = model
        return model

    def optimizer(self, build: Build) -> torch.optim.Optimizer:
        """Return the optimizer over this rank's parts of the parameters."""
        self._parts = Parts(self.model)
        zero = self.layout.data == "zero1" and self.layout.replicas > 1
        return build(self._parts.parameters, zero_one(self._averaging) if zero else None)

    def share(self, batch: Batch) -> Batch:
        """Return this rank's sequences, and of those its part."""
        index = self._replica
        rows = {name: t.chunk(self.layout.replicas)[index] for name, t in batch.items()}
        return rows if self._sequences is None else self._sequences.share(rows)

    def accumulate(self, micro: Micro, total: Tensor) -> Tensor:
        """Compute gradients, along the pipeline if there is one, and average what torch does not.

        DDP and FSDP average gradients while they are computed; both are out of reach where
        parameters are distributed tensors already, or stages compute theirs by themselves.
        """
        if self.stage is not None:
            total = self.stage.run(micro, total)
        else:
            total = super().accumulate(micro, total)
        if not self._wrapped and not self._divided and self._averaged > 1:
            average(list(self.model.parameters()), self._averaging)
        return total

    @contextmanager
    def synchronise(self, *, last: bool) -> Iterator[None]:
        """Exchange gradients in the backward pass of the last micro-batch only."""
        if isinstance(self._whole, FSDPModule):
            self._whole.set_requires_gradient_sync(last)
        if isinstance(self._whole, DistributedDataParallel) and not last:
            with self._whole.no_sync():
                yield
            return
        yield

    def compute(self, of: Callable[[nn.Module], T]) -> T:
        """Return a function of the model; weights that it needs are gathered meanwhile."""
        assert self._whole is not None
        found: T = self._whole(of)
        return found

    @property
    def different_micro_batches(self) -> int:
        """How many micro-batches differ: a pipeline fills before it is as it stays."""
        layout = self.layout
        if layout.pipeline == 1:
            return 2
        return layout.pipeline + 1 if layout.schedule == "1f1b" else sys.maxsize

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients are views of DDP's buckets."""
        return self._wrapped

    @property
    def unseen_bytes(self) -> int:
        """Bytes of DDP's buckets before the first backward pass has made gradients of them."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if not self._wrapped or any(p.grad is not None for p in trained):
            return 0
        return sum(p.numel() * p.element_size() for p in trained)

    def gradients(self) -> list[nn.Parameter]:
        """Return this rank's parts of the parameters, with their gradients."""
        assert self._parts is not None
        return self._parts.take_gradients()

    def clip(self, trained: Sequence[nn.Parameter], most: float) -> None:
        """Scale gradients by their norm over all ranks."""
        assert self._parts is not None
        if self.stage is None:
            norm = self._parts.norm()
        else:
            norm = self._parts.norm((self.along["pipeline"].get_group(),), self.stage.repeated)
        torch.nn.utils.clip_grads_with_norm_(trained, most, norm)

    def mean(self, loss: Tensor) -> float:
        """Return the mean over the ranks that see different sequences, or parts of them."""
        if self.stage is not None:
            loss = self.stage.tell_all(loss)
        told = loss.detach().clone()
        distributed.all_reduce(told)
        return float(told) / self.size

    def rest(self) -> None:
        """Let go of DDP's buckets."""
        if isinstance(self._whole, DistributedDataParallel | Buckets):
            self._whole = self._whole.module

    def evaluate(
        self, score: Callable[[nn.Module], Mapping[str, Score]]
    ) -> Mapping[str, Score] | None:
        """Score the model on the first rank, or on all of them where none has all of it."""
        if self.stage is not None:
            if self._replica > 0:
                return self._wait()
            return self._after(self.stage.evaluate(score))
        if self.layout.tensor > 1 or self._divided:
            return self.compute(score)
        if self.rank > 0:
            return self._wait()
        if self._sequences is not None:
            with self._sequences.alone():
                return self._after(score(self.model))
        return self._after(score(self.model))

    def count(self) -> tuple[int, int]:
        """Return the number of parameters of the whole model, and of those that train."""
        return self._counted

    def whole(self) -> nn.Module | None:
        """Return the whole model, put together on the CPU of the first rank."""
        if not self.layout.sharded:
            return self.model if self.leads else None
        assert self._skeleton is not None, "a model that is to be kept was to be asked for"
        for name, tensor in self._skeleton.tensors(self.model, self.stage):
            found = gathered(tensor)
            if self.leads:
                self._skeleton.fill(name, found)
        return self._skeleton.model if self.leads else None

    def leave(self) -> None:
        """Close the process group."""
        distributed.destroy_process_group()

    @property
    def _replica(self) -> int:
        copy, data = (self.along[name].get_local_rank() for name in ("copies", "data"))
        return copy * self.along["data"].size() + data

    @property
    def _averaged(self) -> int:
        return self.layout.replicas * self.layout.context

    @property
    def _averaging(self) -> distributed.ProcessGroup:
        """The ranks whose gradients are averaged: copies, and parts of sequences."""
        if self.layout.context > 1:  # then these are all ranks
            group = distributed.group.WORLD
            assert group is not None
            return group
        return self.along["data"].get_group()

    @property
    def _wrapped(self) -> bool:
        """Whether DDP averages gradients."""
        plain = self.stage is None and self.layout.tensor == 1
        return self._averaged > 1 and plain and not self._divided

    def _wait(self) -> Mapping[str, Score] | None:
        distributed.barrier()
        return None

    def _after(self, scores: T) -> T:
        distributed.barrier()
        return scores

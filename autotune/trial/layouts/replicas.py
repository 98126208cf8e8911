"""Ranks that see different sequences: DDP, ZeRO-1 to ZeRO-3, and hybrids of them.

torch does the work. Two things are particular. The module that is wrapped is one whose forward pass
is any function of the model (`Whole`), so that losses in pieces, which do not call the model as a
whole, are seen by it, too. And optimizers are given plain parameters over a rank's parts (`Parts`),
so that those which know nothing of distributed tensors, such as 8-bit ones, need not.

References:
    Li et al. 2020, arXiv:2006.15704 (DDP); Rajbhandari et al. 2020, arXiv:1910.02054 (ZeRO);
    PyTorch documentation, `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard
from torch.nn.parallel import DistributedDataParallel

from autotune.knobs.blocks import find_blocks
from autotune.knobs.optimizers import Make
from autotune.trial.layouts.seat import REHEARSED

T = TypeVar("T")

BUCKET_BYTES = 25 * 2**20
"""Gradients that are averaged at once, as in DDP."""


class Whole(nn.Module):
    """A module whose forward pass is any function of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, of: Callable[[nn.Module], T]) -> T:
        """Return `of(model)`."""
        return of(self.model)


class Buckets(nn.Module):
    """What DDP holds, without its reducer, which is native code and cannot be rehearsed.

    Gradients are views of one storage that stays from step to step, as they are of its buckets.
    """

    def __init__(self, whole: Whole) -> None:
        super().__init__()
        self.module = whole
        trained = [p for p in whole.parameters() if p.requires_grad]
        for dtype in {p.dtype for p in trained}:
            some = [p for p in trained if p.dtype is dtype]
            bucket = torch.zeros(sum(p.numel() for p in some), dtype=dtype, device=some[0].device)
            pieces = bucket.split([p.numel() for p in some])
            for parameter, piece in zip(some, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)

    def forward(self, of: Callable[[nn.Module], T]) -> T:
        """Return `of(model)`."""
        found: T = self.module(of)
        return found


def average_in_backward(whole: Whole, group: distributed.ProcessGroup) -> nn.Module:
    """Have gradients averaged over a group while the backward pass goes on."""
    if distributed.get_backend(group) == REHEARSED:
        return Buckets(whole)
    known = inspect.signature(DistributedDataParallel).parameters
    # Buffers are alike on all ranks. The option has another name from torch 2.13 on.
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {buffers: False}
    return DistributedDataParallel(
        whole, process_group=group, gradient_as_bucket_view=True, **options
    )


def shard(whole: Whole, mesh: DeviceMesh, *, again: bool) -> None:
    """Divide parameters, gradients and states among the ranks of a mesh, block by block.

    Args:
        whole: The model; changed in place.
        mesh: Of one dimension, or of copies and the parts of a copy.
        again: Whether weights are gathered again for the backward pass, and not kept for it.

    Raises:
        ModelError: If the model has no blocks.
    """
    for _, block in find_blocks(whole.model):
        fully_shard(block, mesh=mesh, reshard_after_forward=again)
    fully_shard(whole, mesh=mesh, reshard_after_forward=again)


def zero_one(group: distributed.ProcessGroup) -> Callable[[Make, list[dict[str, Any]]], Any]:
    """Return what makes an optimizer of which each rank of a group has a part."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # scripts optimizers as it loads

    def around(make: Make, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        def part(given: list[dict[str, Any]], **_: Any) -> torch.optim.Optimizer:
            return make(given)

        rate = make([{**groups[0], "params": groups[0]["params"][:1]}]).param_groups[0]["lr"]
        found: torch.optim.Optimizer = ZeroRedundancyOptimizer(
            groups,
            optimizer_class=part,  # type: ignore[arg-type]  # it is only called
            process_group=group,
            lr=rate,
        )
        return found

    return around


class Parts:
    """Plain parameters over what this rank has of each parameter.

    Args:
        model: After it was divided; its gradients become those of the plain parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self._pairs = [(p, _plain(p)) for p in model.parameters() if p.requires_grad]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What an optimizer is made over."""
        return [plain for _, plain in self._pairs]

    def take_gradients(self) -> list[nn.Parameter]:
        """Give the plain parameters their gradients, and return those that have one."""
        for parameter, plain in self._pairs:
            if plain is not parameter:
                gradient, parameter.grad = parameter.grad, None
                plain.grad = None if gradient is None else _local(gradient)
        return [plain for _, plain in self._pairs if plain.grad is not None]

    def norm(
        self,
        shared: Iterable[distributed.ProcessGroup] = (),
        repeated: Iterable[nn.Parameter] = (),
    ) -> Tensor:
        """Return the norm of all gradients over all ranks.

        Args:
            shared: Groups of which each rank has other parameters, such as stages of a pipeline.
            repeated: Parameters that another rank of those groups has, too, and counts.
        """
        uncounted = {id(parameter) for parameter in repeated}
        squares: dict[tuple[distributed.ProcessGroup, ...], list[Tensor]] = defaultdict(list)
        for parameter, plain in self._pairs:
            if plain.grad is not None and id(parameter) not in uncounted:
                squares[_divided_among(parameter)].append(plain.grad.float().square().sum())
        total = torch.zeros((), device=self._pairs[0][1].device)
        # Every rank of a group takes part in its sums, also one that has no part of some parameter.
        for groups, found in squares.items():
            part = torch.stack(found).sum()
            for group in groups:
                distributed.all_reduce(part, group=group)
            total += part
        for group in shared:
            distributed.all_reduce(total, group=group)
        return total.sqrt()


def average(parameters: Sequence[nn.Parameter], group: distributed.ProcessGroup | None) -> None:
    """Average gradients over a group, some megabytes at a time."""
    size = distributed.get_world_size(group)
    bucket: list[Tensor] = []
    for place, parameter in enumerate(parameters):
        if parameter.grad is not None:
            bucket.append(_local(parameter.grad))
        full = sum(g.numel() * g.element_size() for g in bucket) >= BUCKET_BYTES
        if bucket and (full or place == len(parameters) - 1):
            flat = torch.cat([g.flatten() for g in bucket])
            distributed.all_reduce(flat, group=group)
            flat /= size
            for gradient, piece in zip(
                bucket, flat.split([g.numel() for g in bucket]), strict=True
            ):
                gradient.copy_(piece.view_as(gradient))
            bucket.clear()


def gathered(tensor: Tensor) -> Tensor:
    """Return a whole tensor, from its parts on all ranks if it is divided."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _plain(parameter: nn.Parameter) -> nn.Parameter:
    if not isinstance(parameter, DTensor):
        return parameter
    return nn.Parameter(parameter.to_local().detach())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _divided_among(parameter: Tensor) -> tuple[distributed.ProcessGroup, ...]:
    if not isinstance(parameter, DTensor):
        return ()
    return tuple(
        parameter.device_mesh.get_group(dimension)
        for dimension, placement in enumerate(parameter.placements)
        if isinstance(placement, Shard) or type(placement).__name__ == "_StridedShard"
    )

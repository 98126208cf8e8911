"""Parameter servers: ranks that hold and update parameters for ranks that compute gradients.

Workers have the whole model and no optimizer states. After its micro-batches a worker sends each
server the gradients of what that one holds, and takes what becomes of the parameters. Servers, the
last ranks, hold about equally many bytes each, with their states, and compute no forward pass.

With a staleness of 0 a server waits for all workers: their mean gradient, clipped by its norm over
all servers, makes one update, the one that a single rank would do.

With a staleness of s every gradient is an update of its own, whoever sends it, and the worker gets
the parameters as they are then. It waits only while it is more than s steps ahead of the slowest.
As in Ho et al., updates of different workers add up. Each is clipped by its own norm, and made at
the learning rate divided by the number of workers, so that one gradient from each of them moves
parameters about as far as one update of a single rank: for SGD because they add up to the mean
gradient at the full rate, for AdamW and its like because they make steps of one size from any
gradient. (Two thirds as far with two workers in a test: one worker's gradient is noisier than the
mean, and so is cut more by its norm.)

Everything is exchanged through the host by torch's point-to-point messages, which on gloo can be
received from whoever comes. A worker is ready to take parameters before it sends gradients, so no
two ranks ever wait for each other to receive. A server that waits for whoever comes does not notice
that a worker is gone for good: whoever watches the ranks does (`group`).

References:
    Li et al. 2014, Scaling Distributed Machine Learning with the Parameter Server, OSDI;
    Ho et al. 2013, More Effective Distributed ML via a Stale Synchronous Parallel Parameter Server,
    NeurIPS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed, nn

from autotune.core.errors import ModelError
from autotune.knobs.stages import DataPlan, LayoutPlan
from autotune.trial.layouts.team import Build, Micro, Team, count_parameters
from autotune.trial.objective import Batch
from autotune.trial.spec import TrialSpec

if TYPE_CHECKING:
    from autotune.core.outcome import Score

_HEADER = 0
"""Tag of what comes before tensors; those have their number in the model, from 1."""


def serve_or_work(layout: LayoutPlan, spec: TrialSpec, rank: int) -> Team:
    """Return what a rank is: one of the last ranks is a server, any other a worker.

    Args:
        layout: Of the whole trial.
        spec: What is trained.
        rank: Of this process; the process group of all ranks is open.
    """
    workers = layout.ranks - layout.servers
    servers = distributed.new_group(list(range(workers, layout.ranks)))  # made by all ranks
    if rank < workers:
        return Worker(layout, rank)
    assert servers is not None
    return Server(layout, rank, device=spec.device.label, servers=servers)


def divide(parameters: Sequence[Tensor], servers: int) -> list[list[int]]:
    """Divide parameters among servers: each the largest one left goes to who holds the least.

    Returns:
        For each server the numbers of its parameters, in order.

    Raises:
        ModelError: If some server would hold none.
    """
    if len(parameters) < servers:
        raise ModelError(
            f"{servers} servers cannot share {len(parameters)} parameters that train",
            help="set layout.servers to a smaller number",
        )
    sizes = [p.numel() * p.element_size() for p in parameters]
    held = [0] * servers
    numbers: list[list[int]] = [[] for _ in range(servers)]
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        least = held.index(min(held))
        held[least] += sizes[number]
        numbers[least].append(number)
    return [sorted(found) for found in numbers]


class _Rank(Team):
    """What workers and servers have in common."""

    def __init__(self, layout: LayoutPlan, rank: int) -> None:
        self.rank, self.size = rank, layout.ranks
        self._workers = layout.ranks - layout.servers
        self._servers = layout.servers
        self._staleness = layout.staleness
        self._trained: list[nn.Parameter] = []
        self._numbers: list[list[int]] = []
        self._counted = (0, 0)

    def arrange(self, model: nn.Module, data: DataPlan) -> nn.Module:
        """Agree on who holds what."""
        self._counted = count_parameters(model)
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._numbers = divide(self._trained, self._servers)
        self.model = model
        return model

    def evaluate(
        self, score: Callable[[nn.Module], Mapping[str, Score]]
    ) -> Mapping[str, Score] | None:
        """Score the model on the first rank; the others wait."""
        scores = score(self.model) if self.leads else None
        distributed.barrier()
        return scores

    def count(self) -> tuple[int, int]:
        """Return the number of parameters of the whole model, and of those that train."""
        return self._counted

    def whole(self) -> nn.Module | None:
        """Return the model on the first rank."""
        return self.model if self.leads else None

    def leave(self) -> None:
        """Close the process group."""
        distributed.destroy_process_group()


class Worker(_Rank):
    """A rank that computes gradients.

    Args:
        layout: Of the whole trial.
        rank: Of this process.
    """

    def __init__(self, layout: LayoutPlan, rank: int) -> None:
        super().__init__(layout, rank)
        self._loss = torch.zeros(())
        self._arriving: list[_Arriving] = []
        self._told: list[_Arriving] = []

    def share(self, batch: Batch) -> Batch:
        """Return this worker's sequences."""
        return {name: t.chunk(self._workers)[self.rank] for name, t in batch.items()}

    def accumulate(self, micro: Micro, total: Tensor) -> Tensor:
        """Compute gradients of all micro-batches, and remember the loss for the servers."""
        self._loss = super().accumulate(micro, total)
        return self._loss

    def clip(self, trained: Sequence[nn.Parameter], most: float) -> None:
        """Send gradients to the servers; clipped by their norm, if each is an update of its own."""
        if self._staleness:
            torch.nn.utils.clip_grad_norm_(trained, most)
        for server, numbers in enumerate(self._numbers):
            source = self._workers + server
            self._told.append(_Arriving(torch.zeros(1, dtype=torch.float64), source, _HEADER))
            self._expect(source, numbers)
        for server, numbers in enumerate(self._numbers):
            held = [self._trained[number] for number in numbers]
            header = torch.zeros(1 + len(held), dtype=torch.float64)
            header[0] = self._loss.detach()
            for place, parameter in enumerate(held, start=1):
                header[place] = float(parameter.grad is not None)
            _send(header, self._workers + server, _HEADER)
            for number, parameter in zip(numbers, held, strict=True):
                if parameter.grad is not None:
                    _send(parameter.grad, self._workers + server, 1 + number)
                    parameter.grad = None

    def mean(self, loss: Tensor) -> float:
        """Take parameters from the servers, and return the workers' mean loss that they know of."""
        told, self._told = [arriving.finish() for arriving in self._told], []
        self._finish()
        return float(told[0][0])

    def rest(self) -> None:
        """Take what parameters are in the end, on the rank that evaluates them."""
        if self._staleness and self.leads:
            for server, numbers in enumerate(self._numbers):
                self._expect(self._workers + server, numbers)
            self._finish()

    def _expect(self, source: int, numbers: Sequence[int]) -> None:
        self._arriving += [_Arriving(self._trained[n].detach(), source, 1 + n) for n in numbers]

    def _finish(self) -> None:
        for arriving in self._arriving:
            arriving.finish()
        self._arriving.clear()


class Server(_Rank):
    """A rank that holds some of the parameters.

    Args:
        layout: Of the whole trial.
        rank: Of this process.
        device: Where parameters are updated.
        servers: The process group of all servers.
    """

    def __init__(
        self,
        layout: LayoutPlan,
        rank: int,
        *,
        device: str,
        servers: distributed.ProcessGroup,
    ) -> None:
        super().__init__(layout, rank)
        self._device = torch.device(device)
        self._group = servers
        self._mine: list[int] = []
        self._held: list[nn.Parameter] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._losses: dict[int, float] = {}
        self._steps = dict.fromkeys(range(self._workers), 0)
        self._waiting: list[int] = []

    def place(self, model: nn.Module, move: Callable[[nn.Module], nn.Module]) -> nn.Module:
        """Leave the model on the host: the device has to have room for a part of it only."""
        return model if self._device.type == "cuda" else move(model)

    def arrange(self, model: nn.Module, data: DataPlan) -> nn.Module:
        """Drop what other servers hold, and what does not train."""
        super().arrange(model, data)
        self._mine = self._numbers[self.rank - self._workers]
        self._held = [self._trained[number] for number in self._mine]
        self._trained = []
        _keep_only(model, self._held)
        return model.to(self._device)

    def optimizer(self, build: Build) -> torch.optim.Optimizer:
        """Return the optimizer over what this server holds."""
        self._optimizer = build(self._held, None)
        if self._staleness:
            for group in self._optimizer.param_groups:
                group["lr"] /= self._workers
        return self._optimizer

    def accumulate(self, micro: Micro, total: Tensor) -> Tensor:
        """Compute nothing."""
        return total

    def gradients(self) -> list[nn.Parameter]:
        """Return what is held, with the next gradients for it: the workers' mean, or one worker's.

        If each gradient is an update of its own, those of as many workers as there are make a step;
        all updates but the last one are made here.
        """
        workers = range(self._workers)
        if not self._staleness:
            for worker in workers:
                self._take(worker, share=1 / self._workers)
            return self._with_gradients()
        assert self._optimizer is not None
        for left in reversed(workers):
            self._take(None, share=1.0)
            if left:
                self._optimizer.step()
                self._optimizer.zero_grad()
                self._reply()
        return self._with_gradients()

    def clip(self, trained: Sequence[nn.Parameter], most: float) -> None:
        """Scale the mean gradient down by its norm over all servers; workers did that to theirs."""
        if self._staleness:
            return
        square = torch.zeros(())
        for parameter in trained:
            assert parameter.grad is not None
            square += parameter.grad.float().square().sum().cpu()
        distributed.all_reduce(square, group=self._group)
        norm = square.sqrt().to(self._device)
        torch.nn.utils.clip_grads_with_norm_(trained, most, norm)

    def mean(self, loss: Tensor) -> float:
        """Let workers have the parameters that were updated, and return the workers' mean loss."""
        self._reply()
        return self._mean_loss

    def rest(self) -> None:
        """Send the rank that evaluates them what parameters are in the end; states are over."""
        self._optimizer = None
        if self._staleness:
            self._send_held(0)

    @property
    def _mean_loss(self) -> float:
        return sum(self._losses.values()) / max(1, len(self._losses))

    def _with_gradients(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._held if parameter.grad is not None]

    def _take(self, worker: int | None, share: float) -> None:
        """Add a share of a worker's gradients to what there is; of whoever comes, if it is None."""
        header = torch.ones(1 + len(self._held), dtype=torch.float64)
        if _rehearsed():  # nobody comes; gradients of all parameters are like any others
            worker, loss, sent = 0, 0.0, [1.0] * len(self._held)
        else:
            worker = distributed.recv(header, worker, tag=_HEADER)
            loss, *sent = header.tolist()
        for number, parameter, there in zip(self._mine, self._held, sent, strict=True):
            if not there:
                continue
            arrived = torch.empty_like(parameter, memory_format=torch.contiguous_format)
            gradient = _Arriving(arrived.detach(), worker, 1 + number).finish()
            if parameter.grad is None:
                parameter.grad = gradient.mul_(share)
            else:
                parameter.grad.add_(gradient, alpha=share)
        self._losses[worker] = loss
        self._steps[worker] += 1
        self._waiting.append(worker)

    def _reply(self) -> None:
        """Send parameters to the workers that wait and are not too far ahead."""
        slowest = min(self._steps.values())
        far = [w for w in self._waiting if self._steps[w] - slowest > self._staleness]
        for worker in self._waiting:
            if worker not in far or _rehearsed():
                _send(torch.tensor([self._mean_loss], dtype=torch.float64), worker, _HEADER)
                self._send_held(worker)
        self._waiting = far

    def _send_held(self, worker: int) -> None:
        for number, parameter in zip(self._mine, self._held, strict=True):
            _send(parameter, worker, 1 + number)


class _Arriving:
    """A tensor that another rank is going to fill.

    Args:
        tensor: Where its values go.
        source: Rank that sends them.
        tag: Under which it does.
    """

    def __init__(self, tensor: Tensor, source: int, tag: int) -> None:
        self._tensor = tensor
        direct = tensor.device.type == "cpu" and tensor.is_contiguous()
        self._on_host = tensor if direct else torch.empty(tensor.shape, dtype=tensor.dtype)
        self._work = distributed.irecv(self._on_host, source, tag=tag)

    def finish(self) -> Tensor:
        """Return the tensor when it is filled."""
        assert self._work is not None
        self._work.wait()
        if self._on_host is not self._tensor:
            self._tensor.copy_(self._on_host)
        return self._tensor


def _send(tensor: Tensor, to: int, tag: int) -> None:
    distributed.send(tensor.detach().cpu().contiguous(), to, tag=tag)


def _rehearsed() -> bool:
    return str(distributed.get_backend()) == "fake"


def _keep_only(model: nn.Module, held: Sequence[nn.Parameter]) -> None:
    """Leave empty tensors in the place of all parameters and buffers but those that are held.

    A buffer beside a parameter of its shape is a mask of it, and is held with it.
    """
    kept = {id(parameter) for parameter in held}
    for module in model.modules():
        shapes = {p.shape for p in module._parameters.values() if id(p) in kept and p is not None}
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in kept:
                empty = torch.empty(0, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.shape not in shapes:
                module._buffers[name] = torch.empty(0, dtype=buffer.dtype)

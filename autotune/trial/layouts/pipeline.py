"""Some of the blocks on each rank; micro-batches pass through them like through a pipeline.

A stage is the model's own class with fewer blocks (`cutting`), so every family whose blocks form
one stack, and every loss of one forward pass, is computed by the code that computes it on one rank.
Later stages put what they received in the place of the zeros that stand for embeddings; earlier
ones end the forward pass after their last block.

Stages exchange hidden states and their gradients by themselves. torch's own schedules split a batch
that they are given whole, and ask for stages whose forward pass is that of a module; here losses
are any function of the model, and micro-batches come one after the other.

References:
    Huang et al. 2019, arXiv:1811.06965 (GPipe); Narayanan et al. 2021, arXiv:2104.04473 (1F1B).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import P2POp
from torch.distributed.device_mesh import DeviceMesh
from torch.utils._pytree import tree_map

from autotune.core.errors import ModelError
from autotune.trial.layouts.cutting import Left, around_blocks, cut
from autotune.trial.layouts.team import Micro

if TYPE_CHECKING:
    from autotune.core.outcome import Score

_PLAIN = (type(None), bool, int, float, str)


class Stage:
    """What one rank of a pipeline has of a model, and what it exchanges with the others.

    Args:
        model: Whole, the same on every rank; changed in place to what this stage has of it.
        mesh: Of one dimension; ranks along it are stages, in order.
        schedule: `"1f1b"` or `"gpipe"`.

    Raises:
        ModelError: If the model cannot be split.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh, schedule: str) -> None:
        self._group = mesh.get_group()
        self._index, self._stages = mesh.get_local_rank(), mesh.size()
        self._gpipe = schedule == "gpipe"
        self._model = model
        self._owned = cut(model, self._index, self._stages, self._receive)
        train = [stage for o in self._owned.values() if o.trains for stage in o.stages]
        self._gives = any(stage < self._index for stage in train)
        self._takes = not self._last and any(stage <= self._index for stage in train)
        self._arrived: Tensor | None = None
        self._entered: Tensor | None = None
        self._flying: deque[tuple[Tensor | None, Tensor]] = deque()

    @property
    def repeated(self) -> Sequence[nn.Parameter]:
        """Parameters that an earlier stage has, too, and counts: embeddings that are tied."""
        return [
            owned.kept
            for owned in self._owned.values()
            if owned.kept is not None and owned.stages[0] != self._index
        ]

    def run(self, micro: Micro, total: Tensor) -> Tensor:
        """Compute gradients of all micro-batches with the other stages.

        Args:
            micro: What is computed; every stage gets the same batches.
            total: A zero on the device, that the losses are added to.

        Returns:
            The loss of the batch on the last stage; zero on the others.
        """
        ahead = self._stages - 1 - self._index
        warm = micro.count if self._gpipe else min(micro.count, ahead)
        for _ in range(warm):
            self._swap(self._index + 1, self._forward(micro, total), None)
        for left in reversed(range(micro.count - warm)):
            output = self._forward(micro, total)
            grad = self._swap(self._index + 1, output, output if self._takes else None)
            del output
            entered, given = self._backward(micro, grad)
            self._arrived = self._swap(self._index - 1, given, entered if left else None)
        for _ in range(warm):
            grad = self._swap(self._index + 1, None, self._flying[0][1] if self._takes else None)
            self._swap(self._index - 1, self._backward(micro, grad)[1], None)
        self._add_up_tied()
        return total

    def tell_all(self, loss: Tensor) -> Tensor:
        """Return the last stage's loss on every stage."""
        told = loss.detach().clone()
        distributed.broadcast(told, self._rank_of(self._stages - 1), group=self._group)
        return told

    def evaluate(
        self, score: Callable[[nn.Module], Mapping[str, Score]]
    ) -> Mapping[str, Score] | None:
        """Score the model on the last stage, which has the others compute their blocks.

        Args:
            score: Returns the scores of a model; its forward passes take tensors and plain values.

        Returns:
            The scores, on every stage; None in a rehearsal on stages that have none.

        Raises:
            ModelError: If forward passes share anything else, such as a cache.
        """
        if self._last:
            with self._announced():
                found: list[Any] = [score(self._model)]
            self._tell(None)
        elif self._rehearsed:  # nobody says anything then; the first forward pass is like any other
            self._score_begun(score)
            return None
        else:
            self._follow()
            found = [None]
        if not self._rehearsed:
            last = self._rank_of(self._stages - 1)
            distributed.broadcast_object_list(found, last, group=self._group)
        scores: Mapping[str, Score] = found[0]
        return scores

    def parameters(self, places: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter of the whole model, in the same order on all stages.

        Args:
            places: Has the names.

        Yields:
            Its name there, and its values on the first stage; on the others what they have.
        """
        for name in places:
            owned = self._owned[name]
            home, kept = owned.stages[0], owned.kept
            device = next(self._model.parameters()).device
            if home > 0 and self._index == 0:
                empty = torch.empty(owned.shape, dtype=owned.dtype, device=device)
                kept = self._swap(home, None, empty)  # type: ignore[assignment]  # read only
            elif home > 0 and self._index == home:
                self._swap(0, kept, None)
            yield name, torch.empty(0) if kept is None else kept

    @property
    def _last(self) -> bool:
        return self._index == self._stages - 1

    @property
    def _rehearsed(self) -> bool:
        return str(distributed.get_backend(self._group)) == "fake"

    def _forward(self, micro: Micro, total: Tensor) -> Tensor:
        micro.enter("forward")
        try:
            output = micro.loss(next(micro.batches), self._model)
        except Left as left:
            output = left.take()
        if self._last:
            total += output.detach()
        self._flying.append((self._entered, output))
        self._entered = None
        return output

    def _backward(self, micro: Micro, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Compute gradients of the oldest micro-batch; return what entered, and its gradient."""
        micro.enter("backward")
        entered, output = self._flying.popleft()
        if self._last:
            micro.backward(output)
        elif grad is not None:
            torch.autograd.backward(output, grad)
        if entered is None or not self._gives:
            return entered, None
        return entered.detach(), entered.grad

    def _receive(self, zeros: Tensor) -> Tensor:
        """Return the hidden states of the stage before, which are like `zeros`."""
        states = self._arrived
        if states is None:
            states = self._swap(self._index - 1, None, zeros)
        assert states is not None
        self._arrived = None
        if states.shape != zeros.shape:
            raise ModelError(
                f"hidden states of shape {tuple(states.shape)} arrived where "
                f"{tuple(zeros.shape)} were to be: micro-batches differ in shape",
                help="set layout.pipeline to 1, or accumulation to a divisor of the batch",
            )
        if torch.is_grad_enabled():
            self._entered = states.requires_grad_(self._gives)
        return states

    def _swap(self, stage: int, sent: Tensor | None, like: Tensor | None) -> Tensor | None:
        """Send to another stage and receive from it at once, if it exists."""
        if not 0 <= stage < self._stages:
            return None
        peer, work, got = self._rank_of(stage), [], None
        if sent is not None:
            values = sent.detach().contiguous()
            work.append(P2POp(distributed.isend, values, peer, self._group))
        if like is not None:
            got = torch.empty_like(like, memory_format=torch.contiguous_format)
            got = got.detach()
            work.append(P2POp(distributed.irecv, got, peer, self._group))
        for done in distributed.batch_isend_irecv(work) if work else ():
            done.wait()
        return got

    def _rank_of(self, stage: int) -> int:
        return distributed.get_global_rank(self._group, stage)

    def _add_up_tied(self) -> None:
        """Add up the gradients of parameters that two stages use."""
        for owned in self._owned.values():
            if owned.kept is None or len(owned.stages) == 1 or not owned.trains:
                continue
            for stage in owned.stages:
                if stage != self._index:
                    if owned.kept.grad is None:
                        owned.kept.grad = torch.zeros_like(owned.kept)
                    other = self._swap(stage, owned.kept.grad, owned.kept.grad)
                    assert other is not None
                    owned.kept.grad += other

    @contextmanager
    def _announced(self) -> Iterator[None]:
        """Tell the other stages of every forward pass, by whichever module it is begun."""
        depth = 0

        def begin(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
            nonlocal depth
            depth += 1
            if depth == 1:
                kind = self._device.type
                narrow, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
                self._tell((name, *tree_map(_to_send, (args, kwargs)), narrow, dtype))

        def end(*_: Any) -> None:
            nonlocal depth
            depth -= 1

        handles = []
        for name in around_blocks(self._model):
            module = self._model.get_submodule(name)
            hook = module.register_forward_pre_hook(partial(begin, name), with_kwargs=True)
            handles += [hook, module.register_forward_hook(end, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _tell(self, call: Any) -> None:
        if not self._rehearsed:
            last = self._rank_of(self._stages - 1)
            distributed.broadcast_object_list([call], last, group=self._group)

    @torch.no_grad()
    def _follow(self) -> None:
        """Compute this stage's blocks in every forward pass of the last one."""
        training = self._model.training
        self._model.eval()
        while True:
            told: list[Any] = [None]
            last = self._rank_of(self._stages - 1)
            distributed.broadcast_object_list(told, last, group=self._group)
            if told[0] is None:
                break
            name, args, kwargs, narrow, dtype = tree_map(self._to_here, told[0])
            with torch.autocast(self._device.type, dtype, enabled=narrow):
                try:
                    self._model.get_submodule(name)(*args, **kwargs)
                except Left as left:
                    self._swap(self._index + 1, left.take(), None)
        self._model.train(training)

    def _score_begun(self, score: Callable[[nn.Module], Mapping[str, Score]]) -> None:
        try:
            score(self._model)
        except Left as left:
            left.take()

    def _to_here(self, value: Any) -> Any:
        return value.to(self._device) if isinstance(value, Tensor) else value

    @property
    def _device(self) -> torch.device:
        return next(self._model.parameters()).device


def _to_send(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, _PLAIN):
        return value
    raise ModelError(
        f"a forward pass that takes a {type(value).__name__} cannot be shared by stages",
        help="set layout.pipeline to 1",
    )

"""Values that fake tensors know all the same, and storages that are counted on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.memory import values
from autotune.memory.stand_ins import Followed, surroundings
from autotune.trial.anatomy import LiveStorages


@contextmanager
def fakes() -> Iterator[LiveStorages]:
    storages = Followed("cpu")
    with FakeTensorMode(allow_non_fake_inputs=True), storages:
        with surroundings(storages, cuda=False):
            yield storages


def with_value(value: Tensor) -> Tensor:
    fake = torch.empty(value.shape, dtype=value.dtype)
    values.know(fake, value)
    return fake


def test_values_that_follow_from_the_data_are_known() -> None:
    real = torch.tensor([[1, 1, 0], [1, 1, 1]])
    with fakes():
        mask = with_value(real)
        assert not bool(mask.bool().all())
        assert bool(mask[1].bool().all())
        assert int(mask.sum(1).max()) == 3
        assert mask.cumsum(1).tolist() == real.cumsum(1).tolist()
        assert torch.cat([mask, mask]).split(2)[1].numpy().tolist() == real.tolist()
        assert tuple(torch.randn(2, 3)[mask.bool()].shape) == (5,)
        mask.mul_(0)
        assert not bool(mask.any())
        counts = [with_value(torch.tensor(1.0)), with_value(torch.tensor(2.0))]
        torch._foreach_add_(counts, 1)
        assert [float(count) for count in counts] == [2.0, 3.0]
        counts[0].add_(torch.randn(()))
        assert values.known(counts[0]) is None


def test_numbers_are_taken_to_be_finite() -> None:
    with fakes():
        grad = torch.randn(300, 300)
        assert bool(torch.isfinite(grad).all())
        assert not bool(torch.isnan(grad).any())
        assert float(grad.sum()) == 1.0


def test_a_storage_that_is_set_is_not_kept() -> None:
    with fakes() as storages:
        before = storages.live_bytes
        source = torch.zeros(1000)
        view = torch.empty(0).set_(source.untyped_storage(), 0, (10, 100), (100, 1))
        assert storages.live_bytes == before + 4000
        del source, view
        assert storages.live_bytes == before


def test_casts_of_operands_on_a_cpu_are_counted() -> None:
    with fakes() as storages:
        value, flags = torch.zeros(1000), torch.zeros(1000, dtype=torch.bool)
        storages.restart()
        value.add_(flags)
        assert storages.peak_bytes == 4000 + 1000 + 4000
        assert storages.live_bytes == 4000 + 1000


def test_gradients_meet_as_they_do_without_a_mode() -> None:
    def peak(change: Callable[[Tensor], Tensor]) -> int:
        with LiveStorages("cpu") as storages:
            value = torch.ones(1000, requires_grad=True).exp()
            loss = (change(value) * 2).sum() + (change(value) * 3).sum()
            storages.restart(record=True)
            loss.backward()
        assert storages.events is not None
        assert sum(event.bytes for event in storages.events) == storages.live_bytes
        return storages.peak_bytes

    assert peak(lambda value: value.view(10, 100)) == peak(lambda value: value) + 4000

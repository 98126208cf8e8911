"""Peaks and anatomy against what is known by arithmetic, and against each other."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from autotune.core.context import Device
from autotune.core.outcome import PeakKind, Phase
from autotune.trial import limits
from autotune.trial.anatomy import LiveStorages, watch_step
from autotune.trial.held import reachable_bytes
from autotune.trial.lifecycle import place
from autotune.trial.measure import MEASURED_STEPS, CpuMeter, allocator_history, make_meter

MIB = 2**20


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_network(*, width: int = 256, checkpointed: bool = False) -> nn.Module:
    torch.manual_seed(0)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(64, width)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
                for _ in range(4)
            )
            self.head = nn.Linear(width, 64, bias=False)
            self.head.weight = self.embed.weight  # tied: its gradients meet and are added

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = self.embed(x)
            for block in self.blocks:
                if checkpointed:
                    hidden = torch.utils.checkpoint.checkpoint(
                        lambda h, b=block: torch.relu(b(h)), hidden, use_reentrant=False
                    )
                else:
                    hidden = torch.relu(block(hidden))
            return self.head(hidden)

    return Network()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, enter=lambda phase: None) -> None:
    x = torch.arange(4096).remainder(64).view(32, 128)
    enter("forward")
    loss = nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten())
    enter("backward")
    loss.backward()
    del loss
    enter("optimizer")
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_two_ways_of_counting_agree(kind: type, checkpointed: bool) -> None:
    model = make_network(checkpointed=checkpointed)
    optimizer = kind(model.parameters(), lr=1e-3)
    train(model, optimizer)
    meter, storages = CpuMeter(), LiveStorages("cpu")
    with meter.instrument(Phase.STEADY, 2, lambda: reachable_bytes(model, optimizer)):
        train(model, optimizer)
    with watch_step(storages, model, optimizer):
        train(model, optimizer, lambda phase: setattr(storages, "phase", phase))
    counted = {p.kind: p.bytes for p in meter.peaks()}[PeakKind.ALLOCATED]
    assert storages.peak_bytes == pytest.approx(counted, rel=2e-3)
    assert sum(storages.peak_parts.values()) == storages.peak_bytes


def test_the_counter_starts_afresh_in_each_session() -> None:
    meter = CpuMeter()
    kept = []
    for index in (0, 2):
        with meter.instrument(Phase.FIRST, index, lambda: 0):
            kept.append(torch.ones(MIB))
    del kept
    with meter.instrument(Phase.STEADY, 0, lambda: 0):
        torch.ones(2 * MIB).sum()
    peaks = {p.phase: p.bytes for p in meter.peaks()}
    assert peaks[Phase.FIRST] == pytest.approx(4 * MIB, rel=1e-3)
    assert peaks[Phase.STEADY] == pytest.approx(8 * MIB, rel=1e-3)


def test_anatomy_names_the_parts() -> None:
    model = make_network(width=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, optimizer)
    storages = LiveStorages("cpu")
    with watch_step(storages, model, optimizer):
        train(model, optimizer, lambda phase: setattr(storages, "phase", phase))
    weights = sum(p.numel() * 4 for p in model.parameters())
    parts = storages.peak_parts
    assert parts["weights"] == weights
    assert 2 * weights <= parts["optimizer"] <= 2 * weights + 4 * len(list(model.parameters()))
    hidden = 32 * 128 * 16 * 4
    assert parts["activations"] >= 4 * hidden
    assert parts["logits"] >= 32 * 128 * 64 * 4
    assert storages.live_bytes < storages.peak_bytes


def test_recomputation_lowers_activations_not_weights() -> None:
    parts = []
    for checkpointed in (False, True):
        model = make_network(checkpointed=checkpointed)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        storages = LiveStorages("cpu")
        with watch_step(storages, model, optimizer):
            train(model, optimizer, lambda phase, s=storages: setattr(s, "phase", phase))
        parts.append(storages.peak_parts)
    assert parts[1]["weights"] == parts[0]["weights"]
    assert parts[1]["activations"] < parts[0]["activations"]


def test_resident_set_follows_tensors() -> None:
    meter = CpuMeter()
    with meter.instrument(Phase.STEADY, 1, lambda: 0):
        torch.ones(64 * MIB).sum()
    resident = {p.kind: p.bytes for p in meter.peaks()}[PeakKind.RESIDENT]
    assert 254 * MIB <= resident <= 300 * MIB


HOLES = """
import torch
from autotune.core.outcome import PeakKind, Phase
from autotune.trial.measure import CpuMeter

torch.set_num_threads(1)
meter = CpuMeter()
with meter.instrument(Phase.FIRST, 0, lambda: 0):
    blocks = [torch.ones(2**18) for _ in range(128)]
    kept = blocks[::2]
    del blocks
with meter.instrument(Phase.FIRST, 1, lambda: 0):
    fill = [torch.ones(2**18) for _ in range(64)]
    del fill
    torch.ones(2**24).sum()
print({p.kind: p.bytes for p in meter.peaks()}[PeakKind.RESIDENT])
"""


def test_memory_that_malloc_kept_is_not_in_the_resident_set() -> None:
    done = subprocess.run(  # a heap that no other test has used
        [sys.executable, "-c", HOLES], check=True, capture_output=True, text=True
    )
    live = 64 * MIB + 64 * MIB
    resident = int(done.stdout.splitlines()[-1])
    assert live - 4 * MIB <= resident <= live + 24 * MIB, "64 MiB of holes would be more"


@pytest.fixture
def limited() -> Iterator[int]:
    """Limit this process to 32 MiB more than it has."""
    limits.enforce(32 * MIB, Device(kind="cpu"), 0)
    yield 32 * MIB
    limits.lift()


def soft_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def test_what_the_instruments_need_is_outside_of_the_limit(limited: int) -> None:
    meter, before = CpuMeter(), soft_limit()
    value = torch.ones(1)
    with meter.instrument(Phase.FIRST, 0, lambda: 0):  # each sum is two events of about 2 kB
        for _ in range(60_000):
            value.sum()
    assert soft_limit() == before
    assert {p.kind: p.bytes for p in meter.peaks()}[PeakKind.ALLOCATED] < MIB


def test_the_limit_holds_also_while_an_instrument_counts(limited: int) -> None:
    meter, before = CpuMeter(), soft_limit()
    with (
        pytest.raises(RuntimeError, match="allocate memory"),
        meter.instrument(Phase.FIRST, 0, lambda: 0),
    ):
        torch.ones(64 * MIB)  # of four bytes
    assert soft_limit() == before


def test_after_the_measured_steps_malloc_may_keep_as_much_as_was_in_use(limited: int) -> None:
    meter, before = CpuMeter(), soft_limit()
    for index in range(MEASURED_STEPS):
        assert soft_limit() == before
        with meter.instrument(Phase.STEADY, index, lambda: 0):
            torch.ones(4 * MIB).sum()
    resident = {p.kind: p.bytes for p in meter.peaks()}[PeakKind.RESIDENT]
    assert soft_limit() == before + resident
    for index in range(2):
        with meter.instrument(Phase.EVALUATE, index, lambda: 0):
            torch.ones(MIB).sum()
    assert soft_limit() == before + resident, "less adds nothing"


def test_stacks_are_allowed_for_each_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks = []
    for threads in (1, 2, 4):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        stacks.append(limits.stacks_bytes())
    each = stacks[0] // limits.SPARE_THREADS
    assert stacks == [each * (limits.SPARE_THREADS + 2 * more) for more in (0, 1, 3)]
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: unlimited)
    assert limits.stacks_bytes() == 8 * limits.UNLIMITED_STACK_BYTES
    limits.widen(MIB)  # has nothing to widen


def test_later_steps_run_free() -> None:
    meter = CpuMeter()
    with meter.instrument(Phase.STEADY, MEASURED_STEPS, lambda: 0):
        torch.ones(MIB).sum()
    assert meter.peaks() == ()


def test_loading_counts_what_is_alive_at_once() -> None:
    meter = CpuMeter()
    with meter.load():
        first = torch.ones(8 * MIB)
        del first
        torch.ones(4 * MIB).sum()
    peaks = {p.kind: p.bytes for p in meter.peaks()}
    assert peaks[PeakKind.ALLOCATED] == pytest.approx(32 * MIB, rel=1e-3)
    assert peaks[PeakKind.RESIDENT] >= 16 * MIB


def test_weights_get_memory_of_their_own(tmp_path: Path) -> None:
    model = make_network()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    mapped = torch.load(tmp_path / "weights.pt", mmap=True, weights_only=True)
    model.load_state_dict(mapped, assign=True)
    model.head.weight = model.embed.weight
    before = {p.untyped_storage().data_ptr() for p in model.parameters()}
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    place(model, torch.device("cpu"))
    after = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not before & after
    assert model.head.weight is model.embed.weight
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("error", "needed"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to "
                      "allocate 4096 bytes. Error code 12"), 4096),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0"),
         int(1.5 * 2**30)),
        (MemoryError(), 0),
        (RuntimeError("can't start new thread"), 0),
    ],
)  # fmt: skip
def test_out_of_memory_is_told_from_other_errors(error: Exception, needed: int) -> None:
    assert limits.is_out_of_memory(error)
    assert limits.requested_bytes(error) == needed


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("can't allocate")])
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not limits.is_out_of_memory(error)


def test_status_of_the_process() -> None:
    assert limits.status_bytes("VmRSS") > 10 * MIB
    assert limits.status_bytes("NoSuchField") == 0


def test_the_cpu_is_labelled_as_torch_spells_it() -> None:
    assert torch.device(Device(kind="cpu").label).type == "cpu"
    assert torch.device(Device(kind="cuda", index=1).label).index == 1


def test_history_of_the_allocator_is_kept_also_of_a_step_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda **how: said.append(how))
    monkeypatch.setattr(memory, "_dump_snapshot", said.append)
    path = tmp_path / "trials" / "3" / "snapshot.pickle"

    def fail() -> None:
        with allocator_history(str(path)):
            said.append("step")
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert said[1:] == ["step", str(path), {"enabled": None}]
    assert path.parent.is_dir()


def test_a_cpu_has_no_history_of_its_allocator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", None)
    meter = make_meter(Device(kind="cpu"), str(tmp_path / "snapshot.pickle"))
    for step in range(4):
        with meter.instrument(Phase.STEADY, step, lambda: 0):
            torch.zeros(10)
    assert not list(tmp_path.iterdir())

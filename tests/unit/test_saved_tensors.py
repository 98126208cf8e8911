"""Saved activations are kept once, in the form that was asked for, and weights are left alone."""

from __future__ import annotations

import gc
import weakref
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autotune.core.context import Context, Device
from autotune.core.domains import Value
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs import elsewhere, saved_tensors
from autotune.knobs.activation_bits import ACTIVATION_BITS
from autotune.knobs.activation_offload import ACTIVATION_OFFLOAD
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.chunked_loss import chunked_cross_entropy
from autotune.knobs.elsewhere import OnHost, Spill, folder_on_disk
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.precision import PRECISION
from autotune.knobs.saved_tensors import EightBits, SavedStorages, is_activation, may_be_rounded
from autotune.knobs.stages import ADAPT, LOAD, STEP, Adaptation, LoadPlan, StepPlan
from autotune.trial.anatomy import LiveStorages
from autotune.trial.loop import contexts
from tests import tiny_models as tiny

KNOBS = (PRECISION, LORA_RANK, CHECKPOINTING, ACTIVATION_BITS, ACTIVATION_OFFLOAD)
FAMILIES = ("gpt2", "llama", "bert", "t5")
CPU = torch.device("cpu")
ROWS, WIDTH = 64, 128


def _model(family: str, config: dict[str, Value]) -> nn.Module:
    load = run_stage(LOAD, LoadPlan(), KNOBS, config)
    model = tiny.build(family, dtype=load.dtype)
    return run_stage(ADAPT, Adaptation(model=model), KNOBS, config).model


def _loss(model: nn.Module, family: str, config: dict[str, Value], *, batch: int = 16) -> Tensor:
    """A loss over sequences that are long enough for activations to count."""
    plan = run_stage(STEP, StepPlan(), KNOBS, config)
    cached = {} if family == "bert" else {"use_cache": False}
    with contexts(plan.around_forward, CPU):
        out = model(**tiny.inputs(family, batch=batch, tokens=32), **cached)
        said = out.logits if "logits" in out else out.last_hidden_state
        return said.float().log_softmax(-1)[..., 0].mean()


def _trained(family: str, config: dict[str, Value]) -> dict[str, Tensor]:
    model, results = _model(family, config), {}
    for micro in range(2):
        loss = _loss(model, family, config, batch=8 + 8 * micro)
        loss.backward()
        results[f"loss {micro}"] = loss.detach()
    return results | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def _bytes(family: str, config: dict[str, Value]) -> tuple[int, int]:
    model = _model(family, config)
    storages = LiveStorages("cpu")
    storages.adopt((*model.parameters(), *model.buffers()), "weights")
    held = storages.live_bytes
    with storages:
        loss = _loss(model, family, config)
        kept = storages.live_bytes - held
        loss.backward()
    return kept, storages.peak_bytes - held


def _hooked(hooks: SavedStorages) -> AbstractContextManager[None]:
    return torch.autograd.graph.saved_tensors_hooks(hooks.pack, hooks.unpack)


AROUND = [{}, {"lora.rank": 4}, {"checkpointing": "full"}, {"precision": "bf16"}]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("around", AROUND, ids=str)
def test_on_disk_is_the_same_to_the_bit(family: str, around: dict[str, Value]) -> None:
    if family == "t5" and "lora.rank" in around:
        pytest.skip("the bare T5 has no head that adapters could leave out")
    plain = _trained(family, around)
    changed = _trained(family, around | {"activation_offload": "disk"})
    assert plain.keys() == changed.keys()
    assert all(torch.equal(changed[name], plain[name]) for name in plain)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("around", [*AROUND, {"precision": "bf16_mixed"}], ids=str)
def test_eight_bits_keep_losses_and_nearly_gradients(family: str, around: dict[str, Value]) -> None:
    plain = _trained(family, around)
    changed = _trained(family, around | {"activation_bits": 8})
    assert all(torch.equal(changed[n], plain[n]) for n in plain if n.startswith("loss"))
    before = torch.cat([t.float().flatten() for n, t in plain.items() if "loss" not in n])
    after = torch.cat([t.float().flatten() for n, t in changed.items() if "loss" not in n])
    assert 0 < float((after - before).norm() / before.norm()) < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_shrink(family: str) -> None:
    kept, peak = _bytes(family, {})
    rounded, rounded_peak = _bytes(family, {"activation_bits": 8})
    assert rounded < 0.36 * kept  # a byte and a scale for four bytes, and what stays as it is
    assert rounded_peak < 0.7 * peak
    spilled, spilled_peak = _bytes(family, {"activation_offload": "disk"})
    assert spilled < 0.05 * kept
    assert spilled_peak < 0.6 * peak


def test_composes_with_the_loss_in_pieces() -> None:
    hidden = torch.randn(ROWS, WIDTH, requires_grad=True)
    weight = nn.Parameter(torch.randn(256, WIDTH) / WIDTH**0.5)
    labels = torch.randint(256, (ROWS,))
    gradients = []
    for config in ({}, {"activation_offload": "disk"}, {"activation_bits": 8}):
        plan = run_stage(STEP, StepPlan(), KNOBS, config)
        with contexts(plan.around_forward, CPU):
            loss = chunked_cross_entropy(hidden * 1.0, weight, labels, 4)
        gradients.append(torch.cat(torch.autograd.grad(loss, [hidden, weight])))
    assert torch.equal(gradients[0], gradients[1])
    assert 0 < float((gradients[2] - gradients[0]).norm() / gradients[0].norm()) < 0.05


class _Noting:
    """A store that keeps plain copies and notes what came."""

    def __init__(self) -> None:
        self.stored: list[Tensor] = []

    def __call__(self, values: Tensor, row: int) -> OnHost:
        self.stored.append(values.clone())
        return OnHost(values, row)


def test_each_storage_is_kept_once_whatever_views_are_saved() -> None:
    store = _Noting()
    fused = nn.Linear(WIDTH, 3 * WIDTH)
    x = torch.randn(2, ROWS, WIDTH, requires_grad=True)
    with _hooked(SavedStorages(store, is_activation)):
        y = x * 1.0
        parts = [p.view(2, ROWS, 4, -1).transpose(1, 2) for p in fused(y).split(WIDTH, -1)]
        out = nn.functional.scaled_dot_product_attention(*parts)
        (out.sum() + fused(y).square().sum()).backward()
    sizes = sorted(len(values) for values in store.stored)
    tokens = (
        2 * ROWS * WIDTH
    )  # its input, two products of three times the width, what attention gave
    assert sizes == [tokens, tokens, 3 * tokens, 3 * tokens]


def test_new_contents_of_a_storage_are_kept_anew() -> None:
    store = _Noting()
    hooks = SavedStorages(store, is_activation)
    weight = torch.randn(ROWS, WIDTH, requires_grad=True)
    x = torch.randn(ROWS, WIDTH)
    with _hooked(hooks):
        first = weight * x
        x.add_(1.0)
        second = weight * x
    (first.sum() + second.sum()).backward()
    assert len(store.stored) == 2
    torch.testing.assert_close(weight.grad, 2 * x - 1.0)


def test_an_address_that_is_used_again_is_another_storage() -> None:
    store = _Noting()
    weight = nn.Parameter(torch.ones(ROWS, WIDTH))
    with _hooked(SavedStorages(store, is_activation)):
        total = torch.zeros(())
        for number in range(4):
            total = total + (weight * torch.full((ROWS, WIDTH), float(number))).sum()
    total.backward()
    assert len(store.stored) == 4
    assert bool((weight.grad == 6.0).all())


def test_restored_views_share_a_storage_while_one_is_alive() -> None:
    hooks = SavedStorages(OnHost, is_activation)
    whole = torch.randn(ROWS, WIDTH)
    saved = [hooks.pack(view) for view in (whole.t(), whole[3:], whole.view(-1, 2)[:, 1])]
    views = [hooks.unpack(each) for each in saved]
    assert len({view.untyped_storage().data_ptr() for view in views}) == 1
    for view, like in zip(views, (whole.t(), whole[3:], whole.view(-1, 2)[:, 1]), strict=True):
        assert torch.equal(view, like)
        assert view.stride() == like.stride()
    gone = weakref.ref(views[0].untyped_storage())
    del views, view
    assert gone() is None
    assert torch.equal(hooks.unpack(saved[0]), whole.t())


def test_nothing_outlives_the_graph() -> None:
    forms = []

    def store(values: Tensor, row: int) -> EightBits:
        form = EightBits(values, row)
        forms.append(weakref.ref(form))
        return form

    gc.disable()
    try:
        x = torch.randn(ROWS, WIDTH, requires_grad=True)
        with _hooked(SavedStorages(store, may_be_rounded)):
            loss = (x * 2).exp().square().sum()
        assert any(form() is not None for form in forms)
        del loss
        assert all(form() is None for form in forms)
    finally:
        gc.enable()


def _seen(model: nn.Module, *, autocast: bool) -> list[Tensor]:
    """What `may_be_rounded` lets through of what a model saves."""
    chosen: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if may_be_rounded(tensor):
            chosen.append(tensor.detach().clone())
        return tensor.detach()

    x = torch.randn(ROWS, WIDTH, requires_grad=True) * 1.0
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(x)
    return chosen


class _Masked(nn.Linear):
    """A layer whose weight is computed from its parameter in each pass."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * torch.ones_like(self.weight))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("kind", [nn.Linear, _Masked])
def test_weights_are_never_rounded(kind: type[nn.Linear], trains: bool, autocast: bool) -> None:
    layer = kind(WIDTH, 96).requires_grad_(trains)
    assert {tuple(t.shape) for t in _seen(layer, autocast=autocast)} <= {(ROWS, WIDTH)}
    assert not is_activation(layer.weight)
    assert not is_activation(layer.weight.t())
    assert not is_activation(layer.weight[8:])


def test_what_gradients_depend_on_exponentially_is_not_rounded() -> None:
    assert _seen(nn.LogSoftmax(-1), autocast=False) == []
    assert len(_seen(nn.Softmax(-1), autocast=False)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eight_bits_are_half_a_step_off_at_most(dtype: torch.dtype) -> None:
    values = torch.randn(200, WIDTH, dtype=dtype) * torch.logspace(-3, 3, 200)[:, None].to(dtype)
    values[7] = 0.0
    restored = EightBits(values.flatten(), WIDTH).restore().view_as(values)
    assert restored.dtype is dtype
    step = values.float().abs().amax(1, keepdim=True) / 127
    room = torch.finfo(dtype).eps * values.float().abs()
    assert bool(((restored.float() - values.float()).abs() <= 0.5001 * step + room).all())


def test_what_is_not_finite_stays_so() -> None:
    values = torch.ones(2, WIDTH)
    values[0, 5] = float("inf")
    restored = EightBits(values.flatten(), WIDTH).restore().view_as(values)
    assert not bool(restored[0].isfinite().any())
    assert bool((restored[1] == 1.0).all())


def test_small_tensors_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    few = torch.randn(saved_tensors.SMALLEST - 1, requires_grad=True) * 1.0
    assert not is_activation(few)
    assert is_activation(torch.randn(saved_tensors.SMALLEST))


def _open_files() -> int:
    return psutil.Process().num_fds()


def test_the_file_has_no_name_and_goes_with_the_last_value(tmp_path: Path) -> None:
    before = _open_files()
    spill = Spill(tmp_path)
    forms = [spill.write(torch.full((ROWS,), float(n)), ROWS) for n in range(3)]
    forms.append(spill.write(torch.arange(8), 8))
    assert list(tmp_path.iterdir()) == []
    del spill
    assert [float(form.restore()[-1]) for form in forms] == [0.0, 1.0, 2.0, 7.0]
    assert _open_files() == before + 1
    forms.clear()
    assert _open_files() == before


def test_a_folder_in_memory_is_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"/tmp/x": "tmpfs", "/var/tmp": "ext4"}
    monkeypatch.setattr(elsewhere.tempfile, "gettempdir", lambda: "/")
    monkeypatch.setattr(elsewhere, "_file_system", lambda p: kinds.get(str(p), "tmpfs"))
    assert folder_on_disk() == Path("/var/tmp")
    kinds.clear()
    with pytest.raises(ModelError, match="in memory here"):
        folder_on_disk()


def test_the_file_system_of_a_folder_is_found() -> None:
    assert elsewhere._file_system(Path("/proc/self")) == "proc"


@pytest.mark.parametrize("config", [{"activation_bits": 8}, {"activation_offload": "disk"}])
def test_a_rehearsal_without_values_goes_the_same_way(config: dict[str, Value]) -> None:
    plan = run_stage(STEP, StepPlan(), KNOBS, config)
    with FakeTensorMode():
        layer = nn.Linear(WIDTH, WIDTH)
        x = torch.randn(ROWS, WIDTH, requires_grad=True)
        with contexts(plan.around_forward, CPU):
            loss = layer(layer(x * 2).relu()).square().sum()
        loss.backward()
        assert layer.weight.grad.shape == (WIDTH, WIDTH)


@pytest.mark.parametrize(
    ("knob", "value", "config", "sentence"),
    [
        (ACTIVATION_OFFLOAD, "host", {}, "set activation_offload to disk"),
        (ACTIVATION_BITS, 8, {"activation_offload": "disk"}, "set activation_bits to 16"),
    ],
)
def test_reasons_are_sentences(knob, value, config, sentence) -> None:
    assert sentence in str(knob.blocked(value, Context(config=config)))
    assert knob.blocked(knob.neutral, Context(config=config)) is None
    cuda = Context(device=Device(kind="cuda", capability=(8, 0)))
    assert knob.blocked(value, cuda) is None

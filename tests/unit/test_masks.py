"""Silent while it trains: single weights under masks, units and blocks that go one by one."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from torch import nn

from autotune.core.context import Context, ModelFacts
from autotune.core.domains import Value
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs import masks, semi_structured
from autotune.knobs.blocks import dense_weight, find_linears
from autotune.knobs.bytes import storage_bytes
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.gradual import doom_units, thin_out
from autotune.knobs.optimizers import build_optimizer
from autotune.knobs.prune_ffn import PRUNE_FFN
from autotune.knobs.prune_heads import PRUNE_HEADS
from autotune.knobs.prune_importance import PRUNE_IMPORTANCE
from autotune.knobs.prune_layers import PRUNE_LAYERS
from autotune.knobs.prune_nm import PRUNE_NM
from autotune.knobs.prune_recurrent import PRUNE_RECURRENT
from autotune.knobs.prune_schedule import PRUNE_SCHEDULE
from autotune.knobs.prune_unstructured import PRUNE_UNSTRUCTURED
from autotune.knobs.stages import ADAPT, COMPRESS, DEPLOY, STEP, Adaptation, OptimPlan, StepPlan
from autotune.knobs.surgery import FEED_FORWARDS, HEADS
from tests import tiny_models as tiny

KNOBS = (
    *(PRUNE_IMPORTANCE, PRUNE_SCHEDULE, PRUNE_LAYERS, PRUNE_FFN, PRUNE_HEADS, PRUNE_RECURRENT),
    *(PRUNE_UNSTRUCTURED, PRUNE_NM, CHECKPOINTING),
)
STEPS = 10
GRADUAL = {"prune.schedule": "gradual"}


def _build(family: str, dtype: str = "float32", layers: int = tiny.LAYERS) -> nn.Module:
    setting = {"gpt2": "n_layer"}.get(family, "num_hidden_layers")
    changed = {**tiny.CONFIGS[family], setting: layers}
    with mock.patch.dict(tiny.CONFIGS, {family: changed}):
        return tiny.build(family, dtype=dtype)


def _adapt(model: nn.Module, config: dict[str, Value]) -> tuple[nn.Module, StepPlan]:
    state = run_stage(ADAPT, Adaptation(model=model), KNOBS, config)
    return state.model, run_stage(STEP, StepPlan(), KNOBS, config)


def _train(model: nn.Module, family: str, plan: StepPlan, steps: Sequence[int] = range(STEPS)):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = build_optimizer(trained, OptimPlan(), base_rate=3e-3)
    for step in steps:
        tiny.loss(model, family).backward()
        optimizer.step()
        optimizer.zero_grad()
        for told in plan.after_step:
            told(model, (step + 1) / STEPS)


def _output(model: nn.Module, family: str) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return tiny.output(model, family)


def _zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: dense_weight(layer) == 0.0 for n, layer in find_linears(model).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize(
    "config", [{"prune.unstructured": 0.7}, {"prune.nm": "2:4"}], ids=lambda c: next(iter(c))
)
def test_masked_weights_stay_zero_through_training(config, family: str, dtype: str) -> None:
    model, plan = _adapt(_build(family, dtype), config)
    before = _zeros(model)
    share = 0.7 if "prune.unstructured" in config else 0.5
    for zero in before.values():
        assert int(zero.sum()) == round(share * zero.numel())
    weights = {n: dense_weight(layer).detach().clone() for n, layer in find_linears(model).items()}
    _train(model, family, plan)
    for name, layer in find_linears(model).items():
        weight = dense_weight(layer)
        assert torch.equal(weight == 0.0, before[name])
        assert int((weight != weights[name]).sum()) > 0.9 * int((~before[name]).sum())


def test_the_smallest_weights_go_exactly_as_many_as_asked_also_with_ties() -> None:
    weight = torch.tensor([[3.0, -1.0, 1.0, 1.0], [-1.0, 0.0, 2.0, -5.0]])
    for count in range(weight.numel() + 1):
        chosen = masks.smallest(weight, count)
        assert int(chosen.sum()) == count
        if 0 < count < weight.numel():
            assert weight[chosen].abs().max() <= weight[~chosen].abs().min()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_of_every_four_inputs_go_the_smallest(family: str) -> None:
    weights = {n: dense_weight(m).detach() for n, m in find_linears(_build(family)).items()}
    model, _ = _adapt(_build(family), {"prune.nm": "2:4"})
    for name, layer in find_linears(model).items():
        size = weights[name].abs().reshape(-1, 4)
        left = dense_weight(layer).reshape(-1, 4)
        assert torch.equal((left != 0).sum(1), torch.full((len(left),), 2))
        assert bool((torch.where(left == 0, size, 0).amax(1) <= size.sort(1).values[:, 1]).all())


def test_a_mask_costs_one_byte_a_weight_and_is_no_part_of_the_model() -> None:
    plain = _build("llama")
    model, plan = _adapt(_build("llama"), {"prune.unstructured": 0.5})
    masked = sum(dense_weight(layer).numel() for layer in find_linears(model).values())
    grown = [storage_bytes([*m.parameters(), *m.buffers()]) for m in (plain, model)]
    assert grown[1] - grown[0] == masked
    assert model.state_dict().keys() == plain.state_dict().keys()
    _train(model, "llama", plan, range(2))
    run_stage(COMPRESS, model, KNOBS, {"prune.unstructured": 0.5})
    assert storage_bytes([*model.parameters(), *model.buffers()]) == grown[0]
    assert not any(vars(m).keys() & {"held_share", "held_count"} for m in model.modules())


@pytest.mark.parametrize("config", [{"prune.unstructured": 0.9}, {"prune.nm": "2:4"}], ids=str)
def test_sparse_models_reload_with_plain_transformers(config, tmp_path) -> None:
    model, plan = _adapt(_build("llama"), config)
    _train(model, "llama", plan, range(3))
    trained = _output(model, "llama")
    model = run_stage(COMPRESS, model, KNOBS, config)
    assert torch.equal(_output(model, "llama"), trained)
    model = run_stage(DEPLOY, model, KNOBS, config)
    model.save_pretrained(tmp_path)
    restored = type(model).from_pretrained(tmp_path)
    assert torch.equal(_output(restored, "llama"), trained)
    assert all(int(zero.sum()) >= zero.numel() // 2 for zero in _zeros(restored).values())


def test_masks_grow_on_schedule_and_never_shrink() -> None:
    model, plan = _adapt(_build("llama"), {"prune.unstructured": 0.9, **GRADUAL})
    assert not any(bool(zero.any()) for zero in _zeros(model).values())
    last = _zeros(model)
    for step in range(STEPS):
        _train(model, "llama", plan, [step])
        now = _zeros(model)
        wanted = 0.9 * masks.pruned_by((step + 1) / STEPS)
        for name, zero in now.items():
            assert int(zero.sum()) == pytest.approx(wanted * zero.numel(), abs=0.01 * zero.numel())
            assert bool((zero | ~last[name]).all())
        last = now
    assert {int(zero.sum()) for zero in last.values()} == {
        round(0.9 * zero.numel()) for zero in last.values()
    }


def test_the_schedule_is_cubic_and_ends_before_the_training() -> None:
    assert masks.pruned_by(0.0) == 0.0
    assert masks.pruned_by(0.4) == pytest.approx(1 - 0.5**3)
    assert masks.pruned_by(0.8) == masks.pruned_by(1.0) == 1.0


def test_lost_masks_and_odd_widths_are_refused() -> None:
    with pytest.raises(ModelError, match=r"masks of .* are gone"):
        masks.keep_zeros(_build("llama"), 0.5)
    model = _build("llama")
    for name in list(find_linears(model)):
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.Linear(6, 6))
    with pytest.raises(ModelError, match="width that 4 divides"):
        masks.mask_pairs(model)
    model = _build("llama")
    for layer in model.model.layers:
        layer.self_attn = layer.mlp = nn.Identity()
    with pytest.raises(ModelError, match="no plain dense layers in its blocks"):
        masks.mask_share(model, 0.5)


@pytest.mark.parametrize(
    ("shape", "dtype", "capability", "packs"),
    [
        ((64, 128), torch.bfloat16, (8, 0), True),
        ((64, 128), torch.float16, (9, 0), True),
        ((64, 128), torch.float32, (9, 0), False),
        ((64, 128), torch.bfloat16, (7, 5), False),
        ((64, 128), torch.bfloat16, None, False),
        ((48, 128), torch.bfloat16, (8, 0), False),
        ((64, 96), torch.bfloat16, (8, 0), False),
    ],
)
def test_which_weights_are_stored_without_zeros(shape, dtype, capability, packs: bool) -> None:
    assert semi_structured.packs(torch.zeros(shape, dtype=dtype), capability) is packs


def test_weights_stored_without_zeros_come_back_for_deploying() -> None:
    from torch.sparse import SparseSemiStructuredTensorCUTLASS as Stored
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    def store(weight: torch.Tensor) -> torch.Tensor:  # as on CUDA, by torch's reference on a CPU
        values, places = sparse_semi_structured_from_dense_cutlass(weight)
        return Stored(weight.shape, values, places, None, None, None)

    model, _ = _adapt(_build("llama", "bfloat16"), {"prune.nm": "2:4"})
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    with (
        mock.patch.object(semi_structured, "packs", lambda weight, _: len(weight) % 32 == 0),
        mock.patch.object(semi_structured, "to_sparse_semi_structured", store),
    ):
        run_stage(COMPRESS, model, KNOBS, {"prune.nm": "2:4"})
    stored = [n for n, p in model.named_parameters() if isinstance(p, Stored)]
    fitting = [n for n, layer in find_linears(model).items() if layer.out_features % 32 == 0]
    assert 0 < len(stored) == len(fitting) < len(find_linears(model))
    assert storage_bytes([model.get_parameter(stored[0])]) == expected[stored[0]].numel() * 9 / 8
    run_stage(DEPLOY, model, KNOBS, {"prune.nm": "2:4"})
    for name, parameter in model.named_parameters():
        assert type(parameter) is nn.Parameter
        assert parameter.requires_grad
        assert torch.equal(parameter, expected[name])


EVERYTHING = {"prune.layers": 0.5, "prune.ffn": 0.5, "prune.heads": 0.5, **GRADUAL}


@pytest.mark.parametrize(
    "more", [{}, {"checkpointing": "full"}, {"prune.unstructured": 0.5}], ids=str
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "t5"])
def test_gradual_ends_as_the_cut_model(family: str, more: dict[str, Value], tmp_path) -> None:
    if family == "t5":
        model = tiny.build_task("t5")
        config = {"prune.ffn": 0.5, "prune.heads": 0.5, **GRADUAL, **more}
    else:
        model, config = _build(family, layers=4), {**EVERYTHING, **more}
    whole = sum(p.numel() for p in model.parameters())
    model, plan = _adapt(model, config)
    if family == "t5":
        for step in range(STEPS):
            tiny.task_loss(model, family).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.01 * parameter.grad)
            model.zero_grad()
            for told in plan.after_step:
                told(model, (step + 1) / STEPS)
    else:
        _train(model, family, plan)
    assert sum(p.numel() for p in model.parameters()) == whole
    silent = _output(model, family)
    model = run_stage(COMPRESS, model, KNOBS, config)
    torch.testing.assert_close(_output(model, family), silent, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in model.parameters()) < 0.8 * whole
    assert all(units.count == 32 + 32 * (family == "gpt2") for units in FEED_FORWARDS.find(model))
    assert not any("doomed" in vars(module) for module in model.modules())
    if family in ("llama", "t5"):
        model.save_pretrained(tmp_path)
        restored = type(model).from_pretrained(tmp_path)
        torch.testing.assert_close(_output(restored, family), silent, atol=1e-5, rtol=1e-5)


def test_units_and_blocks_fall_silent_one_by_one() -> None:
    model, plan = _adapt(_build("llama", layers=8), {**EVERYTHING, "prune.layers": 0.75})
    passed = []
    for step in range(STEPS):
        _train(model, "llama", plan, [step])
        share = masks.pruned_by((step + 1) / STEPS)
        for structure, going in ((FEED_FORWARDS, 32), (HEADS, 1)):
            for units in structure.find(model):
                (reading,) = units.outgoing
                of_unit = reading.of(model.get_parameter(reading.tensor), units.count)
                assert int((of_unit == 0).all(1).sum()) == round(share * going)
        blocks = [vars(layer).get("passed_by", False) for layer in model.model.layers]
        passed.append(sum(blocks))
        assert passed[-1] == round(share * 6)
        assert not blocks[0]
        assert not blocks[-1]
    assert passed[0] < passed[2] < passed[-1] == 6


def test_recurrent_units_go_gradually_too() -> None:
    torch.manual_seed(0)
    parts = {"layers": nn.GRU(12, 16, batch_first=True), "head": nn.Linear(16, 3)}
    config = {"prune.recurrent": 0.5, **GRADUAL}
    model, plan = _adapt(nn.ModuleDict(parts), config)
    inputs = torch.randn(4, 6, 12)

    def run() -> torch.Tensor:
        return model["head"](model["layers"](inputs)[0].mean(1))

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        run().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        for told in plan.after_step:
            told(model, (step + 1) / STEPS)
    silent = run()
    model = run_stage(COMPRESS, model, KNOBS, config)
    assert model["layers"].hidden_size == 8
    torch.testing.assert_close(run(), silent, atol=1e-6, rtol=1e-5)


def test_what_is_doomed_must_still_be_there() -> None:
    with pytest.raises(ModelError, match=r"nothing of .* is pruned while it trains"):
        thin_out(_build("llama"), 0.5)
    model = _build("llama")
    doom_units(model, FEED_FORWARDS, {}, {"model.layers.9.mlp": torch.arange(3)})
    with pytest.raises(ModelError, match=r"layers that prune.ffn prunes .* were replaced"):
        thin_out(model, 0.5)


@pytest.mark.parametrize(
    ("knob", "value", "config", "sentence"),
    [
        (PRUNE_SCHEDULE, "gradual", {}, "nothing is pruned that could be"),
        (PRUNE_SCHEDULE, "gradual", {"prune.ffn": 0.5, "lora.rank": 4}, "or lora.rank to 0"),
        (PRUNE_SCHEDULE, "gradual", {"prune.ffn": 0.5, "weight_bits": 4}, "or weight_bits to 16"),
        (PRUNE_SCHEDULE, "gradual", {"prune.ffn": 0.5, "qat.bits": 8}, "or qat.bits to 16"),
        (
            PRUNE_SCHEDULE,
            "gradual",
            {"prune.layers": 0.5, "compile": "inductor"},
            "makes a compiled model compile again",
        ),
        (PRUNE_SCHEDULE, "gradual", {"prune.unstructured": 0.5}, None),
        (PRUNE_UNSTRUCTURED, 0.5, {"lora.rank": 4}, "would fill the zeros again"),
        (PRUNE_UNSTRUCTURED, 0.5, {"deploy.bits": 4}, "or deploy.bits to 16"),
        (PRUNE_UNSTRUCTURED, 0.5, {"prune.ffn": 0.5}, None),
        (PRUNE_NM, "2:4", {"prune.unstructured": 0.5}, "all that a device can use"),
        (PRUNE_NM, "2:4", {"qat.bits": 4}, "or qat.bits to 16"),
        (PRUNE_NM, "2:4", {}, None),
    ],
)
def test_reasons(knob, value: Value, config: dict[str, Value], sentence: str | None) -> None:
    reason = knob.blocked(value, Context(config=config))
    assert reason is None if sentence is None else sentence in str(reason)


def test_recurrent_models_have_no_blocks_to_mask() -> None:
    context = Context(model=ModelFacts(family="lstm"))
    for knob, value in ((PRUNE_UNSTRUCTURED, 0.5), (PRUNE_NM, "2:4")):
        assert "'lstm' have no blocks" in str(knob.blocked(value, context))


@pytest.mark.parametrize("knob", KNOBS[:-1], ids=lambda knob: knob.name)
def test_neutral_is_the_identity(knob) -> None:
    config = {knob.name: knob.neutral}
    model, plan = _build("llama"), StepPlan()
    state = Adaptation(model=model)
    assert run_stage(ADAPT, state, (knob,), config) is state
    assert run_stage(STEP, plan, (knob,), config) is plan
    assert run_stage(COMPRESS, model, (knob,), config) is model
    assert run_stage(DEPLOY, model, (knob,), config) is model
    assert knob.blocked(knob.neutral, Context()) is None

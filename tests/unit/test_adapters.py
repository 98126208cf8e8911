"""Adapters: what is put on, what trains, what is merged, and what it costs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from autotune.core.context import Context, ModelFacts
from autotune.core.errors import ModelError
from autotune.core.knob import run_stage
from autotune.knobs.adapters import (
    add_magnitudes,
    keep_adapters,
    merge_adapters,
    put_adapters,
)
from autotune.knobs.dense import restore_linears, widen_linears
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.lora_targets import LORA_TARGETS
from autotune.knobs.lora_variant import LORA_VARIANT
from autotune.knobs.packed import pack_blocks, unpack_model
from autotune.knobs.stages import ADAPT, DEPLOY, OPTIMISE, Adaptation, OptimPlan
from tests import tiny_models as tiny

KNOBS = (LORA_RANK, LORA_TARGETS, LORA_VARIANT)
FAMILIES = ("gpt2", "llama", "bert", "t5")
VARIANTS = ("lora", "dora")
RANK = 4


def adapted(family: str, *, dtype: str = "float32", bits: int = 16, **config: object) -> nn.Module:
    """A tiny model with adapters, packed before if asked for."""
    model = tiny.build(family, dtype=dtype)
    if bits < 16:
        pack_blocks(model, bits)
    values = {"lora.rank": RANK} | {f"lora.{name}": value for name, value in config.items()}
    return run_stage(ADAPT, Adaptation(model=model), KNOBS, values).model


def move(model: nn.Module, *, by: float = 0.2) -> None:
    """Move every trained parameter of the blocks off where it started."""
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(by * torch.randn(parameter.shape, generator=chance))


def answers(model: nn.Module, family: str) -> Tensor:
    """What a model gives, in evaluation mode, in fp32."""
    with torch.no_grad():
        return tiny.output(model.eval(), family).float()


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted layers."""
    from peft.tuners.lora import LoraLayer

    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def each_layer(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """An input of each adapted layer, and what the layer gives for it."""
    chance = torch.Generator().manual_seed(2)
    found = {}
    with torch.no_grad():
        for name, layer in layers(model).items():
            x = torch.randn(16, layer.in_features, generator=chance)
            found[name] = (x, layer(x))
    return found


def assert_layers_give(model: nn.Module, apart: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Each layer, now merged, gives the same, to the rounding of a few sums."""
    assert apart
    for name, (x, expected) in apart.items():
        with torch.no_grad():
            far = (model.get_submodule(name)(x) - expected).abs().max() / expected.abs().max()
        assert far < 16 * torch.finfo(torch.float32).eps, name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_new_adapters_change_nothing_and_moved_ones_merge_exactly(
    family: str, variant: str
) -> None:
    before = answers(tiny.build(family), family)
    model = adapted(family, variant=variant)
    torch.testing.assert_close(answers(model, family), before, atol=1e-5, rtol=1e-5)
    move(model)
    moved, apart = answers(model, family), each_layer(model)
    assert (moved - before).abs().max() > 0.01
    merged = merge_adapters(model)
    assert merged is model
    assert_layers_give(merged, apart)
    # T5 does not scale its attention scores, and multiplies a rounding error on its way up.
    torch.testing.assert_close(answers(merged, family), moved, atol=2e-4, rtol=1e-4)
    plain = tiny.build(family)
    assert {type(m) for m in merged.modules()} == {type(m) for m in plain.modules()}
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert all(parameter.requires_grad for parameter in merged.parameters())
    assert "peft_config" not in vars(merged)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_adapters_on_packed_layers_merge_exactly(family: str, bits: int, variant: str) -> None:
    packed = pack_blocks(tiny.build(family), bits)
    before = answers(packed, family)
    model = adapted(family, bits=bits, variant=variant)
    torch.testing.assert_close(answers(model, family), before, atol=1e-5, rtol=1e-5)
    move(model)
    moved, apart = answers(model, family), each_layer(model)
    with pytest.raises(ModelError, match="cannot be merged into a PackedLinear") as caught:
        merge_adapters(model)
    assert "unpack_model" in str(caught.value.help)
    torch.testing.assert_close(answers(model, family), moved, atol=0, rtol=0)
    merged = merge_adapters(unpack_model(model))
    assert_layers_give(merged, apart)
    torch.testing.assert_close(answers(merged, family), moved, atol=2e-4, rtol=1e-4)
    assert {type(m) for m in merged.modules()} == {type(m) for m in tiny.build(family).modules()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bf16_adapters_merge_to_rounding(family: str, variant: str) -> None:
    model = widen_linears(adapted(family, dtype="bfloat16", variant=variant))
    vectors = {n for n, p in model.named_parameters() if p.dtype is torch.float32}
    assert all("lora_magnitude_vector" in name for name in vectors)
    assert bool(vectors) is (variant == "dora")
    move(model, by=0.05)
    moved = answers(model, family)
    merged = restore_linears(merge_adapters(model))
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    far = (answers(merged, family) - moved).norm() / moved.norm()
    assert far < 4 * torch.finfo(torch.bfloat16).eps


def test_merging_without_adapters_leaves_a_model_as_it_is() -> None:
    model = tiny.build("llama")
    frozen = next(model.parameters()).requires_grad_(False)
    assert merge_adapters(model) is model
    assert not frozen.requires_grad


def test_weights_that_are_computed_are_not_merged_into() -> None:
    model = put_adapters(tiny.build("llama"), RANK)
    (name, layer), *_ = layers(model).items()
    parametrize.register_parametrization(layer.get_base_layer(), "weight", nn.Identity())
    with pytest.raises(ModelError, match=f"the adapter on {name} cannot be merged"):
        merge_adapters(model)


def test_merged_weights_are_not_written_into_the_memory_that_was_frozen() -> None:
    model = adapted("llama")
    move(model)
    (layer, *_) = layers(model).values()
    frozen = layer.get_base_layer().weight.data
    before = frozen.clone()
    merge_adapters(model)
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
def test_only_adapters_and_heads_train(family: str, bits: int) -> None:
    model = adapted(family, bits=bits, variant="dora")
    tiny.loss(model, family).backward()
    for name, parameter in model.named_parameters():
        head = name.startswith(("classifier", "bert.pooler"))
        assert parameter.requires_grad is ("lora_" in name or head), name
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
        else:
            assert parameter.grad is None, name


def peers() -> tuple[nn.Module, nn.Module]:
    """The same moved layers, ours and as peft computes them, on a model with biases."""
    from peft import LoraConfig, inject_adapter_in_model

    ours = adapted("gpt2", variant="dora")
    config = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        use_dora=True,
        target_modules=["c_attn", "c_proj", "c_fc"],
        fan_in_fan_out=True,
    )
    theirs = inject_adapter_in_model(config, tiny.build("gpt2"))
    move(ours)
    names = {name.replace(".weight", "") for name, _ in ours.named_parameters()}
    assert {name.replace(".weight", "") for name, _ in theirs.named_parameters()} == names
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs


def test_dora_computes_what_its_library_computes() -> None:
    ours, theirs = peers()
    torch.testing.assert_close(answers(ours, "gpt2"), answers(theirs, "gpt2"))
    losses = [tiny.loss(model.train(), "gpt2") for model in (ours, theirs)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(
                parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-4, msg=name
            )


def test_dora_makes_nothing_dense_and_keeps_one_output_more_than_lora() -> None:
    from torch.autograd.graph import saved_tensors_hooks

    wide, tokens = 256, 3

    def measure(variant: str) -> tuple[int, int]:
        torch.manual_seed(0)
        inner = nn.Linear(wide, wide)
        holder = _holder(inner)
        layer = holder[0] if variant == "lora" else add_magnitudes(holder)[0]
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(tokens, wide, requires_grad=True)
        parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
        with saved_tensors_hooks(note, lambda tensor: tensor), _Largest(parameters) as largest:
            layer(x)
        return sum(n for p, n in kept.items() if p not in parameters), largest.bytes

    plain, _ = measure("lora")
    decomposed, largest = measure("dora")
    output = 4 * wide * tokens
    vector = 4 * wide
    assert plain + output <= decomposed <= plain + output + 3 * vector
    assert largest == 4 * wide * max(RANK, tokens)


class _Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is computed, parameters and views aside."""

    def __init__(self, parameters: set[int]) -> None:
        super().__init__()
        self.parameters = parameters
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if torch.is_tensor(out) and out.untyped_storage().data_ptr() not in self.parameters:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


def _holder(layer: nn.Module) -> nn.Module:
    """A module with one adapted layer."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["0"])
    return inject_adapter_in_model(config, nn.Sequential(layer))


KINDS = {
    "gpt2": ({"c_attn", "attn.c_proj"}, {"c_fc", "mlp.c_proj"}),
    "llama": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}),
    "bert": (
        {"query", "key", "value", "attention.output.dense"},
        {"intermediate.dense", "0.output.dense", "1.output.dense"},
    ),
    "distilbert": ({"q_lin", "k_lin", "v_lin", "out_lin"}, {"lin1", "lin2"}),
    "t5": ({"Attention.q", "Attention.k", "Attention.v", "Attention.o"}, {"wi", "wo"}),
    "bart": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
    "vit": ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"fc1", "fc2"}),
}


@pytest.mark.parametrize("family", KINDS)
def test_targets_are_told_apart(family: str) -> None:
    everything = set(layers(adapted(family)))
    found = {}
    for targets, ends in zip(("attention", "ffn"), KINDS[family], strict=True):
        model = adapted(family, targets=targets)
        found[targets] = set(layers(model))
        assert found[targets] == {n for n in everything if n.endswith(tuple(ends))}
        dense = [m for n, m in model.named_modules() if n in everything - found[targets]]
        assert not any(p.requires_grad for m in dense for p in m.parameters())
    assert found["attention"] | found["ffn"] == everything
    assert not found["attention"] & found["ffn"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_few_targets_train_and_merge_as_all_do(variant: str) -> None:
    model = adapted("bert", targets="ffn", variant=variant)
    move(model)
    moved = answers(model, "bert")
    deployed = run_stage(DEPLOY, model, KNOBS, {"lora.rank": RANK, "lora.targets": "ffn"})
    torch.testing.assert_close(answers(deployed, "bert"), moved, atol=1e-5, rtol=1e-5)
    assert not layers(deployed)


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ModelError, match="need a transformers model, and Linear is none"):
        put_adapters(nn.Linear(2, 2), RANK)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no adapters"):
        run_stage(ADAPT, Adaptation(model=tiny.build("llama")), KNOBS, {"lora.variant": "dora"})
    model = put_adapters(tiny.build("llama"), RANK)
    model.config.model_type = "mamba"
    with pytest.raises(ModelError, match="family 'mamba' is on a layer known as attention"):
        keep_adapters(model, "attention")
    with pytest.raises(ModelError, match="lengths of the weights of a Embedding are not known"):
        add_magnitudes(_holder_of_embedding())


def _holder_of_embedding() -> nn.Module:
    holder = _holder(nn.Linear(4, 4))
    holder[0].base_layer = nn.Embedding(4, 4)
    return holder


def test_reasons_are_sentences() -> None:
    def reason(knob, value, *, rank: int = RANK, family: str = "llama") -> str | None:
        around = Context(config={"lora.rank": rank}, model=ModelFacts(family=family))
        return knob.blocked(value, around)

    assert "set lora.rank above 0" in str(reason(LORA_TARGETS, "ffn", rank=0))
    assert "set lora.rank above 0" in str(reason(LORA_VARIANT, "dora", rank=0))
    assert "the attention layers of the family 'mamba'" in str(
        reason(LORA_TARGETS, "attention", family="mamba")
    )
    assert "the feed-forward layers of the family 'mamba'" in str(
        reason(LORA_TARGETS, "ffn", family="mamba")
    )
    for knob in (LORA_TARGETS, LORA_VARIANT):
        for value in knob.domain.grid():
            assert reason(knob, value) is None
            assert reason(knob, value, family="") is None
        assert reason(knob, knob.neutral, rank=0) is None
    assert run_stage(OPTIMISE, OptimPlan(), KNOBS, {"lora.rank": RANK}).adapters

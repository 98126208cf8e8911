"""Distillation: what the teacher is asked, what its distance is, and what of it is kept."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autotune.core.context import Context, ModelFacts
from autotune.core.errors import BadValue, ModelError
from autotune.core.knob import run_stage
from autotune.knobs import distillation
from autotune.knobs.checkpointing import CHECKPOINTING
from autotune.knobs.distill import DISTILL
from autotune.knobs.distill_temperature import DISTILL_TEMPERATURE
from autotune.knobs.distill_weight import DISTILL_WEIGHT
from autotune.knobs.distillation import Distillation, Distiller
from autotune.knobs.lora import LORA_RANK
from autotune.knobs.prune_ffn import PRUNE_FFN
from autotune.knobs.stages import ADAPT, Adaptation
from tests import tiny_models as tiny

KNOBS = (DISTILL, DISTILL_WEIGHT, DISTILL_TEMPERATURE, PRUNE_FFN, LORA_RANK, CHECKPOINTING)
OF = ("logits", "hidden")
FAMILIES = ("bert", "llama", "gpt2", "t5", "bart", "whisper", "vit")


def adapt(family: str, **config: object) -> Adaptation:
    """A model after its knobs; names of values have `_` for `.`."""
    values = {name.replace("_", "."): value for name, value in config.items()}
    return run_stage(ADAPT, Adaptation(model=tiny.build_task(family)), KNOBS, values)


def pair(family: str, of: str = "logits", **config: object) -> tuple[nn.Module, Distiller]:
    """A student that was pruned, and its listening teacher."""
    state = adapt(family, distill=of, **{"prune_ffn": 0.5, **config})
    assert state.distillation is not None
    return state.model, Distiller(state.model, state.distillation)


def only_distance(distiller: Distiller) -> Distiller:
    """Have the teacher alone count."""
    distiller.plan = replace(distiller.plan, weight=1.0)
    return distiller


def plain(said: Tensor, told: Tensor, counted: Tensor, heat: float) -> Tensor:
    """The divergence as the papers have it, every row at once."""
    ours = functional.log_softmax(said.float() / heat, -1)
    theirs = functional.log_softmax(told.float() / heat, -1)
    rows = functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    return (rows * counted).sum() / counted.sum() * heat**2


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_moves_towards_its_teacher(family: str, of: str) -> None:
    student, distiller = pair(family, of)
    only_distance(distiller)
    with torch.no_grad():  # far from the teacher, also where random weights say little
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    optimizer = torch.optim.SGD(student.parameters())
    distances = []
    for _ in range(2):
        distance = distiller.mix(tiny.task_loss(student, family))
        distance.backward()
        distances.append(float(distance.detach()))
        gradients = [p.grad for p in student.parameters() if p.grad is not None]
        # A step so small that the slope foretells what it gives: a twentieth of the distance.
        squares = float(sum(gradient.square().sum() for gradient in gradients))
        optimizer.param_groups[0]["lr"] = 0.05 * distances[0] / squares
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert 0.9 * distances[0] < distances[1] < 0.99 * distances[0]
    assert all(p.grad is None for p in distiller.teacher.parameters())


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_of_the_teacher_is_no_distance_away(family: str, of: str) -> None:
    model = tiny.build_task(family)
    teacher = Distillation(teacher=deepcopy(model), of=of, weight=1.0)
    distiller = Distiller(model, teacher)
    distance = distiller.mix(tiny.task_loss(model, family))
    assert abs(float(distance.detach())) < 1e-6


@pytest.mark.parametrize("of", OF)
def test_the_loss_is_a_mean_of_both(of: str) -> None:
    student, distiller = pair("bert", of, distill_weight=0.25)
    loss = tiny.task_loss(student, "bert")
    mixed = distiller.mix(loss).detach()
    only_distance(distiller)
    distance = distiller.mix(tiny.task_loss(student, "bert")).detach()
    assert float(distance) > 0
    torch.testing.assert_close(mixed, 0.75 * loss.detach() + 0.25 * distance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heat", [1.0, 4.0])
def test_divergence_and_gradient_are_those_of_the_papers(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, heat: float
) -> None:
    monkeypatch.setitem(distillation.VALUES_AT_ONCE, "cpu", 3 * 11)
    chance = torch.Generator().manual_seed(0)
    said, told = (torch.randn(2, 4, 11, generator=chance).to(dtype) for _ in range(2))
    counted = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.float32)
    expected = said.clone().requires_grad_(True)
    (3 * plain(expected, told, counted, heat)).backward()
    ours = said.clone().requires_grad_(True)
    value = distillation._divergence(ours, told.clone(), counted.flatten(), heat)
    (3 * value).backward()
    torch.testing.assert_close(value.detach(), plain(said, told, counted, heat))
    near = {} if dtype is torch.float32 else {"atol": 1e-3, "rtol": 0.02}
    torch.testing.assert_close(ours.grad, expected.grad, **near)
    assert not ours.grad[1, 2:].any()


def test_logits_of_another_dtype_are_left_as_they_are() -> None:
    said = torch.randn(4, 5, dtype=torch.bfloat16, requires_grad=True)
    told = torch.randn(4, 5)
    before = told.clone()
    distillation._divergence(said, told, torch.ones(4), 1.0).backward()
    assert said.grad is not None
    assert said.grad.dtype is torch.bfloat16
    assert torch.equal(told, before)


@pytest.mark.parametrize("of", OF)
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_padding_does_not_count(family: str, of: str) -> None:
    causal = family == "llama"
    student, distiller = pair(family, of)
    only_distance(distiller)
    ids = tiny.inputs(family)["input_ids"]

    def distance(tokens: Tensor, mask: Tensor) -> Tensor:
        inner = student if of == "logits" else student.base_model
        extra = {"use_cache": False} if causal else {}
        inner(input_ids=tokens, attention_mask=mask, **extra)
        return distiller.mix(torch.zeros(())).detach()

    mask = torch.ones_like(ids)
    padded = torch.cat((ids, torch.full((len(ids), 3), 7)), 1)
    longer = torch.cat((mask, torch.zeros(len(ids), 3, dtype=mask.dtype)), 1)
    short = distance(ids, mask)
    torch.testing.assert_close(distance(padded, longer), short, atol=1e-6, rtol=1e-4)
    if of == "hidden" or causal:  # one answer for each token, and not one for each sequence
        assert abs(distance(padded, torch.ones_like(longer)) - short) > 1e-3 * short


@pytest.mark.parametrize("family", ["t5", "bart", "whisper"])
def test_ignored_labels_of_a_decoder_do_not_count(family: str) -> None:
    student, distiller = pair(family)
    batch = tiny.inputs(family)
    labels = batch.pop("decoder_input_ids")
    labels[:, 5:] = -100
    answer = student(**batch, labels=labels, use_cache=False)
    answer.logits.retain_grad()
    only_distance(distiller).mix(answer.loss).backward()
    assert answer.logits.grad[:, :5].any()
    assert not answer.logits.grad[:, 5:].any()


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_teacher_gets_the_inputs_of_the_decoder_in_place_of_labels(family: str) -> None:
    student, distiller = pair(family)
    asked: list[dict[str, object]] = []
    distiller.teacher.register_forward_pre_hook(
        lambda module, args, kwargs: asked.append(kwargs), with_kwargs=True
    )
    tiny.task_loss(student, family)
    (kwargs,) = asked
    assert "labels" not in kwargs
    labels = tiny.inputs(family)["decoder_input_ids"]
    expected = student.prepare_decoder_input_ids_from_labels(labels=labels)
    assert torch.equal(kwargs["decoder_input_ids"], expected)


@pytest.mark.parametrize("of", OF)
def test_the_teacher_answers_first_and_keeps_no_cache(of: str) -> None:
    model = tiny.build_task("llama")
    model.config.use_cache = True
    teacher = deepcopy(model)
    distiller = Distiller(model, Distillation(teacher=teacher, of=of))
    assert not teacher.config.use_cache
    assert model.config.use_cache
    order: list[str] = []
    for name, asked in (("student", model), ("teacher", teacher)):
        for block in asked.model.layers:
            block.register_forward_pre_hook(lambda *_, who=name: order.append(who))
    distiller.mix(tiny.task_loss(model, "llama"))
    assert order == ["teacher"] * tiny.LAYERS + ["student"] * tiny.LAYERS


def test_dropout_of_the_student_is_what_it_was() -> None:
    model = tiny.build("bert", dropout=True)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return tiny.loss(model, "bert")

    alone = loss().detach()
    distiller = Distiller(model, Distillation(teacher=deepcopy(model)))
    assert torch.equal(loss().detach(), alone)
    assert not distiller.teacher.training


@pytest.mark.parametrize("of", OF)
def test_nothing_of_a_micro_step_is_left_when_it_is_over(of: str) -> None:
    student, distiller = pair("llama", of)
    alive: list[weakref.ref[Tensor]] = []
    for listened in (student, distiller.teacher):
        inner = listened if of == "logits" else listened.base_model
        name = "logits" if of == "logits" else "last_hidden_state"
        inner.register_forward_hook(
            lambda module, args, out, name=name: alive.append(weakref.ref(getattr(out, name)))
        )
    for _ in range(2):
        mixed = distiller.mix(tiny.task_loss(student, "llama"))
        assert (distiller._said, distiller._told, distiller._counted) == (None, None, None)
        mixed.backward()
        del mixed
        gc.collect()
        assert len(alive) == 2
        assert all(reference() is None for reference in alive)
        alive.clear()


def test_a_divergence_costs_one_tensor_of_the_size_of_the_logits() -> None:
    rows, vocabulary = 2000, 50
    said = torch.randn(rows, vocabulary, requires_grad=True)
    told = torch.randn(rows, vocabulary)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        distance = distillation._divergence(said, told, torch.ones(rows), 2.0)
    assert saved == {told.untyped_storage().data_ptr(): told.untyped_storage().nbytes()}
    distance.backward()
    assert said.grad is not None


@pytest.mark.parametrize("of", OF)
def test_micro_batches_add_up_to_the_whole(of: str) -> None:
    gradients = []
    for pieces in (1, 4):
        student, distiller = pair("llama", of)
        for ids in tiny.inputs("llama")["input_ids"].chunk(pieces):
            logits = student(input_ids=ids, use_cache=False).logits
            loss = functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
            (distiller.mix(loss) / pieces).backward()
        found = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("config", [{"checkpointing": "full"}, {"lora_rank": 4}], ids=str)
@pytest.mark.parametrize("of", OF)
def test_it_composes(of: str, config: dict[str, object]) -> None:
    student, distiller = pair("llama", of, **config)
    plain_student, plain_distiller = pair("llama", of)
    mixed = distiller.mix(tiny.task_loss(student, "llama"))
    expected = plain_distiller.mix(tiny.task_loss(plain_student, "llama"))
    torch.testing.assert_close(mixed, expected)  # adapters start from nothing
    mixed.backward()
    trained = [p for p in student.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)


def test_hidden_states_are_heard_under_a_loss_in_pieces() -> None:
    student, distiller = pair("llama", "hidden")
    whole = distiller.mix(tiny.task_loss(student, "llama")).detach()
    pieces = distiller.mix(tiny.task_loss(student, "llama", 4)).detach()
    torch.testing.assert_close(pieces, whole)
    student, distiller = pair("llama", "logits")
    with pytest.raises(ModelError, match="does not call the whole model") as caught:
        distiller.mix(tiny.task_loss(student, "llama", 4))
    assert "loss_chunks to 1" in str(caught.value.help)


def test_evaluation_is_not_heard_and_leaving_ends_it() -> None:
    student, distiller = pair("bert")
    asked: list[object] = []
    distiller.teacher.register_forward_hook(lambda *_: asked.append(1))
    with torch.no_grad():
        tiny.task_loss(student, "bert")
    tiny.task_loss(student.eval(), "bert")
    assert not asked
    tiny.task_loss(student.train(), "bert")
    assert asked == [1]
    distiller.leave()
    tiny.task_loss(student, "bert")
    assert asked == [1]
    with pytest.raises(ModelError, match="a teacher cannot listen"):
        distiller.mix(torch.zeros(()))


def test_a_teacher_of_another_shape_is_refused() -> None:
    model = tiny.build_task("llama")
    teacher = deepcopy(model)
    teacher.lm_head = nn.Linear(tiny.HIDDEN, 5, bias=False)
    distiller = Distiller(model, Distillation(teacher=teacher))
    with pytest.raises(ModelError, match=r"logits have shape \(4, 8, 5\)") as caught:
        distiller.mix(tiny.task_loss(model, "llama"))
    assert "same vocabulary" in str(caught.value.help)


def test_modules_without_inner_models_or_outputs_are_refused() -> None:
    bare = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="Linear has no inner model"):
        Distiller(bare, Distillation(teacher=deepcopy(bare), of="hidden"))
    Distiller(bare, Distillation(teacher=deepcopy(bare)))
    with pytest.raises(ModelError, match="gives no logits"):
        bare(torch.zeros(1, 2))


def test_the_teacher_is_the_model_before_anything_was_cut() -> None:
    state = adapt("bert", distill="logits", prune_ffn=0.5, distill_temperature=4.0)
    assert state.distillation is not None
    teacher = state.distillation.teacher
    expected = dict(tiny.build_task("bert").named_parameters())
    assert dict(teacher.named_parameters()).keys() == expected.keys()
    for name, parameter in teacher.named_parameters():
        assert torch.equal(parameter, expected[name])
        assert not parameter.requires_grad
    assert not teacher.training
    assert state.model.training
    assert all(parameter.requires_grad for parameter in state.model.parameters())
    assert replace(state.distillation, teacher=state.model) == Distillation(
        teacher=state.model, of="logits", weight=0.5, temperature=4.0
    )


def test_a_named_teacher_takes_the_place_of_the_copy() -> None:
    named = tiny.build_task("bert")
    state = Adaptation(model=tiny.build_task("bert"), named_teacher=lambda: named)
    adapted = run_stage(ADAPT, state, KNOBS, {"distill": "hidden", "distill.weight": 0.9})
    assert adapted.distillation == Distillation(teacher=named, of="hidden", weight=0.9)


LOSSY = {"distill": "logits", "prune.ffn": 0.5}
REASONS = [
    (DISTILL, "logits", {}, {}, "nothing lost that it could give back: set prune.ffn"),
    (DISTILL, "logits", {"prune.schedule": "gradual", "prune.nm": "none"}, {}, "nothing lost"),
    (DISTILL, "logits", {"prune.nm": "2:4"}, {}, None),
    (DISTILL, "logits", {"prune.ffn": 0.25}, {}, None),
    (DISTILL, "hidden", {"prune.heads": 0.5}, {}, None),
    (DISTILL, "logits", {"weight_bits": 4}, {}, None),
    (DISTILL, "logits", {"qat.bits": 4}, {}, None),
    (DISTILL, "logits", {"qat.bits": 16, "weight_bits": 16}, {}, "nothing lost"),
    (DISTILL, "logits", {"lora.rank": 4}, {}, None),
    (DISTILL, "logits", {}, {"features": frozenset({"teacher"})}, None),
    (DISTILL, "logits", {**LOSSY, "loss_chunks": 4}, {}, "set loss_chunks to 1"),
    (DISTILL, "hidden", {**LOSSY, "loss_chunks": 4}, {}, None),
    (DISTILL, "hidden", LOSSY, {"model": ModelFacts(family="lstm", pretrained=True)}, "'lstm'"),
    (DISTILL, "logits", LOSSY, {"model": ModelFacts(family="lstm", pretrained=True)}, None),
    (DISTILL, "logits", LOSSY, {"model": tiny.facts("bert", pretrained=False)}, "from scratch"),
    (
        DISTILL,
        "logits",
        LOSSY,
        {"model": tiny.facts("bert", pretrained=False), "features": frozenset({"teacher"})},
        None,
    ),
    (DISTILL_WEIGHT, 0.9, {"distill": "none"}, {}, "set distill to logits or hidden"),
    (DISTILL_WEIGHT, 0.9, {"distill": "hidden"}, {}, None),
    (DISTILL_TEMPERATURE, 4.0, {"distill": "none"}, {}, "set distill to logits"),
    (DISTILL_TEMPERATURE, 4.0, {"distill": "hidden"}, {}, "set distill to logits"),
    (DISTILL_TEMPERATURE, 4.0, {"distill": "logits"}, {}, None),
]


@pytest.mark.parametrize(("knob", "value", "config", "around", "sentence"), REASONS)
def test_reasons_are_sentences(knob, value, config, around, sentence: str | None) -> None:
    context = Context(**{"model": tiny.facts("bert"), "config": config, **around})
    reason = knob.blocked(value, context)
    if sentence is None:
        assert reason is None
    else:
        assert sentence in str(reason)
    assert knob.blocked(knob.neutral, context) is None


def test_what_has_no_teacher_cannot_be_weighed_or_heated() -> None:
    for name, value in (("distill.weight", 0.9), ("distill.temperature", 4.0)):
        with pytest.raises(BadValue, match=f"{name} .* teacher"):
            run_stage(ADAPT, Adaptation(model=nn.Linear(1, 1)), KNOBS, {name: value})

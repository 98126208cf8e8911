"""Estimates from a rehearser that answers by a formula: tables, fits, micro-batches, advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from autotune.core.budget import Budget
from autotune.core.config import Config
from autotune.core.context import Device, ModelFacts
from autotune.core.domains import Value
from autotune.core.errors import AutotuneError, BadValue, BlockedConfiguration, UnknownName
from autotune.core.knob import Numerics
from autotune.core.outcome import Measurement, Peak, PeakKind, Phase
from autotune.core.units import GIB, MIB
from autotune.core.workload import Metric, Workload, WorkloadFacts
from autotune.estimate import (
    FIRST_TRIED,
    MOST_TRIED,
    SHAPED,
    SHAPES,
    Asked,
    Estimator,
    budget_for,
    configuration,
    held_against,
    leanest_first,
    refuse_blocked,
)
from autotune.knobs import BUILTIN, knob
from autotune.memory.allocator import LARGE_SEGMENT
from autotune.memory.outside import CONTEXT_BYTES, outside_of
from autotune.memory.predict import measured
from autotune.memory.rehearsal import CannotRehearse, Rehearsal
from autotune.plan import DEFAULT_OBJECTIVE, context_of
from autotune.report.estimate import count, estimate_document, task_name
from autotune.runners import device_table
from autotune.runners.device_table import DEVICES, find_device
from autotune.trial.spec import TrialSpec

BATCH = 16
WEIGHTS, SEQUENCE = 2 * GIB, GIB
CPU = Device(kind="cpu", total_bytes=64 * GIB, free_bytes=60 * GIB, cores=2)
FACTS = WorkloadFacts(
    workload=Workload(
        objective=f"{SHAPES}:CausalLMShapes", model="m", steps=20, global_batch=BATCH,
        sequence_length=128, eval_examples=8, learning_rate=1e-4,
    ),
    model=ModelFacts(
        name="m", family="llama", layers=2, heads=4, kv_heads=4, hidden=64, ffn=128, vocab=1000,
        parameters=10**6, pretrained=True,
    ),
    data="random data",
    data_fingerprint="0",
    metrics=(Metric(name="perplexity", maximize=False),),
)  # fmt: skip


class Formula:
    """Weights plus a GiB for each sequence of a micro-batch; some techniques save a share."""

    SAVES: Mapping[str, float] = {"checkpointing": 0.5, "prune.ffn": 0.75, "precision": 0.25}

    def __init__(self, broken: tuple[str, ...] = ()) -> None:
        self.asked: list[dict[str, Value]] = []
        self.broken = broken

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        config = dict(spec.config)
        self.asked.append(config)
        if any(name in config for name in self.broken):
            raise CannotRehearse("an operator cannot be followed without values")
        weights = WEIGHTS
        for name, share in self.SAVES.items():
            weights -= int(WEIGHTS / 4 * share) if name in config else 0
        activations = SEQUENCE * BATCH // int(config.get("accumulation", 1))
        events = ((1, weights), (2, activations), (2, -activations), (3, 3 * MIB))
        return Rehearsal(
            peak_bytes=weights + activations + MIB, phase="first", within="backward",
            operator="aten.mm.default",
            anatomy={"weights": weights, "activations": activations},
            peaks={}, parameters=10**6, trained_parameters=10**6,
            events=events if record else (),
        )  # fmt: skip


def estimator(device: Device = CPU, rehearser: Formula | None = None) -> Estimator:
    return Estimator(
        rehearser=rehearser or Formula(),
        context=replace(context_of(FACTS, device), libraries=frozenset({"peft"})),
        facts=FACTS,
        cache="cache",
    )


def config(**values: Value) -> Config:
    return Config(values, BUILTIN)


def budget(amount: int) -> Budget:
    return Budget(total_bytes=amount, headroom=0.0)


@pytest.mark.parametrize("device", [CPU, find_device("A100-80GB")], ids=["cpu", "A100"])
def test_parts_sum_up_to_the_predicted_peak(device: Device) -> None:
    found = estimator(device).predict(config())
    assert sum(found.parts.values()) == pytest.approx(found.predicted_bytes, rel=1e-6)
    assert found.parts["first step"] == MIB
    assert found.interval.low < found.predicted_bytes < found.interval.high


def test_cuda_has_a_context_and_an_allocator_and_a_cpu_has_neither() -> None:
    on_cuda = estimator(find_device("A100-80GB")).predict(config())
    assert on_cuda.outside_bytes == CONTEXT_BYTES
    # 3 MiB are cut out of what the workspaces leave of their segment: nothing more is reserved.
    workspaces = outside_of(find_device("A100-80GB")).workspace_bytes
    assert on_cuda.workspace_bytes == workspaces
    assert on_cuda.allocator_bytes == LARGE_SEGMENT - workspaces
    on_cpu = estimator().predict(config())
    assert on_cpu.allocator_bytes == on_cpu.workspace_bytes == 0


def test_what_does_not_run_under_a_limit_needs_the_least_under_which_it_does() -> None:
    here = estimator(find_device("A100-80GB"))
    free = here.predict(config()).predicted_bytes
    assert here.predict(config(), limit_bytes=free + MIB).predicted_bytes == free
    tight = here.predict(config(), limit_bytes=free // 2)
    assert free // 2 < tight.predicted_bytes <= free


def test_what_a_probe_measured_adds_up_and_leaves_nothing_open() -> None:
    peaks = (
        (Phase.LOAD, PeakKind.ALLOCATED, 5 * GIB),
        (Phase.STEADY, PeakKind.ALLOCATED, 3 * GIB),
        (Phase.STEADY, PeakKind.RESERVED, 6 * GIB),
        (Phase.STEADY, PeakKind.DEVICE, 7 * GIB),
    )
    found = measured(
        estimator().spec(config(accumulation=4), 64 * GIB),
        Measurement(
            peaks=tuple(Peak(phase=p, kind=kind, bytes=b) for p, kind, b in peaks),
            anatomy={"weights": 2 * GIB, "activations": GIB},
        ),
    )
    assert found.measured
    assert found.micro_batch == BATCH // 4
    assert found.interval.low == found.interval.high == 7 * GIB
    assert found.parts == {
        "weights": 2 * GIB, "activations": GIB, "loading": 2 * GIB, "workspace": 0,
        "allocator": GIB, "outside": GIB,
    }  # fmt: skip
    judged = held_against(found, budget(8 * GIB))
    assert (judged.fits, judged.certain, judged.spare_bytes) == (True, True, GIB)


def test_the_batch_follows_the_knobs() -> None:
    found = estimator().predict(config(accumulation=4, global_batch=0.5, sequence_length=0.5))
    assert (found.data.global_batch, found.data.sequence_length) == (BATCH // 2, 64)
    assert found.micro_batch == BATCH // 2 // 4


@pytest.mark.parametrize("given", [1, 2, 16])
@pytest.mark.parametrize(("room", "expected"), [(40, 16), (7, 4), (4, 1), (1, None)])
def test_the_largest_micro_batch_is_found_from_either_side(
    given: int, room: int, expected: int | None
) -> None:
    here = estimator()
    found = here.largest(here.predict(Config({"accumulation": given}, BUILTIN)), room * GIB)
    assert (found and found.micro_batch) == expected


def test_the_verdict_names_the_best_technique_of_each_kind() -> None:
    here = estimator()
    judged = here.judge(here.predict(config()), budget(10 * GIB))
    assert not judged.fits
    assert judged.certain
    assert judged.spare_bytes == 10 * GIB - here.predict(config()).predicted_bytes
    exact, close, lossy = judged.savings
    assert (exact.knob.name, exact.value) == ("accumulation", BATCH)
    assert (close.knob.name, close.knob.numerics) == ("precision", Numerics.CLOSE)
    assert (lossy.knob.name, lossy.value) == ("prune.ffn", 0.75)
    assert lossy.saved_bytes == pytest.approx(WEIGHTS / 4 * 0.75, rel=0.01)


def test_a_limit_within_the_interval_is_left_open() -> None:
    here = estimator()
    found = here.predict(config())
    judged = here.judge(found, budget(found.predicted_bytes + MIB))
    assert judged.fits
    assert not judged.certain


def test_what_cannot_be_rehearsed_is_no_advice_but_an_error_when_asked_for() -> None:
    here = estimator(rehearser=Formula(broken=("accumulation",)))
    judged = here.judge(here.predict(config()), budget(10 * GIB))
    assert judged.largest is None
    assert judged.savings[0].knob.name == "checkpointing"
    with pytest.raises(AutotuneError, match="accum 2 cannot be estimated"):
        here.predict(config(accumulation=2))


def test_techniques_are_legal_leaner_and_change_no_data() -> None:
    here = estimator()
    given = config(checkpointing="full")
    for technique, changed in here.leaner(given):
        refuse_blocked(changed, here.context)
        assert technique.name != "checkpointing", "it is at its leanest already"
        assert set(changed) == {"checkpointing", technique.name}
        assert not {"data"} & {bound.stage.name for bound in technique.transforms}
    assert {"accumulation", "precision", "lora.rank"} <= {t.name for t, _ in here.leaner(given)}


def test_only_so_many_techniques_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Formula()
    here = estimator(rehearser=asked)
    judged = here.judge(here.predict(config()), budget(100 * GIB))
    assert judged.tried == MOST_TRIED
    monkeypatch.setattr("autotune.estimate.PATIENCE_SECONDS", -1.0)
    assert here.judge(here.predict(config()), budget(100 * GIB)).tried == 0


def test_the_leanest_values_come_first() -> None:
    assert leanest_first(knob("precision"))[:2] == ["bf16", "fp16"]
    assert leanest_first(knob("accumulation"))[0] == 32
    for technique in BUILTIN:
        values = leanest_first(technique)
        assert values[0] == technique.leanest
        assert sorted(map(str, values)) == sorted(map(str, technique.domain.grid()))


def test_techniques_that_are_tried_first_exist() -> None:
    assert [knob(name).name for name in FIRST_TRIED] == list(FIRST_TRIED)


def test_configurations_are_single_legal_values() -> None:
    context = estimator().context
    assert configuration({"precision": "bf16"}) == config(precision="bf16")
    with pytest.raises(BadValue, match="one value"):
        configuration({"lora.rank": "8,16"})
    with pytest.raises(UnknownName, match="precison"):
        configuration({"precison": "bf16"})
    with pytest.raises(BlockedConfiguration, match="accumulation 32 does not divide") as caught:
        refuse_blocked(configuration({"accumulation": "32"}), context)
    assert caught.value.where == "--set accumulation=32"
    with pytest.raises(BlockedConfiguration, match="quantised weights are frozen") as caught:
        refuse_blocked(configuration({"weight_bits": "4"}), context)
    assert caught.value.where == "--set weight_bits=4"


def test_a_model_alone_is_trained_by_its_shapes() -> None:
    assert Asked(model="folder").workload().objective == f"{SHAPES}:by_architecture"
    for name, kind in SHAPED.items():
        asked = Asked(model="folder", objective=name.replace("_", "-"))
        assert asked.workload().objective == f"{SHAPES}:{kind}"
    assert Asked().workload().objective == "text_classification"
    assert Asked(model="folder", data="file").workload().objective == "text_classification"
    for own in ("bert", "lstm"):
        assert Asked(model=own).workload().objective == "text_classification"
    assert Asked(model="folder", objective="mine:Own").workload().objective == "mine:Own"


def test_what_trains_or_has_a_teacher_is_the_task_itself() -> None:
    probed = Asked(model="folder", objective="causal-lm", trains=True).workload()
    assert probed.objective == "causal_lm"
    taught = Asked(model="folder", objective="causal-lm", teacher="other").workload()
    assert (taught.objective, taught.teacher) == ("causal_lm", "other")
    assert Asked(model="folder", trains=True).workload().objective == DEFAULT_OBJECTIVE


def test_budgets_may_be_more_than_this_machine_has() -> None:
    assert budget_for(None, CPU) is None
    auto, given = budget_for("auto", CPU), budget_for("900GB", CPU)
    assert auto is not None
    assert auto.total_bytes == CPU.free_bytes
    assert given is not None
    assert given.total_bytes == 900 * 10**9


@pytest.mark.parametrize("name", DEVICES)
def test_every_known_device_has_less_than_its_name_says(name: str) -> None:
    device = find_device(name)
    assert (device.kind, device.name) == ("cuda", name)
    size = name.rpartition("-")[2].removesuffix("GB")
    if size.isdigit():
        assert 0.95 < device.total_bytes / (int(size) * GIB) <= 1.0
    assert device.bf16 == (device.capability >= (8, 0))


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("a100 80gb", "A100-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("Tesla T4", "T4"),
        ("v100_32gb", "V100-32GB"),
    ],
)
def test_spelling_of_a_device_does_not_matter(typed: str, name: str) -> None:
    assert find_device(typed).name == name


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("A100", "did you mean 'A100-40GB' or 'A100-80GB'?"),
        ("RTX4900", "did you mean 'RTX4090'?"),
        ("cuda:7", "there is no such CUDA device here"),
        ("abacus", "known by name: A10, "),
    ],
)
def test_unknown_devices_are_answered_with_known_ones(
    typed: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_table, "detect_devices", lambda: [CPU])
    with pytest.raises(UnknownName) as caught:
        find_device(typed)
    assert said in (caught.value.help or "")


def test_the_document_is_complete_without_and_with_a_budget() -> None:
    here = estimator()
    found = here.predict(config(precision="bf16"))
    document = estimate_document(found, FACTS, CPU, None)
    assert document["budget"] is None
    assert sum(document["parts_gib"].values()) == pytest.approx(
        document["predicted_gib"]["middle"], rel=1e-6
    )
    judged = here.judge(found, budget(100 * GIB))
    beside = estimate_document(found, FACTS, CPU, judged)["budget"]
    assert beside is not None
    assert beside["fits"]
    assert beside["largest_micro_batch"] == BATCH
    assert beside["spare_gib"] == pytest.approx(100 - document["predicted_gib"]["middle"])


def test_numbers_and_names_are_short() -> None:
    assert [count(n) for n in (1_236_000_000, 124_439_808, 4096, 7)] == [
        "1.24 B", "124 M", "4.1 k", "7",
    ]  # fmt: skip
    assert task_name(f"{SHAPES}:CausalLMShapes") == "causal LM"
    assert task_name("text_classification") == "text classification"

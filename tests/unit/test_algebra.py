"""What is derived from a few rehearsals against full rehearsals of the same."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from transformers import AutoConfig

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.workload import Workload
from autotune.memory.algebra import Algebra
from autotune.memory.allocator import replay
from autotune.memory.laws import PhaseLaw, check, fixed_law, with_rows, with_tokens
from autotune.memory.line import Line, NotAlgebraic, lines_of
from autotune.memory.rehearsal import Rehearsal
from autotune.memory.rehearse import rehearse, trace
from autotune.memory.splice import spliced
from autotune.memory.structure import scale_of, structure_of
from autotune.memory.trace import Events, Scale, Trace
from autotune.trial.objective import load_objective
from autotune.trial.spec import TrialSpec
from tests import tiny_models as tiny

POSITIONS = 256
SHAPES = "autotune.objectives.shapes"

ARCHITECTURES: dict[str, tuple[str, dict[str, Value], tuple[str, ...], str]] = {
    "gpt2": ("CausalLMShapes", {}, ("n_layer",), "n_positions"),
    "llama": (
        "CausalLMShapes",
        {"precision": "bf16", "checkpointing": "full"},
        ("num_hidden_layers",),
        "max_position_embeddings",
    ),
    "bert": (
        "TextClassificationShapes",
        {"optimizer.kernel": "foreach"},
        ("num_hidden_layers",),
        "max_position_embeddings",
    ),
    "t5": ("Seq2SeqShapes", {}, ("num_layers", "num_decoder_layers"), ""),
}
"""Objective, configuration, and names of depth and positions in the model's own."""

DEEP = ((6, 4, 64), (7, 3, 128), (6, 6, 96), (8, 9, 64))
FLAT = tuple((2, rows, tokens) for rows in (4, 2, 5, 7) for tokens in (64, 32, 128))
SCALES = [Scale(layers=n, micro_batch=b, sequence_length=s) for n, b, s in DEEP + FLAT]

Make = Callable[..., TrialSpec]


@dataclass
class Here:
    """Rehearses in this process, and counts how often."""

    rehearsed: int = 0
    traced: list[Scale | None] = field(default_factory=list)
    closed: bool = False

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        self.rehearsed += 1
        return rehearse(spec, record=record)

    def trace(self, spec: TrialSpec, scale: Scale | None = None) -> Trace:
        self.traced.append(scale)
        return trace(spec, scale)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """Spare collections, of which each rehearsal makes some, from walking over all of torch."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return the probe of a tiny model of any depth, on batches of any size."""
    root = tmp_path_factory.mktemp("models")

    def made(
        family: str, scale: Scale, config: dict[str, Value] | None = None, pieces: int = 1
    ) -> TrialSpec:
        kind, usual, depths, positions = ARCHITECTURES[family]
        folder = root / f"{family}-{scale.layers}"
        if not folder.exists():
            entries = {**tiny.CONFIGS[family], **dict.fromkeys(depths, scale.layers)}
            if positions:
                entries[positions] = POSITIONS
            AutoConfig.for_model(family, **entries).save_pretrained(folder)
        workload = Workload(
            objective=f"{SHAPES}:{kind}",
            model=str(folder),
            steps=5,
            global_batch=scale.micro_batch * pieces,
            sequence_length=scale.sequence_length,
        )
        chosen = usual if config is None else config
        return TrialSpec(
            number=0,
            config=chosen | ({"accumulation": pieces} if pieces > 1 else {}),
            facts=load_objective(workload.objective)(workload, root / "cache").describe(),
            device=Device(kind="cpu"),
            threads=1,
            limit_bytes=2**34,
            limit_seconds=60,
            cache=str(root / "cache"),
            log=str(root / "log.txt"),
            probe=True,
        )

    return made


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_what_is_derived_is_what_a_full_rehearsal_finds(make: Make, family: str) -> None:
    here = Here()
    algebra = Algebra(here)
    depths: set[bool] = set()
    for scale in SCALES:
        spec = make(family, scale)
        full, found = rehearse(spec), algebra.rehearse(spec)
        assert bool(found.derived) == ((scale.layers > 2) in depths)
        depths.add(scale.layers > 2)
        assert found.peaks == full.peaks
        assert found.anatomy == full.anatomy
        assert (found.phase, found.within, found.operator) == (
            full.phase,
            full.within,
            full.operator,
        )
        assert found.parameters == full.parameters
        assert found.trained_parameters == full.trained_parameters
        assert algebra.refusal(spec) is None
    assert here.rehearsed == len(depths)  # one of each structure; the rest was derived
    assert max(scale.layers for scale in here.traced if scale is not None) == 5


def test_there_are_sixty_points_and_four_architectures() -> None:
    assert len(ARCHITECTURES) >= 4
    assert len(SCALES) * len(ARCHITECTURES) >= 60


def test_streams_of_any_depth_run_as_recorded_ones_do(make: Make) -> None:
    algebra = Algebra(Here())
    for family, pieces in (("llama", 2), ("t5", 1)):
        small, deep = (Scale(layers=n, micro_batch=4, sequence_length=64) for n in (6, 9))
        algebra.rehearse(make(family, small, pieces=pieces))
        spec = make(family, deep, pieces=pieces)
        found, full = algebra.rehearse(spec, record=True), rehearse(spec, record=True)
        assert found.derived
        streams = [[(n, max(0, size)) for n, size in r.events] for r in (found, full)]
        assert replay(streams[0]) == replay(streams[1])
        assert sorted(size for _, size in found.events) == sorted(s for _, s in full.events)


def test_a_whole_trial_is_derived_with_its_evaluation(make: Make) -> None:
    algebra = Algebra(Here())
    scale = Scale(layers=2, micro_batch=4, sequence_length=64)
    whole = replace(make("gpt2", scale, {"sequence_length": 0.5}, pieces=2), probe=False)
    algebra.rehearse(whole)
    other = replace(whole, config={"accumulation": 4, "sequence_length": 0.5})
    found, full = algebra.rehearse(other), rehearse(other)
    assert found.derived
    assert "evaluate" in full.peaks
    assert found.peaks == full.peaks


def test_alternating_blocks_go_in_pairs(make: Make) -> None:
    here = Here()
    algebra = Algebra(here)
    config: dict[str, Value] = {"freeze.layers": 0.5}
    specs = [
        make("llama", Scale(layers=n, micro_batch=2, sequence_length=32), config) for n in (10, 12)
    ]
    algebra.rehearse(specs[0])
    assert algebra.rehearse(specs[1]).peaks == rehearse(specs[1]).peaks
    assert [scale.layers for scale in here.traced if scale is not None] == [4, 6, 8]


def test_a_deep_model_is_derived_at_once(make: Make) -> None:
    here = Here()
    spec = make("gpt2", Scale(layers=25, micro_batch=1, sequence_length=32))
    found = Algebra(here).rehearse(spec)
    assert here.rehearsed == 0
    assert "3, 4, 5 of its 25 blocks" in found.derived
    assert found.peaks == rehearse(spec).peaks


@dataclass
class Lying(Here):
    """Finds a hundredth more than there is."""

    def rehearse(self, spec: TrialSpec, *, record: bool = False) -> Rehearsal:
        found = super().rehearse(spec, record=record)
        return replace(found, peaks={p: size * 101 // 100 for p, size in found.peaks.items()})


def test_a_full_rehearsal_counts_where_the_two_disagree(make: Make) -> None:
    here = Lying()
    algebra = Algebra(here)
    specs = [make("gpt2", Scale(layers=2, micro_batch=b, sequence_length=32)) for b in (2, 3, 4)]
    found = [algebra.rehearse(spec) for spec in specs]
    assert here.rehearsed == len(specs)
    assert not any(rehearsal.derived for rehearsal in found)
    refusal = algebra.refusal(specs[0])
    assert refusal is not None
    assert "were rehearsed" in refusal


def test_structures(make: Make) -> None:
    base = Scale(layers=6, micro_batch=4, sequence_length=64)

    def key(spec: TrialSpec) -> str:
        structure = structure_of(spec)
        assert structure is not None
        return structure.key

    spec = make("gpt2", base, {})
    same = [
        make("gpt2", replace(base, layers=9), {}),
        make("gpt2", replace(base, micro_batch=5), {}),
        make("gpt2", replace(base, sequence_length=96), {}),
    ]
    others = [
        make("gpt2", replace(base, layers=2), {}),
        make("gpt2", replace(base, micro_batch=1), {}),
        make("gpt2", replace(base, sequence_length=72), {}),
        make("gpt2", base, {}, pieces=2),
        make("gpt2", base, {"precision": "bf16"}),
        make("llama", base, {}),
        replace(spec, device=Device(kind="cuda")),
        replace(spec, probe=False),
    ]
    assert {key(other) for other in same} == {key(spec)}
    assert len({key(other) for other in [spec, *others]}) == 1 + len(others)
    assert key(make("gpt2", base, {}, pieces=2)) == key(make("gpt2", base, {}, pieces=4))
    assert scale_of(make("gpt2", base, {}, pieces=4)) == base


def test_sizes_that_depend_on_data_have_no_structure(make: Make) -> None:
    base = Scale(layers=2, micro_batch=4, sequence_length=64)
    assert structure_of(make("bert", base, {"data.by_length": "yes"})) is None
    assert structure_of(make("gpt2", base, {"loss_chunks": 4})) is not None
    assert structure_of(make("gpt2", replace(base, micro_batch=3), {"loss_chunks": 128})) is None


def test_closing_ends_the_tracer() -> None:
    here = Here()
    Algebra(here).close()
    assert here.closed


def test_a_trace_survives_json(make: Make) -> None:
    seen = trace(make("gpt2", Scale(layers=2, micro_batch=2, sequence_length=32)))
    assert Trace.from_json(seen.to_json()) == seen


def program(layers: int, rows: int = 2, tokens: int = 32, odd: int = 0) -> Trace:
    """Activations of two kinds, taken in backward in the other order, and a list of norms."""
    events: list[tuple[int, int, str]] = []
    number = iter(range(1, 1000))
    weights = [(next(number), 100) for _ in range(layers)]
    events += [(n, size, "before") for n, size in weights]
    kept = []
    for layer in range(layers):
        wide, square = next(number), next(number)
        kept.append((wide, square))
        size = rows * tokens * 8 + (odd if layer == 1 else 0)
        events += [(wide, size, "mul"), (square, rows * tokens * tokens, "softmax")]
    events += [(last := next(number), rows * tokens * 50, "logits"), (last, -1, "loss")]
    for wide, square in reversed(kept):
        events += [(square, -1, "back"), (grad := next(number), rows * tokens * 8, "back")]
        events += [(wide, -1, "back"), (grad, -1, "back")]
    events += [(norms := next(number), 4 * layers, "norms"), (norms, -1, "end")]
    sizes: dict[int, int] = {}
    columns: list[tuple[int, int]] = []
    for storage, size, _ in events:
        sizes.setdefault(storage, size)
        columns.append((storage, size if size > 0 else -sizes[storage]))
    causes = sorted({cause for _, _, cause in events})
    return Trace(
        phases={
            "steady": Events(
                storages=tuple(storage for storage, _ in columns),
                bytes=tuple(size for _, size in columns),
                parts=(0,) * len(columns),
                causes=tuple(causes.index(cause) for _, _, cause in events),
            )
        },
        parts=("other",),
        causes=tuple(("forward", cause) for cause in causes),
        unit=1,
        parameters=layers,
        trained_parameters=layers,
    )


def line(layers: int, rows: int = 2, tokens: int = 32, odd: int = 0) -> Line:
    causes = {("forward", cause): number for number, cause in enumerate(CAUSES)}
    return lines_of(program(layers, rows, tokens, odd), causes)["steady"]


CAUSES = ("back", "before", "end", "logits", "loss", "mul", "norms", "softmax")


@pytest.mark.parametrize("layers", [3, 4, 6, 11])
def test_lines_of_any_depth_are_put_together(layers: int) -> None:
    made = spliced(line(3), line(4), line(5))
    real, more = line(layers), layers - 3
    places = made.places(more)
    assert made.line.kinds[places].tolist() == real.kinds.tolist()
    assert (made.line.sizes + more * made.slopes)[places].tolist() == real.sizes.tolist()
    assert made.owners(more) == real.owners.tolist()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ((line(3), line(3), line(3)), "fewer blocks"),
        ((line(3), line(4), line(5, odd=8)), "the same sizes"),
        ((line(3), line(4), line(6)), "not alike"),
    ],
)
def test_blocks_that_differ_are_refused(lines: tuple[Line, Line, Line], said: str) -> None:
    with pytest.raises(NotAlgebraic, match=said):
        spliced(*lines)


def law(*, check_at: tuple[int, int] = (6, 16), odd: int = 0) -> PhaseLaw:
    base = Scale(layers=3, micro_batch=2, sequence_length=32)
    made = spliced(line(3), line(4), line(5))
    found = with_rows(fixed_law(made.line, base), made.line, line(3, 4, 32), 4)
    found = with_tokens(found, made.line, line(3, 2, 64), 64)
    rows, tokens = check_at
    at = Scale(layers=4, micro_batch=rows, sequence_length=tokens)
    check(made, found, line(4, rows, tokens, odd=odd), at, 1)
    return PhaseLaw.of(made, found, 1)


@pytest.mark.parametrize("scale", [(3, 2, 32), (5, 2, 32), (9, 7, 24), (40, 1, 4)])
def test_peaks_at_any_scale(scale: tuple[int, int, int]) -> None:
    real = line(*scale)
    live = (real.signs * real.sizes).cumsum()
    layers, rows, tokens = scale
    found = law().peak(Scale(layers=layers, micro_batch=rows, sequence_length=tokens), layers - 3)
    assert found.bytes == live.max()
    assert found.cause == real.causes[live.argmax()]
    assert sum(found.parts.values()) == found.bytes


def test_sizes_that_follow_another_law_are_refused() -> None:
    with pytest.raises(NotAlgebraic, match="sizes do not follow"):
        law(odd=2000)


def test_stacks_that_differ_in_depth_stay_as_deep_as_they_are(make: Make, tmp_path: Path) -> None:
    spec = make("t5", Scale(layers=6, micro_batch=8, sequence_length=32))
    workload = replace(spec.facts.workload, model=str(tmp_path / "uneven"))
    assert spec.facts.workload.model is not None
    AutoConfig.from_pretrained(spec.facts.workload.model, num_decoder_layers=2).save_pretrained(
        tmp_path / "uneven"
    )
    facts = load_objective(workload.objective)(workload, tmp_path).describe()
    here = Here()
    algebra = Algebra(here)
    found = []
    for pieces in (2, 4):
        changed = replace(spec, facts=facts, cache=str(tmp_path), config={"accumulation": pieces})
        found.append((algebra.rehearse(changed).peaks, rehearse(changed).peaks))
    assert here.rehearsed == 1
    assert all(derived == full for derived, full in found)

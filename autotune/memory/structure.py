"""Which trials have traces that differ in size only: the structure of a trial, and its scale.

Two trials of one structure do the same operators in the same order, on tensors of other sizes.
Everything that decides the order is in `structure_of`; what decides sizes is the `Scale`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

from autotune.core.config import Config
from autotune.core.knob import run_stage
from autotune.knobs import BUILTIN
from autotune.knobs.accumulation import ACCUMULATION
from autotune.knobs.stages import DATA, STEP, DataPlan, StepPlan
from autotune.memory.trace import Scale
from autotune.trial.spec import TrialSpec

LEAST_BLOCKS = 3
"""Blocks of the shallowest trace: a first, a last, and one between them that others are like."""

TOKEN_STEP = 32
"""Kernels round sequence lengths up to multiples of at most this; lengths that leave another
remainder are another structure."""

_SHAPES = "autotune.objectives.shapes:"
_STRETCHED = ("causal_lm", "text_classification")
"""Shipped objectives whose batches have as many columns as there are tokens in a sequence."""

_SCALING = frozenset({"accumulation", "global_batch", "sequence_length"})
"""Knobs that change the scale, and nothing else that matters for memory."""

_FREE = ("model", "seed", "learning_rate", "global_batch", "sequence_length")
_DEPTHS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"),
    *("encoder_layers", "decoder_layers"),
)
_NAMES = ("_name_or_path", "transformers_version")
_SHARES = ("freeze.layers", "prune.layers")
_WINDOWS = ("sliding_window", "attention_window", "original_max_position_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """What decides the order of a trial's events, and what may vary in it.

    Attributes:
        key: Names it.
        stride: Blocks by which depths of the structure differ: alternating ones go in pairs.
        deep: Whether it has blocks to spare, so that fewer can be traced.
        widens: Whether the micro-batch may vary.
        stretches: Whether the sequence length may vary.
        windows: Sequence lengths beyond which attention is another one.
    """

    key: str
    stride: int
    deep: bool
    widens: bool
    stretches: bool
    windows: tuple[int, ...]

    def shallow(self, layers: int) -> int:
        """Return the blocks of the shallowest trace, for a model of so many."""
        least = max(LEAST_BLOCKS, 2 * self.stride if self.stride > 1 else 0)
        return least + (layers - least) % self.stride

    def further_lengths(self, length: int) -> tuple[int, int]:
        """Return two other sequence lengths that have the same order, shorter ones if possible."""
        side = _sides(self.windows, length)
        steps = (-(length // 2 // TOKEN_STEP), -(length // 4 // TOKEN_STEP), -1, 1, 2, 3)
        lengths = dict.fromkeys(
            length + TOKEN_STEP * step
            for step in steps
            if step and length + TOKEN_STEP * step >= min(length, 8)
        )
        alike = [other for other in lengths if _sides(self.windows, other) == side]
        return alike[0], alike[1]


def scale_of(spec: TrialSpec) -> Scale:
    """Return the size of a trial: what its knobs make of the workload and the model."""
    data, plan = _plans(spec)
    return Scale(
        layers=spec.facts.model.layers,
        micro_batch=-(-data.global_batch // plan.accumulation),
        sequence_length=data.sequence_length,
    )


def structure_of(spec: TrialSpec) -> Structure | None:
    """Return the structure of a trial; None if sizes depend on its data."""
    data, plan = _plans(spec)
    workload, model = spec.facts.workload, spec.facts.model
    scale = scale_of(spec)
    length, chunks = scale.sequence_length, int(spec.config.get("loss_chunks", 1))
    if data.by_length or scale.micro_batch * length % chunks:
        return None
    shape = _shape_of(workload.model)
    stride = _stride(spec.config)
    shapes_alone = workload.objective.startswith(_SHAPES)
    stretches = shapes_alone or workload.objective in _STRETCHED
    deepest = max(LEAST_BLOCKS, 2 * stride) + 2 * stride
    # ZeRO-1 deals whole parameters out to ranks: of a few blocks one rank may have none.
    dealt = spec.config.get("layout.data") == "zero1"
    deep = shape is not None and shape.even and model.layers > deepest and not dealt
    fixed: dict[str, Any] = {n: v for n, v in asdict(workload).items() if n not in _FREE}
    if spec.probe:
        del fixed["eval_examples"]
    else:
        fixed["evaluated"] = [workload.global_batch, workload.sequence_length]
    described = {
        "config": {n: v for n, v in spec.config.items() if n not in _SCALING},
        "workload": fixed,
        "model": shape.text if shape is not None else [workload.model, asdict(model)],
        "pretrained": model.pretrained,
        "data": "" if shapes_alone else spec.facts.data_fingerprint,
        "device": [spec.device.kind, spec.device.capability, spec.probe],
        "pieces": min(plan.accumulation, 2),
        "steps": min(2, workload.steps * workload.global_batch // data.global_batch),
        "layers": ["deep", model.layers % stride] if deep else model.layers,
        "single": scale.micro_batch == 1,
        "length": length % TOKEN_STEP if stretches and length > 1 else length,
        "sides": _sides(shape.windows if shape is not None else (), length),
    }
    return Structure(
        key=_digest(described),
        stride=stride,
        deep=deep,
        widens=scale.micro_batch > 1,
        stretches=stretches and length > 1,
        windows=shape.windows if shape is not None else (),
    )


def _plans(spec: TrialSpec) -> tuple[DataPlan, StepPlan]:
    workload = spec.facts.workload
    data = DataPlan(sequence_length=workload.sequence_length, global_batch=workload.global_batch)
    config = Config(spec.config, BUILTIN)
    return (
        run_stage(DATA, data, BUILTIN, config),
        run_stage(STEP, StepPlan(), (ACCUMULATION,), config),
    )


def _stride(config: Mapping[str, Any]) -> int:
    """Return how many blocks at a time a configuration treats alike."""
    shares = [Fraction(str(config.get(name, 0))).denominator for name in _SHARES]
    return math.lcm(2 if config.get("checkpointing") == "every_other" else 1, *shares)


@dataclass(frozen=True, slots=True)
class _Shape:
    """What a model's configuration says.

    Attributes:
        text: All of it, but for the depth.
        even: Whether there is one depth, and not one of an encoder and another of a decoder; if
            not, the text has both.
        windows: See `Structure.windows`.
    """

    text: str
    even: bool
    windows: tuple[int, ...]


def _shape_of(model: str | None) -> _Shape | None:
    """Return what the configuration in a model's folder says; None if there is none."""
    if model is None:
        return None
    path = Path(model).expanduser() / "config.json"
    try:
        return _read_shape(str(path), path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=64)
def _read_shape(path: str, changed: int) -> _Shape:
    del changed  # only tells files apart
    entries = json.loads(Path(path).read_text(encoding="utf-8"))
    depths = {entries[name] for name in _DEPTHS if isinstance(entries.get(name), int)}
    left_out = {*_NAMES, *(_DEPTHS if len(depths) == 1 else ())}
    kept = {
        name: entry
        for name, entry in entries.items()
        if name not in left_out and not (isinstance(entry, list) and len(entry) in depths)
    }
    windows = tuple(entries[n] for n in _WINDOWS if type(entries.get(n)) is int)
    return _Shape(json.dumps(kept, sort_keys=True), len(depths) == 1, windows)


def _sides(windows: tuple[int, ...], length: int) -> list[bool]:
    return [length > window for window in windows]


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

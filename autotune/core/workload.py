"""What is trained: the objective, its model and data, and how long. The same for every trial.

`Metric` says what is searched for; `Workload` is what the user chose; `WorkloadFacts` is what the
objective found when it looked at model and data before the first trial. The `Objective` protocol
itself speaks of tensors and stands in `trial/objective.py`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from autotune.core.context import ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A score of a trained model.

    Attributes:
        name: Column and axis label: `"accuracy"`.
        maximize: Whether more is better.
        digits: Digits after the point when shown.
    """

    name: str
    maximize: bool
    digits: int = 3

    def better(self, a: float, b: float) -> bool:
        """Whether `a` is strictly better than `b`."""
        return a > b if self.maximize else a < b

    def loss(self, value: float) -> float:
        """Return the value as something to minimise."""
        return -value if self.maximize else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What the user asked to train. Zero means the objective's own default.

    Attributes:
        objective: Name of the objective.
        model: A folder or hub name; None for the objective's own.
        data: A file or folder; None for the objective's own.
        text_column: Column of the text, None for the objective's own.
        label_column: Column of the label, None for the objective's own.
        trust_remote_code: Whether code that comes with a model may run.
        steps: Optimizer steps of a full training.
        global_batch: Sequences per optimizer step.
        sequence_length: Tokens per sequence.
        eval_examples: Sequences to evaluate on, at most.
        learning_rate: Of AdamW; other optimizers take a fixed multiple of it.
        seed: Of initialisation, data order and dropout.
        teacher: A folder or hub name of the model that distillation learns from; None for the
            trained model itself, before it is pruned or quantised.
        purpose: Whose memory is minimised and held against the budget: `"training"`, or
            `"inference"` for that of the trained model in evaluation.
    """

    objective: str
    model: str | None = None
    data: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    trust_remote_code: bool = False
    steps: int = 0
    global_batch: int = 0
    sequence_length: int = 0
    eval_examples: int = 0
    learning_rate: float = 0.0
    seed: int = 0
    teacher: str | None = None
    purpose: str = "training"

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name this workload."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadFacts:
    """What an objective found in its model and data.

    Attributes:
        workload: The workload with the objective's defaults filled in: no zeros are left.
        model: Shape of the model.
        data: How screens call the data, with its size.
        data_fingerprint: Digest of the prepared data.
        metrics: The metric that is searched for, then others that are recorded.
        note: A sentence that the user should read, or empty.
        features: What of a data or evaluation plan the objective carries out; see `Context`.
    """

    workload: Workload
    model: ModelFacts
    data: str
    data_fingerprint: str
    metrics: tuple[Metric, ...]
    note: str = ""
    features: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """The metric that is searched for."""
        return self.metrics[0]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WorkloadFacts:
        """Rebuild the facts from the JSON object of `to_json`."""
        return cls(
            workload=Workload(**data["workload"]),
            model=ModelFacts(**data["model"]),
            data=data["data"],
            data_fingerprint=data["data_fingerprint"],
            metrics=tuple(Metric(**metric) for metric in data["metrics"]),
            note=data.get("note", ""),
            features=tuple(data.get("features", ())),
        )


_WHERE_ASKED_FOR = frozenset({"until", "warm_start", "repeats", "rungs"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything that a run depends on, frozen, hashed and stored with its results.

    Attributes:
        name: Name of the run and of its folder.
        facts: Workload, model and data.
        space: Name of the search space.
        space_source: The space file as it was, so that a resumed run does not depend on the file.
        overrides: `--set` values that narrow the space further.
        budget_bytes: The budget as typed.
        headroom: Share of it that is kept free.
        sampler: Name of the sampler.
        seed: Of the search.
        trials: Most trials to run.
        time_limit: Most seconds for the whole run, None for no limit.
        trial_limit: Most seconds for one trial.
        jobs: Trials side by side.
        threads: CPU threads per trial.
        device: The device, as `Device.to_json`.
        devices: Devices of this kind that one trial may use.
        runner: Name of the runner.
        versions: Library versions by name, Python's included.
        until: `"stable"` if the search ends when proposals promise next to nothing; else empty.
        warm_start: The run that the search learned from first; else empty.
        rungs: Where trials pause, such as `"1/9,1/3"`; empty if they train to their end at once.
        repeats: `"auto"`, or how many further seeds trials near the front get at the end; else
            empty.
    """

    name: str
    facts: WorkloadFacts
    space: str
    space_source: str
    overrides: Mapping[str, str] = field(default_factory=dict)
    budget_bytes: int
    headroom: float
    sampler: str
    seed: int
    trials: int
    time_limit: float | None
    trial_limit: float
    jobs: int
    threads: int
    device: Mapping[str, Any]
    devices: int = 1
    runner: str = "local"
    versions: Mapping[str, str] = field(default_factory=dict)
    until: str = ""
    warm_start: str = ""
    rungs: str = ""
    repeats: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object.

        What was not asked for is left out where earlier versions did not know of it, so that the
        hash of a run stays what it was.
        """
        found = asdict(self)
        return {n: value for n, value in found.items() if value or n not in _WHERE_ASKED_FOR}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RunSpec:
        """Rebuild the spec from the JSON object of `to_json`."""
        return cls(**{**data, "facts": WorkloadFacts.from_json(data["facts"])})

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that name this specification."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

"""A training that pauses and goes on is the training that never stopped, whatever the knobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from autotune.core.domains import Value
from autotune.core.outcome import Completed, Outcome, Paused
from autotune.core.parts import FEWEST_STEPS, continued
from autotune.runners.devices import cpu_device
from autotune.trial.lifecycle import run_trial
from autotune.trial.measure import CpuMeter
from autotune.trial.progress import Progress
from autotune.trial.spec import TrialSpec
from tests.exports import LIMIT, Workbench

STEPS = 3 * FEWEST_STEPS
PARTS = (1 / 3, 2 / 3, 1.0)

KNOBS: dict[str, dict[str, Value]] = {
    "baseline": {},
    "accumulation": {"accumulation": 4},
    "adapters on packed weights": {"lora.rank": 4, "weight_bits": 4},
    "8-bit optimizer": {"optimizer.bits": 8},
    "update in backward": {"optimizer.in_backward": "yes", "optimizer": "lion"},
    "states on the host": {"optimizer.offload": "yes"},
    "projected gradients": {"optimizer": "galore"},
    "bf16": {"precision": "bf16"},
    "scaled losses": {"precision": "fp16", "gradients": "weights"},
    "gradual pruning": {"prune.schedule": "gradual", "prune.ffn": 0.5},
    "gradual masks": {"prune.schedule": "gradual", "prune.unstructured": 0.5},
    "gradual blocks": {"prune.schedule": "gradual", "prune.layers": 0.5},
    "trained rounded": {"qat.bits": 4},
    "distilled": {"distill": "logits", "prune.ffn": 0.5},
    "smaller batch": {"global_batch": 0.5},
}


@dataclass(frozen=True)
class Trainings:
    """Trials of one tiny model, whole and in parts."""

    bench: Workbench
    folder: Path

    def part(
        self, config: Mapping[str, Value], until: float = 1.0, checkpoint: str = ""
    ) -> tuple[Outcome, list[float]]:
        """Run one part as a process of its own would, and return the loss of each step too."""
        losses: list[float] = []

        def report(kind: str, data: dict[str, object]) -> None:
            if kind == "step":
                losses.append(float(str(data["loss"])))

        spec = TrialSpec(
            number=0, config=dict(config), facts=self.bench.facts, device=cpu_device(), threads=1,
            limit_bytes=LIMIT, limit_seconds=60, cache=str(self.bench.cache), log="",
            until=until, checkpoint=checkpoint,
        )  # fmt: skip
        torch.manual_seed(self.bench.facts.workload.seed)
        return run_trial(spec, Progress(meter=CpuMeter(), report=report)), losses

    def in_parts(self, config: Mapping[str, Value]) -> tuple[Outcome, list[float]]:
        """Run a trial that pauses at each of `PARTS`."""
        path = self.folder / f"{len(list(self.folder.iterdir()))}.pt"
        outcome: Outcome | None = None
        curve: list[float] = []
        for until in PARTS:
            after, losses = self.part(config, until, str(path))
            curve += losses
            outcome = after if outcome is None else continued(paused(outcome), after)
        assert outcome is not None
        return outcome, curve


def paused(outcome: Outcome) -> Paused:
    assert isinstance(outcome, Paused), outcome
    return outcome


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    folder = tmp_path_factory.mktemp("pausing")
    bench = Workbench.of("text_classification", folder, steps=STEPS, eval_examples=12)
    (folder / "checkpoints").mkdir()
    return Trainings(bench, folder / "checkpoints")


@pytest.mark.parametrize("name", KNOBS)
def test_parts_make_the_whole(name: str, trainings: Trainings) -> None:
    config = KNOBS[name]
    whole, curve = trainings.part(config)
    together, pieces = trainings.in_parts(config)
    assert isinstance(whole, Completed)
    assert isinstance(together, Completed)
    assert len(curve) == STEPS / float(config.get("global_batch", 1.0))
    assert pieces == curve
    for metric, score in whole.scores.items():
        assert together.scores[metric].value == pytest.approx(score.value, rel=1e-6), metric
    assert together.measurement.steps == whole.measurement.steps
    assert together.measurement.anatomy == whole.measurement.anatomy
    assert together.measurement.peak_bytes == pytest.approx(whole.measurement.peak_bytes, rel=0.02)
    assert [rung.share for rung in together.rungs] == list(PARTS[:-1])
    seen = [rung.seconds for rung in together.rungs]
    assert seen == sorted(seen)


def test_a_checkpoint_holds_what_trains(trainings: Trainings) -> None:
    full, adapters = trainings.folder / "full.pt", trainings.folder / "adapters.pt"
    trainings.part({}, 1 / 3, str(full))
    trainings.part({"lora.rank": 4}, 1 / 3, str(adapters))
    assert adapters.stat().st_size < full.stat().st_size / 2


def test_a_finished_rung_is_only_evaluated_again(trainings: Trainings) -> None:
    path = str(trainings.folder / "again.pt")
    first, losses = trainings.part({}, 1 / 3, path)
    second, none = trainings.part({}, 1 / 3, path)
    assert len(losses) == FEWEST_STEPS
    assert none == []
    assert paused(second).rung.scores == paused(first).rung.scores


def test_a_checkpoint_of_another_model_is_refused(trainings: Trainings) -> None:
    from autotune.core.errors import ModelError

    path = str(trainings.folder / "other.pt")
    trainings.part({}, 1 / 3, path)
    with pytest.raises(ModelError, match="built anew does not have"):
        trainings.part({"prune.ffn": 0.5}, 2 / 3, path)


def test_peaks_are_known_at_the_first_rung(trainings: Trainings) -> None:
    first, _ = trainings.part({}, 1 / 3, str(trainings.folder / "peaks.pt"))
    whole, _ = trainings.part({})
    assert first.measurement.peak_bytes == whole.measurement.peak_bytes
    assert replace(first.measurement, step_seconds=0.0).parameters == whole.measurement.parameters

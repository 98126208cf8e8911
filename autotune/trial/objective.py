"""What an objective owes a trial: data, a model, a loss, scores. The plug-in point for tasks.

An objective is a class in a module of `objectives/` (or of any package, by the entry point group
`autotune.objectives`). It is made from the user's `Workload` and a folder for its cache. `describe`
is called once per run, before the first trial, and is where everything that can be wrong with model
and data is said; the other methods are called in every trial, in the trial's own process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from autotune.core.outcome import Score
from autotune.core.registry import Registry
from autotune.core.workload import Workload, WorkloadFacts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from autotune.knobs.stages import DataPlan, EvalPlan, LoadPlan, StepPlan

Batch: TypeAlias = "Mapping[str, Tensor]"
"""Tensors by name; the first axis of each is the sequence, so that a batch can be split."""


class Objective(Protocol):
    """A task: how to get data and a model, what to minimise, what to score."""

    def __init__(self, workload: Workload, cache: Path) -> None:
        """Take note of the request; load nothing yet.

        Args:
            workload: What the user asked for; zeros stand for the objective's defaults.
            cache: A folder of the run where prepared data may be kept. All trials share it.
        """

    def describe(self) -> WorkloadFacts:
        """Look at model and data, prepare the data into the cache, and say what was found.

        Raises:
            DataError: If the data is missing, empty, broken, or has other columns.
            ModelError: If the model cannot be loaded.
        """

    def train_batches(self, plan: DataPlan, seed: int) -> Iterator[Batch]:
        """Yield global batches without end, in an order that the seed decides.

        Every tensor is on the CPU and has `plan.global_batch` as its first axis. The first batches
        must be as large as any later one, since peaks are measured on them.
        """

    def eval_batches(self, plan: EvalPlan, sequence_length: int) -> Sequence[Batch]:
        """Return the evaluation set in batches of at most `plan.batch` sequences, on the CPU."""

    def build(self, plan: LoadPlan, seed: int) -> nn.Module:
        """Return the model on the CPU, in training mode, as transformers would build it."""

    def loss(self, model: nn.Module, batch: Batch, plan: StepPlan) -> Tensor:
        """Return the scalar training loss of a micro-batch: the mean over its sequences or tokens.

        With `plan.loss_chunks` above 1, the logits of all tokens never exist at once.
        """

    def evaluate(
        self, model: nn.Module, batches: Sequence[Batch], plan: EvalPlan
    ) -> Mapping[str, Score]:
        """Return a score for each metric of `describe`, computed without gradients."""


OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective",
    {
        "causal_lm": "autotune.objectives.causal_lm:CausalLM",
        "image_classification": "autotune.objectives.image_classification:ImageClassification",
        "seq2seq": "autotune.objectives.seq2seq:Seq2Seq",
        "speech_recognition": "autotune.objectives.speech_recognition:SpeechRecognition",
        "text_classification": "autotune.objectives.text_classification:TextClassification",
    },
    group="autotune.objectives",
    listing="autotune spaces objectives",
)


def load_objective(name: str) -> type[Objective]:
    """Return the objective class of that name; `causal-lm` and `causal_lm` are the same.

    Args:
        name: A registered name, or `package.module:Class` of one's own.

    Raises:
        UnknownName: If there is none.
        AutotuneError: If its module cannot be imported.
    """
    if ":" in name:
        return OBJECTIVES.import_path(name)
    return OBJECTIVES.load(name.replace("-", "_"))

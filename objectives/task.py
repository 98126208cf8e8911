"""What all objectives share: prepare once, describe, and build from what was prepared.

A task looks at model and data once in a run (`look`), which is slow and where everything that can
be wrong is said. What it finds goes into the run's cache folder under the fingerprint of the
workload; the task of a trial is made with the same workload and finds it there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.core.errors import DataError, ModelError
from autotune.core.workload import Workload, WorkloadFacts

from .cache import Array, Prepared
from .sources import ModelSource
from .teachers import Teacher

DEFAULTS = ("steps", "global_batch", "sequence_length", "eval_examples", "learning_rate")
"""Fields of a workload whose zeros an objective fills in."""


class Task(ABC):
    """An objective over prepared token arrays.

    Args:
        workload: What the user asked for; zeros stand for defaults.
        cache: Folder of the run where prepared data is kept.
    """

    def __init__(self, workload: Workload, cache: Path) -> None:
        self.workload = workload
        self._cache = cache
        self._prepared: Prepared | None = None
        self._held: dict[str, Array] = {}

    @abstractmethod
    def look(self) -> tuple[Prepared, WorkloadFacts]:
        """Look at model and data, and prepare the data.

        Raises:
            DataError: If the data is not as it must be.
            ModelError: If the model is not.
        """

    def describe(self) -> WorkloadFacts:
        """Look at model and data, put the prepared data into the cache, and say what was found.

        Raises:
            DataError: If the data is missing, empty, broken, or has other columns.
            ModelError: If the model cannot be loaded.
        """
        self._prepared, facts = self.look()
        self._held = {}
        self.workload = facts.workload
        self._prepared.save(self._folder)
        return facts

    @property
    def prepared(self) -> Prepared:
        """The prepared data: from the cache, or made now if the cache was cleared."""
        if self._prepared is None:
            self._prepared = Prepared.load(self._folder)
        if self._prepared is None:
            self.describe()
        assert self._prepared is not None
        return self._prepared

    @property
    def source(self) -> ModelSource:
        """Where the model comes from."""
        return ModelSource(**self.prepared.facts["source"])

    @property
    def teacher(self) -> Teacher:
        """The teacher that the user named.

        Raises:
            ModelError: If none was named.
        """
        if self.prepared.facts.get("teacher") is None:
            raise ModelError("no teacher is named", help="name one with --teacher")
        return Teacher.from_json(self.prepared.facts["teacher"])

    def array(self, name: str, *, mapped: bool) -> Array:
        """Return a prepared array.

        Args:
            name: Of the array.
            mapped: Leave it in its file, whose pages the kernel reads and drops as it likes;
                otherwise it is copied into memory, once.
        """
        if mapped:
            return self.prepared.arrays[name]
        if name not in self._held:
            self._held[name] = np.array(self.prepared.arrays[name])
        return self._held[name]

    @property
    def _folder(self) -> Path:
        return self._cache / f"{self.workload.objective}-{self.workload.fingerprint}"


def filled(workload: Workload, defaults: Mapping[str, float], *, most_eval: int) -> Workload:
    """Fill in what the user left open.

    Args:
        workload: Zeros stand for defaults.
        defaults: A value for each of `DEFAULTS`.
        most_eval: Sequences that there are to evaluate on.
    """
    missing: dict[str, Any] = {n: defaults[n] for n in DEFAULTS if not getattr(workload, n)}
    workload = replace(workload, **missing)
    return replace(workload, eval_examples=min(workload.eval_examples, most_eval))


def check_counts(workload: Workload, *, train: int, evaluate: int, unit: str, where: str) -> None:
    """Hold the size of the data against the workload.

    Args:
        workload: With its defaults filled in.
        train: Sequences to train on.
        evaluate: Sequences to evaluate on.
        unit: What they are called.
        where: File or folder of the data.

    Raises:
        DataError: If there is less than one batch to train on, or nothing to evaluate on.
    """
    if train < workload.global_batch:
        raise DataError(
            f"there are {train} {unit} to train on, but one optimizer step takes "
            f"{workload.global_batch}",
            where=where,
            help="bring more data, or set training.global_batch in the space file to less",
        )
    if evaluate < 1:
        raise DataError(
            f"there are no {unit} to evaluate on",
            where=where,
            help="bring more data, or a second file with 'validation' in its name",
        )


def suggested_steps(train: int, global_batch: int) -> int:
    """Return the steps of three passes over the data, within what one trial should take."""
    return min(300, max(20, 3 * train // global_batch))


def check_tokens(arrays: Iterable[Array], vocab: int, source: ModelSource) -> None:
    """Hold token ids against a model's vocabulary.

    Raises:
        ModelError: If the tokenizer makes tokens that the model does not have.
    """
    largest = max(int(array.max()) for array in arrays if len(array))
    if largest >= vocab:
        raise ModelError(
            f"the tokenizer makes token {largest}, but {source.name} has a vocabulary of {vocab}",
            where=source.folder,
            help="use the tokenizer that the model was made with",
        )


def shuffled_places(count: int, batch: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield places of sequences, `batch` at a time, without end.

    Each pass over the data has an order of its own, which only the seed decides; a batch may span
    the end of one pass and the beginning of the next.

    Args:
        count: Number of sequences.
        batch: Places per yield, at most `count`.
        seed: Of the order.
    """
    rng = np.random.default_rng(seed)
    queue = rng.permutation(count)
    while True:
        while len(queue) < batch:
            queue = np.concatenate([queue, rng.permutation(count)])
        yield queue[:batch]
        queue = queue[batch:]

"""What some objectives do not carry out or cannot do with, said when a run is described."""

from __future__ import annotations

from autotune.core.errors import DataError, ModelError
from autotune.core.workload import Workload

from .columns import held_out
from .sources import ModelSource


def refuse_teacher(workload: Workload) -> None:
    """See that no teacher is named.

    Raises:
        ModelError: If one is.
    """
    if workload.teacher is not None:
        raise ModelError(
            f"the objective {workload.objective} has no way to learn from a named teacher",
            help="leave out --teacher: distill has the model learn from itself before pruning",
        )


def check_fixed_length(workload: Workload, length: int, unit: str, source: ModelSource) -> None:
    """See that no other sequence length is asked for than the one that a model's inputs have.

    Args:
        workload: A sequence length of zero asks for none.
        length: The one that there is.
        unit: What is counted, for messages: `"patches of an image"`.
        source: Where the model comes from.

    Raises:
        ModelError: If another one is asked for.
    """
    if workload.sequence_length not in (0, length):
        raise ModelError(
            f"{source.name} reads {length} {unit}, no more and no fewer, but a sequence length of "
            f"{workload.sequence_length} is asked for",
            where=source.folder,
            help="leave training.sequence_length out of the space file",
        )


def held_apart(count: int, unit: str, where: str) -> tuple[list[int], list[int]]:
    """Split places as `columns.held_out` does, into some to train on and some to evaluate on.

    Args:
        count: How many there are.
        unit: What they are called, for messages: `"images"`.
        where: File or folder of the data.

    Raises:
        DataError: If there are too few for both.
    """
    if count < 2:
        raise DataError(
            f"there are too few {unit}: {count}, of which some would have to be for training and "
            "others for evaluation",
            where=where,
            help="bring more data",
        )
    return held_out(count)

"""Which trackers there are, and those that somebody asks for, ready to be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from autotune.core.errors import MissingLibrary, UnknownName
from autotune.core.observer import Observer
from autotune.trackers.base import Tracker, Tracking

LIBRARIES: Mapping[str, str] = {
    "tensorboard": "tensorboardX",
    "mlflow": "mlflow",
    "wandb": "wandb",
}
"""Import name of the library of every tracker; the tracker's own name is that of the extra."""


def with_trackers(
    observers: Sequence[Observer], names: str | Sequence[str]
) -> tuple[Observer, ...]:
    """Put trackers before observers, who hear of a tracker that was switched off.

    Args:
        observers: Who else watches.
        names: Of trackers, such as `"tensorboard,mlflow"`; a name that comes twice counts once.

    Returns:
        All of them.

    Raises:
        UnknownName: If there is no such tracker.
        MissingLibrary: If the library of one is not installed.
        UsageError: If one cannot be used as this machine is set up.
    """
    split = names.split(",") if isinstance(names, str) else names
    wanted = dict.fromkeys(name.strip() for name in split if name.strip())
    for name in wanted:
        if name not in LIBRARIES:
            raise UnknownName.among("tracker", name, LIBRARIES, where="--track")
        if find_spec(LIBRARIES[name]) is None:
            raise MissingLibrary(
                f"{name} needs {LIBRARIES[name]}, which is not installed",
                where="--track",
                help=f"pip install 'autotune-memory[{name}]'",
            )
    return (*(Tracking(name, _make(name), observers) for name in wanted), *observers)


def _make(name: str) -> Tracker:
    if name == "tensorboard":
        from autotune.trackers.tensorboard import TensorBoard

        return TensorBoard()
    if name == "mlflow":
        from autotune.trackers.mlflow import MLflow

        return MLflow()
    from autotune.trackers.wandb import WeightsAndBiases

    return WeightsAndBiases()

"""autotune: search the memory/accuracy trade-off of training neural networks.

    import autotune

    run = autotune.tune(budget="16GB")
    for trial in run.front():
        print(trial.number, trial.config, trial.outcome.measurement.peak_bytes)

Public names are imported when they are first asked for, so that `import autotune` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autotune.core.budget import Budget as Budget
    from autotune.core.knob import Knob as Knob
    from autotune.storage.run import Run as Run
    from autotune.trial.objective import Objective as Objective
    from autotune.tuner import resume as resume
    from autotune.tuner import tune as tune

__version__ = "0.1.0"

_HOMES = {
    "Budget": "autotune.core.budget",
    "Knob": "autotune.core.knob",
    "Objective": "autotune.trial.objective",
    "Run": "autotune.storage.run",
    "resume": "autotune.tuner",
    "tune": "autotune.tuner",
}

__all__ = ["Budget", "Knob", "Objective", "Run", "__version__", "resume", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autotune' has no attribute '{name}'")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value

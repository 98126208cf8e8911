"""The runner's contract: start trials, hand out what they report, end them.

A runner knows nothing of searching. Obligations of every runner, tested in
`tests/contract/test_runners.py`:

- Each submitted trial ends with exactly one `"outcome"` event, whatever happens to it.
- No process of a trial is left when its outcome has been handed out, nor after `close`.
- `submit` returns at once; at most `slots` trials run at a time, so the loop submits no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from autotune.core.context import Device
from autotune.core.domains import Value
from autotune.core.workload import Workload, WorkloadFacts
from autotune.trial.spec import Event, TrialSpec


class Runner(Protocol):
    """Runs trials somewhere."""

    @property
    def slots(self) -> int:
        """Most trials at a time."""

    trains: bool
    """Whether trials really run, so that rehearsing them first can save something."""

    def describe(self, workload: Workload, cache: Path) -> WorkloadFacts:
        """Have the objective look at model and data, and prepare the data into `cache`.

        Raises:
            AutotuneError: What the objective found wrong.
        """

    def submit(self, spec: TrialSpec) -> None:
        """Start a trial."""

    def next(self, timeout: float | None = None) -> Event | None:
        """Wait for the next event of any trial; None after `timeout` seconds without one."""

    def cancel(self, trial: int, reason: str) -> None:
        """End a trial; its outcome is `Stopped` with this reason. Unknown trials are ignored."""

    def now(self) -> float:
        """Return the time in Unix seconds; simulated, if the runner simulates."""

    def close(self) -> None:
        """End every trial and free everything. May be called twice."""


@runtime_checkable
class Elsewhere(Protocol):
    """What a runner says whose trials do not run on the driver's machine."""

    name: str
    """What `RunSpec.runner` calls it."""

    @property
    def devices(self) -> tuple[Device, ...]:
        """The device of each slot, the one with the least memory first."""

    @property
    def threads(self) -> int:
        """CPU threads for each trial."""


@runtime_checkable
class Recording(Protocol):
    """What a runner says that trains nothing, but gives what was recorded."""

    def knows_seed(self, config: Mapping[str, Value], seed: int) -> bool:
        """Whether it was recorded how a configuration ends with a seed."""

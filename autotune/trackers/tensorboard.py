"""TensorBoard: event files in the run's folder, one folder of them for every trial."""

from __future__ import annotations

from pathlib import Path

from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from autotune.core.observer import RunView
from autotune.trackers.base import Trial

FOLDER = "tensorboard"
"""In the run's folder."""


class TensorBoard:
    """Writes the loss by step as it comes, and a row of the page HPARAMS for every trial."""

    def __init__(self) -> None:
        self._folder = Path()
        self._writers: dict[int, SummaryWriter] = {}

    def open(self, run: RunView) -> None:
        """Remember where to write; trials of an earlier part of the run keep their files."""
        self._folder = run.folder / FOLDER

    def began(self, trial: Trial) -> None:
        """Open the trial's event file."""
        self._writer(trial.number)

    def loss(self, number: int, step: int, loss: float) -> None:
        """Write a point of the curve."""
        self._writer(number).add_scalar("loss", loss, step)

    def finished(self, trial: Trial) -> None:
        """Write configuration and results, and close the file."""
        writer = self._writer(trial.number)
        # `add_hparams` would do the same in a folder of its own, as one more run on every page.
        for summary in hparams(dict(trial.params), dict(trial.metrics)):
            writer.file_writer.add_summary(summary)
        for name, value in trial.metrics.items():
            writer.add_scalar(name, value)
        for name, text in {**trial.tags, "differs": trial.label}.items():
            writer.add_text(name, text)
        writer.close()
        del self._writers[trial.number]

    def close(self, status: str) -> None:
        """Close the files of trials that did not end."""
        while self._writers:
            self._writers.popitem()[1].close()

    def _writer(self, number: int) -> SummaryWriter:
        if number not in self._writers:
            self._writers[number] = SummaryWriter(logdir=str(self._folder / f"trial-{number:04}"))
        return self._writers[number]

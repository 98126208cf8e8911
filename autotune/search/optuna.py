"""Proposals by Optuna's samplers: legal, never twice, and the same again after a resume.

The one idea: no state but the records. Before each proposal a study is built from the trials told
so far, in the order of their numbers, with the ones that still run marked as running (the samplers
then keep away from them), and a fresh sampler is seeded from the run's seed and the trial's number.
That costs under a millisecond per record and makes a proposal a function of what was told.

Samplers know no rules and repeat themselves. A draw that is illegal or known is rejected, which the
sampler ignores, and drawn again; after some attempts, the legal configuration is taken that differs
from the last draw in as few knobs as possible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.workload import Metric
from autotune.search.asking import Asking
from autotune.search.encoding import Encoding
from autotune.search.lessons import Lessons
from autotune.search.quiet import quiet_optuna
from autotune.search.samplers import SamplerKind, sampler_kind

_DIRECTIONS = (StudyDirection.MINIMIZE, StudyDirection.MINIMIZE)


class OptunaProposer(Asking):
    """A `Proposer` that asks one of Optuna's samplers.

    Args:
        space: What may be proposed.
        context: What legality is judged by.
        metric: What is searched for, besides low memory.
        sampler: A sampler, or its name among `search/samplers.py: SAMPLERS`.
        seed: Of the run.
        limit_bytes: Memory that a trial may need; used for records that have no limit.

    Attributes:
        note: Empty, unless another sampler was asked for.

    Raises:
        UnknownName: If there is no such sampler.
    """

    def __init__(
        self,
        space: Space,
        context: Context,
        metric: Metric,
        *,
        sampler: str | SamplerKind = "tpe",
        seed: int = 0,
        limit_bytes: int,
    ) -> None:
        super().__init__(space, context, seed)
        self._kind = sampler_kind(sampler) if isinstance(sampler, str) else sampler
        self._encoding = Encoding(space)
        self._lessons = Lessons(self._encoding, metric, limit_bytes, self._kind.reads)
        self._told: dict[int, TrialRecord] = {}
        with quiet_optuna():
            self._sequence = _Sequence(self._encoding, self._kind.make(_seed_of(seed, 0)))

    def _learn(self, record: TrialRecord) -> None:
        self._told[record.number] = record

    def _wishes(self, number: int) -> Iterator[Config]:
        """Yield what the sampler would like, best first."""
        if self._kind.sequence:
            for index in range(2 * len(self._known) + self._kind.attempts):
                yield self._sequence.point(index)
            return
        with quiet_optuna():
            study = self._study(number)
        for _ in range(self._kind.attempts):
            with quiet_optuna():
                trial = study.ask(self._encoding.distributions)
            yield self._encoding.config(trial.params)
            with quiet_optuna():
                study.tell(trial, state=TrialState.FAIL)

    def _study(self, number: int) -> optuna.Study:
        """Return a study of everything that was told, with a sampler for trial `number`."""
        sampler = self._kind.make(_seed_of(self._seed, number))
        study = optuna.create_study(directions=_DIRECTIONS, sampler=sampler)
        study.add_trials(self._lessons.of(self._told[told] for told in sorted(self._told)))
        for running in sorted(self._running):
            params = self._encoding.params(self._running[running])
            if params is not None:
                study.add_trial(
                    create_trial(
                        state=TrialState.RUNNING,
                        params=params,
                        distributions=self._encoding.distributions,
                    )
                )
        return study


class _Sequence:
    """A sampler's points in order, each drawn once and kept, whatever trials show."""

    def __init__(self, encoding: Encoding, sampler: optuna.samplers.BaseSampler) -> None:
        self._encoding = encoding
        self._points: list[Config] = []
        self._study = optuna.create_study(directions=_DIRECTIONS, sampler=sampler)

    def point(self, index: int) -> Config:
        """Return the point at `index`, from 0."""
        while len(self._points) <= index:
            with quiet_optuna():
                trial = self._study.ask(self._encoding.distributions)
                self._study.tell(trial, (0.0, 0.0))
            self._points.append(self._encoding.config(trial.params))
        return self._points[index]


def _seed_of(seed: int, number: int) -> int:
    """Mix seed and number, so that neighbouring runs and trials share no stream."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")

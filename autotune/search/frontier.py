"""The frontier search: proposals that use what is peculiar to memory and accuracy.

General samplers learn memory from trials, knob by knob. Here it is known before a trial, or nearly:
from rehearsals, and from a model of what was measured. Accuracy depends on the lossy knobs alone,
so that one training tells the accuracy of every setting of the exact ones. A proposal maximises the
expected growth of the hypervolume under these two facts:

1. a Gaussian process predicts the loss from the lossy knobs (`surrogate.py`);
2. every trained accuracy is had at the memory of every exact setting that fits (`scene.py`);
3. for some hundred settings of the lossy knobs, the growth that each promises is summed over cells
   of memory inside the budget, in closed form (`improvement.py`); the best are improved by changes
   of a knob or two, and rehearsed where the driver can;
4. the exact knobs are then calculated: with two objectives, the leanest setting.

Trials that run count as if they had ended as expected. A proposal is a function of the seed, the
number of the trial and what was told, so that a resumed run goes on as if it had not stopped.
Where an assumption fails, the search falls back and `note` says so.

References:
    Emmerich et al. 2011 (expected hypervolume improvement); Ginsbourger et al. 2010 (Kriging
    believer); Stamoulis et al. 2018, arXiv:1712.02446 (constraints that are known beforehand).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.workload import Metric
from autotune.search.asking import Asking
from autotune.search.candidates import Legality, spread_out
from autotune.search.features import Features, rows
from autotune.search.findings import Finding, exact_knobs_matter, finding_of, thinned
from autotune.search.memory_model import MemoryModel
from autotune.search.scene import Menu, Rated, Scene
from autotune.search.surrogate import Learner

Array = NDArray[np.float64]
Rehearse = Callable[[Config], int | None]

INITIAL = 10
"""Trials that are spread over memory before a model is believed."""

MOST_SETTINGS = 48
"""Settings of the exact knobs that are considered, at most."""

MOST_LOSSY = 40
"""Lossy knobs beyond which a Gaussian process of a few dozen trainings says nothing."""

FINALISTS = 8
ROUNDS = 3
_DRAWS, _FEW_DRAWS = 400, 96
_MANY = 300
_CHECKS = 80
"""Candidates whose legality is judged in one round, at most."""

_OPTIONS = 4
"""Settings of the exact knobs that are tried for one candidate until a legal one is found."""

_JUDGED = 500
"""Trials from which it is judged whether exact knobs are exact, at most."""

_SAMPLE = 24
"""Configurations by which it is judged which settings of the exact knobs are lean."""

_WORTH = 0.002
"""Share of the hypervolume that a claim must add for it to be verified by a trial."""

_RESERVED = 0.1
"""Share of the trials at the end that verify claims, as long as there are any."""


class FrontierProposer(Asking):
    """A `Proposer` for trade-offs between accuracy, memory and, if asked for, time.

    Args:
        space: What may be proposed.
        context: What legality is judged by.
        metric: What is searched for, besides low memory.
        seed: Of the run.
        limit_bytes: What a trial's footprint may reach.
        timed: Whether the time of a step is to be minimised too.
        trials: How many trials the run will have, 0 if that is open. The last ones verify claims.
        rehearse: Returns the peak bytes of a configuration without training it, None if it cannot.
        rehearsals: Configurations that are rehearsed before the first proposal.

    Attributes:
        note: What the search had to give up, as a sentence; empty if nothing.
    """

    def __init__(
        self,
        space: Space,
        context: Context,
        metric: Metric,
        *,
        seed: int = 0,
        limit_bytes: int,
        timed: bool = False,
        trials: int = 0,
        rehearse: Rehearse | None = None,
        rehearsals: int = 48,
    ) -> None:
        super().__init__(space, context, seed)
        self._metric = metric
        self._limit_bytes = limit_bytes
        self._timed = timed
        self._trials = trials
        self._rehearse = rehearse
        self._rehearsals = rehearsals if rehearse else 0
        self._features = Features(space)
        self._legal = Legality(self._features, space, context)
        self._memory = MemoryModel(self._features, limit_bytes, timed=timed)
        self._learners: dict[bytes, Learner] = {}
        self._told: dict[int, Finding | None] = {}
        self._counted: dict[Config, int | None] = {}
        self._pool: Array | None = None
        self._rehearsed: list[tuple[Array, int]] = []
        self._remaining: float | None = None
        rng = self._rng("menu")
        settings = self._features.menu(self._features.exact, MOST_SETTINGS, rng)
        self._menu = Menu(lossy=self._features.lossy, exact=self._features.exact, settings=settings)

    def remaining(self) -> float | None:
        """Return how much the best proposal was expected to add, as a share of the hypervolume.

        None before a model was asked. The search is about to be done where this stays near 0.
        """
        return self._remaining

    def _wishes(self, number: int) -> Iterator[Config]:
        """Yield what to propose, best first."""
        if not self._features.columns:
            yield self._space.baseline()
            return
        findings = [f for n in sorted(self._told) if (f := self._told[n]) is not None]
        trained = [found for found in findings if found.scored]
        pending = self._pending()
        self._prepare()
        self._memory.learn(thinned(findings), self._rehearsed)
        self._remaining = None
        rng = self._rng(str(number))
        if len(trained) + len(pending) < self._initial or not trained:
            yield from map(self._features.config, self._spread(trained, pending))
            return
        menu = self._menu_for(trained)
        scene = Scene(
            features=self._features,
            legal=self._legal,
            menu=menu,
            memory=self._memory,
            learner=self._learner(menu),
            trained=trained,
            pending=pending,
            timed=self._timed,
        )
        if self._verifies(len(trained)):
            yield from self._claims(scene)
        yield from map(self._features.config, self._best(rng, scene, menu, len(trained)))

    def _learn(self, record: TrialRecord) -> None:
        self._told[record.number] = finding_of(
            record, self._features, self._metric, self._limit_bytes
        )

    @property
    def _initial(self) -> int:
        return min(INITIAL, max(4, self._trials // 3)) if self._trials else INITIAL

    def _prepare(self) -> None:
        """Find legal configurations to start from, and rehearse some: once, from the seed alone."""
        if self._pool is not None:
            return
        self._pool = self._legal.pool(self._rng("pool"))
        chosen = self._rng("rehearsals").permutation(len(self._pool))[: self._rehearsals]
        for row in self._pool[chosen]:
            counted = self._count(row)
            if counted:
                self._rehearsed.append((row, counted))

    def _count(self, row: Array) -> int | None:
        """Return the rehearsed peak of a row; asked for once."""
        config = self._features.config(row)
        if config not in self._counted:
            self._counted[config] = None if self._rehearse is None else self._rehearse(config)
        return self._counted[config]

    def _pending(self) -> Array:
        found = [self._features.codes(self._running[n]) for n in sorted(self._running)]
        return rows([codes for codes in found if codes is not None], len(self._features.columns))

    def _menu_for(self, trained: Sequence[Finding]) -> Menu:
        """Return which knobs decide accuracy: the lossy ones, as long as that holds."""
        lossy = self._features.lossy
        if len(lossy) and not exact_knobs_matter(trained[:_JUDGED], lossy):
            sample = self._pool_rows()[:_SAMPLE]
            return self._menu if self._timed else self._menu.trimmed(self._memory, sample)
        if len(lossy):
            self.note = (
                "configurations that differ in exact knobs alone ended with other accuracies: "
                "every knob is searched for accuracy now"
            )
        nothing = np.empty(0, dtype=np.intp)
        return Menu(lossy=self._features.everything, exact=nothing, settings=np.empty((1, 0)))

    def _learner(self, menu: Menu) -> Learner:
        key = menu.lossy.tobytes()
        if key not in self._learners:
            groups = self._features.groups(menu.lossy)
            self._learners[key] = Learner(np.append(groups, len(menu.lossy)))
        return self._learners[key]

    def _spread(self, trained: Sequence[Finding], pending: Array) -> Iterator[Array]:
        """Yield the next of the first configurations, each from another part of the memory range.

        Their exact knobs are at the leanest setting, or at any if time has to be learned too.
        """
        pool = self._pool_rows()
        if not len(pool):
            return
        peaks = self._memory.peaks.mean(self._menu.expanded(pool)).reshape(len(pool), -1)
        tried = np.vstack([rows([f.codes for f in trained], pool.shape[1]), pending])
        which = self._features.lossy if len(self._features.lossy) else self._features.everything
        order = spread_out(
            self._features.encode(pool, which),
            np.exp(peaks.min(axis=1)),
            known=self._features.encode(tried, which),
            limit=self._memory.peak_limit,
            parts=self._rng("parts").permutation(self._initial),
        )
        any_setting = self._rng(f"settings {len(tried)}")
        for index in order:
            row = pool[index].copy()
            options = np.argsort(peaks[index], kind="stable")
            if self._timed:
                options = any_setting.permutation(options)
            for option in options[:_OPTIONS]:
                row[self._menu.exact] = self._menu.settings[option]
                if self._legal(row) and self._fits(row):
                    yield row
            if self._fits(pool[index]):
                yield pool[index]

    def _fits(self, row: Array) -> bool:
        """Whether nothing that is known of a row says that it is over the budget."""
        counted = self._count(row)
        return counted is None or self._memory.peak_of(counted) <= self._memory.peak_limit

    def _pool_rows(self) -> Array:
        return np.empty((0, len(self._features.columns))) if self._pool is None else self._pool

    def _best(
        self, rng: np.random.Generator, scene: Scene, menu: Menu, count: int
    ) -> Iterator[Array]:
        """Yield the candidates that promise most, best first."""
        draws, rounds = (_DRAWS, ROUNDS) if count <= _MANY else (_FEW_DRAWS, 1)
        codes = self._draws(rng, scene, menu, draws)
        best: list[tuple[float, Array, float]] = []
        for _ in range(1 + rounds):
            best = sorted([*best, *self._legal_ones(scene, menu, codes)], key=lambda c: -c[0])
            best = best[:FINALISTS]
            if not best:
                codes = self._draws(rng, scene, menu, draws)
                continue
            parents = np.repeat(np.stack([row for _, row, _ in best]), 10, axis=0)
            codes = self._features.changed(rng, parents, menu.lossy, 1.5)
        if self._rehearse is not None:
            best = self._rehearsed_ones(scene, best)
        promised = best[0][0] if best else 0.0
        self._remaining = max(0.0, promised) / max(scene.volume, 1e-12)
        for _, row, _ in best:
            yield row

    def _draws(self, rng: np.random.Generator, scene: Scene, menu: Menu, count: int) -> Array:
        """Return candidates from everywhere, and changes of those on the front."""
        pool, leaders = self._pool_rows(), scene.leaders()
        uniform = self._features.draw(rng, count // 4)
        parts = [uniform]
        if len(pool):
            some = pool[rng.integers(len(pool), size=count // 4)]
            parts.append(self._features.changed(rng, some, menu.lossy, 2.0))
        some = leaders[rng.integers(len(leaders), size=count // 2)]
        parts.append(self._features.changed(rng, some, menu.lossy, 2.0))
        return np.vstack(parts)

    def _legal_ones(
        self, scene: Scene, menu: Menu, codes: Array
    ) -> Iterator[tuple[float, Array, float]]:
        """Yield score, codes and peak of the best legal candidates; legality is judged last."""
        rated = scene.rate(codes)
        found = 0
        for index in np.argsort(-rated.score, kind="stable")[:_CHECKS]:
            if rated.score[index] < 0.0 or found == FINALISTS:
                return
            row = self._with_setting(scene, menu, rated, int(index))
            if row is not None:
                found += 1
                yield row

    def _with_setting(
        self, scene: Scene, menu: Menu, rated: Rated, index: int
    ) -> tuple[float, Array, float] | None:
        """Return a candidate with the setting of its exact knobs that suits it best."""
        peaks = rated.peaks[index]
        order = scene.order(rated.codes[index], peaks)
        row = rated.codes[index].copy()
        for option in order[:_OPTIONS]:
            row[menu.exact] = menu.settings[option]
            if self._legal(row) and self._features.config(row) not in self._known:
                return float(rated.score[index]), row, float(peaks[option])
        return None

    def _rehearsed_ones(
        self, scene: Scene, best: list[tuple[float, Array, float]]
    ) -> list[tuple[float, Array, float]]:
        """Return those that fit by their rehearsals, rated anew."""
        found = []
        for score, row, expected in best:
            counted = self._count(row)
            if counted is None:
                found.append((score, row, expected))
                continue
            peak = self._memory.peak_of(counted)
            if peak <= self._memory.peak_limit:
                known = np.array([[peak]])
                seconds = np.exp(self._memory.seconds.mean(row[None]))[:, None]
                gain = scene.gain(row[None], known, seconds if self._timed else None)
                found.append((float(gain[0]), row, peak))
        return sorted(found, key=lambda candidate: -candidate[0])

    def _verifies(self, trained: int) -> bool:
        """Whether this trial is one of those that verify claims.

        Once early, which also shows whether exact knobs are exact, and at the end of the run.
        """
        if not self._trials or trained == self._initial:
            return trained == self._initial
        told = (found for found in self._told.values() if found is None or not found.refused)
        spent = sum(1 for _ in told) + len(self._running)
        reserved = max(1, round(_RESERVED * self._trials))
        return self._trials <= spent + reserved

    def _claims(self, scene: Scene) -> Iterator[Config]:
        gains, codes = scene.unverified()
        for gain, row in zip(gains, codes, strict=True):
            if gain < _WORTH:
                return
            if self._legal(row):
                yield self._features.config(row)

    def _rng(self, purpose: str) -> np.random.Generator:
        """Return a stream of its own for a purpose or a trial."""
        digest = hashlib.sha256(f"{self._seed}/{purpose}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

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
4. the exact knobs are then calculated: with two objectives, the leanest setting; or the fastest
   that fits, where time is short, and what is lean is verified later (`verifying.py`).

Trials that run count as if they had ended as expected. A proposal is a function of the seed, the
number of the trial and what was told, so that a resumed run goes on as if it had not stopped.
Where an assumption fails, the search falls back and `note` says so.

References:
    Emmerich et al. 2011 (expected hypervolume improvement); Ginsbourger et al. 2010 (Kriging
    believer); Stamoulis et al. 2018, arXiv:1712.02446 (constraints that are known beforehand).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.core.config import Config
from autotune.core.context import Context
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.workload import Metric
from autotune.search.asking import Asking
from autotune.search.candidates import Legality, spread_out
from autotune.search.deadline import Deadline
from autotune.search.features import Features, rows
from autotune.search.findings import Finding, Told, exact_knobs_matter, finding_of, thinned
from autotune.search.hunt import Hunt
from autotune.search.learner import Learner
from autotune.search.memory_model import MemoryModel
from autotune.search.pace import Pace
from autotune.search.rehearsals import Rehearsals
from autotune.search.scene import Menu, Scene
from autotune.search.verifying import most_valuable, planned
from autotune.search.warm_start import Earlier

Array = NDArray[np.float64]

INITIAL = 10
"""Trials that are spread over memory before a model is believed."""

MOST_SETTINGS = 48
"""Settings of the exact knobs that are considered, at most."""

MOST_LOSSY = 40
"""Lossy knobs beyond which a Gaussian process of a few dozen trainings says nothing."""

SEEDS = 64
"""Configurations of an earlier run that are candidates as they are, the best ones."""

_KNOWN, _OTHER_MEMORY = 2, 6
"""Trials that are spread over memory after a warm start: none beyond the opening if memory is known
from the same device, else as many as show what decides it here."""

_MOST_TAKEN_OVER = 100
"""Trials of an earlier run whose memory or time is learned from, at most."""

_OPTIONS = 4
"""Settings of the exact knobs that are tried for one of the first configurations."""

_JUDGED = 500
"""Trials from which it is judged whether exact knobs are exact, at most."""

_SAMPLE = 24
"""Configurations by which it is judged which settings of the exact knobs are lean."""

_RESERVED = 0.1
"""Share of the trials at the end that verify claims, as long as there are any."""

_EARLY = 0.15
"""Share of the time that is left that an early verification may take."""

_HURRIED = (
    "time is limited: trials train with the settings of {} that are the fastest within the budget; "
    "lean ones have the same accuracy, and those worth it are run at the end"
)


class FrontierProposer(Asking):
    """A `Proposer` for trade-offs between accuracy, memory and, if asked for, time.

    Args:
        space: What may be proposed.
        context: What legality is judged by.
        metric: What is searched for, besides low memory.
        seed: Of the run.
        limit_bytes: What a trial's footprint may reach.
        timed: Whether the time of a step is to be minimised too.
        deadline: What the run may spend. The last trials verify claims.
        rehearsals: Count the peaks of configurations without training them.
        rehearsed: Configurations that are rehearsed for the memory model, at most.
        earlier: A run that is learned from first.

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
        deadline: Deadline | None = None,
        rehearsals: Rehearsals | None = None,
        rehearsed: int = 48,
        earlier: Earlier | None = None,
    ) -> None:
        super().__init__(space, context, seed)
        self._metric = metric
        self._limit_bytes = limit_bytes
        self._timed = timed
        self._deadline = deadline or Deadline()
        self._rehearsals = rehearsals or Rehearsals()
        self._most_rehearsed = rehearsed
        self._features = Features(space)
        self._legal = Legality(self._features, space, context)
        self._memory = MemoryModel(self._features, limit_bytes, timed=timed)
        self._pace = Pace(self._features)
        self._learners: dict[bytes, Learner] = {}
        self._told = Told()
        self._pool: Array | None = None
        self._earlier = earlier
        self._before = () if earlier is None else self._findings_of(earlier)
        self._order: NDArray[np.intp] = np.empty(0, dtype=np.intp)
        self._remaining: float | None = None
        self._scene: Scene | None = None
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
        findings, trained = self._told.all, self._told.trained
        pending = self._pending()
        pace = self._prepare(findings, pending)
        rng = self._rng(str(number))
        initial = self._deadline.initial(self._most_initial, self._pace.typical)
        if self._seen(trained, pending) < initial or not trained:
            spread = self._spread(trained, pending, initial, pace)
            yield from map(self._features.config, spread)
            return
        menu = self._menu_for(trained, pace)
        scene = Scene(
            features=self._features,
            legal=self._legal,
            menu=menu,
            memory=self._memory,
            learner=self._learner(menu),
            trained=trained,
            pending=pending,
            timed=self._timed,
            earlier=self._before,
            pace=pace,
        )
        self._scene = scene
        for row in self._verifications(scene, trained, pending, initial):
            if self._legal(row):
                yield self._features.config(row)
        hunt = Hunt(
            features=self._features,
            legal=self._legal,
            memory=self._memory,
            rehearsals=self._rehearsals,
            menu=menu,
            pool=self._pool_rows(),
            known=self._known.__contains__,
            seeds=rows([found.codes for found in self._before[:SEEDS]], pending.shape[1]),
            settings=self._menu.settings,
        )
        best = hunt.best(rng, scene, len(trained))
        self._remaining = max(0.0, best[0].promise if best else 0.0) / max(scene.volume, 1e-12)
        for candidate in best:
            yield self._features.config(candidate.row)
        # Where nothing that promises something fits, any that fits teaches more than one that is
        # refused.
        yield from map(self._features.config, self._spread(trained, pending, initial, pace))

    def _seen(self, trained: Sequence[Finding], pending: Array) -> int:
        """Return of how many trials something is known, or will be soon."""
        return len(trained) + len(pending)

    def _learn(self, record: TrialRecord) -> None:
        found = finding_of(record, self._features, self._metric, self._limit_bytes)
        self._told.add(record.number, found)
        if record.outcome is not None and not record.refused:
            self._deadline.told(record.number, record.outcome.seconds, record.started)

    def _prepare(self, findings: Sequence[Finding], pending: Array) -> Pace | None:
        """Learn what memory and time trials take.

        Returns:
            The pace, if time is so short that it decides how candidates are trained.
        """
        self._remaining = None
        if self._pool is None:
            self._pool = self._legal.pool(self._rng("pool"))
            self._order = self._rng("rehearsals").permutation(len(self._pool))
        told = thinned(findings)
        of_memory, of_time = self._taken_over()
        self._pace.learn([*of_time, *told])
        self._rehearsals.begin(self._pace.typical)
        affordable = self._rehearsals.affordable(self._deadline.spent_seconds)
        most = min(self._most_rehearsed, affordable)
        counts = [(row, self._count(row)) for row in self._pool[self._order[:most]]]
        rehearsed = [(row, counted) for row, counted in counts if counted]
        self._memory.learn([*of_memory, *told], rehearsed)
        if self._timed or not self._deadline.timed or not len(self._features.exact):
            return None
        running = float(self._pace.seconds(pending).sum()) if self._pace.typical else 0.0
        return self._pace if self._deadline.allows_two(self._pace.typical, running) else None

    @property
    def _most_initial(self) -> int:
        """How many trials are spread over memory, if there is no end of trials and time."""
        if self._earlier is None:
            return INITIAL
        return max(_KNOWN if self._earlier.memory else _OTHER_MEMORY, INITIAL - len(self._before))

    def _findings_of(self, earlier: Earlier) -> tuple[Finding, ...]:
        """Return what the trials of an earlier run taught, the best losses first."""
        found = [
            finding_of(record, self._features, self._metric, self._limit_bytes)
            for record in earlier.records
        ]
        scored = [each for each in found if each is not None and each.scored]
        return tuple(sorted(scored, key=lambda each: each.loss))

    def _taken_over(self) -> tuple[Sequence[Finding], Sequence[Finding]]:
        """Return of which earlier trials memory and time count as if they were this run's."""
        if self._earlier is None:
            return (), ()
        some = thinned(self._before, _MOST_TAKEN_OVER)
        return some if self._earlier.memory else (), some if self._earlier.time else ()

    def _count(self, row: Array) -> int | None:
        return self._rehearsals.count(self._features.config(row))

    def _pending(self) -> Array:
        found = [self._features.codes(self._running[n]) for n in sorted(self._running)]
        return rows([codes for codes in found if codes is not None], len(self._features.columns))

    def _menu_for(self, trained: Sequence[Finding], pace: Pace | None) -> Menu:
        """Return which knobs decide accuracy: the lossy ones, as long as that holds."""
        lossy = self._features.lossy
        if len(lossy) and not exact_knobs_matter(trained[:_JUDGED], lossy):
            if pace is not None:
                names = [self._features.columns[index].knob.name for index in self._menu.exact]
                self.note = _HURRIED.format(", ".join(names))
            sample = self._pool_rows()[:_SAMPLE]
            return self._menu if self._timed else self._menu.trimmed(self._memory, sample, pace)
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

    def _spread(
        self, trained: Sequence[Finding], pending: Array, initial: int, pace: Pace | None
    ) -> Iterator[Array]:
        """Yield the next of the first configurations, each from another part of the memory range.

        Their exact knobs are at the leanest setting, or at the fastest if time is short, or at any
        if time has to be learned too.
        """
        pool = self._pool_rows()
        if not len(pool):
            return
        whole = self._menu.expanded(pool)
        peaks = self._memory.peaks.mean(whole).reshape(len(pool), -1)
        keys = peaks
        if pace is not None:
            # Beyond the limit, or where none is known to fit, it is memory that counts.
            over = np.maximum(peaks - math.log(self._memory.peak_limit), 0.0)
            keys = np.where(over > 0.0, 1e9 + over, pace.seconds(whole).reshape(len(pool), -1))
        tried = np.vstack([rows([f.codes for f in trained], pool.shape[1]), pending])
        which = self._features.lossy if len(self._features.lossy) else self._features.everything
        order = spread_out(
            self._features.encode(pool, which),
            np.exp(peaks.min(axis=1)),
            known=self._features.encode(tried, which),
            limit=self._memory.peak_limit,
            parts=self._rng("parts").permutation(initial),
        )
        any_setting = self._rng(f"settings {len(tried)}")
        for index in order:
            row = pool[index].copy()
            options = np.argsort(keys[index], kind="stable")
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
        counted = self._rehearsals.peak(self._features.config(row))
        return counted is None or self._memory.peak_of(counted) <= self._memory.peak_limit

    def _pool_rows(self) -> Array:
        return np.empty((0, len(self._features.columns))) if self._pool is None else self._pool

    def _verifications(
        self, scene: Scene, trained: Sequence[Finding], pending: Array, initial: int
    ) -> Array:
        """Return the claims that this trial may verify, `[n, columns]`, best first.

        One early, which also shows whether exact knobs are exact and what they do to memory, and
        all that are worth it at the end of the run.
        """
        nothing, deadline = np.empty((0, pending.shape[1])), self._deadline
        if not scene.hurried:
            reserved = max(1, round(_RESERVED * deadline.trials))
            last = deadline.trials_left(len(self._running)) <= reserved
            return most_valuable(scene).rows if last or len(trained) == initial else nothing
        plan = planned(scene, self._pace)
        each = deadline.between_seconds
        running = float(self._pace.seconds(pending).sum())
        left = deadline.seconds_left(running)
        if left <= plan.seconds + len(plan.rows) * each + self._pace.typical:
            return plan.rows
        if deadline.trials_left(len(self._running)) <= len(plan.rows):
            return plan.rows
        early = most_valuable(scene).rows[:1]
        some = [found.codes for found in trained[:_JUDGED]]
        codes = np.vstack([rows(some, pending.shape[1]), pending])
        settled = len(np.unique(codes[:, self._menu.lossy], axis=0)) < len(codes)
        if settled or not len(early) or self._pace.seconds(early)[0] > _EARLY * left:
            return nothing
        return early

    def _rng(self, purpose: str) -> np.random.Generator:
        """Return a stream of its own for a purpose or a trial."""
        digest = hashlib.sha256(f"{self._seed}/{purpose}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))

"""The hunt for a proposal: candidates from everywhere, the best of them improved step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from autotune.core.config import Config
from autotune.search.candidates import Legality
from autotune.search.features import Features
from autotune.search.memory_model import MemoryModel
from autotune.search.rehearsals import Rehearsals
from autotune.search.scene import ALIKE, Menu, Rated, Scene

Array = NDArray[np.float64]

FINALISTS = 8
ROUNDS = 3
_DRAWS, _FEW_DRAWS = 400, 96
_MANY = 300
_CHECKS = 80
"""Candidates whose legality is judged in one round, at most."""

_OPTIONS = 4
"""Settings of the exact knobs that are tried for one candidate until a legal one is found."""

_SURELY = 3.0
"""Standard deviations below the limit from which on a rehearsal would say nothing new."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A configuration that may be proposed.

    Attributes:
        score: What it is worth: what it promises, by what it costs if time is short.
        promise: Expected growth of the hypervolume.
        row: Its codes, `[columns]`.
        leanest: Codes of the same at the leanest setting of its exact knobs, if that is to be
            claimed; else `row`.
    """

    score: float
    promise: float
    row: Array
    leanest: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunt:
    """What candidates are drawn from and judged by.

    Attributes:
        features: Of the space.
        legal: Judges rows of codes.
        memory: What configurations need.
        rehearsals: What some of them need exactly.
        menu: Which knobs decide accuracy.
        pool: Legal rows from all over the space, `[n, columns]`.
        known: Whether a configuration was tried already.
        seeds: Rows that are candidates as they are, legal or not, `[n, columns]`.
        settings: All settings of the exact knobs, also those that the menu left out.
    """

    features: Features
    legal: Legality
    memory: MemoryModel
    rehearsals: Rehearsals
    menu: Menu
    pool: Array
    known: Callable[[Config], bool]
    seeds: Array
    settings: Array

    def best(self, rng: np.random.Generator, scene: Scene, trained: int) -> list[Candidate]:
        """Return the candidates that are worth most, best first.

        Args:
            rng: Of the draws.
            scene: What is known.
            trained: Number of trainings; the more there are, the fewer candidates suffice.
        """
        draws, rounds = (_DRAWS, ROUNDS) if trained <= _MANY else (_FEW_DRAWS, 1)
        codes = self._draws(rng, scene, draws)
        best: list[Candidate] = []
        for _ in range(1 + rounds):
            best = sorted([*best, *self._legal_ones(scene, codes)], key=lambda c: -c.score)
            best = best[:FINALISTS]
            if not best:
                codes = self._draws(rng, scene, draws)
                continue
            parents = np.repeat(np.stack([candidate.row for candidate in best]), 10, axis=0)
            codes = self.features.changed(rng, parents, self.menu.lossy, 1.5)
        return self._rehearsed(scene, best) if self.rehearsals.left else best

    def _draws(self, rng: np.random.Generator, scene: Scene, count: int) -> Array:
        """Return candidates from everywhere, and changes of those on the front."""
        leaders, which = scene.leaders(), self.menu.lossy
        parts = [self.features.draw(rng, count // 4), self.seeds]
        if len(self.pool):
            some = self.pool[rng.integers(len(self.pool), size=count // 4)]
            parts.append(self.features.changed(rng, some, which, 2.0))
        some = leaders[rng.integers(len(leaders), size=count // 2)]
        parts.append(self.features.changed(rng, some, which, 2.0))
        return np.vstack(parts)

    def _legal_ones(self, scene: Scene, codes: Array) -> Iterator[Candidate]:
        """Yield the best legal candidates; legality is judged last."""
        rated = scene.rate(codes)
        found = 0
        for index in np.argsort(-rated.score, kind="stable")[:_CHECKS]:
            if rated.score[index] < 0.0 or found == FINALISTS:
                return
            candidate = self._with_setting(scene, rated, int(index))
            if candidate is not None:
                found += 1
                yield candidate

    def _with_setting(self, scene: Scene, rated: Rated, index: int) -> Candidate | None:
        """Return a candidate with the setting of its exact knobs that suits it best."""
        peaks, menu = rated.peaks[index], self.menu
        row = rated.codes[index].copy()
        for option in scene.order(row, peaks)[:_OPTIONS]:
            row[menu.exact] = menu.settings[option]
            if self._is_new(row):
                return Candidate(
                    score=float(rated.score[index]),
                    promise=float(rated.promise[index]),
                    row=row,
                    leanest=self._claimed(row, peaks) if scene.hurried else row,
                )
        return None

    def _claimed(self, row: Array, peaks: Array) -> Array:
        """Return a candidate at the leanest of the settings of its exact knobs, if it is legal."""
        leanest = row.copy()
        leanest[self.menu.exact] = self.menu.settings[int(np.argmin(peaks))]
        return leanest if self.legal(leanest) else row

    def _rehearsed(self, scene: Scene, best: list[Candidate]) -> list[Candidate]:
        """Return those that fit by their rehearsals, rated anew.

        What a candidate promises depends on how lean it can be, and whether it fits on the setting
        that it is trained with; of the latter the model knows enough where it is far from the wall.
        """
        found, over = [], []
        for candidate in best:
            peak = self._peak(candidate.leanest)
            if peak is None:
                found.append(candidate)
            elif peak > self.memory.peak_limit or not self._can_train(candidate):
                over.append(candidate)
            else:
                promise = scene.promise(candidate.row, peak)
                worth = promise / scene.costs(candidate.row[None])[0]
                found.append(replace(candidate, score=worth, promise=promise))
        found.sort(key=lambda candidate: -candidate.score)
        if scene.hurried or scene.timed:
            return found
        if found:
            return [self._leaner(found[0]), *found[1:]]
        leaner = (self._leaner(candidate) for candidate in over)
        fitting = (candidate for candidate in leaner if self._may_fit(candidate.row))
        return list(islice(fitting, 1))

    def _leaner(self, candidate: Candidate) -> Candidate:
        """Return the candidate with its exact knobs as lean as changes of one at a time get it.

        The model may not know yet what an exact knob saves here; a rehearsal does.
        """
        row, least = candidate.row, self._peak(candidate.row)
        for at, column in enumerate(self.menu.exact):
            for code in np.unique(self.settings[:, at]):
                other = row.copy()
                other[column] = code
                if np.array_equal(other, row) or not self._is_new(other):
                    continue
                peak = self._peak(other)
                if least is None or peak is None:
                    return replace(candidate, row=row, leanest=row)
                if peak < (1.0 - ALIKE) * least:
                    row, least = other, peak
        return replace(candidate, row=row, leanest=row)

    def _is_new(self, row: Array) -> bool:
        return self.legal(row) and not self.known(self.features.config(row))

    def _can_train(self, candidate: Candidate) -> bool:
        """Whether the setting fits that a candidate is trained with, if it is not the leanest."""
        row = candidate.row
        if np.array_equal(row, candidate.leanest):
            return True
        mean, spread = self.memory.peaks.at(row[None])
        if float(mean[0] + _SURELY * spread[0]) <= math.log(self.memory.peak_limit):
            return True
        return self._may_fit(row)

    def _may_fit(self, row: Array) -> bool:
        peak = self._peak(row)
        return peak is None or peak <= self.memory.peak_limit

    def _peak(self, row: Array) -> float | None:
        counted = self.rehearsals.peak(self.features.config(row))
        return self.memory.peak_of(counted) if counted else None

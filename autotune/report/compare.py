"""Two trials or two runs side by side: what differs, by how much, and whether it can be told.

Scores of two trials have an interval of their difference from their standard errors: per-example
scores are not kept, so that it cannot be narrowed by pairing. Two runs are compared by their picks,
by the hypervolume of their fronts against one reference, and by the configurations that both have
tried, which differ by chance, versions and machines alone.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.core.domains import Value
from autotune.core.knob import Knob
from autotune.core.outcome import Measurement
from autotune.core.pareto import hypervolume, reference_point
from autotune.core.record import TrialRecord
from autotune.core.units import GIB, format_gb
from autotune.core.workload import Metric
from autotune.report.effects import differing
from autotune.report.intervals import mean_error, score_error
from autotune.report.text import signed
from autotune.storage.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """One measured quantity of both sides.

    Attributes:
        name: What it is, with its unit.
        a: Its value on the first side; None if it was not measured.
        b: On the second.
        error: Half width of the 95 % interval of their difference; None if it cannot be told.
        digits: Digits after the point.
    """

    name: str
    a: float | None
    b: float | None
    error: float | None = None
    digits: int = 3

    @property
    def difference(self) -> float | None:
        """The second less the first; None if one is missing."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def told(self) -> bool | None:
        """Whether the difference's interval excludes zero; None without an interval."""
        if self.difference is None or self.error is None:
            return None
        return abs(self.difference) > self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two trials, or two runs, side by side.

    Attributes:
        a: Name of the first.
        b: Name of the second.
        differs: What differs in what they were asked to do: name, first value, second value.
        quantities: What was measured of both.
        notes: What has to be known to read it.
    """

    a: str
    b: str
    differs: tuple[tuple[str, str, str], ...]
    quantities: tuple[Quantity, ...]
    notes: tuple[str, ...]


def compare_trials(
    a: tuple[Run, TrialRecord], b: tuple[Run, TrialRecord], knobs: Sequence[Knob]
) -> Comparison:
    """Set two trials side by side.

    Args:
        a: A trial and its run.
        b: Another one; of the same run or not.
        knobs: Every knob.
    """
    (first, one), (second, other) = a, b
    values, others = one.config.complete(knobs), other.config.complete(knobs)
    differs = [
        (name, _shown(values[name]), _shown(others[name])) for name in differing(one, other, knobs)
    ]
    quantities = [*_scores(first, one, other), *_measured(one, other)]
    notes = _trial_notes(one, other, knobs)
    if first.name != second.name or first.folder != second.folder:
        differs += _spec_differences(first, second)
        notes += _comparable(first, second)
    return Comparison(
        a=f"{first.name}/{one.number}",
        b=f"{second.name}/{other.number}",
        differs=tuple(differs),
        quantities=tuple(quantities),
        notes=tuple(notes),
    )


def compare_runs(a: Run, b: Run, knobs: Sequence[Knob]) -> Comparison:
    """Set two runs side by side.

    Args:
        a: A run.
        b: Another one.
        knobs: Every knob.
    """
    notes = _comparable(a, b)
    quantities: list[Quantity] = []
    if a.metric.name == b.metric.name:
        quantities += _pick_quantities(a, b)
        quantities += _front_quantities(a, b)
        if a.spec.facts.model == b.spec.facts.model:
            notes += _twice(a, b)
    return Comparison(
        a=a.name,
        b=b.name,
        differs=(*_spec_differences(a, b), *_extents(a, b)),
        quantities=tuple(quantities),
        notes=tuple(notes),
    )


def _scores(run: Run, one: TrialRecord, other: TrialRecord) -> list[Quantity]:
    found = []
    for metric in run.spec.facts.metrics:
        a, b = one.score(metric), other.score(metric)
        if a is not None or b is not None:
            found.append(
                Quantity(
                    name=metric.name,
                    a=a.value if a else None,
                    b=b.value if b else None,
                    error=score_error(a, b),
                    digits=metric.digits,
                )
            )
    return found


def _measured(one: TrialRecord, other: TrialRecord) -> list[Quantity]:
    sides = [
        record.outcome.measurement if record.outcome else Measurement() for record in (one, other)
    ]
    seconds = [record.outcome.seconds if record.outcome else 0.0 for record in (one, other)]
    rows: list[tuple[str, list[float], int]] = [
        ("peak GiB", [side.peak_bytes / GIB for side in sides], 3),
        ("footprint GiB", [side.footprint_bytes / GIB for side in sides], 3),
        ("tok/s", [side.throughput for side in sides], 0),
        ("step seconds", [side.step_seconds for side in sides], 3),
        ("trial seconds", seconds, 1),
    ]
    parts = [part for part in sides[0].anatomy if part in sides[1].anatomy]
    rows += [(f"{part} GiB", [side.anatomy[part] / GIB for side in sides], 3) for part in parts]
    return [
        Quantity(name=name, a=a or None, b=b or None, digits=digits)
        for name, (a, b), digits in rows
        if max(a, b) >= 0.5 * 10.0**-digits
    ]


def _trial_notes(one: TrialRecord, other: TrialRecord, knobs: Sequence[Knob]) -> list[str]:
    notes = [
        f"Trial {record.number} has no score ({record.outcome.summary}); its memory is what it had "
        "come to by then."
        for record in (one, other)
        if record.outcome is not None and record.outcome.tag != "completed"
    ]
    scored = not notes
    changed = differing(one, other, knobs)
    if changed and one.config.accuracy_key(knobs) == other.config.accuracy_key(knobs):
        notes.append("They differ in exact knobs only, which promise the same score.")
    elif changed and scored:
        notes.append(
            "Intervals are 95 %, from the two standard errors; both scores are over the same "
            "examples, so that the true interval is somewhat narrower."
        )
    elif not changed:
        notes.append("They are the same configuration: what differs is chance, or the machine.")
    return notes


def _pick_quantities(a: Run, b: Run) -> list[Quantity]:
    metric = a.metric
    roles = (
        ("best score", a.picks().best_accuracy, b.picks().best_accuracy),
        ("knee", a.picks().knee, b.picks().knee),
        ("within 1%", a.picks().cheapest, b.picks().cheapest),
        ("least memory", a.picks().least_memory, b.picks().least_memory),
    )
    found = []
    for role, one, other in roles:
        scores = [record.score(metric) if record else None for record in (one, other)]
        found.append(
            Quantity(
                name=f"{role}: {metric.name}",
                a=scores[0].value if scores[0] else None,
                b=scores[1].value if scores[1] else None,
                error=score_error(*scores),
                digits=metric.digits,
            )
        )
        peaks = [_peak_gib(record) for record in (one, other)]
        found.append(Quantity(name=f"{role}: peak GiB", a=peaks[0], b=peaks[1]))
    return found


def _front_quantities(a: Run, b: Run) -> list[Quantity]:
    sizes = Quantity(name="trials on the front", a=len(a.front()), b=len(b.front()), digits=0)
    counts = [sum(not record.refused for record in run.records) for run in (a, b)]
    found = [Quantity(name="trials", a=counts[0], b=counts[1], digits=0), sizes]
    found.append(Quantity(name="minutes", a=a.elapsed / 60, b=b.elapsed / 60, digits=1))
    volumes = _volumes(a, b, a.metric)
    if volumes is not None:
        found.append(Quantity(name="hypervolume", a=volumes[0], b=volumes[1]))
    return found


def _volumes(a: Run, b: Run, metric: Metric) -> tuple[float, float] | None:
    """Return the hypervolumes of both fronts, as shares of what both together cover."""
    fronts = [[record.point(metric) for record in run.front()] for run in (a, b)]
    reference = reference_point([*a.records, *b.records], metric)
    points = [[point for point in front if point is not None] for front in fronts]
    if reference is None or not points[0] or not points[1]:
        return None
    greatest = 1.05 * max(peak for front in points for _, peak in front)
    bound = (reference[0], min(reference[1], greatest))
    both = hypervolume(points[0] + points[1], bound)
    if both <= 0:
        return None
    return hypervolume(points[0], bound) / both, hypervolume(points[1], bound) / both


def _twice(a: Run, b: Run) -> list[str]:
    """Say how configurations that both runs tried compare."""
    metric = a.metric
    known = {r.config.fingerprint: r for r in a.records if _finite(r, metric)}
    pairs = [
        (known[r.config.fingerprint], r)
        for r in b.records
        if _finite(r, metric) and r.config.fingerprint in known
    ]
    if not pairs:
        return ["No configuration was completed in both runs."]
    scores = [_value(new, metric) - _value(old, metric) for old, new in pairs]
    peaks = [(_peak_gib(new) or 0.0) / (_peak_gib(old) or math.inf) - 1 for old, new in pairs]
    error = mean_error(scores)
    interval = "" if error is None else f" ±{error:.{metric.digits}f}"
    many = len(pairs)
    return [
        f"{many} configuration{'s' * (many > 1)} completed in both: from the first to the second, "
        f"{metric.name} changed by {signed(statistics.fmean(scores), metric.digits)}{interval} and "
        f"the peak by {signed(100 * statistics.fmean(peaks), 1)}% on average."
    ]


def _comparable(a: Run, b: Run) -> list[str]:
    """Return sentences for what makes numbers of two runs incomparable."""
    notes = []
    one, other = a.spec.facts, b.spec.facts
    if a.metric.name != b.metric.name:
        notes.append(f"Their scores cannot be compared: {a.metric.name} is not {b.metric.name}.")
    elif one.data_fingerprint != other.data_fingerprint:
        notes.append("They were scored on different data: read differences of scores with care.")
    if one.model != other.model:
        notes.append("They train different models.")
    if dict(a.spec.device).get("name") != dict(b.spec.device).get("name"):
        notes.append("They ran on different devices: speeds and peaks differ for that alone.")
    return notes


def _spec_differences(a: Run, b: Run) -> list[tuple[str, str, str]]:
    sides = [_spec_facts(run) for run in (a, b)]
    names = list(dict.fromkeys([*sides[0], *sides[1]]))
    rows = [(name, sides[0].get(name, "–"), sides[1].get(name, "–")) for name in names]
    return [row for row in rows if row[1] != row[2]]


def _extents(a: Run, b: Run) -> list[tuple[str, str, str]]:
    """Return what differs in how far two runs were to search."""
    rows = []
    for name, one, other in (
        ("most trials", a.spec.trials, b.spec.trials),
        ("most seconds", a.spec.time_limit, b.spec.time_limit),
        ("until", a.spec.until, b.spec.until),
        ("rungs", a.spec.rungs, b.spec.rungs),
    ):
        if one != other:
            rows.append((name, str(one or "–"), str(other or "–")))
    return rows


def _spec_facts(run: Run) -> dict[str, str]:
    spec = run.spec
    workload = spec.facts.workload.to_json()
    facts = {
        "budget": format_gb(spec.budget_bytes),
        "model": spec.facts.model.name,
        "data": spec.facts.data,
        "space": spec.space,
        "sampler": spec.sampler,
        "search seed": str(spec.seed),
        "device": str(spec.device.get("name", "")),
        "threads": str(spec.threads),
        "jobs": str(spec.jobs),
    }
    facts |= {f"--set {knob}": value for knob, value in spec.overrides.items()}
    facts |= {
        name.replace("_", " "): str(value)
        for name, value in workload.items()
        if name not in ("model", "data")
    }
    return facts | {f"version of {name}": version for name, version in spec.versions.items()}


def _peak_gib(record: TrialRecord | None) -> float | None:
    if record is None or record.outcome is None:
        return None
    return record.outcome.measurement.peak_bytes / GIB or None


def _finite(record: TrialRecord, metric: Metric) -> bool:
    score = record.score(metric)
    return score is not None and math.isfinite(score.value)


def _value(record: TrialRecord, metric: Metric) -> float:
    score = record.score(metric)
    assert score is not None
    return score.value


def _shown(value: Value) -> str:
    return str(value)

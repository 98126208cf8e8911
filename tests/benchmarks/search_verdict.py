"""What the rows of the search benchmark come to, in sentences that are computed from them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.benchmarks.search_runs import COUNTS

OURS = "frontier"
"""How the names of our samplers begin."""

KINDS = ("trained", "expanded")

Curve = dict[int, tuple[float, float]]
"""Mean share and its standard error, by cost in full trainings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one sampler reached on one problem, over seeds.

    Attributes:
        problem: Name of the problem.
        shared: Whether the problem is one on which exact knobs leave the accuracy alone.
        sampler: Name of the sampler.
        seeds: Number of searches.
        trained: Share of the best hypervolume by what was trained.
        expanded: The same with every training expanded over the exact knobs.
        over: Share of the proposals that did not fit the budget.
        ask_seconds: Median CPU seconds of a proposal.
        cpu_seconds: Of all searches together, simulated trainings included.
    """

    problem: str
    shared: bool
    sampler: str
    seeds: int
    trained: Curve
    expanded: Curve
    over: float
    ask_seconds: float
    cpu_seconds: float

    @property
    def ours(self) -> bool:
        """Whether it is a sampler of this project."""
        return self.sampler.startswith(OURS)

    def curve(self, kind: str) -> Curve:
        """Return `trained` or `expanded`."""
        return self.trained if kind == "trained" else self.expanded


def verdict(rows: Sequence[Row]) -> list[str]:
    """Return one sentence for every comparison that the rows allow."""
    found: list[str] = []
    for problem in dict.fromkeys(row.problem for row in rows):
        here = [row for row in rows if row.problem == problem]
        ours, peers = [r for r in here if r.ours], [r for r in here if not r.ours]
        if ours and peers:
            compare = _reached if here[0].shared else _differences
            found += [line for kind in KINDS for line in compare(kind, ours, peers)]
    return found


def _reached(kind: str, ours: Sequence[Row], peers: Sequence[Row]) -> Iterator[str]:
    """Say after how many trainings ours reach what the best peer reaches with all of its own."""
    last = max(max(peer.curve(kind)) for peer in peers)
    best, cost = _best(kind, peers, last)
    level, error = best.curve(kind)[cost]
    yield (
        f"{best.problem}, {kind}: the best peer at up to {last} trainings is {best.sampler}, with "
        f"{level:.3f} ± {error:.3f} after {cost}"
    )
    for row in ours:
        curve = row.curve(kind)
        first = next((n for n in sorted(curve) if curve[n][0] >= level), None)
        if first is None:
            end = max(curve)
            yield f"  {row.sampler} stays below it: {curve[end][0]:.3f} after {end}"
        else:
            yield f"  {row.sampler} reaches that after {first}: {cost / first:.1f} times fewer"


def _differences(kind: str, ours: Sequence[Row], peers: Sequence[Row]) -> Iterator[str]:
    """Say by how much ours are ahead of the best peer at equal cost."""
    for row in ours:
        curve, parts = row.curve(kind), []
        for count in COUNTS:
            known = [peer for peer in peers if count in peer.curve(kind)]
            if count in curve and known:
                best, cost = _best(kind, known, count)
                mean, error = best.curve(kind)[cost]
                more = curve[count][0] - mean
                sure = math.hypot(curve[count][1], error)
                parts.append(f"{more:+.3f} ± {sure:.3f} after {count} ({best.sampler})")
        yield f"{row.problem}, {kind}: {row.sampler} minus the best peer: {', '.join(parts)}"


def _best(kind: str, peers: Sequence[Row], most: int) -> tuple[Row, int]:
    """Return the peer with the greatest share at its greatest cost up to `most`, and that cost."""

    def at(peer: Row) -> int:
        return max(count for count in peer.curve(kind) if count <= most)

    best = max(peers, key=lambda peer: peer.curve(kind)[at(peer)][0])
    return best, at(best)

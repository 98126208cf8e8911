"""One attempt at a trial on a cluster: a part on each node that has some of its ranks.

The part with the first rank opens the meeting of all ranks; the others are started when it has said
where. When a part fails, the others are heard for a moment, since the cause may speak last, and are
then ended. What comes of the attempt is known when every part has ended.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from autotune.core.outcome import Completed, Crashed, Outcome
from autotune.runners.ray_room import Post, Room
from autotune.trial.layouts.group import together
from autotune.trial.spec import Part, TrialSpec

SETTLE_SECONDS = 3.0
"""How long the other parts are heard after the first has failed."""


@dataclass(slots=True, eq=False, kw_only=True)
class Branch:
    """What one node does of an attempt.

    Attributes:
        post: The agent.
        spec: The trial, with the ranks that are there.
        stream: Ray's stream of its events; None until it is started.
        heard: Place in the order of the last event that was taken.
        end: How it ended; None as long as it runs.
        lost: Why its node was given up, if it was.
    """

    post: Post
    spec: TrialSpec
    stream: Any = None
    heard: int = -1
    end: Outcome | None = None
    lost: BaseException | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self.stream is not None and self.end is None and self.lost is None


@dataclass(slots=True, eq=False, kw_only=True)
class Attempt:
    """One attempt at a trial.

    Attributes:
        ticket: Names it; no two attempts of a runner have the same.
        spec: The trial.
        room: Where it runs.
        branches: One for each node, that with the first rank first.
        began: When it was started, by the monotonic clock.
        failed: When a part of it failed; None if none has.
        ending: Whether all parts were told to end.
    """

    ticket: int
    spec: TrialSpec
    room: Room
    branches: Sequence[Branch]
    began: float
    failed: float | None = None
    ending: bool = False

    @classmethod
    def at(cls, room: Room, spec: TrialSpec, ticket: int) -> Attempt:
        """Return an attempt at a trial in a room; nothing is started yet."""
        return cls(
            ticket=ticket,
            spec=spec,
            room=room,
            branches=_branches(room, spec),
            began=time.monotonic(),
        )

    @property
    def over(self) -> bool:
        """Whether nothing of it runs, nor will."""
        waits = any(branch.stream is None for branch in self.branches) and self.failed is None
        return not waits and not any(branch.runs for branch in self.branches)

    @property
    def lost(self) -> Branch | None:
        """The first branch whose node was lost; None if none was."""
        return next((branch for branch in self.branches if branch.lost is not None), None)

    @property
    def overdue(self) -> bool:
        """Whether what still runs has been heard for long enough."""
        return self.failed is not None and time.monotonic() - self.failed >= SETTLE_SECONDS

    def start(self, branch: Branch, token: str) -> None:
        """Start a branch at its agent."""
        branch.stream = branch.post.actor.run.options(num_returns="streaming").remote(
            self.ticket, branch.spec, token
        )

    def gather(self, address: str, token: str) -> None:
        """Start the other branches, which meet the first one at an address."""
        for branch in self.branches[1:]:
            if branch.stream is None and not self.ending:
                assert branch.spec.part is not None
                branch.spec = replace(branch.spec, part=replace(branch.spec.part, address=address))
                self.start(branch, token)

    def end(self, branch: Branch, how: Outcome | BaseException) -> None:
        """Take note of how a branch ended, or why its node was given up."""
        if isinstance(how, BaseException):
            branch.lost = how
        else:
            part = branch.spec.part
            if isinstance(how, Crashed) and part is not None and how.rank < part.first:
                how = replace(how, rank=part.first)  # all of its ranks went at once
            branch.end = how
        if not isinstance(how, Completed) and self.failed is None:
            self.failed = time.monotonic()

    def cancel(self, reason: str) -> None:
        """Have every branch that runs end."""
        self.ending = True
        for branch in self.branches:
            if branch.runs:
                branch.post.actor.cancel.remote(self.ticket, reason)

    @property
    def outcome(self) -> Outcome:
        """How it ended, from the ends of all branches that were started."""
        ends = [branch.end for branch in self.branches if branch.end is not None]
        return ends[0] if len(self.branches) == 1 else together(ends)


def _branches(room: Room, spec: TrialSpec) -> list[Branch]:
    nodes = room.nodes
    if len(nodes) == 1:
        (place, _), *_ = nodes
        return [Branch(post=place.post, spec=replace(spec, device=place.device))]
    found, first = [], 0
    for place, ranks in nodes:
        part = Part(first=first, count=ranks, host=place.post.node.host)
        log = spec.log if first == 0 else f"{spec.log}.rank{first}"
        here = replace(spec, device=place.device, part=part, log=log)
        found.append(Branch(post=place.post, spec=here))
        first += ranks
    return found

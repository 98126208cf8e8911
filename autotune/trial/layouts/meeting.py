"""Where the ranks of a trial meet: in a folder of one machine, or at the first rank's node.

Ranks that share a machine meet in a file. Those on several nodes meet at a store that the first
rank keeps. Its socket is bound before any rank is forked, so that nobody can take the port in
between, and the address is known at once.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from autotune.trial.layouts.seat import Seat
from autotune.trial.spec import TrialSpec


@contextmanager
def meeting(spec: TrialSpec, ranks: int) -> Iterator[list[Seat]]:
    """Prepare a meeting, and yield the seats of the ranks that are here.

    Args:
        spec: The trial; its part says which ranks are here, if others are elsewhere.
        ranks: Of the whole trial.

    Raises:
        OSError: If this machine does not have the address that its part says.
    """
    part = spec.part
    if part is None:
        with tempfile.TemporaryDirectory(prefix="autotune-ranks-") as folder:
            yield [Seat(rank=rank, address=f"file://{folder}/meeting") for rank in range(ranks)]
        return
    here = range(part.first, part.first + part.count)
    if part.address:
        yield [Seat(rank=rank, address=part.address, host=part.host) for rank in here]
        return
    with socket.create_server((part.host, 0)) as server:
        address = f"tcp://{part.host}:{server.getsockname()[1]}"
        opens = {part.first: server.fileno()}
        yield [
            Seat(rank=rank, address=address, host=part.host, listening=opens.get(rank))
            for rank in here
        ]

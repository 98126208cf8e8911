"""Taking a seat: from a layout and a rank's number to the team that trains with the others."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import psutil

from autotune.core.knob import run_stage
from autotune.knobs import BUILTIN
from autotune.knobs.stages import LAYOUT, LayoutPlan
from autotune.trial.layouts.seat import REHEARSED, Seat
from autotune.trial.layouts.team import Team
from autotune.trial.spec import TrialSpec


def join(spec: TrialSpec, seat: Seat | None) -> Team:
    """Return the team of a rank, when all others have come, too.

    Args:
        spec: What is trained, and in which layout.
        seat: Which rank this is; None is only enough for a layout of one.

    Raises:
        ValueError: If there are several ranks and no seat.
        RuntimeError: If the others do not come.
    """
    layout = run_stage(LAYOUT, LayoutPlan(), BUILTIN, spec.config)
    if layout.ranks == 1:
        return Team()
    if seat is None:
        raise ValueError(f"a layout of {layout.ranks} ranks needs a seat for each of them")
    _meet(layout, spec, seat)
    if layout.data == "server":
        from autotune.trial.layouts.server import serve_or_work

        return serve_or_work(layout, spec, seat.rank)
    from autotune.trial.layouts.mesh import MeshTeam

    return MeshTeam(layout, spec, seat.rank)


def _meet(layout: LayoutPlan, spec: TrialSpec, seat: Seat) -> None:
    """Open the process group of all ranks."""
    from torch import distributed

    if seat.address == REHEARSED:
        from torch.testing._internal.distributed.fake_pg import FakeStore

        distributed.init_process_group(
            "fake", store=FakeStore(), rank=seat.rank, world_size=layout.ranks
        )
        return
    if seat.address.startswith("file:"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks of one machine
    elif network := _network_of(seat.host):  # else gloo takes the one that the host's name is of
        os.environ.setdefault("GLOO_SOCKET_IFNAME", network)
    patience = timedelta(seconds=seat.patience)
    where = (
        {"store": _store(layout, seat, patience)} if seat.host else {"init_method": seat.address}
    )
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if spec.device.kind == "cuda" else "gloo",
        rank=seat.rank,
        world_size=layout.ranks,
        timeout=patience,
        **where,
    )


def _store(layout: LayoutPlan, seat: Seat, patience: timedelta) -> Any:
    """Return the store at which ranks of several nodes meet; the first of them keeps it."""
    from torch._C._distributed_c10d import TCPStore  # torch.distributed does not name it

    host, _, port = seat.address.removeprefix("tcp://").rpartition(":")
    keeps = seat.listening is not None
    return TCPStore(
        host,
        int(port),
        layout.ranks,
        is_master=keeps,
        timeout=patience,
        wait_for_workers=False,
        master_listen_fd=seat.listening,
    )


def _network_of(host: str) -> str | None:
    """Return the name of the network interface that has an address; None if none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == host for address in addresses):
            return name
    return None

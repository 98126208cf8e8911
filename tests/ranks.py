"""Several ranks for a test: forked processes that meet in a folder and exchange tensors by gloo.

A rank's work is a function that can be imported, named `"module:function"`, so that a test says in
one line what runs elsewhere. Processes are forked, which takes a fraction of a second where imports
take ten; the process that is forked must have computed with one thread only, as tests do.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

from torch import distributed

from autotune.trial.layouts.seat import Seat
from tests import tiny_models  # has torch compute with one thread

PATIENCE_SECONDS = 60.0

assert tiny_models.torch.get_num_threads() == 1


class RankFailed(AssertionError):
    """A rank raised, or ended without a result; the message has its traceback."""


def run_ranks(
    world: int, function: str, *args: Any, patience: float = PATIENCE_SECONDS
) -> list[Any]:
    """Run a function on every rank at once.

    Args:
        world: Number of ranks.
        function: `"module:function"`; called with the rank's `Seat` and `args`.
        args: What else it is called with.
        patience: Seconds until ranks that are still running are ended.

    Returns:
        What it returned, rank by rank.

    Raises:
        RankFailed: If a rank raises, dies, or takes too long; the others are ended.
    """
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        ranks = []
        for rank in range(world):
            reading, writing = fork.Pipe(duplex=False)
            seat = Seat(rank=rank, address=f"file://{folder}/meeting", patience=patience)
            process = fork.Process(target=_rank, args=(seat, function, args, writing))
            with warnings.catch_warnings():  # Python 3.12 warns of threads, which have nothing open
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            writing.close()
            ranks.append((process, reading))
        try:
            return _results([reading for _, reading in ranks], time.monotonic() + patience)
        finally:
            for process, reading in ranks:
                process.kill()
                process.join()
                reading.close()


def meet(seat: Seat, world: int) -> None:
    """Open the process group of all ranks."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo",
        init_method=seat.address,
        rank=seat.rank,
        world_size=world,
        timeout=timedelta(seconds=seat.patience),
    )


def _rank(seat: Seat, function: str, args: tuple[Any, ...], pipe: Connection) -> None:
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)(seat, *args)
        pipe.send_bytes(pickle.dumps((True, found)))
    except BaseException:  # noqa: BLE001  a rank may raise anything; the test says what
        pipe.send_bytes(pickle.dumps((False, traceback.format_exc())))
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _results(pipes: list[Connection], until: float) -> list[Any]:
    results: dict[Connection, Any] = {}
    while len(results) < len(pipes):
        missing = [pipe for pipe in pipes if pipe not in results]
        ready = wait(missing, max(0.0, until - time.monotonic()))
        if not ready:
            late = ", ".join(str(pipes.index(pipe)) for pipe in missing)
            raise RankFailed(f"no result in time from rank {late}")
        for pipe in ready:
            assert isinstance(pipe, Connection)
            results[pipe] = _result(pipe, pipes.index(pipe))
    return [results[pipe] for pipe in pipes]


def _result(pipe: Connection, rank: int) -> Any:
    try:
        fine, result = pickle.loads(pipe.recv_bytes())
    except EOFError:
        raise RankFailed(f"rank {rank} ended without a result") from None
    if not fine:
        raise RankFailed(f"rank {rank} raised\n{result}")
    return result

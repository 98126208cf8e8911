"""`autotune attach`: follow a run that another process drives."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rich.text import Text

from autotune.cli.options import Common, RunName, Storage
from autotune.cli.watch import INTERRUPTED, finish, watching
from autotune.core.errors import UnreachableDatabase
from autotune.core.observer import Observer, Report, RunView, Silent
from autotune.core.record import TrialRecord
from autotune.core.space import parse_space
from autotune.knobs import BUILTIN
from autotune.report.document import SCHEMA, plain, run_head, trial_document
from autotune.storage.run import Run

POLL_SECONDS = 0.5
"""The database is asked this often for what is new."""


def attach(
    run: RunName = None,
    /,
    *,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> int:
    """Follow a run from another terminal or another machine.

    Shows what `run` shows, from its first trial on, and ends when the run ends. Ctrl-C detaches,
    and the run goes on. With --json, one JSON object per line for each thing that happens.

    Args:
        run: The run; by default the latest.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.

    Returns:
        The exit status, as `run` would have it.
    """
    found = Run.open(run, results=common.results, storage=storage)
    with _watching(found, common) as observers:
        try:
            _follow(found, observers)
        except KeyboardInterrupt:
            words = f"Detached; {found.name} goes on: autotune attach {found.name}"
            common.err.print(Text(words + common.where(storage)))
            return INTERRUPTED
    ended = Run.open(
        found.name if storage else found.folder, results=common.results, storage=storage
    )
    if common.json:
        if ended.status == "interrupted":
            return INTERRUPTED
        return 0 if ended.front() else 1
    return finish(ended, common, storage)


class JsonLines(Silent):
    """Writes one JSON object per line for each thing that happens."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def started(self, run: RunView) -> None:
        """Write what is searched."""
        self._write("run", {"run": run_head(self._run)})

    def trial_started(self, record: TrialRecord) -> None:
        """Write what a trial is."""
        self._write("trial-started", {"trial": trial_document(record, BUILTIN)})

    def event(self, record: TrialRecord, event: Report) -> None:
        """Write what a trial reported."""
        self._write(event.kind, {"number": record.number, "data": event.data})

    def trial_ended(
        self,
        record: TrialRecord,
        joined_front: bool,  # noqa: FBT001  (see `Observer`)
        front: Sequence[TrialRecord],
    ) -> None:
        """Write how a trial ended."""
        document = trial_document(replace(record, on_front=joined_front), BUILTIN)
        numbers = [member.number for member in front]
        self._write("trial-ended", {"trial": document, "front": numbers})

    def note(self, text: str) -> None:
        """Write it."""
        self._write("note", {"text": text})

    def ended(self, status: str) -> None:
        """Write how the run ended."""
        self._write("ended", {"status": status})

    def _write(self, kind: str, data: Mapping[str, object]) -> None:
        line = plain({"schema": SCHEMA, "event": kind, **data})
        sys.stdout.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        sys.stdout.flush()


@contextmanager
def _watching(run: Run, common: Common) -> Iterator[Sequence[Observer]]:
    if common.json:
        yield (JsonLines(run),)
    else:
        with watching(common) as observers:
            yield observers


def _follow(run: Run, observers: Sequence[Observer]) -> None:
    """Tell observers what happens until the run ends."""
    from autotune.storage.follow import Follower
    from autotune.storage.reader import Reader

    # A quiet watcher waits for the end, too.
    observer = observers[0] if observers else Silent()
    with Reader.open_read_only(run.database) as reader:
        follower = Follower(reader, run.name, run.metric)
        observer.started(_view(run, follower.now))
        away = False
        while True:
            try:
                info = follower.tell(observer)
            except UnreachableDatabase as error:
                if not away:
                    observer.note(f"{error.message}; still waiting for it")
                away = True
            else:
                if away:
                    observer.note("the database answers again")
                away = False
                if info.status != "running":
                    observer.ended(info.status)
                    return
            time.sleep(POLL_SECONDS)


def _view(run: Run, clock: object) -> RunView:
    """Return what the run's own driver told its observers; its device need not be here."""
    from autotune.storage.rows import read_device

    assert callable(clock)
    spec = run.spec
    space = parse_space(spec.space_source, spec.space, BUILTIN).narrowed(spec.overrides)
    return RunView(
        spec=spec,
        space=replace(space, name=spec.space),
        legal_count=None,
        folder=run.folder,
        budget=run.budget,
        device=read_device(spec.device),
        metric=run.metric,
        clock=clock,
    )

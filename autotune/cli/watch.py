"""What `run` and `resume` share: who watches, and how the end is told."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.text import Text

from autotune.cli.options import Common
from autotune.cli.replay import DIFFERS, repeat_document, repeat_screen, replay_picks
from autotune.core.errors import AutotuneError
from autotune.core.observer import Observer
from autotune.core.outcome import Crashed
from autotune.core.record import finished
from autotune.knobs import BUILTIN
from autotune.report.document import run_document
from autotune.report.lines import Lines
from autotune.report.live import LiveDisplay
from autotune.report.summary import summary
from autotune.report.text import is_terminal
from autotune.storage.run import Run

INTERRUPTED = 130


@contextmanager
def watching(common: Common) -> Iterator[Sequence[Observer]]:
    """Give the display that fits where narration goes: redrawn in a terminal, else lines."""
    if common.quiet:
        yield ()
    elif common.no_color or not is_terminal(sys.stderr):
        yield (Lines(sys.stderr, verbose=common.verbose),)
    else:
        common.say(Text("Preparing model and data …", style="dim"))
        display = LiveDisplay(common.err)
        try:
            yield (display,)
        finally:
            display.close()


def finish(run: Run, common: Common, storage: str | None, *, verify: bool = False) -> int:
    """Show what a run has come to.

    Args:
        run: The run.
        common: Options of every command.
        storage: URL of its study database, if that is not in its folder.
        verify: Whether the trials worth looking at are run again first.

    Returns:
        The exit status.

    Raises:
        AutotuneError: If all trials crashed alike.
    """
    where = common.where(storage)
    interrupted = run.status == "interrupted"
    if not interrupted:
        check_that_not_all_crashed(run, where)
    screen = summary(run, BUILTIN, width=common.out.width, options=where)
    repeats = replay_picks(run, common) if verify and not interrupted else []
    document = dict(run_document(run, BUILTIN))
    if verify:
        document["replayed"] = [repeat_document(run, repeat) for repeat in repeats]
    common.show(document, screen, *(p for r in repeats for p in (Text(), *repeat_screen(run, r))))
    if interrupted:
        words = f"Interrupted, and nothing is lost: `autotune resume {run.name}{where}` continues."
        common.err.print(Text(words))
        return INTERRUPTED
    if not all(repeat.holds for repeat in repeats):
        return DIFFERS
    return 0 if run.front() else 1


def check_that_not_all_crashed(run: Run, where: str) -> None:
    """Look whether there is nothing in a run but one crash, over and over.

    Raises:
        AutotuneError: If so, with the first traceback.
    """
    ended = finished(run.records)
    crashes = [r.outcome for r in ended if isinstance(r.outcome, Crashed)]
    summaries = {crash.summary for crash in crashes}
    if not ended or len(crashes) < len(ended) or len(summaries) > 1:
        return
    number = ended[0].number
    raise AutotuneError(
        f"all {len(crashes)} trials of {run.name} {crashes[0].summary}",
        where=str(run.log(number)),
        context=crashes[0].traceback.strip().splitlines(),
        help=f"`autotune show {run.name}/{number}{where}` has the end of the log\n"
        "`autotune doctor` checks the machine",
    )

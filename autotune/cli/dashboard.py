"""`autotune dashboard`: Optuna Dashboard on a run."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Annotated
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from cyclopts import Parameter
from rich.text import Text

from autotune.cli.options import Common, Flag, RunName, Storage
from autotune.core.errors import UsageError
from autotune.core.space import parse_space
from autotune.knobs import BUILTIN
from autotune.report.document import SCHEMA
from autotune.storage.run import Run

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from autotune.search.dashboard import Drawing

PINNED = ("tradeoff", "anatomy")
"""Figures of the report that are pinned."""


def dashboard(
    run: RunName = None,
    /,
    *,
    port: Annotated[int, Parameter(metavar="PORT")] = 8080,
    host: Annotated[str, Parameter(metavar="HOST")] = "127.0.0.1",
    open_: Annotated[bool, Parameter(name="--open"), Flag] = False,
    storage: Storage = None,
    common: Common = Common(),  # noqa: B008  (frozen; cyclopts fills in what was typed)
) -> None:
    """Serve Optuna Dashboard on a run, until Ctrl-C.

    The trade-off and where memory goes are pinned to the page of the study, as they were when the
    dashboard was started. Infeasible trials are grey. Whoever reaches the port may change notes.

    Args:
        run: The run; by default the latest.
        port: Where it listens; 0 for any port that is free.
        host: Where it listens; 0.0.0.0 lets other machines in.
        open_: Open it in the browser.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.
    """
    from autotune.search.dashboard import check_installed, complete_study, make_dashboard

    check_installed()
    found = Run.open(run, results=common.results, storage=storage)
    url = storage or f"sqlite:///{found.database}"
    spec = found.spec
    if found.status != "running":  # else its driver writes
        space = parse_space(spec.space_source, spec.space, BUILTIN).narrowed(spec.overrides)
        complete_study(url, found.name, space, found.records, found.metric)
    figures = _figures(found, common.where(storage))
    try:
        application = make_dashboard(url, found.name, figures)
    except KeyError as error:
        raise UsageError(
            f"no trial of {found.name} has ended yet, so there is nothing to show",
            help=f"autotune attach {found.name}{common.where(storage)}",
        ) from error
    with open_server(application, host, port) as server:
        address = f"http://{host}:{server.server_port}"
        document = {"schema": SCHEMA, "url": address, "pinned": list(figures)}
        common.show(document, Text(address, style="bold"))
        sys.stdout.flush()
        common.say(Text("Optuna Dashboard; Ctrl-C ends it.", style="dim"))
        if open_:
            import webbrowser

            webbrowser.open(address)
        serving = threading.Thread(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            serving.join()  # a Ctrl-C in the middle of an answer would be taken for its failure
        except KeyboardInterrupt:
            server.shutdown()
            common.say(Text("Ended."))


def _figures(run: Run, options: str) -> dict[str, Drawing]:
    from autotune.report.cards import make_cards
    from autotune.report.cards.findings import Findings
    from autotune.report.figures import make_figures

    drawn = make_figures(make_cards(Findings.of(run, BUILTIN, options)))
    return {figure.key: figure.drawing for figure in drawn if figure.key in PINNED}


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Do not narrate requests."""


def open_server(application: WSGIApplication, host: str, port: int) -> WSGIServer:
    """Return a server that listens.

    Raises:
        UsageError: If it cannot listen there.
    """
    try:
        return make_server(host, port, application, handler_class=_Quiet)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen at {host}:{port}: {error}", help="autotune dashboard --port 0"
        ) from error

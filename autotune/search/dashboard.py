"""Optuna Dashboard on the study of a run, with figures of ours pinned to its page.

The study is the mirror that `study.py` writes. It marks infeasible trials in both ways that there
are, since optuna-dashboard 0.21 knows the older one alone; so nothing has to be changed in it
here, and `study.best_trials` stays what it is. Pinned figures are attributes of the study, which
are written anew each time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol
from wsgiref.types import WSGIApplication

import optuna

from autotune.core.errors import MissingLibrary
from autotune.core.record import TrialRecord
from autotune.core.space import Space
from autotune.core.workload import Metric
from autotune.search.quiet import quiet_optuna
from autotune.search.study import StudyMirror


class Drawing(Protocol):
    """A figure of plotly."""

    def to_json(self) -> str:
        """Return it as plotly's JSON."""


def check_installed() -> None:
    """Look whether Optuna Dashboard can be imported.

    Raises:
        MissingLibrary: If it is not installed.
    """
    try:
        import optuna_dashboard  # noqa: F401
    except ImportError as error:
        raise MissingLibrary(
            "the dashboard needs optuna-dashboard, which is not installed",
            help="pip install 'autotune-memory[dashboard]'\n"
            "`autotune report` needs nothing more, and shows more",
        ) from error


def complete_study(
    url: str, name: str, space: Space, records: Sequence[TrialRecord], metric: Metric
) -> None:
    """Write what the study of a run lacks: all of it, if trials were recorded without a search.

    Args:
        url: The study database, as SQLAlchemy spells it.
        name: Name of the run and of its study.
        space: The space of the run.
        records: Its trials; nobody else may be writing them.
        metric: What is searched for.
    """
    mirror = StudyMirror(url, name, space)
    try:
        for record in records:
            mirror.tell(record, metric)
    finally:
        mirror.close()


def make_dashboard(url: str, name: str, figures: Mapping[str, Drawing]) -> WSGIApplication:
    """Return the dashboard as a WSGI application, with figures on the page of the study.

    Args:
        url: The study database, as SQLAlchemy spells it.
        name: Name of the study.
        figures: Figures of plotly by an id; one that is pinned already is replaced.

    Raises:
        MissingLibrary: If optuna-dashboard is not installed.
        KeyError: If there is no such study.
    """
    check_installed()
    from optuna_dashboard import save_plotly_graph_object, wsgi

    with quiet_optuna():
        storage = optuna.storages.RDBStorage(url)
        study = optuna.load_study(study_name=name, storage=storage)
        for key, drawing in figures.items():
            save_plotly_graph_object(study, drawing, graph_object_id=key)
        application: WSGIApplication = wsgi(storage)
    return application

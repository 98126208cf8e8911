"""`autotune db`: the version of a study database, and its upgrade."""

from __future__ import annotations

from cyclopts import App
from rich.text import Text

from autotune.cli.options import Common, RunName, Storage
from autotune.core.errors import StorageError
from autotune.report.document import SCHEMA
from autotune.storage.run import find_database

app = App(name="db", help="Show the version of a study database, or upgrade it.")

_COMMON = Common()


@app.command(name="show")
def show(run: RunName = None, /, *, storage: Storage = None, common: Common = _COMMON) -> None:
    """Show which version a study database has, and what is in it. Changes nothing.

    Args:
        run: A run whose database is meant; by default the latest.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.
    """
    from autotune.storage.migrate import HEAD
    from autotune.storage.upkeep import describe

    found = describe(storage or find_database(run, common.results))
    document = {
        "schema": SCHEMA,
        "database": found.where,
        "version": found.version,
        "newest": HEAD,
        "runs": found.runs,
        "trials": found.trials,
    }
    state = "up to date" if found.version == HEAD else f"{HEAD} is the newest: autotune db upgrade"
    common.show(
        document,
        Text(f"{found.where}  version {found.version}, {state}", overflow="fold"),
        Text(f"{found.runs} runs, {found.trials} trials"),
    )


@app.command(name="upgrade")
def upgrade(run: RunName = None, /, *, storage: Storage = None, common: Common = _COMMON) -> None:
    """Bring a study database to this version of autotune, in one transaction.

    A file is upgraded by itself when it is next written; a database on a server is shared, and
    upgraded only by this. An older autotune cannot use it afterwards.

    Args:
        run: A run whose database is meant; by default the latest.
        storage: SQLAlchemy URL of the study database, if it is not in the run's folder.
        common: Options of every command.

    Raises:
        StorageError: If a run is being written into it.
    """
    from autotune.storage.migrate import HEAD
    from autotune.storage.upkeep import describe, upgrade_database

    where = storage or find_database(run, common.results)
    before = describe(where)
    if before.version != HEAD and before.running:
        raise StorageError(
            f"run '{before.running[0]}' is being written into '{before.where}', perhaps by an "
            "older autotune that could not go on after an upgrade",
            help=f"autotune stop {before.running[0]}{common.where(storage)}   then try again",
        )
    upgrade_database(where)
    document = {
        "schema": SCHEMA,
        "database": before.where,
        "before": before.version,
        "version": HEAD,
    }
    done = "was up to date" if before.version == HEAD else f"upgraded from version {before.version}"
    common.show(document, Text(f"{before.where}  version {HEAD}, {done}", overflow="fold"))

"""A PostgreSQL server of the tests' own: in a temporary folder, on a free port of this machine.

It is as real as any, but that it would not survive a power failure: nothing is synced to the disk.
Its accounts have passwords, so that tests can look for them where they must not be.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

PASSWORD = "s3cret-0wner"
OWNER = "owner"
READER, READER_PASSWORD = "analyst", "s3cret-reader"
_BINARIES = Path("/usr/lib/postgresql")
_UNPRIVILEGED = ("postgres", "nobody")
_SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
}


def postgres_binaries() -> Path | None:
    """Return the folder with `initdb` and `pg_ctl`, None if the server is not installed."""
    found = [path.parent for path in sorted(_BINARIES.glob("*/bin/initdb"))]
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path).resolve().parent)
    return found[-1] if found else None


class PostgresServer:
    """A server that is started, stopped and started again.

    Attributes:
        port: On 127.0.0.1.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._numbers = itertools.count()
        self._shared: str | None = None
        # Not below pytest's folder, which only the account that runs the tests may enter.
        self._folder = Path(tempfile.mkdtemp(prefix="autotune-postgres-"))
        self._account = _account()
        if self._account is not None:
            shutil.chown(self._folder, self._account)
        self.port = _free_port()
        self._initialise()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._call("pg_ctl", "start", "-w", "-s", "-D", str(self._data), "-l", str(self._log))

    def stop(self) -> None:
        """End it at once, connections and all, as a crash would."""
        self._call("pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", str(self._data))

    def close(self) -> None:
        """End it and remove its folder."""
        if self.runs:
            self.stop()
        shutil.rmtree(self._folder)

    @property
    def runs(self) -> bool:
        """Whether it has been started."""
        return (self._data / "postmaster.pid").exists()

    def url(self, database: str, user: str = OWNER, password: str = PASSWORD) -> str:
        """Return the SQLAlchemy URL of one of its databases."""
        return f"postgresql+psycopg://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Create an empty database, and return its URL."""
        name = f"study{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}", f"REVOKE TEMPORARY ON DATABASE {name} FROM PUBLIC")
        return self.url(name)

    def empty_database(self) -> str:
        """Return the URL of a database that is emptied each time, which is quicker than a new one.

        Optuna's tables go as well; what still reads or writes it is cut off.
        """
        if self._shared is None:
            self._shared = self.new_database()
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
            "DROP SCHEMA public CASCADE",
            "CREATE SCHEMA public",
            database=self._shared.rpartition("/")[2],
        )
        return self._shared

    def reader_url(self, url: str) -> str:
        """Return the URL of a database for an account that may do nothing but select."""
        name = url.rpartition("/")[2]
        self.execute(
            f"GRANT USAGE ON SCHEMA public TO {READER}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {READER}",
            database=name,
        )
        return self.url(name, READER, READER_PASSWORD)

    def execute(self, *statements: str, database: str = "postgres") -> None:
        """Run statements as the owner, each on its own."""
        import psycopg

        with psycopg.connect(self._dsn(database), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    @property
    def _log(self) -> Path:
        return self._folder / "server.log"

    def _dsn(self, database: str) -> str:
        return f"host=127.0.0.1 port={self.port} dbname={database} user={OWNER} password={PASSWORD}"

    def _initialise(self) -> None:
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if self._account is not None:
            shutil.chown(secret, self._account)
        self._call(
            "initdb", "--no-sync", "--encoding=UTF8", "--locale=C", "--auth=scram-sha-256",
            f"--username={OWNER}", f"--pwfile={secret}", "-D", str(self._data),
        )  # fmt: skip
        secret.unlink()
        lines = [
            f"{name} = '{value}'\n" for name, value in (_SETTINGS | {"port": self.port}).items()
        ]
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(lines)
        self.start()
        self.execute(f"CREATE ROLE {READER} LOGIN PASSWORD '{READER_PASSWORD}'")

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        done = subprocess.run(
            command, cwd=self._folder, user=self._account, check=False, timeout=120,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            log = self._log.read_text() if self._log.exists() else ""
            raise RuntimeError(f"{program} exited with {done.returncode}\n{log}")


def _account() -> str | None:
    """Return an account that may run the server: PostgreSQL refuses to be run by root."""
    import pwd

    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in _UNPRIVILEGED if name in known)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

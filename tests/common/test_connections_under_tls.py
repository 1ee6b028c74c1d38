"""NATS under TLS: who is who they say is met, everybody else is left before anything is shown to them."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import pytest

from kgents_common import streams
from kgents_common.connection import Connection
from kgents_common.errors import ConfigurationError
from kgents_common.publisher import Ack, AgentPublisher
from kgents_common.settings import ServiceSettings
from kgents_devstack import certificates
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import reached

TLS = """
tls {{
  cert_file: "{0}/tls.crt"
  key_file: "{0}/tls.key"
}}
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's certificate, whom its clients believe (`ca.crt`), and a stranger (`stranger.crt`)."""
    made = tmp_path_factory.mktemp("tls")
    authority = certificates.Authority()
    certificates.write(made, authority.issue("nats", ["localhost", "127.0.0.1"]), authority.certificate)
    (made / "stranger.crt").write_bytes(certificates.Authority().certificate)
    return made


@pytest.fixture(scope="module")
def server(directory: Path) -> Iterator[NatsServer]:
    """One that speaks nothing but TLS."""
    with NatsServer(directory / "nats", extra=TLS.format(directory)) as started:
        yield started


def settings(server: NatsServer, **told: Any) -> ServiceSettings:
    return ServiceSettings.from_environment(nats_servers=f"tls://127.0.0.1:{server.port}", **told)


@asynccontextmanager
async def connection(told: ServiceSettings) -> Any:
    made = Connection(told, name="test", on_closed=lambda: None)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def test_a_client_that_knows_the_authority_is_there_and_comes_back(
    server: NatsServer, directory: Path
) -> None:
    """Rule: also after the server went away: the reconnect is as protected as the first."""
    async with connection(settings(server, nats_ca_file=directory / "ca.crt")) as ours:
        await asyncio.wait_for(ours.wait(), 60)
        server.kill()
        await reached(lambda: not ours.is_connected)
        server.start()
        await reached(lambda: ours.is_reading)
        await asyncio.wait_for(ours.client.flush(30), 60)


async def test_an_agent_publishes_with_the_authority_s_file(server: NatsServer, directory: Path) -> None:
    """Rule: the library for agents takes the same file, and the same addresses."""
    developer = await nats.connect(
        f"tls://127.0.0.1:{server.port}",
        tls=ssl.create_default_context(cafile=directory / "ca.crt"),
        connect_timeout=60,
    )
    await streams.ensure(developer)
    async with AgentPublisher(
        f"tls://127.0.0.1:{server.port}", tenant="acme", source="agents/a1", ca_file=directory / "ca.crt"
    ) as agent:
        await agent.wait_until_connected()
        assert isinstance(await agent.publish("llm.tokens", {"tokens": 1}), Ack)
    await developer.close()


@pytest.mark.parametrize("authority", ["stranger.crt", None])
async def test_a_server_that_nobody_we_know_vouches_for_is_shown_nothing(
    server: NatsServer, directory: Path, authority: str | None
) -> None:
    """Rule: another authority's word, or none that we know: no connection, and a try again."""
    file = directory / authority if authority else None
    async with connection(settings(server, nats_ca_file=file, nats_token="t")) as ours:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ours.wait(), 1.5)


async def test_a_client_in_the_clear_is_refused(server: NatsServer) -> None:
    """Rule: the server's side of it."""
    with pytest.raises(Exception):  # noqa: B017 whatever it is called, it is no connection
        await nats.connect(
            f"nats://127.0.0.1:{server.port}", allow_reconnect=False, max_reconnect_attempts=1, tls=None
        )


async def test_who_sits_between_and_says_there_is_no_tls_hears_no_credentials(directory: Path) -> None:
    """Rule: a server's first word is unprotected; with `tls://` it ends there, if it is no TLS."""
    heard: list[bytes] = []
    asked = asyncio.Event()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.10.26","max_payload":1048576,"headers":true}\r\n')
        heard.append(await reader.read(1024))
        asked.set()
        writer.close()

    listening = await asyncio.start_server(between, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    told = ServiceSettings.from_environment(
        nats_servers=f"tls://127.0.0.1:{port}", nats_token="kg_secret", nats_ca_file=directory / "ca.crt"
    )
    async with connection(told):
        await asyncio.wait_for(asked.wait(), 60)
    listening.close()

    assert b"".join(heard) == b""


@pytest.mark.parametrize(
    ("servers", "content", "why"),
    [
        ("tls://a:4222,nats://b:4222", None, "without TLS"),
        ("tls://a:4222", b"# not made yet\n", "NATS_CA_FILE"),
        ("tls://a:4222", b"", "NATS_CA_FILE"),
    ],
)
def test_a_file_that_protects_nothing_is_refused_at_the_start(
    servers: str, content: bytes | None, why: str, directory: Path, tmp_path: Path
) -> None:
    """Rule: no server in the clear beside it, no file without an authority, no file that is not there."""
    file = tmp_path / "ca.crt"
    if content is None:
        file = directory / "ca.crt"
    elif content:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=why):
        ServiceSettings.from_environment(nats_servers=servers, nats_ca_file=file)

"""Fixtures of the backup tests: servers without streams, a filled stream, and stores of both kinds."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kgents_backup.sinks.store import DirectoryStore, ObjectStore, Sealer, Vault, open_object_store
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_devstack.fixtures import remove_streams
from kgents_devstack.servers import NatsServer, S3Server


@pytest.fixture
async def each_client(each_nats_server: NatsServer) -> AsyncIterator[VerbatimClient]:
    """A client of the oldest server we support, then of the current one; neither holds a stream."""
    async with connected({"servers": each_nats_server.url}) as client:
        await remove_streams(client)
        yield client


@pytest.fixture
async def client(nats_url: str) -> AsyncIterator[VerbatimClient]:
    """A client of the session's server, which holds no stream."""
    async with connected({"servers": nats_url}) as found:
        yield found


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    """An empty local vault, not sealed."""
    return Vault(DirectoryStore(tmp_path / "backup"), Sealer())


@pytest.fixture
async def s3_store(s3_server: S3Server) -> ObjectStore:
    """An empty prefix of a bucket of its own."""
    store = open_s3(s3_server)
    await store.put("made", b"")  # SeaweedFS makes a bucket with its first object
    await store.delete("made")
    return store


def open_s3(server: S3Server, *, call_seconds: float = 120, retry_seconds: float = 60) -> ObjectStore:
    """A store in a bucket that does not exist before its first object."""
    return open_object_store(
        f"s3://b{uuid.uuid4().hex[:12]}/prefix",
        options={
            "endpoint": server.endpoint,
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
            "region": "us-east-1",
        },
        call_seconds=call_seconds,
        retry_seconds=retry_seconds,
    )


@pytest.fixture(params=["directory", "s3"])
async def each_store(request: pytest.FixtureRequest, tmp_path: Path) -> DirectoryStore | ObjectStore:
    """Both kinds of store, empty."""
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    store = open_s3(request.getfixturevalue("s3_server"))
    await store.put("made", b"")
    await store.delete("made")
    return store

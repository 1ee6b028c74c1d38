"""Real servers under TLS as the manifests have it: who is let in, and what a renewal does.

nats-server is the wheels' own. Redis and Postgres of the wheels are built without TLS, so these two are the
machine's, where it has them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import nats
import psycopg
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from kgents_common import database
from kgents_common.connection import Connection
from kgents_common.redis_client import make_redis
from kgents_common.settings import ServiceSettings
from kgents_devstack import certificates
from kgents_devstack.certificates import Authority
from kgents_devstack.servers import Server, free_port
from kgents_devstack.servers.nats import OLDEST_VERSION, binary, installed_version
from kgents_devstack.servers.postgres_programs import NOBODY, data_home
from kgents_devstack.waiting import reached

from .nats_cluster import Node, nodes
from .rendered import K8S, Object, Workload, find, overlay

SEEDS = K8S / "components" / "plain-secrets" / "seeds"
KINDS = {"nats": "StatefulSet", "triad-postgres": "StatefulSet", "triad-redis": "Deployment"}


def container(server: str, name: str) -> Object:
    """A container of a server's pod."""
    workload = Workload(find(overlay("local"), KINDS[server], server))
    return next(c for c in workload.containers if c["name"] == name)


def moved(text: str, moves: Mapping[str, str]) -> str:
    """With the paths of a pod's volumes laid elsewhere."""
    for before, after in moves.items():
        text = text.replace(before, after)
    return text


@contextlib.contextmanager
def beside(server: str, moves: Mapping[str, str], **environment: str) -> Iterator[None]:
    """The container that looks for a renewed certificate, its command as it is; it ends as its pod does."""
    found = container(server, "certificates")
    command = [*found["command"], moved(found["args"][0], moves)]
    process = subprocess.Popen(command, env={**os.environ, "LOOK_SECONDS": "0.2", **environment})
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(30) == 0


def own(node: Node, version: str) -> dict[str, str]:
    """Where a node has what its pod mounts."""
    return {
        "/etc/nats-tls": str(node.tls_directory),
        "/var/run/nats": str(node.directory),
        "nats-server": binary(version),
    }


async def shown(port: int, context: ssl.SSLContext, *, first: bytes = b"") -> bytes:
    """The certificate of a server that speaks first (NATS), or wants to hear `first`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    await (reader.readexactly(1) if first else reader.readline())
    await writer.start_tls(context, server_hostname="127.0.0.1")
    found: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return found


async def has_other(port: int, context: ssl.SSLContext, before: bytes, *, first: bytes = b"") -> bool:
    """Whether a server shows another certificate by now."""
    return await shown(port, context, first=first) != before


@pytest.mark.long
@pytest.mark.parametrize("version", [OLDEST_VERSION, installed_version()])
async def test_three_nodes_take_up_a_renewed_certificate_and_keep_their_clients(
    version: str, tmp_path: Path
) -> None:
    """The configuration and the container as they are; a client moves to another node under TLS."""
    cluster = nodes(tmp_path, version)
    ca = tmp_path / "ca.crt"
    (tmp_path / "stranger.crt").write_bytes(Authority().certificate)
    knows, strange = (ssl.create_default_context(cafile=tmp_path / f"{n}.crt") for n in ("ca", "stranger"))
    told = ServiceSettings.from_environment(
        nats_servers=",".join(node.url for node in cluster),
        nats_ca_file=ca,
        nats_nkey_seed_file=SEEDS / "operator.nk",
        nats_inbox_prefix="_INBOX.operator",
    )
    with contextlib.ExitStack() as started:
        for node in cluster:
            started.enter_context(node)
        for node in cluster:
            await asyncio.to_thread(node.until_ready)
        ours = Connection(told, name="test", on_closed=lambda: None)
        await ours.start()
        await asyncio.wait_for(ours.wait(), 60)
        for options in ({}, {"tls": strange}):
            with pytest.raises(Exception):  # noqa: B017 whatever it is called, it is no connection
                await nats.connect(cluster[0].url, allow_reconnect=False, max_reconnect_attempts=1, **options)
        for node in cluster:
            started.enter_context(beside("nats", own(node, version)))
        await asyncio.sleep(0.5)
        for node in cluster:
            before = await shown(node.port, knows)
            node.renew()
            await reached(lambda node=node, before=before: has_other(node.port, knows, before))
        await ours.client.flush(30)
        assert ours.client.stats["reconnects"] == 0

        its = next(n for n in cluster if str(n.port) in ours.client.connected_url.netloc)
        its.kill()
        await reached(lambda: ours.is_reading and ours.client.stats["reconnects"] == 1)
        assert ours.client.connected_url.scheme == "tls"
        await ours.client.flush(30)
        await ours.stop()


@pytest.mark.long
async def test_who_has_no_certificate_of_ours_is_no_node(tmp_path: Path) -> None:
    """A node with an authority of its own stays alone: it is never ready, the others are."""
    cluster = nodes(tmp_path, installed_version())
    cluster[2].renew(Authority())
    with contextlib.ExitStack() as started:
        for node in cluster:
            started.enter_context(node)
        for node in cluster[:2]:
            await asyncio.to_thread(node.until_ready)
        await reached(lambda: "certificate" in cluster[2].log_path.read_text())
        assert "Route connection created" in cluster[0].log_path.read_text()
        with pytest.raises(OSError):
            cluster[2]._is_ready()


class Redis(Server):
    """The machine's, with the manifest's arguments."""

    name = "redis"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.moves = {"/etc/redis-tls": str(directory), "6379": str(self.port)}

    def _command(self) -> Sequence[str]:
        arguments = [moved(argument, self.moves) for argument in container("triad-redis", "redis")["args"]]
        return [*arguments, "--bind", "127.0.0.1", "--dir", str(self.directory)]

    def _is_ready(self) -> bool:
        return bool(ssl.get_server_certificate(("127.0.0.1", self.port)))


@pytest.mark.long
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="this machine has no redis-server")
async def test_redis_is_met_under_tls_alone_and_keeps_what_it_holds_over_a_renewal(tmp_path: Path) -> None:
    """The manifest's arguments and container; the URL's `ssl_ca_certs` says whom our client believes."""
    authority, names = Authority(), ["localhost", "127.0.0.1"]
    certificates.write(tmp_path, authority.issue("triad-redis", names), authority.certificate)
    (tmp_path / "stranger.crt").write_bytes(Authority().certificate)
    patience = {"timeout": timedelta(seconds=30)}
    with Redis(tmp_path) as server:
        url = f"rediss://127.0.0.1:{server.port}/0"
        ours = make_redis(f"{url}?ssl_ca_certs={tmp_path}/ca.crt", **patience)
        await ours.set("session", "kept")
        for refused in (url, f"{url}?ssl_ca_certs={tmp_path}/stranger.crt", url.replace("rediss", "redis")):
            with pytest.raises(RedisConnectionError):
                await make_redis(refused, **patience).ping()
        before = ssl.get_server_certificate(("127.0.0.1", server.port))
        with beside("triad-redis", {**server.moves, "redis-cli": f"redis-cli -p {server.port}"}):
            await asyncio.sleep(0.5)
            certificates.write(tmp_path, authority.issue("triad-redis", names), authority.certificate)
            await reached(lambda: ssl.get_server_certificate(("127.0.0.1", server.port)) != before)
        assert await ours.get("session") == "kept"
        fresh = make_redis(f"{url}?ssl_ca_certs={tmp_path}/ca.crt", **patience)
        assert await fresh.get("session") == "kept"
        await ours.aclose()
        await fresh.aclose()


def postgres_programs() -> Path | None:
    """The machine's Postgres, where it has one that was built with TLS."""
    found = shutil.which("postgres")
    if found is None:
        return None
    where = Path(found).resolve().parent
    described = subprocess.run(
        [where / "pg_config", "--configure"], capture_output=True, text=True, check=False
    )
    is_able = "openssl" in described.stdout and (where / "initdb").exists()
    return where if is_able else None


class Postgres(Server):
    """The machine's, with the manifest's arguments and its pg_hba.conf."""

    name = "postgres"

    def __init__(self, directory: Path, programs: Path) -> None:
        super().__init__(directory)
        self.port, self._programs = free_port(), programs
        self._runs_as = NOBODY if os.geteuid() == 0 else None
        self.home = data_home(directory, self._runs_as)
        self.moves = {
            "/etc/postgres-tls": str(self.home),
            "/etc/kgents/hba": str(self.home),
            "/var/run/postgresql": str(self.home),
        }

    def take(self, authority: Authority) -> None:
        """A certificate for it, as its pod may read it."""
        pair = authority.issue("triad-postgres", ["localhost", "127.0.0.1"])
        certificates.write(self.home, pair, authority.certificate)
        if self._runs_as is not None:
            os.chown(self.home / "tls.key", self._runs_as, self._runs_as)

    def _user(self) -> int | None:
        return self._runs_as

    def _prepare(self) -> None:
        made = [str(self._programs / "initdb"), "-D", str(self.home / "data"), "-U", "postgres", "--no-sync"]
        subprocess.run(
            made, user=self._runs_as, group=self._runs_as, cwd="/", check=True, capture_output=True
        )
        hba = find(overlay("local"), "ConfigMap", "triad-postgres-hba")["data"]["pg_hba.conf"]
        (self.home / "pg_hba.conf").write_text(hba)

    def _command(self) -> Sequence[str]:
        arguments = [moved(a, self.moves) for a in container("triad-postgres", "postgres")["args"]]
        here = [
            f"-cport={self.port}",
            "-clisten_addresses=127.0.0.1",
            f"-cunix_socket_directories={self.home}",
        ]
        return [str(self._programs / "postgres"), "-D", str(self.home / "data"), *arguments, *here]

    def _is_ready(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(host=str(self.home), port=self.port, user="postgres", connect_timeout=2).close()
            return True
        return False


@pytest.mark.long
@pytest.mark.skipif(postgres_programs() is None, reason="this machine has no Postgres built with TLS")
async def test_postgres_is_met_under_tls_alone_and_keeps_its_sessions_over_a_renewal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest's arguments, pg_hba.conf and container; libpq's variables say what a URL leaves open."""
    programs = postgres_programs()
    assert programs is not None
    server = Postgres(tmp_path / "postgres", programs)
    authority = Authority()
    server.take(authority)
    (tmp_path / "stranger.crt").write_bytes(Authority().certificate)
    url = f"postgresql://postgres:secret@127.0.0.1:{server.port}/postgres"
    first = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # SSLRequest
    with server:
        with psycopg.connect(host=str(server.home), port=server.port, user="postgres") as setting_up:
            setting_up.execute("alter role postgres password 'secret'")
        monkeypatch.setenv("PGSSLMODE", "verify-full")
        monkeypatch.setenv("PGSSLROOTCERT", str(server.home / "ca.crt"))
        pool = database.make_pool(url, application="test", max_size=1)
        await pool.open(wait=True, timeout=60)
        async with pool.connection() as session:
            pid = session.info.backend_pid
        for refused in (
            f"{url}?sslmode=disable",
            f"{url}?sslrootcert={tmp_path}/stranger.crt",
            f"{url}?sslrootcert=system",
        ):
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(refused, connect_timeout=30)
        knows = ssl.create_default_context(cafile=server.home / "ca.crt")
        before = await shown(server.port, knows, first=first)
        told = {"PGPORT": str(server.port), "PATH": f"{programs}:{os.environ['PATH']}"}
        with beside("triad-postgres", server.moves, **told):
            await asyncio.sleep(0.5)
            server.take(authority)
            await reached(lambda: has_other(server.port, knows, before, first=first))
        async with pool.connection() as session:
            assert session.info.backend_pid == pid
            assert session.info.pgconn.ssl_in_use
        await pool.close()
    shutil.rmtree(server.home, ignore_errors=True)

"""Sentinels put another server in a dead primary's place, and a client from before writes to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from redis import Redis as SyncRedis
from redis.exceptions import RedisError

from kgents_common.idempotency import Held, RedisLeases, Unknown
from kgents_common.redis_client import make_redis
from kgents_devstack.servers import Server, ValkeyServer, free_port
from kgents_devstack.waiting import reached, until

NAME = "main"
# So that a failover takes a second or two: how often sentinels look is not what is tested.
HURRY = ("info-period", "200", "ping-period", "100", "publish-period", "100")


class Replica(ValkeyServer):
    """Follows another server."""

    def __init__(self, directory: Path, followed: ValkeyServer) -> None:
        super().__init__(directory)
        self._followed = followed

    def _command(self) -> Sequence[str]:
        return [*super()._command(), "--replicaof", "127.0.0.1", str(self._followed.port)]


class ValkeySentinel(Server):
    """One that watches; it writes what it learns into its file."""

    name = "sentinel"

    def __init__(self, directory: Path, watched: ValkeyServer) -> None:
        super().__init__(directory)
        self.port, self._watched = free_port(), watched

    @property
    def client(self) -> SyncRedis:
        """To ask what it knows."""
        return SyncRedis(port=self.port, decode_responses=True)

    def _prepare(self) -> None:
        (self.directory / "sentinel.conf").write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
            f"sentinel monitor {NAME} 127.0.0.1 {self._watched.port} 2\n"
            f"sentinel down-after-milliseconds {NAME} 500\nsentinel failover-timeout {NAME} 5000\n"
        )

    def _command(self) -> Sequence[str]:
        return [self._watched._command()[0], str(self.directory / "sentinel.conf"), "--sentinel"]

    def sees_all(self) -> bool:
        """Whether it knows the replica and both other sentinels."""
        known = self.client.sentinel_master(NAME)
        return (int(known["num-slaves"]), int(known["num-other-sentinels"])) == (1, 2)


@dataclass(frozen=True, slots=True)
class Group:
    """A primary, its replica, and who watches them."""

    primary: ValkeyServer
    replica: ValkeyServer
    sentinels: Sequence[ValkeySentinel]

    @property
    def url(self) -> str:
        """As `REDIS_URL` has it."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{s.port}' for s in self.sentinels)}/{NAME}/0"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    """All of them, each known to each."""
    with contextlib.ExitStack() as started:
        primary = started.enter_context(ValkeyServer(tmp_path / "first"))
        replica = started.enter_context(Replica(tmp_path / "second", primary))
        sentinels = [
            started.enter_context(ValkeySentinel(tmp_path / f"sentinel-{n}", primary)) for n in range(3)
        ]
        for sentinel in sentinels:
            sentinel.client.execute_command("SENTINEL", "DEBUG", *HURRY)
        until(lambda: all(sentinel.sees_all() for sentinel in sentinels))
        yield Group(primary, replica, sentinels)


@pytest.mark.long
async def test_after_a_failover_the_same_client_writes_to_the_new_primary(group: Group) -> None:
    """Rule: the primary's death is a Redis that is away for a moment; what was replicated is still there."""
    ours = make_redis(group.url, timeout=timedelta(seconds=10), connections=4)
    leases = RedisLeases(ours, prefix="t:")
    await ours.set("session", "kept")
    assert isinstance(await leases.claim("evt_1"), Held)
    # Many more at once than there are connections: they wait for one.
    assert sorted(await asyncio.gather(*(ours.incr("n") for _ in range(100)))) == list(range(1, 101))
    await reached(lambda: SyncRedis(port=group.replica.port).get("n") == b"100")

    group.primary.kill()
    assert isinstance(await leases.claim("evt_2"), Unknown), "work goes on without it"
    group.sentinels[0].kill()  # the first that is asked; the two others are enough

    async def writes() -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(await ours.set("after", "written"))
        return False

    await reached(writes)
    assert SyncRedis(port=group.replica.port).get("after") == b"written"
    assert await ours.get("session") == "kept"

    async def is_asked_again() -> bool:
        return isinstance(await leases.claim("evt_3"), Held)

    await reached(is_asked_again)
    await ours.aclose()


@pytest.mark.long
async def test_a_primary_that_is_taken_down_to_be_a_replica_is_not_written_to(group: Group) -> None:
    """Rule: a failover by hand leaves the old primary alive; connections to it are no use any more."""
    ours = make_redis(group.url, timeout=timedelta(seconds=10))
    await ours.set("before", "1")
    assert isinstance(await RedisLeases(ours, prefix="t:").claim("evt_1"), Held)
    group.sentinels[0].client.execute_command("SENTINEL", "FAILOVER", NAME)

    def follows() -> bool:
        return SyncRedis(port=group.primary.port).info("replication")["role"] == "slave"

    await reached(follows)

    async def writes() -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(await ours.set("after", "written"))
        return False

    await reached(writes)
    assert SyncRedis(port=group.replica.port).get("after") == b"written"
    assert isinstance(await RedisLeases(ours, prefix="t:").claim("evt_2"), Held)
    await ours.aclose()

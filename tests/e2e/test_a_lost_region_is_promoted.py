"""P7: the primary is killed under load; the second region takes over by the operator's own commands."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError
from tests.backup.commands import Commands
from tests.backup.streams import archive, read_all

from kgents_backup.sinks.store import DirectoryStore, Sealer, Vault
from kgents_backup.sources.verbatim import connected
from kgents_common import streams
from kgents_devstack.servers import NatsServer, free_port
from kgents_devstack.waiting import HANGS_AFTER_SECONDS
from kgents_devstack.waiting import reached as until


async def test_the_primary_dies_under_load_and_the_mirror_takes_over(tmp_path: Path) -> None:
    """Rule: mirror, load, kill -9, promote: every acknowledged event that mirror or archive saw is there, the
    rest is counted when the old primary returns, fenced; writes go on meanwhile."""
    leaf = free_port()
    primary = NatsServer(
        tmp_path / "p", name="p", domain="primary", extra=f"leafnodes {{ listen: 127.0.0.1:{leaf} }}"
    )
    remote = f'leafnodes {{ reconnect: 1, remotes: [{{ url: "nats-leaf://127.0.0.1:{leaf}" }}] }}'
    dr = NatsServer(tmp_path / "d", name="d", domain="dr", extra=remote)
    store = tmp_path / "store"
    run = Commands(primary.url, store, KGENTS_DR_NATS_SERVERS=dr.url, KGENTS_BACKUP_STREAMS="AGENTESE")
    await asyncio.to_thread(primary.start)
    await asyncio.to_thread(dr.start)
    try:
        async with connected({"servers": dr.url}) as dr_client:
            acknowledged = await _until_killed(primary, run, store)
            code, said = await run("dr promote --store local")
            assert code == 0, said
            assert "promoted by" in said
            have = {m.body for m in await read_all(dr_client)}
            missing = [body for body in acknowledged if body not in have]
            await dr_client.jetstream().publish("agentese.acme.after", b"written to the new primary")

            fencing = asyncio.create_task(run("dr fence --wait 60"))
            await asyncio.to_thread(primary.start)
            code, said = await fencing
            assert code == 0, said

            async def is_fenced() -> bool:
                return "primary fenced" in (await run("dr status"))[1]

            await until(is_fenced)
            code, said = await run("dr account")
            assert code == 0, said
            have = {m.body for m in await read_all(dr_client)}
            assert [body for body in acknowledged if body not in have] == []
            assert len(missing) < len(acknowledged)
    finally:
        await asyncio.to_thread(dr.stop)
        await asyncio.to_thread(primary.stop)


async def _until_killed(primary: NatsServer, run: Commands, store: Path) -> list[bytes]:
    """Publish, mirror and archive, and kill the primary in the middle of it; what it acknowledged."""
    acknowledged: list[bytes] = []
    vault = Vault(DirectoryStore(store), Sealer())
    async with connected({"servers": primary.url, "max_reconnect_attempts": 1}) as client:
        await streams.apply(client, await streams.plan(client))
        code, said = await run("dr mirror")
        assert code == 0, said

        async def load() -> None:
            number = 0
            while True:
                body = f"event {number}".encode()
                await client.jetstream(timeout=2).publish("agentese.acme.load", body)
                acknowledged.append(body)
                number += 1

        loading = asyncio.create_task(load())

        async def is_loaded() -> bool:
            return len(acknowledged) > 1500

        await until(is_loaded)
        await archive(client, vault)
        await asyncio.sleep(0.2)
        await asyncio.to_thread(primary.kill)
        with contextlib.suppress(NatsError, JetStreamError, TimeoutError, OSError):
            await asyncio.wait_for(loading, HANGS_AFTER_SECONDS)
    return acknowledged
